//! Watchers that are gone, and whose workers' last output is still on its way to its files.
//!
//! Owns what is known of them until the kernel has forgotten those workers: a manager that takes
//! over before finds them kept as watchers to be removed, with their streams, and sees to the rest.
//! Leaves to others: everything of a watcher that is there.
//! Invariant: a name is listed as long as one of its workers is; forgetting a worker costs the same
//! however many there are.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::config::WatcherConfig;
use crate::supervisor::Supervisor;
use crate::watcher::Watcher;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Undrained {
    /// By lower-case name: the settings, and the serials of ended workers the kernel still lists.
    gone: BTreeMap<String, (Arc<WatcherConfig>, BTreeSet<u64>)>,
    /// Whose they are.
    names: HashMap<u64, String>,
}

impl Undrained {
    /// A watcher is gone, and the kernel still lists these workers of it.
    pub(super) fn note(&mut self, config: &Arc<WatcherConfig>, ended: BTreeSet<u64>) {
        let names = ended.iter().map(|serial| (*serial, config.key.clone()));
        self.names.extend(names);
        // There may be some of one that had the name before.
        let known = self.gone.entry(config.key.clone());
        let (now, serials) = known.or_insert_with(|| (config.clone(), BTreeSet::new()));
        *now = config.clone();
        serials.extend(ended);
    }

    /// Whether output of a watcher of this lower-case name is on its way.
    pub(super) fn has(&self, key: &str) -> bool {
        self.gone.contains_key(key)
    }

    /// Whether a process belonged to one of these watchers.
    pub(super) fn has_worker(&self, serial: u64) -> bool {
        self.names.contains_key(&serial)
    }

    /// Their settings.
    pub(super) fn configs(&self) -> impl Iterator<Item = &Arc<WatcherConfig>> {
        self.gone.values().map(|(config, _)| config)
    }

    /// Their workers, each with the settings it had.
    pub(super) fn workers(&self) -> impl Iterator<Item = (u64, &WatcherConfig)> {
        self.gone.values().flat_map(|(config, serials)| {
            let serials = serials.iter();
            serials.map(|serial| (*serial, config.as_ref()))
        })
    }

    /// All output of a worker is where it goes. Answers the watcher's name if it was the last
    /// worker.
    pub(super) fn forget(&mut self, serial: u64) -> Option<String> {
        let key = self.names.remove(&serial)?;
        let (_, serials) = self.gone.get_mut(&key)?;
        serials.remove(&serial);
        if !serials.is_empty() {
            return None;
        }
        self.gone.remove(&key);
        Some(key)
    }

    /// The kernel has no other processes than these. Answers the names of the watchers nothing is
    /// listed of any more.
    pub(super) fn retain(&mut self, listed: &HashSet<u64>) -> Vec<String> {
        let gone = self.names.keys();
        let gone: Vec<u64> = gone
            .filter(|serial| !listed.contains(serial))
            .copied()
            .collect();
        gone.into_iter()
            .filter_map(|serial| self.forget(serial))
            .collect()
    }
}

impl Supervisor {
    /// Everybody whose output is taken.
    pub(super) fn logged(&self) -> Vec<Arc<WatcherConfig>> {
        let there = self.watchers.values().map(Watcher::config);
        // One that is there again says where its output goes.
        let gone = self.undrained.configs();
        let gone = gone.filter(|config| !self.keys.contains_key(&config.key));
        there.chain(gone).cloned().collect()
    }

    /// The kernel still has these processes, and no other.
    pub(super) fn keep_undrained(&mut self, listed: &HashSet<u64>) {
        let done = self.undrained.retain(listed);
        self.drained(&done);
        for (serial, config) in self.undrained.workers() {
            // Their exits may have been acknowledged to a kernel that died.
            self.outbox.acknowledge(serial, !config.is_logged());
        }
    }

    /// All output of the watchers of these names is where it goes.
    pub(super) fn drained(&mut self, done: &[String]) {
        for key in done {
            if !self.keys.contains_key(key) {
                self.forget_kept(key);
            }
        }
        if !done.is_empty() {
            self.output.outdate();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Surroundings, load};

    fn config(name: &str) -> Arc<WatcherConfig> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("test.ini");
        std::fs::write(&path, format!("[watcher:{name}]\ncmd = true\n")).unwrap();
        let config = load(&path, &Surroundings::current().unwrap()).unwrap();
        Arc::new(config.watchers[0].clone())
    }

    #[test]
    fn a_watcher_is_listed_until_its_last_worker_is_forgotten() {
        let mut undrained = Undrained::default();
        undrained.note(&config("Web"), BTreeSet::from([3, 4]));
        assert!(undrained.has("web") && undrained.has_worker(3));
        assert_eq!(undrained.forget(3), None);
        assert!(undrained.has("web") && !undrained.has_worker(3));
        assert_eq!(undrained.forget(4), Some("web".to_owned()));
        assert!(!undrained.has("web"));
        assert_eq!(undrained.forget(4), None, "it is forgotten once");
    }

    #[test]
    fn one_that_comes_and_goes_again_adds_to_what_is_on_its_way() {
        let mut undrained = Undrained::default();
        undrained.note(&config("web"), BTreeSet::from([3]));
        let newer = config("web");
        undrained.note(&newer, BTreeSet::from([9]));
        assert!(undrained.configs().all(|known| Arc::ptr_eq(known, &newer)));
        let serials: Vec<u64> = undrained.workers().map(|(serial, _)| serial).collect();
        assert_eq!(serials, [3, 9]);
    }

    #[test]
    fn what_the_kernel_does_not_list_any_more_is_done() {
        let mut undrained = Undrained::default();
        undrained.note(&config("web"), BTreeSet::from([3, 4]));
        undrained.note(&config("db"), BTreeSet::from([5]));
        assert_eq!(undrained.retain(&HashSet::from([4])), ["db"]);
        assert_eq!(undrained.retain(&HashSet::new()), ["web"]);
        assert_eq!(undrained.workers().count(), 0);
    }
}
