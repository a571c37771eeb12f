//! What the log thread is told, what it reports, and why it fails.
//!
//! Owns the types that the thread, its session with the kernel and the held state share, and what
//! is still to be reported.
//! Invariant: a report that its receiver has no room for is made again.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use papa_client::{Address, ClientError};
use papa_config::WatcherConfig;

/// Pause between attempts at what should work soon: the kernel is restarting, a predecessor is
/// dying.
pub(super) const TRY_AGAIN: Duration = Duration::from_millis(100);
/// How long the last acknowledgements may take when the manager ends.
pub(super) const FAREWELL: Duration = Duration::from_secs(2);

/// What the thread is started with.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// Where the kernel is.
    pub addresses: Vec<Address>,
    /// Namespace of our names.
    pub namespace: String,
    /// Whose output goes where.
    pub watchers: Vec<Arc<WatcherConfig>>,
}

/// A report of the thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogReport {
    /// What is wrong, for people, whenever that changes; empty means all is well, and the first
    /// time also that output is being consumed.
    Troubles(Vec<String>),
    /// A process wrote a line that matches its watcher's `ready = log:REGEX`. Told once for each
    /// process, and once more by every manager that takes it over.
    LineMatched {
        /// The process.
        serial: u64,
    },
}

/// What the thread is to do; the latest orders count.
#[derive(Debug, Clone)]
pub(super) struct Orders {
    pub(super) watchers: Arc<[Arc<WatcherConfig>]>,
    /// Reopen requests so far; a change means reopen.
    pub(super) reopenings: u64,
    pub(super) finish: bool,
}

/// Reports that are still to be made.
pub(super) struct Reports {
    send: Box<dyn Fn(LogReport) -> bool>,
    /// As last reported.
    told: Option<Vec<String>>,
    troubles: Vec<String>,
    matched: BTreeSet<u64>,
}

impl Reports {
    pub(super) fn new(send: impl Fn(LogReport) -> bool + 'static) -> Self {
        Self {
            send: Box::new(send),
            told: None,
            troubles: Vec::new(),
            matched: BTreeSet::new(),
        }
    }

    pub(super) fn troubles(&mut self, troubles: Vec<String>) {
        self.troubles = troubles;
    }

    pub(super) fn matched(&mut self, serials: impl IntoIterator<Item = u64>) {
        self.matched.extend(serials);
    }

    /// Makes the reports; false if there was no room for all of them.
    pub(super) fn send(&mut self) -> bool {
        while let Some(serial) = self.matched.pop_first() {
            if !(self.send)(LogReport::LineMatched { serial }) {
                self.matched.insert(serial);
                return false;
            }
        }
        if self.told.as_ref() != Some(&self.troubles) {
            if !(self.send)(LogReport::Troubles(self.troubles.clone())) {
                return false;
            }
            self.told = Some(self.troubles.clone());
        }
        true
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{0}")]
    Name(String),
    #[error("the kernel does not say where a reel begins")]
    ReelWithoutStart,
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    use super::*;

    #[test]
    fn what_there_is_no_room_for_is_said_again() {
        let room = Rc::new(Cell::new(0));
        let heard = Rc::new(RefCell::new(Vec::new()));
        let (there, ear) = (room.clone(), heard.clone());
        let mut reports = Reports::new(move |report| {
            let taken = there.get() > 0;
            if taken {
                there.set(there.get() - 1);
                ear.borrow_mut().push(report);
            }
            taken
        });
        reports.matched([7, 9, 7]);
        room.set(1);
        assert!(!reports.send());
        room.set(9);
        assert!(reports.send());
        assert!(reports.send());
        reports.troubles(vec!["full".to_owned()]);
        assert!(reports.send());
        assert_eq!(
            *heard.borrow(),
            [
                LogReport::LineMatched { serial: 7 },
                LogReport::LineMatched { serial: 9 },
                LogReport::Troubles(Vec::new()),
                LogReport::Troubles(vec!["full".to_owned()]),
            ]
        );
    }
}
