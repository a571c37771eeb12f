//! Orphans of earlier kernels: shown, waited for, and ended before anything is started in their place.
//!
//! Owns which are known and how far their end has come. Leaves to others: finding and signalling (`orphan`), who waits (`gates`).
//! Invariant: while an orphan of a watcher lives and `orphans` is not `leave`, no worker of that watcher is started.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::config::{OrphanPolicy, WatcherConfig};
use crate::control::message::OrphanStatus;
use crate::mark::Lineage;
use crate::orphan::{self, Orphan, Search};
use crate::supervisor::{Phase, Supervisor, tasks};

/// From one look at known orphans to the next.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// The same where nobody waits for them.
const LOOK_AT_LEFT: Duration = Duration::from_secs(2);
/// How long after SIGKILL the end of the manager waits for those that the system does not let die.
const KILLED_PATIENCE: Duration = Duration::from_secs(5);
/// How long orphans of a watcher nobody knows any more have to end.
const UNKNOWN_GRACE: Duration = Duration::from_secs(30);
/// Most orphans told one by one.
const MAX_TOLD: usize = 5;

/// The orphans known, and how far their end has come.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    found: Vec<Orphan>,
    /// When to look; none: there are none.
    look_at: Option<Instant>,
    /// By lower-case watcher name: those of it were asked to end, and are killed then.
    ends: BTreeMap<String, Instant>,
}

impl Orphans {
    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Looks at the next turn.
    pub(super) fn look(&mut self, now: Instant) {
        self.look_at = Some(now);
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.look_at
    }

    fn of<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a Orphan> {
        self.found
            .iter()
            .filter(move |orphan| orphan.mark.watcher == key)
    }

    /// What people are told of a watcher's orphans; none if it has none.
    pub(super) fn told(&self, key: &str, policy: OrphanPolicy) -> Option<String> {
        let tops: Vec<&Orphan> = self.of(key).filter(|orphan| orphan.top).collect();
        if tops.is_empty() {
            return None;
        }
        let mut all: Vec<String> = tops
            .iter()
            .take(MAX_TOLD)
            .map(|orphan| format!("pid {} ({} s old)", orphan.pid, orphan.age.as_secs()))
            .collect();
        if let Some(more) = tops.len().checked_sub(MAX_TOLD).filter(|more| *more > 0) {
            all.push(format!("{more} more"));
        }
        let all = all.join(", ");
        Some(match policy {
            OrphanPolicy::End => format!("waits for orphans of an earlier kernel to end: {all}"),
            OrphanPolicy::Wait => format!(
                "waits for orphans of an earlier kernel to end by themselves (orphans = wait): {all}"
            ),
            OrphanPolicy::Leave => format!(
                "orphans of an earlier kernel run beside its workers (orphans = leave): {all}"
            ),
        })
    }

    /// The same, for `status`.
    pub(super) fn statuses(&self, key: &str) -> Vec<OrphanStatus> {
        self.of(key)
            .filter(|orphan| orphan.top)
            .map(|orphan| OrphanStatus {
                wid: orphan.mark.wid,
                pid: orphan.pid.unsigned_abs(),
                age: orphan.age.as_secs(),
                command: orphan.command.clone(),
            })
            .collect()
    }

    /// Every orphan, for `doctor`.
    pub(super) fn all(&self) -> impl Iterator<Item = &Orphan> {
        self.found.iter().filter(|orphan| orphan.top)
    }
}

impl Supervisor {
    /// Looks after the orphans, if it is time.
    pub(super) fn tend_orphans(&mut self, now: Instant) {
        if self.orphans_of_kernels.look_at.is_none_or(|at| now < at) {
            return;
        }
        let Some(lineage) = self.lineage().filter(|_| self.connected()) else {
            self.orphans_of_kernels.look_at = None;
            return;
        };
        let known = self.orphans_of_kernels.found.len();
        let due = self.orphans_of_kernels.ends.values().any(|at| *at <= now);
        self.orphans_of_kernels.found.retain(Orphan::lives);
        // A full look where something may be new: at first, when one is gone (it may have forked before), and before a kill.
        if known == 0 || due || self.orphans_of_kernels.found.len() < known {
            let found = self.search(&lineage, |search| search.run());
            self.orphans_of_kernels.found = found;
        }
        self.end_orphans(now, &lineage);
        let waited = self
            .orphans_of_kernels
            .found
            .iter()
            .any(|orphan| self.orphan_policy(&orphan.mark.watcher) != OrphanPolicy::Leave);
        self.orphans_of_kernels.look_at = match (self.orphans_of_kernels.is_empty(), waited) {
            (true, _) => None,
            (false, true) => Some(now + LOOK_AGAIN),
            (false, false) => Some(now + LOOK_AT_LEFT),
        };
    }

