//! Values of keys to and from text.
//!
//! Owns the forms that are more than a number or a word: what each accepts, how the refusal reads,
//! and the text of a value. Knows no key; the tables of `known` say which key has which form.
//! Invariant: the text of a value reads as that value.

pub(crate) mod circus;
pub(crate) mod identity;
pub(crate) mod probe;
pub(crate) mod socket;
pub(crate) mod stream;
pub(crate) mod watcher;
