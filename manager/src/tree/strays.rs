//! Strays: processes that workers have started and hidden so well that nobody can tell whose they are.
//!
//! They have lost their parent, left the session and cleared the environment; as the kernel or its keeper adopts what loses its parent
//! below it, they are known to be some worker's. Leaves to others: when they are ended.
//! Invariant: only below a kernel and a keeper that say so of themselves, and never process 1, which adopts strangers too.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use nix::libc::{SIGKILL, SIGTERM};

use crate::mark::Mark;
use crate::tree::end::signal_exactly;
use crate::tree::scan::{Stat, processes};
use crate::tree::{Identity, Member};

/// How long strays have from SIGTERM to SIGKILL, and after that to be gone.
const GRACE: Duration = Duration::from_secs(5);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// A manager that was started from a worker is nobody's to end here.
const MANAGER: &str = "papa-manager";

/// Processes that no mark tells of; the kernel's own processes are among them where they have none.
#[must_use]
pub fn unknown(kernel: i32, keeper: i32) -> Vec<Member> {
    let all = processes();
    let found = roots(&all, kernel, keeper).filter(|(pid, _)| Mark::of(*pid).is_none());
    found.map(|(pid, stat)| stat.member(pid)).collect()
}

/// Ends everything below a kernel and a keeper that have no process any more. Answers who was asked to end.
#[must_use]
pub fn end(kernel: i32, keeper: i32) -> Vec<Member> {
    let mut asked: BTreeMap<Identity, Member> = BTreeMap::new();
    let begun = Instant::now();
    while begun.elapsed() < 2 * GRACE {
        let all = processes();
        let mut waiting: Vec<i32> = roots(&all, kernel, keeper).map(|(pid, _)| pid).collect();
        if waiting.is_empty() {
            break;
        }
        let late = begun.elapsed() >= GRACE;
        let mut seen = BTreeSet::new();
        while let Some(pid) = waiting.pop() {
            let Some(stat) = all.get(&pid).filter(|_| seen.insert(pid)) else {
                continue;
            };
            let member = stat.member(pid);
            if asked.insert(member.identity(), member).is_none() {
                signal_exactly(pid, stat, SIGTERM);
            }
            if late {
                signal_exactly(pid, stat, SIGKILL);
            }
            let below = all.iter().filter(|(_, stat)| stat.parent == pid);
            waiting.extend(below.map(|(pid, _)| *pid));
        }
        std::thread::sleep(PAUSE);
    }
    asked.into_values().collect()
}

/// What the kernel or the keeper has adopted.
fn roots(
    all: &BTreeMap<i32, Stat>,
    kernel: i32,
    keeper: i32,
) -> impl Iterator<Item = (i32, &Stat)> {
    let is_ours =
        keeper > 1 && is_titled(keeper, "papa: keeper") && is_titled(kernel, "papa: kernel");
    let mut spared = BTreeSet::from([kernel, keeper]);
    let mut own = nix::unistd::getpid().as_raw();
    while own > 1 && spared.insert(own) {
        own = all.get(&own).map_or(0, |stat| stat.parent);
    }
    all.iter()
        .map(|(pid, stat)| (*pid, stat))
        .filter(move |(pid, stat)| {
            is_ours
                && (stat.parent == keeper || stat.parent == kernel)
                && !stat.is_zombie()
                && !spared.contains(pid)
                && stat.command != MANAGER
        })
}

fn is_titled(pid: i32, role: &str) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|title| title.starts_with(role.as_bytes()))
}
