//! What the operating system says about processes: the judge of what the kernel claims.
//!
//! Source: proc(5).

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// One line of `/proc/PID/stat`, as far as tests need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    pub pid: i32,
    pub state: char,
    pub parent: i32,
    pub group: i32,
    pub session: i32,
    pub threads: i64,
    /// Clock ticks since boot: tells a process from a later one with the same pid.
    pub started_ticks: u64,
}

/// The status line of a process, none when it is gone.
pub fn stat(pid: i32) -> Option<Stat> {
    let line = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let line = String::from_utf8_lossy(&line).into_owned();
    // The name may hold anything, blanks and parentheses too; the last parenthesis ends it.
    let (_, rest) = line.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    Some(Stat {
        pid,
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        group: fields.get(2)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        threads: fields.get(17)?.parse().ok()?,
        started_ticks: fields.get(19)?.parse().ok()?,
    })
}

/// Runs: exists and is no zombie.
pub fn alive(pid: i32) -> bool {
    stat(pid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

/// Every pid there is.
pub fn pids() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// The children of a process, zombies included.
pub fn children(parent: i32) -> Vec<i32> {
    pids()
        .into_iter()
        .filter(|pid| stat(*pid).is_some_and(|stat| stat.parent == parent))
        .collect()
}

/// Everything below a process, zombies included, the process itself not.
pub fn descendants(root: i32) -> Vec<i32> {
    let all: Vec<Stat> = pids().into_iter().filter_map(stat).collect();
    let mut found = vec![root];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(
            all.iter()
                .filter(|stat| stat.parent == parent)
                .map(|stat| stat.pid),
        );
        next += 1;
    }
    found.remove(0);
    found
}

/// How many descriptors a process has open.
pub fn open_descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Where each open descriptor of a process leads, by number.
pub fn descriptors(pid: i32) -> Vec<(i32, String)> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    let mut found: Vec<(i32, String)> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let number = entry.file_name().to_str()?.parse().ok()?;
            let target = fs::read_link(entry.path()).ok()?;
            Some((number, target.to_string_lossy().into_owned()))
        })
        .collect();
    found.sort();
    found
}

/// The environment a process was started with, sorted.
pub fn environment(pid: i32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let mut variables: Vec<String> = bytes
        .split(|byte| *byte == 0)
        .filter(|piece| !piece.is_empty())
        .map(|piece| String::from_utf8_lossy(piece).into_owned())
        .collect();
    variables.sort();
    variables
}

/// One line of `/proc/PID/status`, such as `Uid` or `Groups`, its blanks made single.
pub fn status_line(pid: i32, key: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    Some(line.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Was the signal sent to a process that has not acted on it yet?
pub fn has_pending(pid: i32, signal: Signal) -> bool {
    let pending = status_line(pid, "ShdPnd").and_then(|mask| u64::from_str_radix(&mask, 16).ok());
    pending.is_some_and(|mask| mask & (1 << (signal as i32 - 1)) != 0)
}

/// Proportional share of memory in KiB: shared pages count as many times less as processes share
/// them.
pub fn pss_kib(pid: i32) -> Option<u64> {
    memory_kib(pid, "Pss")
}

/// Memory of its own that no file backs, in KiB: does not depend on who else runs the same program.
pub fn anonymous_kib(pid: i32) -> Option<u64> {
    memory_kib(pid, "Anonymous")
}

fn memory_kib(pid: i32, key: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Sends a signal by number; a process that is gone is fine.
pub fn signal(pid: i32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid), signal);
}
