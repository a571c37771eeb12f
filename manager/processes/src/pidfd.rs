//! Signals to workers: to one process, its children, or everything it started.
//!
//! Leaves to others: who those are (`tree`). Every signal goes through a pidfd, checked after it
//! was opened, so that it can never hit a process that merely got the same number.
//! Invariant: only the worker, its descendants and members of its session are ever signalled.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;

use nix::libc;

use crate::tree::{self, Stat, children};
use papa_system::sys;

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

/// Sends `signal` to those of the tree of the process behind `pidfd`, whose pid is `pid`. A process
/// that is gone counts as done.
///
/// # Errors
/// What the system answers for the process itself.
pub fn signal(pidfd: impl AsFd, pid: i32, signal: i32, whom: Whom) -> io::Result<()> {
    // Listed beforehand: when it has ended, its children are somebody else's.
    let others: BTreeMap<i32, Stat> = match whom {
        Whom::Worker => BTreeMap::new(),
        Whom::Tree => tree::descendants(pid),
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
        signal_exactly(other, &stat, signal);
    }
    Ok(())
}

fn signal_exactly(pid: i32, expected: &Stat, signal: i32) {
    let Ok(pidfd) = sys::pidfd_open(pid) else {
        return;
    };
    // Checked with the pidfd in hand: from here on the number cannot go to somebody else unnoticed.
    if tree::stat(pid).is_some_and(|found| found.started == expected.started)
        && let Err(error) = is_gone(sys::pidfd_send_signal(pidfd.as_fd(), signal))
    {
        tracing::warn!(pid, signal, %error, "cannot signal a process of a worker");
    }
}

/// Whether one of these processes still runs.
#[must_use]
pub fn any_lives(members: &[tree::Identity]) -> bool {
    members.iter().any(|(pid, started)| {
        tree::stat(*pid).is_some_and(|stat| stat.started == *started && !stat.is_zombie())
    })
}

/// Whether the process had been waited for already; that is no error.
fn is_gone(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(true),
        other => other.map(|()| false),
    }
}
