//! Captured output to log files: every line once, whole and in order, whatever dies in between.
//!
//! | module | what it owns |
//! |---|---|
//! | `store`, `layout` | the held memfd: writes in progress and how far each stream is |
//! | `file`, `disk` | one log file: open, append under a record, rotate, finish what a predecessor began |
//! | `lines` | chunks to whole lines |
//! | `prefix` | `TIME [PID] \| ` |
//! | `writer`, `book` | all files and all processes: output in, positions to acknowledge out |
//! | `routes` | the configuration: whose lines go where |
//! | `session`, `held`, `thread` | the connection to the kernel that feeds the writer, on a thread of its own |
//!
//! Invariant: the kernel is told to forget output only after it is in its file and the store says so.

mod book;
mod disk;
pub mod file;
mod held;
pub mod layout;
pub mod lines;
pub mod prefix;
mod routes;
mod session;
pub mod store;
pub mod thread;
pub mod writer;

#[cfg(test)]
mod killed;
#[cfg(test)]
mod tests;
