//! The watchers, and which of them there may be something to do for.
//!
//! Owns the table of watchers and what is looked up in it: whose a worker is, who depends on whom,
//! whose deadline is next, who has workers. A watcher changes only through [`Watchers::get_mut`]
//! and its kin, which note it as touched; the loop then looks at the touched ones instead of all of
//! them. Leaves to others: what a look is for.
//! Invariants: a watcher that is not touched and whose deadline has not come has nothing to do.
//! Every change costs as much as the watcher is large, however many watchers there are.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Instant;

use crate::config::WatcherConfig;
use crate::supervisor::WatcherId;
use crate::watcher::Watcher;
use crate::worker::Worker;

/// What a watcher is looked at for. Each look has its own list of touched watchers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// To ask it what to do next.
    Step,
    /// To tell it, and those next to it, what they have to wait for.
    Gate,
    /// To have the kernel keep what is new of it.
    Save,
    /// To clear up after it: free numbers, probes, a removal that is complete.
    Tend,
    /// To publish what happened to it.
    Announce,
}

const LOOKS: [Look; 5] = [
    Look::Step,
    Look::Gate,
    Look::Save,
    Look::Tend,
    Look::Announce,
];

/// Every watcher by number. Reads like the map it holds.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    all: BTreeMap<WatcherId, Watcher>,
    /// By look: who was touched since that look last took its list.
    touched: [BTreeSet<WatcherId>; LOOKS.len()],
    /// Touched since the index was brought up to date.
    stale: BTreeSet<WatcherId>,
    index: Index,
}

impl Deref for Watchers {
    type Target = BTreeMap<WatcherId, Watcher>;

    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

impl Watchers {
    /// Takes a watcher in, or puts another in its place.
    pub(super) fn insert(&mut self, id: WatcherId, watcher: Watcher) {
        self.all.insert(id, watcher);
        self.touch(id);
    }

    /// Forgets a watcher. Those next to it are touched: they may have waited for it.
    pub(super) fn remove(&mut self, id: &WatcherId) -> Option<Watcher> {
        let watcher = self.all.remove(id)?;
        self.touch(*id);
        self.refresh();
        Some(watcher)
    }

    /// Forgets all watchers.
    pub(super) fn clear(&mut self) {
        self.touch_all();
        self.all.clear();
        self.refresh();
    }

    /// A watcher to change.
    pub(super) fn get_mut(&mut self, id: &WatcherId) -> Option<&mut Watcher> {
        if self.all.contains_key(id) {
            self.touch(*id);
        }
        self.all.get_mut(id)
    }

    /// A watcher to ask what to do next. All looks but that one have to see what comes of it.
    pub(super) fn get_to_step(&mut self, id: &WatcherId) -> Option<&mut Watcher> {
        if self.all.contains_key(id) {
            for look in LOOKS.into_iter().filter(|look| *look != Look::Step) {
                self.touch_for(look, *id);
            }
            self.stale.insert(*id);
        }
        self.all.get_mut(id)
    }

    /// A watcher to take messages from: nobody has anything to do because of that.
    pub(super) fn get_to_read(&mut self, id: &WatcherId) -> Option<&mut Watcher> {
        self.all.get_mut(id)
    }

    /// All watchers to change; costs as much as they are many.
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Watcher> {
        self.touch_all();
        self.all.values_mut()
    }

    /// The same with their numbers.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&WatcherId, &mut Watcher)> {
        self.touch_all();
        self.all.iter_mut()
    }

    fn touch(&mut self, id: WatcherId) {
        for touched in &mut self.touched {
            touched.insert(id);
        }
        self.stale.insert(id);
    }

    pub(super) fn touch_all(&mut self) {
        let ids: BTreeSet<WatcherId> = self.all.keys().copied().collect();
        for touched in &mut self.touched {
            touched.extend(&ids);
        }
        self.stale.extend(ids);
    }

    /// Touches one watcher for one look.
    pub(super) fn touch_for(&mut self, look: Look, id: WatcherId) {
        if let Some(touched) = self.touched.get_mut(look as usize) {
            touched.insert(id);
        }
    }

    /// Touches all watchers for one look: what it judges by has changed for all.
    pub(super) fn touch_all_for(&mut self, look: Look) {
        if let Some(touched) = self.touched.get_mut(look as usize) {
            touched.extend(self.all.keys());
        }
    }

