//! Workers that are found running: a predecessor started them, or the answer to their start was
//! lost.
//!
//! Owns what becomes of them: how far they are by what was kept, and whether their settings are
//! those of now. Leaves to others: finding them (`supervisor::kernel`).
//! Invariant: one that was asked to end is asked again, with the same signal and by the same
//! deadline.

use std::time::Duration;

use crate::config::Readiness;
use crate::life::{Stage, WatcherEvent, WorkerCell, WorkerEvent};
use crate::watcher::{Moment, Watcher};
use crate::worker::{Running, State, Worker};

impl Watcher {
    /// A worker of a predecessor, or of a start whose answer was lost.
    pub fn adopt(&mut self, wid: u32, process: Running, generation: Option<u64>, at: &Moment) {
        self.follow(WatcherEvent::Found);
        let state = match self.kept.stopping.get(&process.serial) {
            Some(kill_at_ms) => State::Stopping {
                process,
                // A predecessor may have died before it sent the signal.
                signalled: false,
                kill_at: at.now + Duration::from_millis(kill_at_ms.saturating_sub(at.epoch_ms)),
            },
            None => self.adopted_state(process, generation, at),
        };
        let own_signal = self.kept.own_signal(process.serial);
        let stage = self.stage(wid);
        let cell = stage.on(WorkerEvent::Found);
        match (cell, self.workers.get_mut(&wid)) {
            (WorkerCell::Up | WorkerCell::UpToGo, Some(worker)) => {
                if stage == Stage::Left {
                    // The number was given to another process, which a predecessor did not live to
                    // note down.
                    worker.generation = generation.unwrap_or(0);
                }
                worker.own_signal = own_signal;
                worker.state = state;
                worker.retiring |= cell == WorkerCell::UpToGo;
            }
            (WorkerCell::Up, None) => {
                // Without a note it was started before there were generations, by circusd or an
                // older manager.
                let generation = generation.unwrap_or(0);
                let mut worker = Worker::starting(generation);
                worker.retiring = self.is_rolled_out(generation);
                worker.own_signal = own_signal;
                worker.state = state;
                self.workers.insert(wid, worker);
            }
            (_, Some(known))
                if known
                    .process()
                    .is_none_or(|known| known.serial != process.serial) =>
            {
                tracing::warn!(
                    watcher = self.config.name,
                    wid,
                    serial = process.serial,
                    "a second process has a worker's number"
                );
            }
            _ => {}
        }
    }

    /// A worker was found running with other settings than it would get now.
    pub fn mark_outdated(&mut self, serial: u64) {
        self.outdated.insert(serial);
    }

    /// How many workers have other settings than they would get now, and are not being replaced.
    #[must_use]
    pub fn outdated(&self) -> usize {
        if self.outdated.is_empty() {
            return 0;
        }
        self.fresh()
            .filter_map(|(_, worker)| worker.process())
            .filter(|process| self.outdated.contains(&process.serial))
            .count()
    }

    /// The state of a worker that was found running.
    fn adopted_state(&self, process: Running, generation: Option<u64>, at: &Moment) -> State {
        let told = matches!(
            self.config.ready,
            Some(Readiness::Notify | Readiness::Fd(_) | Readiness::Log(_))
        );
        let rolled_in = self
            .kept
            .roll
            .as_ref()
            .is_some_and(|roll| Some(roll.to) == generation);
        let age = at.now.saturating_duration_since(process.started);
        // It had its time to say that it serves, and nobody has noted down whether it did: the
        // option may be new.
        if self.kept.ready.contains(&process.serial)
            || (told && !rolled_in && age >= self.config.ready_timeout)
        {
            return State::Serving(process);
        }
        self.first_state(process, generation.unwrap_or(0), at)
    }
}
