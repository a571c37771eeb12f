//! Events for those who listen on the control socket.
//!
//! Owns which changes of a watcher's state are events. Leaves to others: the list of events and its
//! readers (`control::events`).

use std::collections::HashMap;

use crate::control::events::{EventKind, EventLog};
use crate::control::message::WatcherState;
use crate::control::server::now as epoch_seconds;
use crate::last_words::End;
use crate::supervisor::{Look, Supervisor, WatcherId};
use crate::watcher::Notice;
use crate::worker::Running;

/// The events, and which states of watchers they have told.
#[derive(Debug)]
pub(super) struct Announcements {
    pub(super) log: EventLog,
    announced: HashMap<WatcherId, Announced>,
}

/// What was last told about a watcher.
#[derive(Debug, Clone, Copy, Default)]
struct Announced {
    started: bool,
    stopping: bool,
}

impl Announcements {
    pub(super) fn new(log: EventLog) -> Self {
        Self {
            log,
            announced: HashMap::new(),
        }
    }

    /// The event of a watcher that is in `state` now, unless it was told already.
    fn change(&mut self, id: WatcherId, state: WatcherState) -> Option<EventKind> {
        let told = self.announced.entry(id).or_default();
        let was_stopping = std::mem::replace(&mut told.stopping, state == WatcherState::Stopping);
        let change = match state {
            WatcherState::Active if !told.started => Some(EventKind::Start),
            WatcherState::Stopped if told.started => Some(EventKind::Stop),
            // A restart: stopped for a moment.
            WatcherState::Starting if told.started && was_stopping => Some(EventKind::Stop),
            _ => None,
        };
        if let Some(kind) = &change {
            told.started = *kind == EventKind::Start;
        }
        change
    }
}

impl Supervisor {
    /// Publishes an event of a watcher, with the current time.
    pub(super) fn publish(&mut self, watcher: WatcherId, kind: &EventKind) {
        if let Some(watcher) = self.watchers.get(&watcher) {
            self.announcements
                .log
                .publish(&watcher.config().name, kind, epoch_seconds());
        }
    }

    /// Publishes the start of a worker, with the time of that start.
    pub(super) fn publish_spawn(&mut self, watcher: WatcherId, wid: u32, process: &Running) {
        let Some(watcher) = self.watchers.get(&watcher) else {
            return;
        };
        let kind = EventKind::Spawn {
            pid: process.pid.unsigned_abs(),
            wid,
        };
        let started = std::time::Duration::from_micros(process.started_us).as_secs_f64();
        self.announcements
            .log
            .publish(&watcher.config().name, &kind, started);
    }

    /// Publishes the notices of watchers, and who has become active or stopped since the last time.
    pub(super) fn announce(&mut self) {
        let now = epoch_seconds();
        for id in self.watchers.take(Look::Announce) {
            let Some(watcher) = self.watchers.get_to_read(&id) else {
                self.announcements.announced.remove(&id);
                continue;
            };
            let state = watcher.state();
            let change = self.announcements.change(id, state);
            let notices = watcher.take_notices().into_iter();
            let notices = notices.map(|notice| event_of(notice, watcher.end_told()));
            for kind in notices.chain(change) {
                self.announcements
                    .log
                    .publish(&watcher.config().name, &kind, now);
            }
        }
    }
}

fn event_of(notice: Notice, end: Option<&End>) -> EventKind {
    match notice {
        Notice::Ready { wid, pid } => EventKind::Ready {
            pid: pid.unsigned_abs(),
            wid,
        },
        Notice::Unwell { wid, pid, reason } => EventKind::Unhealthy {
            pid: pid.unsigned_abs(),
            wid,
            reason,
        },
        Notice::Reloaded => EventKind::Reload,
        Notice::RolledBack(reason) => EventKind::RolledBack { reason },
        Notice::Flapping(reason) => EventKind::Flapping { reason },
        Notice::GaveUp(reason) => EventKind::GaveUp {
            reason,
            end: end.cloned().map(Box::new),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_start_and_stop_of_a_watcher_is_told_once() {
        let mut announcements = Announcements::new(EventLog::new("test".to_owned()));
        for (state, expected) in [
            (WatcherState::Starting, None),
            (WatcherState::Active, Some(EventKind::Start)),
            (WatcherState::Active, None),
            (WatcherState::Starting, None),
            (WatcherState::Active, None),
            (WatcherState::Stopping, None),
            (WatcherState::Starting, Some(EventKind::Stop)),
            (WatcherState::Active, Some(EventKind::Start)),
            (WatcherState::Stopping, None),
            (WatcherState::Stopped, Some(EventKind::Stop)),
            (WatcherState::Stopped, None),
        ] {
            assert_eq!(
                announcements.change(WatcherId(1), state),
                expected,
                "{state:?}"
            );
        }
        let other = announcements.change(WatcherId(2), WatcherState::Active);
        assert_eq!(other, Some(EventKind::Start));
    }
}
