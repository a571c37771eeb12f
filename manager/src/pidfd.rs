//! Signals to workers: to one process, its children, or everything it started.
//!
//! Owns the walk through `/proc`. Every signal goes through a pidfd, checked after it was opened, so that it can never hit a process
//! that merely got the same number.
//! Invariant: only the worker, its descendants and members of its session are ever signalled.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::AsFd;

use nix::libc;

use crate::sys;

/// Processes by the leader of their session, each named by its number and when it started.
pub type Members = BTreeMap<i32, Vec<(i32, u64)>>;

/// Rounds of looking for what is left of a tree: each kills everything found, so more means somebody forks as fast as we kill.
const MAX_ROUNDS: usize = 16;

/// What `/proc/PID/stat` says about one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    parent: i32,
    session: i32,
    /// In ticks since boot: with the pid it names one process for ever.
    started: u64,
    zombie: bool,
}

/// Who in a worker's tree gets a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    /// The worker.
    Worker,
    /// The worker and its direct children.
    WorkerAndChildren,
    /// Its direct children, not itself.
    Children,
    /// One direct child of it.
    Child(i32),
    /// The worker and everything it started.
    Tree,
}

/// Sends `signal` to those of the tree of the process behind `pidfd`, whose pid is `pid`. A process that is gone counts as done.
///
/// # Errors
/// What the system answers for the process itself.
pub fn signal(pidfd: impl AsFd, pid: i32, signal: i32, whom: Whom) -> io::Result<()> {
    // Listed beforehand: when it has ended, its children are somebody else's.
    let others: BTreeMap<i32, Stat> = match whom {
        Whom::Worker => BTreeMap::new(),
        Whom::Tree => tree(pid),
        Whom::WorkerAndChildren | Whom::Children => children(pid),
        Whom::Child(child) => children(pid)
            .into_iter()
            .filter(|(pid, _)| *pid == child)
            .collect(),
    };
    let itself = match whom {
        Whom::Worker | Whom::WorkerAndChildren | Whom::Tree => signal,
        // Nothing is sent, but it is known to be there still.
        Whom::Children | Whom::Child(_) => 0,
    };
    if is_gone(sys::pidfd_send_signal(pidfd.as_fd(), itself))? {
        // Waited for already, so those listed may be somebody else's.
        return Ok(());
    }
    for (other, stat) in others {
        signal_exactly(other, stat, signal);
    }
    Ok(())
}

fn children(pid: i32) -> BTreeMap<i32, Stat> {
    let mut all = processes();
    all.retain(|_, stat| stat.parent == pid);
    all
}

/// Kills the process behind `pidfd`, its descendants and all that is left in its session, which it leads.
///
/// # Errors
/// What the system answers for the process itself.
pub fn kill_tree(pidfd: impl AsFd, pid: i32) -> io::Result<()> {
    if pid <= 1 {
        return Ok(());
    }
    // Looked up before the leader dies: its children get another parent then.
    let leader = stat(pid);
    let mut doomed = tree(pid);
    if is_gone(sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL))? {
        // Waited for already: the number, and so the tree, may be somebody
        // else's. Not waited for, it was ours while the tree was read.
        return Ok(());
    }
    for _ in 0..MAX_ROUNDS {
        if doomed.is_empty() {
            break;
        }
        for (member, stat) in &doomed {
            signal_exactly(*member, *stat, libc::SIGKILL);
        }
        let known: BTreeSet<(i32, u64)> = doomed
            .iter()
            .map(|(pid, stat)| (*pid, stat.started))
            .collect();
        let other = |now: Stat| leader.is_none_or(|leader| leader.started != now.started);
        if stat(pid).is_some_and(other) {
            break;
        }
        doomed = tree(pid);
        doomed.retain(|pid, stat| !known.contains(&(*pid, stat.started)));
    }
    Ok(())
}

/// Signals what is left of the sessions that ended processes led, given as leader and signal. A number cannot be taken while its
/// session has members, so a process that has it leads another session, and then there is nothing left of ours.
///
/// Returns who was found, by leader.
pub fn signal_orphans(leaders: &BTreeMap<i32, i32>) -> Members {
    let all = processes();
    let mut members = Members::new();
    for (pid, stat) in &all {
        let Some(signal) = leaders.get(&stat.session) else {
            continue;
        };
        let led = all.get(&stat.session).is_some_and(|leader| !leader.zombie);
        if *pid != stat.session && !stat.zombie && !led {
            signal_exactly(*pid, *stat, *signal);
            members
                .entry(stat.session)
                .or_default()
                .push((*pid, stat.started));
        }
    }
    members
}

