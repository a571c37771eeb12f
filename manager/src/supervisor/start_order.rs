//! The watchers whose turn to start has not come, in order, and the pause between two of them.
//!
//! Leaves to others: the order itself (`Supervisor::start_order`), and when a watcher holds up the
//! next one (`Watcher::is_launched`).

use std::collections::VecDeque;
use std::time::Instant;

use crate::supervisor::WatcherId;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct StartOrder {
    queue: VecDeque<WatcherId>,
    pause_until: Option<Instant>,
}

impl StartOrder {
    /// Has these start, the first one first, instead of those that wait.
    pub(super) fn set(&mut self, order: Vec<WatcherId>) {
        self.queue = order.into();
    }

    /// Has this one start after those that wait.
    pub(super) fn push(&mut self, id: WatcherId) {
        self.queue.push_back(id);
    }

    /// It is not to start any more.
    pub(super) fn forget(&mut self, id: WatcherId) {
        // Looked at from the front: those that go soon after their start are there.
        self.queue.retain(|queued| *queued != id);
    }

    /// Nobody is to start any more.
    pub(super) fn clear(&mut self) {
        self.queue.clear();
    }

    /// Whose turn it is.
    pub(super) fn first(&self) -> Option<WatcherId> {
        self.queue.front().copied()
    }

    /// The turn of the first one is over.
    pub(super) fn pop(&mut self) {
        self.queue.pop_front();
    }

    /// The next one waits until then.
    pub(super) fn pause(&mut self, until: Instant) {
        self.pause_until = Some(until);
    }

    /// Whether the next one has to wait.
    pub(super) fn is_paused(&mut self, now: Instant) -> bool {
        self.pause_until = self.pause_until.filter(|until| now < *until);
        self.pause_until.is_some()
    }

    /// When the next one may start.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.pause_until
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_has_its_turn_after_the_one_before_and_the_pause() {
        let now = Instant::now();
        let mut order = StartOrder::default();
        order.set(vec![WatcherId(1), WatcherId(2)]);
        order.push(WatcherId(3));
        order.forget(WatcherId(2));
        assert_eq!(order.first(), Some(WatcherId(1)));
        order.pop();
        let until = now + Duration::from_secs(1);
        order.pause(until);
        assert!(order.is_paused(now));
        assert_eq!(order.deadline(), Some(until));
        assert!(!order.is_paused(until));
        assert_eq!(
            (order.first(), order.deadline()),
            (Some(WatcherId(3)), None)
        );
        order.clear();
        assert_eq!(order.first(), None);
    }
}
