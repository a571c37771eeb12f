//! What `down` ends where no manager can: workers that one left in the kernel, and orphans that a
//! lost kernel left.
//!
//! Owns the order: the kernel's workers (`workers`), then orphans (`orphans`), then a note of what
//! is left. Finding and signalling processes are `papa_processes`'s.
//! Invariants: only processes with a worker's name in the namespace, with its mark, or known to a
//! manager as its workers are ended, each signalled through a pidfd. Nothing is waited for beyond
//! the deadline.

mod orphans;
mod task;
mod workers;

use std::fmt::Write as _;

use papa_processes::orphan::{Known, Notes};
use papa_processes::pidfd;
use papa_system::runtime_dir::RuntimeDir;

use crate::commands::CommandError;

pub(super) use task::{Ended, Task};

/// Most processes named one by one that are left.
const MAX_LEFT: usize = 20;

/// Ends everything that an earlier manager, or an earlier kernel, has left.
pub(super) fn end(task: &Task<'_>) -> Result<Ended, CommandError> {
    let notes = Notes::new(RuntimeDir::locate(), task.namespace);
    let noted = notes.read();
    let (mut ended, spared) = workers::end_workers(task)?.unwrap_or_default();
    orphans::end_orphans(task, &noted, &spared, &mut ended);
    let lives = |known: &Known| pidfd::any_lives(&[(known.pid, known.started)]);
    let left: Vec<Known> = noted.into_iter().filter(lives).collect();
    if let Err(error) = notes.write(&left) {
        tracing::warn!(path = %notes.path().display(), %error, "cannot note what is left");
    }
    Ok(ended)
}

/// What people are told of those that are left; none if there are none.
pub(super) fn tell_left(left: &[String]) -> Option<String> {
    let (first, more) = left.split_at(left.len().min(MAX_LEFT));
    if first.is_empty() {
        return None;
    }
    let mut text = format!("not ended: {}", first.join("; "));
    if !more.is_empty() {
        // Writing to a string does not fail.
        let _ = write!(text, "; and {} more", more.len());
    }
    text.push_str(
        "; try again with a longer --timeout, or see what they wait for (state D: a device or file system that does not answer)",
    );
    Some(text)
}