    fn end_orphans(&mut self, now: Instant, lineage: &Lineage) {
        let keys: BTreeSet<String> = self
            .orphans_of_kernels
            .found
            .iter()
            .map(|orphan| orphan.mark.watcher.clone())
            .collect();
        self.orphans_of_kernels
            .ends
            .retain(|key, _| keys.contains(key));
        for key in keys {
            if self.orphan_policy(&key) != OrphanPolicy::End {
                continue;
            }
            let config = self.config_of(&key);
            let (signal, children, grace) =
                config.map_or((nix::libc::SIGTERM, false, UNKNOWN_GRACE), |config| {
                    (
                        config.stop_signal.number(),
                        config.stop_children,
                        config.graceful_timeout,
                    )
                });
            let orphans: Vec<Orphan> = self.orphans_of_kernels.of(&key).cloned().collect();
            match self.orphans_of_kernels.ends.get(&key) {
                None => {
                    self.orphans_of_kernels
                        .ends
                        .insert(key.clone(), now + grace);
                    for orphan in orphans.iter().filter(|orphan| orphan.top) {
                        tracing::warn!(
                            watcher = key,
                            wid = orphan.mark.wid,
                            pid = orphan.pid,
                            command = orphan.command,
                            "ending an orphan of an earlier kernel"
                        );
                        orphan.signal(signal, tasks::stop_reach(children));
                    }
                }
                Some(kill_at) if *kill_at <= now => {
                    self.search(lineage, |search| search.kill_all(&key));
                }
                Some(_) => {}
            }
        }
    }

    fn search<T>(&self, lineage: &Lineage, act: impl FnOnce(&Search<'_>) -> T) -> T {
        let hello = self.kernel.as_ref();
        let spared: Vec<i32> = hello
            .into_iter()
            .flat_map(|hello| [hello.pid, hello.keeper])
            .filter_map(|pid| i32::try_from(pid).ok())
            .collect();
        act(&Search {
            namespace: &self.config.namespace,
            lineage,
            users: &self.users(),
            spared: &spared,
        })
    }

    /// What is done with the orphans of a watcher. Those of watchers that nobody knows any more are ended with everything else.
    pub(super) fn orphan_policy(&self, key: &str) -> OrphanPolicy {
        if matches!(self.phase, Phase::ShuttingDown { .. }) {
            return OrphanPolicy::End;
        }
        self.config_of(key)
            .map_or(OrphanPolicy::Leave, |config| config.orphans)
    }

    /// Whether the end of everything has orphans to wait for.
    pub(super) fn awaits_orphans(&self, now: Instant) -> bool {
        let ends = &self.orphans_of_kernels.ends;
        self.orphans_of_kernels.found.iter().any(|orphan| {
            ends.get(&orphan.mark.watcher)
                .is_none_or(|kill_at| now < *kill_at + KILLED_PATIENCE)
        }) || self.orphans_of_kernels.look_at.is_some_and(|at| at <= now)
    }

    /// Why no worker of this watcher may be started because of orphans.
    pub(super) fn orphan_hindrance(&self, config: &WatcherConfig) -> Option<String> {
        if config.orphans == OrphanPolicy::Leave {
            return None;
        }
        self.orphans_of_kernels.told(&config.key, config.orphans)
    }

    fn config_of(&self, key: &str) -> Option<&WatcherConfig> {
        let watcher = self.watchers.get(self.keys.get(key)?)?;
        Some(watcher.config().as_ref())
    }

    fn lineage(&self) -> Option<Lineage> {
        let hello = self.kernel.as_ref().filter(|hello| hello.lineage != 0)?;
        Some(Lineage {
            started_us: hello.lineage,
            place: hello.place.clone(),
        })
    }

    /// Users whose processes may be our orphans: anybody can write our mark into the environment of their own.
    fn users(&self) -> BTreeSet<u32> {
        let watchers = self.watchers.values();
        orphan::users(watchers.filter_map(|watcher| watcher.config().uid.as_ref()))
    }
}