/// Descendants of these processes that have left their sessions, by the process they descend from. Once that one has ended, nothing
/// tells any more that they were its own: this is asked before.
pub fn escaped(leaders: &BTreeSet<i32>) -> Members {
    let all = processes();
    let mut members = Members::new();
    for (pid, stat) in &all {
        let mut ancestor = stat.parent;
        // Parents are read one after another: what was read may hold a circle.
        for _ in 0..all.len() {
            if leaders.contains(&ancestor) {
                break;
            }
            match all.get(&ancestor) {
                Some(next) => ancestor = next.parent,
                None => break,
            }
        }
        if leaders.contains(&ancestor) && stat.session != ancestor && !stat.zombie {
            members
                .entry(ancestor)
                .or_default()
                .push((*pid, stat.started));
        }
    }
    members
}

/// Signals those of these processes that run still.
pub fn signal_members(members: &[(i32, u64)], signal: i32) {
    for (pid, started) in members {
        if let Some(stat) = stat(*pid).filter(|stat| stat.started == *started) {
            signal_exactly(*pid, stat, signal);
        }
    }
}

/// Whether one of these processes still runs.
pub fn any_lives(members: &[(i32, u64)]) -> bool {
    members.iter().any(|(pid, started)| {
        stat(*pid).is_some_and(|stat| stat.started == *started && !stat.zombie)
    })
}

/// Everything below `root` and everything in its session, without `root` itself.
fn tree(root: i32) -> BTreeMap<i32, Stat> {
    let all = processes();
    let mut found: BTreeMap<i32, Stat> = BTreeMap::new();
    loop {
        let before = found.len();
        for (pid, stat) in &all {
            let below = stat.parent == root || found.contains_key(&stat.parent);
            if *pid != root && !stat.zombie && (below || stat.session == root) {
                found.insert(*pid, *stat);
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

fn signal_exactly(pid: i32, expected: Stat, signal: i32) {
    let Ok(pidfd) = sys::pidfd_open(pid) else {
        return;
    };
    // Checked with the pidfd in hand: from here on the number cannot go to somebody else unnoticed.
    if stat(pid).is_some_and(|found| found.started == expected.started)
        && let Err(error) = is_gone(sys::pidfd_send_signal(pidfd.as_fd(), signal))
    {
        tracing::warn!(pid, signal, %error, "cannot signal a process of a worker");
    }
}

/// Whether the process had been waited for already; that is no error.
fn is_gone(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(true),
        other => other.map(|()| false),
    }
}

fn processes() -> BTreeMap<i32, Stat> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return BTreeMap::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, stat(pid)?)))
        .collect()
}

fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// Reads the fields behind the command name, which may hold anything, parentheses included.
fn parse_stat(bytes: &[u8]) -> Option<Stat> {
    let end = bytes.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(bytes.get(end + 1..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    Some(Stat {
        zombie: matches!(*fields.first()?, "Z" | "X"),
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_command_name_cannot_forge_fields() {
        let line = b"42 (a) R 1 1 ( x)) S 7 8 9 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 123 0";
        let stat = parse_stat(line).unwrap();
        assert_eq!(
            (stat.parent, stat.session, stat.started, stat.zombie),
            (7, 9, 123, false)
        );
        assert_eq!(parse_stat(b"42 (a"), None);
        assert_eq!(parse_stat(b"42 (a) S 1"), None);
    }

    #[test]
    fn a_tree_is_killed_with_the_orphans_in_its_session() {
        // The shell leads a session of its own; the middle process goes, leaving the last one an orphan.
        let script = "(sleep 1000 & echo $! ; exec true) ; sleep 1000";
        let mut child = Command::new("setsid")
            .args(["sh", "-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut output, &mut line).unwrap();
        let orphan: i32 = line.trim().parse().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let pidfd = sys::pidfd_open(pid).unwrap();
        kill_tree(&pidfd, pid).unwrap();
        child.wait().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while stat(orphan).is_some_and(|stat| !stat.zombie) {
            assert!(Instant::now() < deadline, "the orphan {orphan} lives");
            std::thread::yield_now();
        }
        signal(&pidfd, pid, libc::SIGTERM, Whom::WorkerAndChildren).unwrap();
    }
}
