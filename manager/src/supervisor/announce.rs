//! What the loop tells those who listen.
//!
//! Owns which changes of state are events; the events themselves are `control::events`'s.

use crate::control::events::EventKind;
use crate::control::message::WatcherState;
use crate::control::server::now as epoch_seconds;
use crate::supervisor::Supervisor;
use crate::watcher::Ended;
use crate::worker::Running;

/// What was last said about a watcher.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Announced {
    started: bool,
    stopping: bool,
}

impl Supervisor {
    /// Tells what happened to a watcher just now.
    pub(super) fn publish(&mut self, watcher: usize, kind: &EventKind) {
        if let Some(watcher) = self.watchers.get(watcher) {
            self.events_log
                .publish(&watcher.config().name, kind, epoch_seconds());
        }
    }

    /// Tells of a worker that is new to us; its time is that of its start.
    pub(super) fn publish_spawn(&mut self, watcher: usize, wid: u32, process: &Running) {
        let Some(watcher) = self.watchers.get(watcher) else {
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

    /// Tells of the end of a worker.
    pub(super) fn publish_reap(&mut self, watcher: usize, process: &Running, how: Ended) {
        let kind = EventKind::Reap {
            pid: process.pid.unsigned_abs(),
            exit_code: match how {
                Ended::Code(code) => Some(code),
                Ended::Signal(signal) => Some(-signal),
                Ended::Unknown => None,
            },
        };
        self.publish(watcher, &kind);
    }

    /// Tells which watchers have become active or stopped since the last time.
    pub(super) fn announce(&mut self) {
        // Watchers that were added or removed begin anew: at worst an event too few.
        if self.announced.len() != self.watchers.len() {
            let states = self.watchers.iter().map(|watcher| Announced {
                started: watcher.state() == WatcherState::Active,
                stopping: false,
            });
            self.announced = states.collect();
        }
        for index in 0..self.watchers.len() {
            let (Some(watcher), Some(said)) =
                (self.watchers.get(index), self.announced.get_mut(index))
            else {
                return;
            };
            let state = watcher.state();
            let was_stopping =
                std::mem::replace(&mut said.stopping, state == WatcherState::Stopping);
            let kind = match state {
                WatcherState::Active if !said.started => EventKind::Start,
                WatcherState::Stopped if said.started => EventKind::Stop,
                // A restart: stopped for a moment.
                WatcherState::Starting if said.started && was_stopping => EventKind::Stop,
                _ => continue,
            };
            said.started = kind == EventKind::Start;
            self.publish(index, &kind);
        }
    }
}
