//! Who starts after whom, and stops before whom.
//!
//! Owns what `depends_on` means: a watcher is started when those it depends on serve, and stopped when those that depend on it have
//! stopped. A dependency that goes away later takes nobody with it. Leaves to others: the start and the stop themselves (`watcher`).

use std::collections::{BTreeSet, HashSet};
use std::time::Instant;

use crate::config::OrphanPolicy;
use crate::supervisor::{Supervisor, WatcherId};
use crate::watcher::{Gate, Watcher};

impl Supervisor {
    /// Tells every watcher what it has to wait for. True if that is something else than before for one of them.
    pub(super) fn set_gates(&mut self) -> bool {
        let depends = |watcher: &Watcher| !watcher.config().depends_on.is_empty();
        let any = !self.socket_troubles.is_empty()
            || !self.orphans_of_kernels.is_clear()
            || self.watchers.values().any(depends);
        if !self.gated && !any {
            return false;
        }
        self.gated = any;
        // Looked up once: asking each about each of the others would take long where there are many.
        let needed: HashSet<&String> = self
            .watchers
            .values()
            .filter(|other| other.is_going_down())
            .flat_map(|other| &other.config().depends_on)
            .collect();
        let gates: Vec<(WatcherId, Gate)> = self
            .watchers
            .iter()
            .map(|(id, watcher)| (*id, self.gate_of(watcher, &needed)))
            .collect();
        let mut changed = false;
        for (id, gate) in gates {
            if let Some(watcher) = self.watchers.get_mut(&id) {
                changed |= watcher.set_gate(gate);
            }
        }
        changed
    }

    /// `needed` are those that watchers depend on which are still stopping.
    fn gate_of(&self, watcher: &Watcher, needed: &HashSet<&String>) -> Gate {
        let config = watcher.config();
        let start_after = if watcher.is_coming_up() {
            self.dependencies(watcher)
                .find(|other| !other.is_up() && !other.is_dormant())
                .map(|other| other.config().name.clone())
        } else {
            None
        };
        let stop_later = !watcher.is_running_wanted() && needed.contains(&config.key);
        Gate {
            start_after,
            socket: self.missing_socket(watcher),
            stop_later,
            orphans: self.orphan_hindrance(config),
            orphans_unknown: config.orphans != OrphanPolicy::Leave
                && !self.orphans_of_kernels.is_known(),
        }
    }

    /// The first socket of a watcher that cannot be made, with what is in its way.
    fn missing_socket(&self, watcher: &Watcher) -> Option<String> {
        if self.socket_troubles.is_empty() {
            return None;
        }
        let used = watcher.config().used_sockets();
        let (name, reason) = self
            .socket_troubles
            .iter()
            .find(|(name, _)| used.contains(*name))?;
        Some(format!("socket {name}: {reason}"))
    }

    fn dependencies(&self, watcher: &Watcher) -> impl Iterator<Item = &Watcher> {
        let keys = watcher.config().depends_on.clone();
        keys.into_iter()
            .filter_map(|key| self.watchers.get(self.keys.get(&key)?))
    }

    /// Why a watcher that waits for others will not be started, if that is so.
    pub(super) fn start_hindrance(&self, watcher: &Watcher) -> Option<String> {
        if !watcher.is_coming_up() {
            return None;
        }
        if let Some(socket) = self.missing_socket(watcher) {
            return Some(format!("waits for {socket}"));
        }
        self.dependencies(watcher).find_map(|other| {
            let name = &other.config().name;
            if !other.is_wanted() {
                return Some(format!("waits for {name}, which is stopped"));
            }
            match other.start_outcome(Instant::now()) {
                Some(Err(reason)) => Some(format!("waits for {name}: {reason}")),
                _ => self.start_hindrance(other),
            }
        })
    }

    /// Those watchers, and everything they depend on that is not running.
    pub(super) fn with_dependencies(&self, chosen: &[WatcherId]) -> Vec<WatcherId> {
        let mut all: BTreeSet<WatcherId> = BTreeSet::new();
        let mut open: Vec<WatcherId> = chosen.to_vec();
        while let Some(id) = open.pop() {
            if !all.insert(id) {
                continue;
            }
            let Some(watcher) = self.watchers.get(&id) else {
                continue;
            };
            for key in &watcher.config().depends_on {
                let needed = self.keys.get(key).copied();
                open.extend(needed.filter(|id| {
                    self.watchers
                        .get(id)
                        .is_some_and(|other| !other.is_wanted())
                }));
            }
        }
        all.into_iter().collect()
    }
}
