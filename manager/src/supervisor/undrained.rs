//! Watchers that are gone, and whose workers' last output is still on its way to its files.
//!
//! Owns what is known of them until the kernel has forgotten those workers: a manager that takes over before finds them kept as
//! watchers to be removed, with their streams, and sees to the rest. Leaves to others: everything of a watcher that is there.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use crate::config::WatcherConfig;
use crate::kernel_link::is_logged;
use crate::supervisor::Supervisor;
use crate::watcher::Watcher;

impl Supervisor {
    /// A watcher is gone, and the kernel still lists these workers of it.
    pub(super) fn note_undrained(
        &mut self,
        key: String,
        config: Arc<WatcherConfig>,
        ended: BTreeSet<u64>,
    ) {
        // There may be some of one that had the name before.
        let known = self.undrained.entry(key);
        let (now, serials) = known.or_insert_with(|| (config.clone(), BTreeSet::new()));
        *now = config;
        serials.extend(ended);
    }

    /// Everybody whose output is taken.
    pub(super) fn logged(&self) -> Vec<Arc<WatcherConfig>> {
        let gone = self.undrained.values().map(|(config, _)| config);
        let there = self.watchers.values().map(Watcher::config);
        // One that is there again says where its output goes.
        let gone = gone.filter(|config| !self.keys.contains_key(&config.key));
        there.chain(gone).cloned().collect()
    }

    /// The kernel still has these processes, and no other.
    pub(super) fn keep_undrained(&mut self, listed: &HashSet<u64>) {
        self.drained(|serial| !listed.contains(&serial));
        for (config, serials) in self.undrained.values() {
            for serial in serials {
                // Their exits may have been acknowledged to a kernel that died.
                self.saves.acknowledge(*serial, !is_logged(config));
            }
        }
    }

    /// All output of these processes is where it goes.
    pub(super) fn drained(&mut self, is_done: impl Fn(u64) -> bool) {
        for (_, serials) in self.undrained.values_mut() {
            serials.retain(|serial| !is_done(*serial));
        }
        let done = self.undrained.iter();
        let done = done.filter(|(_, (_, serials))| serials.is_empty());
        let done: Vec<String> = done.map(|(key, _)| key.clone()).collect();
        for key in &done {
            self.undrained.remove(key);
            if !self.keys.contains_key(key) {
                self.forget_kept(key);
            }
        }
        if !done.is_empty() {
            self.update_logs();
        }
    }

    /// Whether a process belonged to one of these watchers.
    pub(super) fn is_undrained(&self, serial: u64) -> bool {
        let mut all = self.undrained.values();
        all.any(|(_, serials)| serials.contains(&serial))
    }
}
