//! One worker: what is known of its process, whether it serves, and how far a stop has come.
//!
//! Owns the life of one process as we see it: asked for, waited for, serving, stopping; and the
//! stop sequence: stop signal, grace period, kill, kill again. Pure: time is an argument, signals
//! are answers.
//! Invariant: a worker that is to go never becomes wanted again, except one that was only to be
//! replaced (`retiring`).

use std::time::{Duration, Instant};

use papa_control::last_words::End;
use papa_protocol::process::Exit;
use papa_test_hooks::failpoint;

use crate::config::SignalNumber;
use crate::life::{Stage, WorkerCell, WorkerEvent};

mod left;

pub use left::{Left, LeftDue, LeftNow};

/// A tree that survives SIGKILL is stuck in the system; it is killed again this often, in case it
/// forked away.
pub const KILL_AGAIN: Duration = Duration::from_secs(1);

/// A process the kernel has started for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    /// The kernel's number for it.
    pub serial: u64,
    /// For signals and people.
    pub pid: i32,
    /// Microseconds since the epoch.
    pub started_us: u64,
    /// The same on our clock, as well as it can be told.
    pub started: Instant,
}

impl Running {
    /// The record of its end, as worker `wid`.
    #[must_use]
    pub fn end(&self, wid: u32, exit: Option<&Exit>, asked: bool, lines: Vec<String>) -> End {
        End {
            wid,
            pid: self.pid.unsigned_abs(),
            serial: self.serial,
            at_ms: exit.map_or(0, |exit| exit.stamp_us / 1000),
            ran_ms: exit.map(|exit| exit.stamp_us.saturating_sub(self.started_us) / 1000),
            code: exit.and_then(|exit| exit.code),
            signal: exit.and_then(|exit| exit.signal),
            core: exit.is_some_and(|exit| exit.core),
            asked,
            lines,
        }
    }
}

/// One worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Worker {
    /// Which reload of its watcher it was started by.
    pub generation: u64,
    /// It is to be replaced, and goes when a successor serves.
    pub retiring: bool,
    /// It is stopped because it was not ready in time, or not well: what it says last says why.
    pub faulty: bool,
    /// When it ended, from then until its end is dealt with: what it wrote last may have to be read
    /// before.
    pub ended: Option<Instant>,
    /// It was asked to end with this signal, not with the configured one.
    pub own_signal: Option<SignalNumber>,
    /// How far it has come.
    pub state: State,
}

/// How far a worker has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The kernel was asked to start it.
    Starting {
        /// It is not wanted any more: stop it once it is there.
        unwanted: bool,
    },
    /// It runs and does not serve yet.
    Waiting {
        /// What runs.
        process: Running,
        /// When it counts as serving by having run; none: somebody tells.
        settles: Option<Instant>,
        /// When it counts as failed.
        limit: Instant,
    },
    /// It runs, and serves as far as we know.
    Serving(Running),
    /// It was asked to end, or is about to be.
    Stopping {
        /// What runs still.
        process: Running,
        /// The stop signal has been sent by us.
        signalled: bool,
        /// When it is killed, or killed again.
        kill_at: Instant,
    },
    /// It has ended, and what it left behind perhaps has not.
    Left(Left),
}

/// What is due to a worker that is stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// The stop signal, which a predecessor may not have sent.
    Signal(Running),
    /// The end of its tree.
    Kill(Running),
    /// Something about what it left behind.
    Left(Running, LeftDue),
}

impl Worker {
    /// Whether the kernel was asked to start it and has not answered.
    #[must_use]
    pub fn is_starting(&self) -> bool {
        matches!(self.state, State::Starting { .. })
    }

    /// One the kernel is asked for.
    #[must_use]
    pub fn starting(generation: u64) -> Self {
        Self {
            generation,
            retiring: false,
            faulty: false,
            ended: None,
            own_signal: None,
            state: State::Starting { unwanted: false },
        }
    }

    /// What it left behind, once it has ended.
    #[must_use]
    pub fn left(&self) -> Option<&Left> {
        match &self.state {
            State::Left(left) => Some(left),
            _ => None,
        }
    }

    /// It ended by itself, and its number is not free yet.
    #[must_use]
    pub fn blocks(&self) -> bool {
        self.left().is_some_and(|left| !left.asked)
    }

    /// The process, once there is one, and until it has ended.
    #[must_use]
    pub fn process(&self) -> Option<&Running> {
        match &self.state {
            State::Starting { .. } | State::Left(_) => None,
            State::Waiting { process, .. }
            | State::Serving(process)
            | State::Stopping { process, .. } => Some(process),
        }
    }

