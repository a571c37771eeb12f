//! Everything at once, for a while.

// A test says what went wrong by failing.
#![allow(clippy::unwrap_used)]

#[path = "../harness/mod.rs"]
mod harness;

mod whole;
