//! Changing the program or the role: what an upgrade, a stop, a recovery and a takeover are made
//! of.
//!
//! Functions of the parts they use, and nothing of the event loop: `owner/upgrade.rs` and
//! `owner/stopping.rs` call them in order.

pub(crate) mod changing;
pub mod check;
pub(crate) mod dry_run;
pub mod handover;
pub(crate) mod program;
pub mod recover;
pub(crate) mod sessions;
pub mod succession;
pub mod takeover;
