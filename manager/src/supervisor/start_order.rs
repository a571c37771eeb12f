//! The watchers whose turn to start has not come, in order, and the pause between two of them.
//!
//! Leaves to others: the order itself (`Supervisor::start_order`), and when a watcher holds up the
//! next one (`Watcher::is_launched`).
//! Invariant: each operation on one watcher takes time logarithmic in the number of those that wait.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use crate::supervisor::WatcherId;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct StartOrder {
    queue: BTreeMap<u64, WatcherId>,
    /// Place of each watcher in `queue`.
    places: HashMap<WatcherId, u64>,
    next_place: u64,
    pause_until: Option<Instant>,
}

impl StartOrder {
    /// Replaces the queue.
    pub(super) fn set(&mut self, order: Vec<WatcherId>) {
        self.clear();
        for id in order {
            self.push(id);
        }
    }

    /// Adds a watcher at the end, unless it waits already.
    pub(super) fn push(&mut self, id: WatcherId) {
        if self.places.contains_key(&id) {
            return;
        }
        self.places.insert(id, self.next_place);
        self.queue.insert(self.next_place, id);
        self.next_place += 1;
    }

    /// Takes a watcher out of the queue.
    pub(super) fn forget(&mut self, id: WatcherId) {
        if let Some(place) = self.places.remove(&id) {
            self.queue.remove(&place);
        }
    }

    /// Empties the queue.
    pub(super) fn clear(&mut self) {
        self.queue.clear();
        self.places.clear();
    }

    /// The watcher whose turn it is.
    pub(super) fn first(&self) -> Option<WatcherId> {
        self.queue.values().next().copied()
    }

    /// Ends the turn of the first one.
    pub(super) fn pop(&mut self) {
        if let Some((_, id)) = self.queue.pop_first() {
            self.places.remove(&id);
        }
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
    fn one_that_waits_already_keeps_its_place_and_one_that_was_forgotten_comes_last() {
        let mut order = StartOrder::default();
        order.set(vec![WatcherId(1), WatcherId(2)]);
        order.push(WatcherId(1));
        assert_eq!(order.first(), Some(WatcherId(1)));
        order.forget(WatcherId(1));
        order.push(WatcherId(1));
        for expected in [Some(WatcherId(2)), Some(WatcherId(1)), None] {
            assert_eq!(order.first(), expected);
            order.pop();
        }
    }

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
