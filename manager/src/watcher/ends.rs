//! What it means that a worker ended, could not be started, or did not become ready.
//!
//! Owns back-off, flapping, giving up. Invariant: an end that was asked for is never held against
//! anybody.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use papa_protocol::process::Exit;

use crate::config::FlappingConfig;
use crate::last_words::seconds;
use crate::life::{WatcherEvent, WorkerCell, WorkerEvent};
use crate::state::{KeptFlapping, MAX_ENDS};
use crate::watcher::proof::Early;
use crate::watcher::{Ended, Moment, Notice, StartFailure, Watcher};
use crate::worker::{Running, Worker};

/// After a request the kernel could not answer (it was restarting), the same is asked again this
/// much later.
pub(super) const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Whether a deleted release is back, or its link leads somewhere else, is looked at so often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A worker that ended while no manager was there.
#[derive(Debug, Clone, Copy)]
pub struct Unseen {
    /// Its number.
    pub wid: u32,
    /// The kernel's number for its process.
    pub serial: u64,
    /// The process it was.
    pub process: Running,
    /// Which reload had started it.
    pub generation: u64,
    /// For how long.
    pub ran: Duration,
    /// And how it ended.
    pub how: Ended,
}

impl Watcher {
    /// The kernel could not start worker `wid`.
    pub fn start_failed(&mut self, wid: u32, failure: StartFailure, at: &Moment) {
        let cell = self.stage(wid).on(WorkerEvent::StartFailed);
        if !matches!(cell, WorkerCell::Fail | WorkerCell::Drop) {
            return;
        }
        let Some(worker) = self.workers.remove(&wid) else {
            return;
        };
        let generation = worker.generation;
        if cell == WorkerCell::Drop {
            return;
        }
        let waits = matches!(failure, StartFailure::NoRelease(_));
        let reason = match failure {
            StartFailure::Occupied | StartFailure::Unanswered => {
                self.pauses.postpone(wid, at.now + ASK_AGAIN);
                return;
            }
            StartFailure::Refused(reason) | StartFailure::NoRelease(reason) => reason,
        };
        if self.fail_roll(
            generation,
            &format!("worker {wid} cannot be started: {reason}"),
        ) {
            return;
        }
        if waits {
            if self.no_release.as_ref() != Some(&reason) {
                tracing::error!(watcher = self.config.name, wid, reason, "a worker waits");
            }
            self.no_release = Some(reason);
            self.note_early(wid, Early::NotUp);
            self.pauses.postpone(wid, at.now + LOOK_AGAIN);
            return;
        }
        self.refused = self.refused.saturating_add(1);
        if self
            .config
            .max_retry
            .is_some_and(|limit| self.refused > limit)
        {
            let attempts = self.refused;
            self.give_up(format!("given up after {attempts} attempts: {reason}"), at);
            return;
        }
        tracing::warn!(
            watcher = self.config.name,
            wid,
            reason,
            "a worker cannot be started"
        );
        self.message = Some(reason);
        self.about = None;
        self.note_early(wid, Early::NotUp);
        self.pauses.failed(wid, &self.config.backoff, at);
        self.keep_pauses();
    }

    /// A process of the watcher has ended, and its end is about to be dealt with.
    pub fn ending(&mut self, serial: u64, exit: &Exit) {
        for worker in self.workers.values_mut() {
            if let Some(process) = worker.process().filter(|known| known.serial == serial) {
                let ran = exit.stamp_us.saturating_sub(process.started_us);
                worker.ended = Some(process.started + Duration::from_micros(ran));
            }
        }
    }

    /// A process of the watcher ended. Answers what it was if it was one of its workers.
    pub fn ended(&mut self, serial: u64, how: Ended, at: &Moment) -> Option<(u32, Worker)> {
        let (wid, worker) = self.workers.iter().find_map(|(wid, worker)| {
            let process = worker.process()?;
            (process.serial == serial).then_some((*wid, *worker))
        })?;
        let process = *worker.process()?;
        let asked = match worker.on(WorkerEvent::Ended) {
            WorkerCell::Die => false,
            WorkerCell::DieAsked => true,
            _ => return None,
        };
        self.workers.remove(&wid);
        self.leave(wid, &worker, how, at);
        self.outdated.remove(&serial);
        self.kept.ended.insert(serial);
        tracing::info!(
            watcher = self.config.name,
            wid,
            pid = process.pid,
            asked,
            "worker {how}"
        );
        if asked {
            self.pauses.forget(wid);
            self.keep_pauses();
        } else {
            let ended = worker.ended.unwrap_or(at.now);
            let ran = ended.saturating_duration_since(process.started);
            let reason = end_text(wid, how, ran);
            if !self.fail_roll(worker.generation, &reason) {
                self.note_end(wid, ran, worker.is_serving());
                self.ended_by_itself(wid, serial, ran, how, at);
            }
        }
        self.sync_kept(at);
        Some((wid, worker))
    }

