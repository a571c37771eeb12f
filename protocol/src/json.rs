//! The JSON dialect: one object per line in both directions, captured output as a header line and
//! its bytes.
//!
//! Owns requests, replies and pushes as types that both sides use: the kernel deserialises a
//! [`request::Request`] and serialises the very structs the client gets back. Lines come from and
//! go to [`crate::codec`].
//! Source: protocol/README.md, "JSON dialect".

pub(crate) mod bounded;
pub mod push;
pub mod reply;
pub mod request;
pub mod status;

pub use push::{End, Event, EventType, Exited, Lost, OutputHeader, Shutdown};
pub use reply::{ErrorCode, Failure};
pub use request::{Id, Op, Operation, Rejected, Request};

/// The version of this dialect; it rises when something is taken away or changes its meaning.
pub const PROTOCOL: u32 = 1;

/// The word that switches a classic session to this dialect, for good.
pub const SWITCH_WORD: &str = "json";

/// Feature: captured output moves by splice; without it each byte is copied twice.
pub const FEATURE_SPLICE: &str = "splice";

/// Feature: exits are read from pidfds.
pub const FEATURE_PIDFD_INFO: &str = "pidfd_info";
