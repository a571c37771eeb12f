//! The clock that wakes the event loop.
//!
//! One timer descriptor in the poller's set, armed for the earliest deadline. With a timer of the
//! runtime, each request would pay for setting it up and taking it down.
//! Source: `timerfd_create(2)`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// The shortest wait there is: none at all would take the alarm off.
const AT_ONCE: Duration = Duration::from_nanos(1);

/// Readable when it rings.
#[derive(Debug)]
pub struct Alarm {
    timer: TimerFd,
    at: Option<Instant>,
}

impl Alarm {
    /// One that is not set.
    ///
    /// # Errors
    /// The errno of `timerfd_create(2)`.
    pub fn new() -> Result<Self, Errno> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        Ok(Self {
            timer: TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?,
            at: None,
        })
    }

    /// One that rings at `deadline`.
    ///
    /// # Errors
    /// The errno of `timerfd_create(2)` or `timerfd_settime(2)`.
    pub fn at(deadline: Instant) -> Result<Self, Errno> {
        let mut alarm = Self::new()?;
        alarm.ring_by(deadline)?;
        Ok(alarm)
    }

    /// Has it ring at `deadline`, or before: one that is set to an earlier
    /// time stays, as deadlines move on more often than they are reached.
    ///
    /// # Errors
    /// The errno of `timerfd_settime(2)`.
    pub fn ring_by(&mut self, deadline: Instant) -> Result<(), Errno> {
        if self.at.is_some_and(|at| at <= deadline) {
            return Ok(());
        }
        let wait = deadline.saturating_duration_since(Instant::now());
        let once = Expiration::OneShot(TimeSpec::from_duration(wait.max(AT_ONCE)));
        self.timer.set(once, TimerSetTimeFlags::empty())?;
        self.at = Some(deadline);
        Ok(())
    }

    /// It has rung: it is readable no more and not set.
    pub fn stop(&mut self) {
        // Nothing to read is what is wanted.
        let _ = self.timer.wait();
        self.at = None;
    }
}

impl From<Alarm> for OwnedFd {
    fn from(alarm: Alarm) -> Self {
        alarm.timer.into()
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::poller::{Poller, Token};

    #[derive(Debug, PartialEq)]
    struct Rings;

    impl Token for Rings {
        fn token(self) -> u64 {
            7
        }

        fn from_token(token: u64) -> Self {
            assert_eq!(token, 7);
            Self
        }
    }

    #[test]
    fn it_rings_by_the_earliest_deadline_and_once() {
        let poller = Poller::new().unwrap();
        let mut alarm = Alarm::new().unwrap();
        poller.add(&alarm, Rings).unwrap();
        let now = Instant::now();
        alarm.ring_by(now + Duration::from_secs(3600)).unwrap();
        assert_eq!(poller.ready().unwrap(), []);
        // One that is over already.
        alarm.ring_by(now).unwrap();
        alarm.ring_by(now + Duration::from_secs(60)).unwrap();
        while poller.ready().unwrap() != [Rings] {
            std::thread::yield_now();
        }
        alarm.stop();
        assert_eq!(poller.ready().unwrap(), []);
        alarm.ring_by(now).unwrap();
        while poller.ready().unwrap() != [Rings] {
            std::thread::yield_now();
        }
    }
}
