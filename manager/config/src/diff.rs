//! Compares two configurations and says how each difference is applied.
//!
//! Owns the comparison and how each difference is applied: in place, by a rolling reload, or by
//! stopping and starting where two generations cannot be there at once. Pure: nothing is changed,
//! and what was set at run time is the caller's. Resolved values are compared, so that writing a
//! default down is no difference. Values of environment variables may be secrets and are never part
//! of it.
//! Invariant: equal configurations give an empty plan; a worker is replaced only if what it was
//! started with differs.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::facets::{self, Facet};
pub use crate::known::Apply;
use crate::types::{Config, SocketConfig, WatcherConfig};

/// What changes from one configuration to another.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Plan {
    /// Keys of `[circus]` that take effect when the manager is restarted.
    pub manager: Vec<KeyChange>,
    /// Keys of `[circus]` that take effect at once.
    pub settings: Vec<KeyChange>,
    /// `[socket:NAME]`.
    pub sockets: SocketChanges,
    /// `[watcher:NAME]`.
    pub watchers: WatcherChanges,
}

/// What happens to sockets, by name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct SocketChanges {
    /// Opened.
    pub added: Vec<String>,
    /// Closed.
    pub removed: Vec<String>,
    /// In both configurations and different.
    pub changed: Vec<SocketChange>,
}

/// What happens to watchers, by name as written.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct WatcherChanges {
    /// Made, and started if they start with the manager.
    pub added: Vec<String>,
    /// Stopped and forgotten.
    pub removed: Vec<String>,
    /// In both configurations and different, in start order.
    pub changed: Vec<WatcherChange>,
}

/// A socket in both configurations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SocketChange {
    /// Lower case.
    pub name: String,
    /// It is closed and opened again.
    pub recreated: bool,
    /// What differs.
    pub keys: Vec<KeyChange>,
}

/// A watcher in both configurations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WatcherChange {
    /// As written in the new configuration.
    pub name: String,
    /// How it comes into force.
    pub apply: Apply,
    /// What differs.
    pub keys: Vec<KeyChange>,
    /// Sockets it holds or needs that are added, removed or changed.
    pub sockets: Vec<String>,
}

/// One key with different values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyChange {
    /// As in a file; `env.NAME` for a variable.
    pub key: String,
    /// The value before; none if it is not to be shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old: Option<String>,
    /// The value after; none if it is not to be shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new: Option<String>,
}

impl Plan {
    /// Nothing is different.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What happens to the watcher called `key`, lower case, if it is in both and different.
    #[must_use]
    pub fn watcher(&self, key: &str) -> Option<&WatcherChange> {
        let mut changed = self.watchers.changed.iter();
        changed.find(|change| change.name.to_lowercase() == key)
    }
}

/// Compares `old` with `new`.
#[must_use]
pub fn diff(old: &Config, new: &Config) -> Plan {
    let sockets = sockets(&old.sockets, &new.sockets);
    let added = new
        .watchers
        .iter()
        .filter(|watcher| old.watcher(&watcher.key).is_none());
    let removed = old
        .watchers
        .iter()
        .filter(|watcher| new.watcher(&watcher.key).is_none());
    let changed = new.watchers.iter().filter_map(|watcher| {
        let before = old.watcher(&watcher.key)?;
        changed_watcher(before, watcher, &sockets)
    });
    Plan {
        manager: keys(&facets::of_manager(old), &facets::of_manager(new)),
        settings: keys(&facets::of_settings(old), &facets::of_settings(new)),
        watchers: WatcherChanges {
            added: added.map(|watcher| watcher.name.clone()).collect(),
            removed: removed.map(|watcher| watcher.name.clone()).collect(),
            changed: changed.collect(),
        },
        sockets,
    }
}

/// Compares two versions of one watcher whose sockets stay, as `set` needs it; none if nothing
/// differs.
#[must_use]
pub fn diff_watcher(old: &WatcherConfig, new: &WatcherConfig) -> Option<WatcherChange> {
    changed_watcher(old, new, &SocketChanges::default())
}

