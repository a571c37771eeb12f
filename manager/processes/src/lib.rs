//! Processes of workers: finding all that a worker has started, and ending it.
//!
//! | module | what it owns |
//! |---|---|
//! | `mark` | what a worker's environment says of whose it is |
//! | `tree` | everything a worker has started: looked for, signalled, ended; strays that hid from it |
//! | `orphan` | workers that earlier kernels left running |
//! | `departing` | waiting for processes that were told to end |
//! | `pidfd` | signals that reach only the process that was meant |
//!
//! Leaves to others when a worker is to end: this crate knows no watcher's state and no kernel.
//! Invariant: nobody is signalled by a number that could have been used again.
#![forbid(unsafe_code)]

pub mod departing;
pub mod mark;
pub mod orphan;
pub mod pidfd;
pub mod tree;
