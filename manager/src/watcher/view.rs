//! What others are told of a watcher.
//!
//! Owns no decision. Source: circus's words for states.

use std::time::Instant;

use crate::control::message::{WatcherState, WatcherStatus, WorkerStatus};
use crate::watcher::{Wanted, Watcher};
use crate::worker::Worker;

/// See [`Watcher::outline`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outline {
    state: WatcherState,
    up: bool,
    coming_up: bool,
    workers: usize,
    waiting: usize,
    deadline: Option<Instant>,
}

impl Watcher {
    /// Every wanted worker serves.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.wanted == Wanted::Running
            && self.released
            && self.missing() == 0
            && self.fresh().all(|(_, worker)| worker.is_serving())
    }

    /// Up, and nobody is on the way out.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        (self.is_up() || self.is_dormant()) && self.workers.values().all(Worker::is_fresh)
    }

    /// Waits for the first connection.
    #[must_use]
    pub fn is_dormant(&self) -> bool {
        self.wanted == Wanted::Running && self.dormant && self.workers.is_empty()
    }

    /// Not wanted and without workers.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.wanted == Wanted::Stopped && self.workers.is_empty()
    }

    /// Not wanted, and ending.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.wanted == Wanted::Stopped && !self.workers.is_empty()
    }

    /// Stopping, or about to start again once it has.
    #[must_use]
    pub fn is_going_down(&self) -> bool {
        self.wanted != Wanted::Running && !self.workers.is_empty()
    }

    /// Its start waits for others: it has not been up since it was asked to run.
    #[must_use]
    pub fn is_coming_up(&self) -> bool {
        self.wanted != Wanted::Stopped && !self.came_up
    }

    /// It is wanted.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.wanted != Wanted::Stopped
    }

    /// It is wanted, and not on its way through a stop.
    #[must_use]
    pub fn is_running_wanted(&self) -> bool {
        self.wanted == Wanted::Running
    }

    /// Whether trying again has a prospect: `changed_ms` is when its program or the directory it
    /// starts in was changed last, both in milliseconds since the epoch. Not known is yes.
    #[must_use]
    pub fn has_changed_since_giving_up(&self, changed_ms: Option<u64>) -> bool {
        match (self.kept.gave_up_ms, changed_ms) {
            (Some(gave_up), Some(changed)) => changed >= gave_up,
            // What is not there cannot have been mended.
            (_, None) => false,
            (None, Some(_)) => true,
        }
    }

    /// It was stopped because going on had no prospect.
    #[must_use]
    pub fn has_given_up(&self) -> bool {
        self.wanted == Wanted::Stopped && (self.gave_up || self.kept.gave_up)
    }

    /// An operator stopped it.
    #[must_use]
    pub fn is_stopped_on_request(&self) -> bool {
        self.wanted == Wanted::Stopped && self.kept.stopped == Some(true)
    }

    /// How far it is, as coarsely as others look at it: where this changes in a step, another step
    /// may have more to do.
    #[must_use]
    pub fn outline(&self) -> Outline {
        Outline {
            state: self.state(),
            up: self.is_up(),
            coming_up: self.is_coming_up(),
            workers: self.workers.len(),
            waiting: self.missing(),
            deadline: self.deadline(),
        }
    }

    /// Circus's word for what it is doing.
    #[must_use]
    pub fn state(&self) -> WatcherState {
        match self.wanted {
            Wanted::Stopped if self.workers.is_empty() => WatcherState::Stopped,
            Wanted::Stopped | Wanted::Restarting => WatcherState::Stopping,
            Wanted::Running if self.is_dormant() => WatcherState::Stopped,
            Wanted::Running
                if self.came_up
                    && (self.target() == 0 || self.workers.values().any(Worker::is_wanted)) =>
            {
                WatcherState::Active
            }
            Wanted::Running => WatcherState::Starting,
        }
    }

    /// For `status`.
    #[must_use]
    pub fn status(&self, now: Instant) -> WatcherStatus {
        WatcherStatus {
            name: self.config.name.clone(),
            state: self.state(),
            numprocesses: self.count(),
            workers: self
                .workers
                .iter()
                .filter_map(|(wid, worker)| {
                    let process = worker.process()?;
                    Some(WorkerStatus {
                        wid: *wid,
                        pid: process.pid.unsigned_abs(),
                        serial: process.serial,
                        started_us: process.started_us,
                        started_ticks: None,
                        stopping: worker.is_stopping(),
                    })
                })
                .collect(),
            dormant: self.is_dormant(),
            message: self.current_message(),
            failing: self.is_failing(),
            settling: self.wanted != Wanted::Stopped && !self.is_dormant() && !self.is_proven(now),
            done: self.is_done(),
            orphans: Vec::new(),
        }
    }

    /// What hinders it, for people.
    #[must_use]
    pub fn message(&self) -> Option<&str> {
        self.message.as_deref()
    }

    fn moved_text(&self) -> Option<String> {
        let moved = self.kept.moved.as_ref()?.describe();
        let own = self.kept.release.as_ref()?.describe();
        let name = &self.config.name;
        Some(format!(
            "release {own} was deleted: workers started since run from {moved}; `papactl reload {name}` has all of them do so"
        ))
    }

    fn current_message(&self) -> Option<String> {
        if self.is_dormant() {
            return Some("is started by the first connection".to_owned());
        }
        if let Some(left) = self.left_text() {
            return Some(left);
        }
        if let Some(socket) = &self.gate.socket
            && self.wanted == Wanted::Running
        {
            let starts = if self.workers.is_empty() {
                "waits for"
            } else {
                "starts no more workers without"
            };
            return Some(format!("{starts} {socket}"));
        }
        if let Some(orphans) = &self.gate.orphans {
            return Some(orphans.clone());
        }
        // What an earlier manager has found out says more.
        let looks = self.gate.orphans_unknown && self.message.is_none();
        if looks && self.is_coming_up() && self.missing() > 0 {
            return Some("looks for orphans of an earlier kernel".to_owned());
        }
        if self.wanted == Wanted::Running && self.no_release.is_some() {
            return self.no_release.clone();
        }
        match &self.gate.start_after {
            Some(other) if self.is_coming_up() => Some(format!("waits for {other}")),
            _ if self.message.is_none() && self.outdated() > 0 => Some(format!(
                "{} with settings of an earlier file; `papactl reload {}` replaces them",
                self.outdated(),
                self.config.name
            )),
            _ if self.message.is_none() && self.kept.moved.is_some() => self.moved_text(),
            _ => self
                .message
                .clone()
                .map(|message| self.with_last_line(message)),
        }
    }
}
