//! What a watcher has to do now.
//!
//! Owns the arithmetic of how many workers come and go. Fresh workers are wanted; retiring ones are
//! wanted until a fresh one serves in their place; stopping ones are not wanted. Invariant: see
//! `watcher`.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::life::{Life, WatcherEvent, WorkerCell, WorkerEvent};
use crate::state::MAX_MESSAGE_CHARS;
use crate::watcher::{Action, Moment, Notice, Wanted, Watcher};
use crate::worker::{Due, LeftDue, State, Worker};

impl Watcher {
    /// What is to be done now.
    pub fn step(&mut self, at: &Moment) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.life() == Life::Restarting && self.workers.is_empty() {
            self.follow(WatcherEvent::Gone);
        }
        self.mature(at, &mut actions);
        if self.wanted == Wanted::Running {
            self.retire_old(at.now);
            self.drop_surplus(at, &mut actions);
            self.replace(at, &mut actions);
            if self.may_start() {
                self.grow(at.now, &mut actions);
            }
            self.settle(at.now);
        } else if !self.gate.stop_later {
            self.stop_all(at, &mut actions);
        }
        for worker in self.workers.values_mut() {
            actions.extend(worker.due(at.now).map(|due| match due {
                Due::Signal(process) => Action::Stop(process),
                Due::Kill(process) => Action::Kill(process),
                Due::Left(process, due) => Action::Left(process, due),
            }));
        }
        actions.retain(|action| match action {
            Action::Left(process, LeftDue::GiveUp) => {
                self.give_up_left(process.serial);
                false
            }
            _ => true,
        });
        self.sync_kept(at);
        actions
    }

    /// When there is more to do, if nothing happens before.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let workers = self.workers.values().filter_map(Worker::deadline);
        let running = self.wanted == Wanted::Running;
        let starts = (running && self.may_start() && self.missing() > 0).then(|| {
            self.pauses
                .next_end()
                .into_iter()
                .chain(self.next_start)
                .chain(self.flapping_until)
        });
        let ages = (running && self.config.max_age.is_some()).then(|| {
            self.workers
                .values()
                .filter(|worker| worker.is_fresh() && worker.is_serving())
                .filter_map(|worker| self.expires(worker))
        });
        // A failure of before is forgotten then.
        let well = (running && self.message.is_some() && self.is_up() && self.rolled.is_ok())
            .then(|| self.well_at())
            .flatten()
            .filter(|_| self.pauses.worst() >= 2);
        workers
            .chain(starts.into_iter().flatten())
            .chain(ages.into_iter().flatten())
            .chain(well)
            .min()
    }

    /// Nothing hinders the next watcher in the start order: everything wanted has been started or
    /// tried.
    #[must_use]
    pub fn is_launched(&self) -> bool {
        // One that waits for its own workers to end or to serve holds nobody up either.
        self.wanted != Wanted::Running
            || self.dormant
            || self.gate.start_after.is_some()
            || self.gate.socket.is_some()
            || self.gate.orphans.is_some()
            || self.gate.orphans_unknown
            || self.startable() == 0
            || self.pauses.any_paused()
            || self.flapping_until.is_some()
            || self.refused > 0
    }

    /// How many workers are wanted, without those that ended for good.
    pub(super) fn target(&self) -> usize {
        let count = usize::try_from(self.count()).unwrap_or(usize::MAX);
        count.saturating_sub(self.kept.finished.len())
    }

    pub(super) fn fresh(&self) -> impl Iterator<Item = (u32, &Worker)> {
        self.workers
            .iter()
            .filter(|(_, worker)| worker.is_fresh())
            .map(|(wid, worker)| (*wid, worker))
    }

    pub(super) fn missing(&self) -> usize {
        self.target().saturating_sub(self.fresh().count())
    }

    /// How many of the missing workers there is room for now.
    fn startable(&self) -> usize {
        let there = self
            .workers
            .values()
            .filter(|worker| worker.is_wanted())
            .count();
        let surge = self.surge();
        // Where nobody may be there in addition, one that is ending is there still.
        let taken = if surge == 0 {
            self.workers.len()
        } else {
            there
        };
        let room = (self.target() + surge).saturating_sub(taken);
        // Whoever ended by itself has its place until nothing of it is left.
        let blocked = self.workers.values().filter(|worker| worker.blocks());
        self.missing().saturating_sub(blocked.count()).min(room)
    }

    /// What must survive us follows from what is.
    pub(super) fn sync_kept(&mut self, at: &Moment) {
        let stopping = &mut self.kept.stopping;
        if !stopping.is_empty() {
            let is_stopping = |serial: u64| {
                self.workers.values().any(|worker| match &worker.state {
                    // Until somebody has looked what it left, its end is not dealt with.
                    State::Left(left) => left.asked && left.process.serial == serial,
                    _ => {
                        worker.is_stopping()
                            && worker.process().is_some_and(|known| known.serial == serial)
                    }
                })
            };
            stopping.retain(|serial, _| is_stopping(*serial));
        }
        for worker in self.workers.values() {
            if let State::Stopping {
                process, kill_at, ..
            } = &worker.state
            {
                // The first deadline counts; a kill that is repeated is no new promise.
                let left = kill_at.saturating_duration_since(at.now);
                let left_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
                stopping
                    .entry(process.serial)
                    .or_insert(at.epoch_ms.saturating_add(left_ms));
            }
        }
        self.sync_left(at);
        let asked = self.workers.values().filter(|worker| worker.is_stopping());
        self.kept.signals = asked
            .filter_map(|worker| Some((worker.process()?.serial, worker.own_signal?.number())))
            .collect();
        let message = self.message.as_deref();
        if self.kept.message.as_deref() != message {
            self.kept.message = message.map(|text| text.chars().take(MAX_MESSAGE_CHARS).collect());
        }
        // Its workers alone do not say so: one that is being replaced may be away just then.
        let waits = self.dormant || self.wanted != Wanted::Running;
        self.kept.demanded = self.config.on_demand && !waits;
        self.kept.came_up = self.came_up && !self.config.depends_on.is_empty();
        if !self.kept.failures.is_empty() {
            let checked = self.config.health.is_some();
            let serving: BTreeSet<u64> = self
                .workers
                .values()
                .filter(|worker| checked && worker.is_serving())
                .filter_map(|worker| Some(worker.process()?.serial))
                .collect();
            let failures = &mut self.kept.failures;
            failures.retain(|serial, _| serving.contains(serial));
        }
        if self.config.ready.is_some() || !self.kept.ready.is_empty() {
            self.kept.ready = self
                .workers
                .values()
                .filter(|worker| worker.is_serving() && self.config.ready.is_some())
                .filter_map(|worker| Some(worker.process()?.serial))
                .collect();
        }
    }

    /// Who has run long enough serves; who has not said so in time is stopped.
    fn mature(&mut self, at: &Moment, actions: &mut Vec<Action>) {
        let mut late = Vec::new();
        for (wid, worker) in &mut self.workers {
            let State::Waiting {
                process,
                settles,
                limit,
            } = worker.state
            else {
                continue;
            };
            if worker.ended.is_some() {
                continue;
            }
            if settles.is_some_and(|settles| settles <= at.now) {
                worker.serve();
                self.notices.push(Notice::Ready {
                    wid: *wid,
                    pid: process.pid,
                });
            } else if limit <= at.now {
                late.push(process.serial);
            }
        }
        for serial in late {
            actions.extend(self.not_ready(serial, None, at).map(Action::Stop));
        }
    }

    /// Who is too old is to be replaced.
    fn retire_old(&mut self, now: Instant) {
        if self.config.max_age.is_none() {
            return;
        }
        let old: Vec<u32> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.is_fresh() && worker.is_serving())
            .filter(|(_, worker)| self.expires(worker).is_some_and(|expires| expires <= now))
            .map(|(wid, _)| *wid)
            .collect();
        for wid in old {
            if let Some(worker) = self.workers.get_mut(&wid) {
                tracing::info!(watcher = self.config.name, wid, "worker reached its age");
                worker.retiring = true;
            }
        }
    }

    /// The moment a worker is too old. Its share of the variance follows from its serial, so that
    /// it is the same after a restart of ours.
    fn expires(&self, worker: &Worker) -> Option<Instant> {
        let age = self.config.max_age?;
        let process = worker.process()?;
        // Neighbouring serials are spread over the whole range.
        let spread = process.serial.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 44;
        let share = f64::from(u32::try_from(spread).unwrap_or(0)) / f64::from(1_u32 << 20);
        process
            .started
            .checked_add(age + self.config.max_age_variance.mul_f64(share))
    }

    /// More than wanted: the newest stay, as in Circus; what is on its way is newer than all.
    fn drop_surplus(&mut self, at: &Moment, actions: &mut Vec<Action>) {
        let mut ages: Vec<(u64, u32)> = self.fresh().map(by_age).collect();
        let surplus = ages.len().saturating_sub(self.target());
        ages.sort_unstable();
        for (_, wid) in ages.into_iter().take(surplus) {
            self.stop_one(wid, at, actions);
        }
    }

    /// Retiring workers go as soon as fresh ones serve in their place.
    fn replace(&mut self, at: &Moment, actions: &mut Vec<Action>) {
        let mut retiring = Vec::new();
        for (wid, worker) in &self.workers {
            if worker.is_wanted() && worker.retiring {
                retiring.push((worker.is_serving(), by_age((*wid, worker))));
            }
        }
        if retiring.is_empty() {
            return;
        }
        retiring.sort_unstable();
        let serving = self
            .fresh()
            .filter(|(_, worker)| worker.is_serving())
            .count();
        let keep = self.target().saturating_sub(serving);
        let useless = retiring.iter().filter(|(serving, _)| !serving).count();
        let mut going = retiring.len().saturating_sub(keep).max(useless);
        let stopping = self.workers.values().any(Worker::is_stopping);
        if going == 0
            && self.surge() == 0
            && !stopping
            && self.fresh().count() == serving
            && retiring.len() + serving >= self.target()
            && self.may_start()
        {
            going = 1;
        }
        for (_, (_, wid)) in retiring.into_iter().take(going) {
            self.stop_one(wid, at, actions);
        }
    }

    fn grow(&mut self, now: Instant, actions: &mut Vec<Action>) {
        // What has passed is cleared, so that it is no deadline any more.
        self.pauses.expire(now);
        self.next_start = self.next_start.filter(|at| now < *at);
        if self.flapping_until.is_some_and(|at| at <= now) {
            self.follow(WatcherEvent::PauseOver);
            self.flapping_until = None;
        }
        if self.life() == Life::Pausing {
            return;
        }
        let missing = self.startable();
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
            let generation = self.kept.generation;
            if self.stage(wid).on(WorkerEvent::Begin) == WorkerCell::Ask {
                self.workers.insert(wid, Worker::starting(generation));
                actions.push(Action::Start { wid, generation });
            }
            self.next_start =
                (!self.config.warmup_delay.is_zero()).then(|| now + self.config.warmup_delay);
        }
    }

    /// When every worker will have run so long that no failure of before counts any more.
    fn well_at(&self) -> Option<Instant> {
        let reset = self.config.backoff.reset;
        let started = self.workers.values().filter(|worker| worker.is_wanted());
        let started = started.map(|worker| worker.process().map(|process| process.started + reset));
        started.collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    /// What hinders it keeps it from serving: it was given up, pauses, ends again and again, or
    /// left its work to the background.
    pub(super) fn is_failing(&self) -> bool {
        self.gave_up
            || self.flapping_until.is_some()
            || (self.pauses.worst() >= 2 && !self.is_up())
            || self.background().is_some()
            || self.no_release.is_some()
    }

    fn settle(&mut self, now: Instant) {
        if self.is_up() {
            self.came_up = true;
            if !self
                .workers
                .values()
                .any(|worker| worker.is_wanted() && worker.retiring)
            {
                self.complete_roll();
            }
            let recovered = self.pauses.worst() < 2 || self.well_at().is_some_and(|at| at <= now);
            if recovered && self.config.respawn && self.rolled.is_ok() {
                self.message = None;
                self.about = None;
            }
        }
        if !self.config.respawn && self.target() == 0 && self.workers.is_empty() {
            self.follow(WatcherEvent::Finish);
        }
    }

    fn stop_all(&mut self, at: &Moment, actions: &mut Vec<Action>) {
        let grace = self.config.graceful_timeout;
        for worker in self.workers.values_mut() {
            actions.extend(worker.stop(grace, at.now).map(Action::Stop));
        }
    }

    fn stop_one(&mut self, wid: u32, at: &Moment, actions: &mut Vec<Action>) {
        let grace = self.config.graceful_timeout;
        if let Some(worker) = self.workers.get_mut(&wid) {
            actions.extend(worker.stop(grace, at.now).map(Action::Stop));
        }
    }

    pub(super) fn may_start(&self) -> bool {
        // Once it is up, what it depended on may come and go.
        self.released
            && !self.dormant
            && self.gate.socket.is_none()
            && self.gate.orphans.is_none()
            && !self.gate.orphans_unknown
            && (self.gate.start_after.is_none() || self.came_up)
    }

    /// How many workers may be there beyond the wanted number while some are replaced.
    fn surge(&self) -> usize {
        let sequential = self.roll.as_ref().is_some_and(|roll| roll.sequential);
        if sequential || self.config.singleton {
            return 0;
        }
        usize::try_from(self.config.max_surge).unwrap_or(usize::MAX)
    }
}

/// Oldest first.
fn by_age((wid, worker): (u32, &Worker)) -> (u64, u32) {
    let started = worker
        .process()
        .map_or(u64::MAX, |process| process.started_us);
    (started, wid)
}
