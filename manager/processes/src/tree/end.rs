//! The end of whole trees: frozen first, so that nobody forks on, then killed, until nothing is
//! left.
//!
//! Freezing is SIGSTOP in passes: each stops everybody found, and when a pass finds nobody new,
//! nobody is left who could fork. A process that replaces itself faster than a pass takes is never
//! met there: it is chased by the number the system gave away last.
//! Invariant: it is over within [`PATIENCE`], whatever forks.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use nix::libc::{SIGKILL, SIGSTOP};

use crate::tree::memory::Memory;
use crate::tree::scan::{self, Snapshot, Stat};
use crate::tree::{Identity, Member, Target, cgroup};
use papa_system::sys;

/// How long one attempt to end trees takes at most.
const PATIENCE: Duration = Duration::from_secs(2);
/// Passes that only stop; who is not stopped by then is killed as it is found.
const FREEZE_PASSES: usize = 12;
/// What was killed needs a moment until it is gone.
const PAUSE: Duration = Duration::from_millis(1);
/// How long somebody who forks away is followed before everything is looked at again.
const CHASE: Duration = Duration::from_millis(50);
/// How long it is made sure that nobody forks away where nobody was found.
pub(super) const HUNT: Duration = Duration::from_millis(3);
/// After so many hits in one chase everything is looked at again.
const MAX_HITS: usize = 64;
/// So many of the numbers given away last are looked at.
const CHASED_PIDS: i32 = 4;

/// One tree to end.
pub(super) struct Doomed<'a> {
    pub(super) target: &'a Target,
    pub(super) memory: &'a mut Memory,
    /// The leader's, where it runs still.
    pub(super) leader: Option<OwnedFd>,
    /// Who is left at the end.
    pub(super) left: Vec<Member>,
}

/// Ends all of these as far as that can be done.
pub(super) fn end(doomed: &mut [Doomed<'_>], kernel: Option<i32>) {
    let deadline = Instant::now() + PATIENCE;
    let mut stopped: BTreeSet<Identity> = BTreeSet::new();
    for one in doomed.iter() {
        // The leader's whole group at once, where the system can do that: nobody in it forks past
        // this.
        if let Some(leader) = &one.leader {
            freeze_leader(leader);
        }
    }
    for pass in 0..FREEZE_PASSES {
        let snapshot = Snapshot::take(kernel);
        let mut fresh = false;
        for one in doomed.iter_mut() {
            if pass == 0 {
                cgroup::kill(one.target, |pid| snapshot.is_protected(pid));
            }
            for (pid, stat) in snapshot.members(one.target, one.memory).iter().rev() {
                if stopped.insert((*pid, stat.started)) {
                    fresh = true;
                    signal_exactly(*pid, stat, SIGSTOP);
                }
            }
        }
        if !fresh || Instant::now() >= deadline {
            break;
        }
    }
    for one in doomed.iter() {
        if let Some(leader) = &one.leader {
            let group = sys::pidfd_send_signal_to_group(leader.as_fd(), SIGKILL);
            let alone = sys::pidfd_send_signal(leader.as_fd(), SIGKILL);
            log_refusal(one.target.leader, SIGKILL, alone.or(group));
        }
    }
    loop {
        let snapshot = Snapshot::take(kernel);
        let mut found: BTreeMap<i32, Stat> = BTreeMap::new();
        for one in doomed.iter_mut() {
            let members = snapshot.members(one.target, one.memory);
            for (pid, stat) in members.iter().rev() {
                signal_exactly(*pid, stat, SIGKILL);
            }
            one.left = members
                .iter()
                .map(|(pid, stat)| stat.member(*pid))
                .collect();
            let leader = snapshot.get(one.target.leader);
            if one.leader.is_some()
                && let Some(stat) = leader.filter(|stat| !stat.is_zombie())
            {
                one.left.insert(0, stat.member(one.target.leader));
            }
            found.extend(members);
        }
        let late = Instant::now() >= deadline;
        let gone = doomed.iter().all(|one| one.left.is_empty());
        if gone && !(snapshot.moved() && chase(doomed, &snapshot, HUNT)) || late {
            return;
        }
        // Somebody new, though all that was there is stopped or dead: it forks away from us.
        if found
            .iter()
            .any(|(pid, stat)| stopped.insert((*pid, stat.started)))
        {
            chase(doomed, &snapshot, CHASE);
        } else if !gone {
            std::thread::sleep(PAUSE);
        }
    }
}

fn freeze_leader(leader: &OwnedFd) {
    // Not available before Linux 6.9; the passes do it there.
    if sys::pidfd_send_signal_to_group(leader.as_fd(), SIGSTOP).is_err() {
        let _ = sys::pidfd_send_signal(leader.as_fd(), SIGSTOP);
    }
}

/// Looks at those that were started just now, again and again, for a moment: a process that
/// replaces itself without end is met there and nowhere else. Those of these trees are given to
/// `met`, which answers whether to go on.
pub(super) fn hunt<'a>(
    trees: &[(&'a Target, &Memory)],
    snapshot: &Snapshot,
    time: Duration,
    mut met: impl FnMut(&'a Target, i32, &Stat) -> bool,
) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        let Some(last) = scan::last_pid() else { return };
        for pid in (last.saturating_sub(CHASED_PIDS).max(2)..=last).rev() {
            if snapshot.is_protected(pid) {
                continue;
            }
            let Some(stat) = scan::stat(pid).filter(|stat| !stat.is_zombie()) else {
                continue;
            };
            // Read once, however many trees there are.
            let marks = snapshot.marks_of(&stat, pid);
            let ours = trees.iter().find(|(target, memory)| {
                pid != target.leader
                    && (memory.has_session(stat.session) || !marks.with(&target.mark).is_empty())
            });
            if let Some((target, _)) = ours
                && !met(target, pid, &stat)
            {
                return;
            }
        }
    }
}

/// Kills whom a hunt meets. Answers whether it met anybody.
fn chase(doomed: &[Doomed<'_>], snapshot: &Snapshot, time: Duration) -> bool {
    let trees: Vec<(&Target, &Memory)> = doomed
        .iter()
        .map(|one| (one.target, &*one.memory))
        .collect();
    let mut hits = 0;
    hunt(&trees, snapshot, time, |_, pid, stat| {
        signal_exactly(pid, stat, SIGKILL);
        hits += 1;
        hits < MAX_HITS
    });
    hits > 0
}

/// Signals the process that was found, and nobody who has its number by now.
pub(super) fn signal_exactly(pid: i32, expected: &Stat, signal: i32) {
    let Ok(pidfd) = sys::pidfd_open(pid) else {
        return;
    };
    // Checked with the pidfd in hand: from here on the number cannot go to somebody else unnoticed.
    if scan::stat(pid).is_some_and(|found| found.started == expected.started) {
        log_refusal(pid, signal, sys::pidfd_send_signal(pidfd.as_fd(), signal));
    }
}

fn log_refusal(pid: i32, signal: i32, result: io::Result<()>) {
    if let Err(error) = result
        && error.raw_os_error() != Some(nix::libc::ESRCH)
    {
        tracing::warn!(pid, signal, %error, "cannot signal a process of a worker");
    }
}
