//! One watcher: how many workers there should be, and which to start or stop for it.
//!
//! Owns wanted and actual state of one `[watcher:NAME]` and decides what to do next. Pure: it is told what happened and what time it
//! is, and answers with actions. Leaves to others: the kernel, other watchers, who asked.
//! Invariant: a worker number names at most one process; after `step` everything that can be done now has been answered as an action,
//! and `deadline` is the earliest moment at which there is more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::WatcherConfig;
use crate::control::message::{WatcherState, WatcherStatus, WorkerStatus};
use crate::state::Kept;
use crate::worker::{Running, Worker};

mod pauses;

use pauses::Pauses;

/// After a request the kernel could not answer (it was restarting), the same is asked again this much later.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Quick ends in a row after which whoever waits for the start is told.
const HOPELESS: u32 = 3;

/// The moment something happened, as the loop read it.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// For deadlines.
    pub now: Instant,
    /// For what is kept: milliseconds since the epoch.
    pub epoch_ms: u64,
    /// Any number, other each time.
    pub jitter: u64,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Ask the kernel for this worker.
    Start { wid: u32 },
    /// Send the stop signal.
    Stop(Running),
    /// Kill the tree.
    Kill(Running),
}

/// What the operator or the configuration asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Stopped,
    Running,
    /// Once everything has stopped, it is wanted running.
    Restarting,
}

/// How a process ended, for the log and the status line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With an exit code.
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// The kernel no longer knows it.
    Unknown,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with {code}"),
            Self::Signal(signal) => write!(f, "was ended by signal {signal}"),
            Self::Unknown => f.write_str("is gone"),
        }
    }
}

/// Why a worker could not be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartFailure {
    /// The kernel did not answer: nothing is known, nothing is counted.
    Unanswered,
    /// A dead process has the number still; it is being cleared away.
    Occupied,
    /// The kernel refused.
    Refused(String),
}

/// One watcher.
#[derive(Debug)]
pub struct Watcher {
    config: Arc<WatcherConfig>,
    wanted: Wanted,
    /// Starting is allowed: those of higher priority have been started.
    released: bool,
    workers: BTreeMap<u32, Worker>,
    pauses: Pauses,
    /// The pause between two starts ends here.
    next_start: Option<Instant>,
    /// Starts the kernel refused in a row.
    refused: u32,
    /// Starting it has no prospect; a person has to look.
    gave_up: bool,
    /// All wanted workers ran at once since the last start.
    came_up: bool,
    message: Option<String>,
    kept: Kept,
}

impl Watcher {
    /// A watcher nothing is known of yet, wanted as `kept` says, else as `autostart` says.
    #[must_use]
    pub fn new(config: Arc<WatcherConfig>, kept: Kept, at: &Moment) -> Self {
        let stopped = kept.stopped.unwrap_or(!config.autostart);
        Self {
            config,
            wanted: if stopped {
                Wanted::Stopped
            } else {
                Wanted::Running
            },
            released: false,
            workers: BTreeMap::new(),
            pauses: Pauses::from_kept(&kept.backoff, at),
            next_start: None,
            refused: 0,
            gave_up: false,
            came_up: false,
            message: None,
            kept,
        }
    }

    /// Its section of the configuration.
    #[must_use]
    pub fn config(&self) -> &Arc<WatcherConfig> {
        &self.config
    }

    /// What must survive the manager.
    #[must_use]
    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Its workers by number.
    #[must_use]
    pub fn workers(&self) -> &BTreeMap<u32, Worker> {
        &self.workers
    }

    /// Asked to run: by the operator, who is remembered, or by the start-up.
    pub fn start(&mut self) {
        self.kept.stopped = Some(false);
        self.kept.finished.clear();
        self.message = None;
        self.refused = 0;
        self.gave_up = false;
        self.released = true;
        self.pauses.clear();
        self.keep_pauses();
        self.wanted = match self.wanted {
            Wanted::Stopped if self.workers.is_empty() => Wanted::Running,
            Wanted::Stopped | Wanted::Restarting => Wanted::Restarting,
            Wanted::Running => Wanted::Running,
        };
    }

    /// Asked to stop by the operator; it stays stopped when the manager is started again.
    pub fn stop(&mut self) {
        self.kept.stopped = Some(true);
        self.gave_up = false;
        self.message = None;
        self.halt();
    }

    /// Stops for the time being: the manager ends, or starting it has no prospect.
    pub fn halt(&mut self) {
        self.wanted = Wanted::Stopped;
        self.came_up = false;
    }

    /// Asked to stop and start.
    pub fn restart(&mut self) {
        self.start();
        if !self.workers.is_empty() {
            self.wanted = Wanted::Restarting;
            self.came_up = false;
        }
    }

