//! Orphans: workers that earlier kernels left running when keeper and kernel were gone together.
//!
//! Owns finding them and signalling them. Leaves to others: which are ended, and when
//! (`supervisor::orphans`).
//! Invariants: an orphan is a process of a named user with the mark of this namespace and of
//! another line of kernels at the same place; or one that the caller knew by pid and start as a
//! worker, or found before; or what one of those has started. None lives below a living kernel of
//! that place. Each is signalled through a pidfd, after its start was read again.

mod notes;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use nix::libc;
use papa_protocol::process::Account;
use papa_test_hooks::failpoint;

use crate::mark::{Lineage, Mark};
use crate::tree::{Stat, processes};
use crate::{pidfd, tree};

pub use notes::Notes;

/// Rounds of freezing before the kill: each stops what the one before did not see, so more means
/// somebody forks as fast as we look.
const MAX_ROUNDS: usize = 16;

/// Longest command shown, in characters.
const MAX_COMMAND_CHARS: usize = 80;

/// How often a process is looked at again whose memory, and so its mark, cannot be read at the
/// moment.
const BUSY_ROUNDS: usize = 5;
/// From one of these looks to the next.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

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
    /// Its parent when it was found.
    pub parent: i32,
    /// Its parent is none of the orphans: the worker itself, or what is left of it.
    pub top: bool,
    /// What it runs, for people.
    pub command: String,
}

/// A process that is known to be a worker without a look at its environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its number.
    pub pid: i32,
    /// When it started, in ticks since boot.
    pub started: u64,
    /// Whose it is.
    pub mark: Mark,
}

impl From<&Orphan> for Known {
    fn from(orphan: &Orphan) -> Self {
        Self {
            pid: orphan.pid,
            started: orphan.started,
            mark: orphan.mark.clone(),
        }
    }
}

/// Whose orphans are looked for.
#[derive(Debug, Clone)]
pub struct Search {
    /// The namespace of the manager.
    pub namespace: String,
    /// The kernel it speaks to.
    pub lineage: Lineage,
    /// Users whose processes count.
    pub users: BTreeSet<u32>,
    /// Processes that are never orphans, nor are those above them: the kernel and the keeper.
    pub spared: Vec<i32>,
    /// Workers of a kernel that is lost, and orphans found before, whatever their environment says
    /// now.
    pub known: Vec<Known>,
}

impl Search {
    /// One look at all processes.
    #[must_use]
    pub fn run(&self) -> Vec<Orphan> {
        let all = processes();
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        // Whoever typed `up` in a shell that is an orphan itself must not lose kernel and manager
        // to that.
        let mut spared: BTreeSet<i32> = BTreeSet::new();
        for pid in self.spared.iter().copied().chain([own]) {
            spared.insert(pid);
            spared.extend(ancestors(&all, pid));
        }
        let may_be = |pid: &i32, stat: &Stat| !stat.is_zombie() && !spared.contains(pid);
        let mut marks: BTreeMap<i32, Mark> = BTreeMap::new();
        for known in &self.known {
            let same = all
                .get(&known.pid)
                .is_some_and(|stat| stat.started == known.started && may_be(&known.pid, stat));
            if same
                && self.is_here(&known.mark.lineage)
                && !self.is_current(&known.mark.lineage)
                && !is_below_kernel(&all, known.pid, &known.mark.lineage.place)
            {
                marks.insert(known.pid, known.mark.clone());
            }
        }
        let network = network_of(own);
        for (pid, stat) in &all {
            if !may_be(pid, stat) || marks.contains_key(pid) {
                continue;
            }
            let Some((mark, owner)) = mark_of(*pid, stat) else {
                continue;
            };
            // Elsewhere another kernel serves the same port, and its workers may have lost their
            // parents as well.
            if network.is_some() && network_of(*pid) != network {
                continue;
            }
            if !self.is_left(&mark) || !self.users.contains(&owner) {
                continue;
            }
            // Below a living kernel: that of another network namespace may serve the same port.
            if !is_below_kernel(&all, *pid, &mark.lineage.place) {
                marks.insert(*pid, mark);
            }
        }
        let marks = with_what_they_started(&all, marks, may_be);
        let found = marks.iter().filter_map(|(pid, mark)| {
            let stat = all.get(pid)?;
            Some(Orphan {
                pid: *pid,
                started: stat.started,
                age: age(stat.started),
                mark: mark.clone(),
                parent: stat.parent,
                top: !marks.contains_key(&stat.parent),
                command: command(*pid, stat),
            })
        });
        found.collect()
    }

