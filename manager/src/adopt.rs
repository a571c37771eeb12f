//! After a restart of the manager or the kernel: whose are the processes there are?
//!
//! Owns the matching of kernel names to watchers and worker numbers, for our own workers and those circusd started on our kernel.
//! Pure.
//! Invariant: every process of the namespace gets exactly one verdict.

use papa_protocol::process::Process;

use crate::config::WatcherConfig;

/// What one listed process is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A worker: the watcher's place in the configuration, and the number.
    Worker {
        /// Index of the watcher.
        watcher: usize,
        /// The worker's number.
        wid: u32,
    },
    /// Of no watcher we know: left alone.
    Foreign,
}

/// Whose `process` is, by its name.
#[must_use]
pub fn verdict<'a>(
    namespace: &str,
    watchers: impl IntoIterator<Item = &'a WatcherConfig>,
    process: &Process,
) -> Verdict {
    watchers
        .into_iter()
        .enumerate()
        .find_map(|(watcher, config)| {
            let wid = config.worker_number(namespace, &process.name)?;
            Some(Verdict::Worker { watcher, wid })
        })
        .unwrap_or(Verdict::Foreign)
}
