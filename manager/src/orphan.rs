//! Orphans: workers that earlier kernels left running when keeper and kernel were gone together.
//!
//! Owns finding them by their mark and signalling them. Leaves to others: which are ended, and when (`supervisor::orphans`).
//! Invariants: only a process of a named user, with the mark of this namespace, of another line of kernels at the same place, and below
//! no living kernel of that place, is an orphan; each is signalled through a pidfd, after its mark and start were read again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use nix::libc;

use crate::config::Identity;
use crate::mark::{Lineage, Mark};
use crate::pidfd;
use crate::tree::{Stat, processes};

/// Rounds of freezing before the kill: each stops what the one before did not see, so more means somebody forks as fast as we look.
const MAX_ROUNDS: usize = 16;

/// Longest command shown, in characters.
const MAX_COMMAND_CHARS: usize = 80;

/// A process that an earlier kernel's worker is, or has started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// Its number.
    pub pid: i32,
    /// When it started, in ticks since boot: with the pid it names one process for ever.
    pub started: u64,
    /// How long it had been running when it was found.
    pub age: Duration,
    /// Whose it was.
    pub mark: Mark,
    /// Its parent is none of the orphans: the worker itself, or what is left of it.
    pub top: bool,
    /// What it runs, for people.
    pub command: String,
}

/// Whose orphans are looked for.
#[derive(Debug)]
pub struct Search<'a> {
    /// The namespace of the manager.
    pub namespace: &'a str,
    /// The kernel it speaks to.
    pub lineage: &'a Lineage,
    /// Users whose processes count.
    pub users: &'a BTreeSet<u32>,
    /// Processes that are never orphans, nor are those above them: the kernel and the keeper.
    pub spared: &'a [i32],
}

impl Search<'_> {
    /// One look at all processes.
    #[must_use]
    pub fn run(&self) -> Vec<Orphan> {
        let all = processes();
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        // Whoever typed `up` in a shell that is an orphan itself must not lose kernel and manager to that.
        let mut spared: BTreeSet<i32> = BTreeSet::new();
        for pid in self.spared.iter().copied().chain([own]) {
            spared.insert(pid);
            spared.extend(ancestors(&all, pid));
        }
        let network = network_of(own);
        let mut found = Vec::new();
        for (pid, stat) in &all {
            if stat.is_zombie() || spared.contains(pid) {
                continue;
            }
            let Some((mark, owner)) = Mark::of(*pid) else {
                continue;
            };
            // Elsewhere another kernel serves the same port, and its workers may have lost their parents as well.
            if network.is_some() && network_of(*pid) != network {
                continue;
            }
            if !self.is_left(&mark) || !self.users.contains(&owner) {
                continue;
            }
            // Below a living kernel: that of another network namespace may serve the same port.
            let place = &mark.lineage.place;
            if ancestors(&all, *pid).any(|ancestor| is_kernel_at(ancestor, place)) {
                continue;
            }
            found.push(Orphan {
                pid: *pid,
                started: stat.started,
                age: age(stat.started),
                mark,
                top: false,
                command: command(*pid),
            });
        }
        let pids: BTreeSet<i32> = found.iter().map(|orphan| orphan.pid).collect();
        for orphan in &mut found {
            let parent = all.get(&orphan.pid).map(|stat| stat.parent);
            orphan.top = parent.is_none_or(|parent| !pids.contains(&parent));
        }
        found
    }

    /// Kills every orphan of this watcher. They are stopped first, so that none starts another meanwhile.
    pub fn kill_all(&self, watcher: &str) {
        let mut stopped: BTreeSet<(i32, u64)> = BTreeSet::new();
        let mut doomed: Vec<Orphan> = Vec::new();
        for _ in 0..MAX_ROUNDS {
            doomed = self.run();
            doomed.retain(|orphan| orphan.mark.watcher == watcher);
            let mut new = false;
            for orphan in &doomed {
                if stopped.insert((orphan.pid, orphan.started)) {
                    new = true;
                    orphan.signal(libc::SIGSTOP, pidfd::Whom::Tree);
                }
            }
            if !new {
                break;
            }
        }
        for orphan in &doomed {
            orphan.signal(libc::SIGKILL, pidfd::Whom::Tree);
        }
    }

    /// Whether such a mark is of an earlier kernel of ours.
    fn is_left(&self, mark: &Mark) -> bool {
        mark.namespace == self.namespace
            && mark.lineage.started_us != self.lineage.started_us
            && mark.lineage.is_at(self.lineage)
    }
}

impl Orphan {
    /// Whether it runs still.
    #[must_use]
    pub fn lives(&self) -> bool {
        pidfd::any_lives(&[(self.pid, self.started)])
    }

    /// Sends it a signal, or its children and what they started too.
    pub fn signal(&self, signal: i32, whom: pidfd::Whom) {
        self.with_pidfd(|pidfd| pidfd::signal(pidfd, self.pid, signal, whom));
    }

    fn with_pidfd(&self, act: impl FnOnce(std::os::fd::OwnedFd) -> std::io::Result<()>) {
        let Ok(pidfd) = crate::sys::pidfd_open(self.pid) else {
            return;
        };
        // With the pidfd in hand the number can go to nobody else unnoticed.
        let same = self.lives() && Mark::of(self.pid).is_some_and(|(mark, _)| mark == self.mark);
        if !same {
            return;
        }
        if let Err(error) = act(pidfd)
            && error.raw_os_error() != Some(libc::ESRCH)
        {
            tracing::warn!(pid = self.pid, %error, "an orphan cannot be signalled");
        }
    }
}

