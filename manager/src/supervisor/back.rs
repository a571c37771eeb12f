//! The kernel is back after its death: what was on its way to it then may not have arrived.
//!
//! Owns which values another kernel is told anew; what is kept of each watcher goes with every turn
//! anyway, what it did not answer is in the queue of saves still, and requests that change anything
//! else are asked again by their tasks. Leaves to others: the processes (`kernel`).

use crate::config::WatcherConfig;
use crate::config::change::is_added;
use crate::kernel_link::Inventory;
use crate::state::{self, Added};
use crate::supervisor::Supervisor;

impl Supervisor {
    /// The kernel that is back has told what it has, after the reconnection with this number.
    pub(super) fn listed(&mut self, reconnection: u64, inventory: Inventory) {
        if !self.connection.listed(reconnection) {
            tracing::debug!("the list of an earlier connection comes too late; passing it over");
            return;
        }
        self.keep_again(&inventory);
        self.settle_umask(inventory.umask);
        self.dead.set_words(inventory.words);
        self.reconcile(inventory.processes);
        self.dead.forget_words();
        self.ask_early();
    }

    /// Takes over the mask a predecessor has kept for workers, or keeps ours for successors.
    /// Without it, a manager that somebody starts from another shell would give new workers other
    /// file modes than their siblings have.
    pub(super) fn settle_umask(&mut self, kept: Option<u32>) {
        if let Some(kept) = kept {
            self.startup.umask = Some(kept);
        } else if let Some(mask) = self.startup.umask {
            let name = state::umask_value(&self.config.namespace);
            self.keep(name, Some(format!("{mask:03o}")));
        }
        if let Some(link) = self.connection.link_mut() {
            link.set_umask(self.startup.umask);
        }
    }

    fn keep_again(&mut self, inventory: &Inventory) {
        let config = self.config.clone();
        for watcher in config.watchers.iter().filter(|known| is_added(known)) {
            if !inventory.added.contains_key(&watcher.key) && self.keys.contains_key(&watcher.key) {
                self.keep_added(&watcher.key, &as_added(watcher));
            }
        }
        if let Some(mut change) = self.change.take_if(|change| change.kept) {
            self.keep_change(&mut change);
            self.change = Some(change);
        } else if inventory.change.is_some() {
            // One that is over; another may be about to begin.
            self.keep(state::change_value(&config.namespace), None);
        }
    }

    /// Has the kernel keep what describes a watcher that no file has.
    pub(super) fn keep_added(&mut self, key: &str, added: &Added) {
        let name = state::added_value(&self.config.namespace, key);
        self.keep(name, serde_json::to_string(added).ok());
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
