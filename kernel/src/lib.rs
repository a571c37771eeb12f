//! The papa kernel: holds what must never die.
//!
//! It starts processes, keeps sockets, values and descriptors, and returns
//! output and exit codes. It does not stop, signal or restart processes and
//! knows nothing of watchers; that is the manager's.
//!
//! | file | what it is |
//! |---|---|
//! | `main.rs`, `cli.rs`, `launcher.rs` | arguments, binding, into the keeper's role |
//! | `keeper/` | holds descriptor copies, restarts the kernel, reaps |
//! | `run.rs`, `recover.rs` | the kernel's role; the one start path |
//! | `server.rs`, `connection.rs`, `budget.rs` | callers, their bytes, their bounds |
//! | `owner/` | the event loop and both dialects |
//! | `verbs/` | what requests do |
//! | `table.rs`, `journal.rs` | what exists, and its record |
//! | `live.rs`, `reel.rs` | a process's descriptors and its output |
//! | `alarm.rs` | wakes the event loop at its deadlines |
//! | `takeover.rs`, `succession.rs` | changing the program or the role; the keeper before goes |
//! | `understudy.rs` | the second holder while a keeper is missing |
//! | `patience.rs` | shortens for tests how long others are waited for |
//! | `check.rs`, `handover.rs` | a new program's dry run, and how it finds the client sessions |
//! | `sys/` | the system, and the only `unsafe` |

pub mod alarm;
pub mod budget;
pub mod check;
pub mod cli;
pub mod config;
pub mod connection;
pub mod handover;
pub mod journal;
pub mod keeper;
pub mod launcher;
pub mod live;
pub mod logging;
pub mod owner;
pub mod patience;
pub mod recover;
pub mod reel;
pub mod run;
pub mod server;
pub mod succession;
pub mod sys;
pub mod table;
pub mod takeover;
pub mod understudy;
mod verbs;
