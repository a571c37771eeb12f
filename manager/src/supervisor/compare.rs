//! What runs, compared with a configuration that may be next.
//!
//! Owns what counts as running: the file's settings with what was set since, and workers that have
//! others still. Pure as far as it goes: nothing is changed. Leaves to others: the difference
//! itself (`config::diff`), what is done about it (`change`).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::change::{Given, with_options};
use crate::config::diff::{Apply, KeyChange, Plan, WatcherChange, diff};
use crate::config::{Config, WatcherConfig};
use crate::supervisor::Supervisor;
use crate::watcher::Watcher;

/// Where a change leads.
#[derive(Debug)]
pub(super) struct Next {
    /// What the sockets are as of now.
    pub(super) from: Arc<Config>,
    /// As the file has it.
    pub(super) config: Config,
    /// With what was set at run time.
    pub(super) effective: Config,
    /// What of that is kept, by lower-case name.
    pub(super) set: BTreeMap<String, Overrides>,
    pub(super) plan: Plan,
}

/// What was set at run time.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Overrides {
    pub(super) options: BTreeMap<String, String>,
    pub(super) env: Option<BTreeMap<String, String>>,
}

impl Supervisor {
    /// Compares what runs with a file.
    pub(super) fn compare(&self, mut config: Config) -> Next {
        // These two hold for the life of the manager; the plan names them.
        let namespace = std::mem::replace(&mut config.namespace, self.config.namespace.clone());
        let mut effective = config.clone();
        let mut set = BTreeMap::new();
        for watcher in &mut effective.watchers {
            let overrides = self.overrides(&config, watcher);
            if overrides != Overrides::default() {
                let given = Given {
                    options: &overrides.options,
                    env: overrides.env.as_ref(),
                };
                match with_options(&config, &watcher.name, given) {
                    Ok(changed) => *watcher = changed,
                    Err(errors) => {
                        tracing::warn!(watcher = watcher.name, %errors, "discarding a setting made at run time that the file no longer allows");
                        continue;
                    }
                }
                set.insert(watcher.key.clone(), overrides);
            }
        }
        let before = self.effective();
        let mut shown = effective.clone();
        shown.namespace = namespace;
        let mut plan = diff(&before, &shown);
        self.plan_outdated(&mut plan, &effective);
        Next {
            from: self.config.clone(),
            plan,
            config,
            effective,
            set,
        }
    }

    /// Workers a predecessor started with other settings are replaced too, although the file has
    /// not changed since we read it.
    fn plan_outdated(&self, plan: &mut Plan, next: &Config) {
        for config in &next.watchers {
            let known = self
                .keys
                .get(&config.key)
                .and_then(|id| self.watchers.get(id));
            let outdated = known.map_or(0, Watcher::outdated);
            if outdated == 0 {
                continue;
            }
            let apply = if config.singleton {
                Apply::Restart
            } else {
                Apply::Roll
            };
            let key = KeyChange {
                key: format!("{outdated} running with settings of an earlier file"),
                old: None,
                new: None,
            };
            let mut changed = plan.watchers.changed.iter_mut();
            match changed.find(|change| change.name.to_lowercase() == config.key) {
                Some(change) => {
                    change.apply = change.apply.max(apply);
                    change.keys.push(key);
                }
                None => plan.watchers.changed.push(WatcherChange {
                    name: config.name.clone(),
                    apply,
                    keys: vec![key],
                    sockets: Vec::new(),
                }),
            }
        }
    }

    /// Workers that have a socket which was replaced just now are replaced too. The plan of a change
    /// that is gone on with does not say so, as the configuration is the one it leads to.
    pub(super) fn plan_users(&self, plan: &mut Plan, next: &Config, replaced: &[String]) {
        for config in &next.watchers {
            let used = config.sockets.iter().chain(&config.stdin_socket);
            let used: Vec<String> = used
                .filter(|name| replaced.contains(name))
                .cloned()
                .collect();
            let known = self.keys.get(&config.key);
            let known = known.and_then(|id| self.watchers.get(id));
            if used.is_empty() || known.is_none_or(|known| known.workers().is_empty()) {
                continue;
            }
            let apply = if config.singleton {
                Apply::Restart
            } else {
                Apply::Roll
            };
            let mut changed = plan.watchers.changed.iter_mut();
            match changed.find(|change| change.name.to_lowercase() == config.key) {
                Some(change) => change.apply = change.apply.max(apply),
                None => plan.watchers.changed.push(WatcherChange {
                    name: config.name.clone(),
                    apply,
                    keys: Vec::new(),
                    sockets: used,
                }),
            }
        }
    }

    /// The configuration that runs: the file's, with what was set since, and without what is
    /// leaving.
    fn effective(&self) -> Config {
        let mut config = self.config.as_ref().clone();
        config.watchers = self
            .by_priority()
            .iter()
            .filter_map(|id| self.watchers.get(id))
            .filter(|watcher| !watcher.is_removed())
            .map(|watcher| watcher.config().as_ref().clone())
            .collect();
        config
    }

    /// What was set at run time and holds still: where the file says something else than it did,
    /// the file is right.
    fn overrides(&self, next: &Config, watcher: &WatcherConfig) -> Overrides {
        let known = self
            .keys
            .get(&watcher.key)
            .and_then(|id| self.watchers.get(id));
        let (Some(known), Some(before), Some(after)) = (
            known,
            self.config.watcher(&watcher.name),
            next.watcher(&watcher.name),
        ) else {
            return Overrides::default();
        };
        let same = |key: &String| before.options.get(key) == after.options.get(key);
        let kept = known.kept();
        Overrides {
            options: kept
                .set
                .iter()
                .filter(|(key, _)| same(key))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            env: kept.env.clone(),
        }
    }
}