    /// Runs or is on its way, and was not asked to end.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        matches!(
            self.state,
            State::Waiting { .. } | State::Serving(_) | State::Starting { unwanted: false }
        )
    }

    /// Wanted, and not to be replaced.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.is_wanted() && !self.retiring
    }

    /// It serves.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        matches!(self.state, State::Serving(_))
    }

    /// It was asked to end, or has ended and is not all gone.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        matches!(
            self.state,
            State::Stopping { .. } | State::Starting { unwanted: true } | State::Left(_)
        )
    }

    /// Its end is nothing that somebody asked for.
    #[must_use]
    pub fn ends_by_itself(&self) -> bool {
        self.faulty || !self.is_stopping()
    }

    /// Its state, as the table of its life has it.
    #[must_use]
    pub fn stage(&self) -> Stage {
        match self.state {
            State::Starting { unwanted: false } => Stage::Starting,
            State::Starting { unwanted: true } => Stage::Unwanted,
            State::Waiting { .. } => Stage::Waiting,
            State::Serving(_) => Stage::Serving,
            State::Stopping { .. } => Stage::Stopping,
            State::Left(_) => Stage::Left,
        }
    }

    /// What an event means for it.
    #[must_use]
    pub fn on(&self, event: WorkerEvent) -> WorkerCell {
        self.stage().on(event)
    }

    /// Asks it to end. Answers the process to send the stop signal to, if that is to happen now.
    pub fn stop(&mut self, grace: Duration, now: Instant) -> Option<Running> {
        self.end_by(WorkerEvent::Stop, grace, now)
    }

    /// Asks it to end if it runs, or to end sooner than it was asked to. Answers the process to send
    /// a signal to.
    pub fn hasten(&mut self, grace: Duration, now: Instant) -> Option<Running> {
        self.end_by(WorkerEvent::Hasten, grace, now)
    }

    /// Asks it to end because it is not ready in time, or not well. Answers the process to send the
    /// stop signal to, if that is to happen now.
    pub fn fail(&mut self, event: WorkerEvent, grace: Duration, now: Instant) -> Option<Running> {
        self.end_by(event, grace, now)
    }

    fn end_by(&mut self, event: WorkerEvent, grace: Duration, now: Instant) -> Option<Running> {
        let cell = self.on(event);
        self.faulty |= cell == WorkerCell::Fault;
        match (cell, &mut self.state) {
            (WorkerCell::Unwant, _) => {
                self.state = State::Starting { unwanted: true };
                None
            }
            (
                WorkerCell::Stop | WorkerCell::Fault,
                State::Waiting { process, .. } | State::Serving(process),
            ) => {
                let process = *process;
                self.state = State::Stopping {
                    process,
                    signalled: true,
                    kill_at: now + grace,
                };
                Some(process)
            }
            (
                WorkerCell::Sooner,
                State::Stopping {
                    process, kill_at, ..
                },
            ) => {
                *kill_at = (*kill_at).min(now + grace);
                Some(*process)
            }
            (WorkerCell::EndLeft, State::Left(left)) => {
                left.stop(grace, now);
                None
            }
            _ => None,
        }
    }

    /// It serves now. False if that changes nothing.
    pub fn serve(&mut self) -> bool {
        match (self.on(WorkerEvent::Ready), self.state) {
            (WorkerCell::Serve, State::Waiting { process, .. }) => {
                self.state = State::Serving(process);
                failpoint::reach("reload.ready");
                true
            }
            _ => false,
        }
    }

    /// When something is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Stopping { kill_at, .. } => Some(kill_at),
            State::Waiting { .. } if self.ended.is_some() => None,
            State::Waiting { settles, limit, .. } => {
                Some(settles.map_or(limit, |at| at.min(limit)))
            }
            State::Left(left) => Some(left.deadline()),
            State::Starting { .. } | State::Serving(_) => None,
        }
    }

    /// What is due to it now if it is stopping, or left something behind.
    pub fn due(&mut self, now: Instant) -> Option<Due> {
        match &mut self.state {
            State::Left(left) => left.due(now).map(|due| Due::Left(left.process, due)),
            State::Stopping { kill_at, .. } if *kill_at <= now => self.grace_over(now),
            State::Stopping {
                process, signalled, ..
            } => (!std::mem::replace(signalled, true)).then_some(Due::Signal(*process)),
            _ => None,
        }
    }

    fn grace_over(&mut self, now: Instant) -> Option<Due> {
        match (self.on(WorkerEvent::GraceOver), &mut self.state) {
            (
                WorkerCell::Kill,
                State::Stopping {
                    process,
                    signalled,
                    kill_at,
                },
            ) => {
                *kill_at = now + KILL_AGAIN;
                *signalled = true;
                Some(Due::Kill(*process))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(process: Running) -> Worker {
        Worker {
            state: State::Serving(process),
            ..Worker::starting(1)
        }
    }

    #[test]
    fn a_stop_is_one_signal_then_a_kill_and_kills_again() {
        let now = Instant::now();
        let grace = Duration::from_secs(30);
        let process = Running {
            serial: 1,
            pid: 2,
            started_us: 3,
            started: now,
        };
        let mut worker = running(process);
        assert_eq!(worker.deadline(), None);
        assert_eq!(worker.stop(grace, now), Some(process));
        assert_eq!(worker.stop(grace, now), None, "asked once");
        assert_eq!(worker.due(now), None);
        assert_eq!(worker.due(now + grace), Some(Due::Kill(process)));
        assert_eq!(worker.due(now + grace), None);
        assert_eq!(
            worker.due(now + grace + KILL_AGAIN),
            Some(Due::Kill(process))
        );
    }

    #[test]
    fn a_worker_on_its_way_is_stopped_when_it_is_there() {
        let mut worker = Worker::starting(1);
        assert_eq!(worker.stop(Duration::ZERO, Instant::now()), None);
        assert!(worker.is_stopping() && !worker.is_wanted());
    }
}
