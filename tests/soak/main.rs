//! Everything at once, for a while.

// A test says what went wrong by failing.
#![allow(clippy::unwrap_used)]

#[path = "../harness/mod.rs"]
mod harness;

mod action;
mod driver;
mod seeds;
mod ten_million;
mod whole;