    /// A worker ended while no manager was there.
    pub fn ended_unseen(&mut self, unseen: &Unseen, at: &Moment) {
        let Unseen {
            wid,
            serial,
            generation,
            ran,
            how,
            ..
        } = *unseen;
        if self.left(serial).is_some() {
            return;
        }
        // Whoever asked it to end, or dealt with its end already, needs no second reckoning.
        let kill_at_ms = self.kept.stopping.remove(&serial);
        let dealt_with = self.kept.finished.contains(&serial)
            || kill_at_ms.is_some()
            || self.kept.ended.contains(&serial);
        self.kept.ended.insert(serial);
        let asked = kill_at_ms.map(|kill_at_ms| {
            let left = Duration::from_millis(kill_at_ms.saturating_sub(at.epoch_ms));
            at.now + left.min(self.config.graceful_timeout)
        });
        self.leave_unseen(wid, unseen.process, asked, (how, ran), at);
        if !dealt_with && !self.fail_roll(generation, &end_text(wid, how, ran)) {
            self.note_end(wid, ran, true);
            self.ended_by_itself(wid, serial, ran, how, at);
        }
    }

    /// The kernel has forgotten these ended processes, or all but those `listed`.
    pub fn forget_ended(&mut self, listed: impl Fn(u64) -> bool) {
        self.kept.ended.retain(|serial| listed(*serial));
    }

    /// A health check says a worker is not well: it is asked to end, and replaced. Answers it if
    /// so.
    pub fn unwell(&mut self, serial: u64, reason: &str, at: &Moment) -> Option<Running> {
        let grace = self.config.graceful_timeout;
        let (wid, worker) = self
            .workers
            .iter_mut()
            .find(|(_, worker)| worker.process().is_some_and(|known| known.serial == serial))?;
        let (wid, generation) = (*wid, worker.generation);
        let process = worker.fail(WorkerEvent::Unwell, grace, at.now)?;
        self.about = None;
        self.notices.push(Notice::Unwell {
            wid,
            pid: process.pid,
            reason: reason.to_owned(),
        });
        let reason = format!("worker {wid} is not well: {reason}");
        tracing::warn!(
            watcher = self.config.name,
            wid,
            reason,
            "replacing a worker"
        );
        if !self.fail_roll(generation, &reason) {
            self.message = Some(reason.clone());
            self.count_end(&reason, at);
        }
        self.sync_kept(at);
        Some(process)
    }

    /// A worker will not serve, as it said itself or as became clear when the time was over.
    /// Answers it if it is to be stopped now.
    pub fn not_ready(&mut self, serial: u64, why: Option<&str>, at: &Moment) -> Option<Running> {
        let grace = self.config.graceful_timeout;
        let (wid, worker) = self
            .workers
            .iter_mut()
            .find(|(_, worker)| worker.process().is_some_and(|known| known.serial == serial))?;
        let (wid, generation) = (*wid, worker.generation);
        let process = worker.fail(WorkerEvent::Late, grace, at.now)?;
        self.about = None;
        let seconds = self.config.ready_timeout.as_secs_f64();
        let mut reason = format!("worker {wid} was not ready within {seconds} s");
        if let Some(why) = why {
            reason = format!("{reason}: {why}");
        }
        tracing::warn!(watcher = self.config.name, wid, "{reason}");
        if !self.fail_roll(generation, &reason) {
            self.message = Some(reason.clone());
            self.note_early(wid, Early::NotUp);
            // Its number is taken until it has ended, so that the pause has to be everybody's.
            let delay = self.pauses.failed(wid, &self.config.backoff, at);
            self.keep_pauses();
            self.next_start = self.next_start.max(Some(at.now + delay));
            self.count_end(&reason, at);
        }
        self.sync_kept(at);
        Some(process)
    }

    /// A health check of a worker has failed so often in a row; 0: it is well.
    pub fn note_failures(&mut self, serial: u64, failures: u32) {
        if failures == 0 {
            self.kept.failures.remove(&serial);
        } else {
            self.kept.failures.insert(serial, failures);
        }
    }

