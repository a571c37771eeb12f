//! Requests that are not answered yet.
//!
//! Owns the requests that came while there was no kernel, and the tickets of those that wait for
//! watchers. Leaves to others: what a request does (`requests`), and what a watcher has reached
//! (`tickets`).
//! Invariant: the requests that wait for the kernel are in the order in which they came, and never
//! more than [`MAX_EARLY`].

use std::time::{Duration, Instant};

use crate::control::server::Asked;
use crate::supervisor::WatcherId;
use crate::supervisor::tickets::Ticket;

/// Requests that wait for the kernel; more than people and scripts have open.
const MAX_EARLY: usize = 256;
/// How long they wait: a kernel that was killed is back sooner, and whoever asks is to know that
/// there is none.
const KERNEL_PATIENCE: Duration = Duration::from_millis(1500);

/// See the module.
#[derive(Debug)]
pub(super) struct OpenRequests {
    tickets: Vec<Ticket>,
    /// When tickets were last judged. A worker that proves that it stays after this moment is a
    /// deadline, however soon the deadline is asked for.
    judged_at: Instant,
    /// Requests that came while there was no kernel, with the time at which they came.
    early: Vec<(Instant, Asked)>,
}

impl OpenRequests {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            tickets: Vec::new(),
            judged_at: now,
            early: Vec::new(),
        }
    }

    /// Keeps a request until the kernel is there. Returns it if too many wait already.
    pub(super) fn wait_for_kernel(&mut self, asked: Asked, now: Instant) -> Option<Asked> {
        if self.early.len() >= MAX_EARLY {
            return Some(asked);
        }
        self.early.push((now, asked));
        None
    }

    /// Takes every request that waits for the kernel, in the order in which they came.
    pub(super) fn take_early(&mut self) -> Vec<Asked> {
        let early = std::mem::take(&mut self.early);
        early.into_iter().map(|(_, asked)| asked).collect()
    }

    /// Takes the requests that have waited for the kernel for too long.
    pub(super) fn take_late(&mut self, now: Instant) -> Vec<Asked> {
        let late = |at: &Instant| now >= *at + KERNEL_PATIENCE;
        let (gone, open): (Vec<_>, Vec<_>) = std::mem::take(&mut self.early)
            .into_iter()
            .partition(|(at, _)| late(at));
        self.early = open;
        gone.into_iter().map(|(_, asked)| asked).collect()
    }

    /// When the first request has waited for the kernel for too long.
    pub(super) fn late_at(&self) -> Option<Instant> {
        self.early.first().map(|(at, _)| *at + KERNEL_PATIENCE)
    }

    /// Keeps a ticket until its watchers are where they should be.
    pub(super) fn wait(&mut self, ticket: Ticket) {
        self.tickets.push(ticket);
    }

    /// Takes every ticket.
    pub(super) fn take_tickets(&mut self) -> Vec<Ticket> {
        std::mem::take(&mut self.tickets)
    }

    pub(super) fn has_tickets(&self) -> bool {
        !self.tickets.is_empty()
    }

    /// Of every ticket the watcher that it waits for first.
    pub(super) fn awaited(&self) -> impl Iterator<Item = WatcherId> {
        let tickets = self.tickets.iter();
        tickets.filter_map(|ticket| ticket.watchers.get(ticket.open).copied())
    }

    /// Sets the moment by which tickets are judged.
    pub(super) fn judge_at(&mut self, now: Instant) {
        self.judged_at = now;
    }

    /// The moment by which tickets are judged.
    pub(super) fn judged_at(&self) -> Instant {
        self.judged_at
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::control::message::{Command, Request, Selection};
    use crate::supervisor::tickets::{Body, Goal};

    fn asked(id: usize) -> Asked {
        let mut request = Request::accepted(Command::Start(Selection::default()));
        request.id = id.into();
        let (reply, _) = oneshot::channel();
        Asked { request, reply }
    }

    fn ids(asked: Vec<Asked>) -> Vec<serde_json::Value> {
        asked.into_iter().map(|asked| asked.request.id).collect()
    }

    #[test]
    fn requests_that_wait_for_the_kernel_keep_their_order_and_are_bounded() {
        let now = Instant::now();
        let mut open = OpenRequests::new(now);
        for id in 0..MAX_EARLY {
            assert!(open.wait_for_kernel(asked(id), now).is_none());
        }
        let refused = open.wait_for_kernel(asked(MAX_EARLY), now).unwrap();
        assert_eq!(refused.request.id, MAX_EARLY);
        let expected: Vec<_> = (0..MAX_EARLY).map(serde_json::Value::from).collect();
        assert_eq!(ids(open.take_early()), expected);
        assert!(open.take_early().is_empty(), "each is taken once");
    }

    #[test]
    fn only_requests_that_waited_too_long_are_late() {
        let begun = Instant::now();
        let mut open = OpenRequests::new(begun);
        assert_eq!(open.late_at(), None);
        let later = begun + Duration::from_secs(1);
        open.wait_for_kernel(asked(1), begun);
        open.wait_for_kernel(asked(2), later);
        let due = begun + KERNEL_PATIENCE;
        assert_eq!(open.late_at(), Some(due));
        let before = due.checked_sub(Duration::from_millis(1)).unwrap();
        assert!(open.take_late(before).is_empty());
        assert_eq!(ids(open.take_late(due)), [1]);
        assert_eq!(open.late_at(), Some(later + KERNEL_PATIENCE));
    }

    #[test]
    fn a_ticket_waits_for_its_first_open_watcher() {
        let mut open = OpenRequests::new(Instant::now());
        let Asked { request, reply } = asked(1);
        open.wait(Ticket {
            request,
            reply,
            watchers: vec![WatcherId(4), WatcherId(5)],
            goal: Goal::Up,
            body: Body::Nothing,
            open: 1,
        });
        assert_eq!(open.awaited().collect::<Vec<_>>(), [WatcherId(5)]);
        assert_eq!(open.take_tickets().len(), 1);
        assert!(!open.has_tickets());
    }
}
