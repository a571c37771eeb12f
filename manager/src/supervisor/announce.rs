//! What the loop tells those who listen.
//!
//! Owns which changes of state are events; the events themselves are `control::events`'s.

use crate::control::events::EventKind;
use crate::control::message::WatcherState;
use crate::control::server::now as epoch_seconds;
use crate::last_words::End;
use crate::supervisor::{Look, Supervisor, WatcherId};
use crate::watcher::Notice;
use crate::worker::Running;

/// What was last said about a watcher.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Announced {
    started: bool,
    stopping: bool,
}

impl Supervisor {
    /// Tells what happened to a watcher just now.
    pub(super) fn publish(&mut self, watcher: WatcherId, kind: &EventKind) {
        if let Some(watcher) = self.watchers.get(&watcher) {
            self.events_log
                .publish(&watcher.config().name, kind, epoch_seconds());
        }
    }

    /// Tells of a worker that is new to us; its time is that of its start.
    pub(super) fn publish_spawn(&mut self, watcher: WatcherId, wid: u32, process: &Running) {
        let Some(watcher) = self.watchers.get(&watcher) else {
            return;
        };
        let kind = EventKind::Spawn {
            pid: process.pid.unsigned_abs(),
            wid,
        };
        let started = std::time::Duration::from_micros(process.started_us).as_secs_f64();
        self.events_log
            .publish(&watcher.config().name, &kind, started);
    }

    /// Tells what watchers had to tell, and which have become active or stopped since the last
    /// time.
    pub(super) fn announce(&mut self) {
        let now = epoch_seconds();
        for id in self.watchers.take(Look::Announce) {
            let Some(watcher) = self.watchers.get_to_read(&id) else {
                self.announced.remove(&id);
                continue;
            };
            let state = watcher.state();
            let said = self.announced.entry(id).or_default();
            let was_stopping =
                std::mem::replace(&mut said.stopping, state == WatcherState::Stopping);
            let change = match state {
                WatcherState::Active if !said.started => Some(EventKind::Start),
                WatcherState::Stopped if said.started => Some(EventKind::Stop),
                // A restart: stopped for a moment.
                WatcherState::Starting if said.started && was_stopping => Some(EventKind::Stop),
                _ => None,
            };
            if let Some(kind) = &change {
                said.started = *kind == EventKind::Start;
            }
            let notices = watcher.take_notices().into_iter();
            let notices = notices.map(|notice| event_of(notice, watcher.end_told()));
            for kind in notices.chain(change) {
                self.events_log.publish(&watcher.config().name, &kind, now);
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
