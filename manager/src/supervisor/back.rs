//! The kernel is back after its death: what was on its way to it then may not have arrived.
//!
//! Owns which values are kept or forgotten once more; what is kept of each watcher goes with every turn anyway, and requests that change
//! anything else are asked again by their tasks. Leaves to others: the processes (`kernel`).

use crate::config::WatcherConfig;
use crate::config::change::is_added;
use crate::kernel_link::Inventory;
use crate::state::{self, Added};
use crate::supervisor::{Supervisor, tasks};

/// Watchers that went since the last connection was made of which this is known; of more, some come back with the next manager if the
/// kernel dies in the moment in which they go.
const MAX_FORGOTTEN: usize = 1024;

impl Supervisor {
    /// Nothing is to be known of a watcher any more.
    pub(super) fn forget_kept(&mut self, key: String) {
        if let Some(link) = &self.link {
            tasks::forget(link.clone(), key.clone());
        }
        if self.forgotten.len() >= MAX_FORGOTTEN {
            self.forgotten.pop_first();
        }
        self.forgotten.insert(key);
    }

    /// The kernel that is back has told what it has.
    pub(super) fn listed(&mut self, inventory: Inventory) {
        self.keep_again(&inventory);
        self.settle_umask(inventory.umask);
        self.reconcile(inventory.processes);
        self.ask_early();
    }

    /// Takes over the mask a predecessor has kept for workers, or keeps ours for successors. Without it, a manager that somebody starts
    /// from another shell would give new workers other file modes than their siblings have.
    pub(super) fn settle_umask(&mut self, kept: Option<u32>) {
        let Some(link) = &mut self.link else {
            return;
        };
        if let Some(kept) = kept {
            self.umask = Some(kept);
        } else if let Some(mask) = self.umask {
            let name = state::umask_value(link.namespace());
            tasks::keep_own(link.clone(), name, Some(format!("{mask:03o}")));
        }
        link.set_umask(self.umask);
    }

    fn keep_again(&mut self, inventory: &Inventory) {
        let Some(link) = self.link.clone() else {
            return;
        };
        if self.is_cleaning_up() {
            return;
        }
        for key in std::mem::take(&mut self.forgotten) {
            let known = inventory.kept.contains_key(&key) || inventory.added.contains_key(&key);
            if known && !self.keys.contains_key(&key) {
                tasks::forget(link.clone(), key.clone());
                self.forgotten.insert(key);
            }
        }
        for watcher in self.config.watchers.iter().filter(|known| is_added(known)) {
            if !inventory.added.contains_key(&watcher.key) && self.keys.contains_key(&watcher.key) {
                tasks::keep_added(link.clone(), watcher.key.clone(), as_added(watcher));
            }
        }
        if let Some(mut change) = self.change.take_if(|change| change.kept) {
            self.keep_change(&mut change);
            self.change = Some(change);
        } else if inventory.change.is_some() {
            // One that is over; another may be about to begin.
            let name = state::change_value(link.namespace());
            tasks::keep_own(link, name, None);
        }
    }
}

/// What describes a watcher that no file has.
fn as_added(watcher: &WatcherConfig) -> Added {
    let options = watcher.entries.iter();
    Added {
        name: watcher.name.clone(),
        options: options
            .map(|entry| (entry.key.clone(), entry.value.clone()))
            .collect(),
        env: watcher.env_given.clone(),
    }
}
