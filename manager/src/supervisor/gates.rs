//! Who starts after whom, and stops before whom.
//!
//! Owns what `depends_on` means: a watcher is started when those it depends on serve, and stopped
//! when those that depend on it have stopped. A dependency that goes away later takes nobody with
//! it. Leaves to others: the start and the stop themselves (`watcher`).

use std::collections::BTreeSet;
use std::time::Instant;

use crate::config::OrphanPolicy;
use crate::supervisor::sockets::Missing;
use crate::supervisor::{Look, Supervisor, WatcherId};
use crate::watcher::{Gate, Watcher};

/// What may keep any watcher from starting, as it was when gates were last set.
#[derive(Debug, Default)]
pub(super) struct World {
    missing_sockets: Missing,
    orphans_known: bool,
    /// Number of the look that found the orphans.
    orphans_found: u64,
}

impl Supervisor {
    /// Tells watchers what they have to wait for: those that were touched, and those next to them,
    /// or all of them where sockets or orphans are others than before. Whose gate is another than
    /// before is touched.
    pub(super) fn set_gates(&mut self) {
        let same_world = self.gated_by.missing_sockets == *self.sockets.missing()
            && self.gated_by.orphans_known == self.orphans_of_kernels.is_known()
            && self.gated_by.orphans_found == self.orphans_of_kernels.looks_done();
        if !same_world {
            self.gated_by = World {
                missing_sockets: self.sockets.missing().clone(),
                orphans_known: self.orphans_of_kernels.is_known(),
                orphans_found: self.orphans_of_kernels.looks_done(),
            };
            self.watchers.touch_all_for(Look::Gate);
        }
        let touched = self.watchers.take_for_gates();
        for id in touched {
            let Some(gate) = self.gate_of(id) else {
                continue;
            };
            let same = |watcher: &Watcher| *watcher.gate() == gate;
            if !self.watchers.get(&id).is_some_and(same)
                && let Some(watcher) = self.watchers.get_mut(&id)
            {
                watcher.set_gate(gate);
            }
        }
    }

    /// What a watcher has to wait for.
    pub(super) fn gate_of(&mut self, id: WatcherId) -> Option<Gate> {
        let needed = {
            let config = self.watchers.get(&id)?.config().clone();
            self.watchers.is_needed(&config.key)
        };
        let watcher = self.watchers.get(&id)?;
        let config = watcher.config();
        let start_after = if watcher.is_coming_up() {
            self.dependencies(watcher)
                .find(|other| !other.is_up() && !other.is_dormant())
                .map(|other| other.config().name.clone())
        } else {
            None
        };
        let stop_later = !watcher.is_running_wanted() && needed;
        Some(Gate {
            start_after,
            socket: self.missing_socket(watcher),
            stop_later,
            orphans: self.orphan_hindrance(config),
            orphans_unknown: config.orphans != OrphanPolicy::Leave
                && !self.orphans_of_kernels.is_known(),
        })
    }

    /// The first socket of a watcher that cannot be made, with what is in its way.
    fn missing_socket(&self, watcher: &Watcher) -> Option<String> {
        let missing = self.sockets.missing();
        if missing.is_empty() {
            return None;
        }
        missing.first_of(&watcher.config().needed_sockets())
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::supervisor::{Event, testing};

    #[test]
    fn a_watcher_goes_on_when_the_sockets_of_a_fresh_kernel_are_made() {
        let mut supervisor = testing::supervisor(
            "[socket:web]\nport = 0\n[watcher:web]\ncmd = true\nuse_sockets = yes\n",
        );
        let id = supervisor.keys["web"];
        let waits_for = |supervisor: &mut Supervisor| {
            supervisor.set_gates();
            supervisor.watchers.get(&id).unwrap().gate().socket.clone()
        };
        assert_eq!(waits_for(&mut supervisor), None);
        supervisor.sockets.lose();
        let socket = waits_for(&mut supervisor);
        assert_eq!(socket.as_deref(), Some("socket web: it is not made yet"));
        // Nothing else happens that concerns the watcher.
        supervisor.handle(Event::Sockets(BTreeMap::new()));
        assert_eq!(waits_for(&mut supervisor), None);
    }
}