    /// Kills every orphan of these watchers. They are stopped first, so that none starts another
    /// meanwhile.
    pub fn kill_all(&mut self, watchers: &BTreeSet<String>) {
        let mut stopped: BTreeSet<tree::Identity> = BTreeSet::new();
        let mut doomed: Vec<Orphan> = Vec::new();
        for _ in 0..MAX_ROUNDS {
            doomed = self.run();
            doomed.retain(|orphan| watchers.contains(&orphan.mark.watcher));
            let mut new = false;
            for orphan in &doomed {
                if stopped.insert((orphan.pid, orphan.started)) {
                    new = true;
                    orphan.signal(libc::SIGSTOP);
                    self.remember(orphan);
                }
            }
            if !new {
                break;
            }
        }
        failpoint::reach("orphan.frozen");
        for orphan in &doomed {
            orphan.signal(libc::SIGKILL);
        }
        failpoint::reach("orphan.killed");
    }

    /// What was found stays found, whatever becomes of its parent and its environment.
    pub fn remember(&mut self, orphan: &Orphan) {
        let is = |known: &Known| (known.pid, known.started) == (orphan.pid, orphan.started);
        if !self.known.iter().any(is) {
            self.known.push(orphan.into());
        }
    }

    /// Whether a kernel of this line serves the place that is asked about. Workers that were noted
    /// under a kernel at another place may be that one's still, whoever their parent is.
    fn is_here(&self, lineage: &Lineage) -> bool {
        lineage.place == self.lineage.place || lineage.is_at(&self.lineage)
    }

    /// Whether the manager speaks to a kernel of this line: what such a kernel has started is no
    /// orphan.
    fn is_current(&self, lineage: &Lineage) -> bool {
        lineage.started_us != 0 && lineage.started_us == self.lineage.started_us
    }

    /// Whether such a mark is of an earlier kernel of ours.
    fn is_left(&self, mark: &Mark) -> bool {
        mark.namespace == self.namespace
            && mark.lineage.started_us != self.lineage.started_us
            && mark.lineage.is_at(&self.lineage)
    }
}

impl Orphan {
    /// Whether it runs still.
    #[must_use]
    pub fn lives(&self) -> bool {
        pidfd::any_lives(&[(self.pid, self.started)])
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        let Ok(pidfd) = papa_system::sys::pidfd_open(self.pid) else {
            return;
        };
        // With the pidfd in hand the number can go to nobody else unnoticed.
        if !self.lives() {
            return;
        }
        if let Err(error) = pidfd::signal(pidfd, self.pid, signal, pidfd::Whom::Worker) {
            tracing::warn!(pid = self.pid, %error, "cannot signal an orphan");
        }
    }
}

/// Who of these gets the stop signal: the workers themselves, with `children` also what they have
/// started directly.
#[must_use]
pub fn asked_to_end(orphans: &[Orphan], children: bool) -> Vec<&Orphan> {
    let tops = orphans.iter().filter(|orphan| orphan.top);
    let tops: BTreeSet<i32> = tops.map(|orphan| orphan.pid).collect();
    let asked = orphans
        .iter()
        .filter(|orphan| orphan.top || (children && tops.contains(&orphan.parent)));
    asked.collect()
}

/// Adds whatever these processes have started, as far as it is below them or in a session that one
/// of them leads. What lives below another kernel is somebody else's.
fn with_what_they_started(
    all: &BTreeMap<i32, Stat>,
    mut marks: BTreeMap<i32, Mark>,
    may_be: impl Fn(&i32, &Stat) -> bool,
) -> BTreeMap<i32, Mark> {
    if marks.is_empty() {
        return marks;
    }
    let mut below: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for (pid, stat) in all {
        below.entry(stat.parent).or_default().push(*pid);
        if stat.session != *pid {
            below.entry(stat.session).or_default().push(*pid);
        }
    }
    let mut open: Vec<i32> = marks.keys().copied().collect();
    while let Some(pid) = open.pop() {
        let Some(mark) = marks.get(&pid).cloned() else {
            continue;
        };
        for child in below.get(&pid).into_iter().flatten() {
            let Some(stat) = all.get(child) else {
                continue;
            };
            if marks.contains_key(child) || !may_be(child, stat) || is_kernel(*child, |_| true) {
                continue;
            }
            marks.insert(*child, mark.clone());
            open.push(*child);
        }
    }
    marks
}

/// The mark of a process and its user. The memory of one that stands in the system uninterruptibly
/// is not read: that could wait as long as it does.
fn mark_of(pid: i32, seen: &Stat) -> Option<(Mark, u32)> {
    let mut state = seen.state;
    for _ in 0..BUSY_ROUNDS {
        if state != b'D' {
            return Mark::of(pid);
        }
        std::thread::sleep(BUSY_PAUSE);
        let now = tree::stat(pid).filter(|now| now.started == seen.started)?;
        state = now.state;
    }
    tracing::warn!(
        pid,
        "A process is stuck in the system; whether it is an orphan cannot be told"
    );
    None
}

