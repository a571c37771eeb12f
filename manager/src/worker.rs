//! One worker: what is known of its process and how far a stop has come.
//!
//! Owns the stop sequence: stop signal, grace period, kill, kill again. Pure: time is an argument, signals are answers.
//! Invariant: a deadline exists only while a stop is under way.

use std::time::{Duration, Instant};

/// A tree that survives SIGKILL is stuck in the system; it is killed again this often, in case it forked away.
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

/// One worker's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worker {
    /// The kernel was asked to start it.
    Starting {
        /// It is not wanted any more: stop it once it is there.
        unwanted: bool,
    },
    /// It runs.
    Running(Running),
    /// It was asked to end.
    Stopping {
        /// What runs still.
        process: Running,
        /// When it is killed, or killed again.
        kill_at: Instant,
    },
}

impl Worker {
    /// The process, once there is one.
    #[must_use]
    pub fn process(&self) -> Option<&Running> {
        match self {
            Self::Starting { .. } => None,
            Self::Running(process) | Self::Stopping { process, .. } => Some(process),
        }
    }

    /// It counts towards the wanted number.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        matches!(self, Self::Running(_) | Self::Starting { unwanted: false })
    }

    /// It was asked to end.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        matches!(
            self,
            Self::Stopping { .. } | Self::Starting { unwanted: true }
        )
    }

    /// Asks it to end. Answers the process to send the stop signal to, if that is to happen now.
    pub fn stop(&mut self, grace: Duration, now: Instant) -> Option<Running> {
        match *self {
            Self::Starting { .. } => {
                *self = Self::Starting { unwanted: true };
                None
            }
            Self::Running(process) => {
                *self = Self::Stopping {
                    process,
                    kill_at: now + grace,
                };
                Some(process)
            }
            Self::Stopping { .. } => None,
        }
    }

    /// When something is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Stopping { kill_at, .. } => Some(*kill_at),
            Self::Starting { .. } | Self::Running(_) => None,
        }
    }

    /// The grace period may be over: answers the process to kill.
    pub fn due(&mut self, now: Instant) -> Option<Running> {
        match self {
            Self::Stopping { process, kill_at } if *kill_at <= now => {
                *kill_at = now + KILL_AGAIN;
                Some(*process)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let mut worker = Worker::Running(process);
        assert_eq!(worker.deadline(), None);
        assert_eq!(worker.stop(grace, now), Some(process));
        assert_eq!(worker.stop(grace, now), None, "asked once");
        assert_eq!(worker.due(now), None);
        assert_eq!(worker.due(now + grace), Some(process));
        assert_eq!(worker.due(now + grace), None);
        assert_eq!(worker.due(now + grace + KILL_AGAIN), Some(process));
    }

    #[test]
    fn a_worker_on_its_way_is_stopped_when_it_is_there() {
        let mut worker = Worker::Starting { unwanted: false };
        assert_eq!(worker.stop(Duration::ZERO, Instant::now()), None);
        assert!(worker.is_stopping() && !worker.is_wanted());
    }
}
