//! A change of the configuration that its manager did not finish is finished by the next one.
//!
//! Owns what is kept of a change while it is under way, and how a successor takes it up: watchers
//! of the configuration it leads to are as after any start; those that are in the one before alone
//! run on until the others serve, then go, and their sockets after them. What fails leads back to
//! the configuration before, as it would have without us being gone.
//! Leaves to others: the steps (`change`), what is kept of each watcher (`state`).
//! Invariant: the kernel has the way back before the first step is taken, and until the last is.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use papa_config::worker_of;
use papa_protocol::process::Process;

use crate::config::change::{Given, is_added, with_options};
use crate::config::diff::diff;
use crate::config::kept::KeptDocument;
use crate::config::{Config, WatcherConfig, load_kept};
use crate::control::message::PlanReply;
use crate::state::{self, Kept, KeptChange, MAX_CHANGE_BYTES};
use crate::supervisor::change::{Change, Stage};
use crate::supervisor::kernel::with_what_was_set;
use crate::supervisor::{Supervisor, WatcherId, plan};

/// A change that a predecessor began.
#[derive(Debug)]
pub(super) struct Resumed {
    /// What it comes from.
    from: Arc<Config>,
    /// It is being taken back, for this reason.
    undoing: Option<String>,
    /// As [`KeptChange`] has them.
    added: BTreeSet<String>,
    rolls: BTreeMap<String, u64>,
}

impl Resumed {
    /// Reads what was kept. Answers it with the configuration it leads to; `file` is what the file
    /// says now.
    pub(super) fn read(kept: &KeptChange, file: &Arc<Config>) -> Option<(Self, Arc<Config>)> {
        let around = &file.base.around;
        let before = match load_kept(&file.path, around, &kept.before) {
            Ok(mut config) => {
                config.namespace.clone_from(&file.namespace);
                for watcher in &mut config.watchers {
                    if let Some(release) = kept.releases.get(&watcher.key) {
                        watcher.pin(release);
                    }
                }
                Arc::new(config)
            }
            Err(errors) => {
                tracing::error!(%errors, "cannot resume the interrupted reloadconfig: the previous configuration no longer validates");
                return None;
            }
        };
        let undoing = kept.undoing.clone();
        let (from, to) = match undoing {
            None => (before, file.clone()),
            Some(_) => (file.clone(), before),
        };
        let resumed = Self {
            from,
            undoing,
            added: kept.added.clone(),
            rolls: kept.rolls.clone(),
        };
        Some((resumed, to))
    }

    /// Whether a watcher of which this is kept has the workers it had before the change.
    fn has_yet_to_roll(&self, key: &str, kept: Option<&Kept>) -> bool {
        let generation = kept.map_or(0, |kept| kept.generation);
        let rolls = kept.is_some_and(|kept| kept.roll.is_some());
        !rolls && self.rolls.get(key) == Some(&generation)
    }
}

/// Watchers that no file has.
fn added(config: &Config) -> impl Iterator<Item = &WatcherConfig> {
    config.watchers.iter().filter(|watcher| is_added(watcher))
}

/// The configuration with those of `added` that it does not name.
fn with_added(config: &Config, added: &[WatcherConfig]) -> Arc<Config> {
    let mut config = config.clone();
    let mut missing = added.to_vec();
    missing.retain(|watcher| config.watcher(&watcher.name).is_none());
    config.watchers.extend(missing);
    Arc::new(config)
}

impl Supervisor {
    /// Has the kernel keep the way back.
    pub(super) fn keep_change(&mut self, change: &mut Change) {
        let kept = KeptChange {
            undoing: change
                .undoing
                .as_ref()
                .map(|reason| reason.chars().take(state::MAX_MESSAGE_CHARS).collect()),
            before: KeptDocument::of(&change.before.base.document),
            added: added(&change.before)
                .map(|watcher| watcher.key.clone())
                .collect(),
            rolls: change.rolls.clone(),
            releases: change
                .before
                .watchers
                .iter()
                .filter_map(|watcher| Some((watcher.key.clone(), watcher.release()?)))
                .collect(),
        };
        let text = serde_json::to_string(&kept).unwrap_or_default();
        if text.len() > MAX_CHANGE_BYTES {
            let (bytes, limit) = (text.len(), MAX_CHANGE_BYTES);
            tracing::warn!(
                bytes,
                limit,
                "the configuration is too large to be kept while it changes; a manager killed now leaves the change as it is"
            );
            return;
        }
        change.kept = true;
        self.outbox.then();
        self.keep(state::change_value(&self.config.namespace), Some(text));
        self.outbox.then();
    }

    /// It is over.
    pub(super) fn forget_change(&mut self, change: &Change) {
        if change.kept {
            self.outbox.then();
            self.keep(state::change_value(&self.config.namespace), None);
            self.outbox.then();
        }
    }

