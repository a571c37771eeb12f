//! Strays: processes that workers have started and hidden so well that nobody can tell whose they
//! are.
//!
//! They have lost their parent, left the session and cleared the environment; as the kernel or its
//! keeper adopts what loses its parent below it, they are known to be some worker's. Leaves to
//! others: when they are ended.
//! Invariants: only below a kernel and a keeper that say so of themselves, and never process 1,
//! which adopts strangers too; nobody with a mark, which says whose it is, no manager, kernel or
//! keeper, and nobody below these.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use nix::libc::{SIGKILL, SIGTERM};

use crate::mark::Mark;
use crate::tree::end::signal_exactly;
use crate::tree::scan::{Stat, is_ours, is_titled, processes};
use crate::tree::{Identity, Member};

/// How long strays have from SIGTERM to SIGKILL, and after that to be gone.
const GRACE: Duration = Duration::from_secs(5);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// One process that was found.
#[derive(Debug, Clone)]
pub struct Stray {
    pid: i32,
    stat: Stat,
}

impl Stray {
    /// For people.
    #[must_use]
    pub fn member(&self) -> Member {
        self.stat.member(self.pid)
    }
}

/// What kernel and keeper have adopted and no mark tells of, and what is below it. The kernel's own
/// processes are among them where they have no mark.
#[must_use]
pub fn find(kernel: i32, keeper: i32) -> Vec<Stray> {
    if keeper <= 1 || !is_titled(keeper, "papa: keeper") || !is_titled(kernel, "papa: kernel") {
        return Vec::new();
    }
    let all = processes();
    let mut spared = BTreeSet::from([kernel, keeper]);
    let mut own = nix::unistd::getpid().as_raw();
    while own > 1 && spared.insert(own) {
        own = all.get(&own).map_or(0, |stat| stat.parent);
    }
    let mut found = Vec::new();
    let mut waiting = vec![kernel, keeper];
    while let Some(parent) = waiting.pop() {
        for (pid, stat) in all.iter().filter(|(_, stat)| stat.parent == parent) {
            if stat.is_zombie() || is_known(*pid, stat) || !spared.insert(*pid) {
                continue;
            }
            waiting.push(*pid);
            found.push(Stray {
                pid: *pid,
                stat: stat.clone(),
            });
        }
    }
    found
}

/// Ends these and what they start meanwhile.
pub fn end(found: &[Stray]) {
    let mut left: BTreeMap<Identity, Stray> = found
        .iter()
        .map(|stray| (stray.member().identity(), stray.clone()))
        .collect();
    let mut asked = BTreeSet::new();
    let begun = Instant::now();
    while begun.elapsed() < 2 * GRACE {
        let all = processes();
        left.retain(|(pid, started), _| {
            all.get(pid)
                .is_some_and(|stat| stat.started == *started && !stat.is_zombie())
        });
        if left.is_empty() {
            return;
        }
        let parents: BTreeSet<i32> = left.keys().map(|(pid, _)| *pid).collect();
        for (pid, stat) in &all {
            if parents.contains(&stat.parent) && !stat.is_zombie() && !is_known(*pid, stat) {
                left.entry((*pid, stat.started)).or_insert_with(|| Stray {
                    pid: *pid,
                    stat: stat.clone(),
                });
            }
        }
        let late = begun.elapsed() >= GRACE;
        for (identity, stray) in &left {
            if asked.insert(*identity) {
                signal_exactly(stray.pid, &stray.stat, SIGTERM);
            }
            if late {
                signal_exactly(stray.pid, &stray.stat, SIGKILL);
            }
        }
        std::thread::sleep(PAUSE);
    }
}

/// Whether it is told whose a process is, or it is one of ours, of whichever installation.
fn is_known(pid: i32, stat: &Stat) -> bool {
    is_ours(pid, stat) || Mark::of(pid).is_some()
}
