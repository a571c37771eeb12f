//! The wire between the papa kernel and its clients.
//!
//! Owns what both sides must agree on: the classic line dialect of papa 1.0.6, the JSON dialect,
//! every bound, and the incremental decoders. Opens no sockets and reads no clock; the client is the
//! crate `papa-client`. Nothing that arrives from a peer can panic here or grow past a named limit.
//! Source: protocol/README.md, the normative text.
//!
//! Code map: [`limits`] every bound; [`words`] one classic line to words and back; [`name`] names
//! and patterns; [`size`] `2m` to bytes; [`text`] byte strings in JSON and the escaping of control
//! characters; [`record`] captured output as it travels; [`socket`] and [`process`] the nouns both
//! dialects share; [`classic`] and [`json`] the dialects, a request beside its reply; [`codec`]
//! bytes to lines and pushes.
#![forbid(unsafe_code)]

pub mod classic;
pub mod codec;
pub mod json;
pub mod limits;
pub mod name;
pub mod process;
pub mod record;
pub mod size;
pub mod socket;
pub mod socket_reference;
pub mod text;
pub mod words;
