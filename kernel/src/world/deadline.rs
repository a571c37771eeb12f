//! What has to be looked at later.
//!
//! Whoever waits for something enters a [`Deadline`] into the world's agenda; the event loop takes
//! each out when its time has come and calls the handler it belongs to.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::client::exchange::SessionId;

/// Something to do at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deadline {
    /// Check whether the consumer of this process's full reel has acknowledged anything.
    Stall(u64),
    /// Find out how this process ended, if the keeper has not said so.
    ExitLookup(u64),
    /// Try again to store this process's output: the system had no memory.
    Retry(u64),
    /// Send the first batch of a classic watch.
    FirstBatch(SessionId),
    /// Check that the private socket's path is still there.
    RuntimeDir,
    /// Remove the control groups of forgotten processes that are empty now.
    Cgroups,
    /// Check that the keeper has said something.
    KeeperSilence,
    /// Stop waiting for connections to stop.
    Freeze,
    /// Check how far this process's start has come.
    Starting(u64),
    /// Accept callers again, if a descriptor is free.
    Accept,
    /// End the kernel: sessions have had the time to read that it ends.
    Exit,
}

/// Deadlines in the order of their times.
#[derive(Debug, Default)]
pub struct Agenda(BTreeSet<(Instant, Deadline)>);

impl Agenda {
    /// Enters a deadline.
    pub fn at(&mut self, time: Instant, what: Deadline) {
        self.0.insert((time, what));
    }

    /// Enters a deadline that is `delay` from now.
    pub fn after(&mut self, delay: Duration, what: Deadline) {
        self.at(Instant::now() + delay, what);
    }

    /// Takes a deadline out that is not needed any more.
    pub fn cancel(&mut self, time: Instant, what: Deadline) {
        self.0.remove(&(time, what));
    }

    /// The time of the earliest deadline.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.0.first().map(|(time, _)| *time)
    }

    /// Takes out the earliest deadline whose time has come by `now`.
    pub fn take_due(&mut self, now: Instant) -> Option<Deadline> {
        self.next().filter(|time| *time <= now)?;
        self.0.pop_first().map(|(_, what)| what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_come_in_the_order_of_their_times_and_not_early() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut agenda = Agenda::default();
        agenda.at(after(20), Deadline::Freeze);
        agenda.at(after(10), Deadline::Retry(1));
        agenda.at(after(10), Deadline::Retry(2));
        agenda.at(after(5), Deadline::Exit);
        agenda.cancel(after(5), Deadline::Exit);
        assert_eq!(agenda.next(), Some(after(10)));
        assert_eq!(agenda.take_due(after(9)), None);
        let due = [15, 15, 15].map(|ms| agenda.take_due(after(ms)));
        assert_eq!(
            due,
            [Some(Deadline::Retry(1)), Some(Deadline::Retry(2)), None]
        );
        assert_eq!(agenda.take_due(after(20)), Some(Deadline::Freeze));
        assert_eq!(agenda.next(), None);
    }
}
