//! The rolling reload: new workers come, are waited for, and only then old ones go; or everything
//! goes back.
//!
//! Owns when a reload begins, when it has succeeded, and how it is undone. Which worker is started
//! or stopped next is `steps`'s: there a reload is no more than workers that are `retiring`.
//! Invariant: while a reload runs, the workers that serve are never fewer than before it but by the
//! one that `sequential` allows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use papa_test_hooks::failpoint;

use crate::config::{Release, WatcherConfig};
use crate::life::{WatcherCell, WatcherEvent};
use crate::state::{KeptBefore, KeptRoll};
use crate::watcher::{Notice, Wanted, Watcher};

/// Without `ready`, a replacement counts as serving once it has run for so long: a command that
/// fails at its start fails within it.
pub(super) const SETTLE: Duration = Duration::from_secs(1);

/// A reload under way.
#[derive(Debug, Clone)]
pub(super) struct Roll {
    /// What was before; none if a predecessor began it and did not say.
    previous: Option<Previous>,
    /// One goes before one comes.
    pub(super) sequential: bool,
}

#[derive(Debug, Clone)]
struct Previous {
    generation: u64,
    config: Arc<WatcherConfig>,
    set: BTreeMap<String, String>,
    env: Option<BTreeMap<String, String>>,
    moved: Option<Release>,
    /// Serials of workers that had other settings then too.
    outdated: BTreeSet<u64>,
}

impl Roll {
    pub(super) fn resumed(kept: &KeptRoll) -> Self {
        Self {
            previous: None,
            sequential: kept.sequential,
        }
    }
}

impl Watcher {
    /// Replaces every worker by one with `config`. Answers false if there was nothing to replace:
    /// then `config` is simply what the next start uses.
    pub fn reload(&mut self, config: Arc<WatcherConfig>, sequential: bool) -> bool {
        let previous = match self.roll.take() {
            // The state to return to is the last that served.
            Some(roll) => roll.previous,
            None => Some(Previous {
                generation: self.kept.generation,
                config: self.config.clone(),
                set: self.kept.set.clone(),
                env: self.kept.env.clone(),
                moved: self.kept.moved.clone(),
                outdated: self.outdated.clone(),
            }),
        };
        self.configure(config);
        self.rolled = Ok(());
        if self.life().on(WatcherEvent::Reload) != WatcherCell::Roll || self.workers.is_empty() {
            self.kept.roll = None;
            return false;
        }
        self.forgive();
        for worker in self.workers.values_mut() {
            worker.retiring = true;
        }
        self.kept.generations = self.kept.generations.saturating_add(1);
        self.kept.generation = self.kept.generations;
        self.kept.roll = Some(KeptRoll {
            to: self.kept.generation,
            sequential,
            takes_back: false,
            before: previous.as_ref().map(|previous| KeptBefore {
                generation: previous.generation,
                set: previous.set.clone(),
                env: previous.env.clone(),
                release: previous.config.release(),
                moved: previous.moved.clone(),
            }),
        });
        self.roll = Some(Roll {
            previous,
            sequential,
        });
        failpoint::reach("reload.decided");
        true
    }

    /// The reload just begun takes a change of the configuration back.
    pub fn note_taking_back(&mut self) {
        if let Some(roll) = &mut self.kept.roll {
            roll.takes_back = true;
        }
    }

    /// Whether a reload under way does so.
    #[must_use]
    pub fn takes_back(&self) -> bool {
        self.kept.roll.as_ref().is_some_and(|roll| roll.takes_back)
    }

    /// What a reload of a predecessor returns to, if there is one and it said so.
    #[must_use]
    pub fn before_roll(&self) -> Option<&KeptBefore> {
        self.kept.roll.as_ref()?.before.as_ref()
    }

    /// The settings that [`Self::before_roll`] stands for.
    pub fn set_before_roll(&mut self, config: Arc<WatcherConfig>) {
        let before = self.before_roll().cloned();
        if let (Some(roll), Some(before)) = (&mut self.roll, before) {
            roll.previous = Some(Previous {
                generation: before.generation,
                config,
                set: before.set,
                env: before.env,
                moved: before.moved,
                outdated: BTreeSet::new(),
            });
        }
    }

    /// The settings a reload under way returns to if it fails, where they are known.
    #[must_use]
    pub fn config_before_roll(&self) -> Option<&Arc<WatcherConfig>> {
        let previous = self.roll.as_ref()?.previous.as_ref()?;
        Some(&previous.config)
    }

