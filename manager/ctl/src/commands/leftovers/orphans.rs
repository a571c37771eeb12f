//! Ending the orphans that a lost kernel has left.
//!
//! Owns the order: search, send stop signals once each, kill when a grace period is over, search
//! again for what was started meanwhile. Finding and signalling are `papa_processes::orphan`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use papa_client::Address;
use papa_config::Config;
use papa_processes::mark::{Lineage, Mark};
use papa_processes::orphan::{self, Known, Orphan, Search};
use papa_processes::pidfd::Whom;
use papa_processes::tree;

use super::task::{Ended, KILLED_PATIENCE, LOOK_AGAIN, Manner, Task, left};

/// From one kill of what survives it to the next.
const KILL_AGAIN: Duration = Duration::from_secs(1);
/// Ends the orphans that kernels at these places have left; `spared` are the processes of one that
/// lives.
pub(super) fn end_orphans(task: &Task<'_>, noted: &[Known], spared: &[i32], ended: &mut Ended) {
    for place in places(task.addresses) {
        let lineage = Lineage {
            started_us: 0,
            place,
        };
        let search = Search {
            namespace: task.namespace.to_owned(),
            known: known(task, noted, &lineage),
            lineage,
            users: users(task.config),
            spared: spared.to_vec(),
        };
        end_found(task, search, ended);
    }
}

fn end_found(task: &Task<'_>, mut search: Search, ended: &mut Ended) {
    let found = search.run();
    let manner = |key: &str| Manner::of(task.config.and_then(|config| config.watcher(key)));
    let begun = Instant::now();
    let mut open: BTreeMap<String, Instant> = BTreeMap::new();
    for orphan in &found {
        search.remember(orphan);
        let key = &orphan.mark.watcher;
        open.insert(key.clone(), begun + manner(key).grace);
    }
    let mut kill_at = open.clone();
    let mut seen = found.clone();
    let mut asked: BTreeSet<tree::Identity> = BTreeSet::new();
    while !open.is_empty() {
        let now = Instant::now();
        for key in open.keys() {
            ask_once(&seen, key, manner(key), &mut asked);
        }
        let due = kill_at.iter().filter(|(_, at)| **at <= now);
        let due: BTreeSet<String> = due.map(|(key, _)| key.clone()).collect();
        if !due.is_empty() {
            search.kill_all(&due);
            kill_at.retain(|key, _| open.contains_key(key));
            for key in due {
                kill_at.insert(key, now + KILL_AGAIN);
            }
        }
        let lived = seen.len();
        seen.retain(Orphan::lives);
        if seen.len() < lived {
            // What they started meanwhile.
            seen = search.run();
            for orphan in &seen {
                search.remember(orphan);
            }
        }
        open.retain(|key, grace_ends| {
            let over = now >= task.deadline.min(*grace_ends + KILLED_PATIENCE);
            !over && seen.iter().any(|orphan| orphan.mark.watcher == *key)
        });
        kill_at.retain(|key, _| open.contains_key(key));
        if !open.is_empty() {
            thread::sleep(LOOK_AGAIN);
        }
    }
    for orphan in found.iter().filter(|orphan| orphan.top) {
        if !orphan.lives() {
            ended.said.push(format!(
                "orphan of {}, worker {}, pid {} ({}): ended",
                orphan.mark.watcher, orphan.mark.wid, orphan.pid, orphan.command
            ));
        }
    }
    let left = search.run();
    let left = left
        .iter()
        .filter_map(|orphan| left_of(&orphan.mark, orphan));
    ended.left.extend(left);
}

/// Sends the orphans of the watcher `key` their stop signal, once each. What lives on without its
/// parent is asked as well.
fn ask_once(seen: &[Orphan], key: &str, manner: Manner, asked: &mut BTreeSet<tree::Identity>) {
    let mut of = seen.to_vec();
    of.retain(|orphan| orphan.mark.watcher == key);
    for orphan in orphan::asked_to_end(&of, manner.whom == Whom::WorkerAndChildren) {
        if asked.insert((orphan.pid, orphan.started)) {
            orphan.signal(manner.signal);
        }
    }
}

/// The workers that a manager knew when it lost its kernel, or had noted before it ended.
fn known(task: &Task<'_>, noted: &[Known], lineage: &Lineage) -> Vec<Known> {
    let all = task.known.iter().flat_map(|watcher| {
        let key = watcher.name.to_lowercase();
        let workers = watcher.workers.iter();
        workers.filter_map(move |worker| {
            Some(Known {
                pid: i32::try_from(worker.pid).ok()?,
                started: worker.started_ticks?,
                mark: Mark {
                    namespace: task.namespace.to_owned(),
                    watcher: key.clone(),
                    wid: worker.wid,
                    lineage: lineage.clone(),
                },
            })
        })
    });
    all.chain(noted.iter().cloned()).collect()
}

fn left_of(mark: &Mark, orphan: &Orphan) -> Option<String> {
    let left = left(orphan.pid, Some(orphan.started))?;
    Some(format!("{left}, orphan of {}", mark.watcher))
}

/// The places of kernels, as workers know them.
fn places(addresses: &[Address]) -> BTreeSet<String> {
    let places = addresses.iter().filter_map(|address| match address {
        Address::Unix(path) => Some(path.display().to_string()),
        Address::Tcp(place) => Some(place.port().to_string()),
        Address::Abstract(_) => None,
    });
    places.collect()
}

fn users(config: Option<&Config>) -> BTreeSet<u32> {
    let watchers = config.into_iter().flat_map(|config| &config.watchers);
    orphan::users(watchers.filter_map(|watcher| watcher.uid.as_ref()))
}
