//! Workers that have ended, until the kernel has forgotten them.
//!
//! Owns how far each has come: its exit is known before its start was answered, its last words are
//! being read, somebody is to look what it left, its exit is to be acknowledged, its output is on
//! its way to the log files. Leaves to others: what an end means (`watcher`), reading
//! (`last_words`), looking (`left`), telling the kernel (`saves`).
//! Invariant: what waits here is bounded, but for what the kernel itself still lists.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use papa_protocol::process::Exit;
use tokio::sync::Semaphore;

use crate::supervisor::WatcherId;

/// Processes that were told of before their start was answered; more than ever start at once.
const MAX_EARLY: usize = 4096;
/// Ends that wait for last words; of more than that at once the last words are lost.
const MAX_HEARING: usize = 4096;
/// Outputs read at the same time; each takes a descriptor for a moment.
const MAX_READING: usize = 16;

/// See the module.
#[derive(Debug)]
pub(super) struct Dead {
    /// Exits that were told before the start was answered.
    early: BTreeMap<u64, Exit>,
    /// Processes that had written that they are ready before the start was answered.
    early_ready: BTreeSet<u64>,
    /// Exits that are dealt with when it is known what the worker wrote last.
    hearing: HashMap<u64, Exit>,
    permits: Arc<Semaphore>,
    /// What workers wrote last whose end is dealt with next.
    words: HashMap<u64, Vec<String>>,
    /// Workers of which nobody has looked yet what they left.
    unlooked: HashSet<u64>,
    /// Exits the kernel is to be told are dealt with, and whose they were.
    unacknowledged: Vec<(WatcherId, u64)>,
    /// Those whose output is still on its way to the log files.
    draining: HashSet<u64>,
}

impl Default for Dead {
    fn default() -> Self {
        Self {
            early: BTreeMap::new(),
            early_ready: BTreeSet::new(),
            hearing: HashMap::new(),
            permits: Arc::new(Semaphore::new(MAX_READING)),
            words: HashMap::new(),
            unlooked: HashSet::new(),
            unacknowledged: Vec::new(),
            draining: HashSet::new(),
        }
    }
}

impl Dead {
    /// A process ended that is no worker yet: perhaps of a start whose answer is still on its way.
    pub(super) fn keep_early(&mut self, serial: u64, exit: Exit) {
        if self.early.len() < MAX_EARLY {
            self.early.insert(serial, exit);
        }
    }

    /// The exit of a process whose start has been answered, if it was told before.
    pub(super) fn take_early(&mut self, serial: u64) -> Option<Exit> {
        self.early.remove(&serial)
    }

    /// A process wrote that it is ready that is no worker yet.
    pub(super) fn keep_early_ready(&mut self, serial: u64) {
        if self.early_ready.len() < MAX_EARLY {
            self.early_ready.insert(serial);
        }
    }

    /// Whether a process whose start has been answered was ready before.
    pub(super) fn take_early_ready(&mut self, serial: u64) -> bool {
        self.early_ready.remove(&serial)
    }

    /// Whether something waits for the answer to a start.
    pub(super) fn has_early(&self) -> bool {
        !self.early.is_empty() || !self.early_ready.is_empty()
    }

    /// No start is on its way: what waited belongs to nobody.
    pub(super) fn forget_early(&mut self) {
        self.early.clear();
        self.early_ready.clear();
    }

    /// Whether the last words of this worker are being read.
    pub(super) fn is_heard(&self, serial: u64) -> bool {
        self.hearing.contains_key(&serial)
    }

    /// The end waits for the last words. Answers what limits how many are read at once; none if too
    /// many ends wait already.
    pub(super) fn hear(&mut self, serial: u64, exit: Exit) -> Option<Arc<Semaphore>> {
        if self.hearing.len() >= MAX_HEARING {
            return None;
        }
        self.hearing.insert(serial, exit);
        Some(self.permits.clone())
    }

    /// The end does not wait for last words any more. Answers the exit if it did.
    pub(super) fn stop_hearing(&mut self, serial: u64) -> Option<Exit> {
        self.hearing.remove(&serial)
    }

    /// What workers wrote last whose ends are dealt with next.
    pub(super) fn set_words(&mut self, words: HashMap<u64, Vec<String>>) {
        self.words = words;
    }

    /// Those ends are dealt with.
    pub(super) fn forget_words(&mut self) {
        self.words.clear();
    }

    /// What this worker wrote last.
    pub(super) fn take_words(&mut self, serial: u64) -> Vec<String> {
        self.words.remove(&serial).unwrap_or_default()
    }

