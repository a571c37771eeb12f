//! Everything at once, for a while.

// A test says what went wrong by failing.
#![allow(clippy::unwrap_used)]

mod action;
mod driver;
mod seeds;
mod swarm;
mod ten_million;
mod whole;
