//! What the pages say is what the programs do: links and paths lead somewhere, examples run, and
//! their output looks as it is shown.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

mod guide;
mod links;
mod pages;
mod sessions;
mod shown;
