//! How tests steer the programs of this workspace from outside, by their environment.
//!
//! Owns [`failpoint`], named places where a process stops itself; [`patience`], shorter limits of
//! waiting; [`slow_disk`], steps with log files that take long.
//! Invariant: a release build looks at none of these variables; `.ci/run` searches its programs for
//! their names.
#![forbid(unsafe_code)]

pub mod failpoint;
pub mod patience;
pub mod slow_disk;