    /// Every watcher of the configuration, as it was kept; `processes` are those there are.
    pub(super) fn insert_all(
        &mut self,
        kept: &mut BTreeMap<String, Kept>,
        processes: &[Process],
        resumed: Option<&Resumed>,
    ) {
        self.watchers.clear();
        // Those of the same name keep their numbers: they have been told of.
        let mut known = std::mem::take(&mut self.keys);
        let config = self.config.clone();
        for watcher in &config.watchers {
            // One whose workers were not begun to be replaced is as before: so it is known what to
            // return to.
            let before = resumed
                .filter(|resumed| resumed.has_yet_to_roll(&watcher.key, kept.get(&watcher.key)))
                .and_then(|resumed| Some((&resumed.from, resumed.from.watcher(&watcher.name)?)));
            let (base, watcher) = before.unwrap_or((&config, watcher));
            self.insert_kept(base, watcher, &mut known, kept);
        }
        // Those that go with the change run on until it is their turn. One of which there is
        // nothing has gone already.
        let there = processes.iter().filter_map(|process| {
            let (key, _) = worker_of(&config.namespace, &process.name)?;
            Some((key, process.running))
        });
        let there: BTreeSet<(&str, bool)> = there.collect();
        let leaving = resumed.into_iter().flat_map(|resumed| {
            let all = resumed.from.watchers.iter();
            all.map(|watcher| (resumed.from.clone(), watcher))
        });
        for (from, watcher) in leaving {
            let key = watcher.key.as_str();
            let (runs, ended) = (there.contains(&(key, true)), there.contains(&(key, false)));
            let is_kept = match kept.get(key) {
                Some(kept) => kept.removing.is_none(),
                None => runs || ended,
            };
            if !is_kept || self.keys.contains_key(key) {
                continue;
            }
            let is_over = !runs && !kept.contains_key(key);
            let id = self.insert_kept(&from, watcher, &mut known, kept);
            // Its last exit is to be acknowledged still, and nothing of it to be started.
            if let Some(watcher) = self.watchers.get_mut(&id).filter(|_| is_over) {
                watcher.remove();
            }
        }
    }

    /// Finds the settings that watchers return to if the reload they are in fails.
    pub(super) fn know_before_rolls(&mut self, resumed: Option<&Resumed>) {
        for watcher in self.watchers.values_mut() {
            let Some(before) = watcher.before_roll() else {
                continue;
            };
            let given = Given {
                options: &before.set,
                env: before.env.as_ref(),
            };
            let name = &watcher.config().name;
            // A reload that was to take the change there, and failed, returns to where the change
            // is taken back to.
            let from = resumed.filter(|resumed| resumed.undoing.is_none() || watcher.takes_back());
            // One that was added is in none but ours.
            let from = from.map(|resumed| &resumed.from);
            let from = from.filter(|from| from.watcher(name).is_some());
            match with_options(from.unwrap_or(&self.config), name, given) {
                Ok(mut config) => {
                    if let Some(release) = &before.release {
                        config.pin(release);
                    }
                    watcher.set_before_roll(Arc::new(config));
                }
                Err(errors) => {
                    tracing::warn!(watcher = watcher.config().name, %errors, "previous settings unknown; a failed reload of this watcher cannot go back to them");
                }
            }
        }
    }

    fn insert_kept(
        &mut self,
        base: &Config,
        watcher: &WatcherConfig,
        known: &mut HashMap<String, WatcherId>,
        kept: &mut BTreeMap<String, Kept>,
    ) -> WatcherId {
        let kept = kept.remove(&watcher.key).unwrap_or_default();
        let (config, now) = with_what_was_set(base, &Arc::new(watcher.clone()), kept.clone());
        let id = match known.remove(&watcher.key) {
            Some(id) => {
                self.insert_as(id, config, now);
                id
            }
            None => self.insert(config, now),
        };
        self.outbox.tell(id, &kept);
        id
    }

    /// Goes on with a change towards `to`, which is the configuration we have, but for watchers
    /// that were added.
    pub(super) fn resume_change(&mut self, resumed: Resumed, to: &Arc<Config>) {
        let Resumed {
            from,
            undoing,
            added: earlier,
            rolls,
        } = resumed;
        let whole = diff(&from, to);
        let all: Vec<WatcherConfig> = added(&self.config).cloned().collect();
        // Those that were there go with the change, as what no file names does; the others came
        // with it under way, and stay.
        let mut later = all.clone();
        later.retain(|watcher| !earlier.contains(&watcher.key));
        let (to, before) = match undoing {
            Some(_) => (with_added(to, &all), with_added(to, &all)),
            None => (with_added(to, &later), with_added(&from, &all)),
        };
        let watchers = &whole.watchers;
        let changed = watchers.changed.iter().map(|change| &change.name);
        let begun = watchers.added.iter().chain(changed);
        let begun = begun.map(|name| name.to_lowercase()).collect();
        let mut next = self.compare(to.as_ref().clone());
        next.plan.sockets = whole.sockets;
        next.from = from.clone();
        tracing::warn!(
            plan = plan::in_one_line(&next.plan),
            undoing,
            "resuming an interrupted reloadconfig"
        );
        let change = Change {
            asker: None,
            restart: false,
            before,
            kept: true,
            resumed: true,
            has_aside: true,
            begun,
            rolls,
            reply: PlanReply {
                plan: plan::steps(&next.plan, &self.drift(&next)),
                ..PlanReply::default()
            },
            stage: Stage::Reading,
            undoing,
            again: BTreeSet::new(),
        };
        self.change_sockets(change, next);
    }
}
