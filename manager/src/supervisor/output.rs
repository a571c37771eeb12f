//! The log thread, which takes workers' output: whether it is there, whether it knows every
//! watcher, and what it has trouble with.
//!
//! Leaves to others: output itself (`logs`), which watchers have output (`membership`).
//! Invariant: the thread is told of all changes of one turn at once, so that a thousand removals
//! cost as much as one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use papa_logs::thread::LogThread;

use crate::config::WatcherConfig;

/// How long the first workers wait for the log thread; it needs a few round trips.
const READY: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Output {
    thread: Option<LogThread>,
    /// Until then workers wait for their output to have a consumer: what they write before could be
    /// dropped if we were killed.
    due: Option<Instant>,
    /// What it has trouble with, for people.
    troubles: Vec<String>,
    /// Watchers have come, gone or changed since it was told of them.
    outdated: bool,
}

impl Output {
    /// The thread is there. With `awaited` the first workers wait for it.
    pub(super) fn started(&mut self, thread: LogThread, awaited: bool, now: Instant) {
        self.thread = Some(thread);
        self.due = awaited.then(|| now + READY);
    }

    /// The thread cannot be started, or says what it has trouble with.
    pub(super) fn told(&mut self, troubles: Vec<String>) {
        if troubles.is_empty() {
            self.due = None;
        }
        self.troubles = troubles;
    }

    /// What it has trouble with, for people.
    pub(super) fn troubles(&self) -> &[String] {
        &self.troubles
    }

    /// Whether workers wait for it.
    pub(super) fn is_awaited(&self, now: Instant) -> bool {
        self.due.is_some_and(|at| now < at)
    }

    /// Workers start, whether it is ready or not.
    pub(super) fn stop_waiting(&mut self) {
        self.due = None;
    }

    /// When workers do not wait for it any longer.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// Watchers have come, gone or changed.
    pub(super) fn outdate(&mut self) {
        self.outdated = true;
    }

    /// Whether the thread is to be told of the watchers.
    pub(super) fn is_outdated(&self) -> bool {
        self.outdated
    }

    /// Tells the thread of the watchers that have output.
    pub(super) fn update(&mut self, watchers: Vec<Arc<WatcherConfig>>) {
        self.outdated = false;
        if let Some(thread) = &self.thread {
            thread.update(watchers);
        }
    }

    /// Somebody has moved the log files.
    pub(super) fn reopen(&self) {
        if let Some(thread) = &self.thread {
            thread.reopen();
        }
    }

    /// The thread, to be ended.
    pub(super) fn take(&mut self) -> Option<LogThread> {
        self.thread.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_wait_until_it_is_ready_or_the_time_is_over() {
        let now = Instant::now();
        let mut output = Output {
            due: Some(now + READY),
            ..Output::default()
        };
        output.told(vec!["logs: disk full".to_owned()]);
        assert!(output.is_awaited(now), "trouble is not readiness");
        assert!(!output.is_awaited(now + READY));
        output.told(Vec::new());
        assert!(!output.is_awaited(now));
        assert_eq!((output.deadline(), output.troubles().len()), (None, 0));
    }
}
