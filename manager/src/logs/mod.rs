//! Captured output to log files: every line once, whole and in order, whatever dies in between.
//!
//! | module | what it owns |
//! |---|---|
//! | `store`, `layout` | the held memfd: writes in progress and how far each stream is |
//! | `sink` | a file or a syslog daemon |
//! | `file`, `disk` | one log file: open, append under a record, finish what a predecessor began |
//! | `rotate`, `schedule`, `gzip` | turning a file: names, moments, compression aside |
//! | `syslog` | datagrams to a daemon |
//! | `lines` | chunks to whole lines |
//! | `format`, `prefix` | what a line looks like |
//! | `writer`, `book` | all files and all processes: output in, positions to acknowledge out |
//! | `routes` | the configuration: whose lines go where |
//! | `session`, `held`, `thread` | the connection to the kernel that feeds the writer, on a thread of its own |
//! | `reels` | output read from the kernel's memory files, being too much to be sent |
//! | `pulse` | tells the kernel that the thread is at work while a slow disk holds it up |
//!
//! Invariant: the kernel is told to forget output only after it is in its file and the store says
//! so.

mod book;
mod disk;
pub mod file;
pub mod format;
mod gzip;
mod held;
pub mod layout;
pub mod lines;
pub mod prefix;
mod pulse;
mod reels;
pub mod rotate;
mod routes;
pub mod schedule;
mod session;
pub mod sink;
pub mod store;
mod syslog;
pub mod thread;
pub mod writer;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod killed;
#[cfg(test)]
mod tests;