/// Users whose processes may be orphans, besides our own those of these watchers: anybody can write
/// our mark into the environment of their own.
#[must_use]
pub fn users<'a>(identities: impl Iterator<Item = &'a Account>) -> BTreeSet<u32> {
    let mut users = BTreeSet::from([nix::unistd::geteuid().as_raw()]);
    for identity in identities {
        match identity {
            Account::Id(uid) => {
                users.insert(*uid);
            }
            Account::Name(name) => {
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

/// Whether a process lives below a keeper or a kernel that serves this place.
fn is_below_kernel(all: &BTreeMap<i32, Stat>, pid: i32, place: &str) -> bool {
    // The title of a kernel has the place as an argument of its own, spaces and all.
    let serves =
        |title: &str| place.is_empty() || title.split('\0').any(|argument| argument == place);
    ancestors(all, pid).any(|ancestor| is_kernel(ancestor, serves))
}

/// Whether a process is a keeper or a kernel whose title is as wanted.
fn is_kernel(pid: i32, wanted: impl FnOnce(&str) -> bool) -> bool {
    let Ok(title) = std::fs::read(format!("/proc/{pid}/cmdline")) else {
        return false;
    };
    let title = String::from_utf8_lossy(&title);
    let mut roles = ["papa: keeper", "papa: kernel"].iter();
    roles.any(|role| title.starts_with(role)) && wanted(&title)
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

fn command(pid: i32, stat: &Stat) -> String {
    // That, too, is read from its memory.
    if stat.state == b'D' {
        return stat.command.clone();
    }
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
    let text = text.trim().replace(char::is_control, "?");
    text.chars().take(MAX_COMMAND_CHARS).collect()
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

    fn search(namespace: &str, users: &BTreeSet<u32>) -> Search {
        Search {
            namespace: namespace.to_owned(),
            lineage: lineage(6),
            users: users.clone(),
            spared: Vec::new(),
            known: Vec::new(),
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
        let search = search(
            &namespace,
            &BTreeSet::from([nix::unistd::geteuid().as_raw()]),
        );
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
        let found = |users: &BTreeSet<u32>| {
            let found = search(&namespace, users).run();
            found.iter().map(|orphan| orphan.pid).collect::<Vec<_>>()
        };
        let expected = vec![i32::try_from(children[0].id()).unwrap()];
        let (found, strangers) = (found(&users), found(&BTreeSet::new()));
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(found, expected);
        assert_eq!(strangers, Vec::<i32>::new());
    }

    /// A known worker of the lineage 5.
    fn known(namespace: &str, pid: i32, started: u64) -> Known {
        Known {
            pid,
            started,
            mark: Mark {
                namespace: namespace.to_owned(),
                watcher: "bare".to_owned(),
                wid: 1,
                lineage: lineage(5),
            },
        }
    }

    #[test]
    fn workers_without_a_mark_and_what_they_had_started_were_no_orphans() {
        let namespace = format!("bare{}", std::process::id());
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 1000 & echo started; wait"])
            .env_clear()
            .env("PATH", "/bin:/usr/bin")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let output = shell.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).unwrap();
        let pid = i32::try_from(shell.id()).unwrap();
        let started = tree::stat(pid).unwrap().started;
        let child = *tree::children(pid).keys().next().unwrap();
        let mut search = search(&namespace, &BTreeSet::new());
        let unknown = search.run();
        // The number is another process's by now.
        search.known = vec![known(&namespace, pid, started + 1)];
        let reused = search.run();
        search.known = vec![known(&namespace, pid, started)];
        // A kernel at another place may have it still.
        let place = std::mem::replace(&mut search.lineage.place, "2".to_owned());
        let elsewhere = search.run();
        search.lineage.place = place;
        let found = search.run();
        // It is found after its parent is gone, too.
        for orphan in &found {
            search.remember(orphan);
        }
        shell.kill().unwrap();
        shell.wait().unwrap();
        let after = search.run();
        search.kill_all(&BTreeSet::from(["other".to_owned()]));
        let spared = search.run();
        search.kill_all(&BTreeSet::from(["bare".to_owned()]));
        let until = std::time::Instant::now() + Duration::from_secs(10);
        while !search.run().is_empty() && std::time::Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        let left = search.run();
        assert_eq!((unknown, reused), (Vec::new(), Vec::new()));
        assert_eq!(elsewhere, Vec::new());
        let pids = |found: &[Orphan]| {
            let pids = found.iter().map(|orphan| (orphan.pid, orphan.top));
            pids.collect::<BTreeSet<_>>()
        };
        assert_eq!(pids(&found), BTreeSet::from([(pid, true), (child, false)]));
        assert_eq!(asked_to_end(&found, false).len(), 1);
        assert_eq!(asked_to_end(&found, true).len(), 2);
        assert_eq!(pids(&after), BTreeSet::from([(child, true)]));
        assert_eq!(pids(&spared), pids(&after));
        assert_eq!(left, Vec::new());
    }
}
