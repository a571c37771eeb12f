//! What the manager and papactl ask of the operating system.
//!
//! | module | what it owns |
//! |---|---|
//! | `sys` | system calls without a safe wrapper; all `unsafe` of the manager |
//! | `walk` | ways to log and pid files that no stranger chooses |
//! | `civil` | moments as people write them |
//! | `printable` | text from files and programs, made harmless for a terminal |
//! | `runtime_dir` | where sockets, logs and notes of manager and kernel live |
//! | `pidfile` | the file with the manager's pid |
//! | `holder` | who has a port or a socket's path |
//!
//! Leaves to others what is done with it: this crate knows no watcher and no configuration.

pub mod civil;
pub mod holder;
pub mod pidfile;
pub mod printable;
pub mod runtime_dir;
pub mod sys;
pub mod walk;
