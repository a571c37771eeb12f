//! Captured output to log files: every line once, whole and in order, whatever dies in between.
//!
//! | module | what it owns |
//! |---|---|
//! | `store`, `layout` | the held memfd: writes in progress and how far each stream is |
//! | `sink` | a file or a syslog daemon |
//! | `file`, `disk`, `file_id` | one log file: open, append under a record, finish what a predecessor began |
//! | `rotate`, `schedule`, `gzip` | turning a file: names, moments, compression aside |
//! | `syslog`, `syslog_socket` | datagrams to a daemon |
//! | `lines` | chunks to whole lines |
//! | `format`, `prefix` | what a line looks like |
//! | `writer`, `book` | all files and all processes: output in, positions to acknowledge out |
//! | `route`, `routes` | where a stream's lines go; the configuration: whose lines go where |
//! | `session`, `held`, `thread` | the connection to the kernel that feeds the writer, on a thread of its own |
//! | `exchange` | what that thread is told and what it reports |
//! | `reels` | output read from the kernel's memory files, being too much to be sent |
//! | `pulse` | tells the kernel that the thread is at work while a slow disk holds it up |
//! | `own_output` | the file that the manager's own standard output leads to, which must not grow without bound |
//! | `reader`, `form` | log files as people read them; how their lines say when they were written |
//!
//! Invariant: the kernel is told to forget output only after it is in its file and the store says
//! so.
#![forbid(unsafe_code)]

mod book;
mod disk;
mod exchange;
pub mod file;
pub mod file_id;
pub mod form;
pub mod format;
mod gzip;
mod held;
pub mod layout;
pub mod lines;
pub mod own_output;
pub mod prefix;
mod pulse;
pub mod reader;
mod reels;
pub mod rotate;
pub mod route;
mod routes;
pub mod schedule;
mod session;
pub mod sink;
pub mod store;
mod syslog;
pub mod syslog_socket;
pub mod thread;
pub mod writer;

pub use held::held_logs;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod killed;
#[cfg(test)]
mod tests;