    /// Somebody is to look what it left, before its exit is acknowledged.
    pub(super) fn await_look(&mut self, serial: u64) {
        self.unlooked.insert(serial);
    }

    /// Somebody has looked. True for the first time.
    pub(super) fn looked(&mut self, serial: u64) -> bool {
        self.unlooked.remove(&serial)
    }

    /// Its exit is dealt with.
    pub(super) fn acknowledge(&mut self, id: WatcherId, serial: u64) {
        self.draining.insert(serial);
        self.unacknowledged.push((id, serial));
    }

    /// Exits to be acknowledged now.
    pub(super) fn take_unacknowledged(&mut self) -> Vec<(WatcherId, u64)> {
        std::mem::take(&mut self.unacknowledged)
    }

    /// Those whose output is on its way.
    pub(super) fn draining(&self) -> &HashSet<u64> {
        &self.draining
    }

    /// The kernel has forgotten it.
    pub(super) fn drained(&mut self, serial: u64) {
        self.draining.remove(&serial);
    }

    /// The kernel has no other processes than these.
    pub(super) fn retain(&mut self, listed: &HashSet<u64>) {
        self.draining.retain(|serial| listed.contains(serial));
    }

    /// The kernel is lost with everything it knew.
    pub(super) fn forget_kernel(&mut self) {
        self.forget_early();
        self.hearing.clear();
        self.draining.clear();
        self.unacknowledged.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: WatcherId = WatcherId(1);

    fn exit() -> Exit {
        serde_json::from_value(serde_json::json!({ "code": 1, "stamp_us": 5 })).unwrap()
    }

    #[test]
    fn an_exit_that_is_told_before_the_start_is_dealt_with_once() {
        let mut dead = Dead::default();
        dead.keep_early(7, exit());
        assert!(dead.has_early());
        assert!(dead.take_early(7).is_some());
        assert!(dead.take_early(7).is_none() && !dead.has_early());
    }

    #[test]
    fn a_worker_that_was_ready_before_its_start_was_answered_was_never_ready() {
        let mut dead = Dead::default();
        dead.keep_early_ready(7);
        assert!(dead.has_early() && !dead.take_early_ready(8));
        assert!(dead.take_early_ready(7));
        assert!(!dead.take_early_ready(7) && !dead.has_early());
        dead.keep_early_ready(7);
        dead.forget_early();
        assert!(!dead.take_early_ready(7));
    }

    #[test]
    fn exits_of_nobody_take_no_more_than_their_share() {
        let mut dead = Dead::default();
        for serial in 0..MAX_EARLY as u64 + 10 {
            dead.keep_early(serial, exit());
        }
        assert_eq!(dead.early.len(), MAX_EARLY);
        dead.forget_early();
        assert!(!dead.has_early());
    }

    #[test]
    fn an_end_waits_for_last_words_unless_too_many_do() {
        let mut dead = Dead::default();
        for serial in 0..MAX_HEARING as u64 {
            assert!(dead.hear(serial, exit()).is_some());
        }
        assert!(dead.is_heard(0));
        assert!(dead.hear(u64::MAX, exit()).is_none());
        assert!(dead.stop_hearing(0).is_some());
        assert!(dead.stop_hearing(0).is_none(), "it is dealt with once");
        assert!(dead.hear(u64::MAX, exit()).is_some());
    }

    #[test]
    fn an_acknowledged_worker_drains_until_the_kernel_has_forgotten_it() {
        let mut dead = Dead::default();
        dead.await_look(7);
        assert!(dead.looked(7) && !dead.looked(7));
        dead.acknowledge(ID, 7);
        dead.acknowledge(ID, 8);
        assert_eq!(dead.take_unacknowledged(), [(ID, 7), (ID, 8)]);
        assert!(dead.take_unacknowledged().is_empty());
        dead.drained(7);
        assert_eq!(dead.draining(), &HashSet::from([8]));
        dead.retain(&HashSet::new());
        assert!(dead.draining().is_empty());
    }

    #[test]
    fn nothing_of_a_lost_kernel_is_acknowledged_to_the_next() {
        let mut dead = Dead::default();
        dead.keep_early(6, exit());
        dead.hear(7, exit());
        dead.acknowledge(ID, 8);
        dead.forget_kernel();
        assert!(!dead.has_early() && !dead.is_heard(7));
        assert!(dead.take_unacknowledged().is_empty() && dead.draining().is_empty());
    }
}