    /// Who was touched since the last time, in order; some may be gone.
    pub(super) fn take(&mut self, look: Look) -> BTreeSet<WatcherId> {
        let touched = self.touched.get_mut(look as usize);
        touched.map(std::mem::take).unwrap_or_default()
    }

    /// Whether somebody is touched.
    pub(super) fn is_touched(&self, look: Look) -> bool {
        let touched = self.touched.get(look as usize);
        touched.is_some_and(|touched| !touched.is_empty())
    }

    /// Touches those whose deadline has come, so that they are asked what to do next.
    pub(super) fn touch_due(&mut self, now: Instant) {
        self.refresh();
        let due = self.index.deadlines.iter();
        let due = due.take_while(|(at, _)| *at <= now).map(|(_, id)| *id);
        if let Some(touched) = self.touched.get_mut(Look::Step as usize) {
            touched.extend(due);
        }
    }

    /// The next deadline of any watcher.
    pub(super) fn deadline(&mut self) -> Option<Instant> {
        self.refresh();
        self.index.deadlines.first().map(|(at, _)| *at)
    }

    /// Whose the process with this serial is: a worker that runs, or one that has ended and that
    /// the kernel still lists.
    pub(super) fn owner(&mut self, serial: u64) -> Option<WatcherId> {
        self.refresh();
        self.index.owners.get(&serial).copied()
    }

    /// Whether a watcher that depends on `key` is still on its way down.
    pub(super) fn is_needed(&mut self, key: &str) -> bool {
        self.refresh();
        self.index.going_down.contains_key(key)
    }

    /// `ids`, and those that depend on them or that they depend on.
    fn with_neighbours(&self, ids: BTreeSet<WatcherId>) -> BTreeSet<WatcherId> {
        let mut all = ids.clone();
        for id in ids {
            let Some(watcher) = self.all.get(&id) else {
                continue;
            };
            let config = watcher.config();
            all.extend(self.index.dependents.get(&config.key).into_iter().flatten());
            let needed = config.depends_on.iter();
            all.extend(needed.filter_map(|key| self.index.ids.get(key)).flatten());
        }
        all
    }

    /// Whose gate may be another than before: those touched, and those next to them.
    pub(super) fn take_for_gates(&mut self) -> BTreeSet<WatcherId> {
        self.refresh();
        let touched = self.take(Look::Gate);
        self.with_neighbours(touched)
    }

    /// Whether every watcher is stopped.
    pub(super) fn are_stopped(&mut self) -> bool {
        self.refresh();
        self.index.busy.is_empty()
    }

    /// Whether a worker of any watcher is being started.
    pub(super) fn are_starting(&mut self) -> bool {
        self.refresh();
        !self.index.starting.is_empty()
    }

    /// Whether every watcher that ends with the manager is stopped.
    pub(super) fn leaving_are_stopped(&mut self) -> bool {
        self.refresh();
        self.index.busy_leaving.is_empty()
    }

    /// Counts the times at which a watcher came, went or got other settings.
    pub(super) fn config_changes(&mut self) -> u64 {
        self.refresh();
        self.index.config_changes
    }

    /// Brings the index up to date.
    fn refresh(&mut self) {
        for id in std::mem::take(&mut self.stale) {
            let before = self.index.remove(id);
            let after = self.all.get(&id).map(Indexed::new);
            let same_config = match (&before, &after) {
                (Some(before), Some(after)) => Arc::ptr_eq(&before.config, &after.config),
                _ => false,
            };
            if !same_config {
                self.index.config_changes += 1;
                // Whoever was next to it, or is now, may have to wait for others than before.
                let gone = before.iter().map(|before| &before.config);
                let configs = gone.chain(after.iter().map(|after| &after.config));
                let mut near: BTreeSet<WatcherId> = BTreeSet::new();
                for config in configs {
                    near.extend(self.index.dependents.get(&config.key).into_iter().flatten());
                    for key in &config.depends_on {
                        near.extend(self.index.ids.get(key).into_iter().flatten());
                    }
                }
                for id in near {
                    self.touch_for(Look::Gate, id);
                }
            }
            if let Some(after) = after {
                self.index.insert(id, after);
            }
        }
    }

