//! Everything a worker has started: who that is, and how it is ended as a whole.
//!
//! A process belongs to a worker when it descends from it, is in a session the worker or one of its
//! processes leads, was seen to belong to it before, is in its control group, or carries its mark
//! in the environment or as a resource limit (see `mark`) and has lost its parent. One pass over `/proc` serves every
//! worker that is asked about. Every signal goes through a pidfd whose process was checked after it
//! was opened.
//!
//! | module | what it owns |
//! |---|---|
//! | `scan` | one pass over `/proc`, and which processes belong to whom |
//! | `cgroup` | the control group of one worker |
//! | `memory` | what was seen of a worker's processes before |
//! | `end` | freezing and killing until nothing is left |
//! | `strays` | processes of which nobody can tell whose they are |
//! | `thread` | the thread that does this, so that the loop never waits for `/proc` |
//!
//! Leaves to others: when something is to end (`worker`, `watcher`).
//! Invariant: neither this process nor the kernel, its keeper or their ancestors are ever
//! signalled.

mod cgroup;
mod end;
mod memory;
mod scan;
pub mod strays;
mod thread;

pub use scan::{Stat, children, descendants, processes, stat};
pub use thread::{Answer, Deed, Leader, Order, TreeThread};

use std::path::PathBuf;

/// A process named by its number and its start, in ticks since boot: together they mean one process
/// for ever.
pub type Identity = (i32, u64);

/// Names one worker among those whose processes are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetId {
    /// Whose worker it is; any number.
    pub owner: u32,
    /// Which one.
    pub serial: u64,
}

/// A worker whose processes are looked for.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its name in answers.
    pub id: TargetId,
    /// Its process id. It leads the session its processes begin in.
    pub leader: i32,
    /// The leader has not been waited for, so that its number is still its own.
    pub leads: bool,
    /// Processes that belong to it, from an earlier look of somebody else.
    pub known: Vec<Identity>,
    /// Directory of the control group it was started in, if the kernel has one for each process.
    pub cgroup: Option<PathBuf>,
    /// Entries of the environment (`NAME=value`) that only its processes have, all of them; none:
    /// it has no mark.
    pub mark: Vec<Vec<u8>>,
}

/// One process that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Process id.
    pub pid: i32,
    /// In ticks since boot.
    pub started: u64,
    /// The name of its command, at most 15 bytes, control characters replaced.
    pub command: String,
}

impl Member {
    /// Number and start.
    #[must_use]
    pub fn identity(&self) -> Identity {
        (self.pid, self.started)
    }
}

/// Processes for people: the first few with their commands, and how many there are.
#[must_use]
pub fn describe(members: &[Member]) -> String {
    const SHOWN: usize = 4;
    let shown: Vec<String> = members
        .iter()
        .take(SHOWN)
        .map(|member| format!("{} ({})", member.pid, member.command))
        .collect();
    let more = members.len().saturating_sub(SHOWN);
    match more {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
