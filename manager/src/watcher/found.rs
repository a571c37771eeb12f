//! Workers that are found running: a predecessor started them, or the answer to their start was
//! lost.
//!
//! Owns what becomes of them: how far they are by what was kept, and whether their settings are
//! those of now. Leaves to others: finding them (`supervisor::kernel`).
//! Invariant: one that was asked to end is asked again, with the same signal and by the same
//! deadline.

use std::time::Duration;

use crate::config::Readiness;
use crate::watcher::{Moment, Watcher};
use crate::worker::{Running, State, Worker};

impl Watcher {
    /// A worker of a predecessor, or of a start whose answer was lost.
    pub fn adopt(&mut self, wid: u32, process: Running, generation: Option<u64>, at: &Moment) {
        self.dormant = false;
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
        match self.workers.get_mut(&wid) {
            Some(known)
                if known
                    .process()
                    .is_some_and(|known| known.serial == process.serial) => {}
            // If it is unwanted by now, the next step stops it.
            Some(
                worker @ Worker {
                    state: State::Starting { .. },
                    ..
                },
            ) => {
                let unwanted = worker.is_stopping();
                worker.own_signal = own_signal;
                worker.state = state;
                if unwanted {
                    worker.retiring = true;
                }
            }
            // The number was given to another process, which a predecessor did not live to note
            // down.
            Some(worker) if worker.left().is_some() => {
                let generation = generation.unwrap_or(0);
                worker.generation = generation;
                worker.own_signal = own_signal;
                worker.state = state;
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
                // Without a note it was started before there were generations, by circusd or an
                // older manager.
                let generation = generation.unwrap_or(0);
                let retiring = self.is_rolled_out(generation);
                self.workers.insert(
                    wid,
                    Worker {
                        generation,
                        retiring,
                        faulty: false,
                        ended: None,
                        own_signal,
                        state,
                    },
                );
            }
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
