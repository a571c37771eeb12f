//! When a start is done: every wanted worker has shown that it stays, or one of them has shown that
//! it does not.
//!
//! Owns what counts as shown, and how many failures are too many for whoever waits. Leaves to
//! others: what is done about ends (`ends`), the reload's own proof (`roll`).
//! Invariant: a start is never done by chance: a worker without `ready` has run for [`SETTLE`], one
//! with `ready` has said so, and one that ends for good has ended with 0.

use std::time::{Duration, Instant};

use crate::watcher::ends::end_text;
use crate::watcher::roll::SETTLE;
use crate::watcher::{Ended, Wanted, Watcher};
use crate::worker::Worker;

/// Failures of one worker in a row after which whoever waits for the start is told: what fails once
/// or twice may come up yet.
const HOPELESS: u32 = 3;

/// How a worker failed before it had shown that it stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Early {
    /// It ran, and ended.
    Ended,
    /// It could not be started, or was not ready in time: a second time is hopeless.
    NotUp,
}

impl Watcher {
    /// Up, and every worker has shown that it stays.
    #[must_use]
    pub fn is_proven(&self, now: Instant) -> bool {
        self.is_up() && self.fresh().all(|(_, worker)| self.stays(worker, now))
    }

    /// When [`Self::is_proven`] will hold if nothing happens before; none if it holds, or something
    /// has to happen for it.
    #[must_use]
    pub fn proves_at(&self, now: Instant) -> Option<Instant> {
        if !self.is_up() || self.config.ready.is_some() {
            return None;
        }
        let started = self.fresh().filter_map(|(_, worker)| worker.process());
        let last = started.map(|process| process.started + SETTLE).max();
        last.filter(|last| now < *last)
    }

    /// What became of the last request to start it; `None` while that is open. The error is for
    /// people.
    #[must_use]
    pub fn start_outcome(&self, now: Instant) -> Option<Result<(), String>> {
        let message = || {
            if let Some(reason) = &self.no_release {
                return reason.clone();
            }
            self.message.clone().map_or_else(
                || "its workers end soon after their start".to_owned(),
                |message| self.with_last_line(message),
            )
        };
        match self.wanted {
            Wanted::Restarting => None,
            _ if !self.kept.failed.is_empty() => Some(Err(message())),
            Wanted::Running if self.is_proven(now) || self.is_dormant() => Some(Ok(())),
            Wanted::Running if self.is_hopeless(now) => Some(Err(message())),
            Wanted::Running if self.flapping_until.is_some() => Some(Err(message())),
            Wanted::Running => self.background().map(Err),
            Wanted::Stopped if self.gave_up => Some(Err(message())),
            Wanted::Stopped if !self.kept.finished.is_empty() => Some(Ok(())),
            Wanted::Stopped => Some(Err("it was stopped by a later request".to_owned())),
        }
    }

    /// Its workers were to end, and all have, with 0.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.wanted == Wanted::Stopped
            && !self.kept.finished.is_empty()
            && self.kept.failed.is_empty()
    }

    /// A worker failed by itself, after it had run for so long.
    pub(super) fn note_end(&mut self, wid: u32, ran: Duration, served: bool) {
        if ran < SETTLE || !served {
            self.note_early(wid, Early::Ended);
        } else {
            self.early.remove(&wid);
        }
    }

    pub(super) fn note_early(&mut self, wid: u32, how: Early) {
        let failures = self.early.entry(wid).or_default();
        *failures = match how {
            Early::Ended => failures.saturating_add(1),
            Early::NotUp => (*failures).max(1).saturating_add(1),
        };
    }

    /// A worker ended that is not started again.
    pub(super) fn note_finished(&mut self, wid: u32, serial: u64, how: Ended, ran: Duration) {
        // The first that went wrong is what a person has to know.
        if self.kept.failed.is_empty() {
            self.message = Some(end_text(wid, how, ran));
        }
        self.kept.finished.insert(serial);
        // Nobody knows how one ended that is gone.
        if !matches!(how, Ended::Code(0) | Ended::Unknown) {
            self.kept.failed.insert(serial);
        }
    }

    /// A worker that is not there, or has not shown that it stays, has failed too often.
    fn is_hopeless(&self, now: Instant) -> bool {
        let unproven = |wid: u32| {
            self.workers
                .get(&wid)
                .is_none_or(|worker| !worker.is_serving() || !self.stays(worker, now))
        };
        let early = self.early.iter().map(|(wid, times)| (*wid, *times));
        let mut failures = early.chain(self.pauses.failures());
        failures.any(|(wid, times)| times >= HOPELESS && unproven(wid))
    }

    fn stays(&self, worker: &Worker, now: Instant) -> bool {
        let settled = worker
            .process()
            .is_some_and(|process| process.started + SETTLE <= now);
        worker.ended.is_none() && (self.config.ready.is_some() || settled)
    }
}
