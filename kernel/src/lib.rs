//! The papa kernel: the daemon that holds what must never die.
//!
//! It starts processes, keeps sockets, values and descriptors, and returns
//! output and exit codes. It does not stop, signal or restart processes and
//! knows nothing of watchers: the manager does that.
//!
//! | file | what it is |
//! |---|---|
//! | `main.rs`, `cli.rs`, `launcher.rs` | arguments, binding, into the keeper's role |
//! | `keeper/` | holds descriptor copies, restarts the kernel, reaps |
//! | `run.rs`, `change/recover.rs` | the kernel's role; the one start path |
//! | `client/` | callers: accepting them, their bytes, their bounds |
//! | `owner.rs`, `owner/` | the event loop: deadlines, signals, starts, upgrades |
//! | `verbs/` | what requests do, and both dialects |
//! | `processes/` | running processes: starts, output, exits |
//! | `world/` | what exists: the table, its journal, live processes, their output |
//! | `readers/` | sessions, their subscriptions, delivery |
//! | `change/` | what a change of the program or the role is made of: recovery, takeover, handover |
//! | `holder.rs` | who has a place that cannot be bound |
//! | `directions.rs` | the test of which folder may import which |
//! | `sys/` | the system, and the only `unsafe` |

pub mod change;
pub mod cli;
pub mod client;
pub mod config;
mod holder;
pub mod keeper;
pub mod launcher;
pub mod logging;
pub mod owner;
mod processes;
pub mod readers;
pub mod run;
pub mod sys;
mod verbs;
pub mod world;

/// The program's version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

#[cfg(test)]
mod directions;
