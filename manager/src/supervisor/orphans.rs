//! Orphans of earlier kernels: shown, waited for, and ended before anything is started in their
//! place.
//!
//! Owns which are known and how far their end has come. Leaves to others: finding and signalling
//! (`orphan`), who waits (`gates`). Reading what thousands of processes say takes longer than the
//! loop may stand still, so a task does it, one look at a time.
//! Invariant: while an orphan of a watcher lives, or the first look at a kernel's orphans is not
//! over, and `orphans` is not `leave`, no worker of that watcher is started.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, Instant};

use papa_protocol::process::Process;
use papa_test_hooks::failpoint;

use crate::config::{OrphanPolicy, WatcherConfig};
use crate::control::message::OrphanStatus;
use crate::mark::{Lineage, Mark};
use crate::orphan::{self, Known, Orphan, Search};
use crate::supervisor::{Event, Supervisor, WatcherId};
use crate::tree;

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
    /// Workers of the kernel we speak to by serial, as the system names them: should it be lost,
    /// they are its orphans.
    workers: BTreeMap<u64, Known>,
    /// Those of kernels that were lost, and those an earlier manager has noted.
    lost: Vec<Known>,
    /// `workers`, `lost` or `found` has changed since it was asked last.
    changed: bool,
    /// When to look; none: there are none.
    look_at: Option<Instant>,
    /// A look is under way: its number, and since when.
    looking: Option<(u64, Instant)>,
    /// Looks so far.
    looks: u64,
    /// Looks that are over.
    looks_done: u64,
    /// Of the kernel we speak to nothing is known yet.
    unknown: bool,
    /// By lower-case watcher name: those of it were asked to end, and are killed then.
    ends: BTreeMap<String, Instant>,
    /// Who was asked to end. What lives on without its parent is asked as well.
    asked: BTreeSet<tree::Identity>,
}

/// What a look does beside looking.
#[derive(Debug)]
struct Look {
    search: Search,
    /// Those that were known before.
    found: Vec<Orphan>,
    /// Who is asked to end, and how.
    asked: Vec<(Orphan, i32)>,
    /// Watchers whose orphans are killed.
    killed: BTreeSet<String>,
    /// Every process is looked at in any case.
    full: bool,
}

impl Look {
    /// Takes as long as reading a few files of each process does. Answers who is there.
    fn run(mut self) -> Vec<Orphan> {
        if !self.asked.is_empty() {
            failpoint::reach("orphan.found");
            for (orphan, signal) in &self.asked {
                orphan.signal(*signal);
            }
            failpoint::reach("orphan.asked");
        }
        if !self.killed.is_empty() {
            self.search.kill_all(&self.killed);
        }
        let known = self.found.len();
        self.found.retain(Orphan::lives);
        // When one is gone it may have forked before.
        if self.full || self.found.len() < known {
            self.found = self.search.run();
        }
        self.found
    }
}

impl Orphans {
    /// Whether earlier kernels' orphans have been looked for.
    pub(super) fn is_known(&self) -> bool {
        !self.unknown
    }

    /// Number of times the orphans that are known were found anew.
    pub(super) fn looks_done(&self) -> u64 {
        self.looks_done
    }

    /// Looks at the next turn.
    pub(super) fn look(&mut self, now: Instant) {
        self.look_at = Some(now);
    }

    /// At another kernel than before.
    pub(super) fn look_anew(&mut self, now: Instant) {
        self.unknown = true;
        self.looking = None;
        self.look(now);
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.look_at.filter(|_| self.looking.is_none())
    }

    /// When a worker started, in ticks since boot, if that is known.
    pub(super) fn started(&self, serial: u64) -> Option<u64> {
        Some(self.workers.get(&serial)?.started)
    }

    /// A worker has ended.
    pub(super) fn forget_worker(&mut self, serial: u64) {
        self.changed |= self.workers.remove(&serial).is_some();
    }

    /// Takes over what an earlier manager has noted: those of them that no kernel has are orphans.
    pub(super) fn recall(&mut self, noted: Vec<Known>) {
        self.changed |= !noted.is_empty();
        self.lost.extend(noted);
    }

    /// Every worker and every orphan.
    pub(super) fn known(&self) -> Vec<Known> {
        let found = self.found.iter().map(Known::from);
        let workers = self.workers.values().cloned();
        let all = workers.chain(self.lost.iter().cloned()).chain(found);
        all.collect()
    }

