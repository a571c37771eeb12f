//! Changing the program or the role: upgrade, stop, recovery, and taking the keeper's place.

pub mod check;
mod dry_run;
pub mod handover;
pub mod recover;
pub mod resume;
mod stopping;
pub mod succession;
pub mod takeover;
pub mod understudy;
pub(crate) mod upgrade;