    /// For tests: whether the index says what a look at every watcher says.
    #[cfg(any(test, debug_assertions))]
    pub(super) fn is_index_right(&mut self) -> bool {
        self.refresh();
        let mut fresh = Index::default();
        for (id, watcher) in &self.all {
            fresh.insert(*id, Indexed::new(watcher));
        }
        let known = &self.index;
        fresh.ids == known.ids
            && fresh.owners == known.owners
            && fresh.deadlines == known.deadlines
            && fresh.dependents == known.dependents
            && fresh.going_down == known.going_down
            && fresh.busy == known.busy
            && fresh.starting == known.starting
            && fresh.busy_leaving == known.busy_leaving
    }
}

/// What is looked up in the table.
#[derive(Debug, Default)]
struct Index {
    known: HashMap<WatcherId, Indexed>,
    /// Numbers by lower-case name.
    ids: HashMap<String, BTreeSet<WatcherId>>,
    /// By serial of a process.
    owners: HashMap<u64, WatcherId>,
    deadlines: BTreeSet<(Instant, WatcherId)>,
    /// By lower-case name: who depends on it.
    dependents: HashMap<String, BTreeSet<WatcherId>>,
    /// The same, of those that are on their way down.
    going_down: HashMap<String, BTreeSet<WatcherId>>,
    /// Watchers that are not stopped.
    busy: HashSet<WatcherId>,
    /// Those of them that end with the manager.
    busy_leaving: HashSet<WatcherId>,
    /// Watchers with a worker that is being started.
    starting: HashSet<WatcherId>,
    config_changes: u64,
}

/// What the index says of one watcher.
#[derive(Debug)]
struct Indexed {
    config: Arc<WatcherConfig>,
    serials: Vec<u64>,
    deadline: Option<Instant>,
    going_down: bool,
    busy: bool,
    starting: bool,
}

impl Indexed {
    fn new(watcher: &Watcher) -> Self {
        let workers = watcher.workers().values();
        let running = workers.filter_map(|worker| Some(worker.process()?.serial));
        Self {
            config: watcher.config().clone(),
            serials: running
                .chain(watcher.kept().ended.iter().copied())
                .collect(),
            deadline: watcher.deadline(),
            going_down: watcher.is_going_down(),
            busy: !watcher.is_stopped(),
            starting: watcher.workers().values().any(Worker::is_starting),
        }
    }
}

impl Index {
    fn insert(&mut self, id: WatcherId, new: Indexed) {
        let config = &new.config;
        self.ids.entry(config.key.clone()).or_default().insert(id);
        self.owners
            .extend(new.serials.iter().map(|serial| (*serial, id)));
        self.deadlines.extend(new.deadline.map(|at| (at, id)));
        for key in &config.depends_on {
            add(&mut self.dependents, key, id);
            if new.going_down {
                add(&mut self.going_down, key, id);
            }
        }
        if new.busy {
            self.busy.insert(id);
            if !config.use_papa {
                self.busy_leaving.insert(id);
            }
        }
        if new.starting {
            self.starting.insert(id);
        }
        self.known.insert(id, new);
    }

    fn remove(&mut self, id: WatcherId) -> Option<Indexed> {
        let old = self.known.remove(&id)?;
        take(&mut self.ids, &old.config.key, id);
        for serial in &old.serials {
            if self.owners.get(serial) == Some(&id) {
                self.owners.remove(serial);
            }
        }
        if let Some(at) = old.deadline {
            self.deadlines.remove(&(at, id));
        }
        for key in &old.config.depends_on {
            take(&mut self.dependents, key, id);
            take(&mut self.going_down, key, id);
        }
        self.busy.remove(&id);
        self.busy_leaving.remove(&id);
        self.starting.remove(&id);
        Some(old)
    }
}

fn add(sets: &mut HashMap<String, BTreeSet<WatcherId>>, key: &str, id: WatcherId) {
    match sets.get_mut(key) {
        Some(set) => {
            set.insert(id);
        }
        None => {
            sets.insert(key.to_owned(), BTreeSet::from([id]));
        }
    }
}

fn take(sets: &mut HashMap<String, BTreeSet<WatcherId>>, key: &str, id: WatcherId) {
    if let Some(set) = sets.get_mut(key) {
        set.remove(&id);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}

#[cfg(test)]
mod tests;