    fn ended_by_itself(&mut self, wid: u32, serial: u64, ran: Duration, how: Ended, at: &Moment) {
        if !self.config.respawn {
            return self.note_finished(wid, serial, how, ran);
        }
        if ran >= self.config.backoff.reset {
            self.kept.flapping.pauses = 0;
        }
        if self.config.on_demand && !self.workers.values().any(Worker::is_wanted) {
            self.follow(WatcherEvent::Idle);
        }
        let backoff = &self.config.backoff;
        let (delay, times) = self.pauses.ended(wid, ran, backoff, at);
        self.keep_pauses();
        if !delay.is_zero() {
            self.message = Some(format!(
                "{}; {times} times in a row soon after its start; next try {:.1} s later",
                end_text(wid, how, ran),
                delay.as_secs_f64()
            ));
        }
        self.count_end(&end_text(wid, how, ran), at);
    }

    /// One more unexpected end, for this reason: perhaps one too many.
    fn count_end(&mut self, reason: &str, at: &Moment) {
        let Some(flapping) = self.config.flapping else {
            return;
        };
        self.ends.push_back(at.now);
        let attempts = usize::try_from(flapping.attempts.max(1)).unwrap_or(usize::MAX);
        let within = |first: &Instant| at.now.saturating_duration_since(*first) <= flapping.window;
        while self.ends.len() > attempts || self.ends.front().is_some_and(|first| !within(first)) {
            self.ends.pop_front();
        }
        if self.ends.len() >= attempts {
            self.ends.clear();
            self.flap(&flapping, reason, at);
        }
        self.keep_ends(at);
    }

    fn keep_ends(&mut self, at: &Moment) {
        let forgotten = self.ends.len().saturating_sub(MAX_ENDS);
        let before = |end: &Instant| {
            let ago = at.now.saturating_duration_since(*end).as_millis();
            at.epoch_ms
                .saturating_sub(u64::try_from(ago).unwrap_or(u64::MAX))
        };
        self.kept.flapping.ends_ms = self.ends.iter().skip(forgotten).map(before).collect();
    }

    /// What happened last is said with how often it did: the number alone tells nobody what to
    /// mend.
    pub(super) fn flap(&mut self, flapping: &FlappingConfig, reason: &str, at: &Moment) {
        let pauses = self.kept.flapping.pauses;
        let ends = format!(
            "{} ends within {} s",
            flapping.attempts,
            flapping.window.as_secs_f64()
        );
        if flapping.max_retry.is_some_and(|limit| pauses >= limit) {
            self.give_up(
                format!("given up: {reason}; {ends}, after {pauses} pauses"),
                at,
            );
            return;
        }
        self.kept.flapping.pauses = pauses.saturating_add(1);
        let pause_ms = u64::try_from(flapping.retry_in.as_millis()).unwrap_or(u64::MAX);
        self.kept.flapping.until_ms = at.epoch_ms.saturating_add(pause_ms);
        self.follow(WatcherEvent::Flap);
        self.flapping_until = Some(at.now + flapping.retry_in);
        let text = format!(
            "flapping: {reason}; {ends}; next try {} s later",
            flapping.retry_in.as_secs_f64()
        );
        tracing::warn!(watcher = self.config.name, "{text}");
        self.message = Some(text.clone());
        self.notices.push(Notice::Flapping(text));
    }

    pub(super) fn give_up(&mut self, reason: String, at: &Moment) {
        tracing::error!(watcher = self.config.name, reason, "the watcher is stopped");
        self.message = Some(reason.clone());
        self.gave_up = true;
        self.kept.gave_up = true;
        self.kept.gave_up_ms = Some(at.epoch_ms);
        self.end(WatcherEvent::GiveUp);
        self.notices.push(Notice::GaveUp(reason));
    }
}

/// What became of a worker, for people: `worker 1 exited with 1, ran 0.2 s`.
pub(super) fn end_text(wid: u32, how: Ended, ran: Duration) -> String {
    format!("worker {wid} {how}, ran {}", seconds(ran))
}

/// The ends a predecessor has counted, on our clock.
pub(super) fn kept_ends(kept: &KeptFlapping, at: &Moment) -> VecDeque<Instant> {
    let on_our_clock = |ms: &u64| {
        let ago = Duration::from_millis(at.epoch_ms.saturating_sub(*ms));
        at.now.checked_sub(ago)
    };
    let newest = kept.ends_ms.len().saturating_sub(MAX_ENDS);
    kept.ends_ms
        .iter()
        .skip(newest)
        .filter_map(on_our_clock)
        .collect()
}