    /// Its turn in the start order has come.
    pub fn release(&mut self) {
        self.released = true;
    }

    /// Nothing hinders the next watcher in the start order: everything wanted has been started or tried.
    #[must_use]
    pub fn is_launched(&self) -> bool {
        self.wanted == Wanted::Stopped
            || self.missing() == 0
            || self.pauses.any_paused()
            || self.refused > 0
    }

    /// A worker of a predecessor, or of a start whose answer was lost.
    pub fn adopt(&mut self, wid: u32, process: Running) {
        match self.workers.get_mut(&wid) {
            Some(worker)
                if worker
                    .process()
                    .is_some_and(|known| known.serial == process.serial) => {}
            Some(worker @ Worker::Starting { unwanted: false }) => {
                *worker = Worker::Running(process);
            }
            Some(worker @ Worker::Starting { unwanted: true }) => {
                // Stopped by the next step.
                *worker = Worker::Running(process);
            }
            Some(_) => {
                tracing::warn!(
                    watcher = self.config.name,
                    wid,
                    serial = process.serial,
                    "a second process has a worker's number"
                );
            }
            None => {
                self.workers.insert(wid, Worker::Running(process));
            }
        }
    }

    /// The kernel has started worker `wid`.
    pub fn started(&mut self, wid: u32, process: Running) {
        self.refused = 0;
        self.adopt(wid, process);
    }

    /// The kernel could not start worker `wid`.
    pub fn start_failed(&mut self, wid: u32, failure: StartFailure, at: &Moment) {
        if !matches!(self.workers.get(&wid), Some(Worker::Starting { .. })) {
            return;
        }
        self.workers.remove(&wid);
        let reason = match failure {
            StartFailure::Occupied | StartFailure::Unanswered => {
                self.pauses.postpone(wid, at.now + ASK_AGAIN);
                return;
            }
            StartFailure::Refused(reason) => reason,
        };
        self.refused = self.refused.saturating_add(1);
        if self
            .config
            .max_retry
            .is_some_and(|limit| self.refused > limit)
        {
            self.message = Some(format!(
                "given up after {} attempts: {reason}",
                self.refused
            ));
            tracing::error!(
                watcher = self.config.name,
                attempts = self.refused,
                reason,
                "the watcher is stopped: its workers cannot be started"
            );
            self.gave_up = true;
            self.halt();
            return;
        }
        tracing::warn!(
            watcher = self.config.name,
            wid,
            reason,
            "a worker cannot be started"
        );
        self.message = Some(reason);
        self.pauses.failed(wid, at);
        self.keep_pauses();
    }