    /// A worker found running was started with others than those.
    pub fn mark_outdated_before_roll(&mut self, serial: u64) {
        if let Some(previous) = self.roll.as_mut().and_then(|roll| roll.previous.as_mut()) {
            previous.outdated.insert(serial);
        }
    }

    /// A reload under way, or one that was taken back, replaces workers of this generation.
    pub(super) fn is_rolled_out(&self, generation: u64) -> bool {
        match &self.kept.roll {
            Some(roll) => roll.to != generation,
            // Only workers of a failed reload match; workers without a generation, or of an older
            // one, do not.
            None => self.kept.generation < generation && generation <= self.kept.generations,
        }
    }

    /// Its workers were told to read their configuration anew, which is all of a reload that is to
    /// be done here.
    pub fn refreshed(&mut self) {
        self.rolled = Ok(());
        self.notices.push(Notice::Reloaded);
    }

    /// A reload is under way.
    #[must_use]
    pub fn is_rolling(&self) -> bool {
        self.roll.is_some()
    }

    /// What became of the last reload; `None` while that is open. The error is for people.
    #[must_use]
    pub fn reload_outcome(&self, now: Instant) -> Option<Result<(), String>> {
        if self.roll.is_some() {
            return None;
        }
        match &self.rolled {
            Err(reason) => Some(Err(reason.clone())),
            // Those that were replaced are still ending.
            Ok(()) if self.wanted == Wanted::Running && !self.is_settled() => {
                match self.start_outcome(now) {
                    Some(Err(reason)) => Some(Err(reason)),
                    _ => None,
                }
            }
            Ok(()) => self.start_outcome(now),
        }
    }

    /// It counts as a replacement: what it has to prove is more than that it was started.
    pub(super) fn is_replacing(&self, generation: u64) -> bool {
        let rolled_in = self.roll.is_some() && generation == self.kept.generation;
        rolled_in || self.workers.values().any(|worker| worker.retiring)
    }

    /// A worker with this generation failed before the reload was complete: that decides it. True
    /// if it was so.
    pub(super) fn fail_roll(&mut self, generation: u64, reason: &str) -> bool {
        if generation != self.kept.generation {
            return false;
        }
        let Some(roll) = self.roll.take() else {
            return false;
        };
        self.kept.roll = None;
        let before = roll.previous.as_ref().map(|previous| previous.generation);
        let mut reason = format!("the reload was rolled back: {reason}");
        if before.is_none() {
            // A predecessor began it, and took with it what was before.
            reason.push_str("; what the settings were before is not known, so that new workers get the new ones still");
        }
        if let Some(previous) = roll.previous {
            let failed = self.config.release();
            self.config = previous.config;
            self.kept.release = self.config.release();
            self.kept.moved = previous.moved;
            if let Some(failed) = failed {
                self.note_failed_release(failed);
            }
            self.kept.generation = previous.generation;
            self.kept.set = previous.set;
            self.kept.env = previous.env;
            self.outdated = previous.outdated;
        }
        for worker in self.workers.values_mut() {
            worker.retiring = match before {
                // Those of a reload that this one took the place of go too.
                Some(before) => worker.generation != before,
                // New workers that serve are all there is to go on with.
                None => worker.generation == generation && !worker.is_serving(),
            };
        }
        self.pauses.clear();
        self.keep_pauses();
        tracing::error!(watcher = self.config.name, reason, "rolled back");
        self.rolled = Err(self.with_last_line(reason.clone()));
        self.message = Some(reason.clone());
        self.notices.push(Notice::RolledBack(reason));
        true
    }

    /// Everybody was replaced.
    pub(super) fn complete_roll(&mut self) {
        if self.roll.take().is_some() {
            self.kept.roll = None;
            self.kept.failed_release = None;
            self.rolled = Ok(());
            tracing::info!(watcher = self.config.name, "reloaded");
            self.notices.push(Notice::Reloaded);
            failpoint::reach("reload.closed");
        }
    }

    /// Somebody asked for something else.
    pub(super) fn cancel_roll(&mut self) {
        if self.roll.take().is_some() {
            self.kept.roll = None;
            self.rolled = Err("the reload was given up for a later request".to_owned());
        }
        for worker in self.workers.values_mut() {
            worker.retiring = false;
        }
    }
}
