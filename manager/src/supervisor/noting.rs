//! The workers that are known by process number, noted in a file for the next manager.
//!
//! Owns when the file is written: soon after a change, one write at a time, and a last time when the
//! manager ends. Leaves to others: what is known (`orphans`) and the file itself (`orphan::Notes`).
//! Invariant: a write begins only when the one before is over, so the newest content stays.

use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::orphan::{Known, Notes};
use crate::pidfd;
use crate::supervisor::{Event, LAST_WORDS, Supervisor};

/// Shortest time from one write to the next: starts and ends come in bursts.
const PAUSE: Duration = Duration::from_millis(50);
/// From a write that failed to the next.
const RETRY: Duration = Duration::from_secs(5);

/// The file, and whether it holds what is known.
#[derive(Debug)]
pub(super) struct Noting {
    notes: Notes,
    state: State,
    /// No write begins before.
    not_before: Option<Instant>,
    /// The last write failed; that was said.
    failed: bool,
}

#[derive(Debug)]
enum State {
    /// The file holds what is known.
    Current,
    /// What is known has changed since.
    Changed,
    /// A write is under way, and perhaps what is known has changed since it began.
    Writing {
        changed: bool,
        write: JoinHandle<()>,
    },
}

impl Noting {
    pub(super) fn new(notes: Notes) -> Self {
        Self {
            notes,
            state: State::Current,
            not_before: None,
            failed: false,
        }
    }

    /// What an earlier manager noted.
    pub(super) fn read(&self) -> Vec<Known> {
        self.notes.read()
    }

    /// What is known differs from what was noted.
    pub(super) fn change(&mut self) {
        match &mut self.state {
            State::Current => self.state = State::Changed,
            State::Changed => {}
            State::Writing { changed, .. } => *changed = true,
        }
    }

    /// When the next write is due.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        matches!(self.state, State::Changed).then(|| self.not_before.unwrap_or(now))
    }

    /// A write is over.
    fn written(&mut self, result: Result<(), String>, now: Instant) {
        let changed = matches!(self.state, State::Writing { changed: true, .. });
        self.state = if changed || result.is_err() {
            State::Changed
        } else {
            State::Current
        };
        self.not_before = Some(now + if result.is_ok() { PAUSE } else { RETRY });
        let failed = result.is_err();
        if let Err(error) = result
            && !self.failed
        {
            tracing::warn!(
                path = %self.notes.path().display(),
                error,
                "cannot note the workers for the next manager; it will not know orphans without an environment mark"
            );
        }
        self.failed = failed;
    }
}

impl Supervisor {
    /// Notes what is known, if that has changed and it is time.
    pub(super) fn note_known(&mut self, now: Instant) {
        if self.orphans_of_kernels.take_change() {
            self.noting.change();
        }
        if self.noting.deadline(now).is_none_or(|at| now < at) {
            return;
        }
        let notes = self.noting.notes.clone();
        let known = self.orphans_of_kernels.known();
        let events = self.events.clone();
        let write = tokio::task::spawn_blocking(move || {
            let result = write(&notes, known).map_err(|error| error.to_string());
            // The loop is gone only when the manager ends.
            let _ = events.blocking_send(Event::KnownNoted(result));
        });
        self.noting.state = State::Writing {
            changed: false,
            write,
        };
    }

    /// A write is over.
    pub(super) fn known_noted(&mut self, result: Result<(), String>) {
        self.noting.written(result, Instant::now());
    }

    /// Notes what is known when the manager ends, and takes no longer than [`LAST_WORDS`].
    pub(super) async fn note_known_last(&mut self) {
        let notes = self.noting.notes.clone();
        let known = self.orphans_of_kernels.known();
        let before = std::mem::replace(&mut self.noting.state, State::Current);
        let last = async {
            if let State::Writing { write, .. } = before {
                // The loop takes no events any more, and the queue has room for this one.
                let _ = write.await;
            }
            let last = tokio::task::spawn_blocking(move || write(&notes, known));
            if let Ok(Err(error)) = last.await {
                tracing::warn!(%error, "cannot note the workers for the next manager");
            }
        };
        let _ = tokio::time::timeout(LAST_WORDS, last).await;
    }
}

/// Writes those that still run.
fn write(notes: &Notes, mut known: Vec<Known>) -> std::io::Result<()> {
    known.retain(|known| pidfd::any_lives(&[(known.pid, known.started)]));
    notes.write(&known)
}