/// Users whose processes may be orphans, besides our own those of these watchers: anybody can write our mark into the environment of
/// their own.
#[must_use]
pub fn users<'a>(identities: impl Iterator<Item = &'a Identity>) -> BTreeSet<u32> {
    let mut users = BTreeSet::from([nix::unistd::geteuid().as_raw()]);
    for identity in identities {
        match identity {
            Identity::Number(uid) => {
                users.insert(*uid);
            }
            Identity::Name(name) => {
                let user = nix::unistd::User::from_name(name).ok().flatten();
                users.extend(user.map(|user| user.uid.as_raw()));
            }
        }
    }
    users
}

/// Those above a process, the nearest first.
fn ancestors(all: &BTreeMap<i32, Stat>, pid: i32) -> impl Iterator<Item = i32> + '_ {
    let mut next = all.get(&pid).map(|stat| stat.parent);
    // Parents are read one after another: what was read may hold a circle.
    std::iter::from_fn(move || {
        let pid = next.filter(|pid| *pid > 1)?;
        next = all.get(&pid).map(|stat| stat.parent);
        Some(pid)
    })
    .take(all.len())
}

/// Whether a process is a keeper or a kernel that serves this place.
fn is_kernel_at(pid: i32, place: &str) -> bool {
    let Ok(title) = std::fs::read(format!("/proc/{pid}/cmdline")) else {
        return false;
    };
    let title = String::from_utf8_lossy(&title);
    ["papa: keeper", "papa: kernel"]
        .iter()
        .any(|role| title.starts_with(role))
        && title
            .split([' ', '\0'])
            .any(|word| word == place || place.is_empty())
}

/// The network namespace of a process; none where that may not be seen.
fn network_of(pid: i32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/net")).ok()
}

fn age(started: u64) -> Duration {
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let uptime: f64 = uptime
        .split_whitespace()
        .next()
        .and_then(|seconds| seconds.parse().ok())
        .unwrap_or(0.0);
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
    let ticks = u64::try_from(ticks.ok().flatten().unwrap_or(100)).unwrap_or(100);
    let since = Duration::try_from_secs_f64(uptime).unwrap_or_default();
    since.saturating_sub(Duration::from_millis(
        started.saturating_mul(1000) / ticks.max(1),
    ))
}

fn command(pid: i32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
    text.trim().chars().take(MAX_COMMAND_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn lineage(started_us: u64) -> Lineage {
        Lineage {
            started_us,
            place: "1".to_owned(),
        }
    }

    /// A process with the mark of the lineage `started_us` in a namespace of this test's own.
    fn marked(namespace: &str, started_us: u64) -> Child {
        let mark = Mark {
            namespace: namespace.to_owned(),
            watcher: "web".to_owned(),
            wid: 1,
            lineage: lineage(started_us),
        };
        Command::new("sleep")
            .arg("1000")
            .envs(mark.variables())
            .stdin(Stdio::null())
            .spawn()
            .unwrap()
    }

    #[test]
    fn workers_in_another_network_or_of_an_unknown_place_were_taken_for_orphans() {
        let namespace = format!("elsewhere{}", std::process::id());
        let variables = |place: &str| {
            let mark = Mark {
                namespace: namespace.clone(),
                watcher: "web".to_owned(),
                wid: 1,
                lineage: Lineage {
                    started_us: 5,
                    place: place.to_owned(),
                },
            };
            mark.variables()
        };
        let start = |words: &[&str], place: &str| {
            Command::new(words[0])
                .args(&words[1..])
                .envs(variables(place))
                .stdin(Stdio::null())
                .spawn()
                .unwrap()
        };
        let mut children = vec![
            start(&["sleep", "1000"], ""),
            start(&["sleep", "1000"], "1"),
        ];
        let expected = vec![i32::try_from(children[1].id()).unwrap()];
        if nix::unistd::geteuid().is_root() {
            children.push(start(&["unshare", "-n", "sleep", "1000"], "1"));
        }
        let is_asleep = |child: &Child| {
            std::fs::read(format!("/proc/{}/cmdline", child.id()))
                .is_ok_and(|line| line.starts_with(b"sleep"))
        };
        let until = std::time::Instant::now() + Duration::from_secs(10);
        while !children.iter().all(is_asleep) && std::time::Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        let started = children.iter().all(is_asleep);
        let lineage = lineage(6);
        let search = Search {
            namespace: &namespace,
            lineage: &lineage,
            users: &BTreeSet::from([nix::unistd::geteuid().as_raw()]),
            spared: &[],
        };
        let found: Vec<i32> = search.run().iter().map(|orphan| orphan.pid).collect();
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(started);
        assert_eq!(found, expected);
    }

    #[test]
    fn workers_of_the_same_kernel_another_namespace_or_another_user_are_no_orphans() {
        let namespace = format!("orphans{}", std::process::id());
        let other = format!("{namespace}x");
        let mut children = [
            marked(&namespace, 5),
            marked(&namespace, 6),
            marked(&other, 5),
        ];
        let users = BTreeSet::from([nix::unistd::geteuid().as_raw()]);
        let search = |users: &BTreeSet<u32>| {
            let lineage = lineage(6);
            let search = Search {
                namespace: &namespace,
                lineage: &lineage,
                users,
                spared: &[],
            };
            let found = search.run();
            found.iter().map(|orphan| orphan.pid).collect::<Vec<_>>()
        };
        let expected = vec![i32::try_from(children[0].id()).unwrap()];
        let found = search(&users);
        let strangers = search(&BTreeSet::new());
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(found, expected);
        assert_eq!(strangers, Vec::<i32>::new());
    }
}