    /// Whether [`Self::known`] has changed since this was asked last.
    pub(super) fn take_change(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The kernel has nothing but these, and what it was asked for after `known_until`.
    pub(super) fn retain_workers(&mut self, listed: &HashSet<u64>, known_until: u64) {
        let before = self.workers.len();
        self.workers
            .retain(|serial, _| listed.contains(serial) || *serial > known_until);
        self.changed |= self.workers.len() != before;
    }

    /// The kernel is lost with everything it held.
    pub(super) fn lose_workers(&mut self) {
        let workers = std::mem::take(&mut self.workers);
        self.changed = true;
        self.lost.extend(workers.into_values());
        self.lost
            .retain(|known| crate::pidfd::any_lives(&[(known.pid, known.started)]));
    }

    fn of<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a Orphan> {
        self.found
            .iter()
            .filter(move |orphan| orphan.mark.watcher == key)
    }

    fn keys(&self) -> BTreeSet<String> {
        let found = self.found.iter();
        found.map(|orphan| orphan.mark.watcher.clone()).collect()
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
    /// Notes a running worker as the system names it. A process that the kernel has not started is
    /// none of ours, whatever its number.
    pub(super) fn note_worker(&mut self, id: WatcherId, wid: u32, process: &Process) {
        let known = &self.orphans_of_kernels.workers;
        if known.contains_key(&process.serial.0) {
            return;
        }
        let (Some(watcher), Some(lineage)) = (self.watchers.get(&id), self.lineage()) else {
            return;
        };
        let Some(stat) = i32::try_from(process.pid).ok().and_then(tree::stat) else {
            return;
        };
        if !self.kernel_pids().contains(&stat.parent) {
            return;
        }
        let known = Known {
            pid: i32::try_from(process.pid).unwrap_or(0),
            started: stat.started,
            mark: Mark {
                namespace: self.config.namespace.clone(),
                watcher: watcher.config().key.clone(),
                wid,
                lineage,
            },
        };
        let orphans = &mut self.orphans_of_kernels;
        orphans.workers.insert(process.serial.0, known);
        orphans.changed = true;
    }

    /// Looks after the orphans, if it is time.
    pub(super) fn tend_orphans(&mut self, now: Instant) {
        if self.orphans_of_kernels.deadline().is_none_or(|at| now < at) {
            return;
        }
        self.orphans_of_kernels.look_at = None;
        if !self.connection.is_connected() {
            return;
        }
        let Some(lineage) = self.lineage() else {
            // A kernel that does not say which it is: nothing can be told of those before it.
            self.orphans_of_kernels.unknown = false;
            return;
        };
        // Every process is looked at where something may be new: at first, and before a kill.
        let due = self.orphans_of_kernels.ends.values().any(|at| *at <= now);
        let orphans = &self.orphans_of_kernels;
        let full = orphans.unknown || due || orphans.found.is_empty();
        let (asked, killed) = self.orphans_to_end(now);
        let mut search = Search {
            namespace: self.config.namespace.clone(),
            lineage,
            users: self.users(),
            spared: self.kernel_pids(),
            known: self.orphans_of_kernels.lost.clone(),
        };
        let orphans = &mut self.orphans_of_kernels;
        for orphan in &orphans.found {
            search.remember(orphan);
        }
        let look = Look {
            search,
            found: orphans.found.clone(),
            asked,
            killed,
            full,
        };
        orphans.looks += 1;
        let number = orphans.looks;
        orphans.looking = Some((number, now));
        let events = self.events.clone();
        tokio::spawn(async move {
            let known = look.found.clone();
            let found = tokio::task::spawn_blocking(move || look.run()).await;
            let found = found.unwrap_or_else(|error| {
                tracing::error!(%error, "cannot look for orphans of earlier kernels");
                known
            });
            // The loop is gone only when the manager ends.
            let _ = events.send(Event::OrphansFound(number, found)).await;
        });
    }

    /// A look is over.
    pub(super) fn orphans_found(&mut self, number: u64, found: Vec<Orphan>) {
        let now = Instant::now();
        let orphans = &mut self.orphans_of_kernels;
        if orphans.looking.is_none_or(|(latest, _)| latest != number) {
            return;
        }
        orphans.looking = None;
        if std::mem::take(&mut orphans.unknown) {
            // Those that live are among the found.
            orphans.changed |= !orphans.lost.is_empty();
            orphans.lost.clear();
        }
        orphans.changed |= orphans.found != found;
        if found.is_empty() && !orphans.found.is_empty() {
            failpoint::reach("orphan.gone");
        }
        orphans.found = found;
        orphans.looks_done += 1;
        orphans.asked = orphans
            .found
            .iter()
            .map(|orphan| (orphan.pid, orphan.started))
            .filter(|one| orphans.asked.contains(one))
            .collect();
        let keys: BTreeSet<String> = orphans.keys();
        orphans.ends.retain(|key, _| keys.contains(key));
        let is = |key: &String, policy| self.orphan_policy(key) == policy;
        let orphans = &self.orphans_of_kernels;
        let unasked = |orphan: &Orphan| {
            orphan.top
                && !orphans.asked.contains(&(orphan.pid, orphan.started))
                && is(&orphan.mark.watcher, OrphanPolicy::End)
        };
        let look_at = if keys.is_empty() {
            None
        } else if orphans.found.iter().any(unasked) {
            Some(now)
        } else if keys.iter().all(|key| is(key, OrphanPolicy::Leave)) {
            Some(now + LOOK_AT_LEFT)
        } else {
            Some(now + LOOK_AGAIN)
        };
        // Somebody may want another look at once.
        let orphans = &mut self.orphans_of_kernels;
        orphans.look_at = [orphans.look_at, look_at].into_iter().flatten().min();
    }

    /// Who is to be asked to end now and with which signal, and the watchers whose orphans are to
    /// be killed.
    fn orphans_to_end(&mut self, now: Instant) -> (Vec<(Orphan, i32)>, BTreeSet<String>) {
        let mut asked = Vec::new();
        let mut killed = BTreeSet::new();
        for key in self.orphans_of_kernels.keys() {
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
            let of: Vec<Orphan> = self.orphans_of_kernels.of(&key).cloned().collect();
            let orphans = &mut self.orphans_of_kernels;
            if *orphans.ends.entry(key.clone()).or_insert(now + grace) <= now {
                killed.insert(key);
                continue;
            }
            for orphan in orphan::asked_to_end(&of, children) {
                if !orphans.asked.insert((orphan.pid, orphan.started)) {
                    continue;
                }
                tracing::warn!(
                    watcher = key,
                    wid = orphan.mark.wid,
                    pid = orphan.pid,
                    command = orphan.command,
                    "ending an orphan of an earlier kernel"
                );
                asked.push((orphan.clone(), signal));
            }
        }
        (asked, killed)
    }

    /// Kernel and keeper.
    fn kernel_pids(&self) -> Vec<i32> {
        let hello = self.connection.hello().into_iter();
        hello
            .flat_map(|hello| [hello.pid, hello.keeper])
            .filter_map(|pid| i32::try_from(pid).ok())
            .filter(|pid| *pid > 1)
            .collect()
    }

    /// What is done with the orphans of a watcher. Those of watchers that nobody knows any more are
    /// ended with everything else.
    pub(super) fn orphan_policy(&self, key: &str) -> OrphanPolicy {
        if self.ending.is_shutting_down() {
            return OrphanPolicy::End;
        }
        self.config_of(key)
            .map_or(OrphanPolicy::Leave, |config| config.orphans)
    }

    /// Whether the end of everything has orphans to wait for.
    pub(super) fn awaits_orphans(&self, now: Instant) -> bool {
        let orphans = &self.orphans_of_kernels;
        let waits = |orphan: &Orphan| {
            let kill_at = orphans.ends.get(&orphan.mark.watcher);
            kill_at.is_none_or(|kill_at| now < *kill_at + KILLED_PATIENCE)
        };
        let looks = |(_, since): (u64, Instant)| now < since + KILLED_PATIENCE;
        orphans.found.iter().any(waits)
            || orphans.looking.is_some_and(looks)
            || orphans.look_at.is_some_and(|at| at <= now)
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
        let hello = self.connection.hello().filter(|hello| hello.lineage != 0)?;
        Some(Lineage {
            started_us: hello.lineage,
            place: hello.place.clone(),
        })
    }

    /// Users whose processes may be our orphans: anybody can write our mark into the environment of
    /// their own.
    fn users(&self) -> BTreeSet<u32> {
        let watchers = self.watchers.values();
        orphan::users(watchers.filter_map(|watcher| watcher.config().uid.as_ref()))
    }
}