    /// A process of the watcher ended. Answers what it was if it was one of its workers.
    pub fn ended(&mut self, serial: u64, how: Ended, at: &Moment) -> Option<Worker> {
        let (wid, worker) = self.workers.iter().find_map(|(wid, worker)| {
            let process = worker.process()?;
            (process.serial == serial).then_some((*wid, *worker))
        })?;
        let process = worker.process()?;
        let asked = worker.is_stopping();
        self.workers.remove(&wid);
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
            let ran = at.now.saturating_duration_since(process.started);
            self.ended_by_itself(wid, serial, ran, how, at);
        }
        Some(worker)
    }

    /// A worker ended while no manager was there.
    pub fn ended_unseen(&mut self, wid: u32, serial: u64, ran: Duration, how: Ended, at: &Moment) {
        if !self.kept.finished.contains(&serial) {
            self.ended_by_itself(wid, serial, ran, how, at);
        }
    }

    fn ended_by_itself(&mut self, wid: u32, serial: u64, ran: Duration, how: Ended, at: &Moment) {
        if !self.config.respawn {
            self.kept.finished.insert(serial);
            self.message = Some(format!("worker {wid} {how}"));
            return;
        }
        let (delay, times) = self.pauses.ended(wid, ran, at);
        self.keep_pauses();
        if !delay.is_zero() {
            self.message = Some(format!(
                "worker {wid} {how}, {times} times soon after its start; next try in {:.1} s",
                delay.as_secs_f64()
            ));
        }
    }

    /// What is to be done now.
    pub fn step(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.wanted == Wanted::Restarting && self.workers.is_empty() {
            self.wanted = Wanted::Running;
        }
        self.shrink(now, &mut actions);
        if self.wanted == Wanted::Running && self.released {
            self.grow(now, &mut actions);
            self.settle();
        }
        for worker in self.workers.values_mut() {
            actions.extend(worker.due(now).map(Action::Kill));
        }
        actions
    }

    /// When there is more to do, if nothing happens before.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let stops = self.workers.values().filter_map(Worker::deadline);
        let starts = (self.wanted == Wanted::Running && self.released && self.missing() > 0)
            .then(|| self.pauses.next_end().into_iter().chain(self.next_start))
            .into_iter()
            .flatten();
        stops.chain(starts).min()
    }

    /// Every wanted worker runs.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.wanted == Wanted::Running
            && self.released
            && self.missing() == 0
            && self
                .workers
                .values()
                .all(|worker| matches!(worker, Worker::Running(_)))
    }

    /// What became of the last request to start it; `None` while that is open. The error is for people.
    #[must_use]
    pub fn start_outcome(&self) -> Option<Result<(), String>> {
        let message = || {
            self.message
                .clone()
                .unwrap_or_else(|| "its workers end soon after their start".to_owned())
        };
        match self.wanted {
            Wanted::Restarting => None,
            Wanted::Running if self.is_up() => Some(Ok(())),
            Wanted::Running if self.pauses.worst() >= HOPELESS => Some(Err(message())),
            Wanted::Running => None,
            Wanted::Stopped if self.gave_up => Some(Err(message())),
            Wanted::Stopped if !self.kept.finished.is_empty() => Some(Ok(())),
            Wanted::Stopped => Some(Err("it was stopped by a later request".to_owned())),
        }
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

    /// Circus's word for what it is doing.
    #[must_use]
    pub fn state(&self) -> WatcherState {
        match self.wanted {
            Wanted::Stopped if self.workers.is_empty() => WatcherState::Stopped,
            Wanted::Stopped | Wanted::Restarting => WatcherState::Stopping,
            Wanted::Running if self.came_up && self.workers.values().any(Worker::is_wanted) => {
                WatcherState::Active
            }
            Wanted::Running => WatcherState::Starting,
        }
    }

    /// For `status`.
    #[must_use]
    pub fn status(&self) -> WatcherStatus {
        WatcherStatus {
            name: self.config.name.clone(),
            state: self.state(),
            numprocesses: self.config.numprocesses,
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
                        stopping: worker.is_stopping(),
                    })
                })
                .collect(),
            message: self.message.clone(),
        }
    }

    /// What hinders it, for people.
    #[must_use]
    pub fn message(&self) -> Option<&str> {
        self.message.as_deref()
    }

    fn target(&self) -> usize {
        let count = usize::try_from(self.config.numprocesses).unwrap_or(usize::MAX);
        count.saturating_sub(self.kept.finished.len())
    }

    fn missing(&self) -> usize {
        let there = self
            .workers
            .values()
            .filter(|worker| worker.is_wanted())
            .count();
        self.target().saturating_sub(there)
    }

    fn shrink(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let keep = if self.wanted == Wanted::Running {
            self.target()
        } else {
            0
        };
        // The newest stay, as in Circus; what is on its way is newer than all.
        let mut ages: Vec<(u64, u32)> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.is_wanted())
            .map(|(wid, worker)| {
                (
                    worker
                        .process()
                        .map_or(u64::MAX, |process| process.started_us),
                    *wid,
                )
            })
            .collect();
        ages.sort_unstable();
        let surplus = ages.len().saturating_sub(keep);
        for (_, wid) in ages.into_iter().take(surplus) {
            if let Some(worker) = self.workers.get_mut(&wid) {
                actions.extend(
                    worker
                        .stop(self.config.graceful_timeout, now)
                        .map(Action::Stop),
                );
            }
        }
    }

    fn grow(&mut self, now: Instant, actions: &mut Vec<Action>) {
        // What has passed is cleared, so that it is no deadline any more.
        self.pauses.expire(now);
        self.next_start = self.next_start.filter(|at| now < *at);
        let missing = self.missing();
        let free: Vec<u32> = (1..)
            .filter(|wid| !self.workers.contains_key(wid))
            .take(missing)
            .collect();
        for wid in free {
            if self.next_start.is_some() {
                return;
            }
            if self.pauses.is_paused(wid) {
                continue;
            }
            self.workers
                .insert(wid, Worker::Starting { unwanted: false });
            actions.push(Action::Start { wid });
            self.next_start =
                (!self.config.warmup_delay.is_zero()).then(|| now + self.config.warmup_delay);
        }
    }

    fn settle(&mut self) {
        if self.is_up() {
            self.came_up = true;
            if self.pauses.worst() < 2 && self.config.respawn {
                self.message = None;
            }
        }
        if !self.config.respawn && self.target() == 0 && self.workers.is_empty() {
            self.wanted = Wanted::Stopped;
        }
    }

    fn keep_pauses(&mut self) {
        self.kept.backoff = self.pauses.to_kept();
    }
}

#[cfg(test)]
mod tests;