fn sockets(old: &[SocketConfig], new: &[SocketConfig]) -> SocketChanges {
    let find =
        |all: &[SocketConfig], name: &str| all.iter().find(|socket| socket.name == name).cloned();
    let names = |some: &[SocketConfig], others: &[SocketConfig]| {
        some.iter()
            .filter(|socket| find(others, &socket.name).is_none())
            .map(|socket| socket.name.clone())
            .collect()
    };
    let changed = new.iter().filter_map(|socket| {
        let before = facets::of_socket(&find(old, &socket.name)?);
        let after = facets::of_socket(socket);
        let changed = keys(&before, &after);
        (!changed.is_empty()).then(|| SocketChange {
            name: socket.name.clone(),
            recreated: worst(&before, &after) != Apply::InPlace,
            keys: changed,
        })
    });
    SocketChanges {
        added: names(new, old),
        removed: names(old, new),
        changed: changed.collect(),
    }
}

fn changed_watcher(
    old: &WatcherConfig,
    new: &WatcherConfig,
    sockets: &SocketChanges,
) -> Option<WatcherChange> {
    let (before, after) = (facets::of_watcher(old), facets::of_watcher(new));
    let mut keys = keys(&before, &after);
    let touched = touched_sockets(old, new, sockets);
    if keys.is_empty() && touched.is_empty() {
        return None;
    }
    let mut apply = worst(&before, &after);
    if !touched.is_empty() {
        apply = apply.max(Apply::Roll);
    }
    if apply == Apply::Roll && (old.singleton || new.singleton) {
        apply = Apply::Restart;
    }
    keys.sort_by(|a, b| a.key.cmp(&b.key));
    Some(WatcherChange {
        name: new.name.clone(),
        apply,
        keys,
        sockets: touched,
    })
}

/// Sockets whose change requires new workers. A socket that is removed stays open while a worker
/// has it, and its connections would wait for nobody. A new socket matters only to its servers.
fn touched_sockets(
    old: &WatcherConfig,
    new: &WatcherConfig,
    sockets: &SocketChanges,
) -> Vec<String> {
    let held: BTreeSet<&String> = old.sockets.iter().chain(&old.stdin_socket).collect();
    let gone = sockets.removed.iter().chain(
        sockets
            .changed
            .iter()
            .filter(|change| change.recreated)
            .map(|change| &change.name),
    );
    let wanted = new.demand_sockets();
    let mut touched: BTreeSet<String> = gone.filter(|name| held.contains(name)).cloned().collect();
    touched.extend(
        sockets
            .added
            .iter()
            .filter(|name| wanted.contains(name))
            .cloned(),
    );
    touched.into_iter().collect()
}

/// The keys that differ. A facet may be missing on one side.
fn keys(old: &[Facet], new: &[Facet]) -> Vec<KeyChange> {
    pairs(old, new)
        .filter(|(old, new)| differ(*old, *new))
        .map(|(old, new)| {
            let facet = old.or(new);
            let value = |side: Option<&Facet>| {
                let side = side.map_or(String::new(), |facet| facet.value.clone());
                facet.filter(|facet| !facet.secret).map(|_| side)
            };
            KeyChange {
                key: facet.map_or(String::new(), |facet| facet.key.clone()),
                old: value(old),
                new: value(new),
            }
        })
        .collect()
}

/// The most disruptive way in which one of the differing facets is applied.
fn worst(old: &[Facet], new: &[Facet]) -> Apply {
    pairs(old, new)
        .filter(|(old, new)| differ(*old, *new))
        .flat_map(|(old, new)| [old, new])
        .flatten()
        .map(|facet| facet.apply)
        .max()
        .unwrap_or(Apply::InPlace)
}

fn differ(old: Option<&Facet>, new: Option<&Facet>) -> bool {
    old.map(|facet| &facet.value) != new.map(|facet| &facet.value)
}

type Pair<'a> = (Option<&'a Facet>, Option<&'a Facet>);

/// The facets of both sides by key.
fn pairs<'a>(old: &'a [Facet], new: &'a [Facet]) -> impl Iterator<Item = Pair<'a>> {
    let find = |all: &'a [Facet], key: &str| all.iter().find(|facet| facet.key == key);
    let only_new = new
        .iter()
        .filter(move |facet| find(old, &facet.key).is_none());
    old.iter()
        .map(move |facet| (Some(facet), find(new, &facet.key)))
        .chain(only_new.map(|facet| (None, Some(facet))))
}

#[cfg(test)]
mod tests;
