//! When and how a log file is turned.
//!
//! Owns the moment, by size and by time, and the order of the steps. Leaves to others: the names
//! and the renames (`rotate`), what a period is (`schedule`).
//! Invariant: a file is turned under a record in the store, with nothing pending; one that cannot
//! be turned grows on.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use papa_test_hooks::failpoint;

use crate::file::{Limits, LogFile, Suspended};
use crate::rotate::{Turn, free_suffix, turn};
use crate::schedule::{self, Now};
use crate::store::Store;

/// A file that could not be rotated grows on; rotation is tried again after this.
const ROTATION_RETRY: Duration = Duration::from_secs(60);
/// How often the clock is read, since it may be set.
const CLOCK_CHECK: Duration = Duration::from_secs(30);

impl LogFile {
    /// Finds when the period of the open file ends, if that is not known.
    pub(super) fn find_period(&mut self, now: Now) {
        if let (None, Some(rotation), Some(handle)) =
            (self.period_end, &self.limits.rotation, &self.handle)
        {
            let data = handle.file.metadata().ok();
            let modified = data.as_ref().and_then(|data| data.modified().ok());
            let modified = modified.map_or(now.epoch_s, schedule::seconds);
            // Some file systems do not record it.
            let created = data.and_then(|data| data.created().ok());
            let created = created.map_or(modified, schedule::seconds);
            // An empty file has no period to keep: its first line will begin it.
            let (created, modified) = if handle.size == 0 {
                (now.epoch_s, now.epoch_s)
            } else {
                (created, modified)
            };
            self.period_end = Some(schedule::period_end(rotation, created, modified));
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.handle.as_ref().map_or(0, |handle| handle.size)
    }

    /// Bytes that may still be added before the size limit asks for a rotation.
    pub(super) fn room(&self, now: Now) -> u64 {
        let Limits {
            max_bytes,
            backup_count,
            rotation,
            ..
        } = self.limits;
        let regular = self.handle.as_ref().is_some_and(|handle| handle.regular);
        let paused = self
            .rotation_paused_until
            .is_some_and(|until| now.at < until);
        let never = backup_count == 0 && rotation.is_none();
        if max_bytes == 0 || never || !regular || paused {
            return u64::MAX;
        }
        (max_bytes - 1).saturating_sub(self.size() + self.pending.bytes.len() as u64)
    }

    /// Turns the file if its period is over.
    pub(super) fn turn_if_over(&mut self, store: &mut Store, now: Now) -> Result<(), Suspended> {
        let over = self.period_end.is_some_and(|end| end <= now.epoch_s);
        let regular = self.handle.as_ref().is_some_and(|handle| handle.regular);
        let paused = self
            .rotation_paused_until
            .is_some_and(|until| now.at < until);
        if !over || !regular || paused {
            return Ok(());
        }
        self.flush(store, now)?;
        self.ready(now)?;
        if self.size() == 0 {
            self.period_end = None;
            return self.ready(now);
        }
        self.rotate(store, now)
    }

    /// Turns the file if its period is over although nothing is written.
    pub fn tick(&mut self, store: &mut Store, now: Now) {
        if self.limits.rotation.is_none() || self.trouble.is_some() {
            return;
        }
        self.ticked = true;
        // A file that nobody writes to is not created only to be rotated.
        if self.handle.is_some() || fs::symlink_metadata(&self.path).is_ok() {
            let _ = self.ready(now).and_then(|()| self.turn_if_over(store, now));
        }
    }

    /// When `tick` has something to do; sooner if that is far off, since the clock may be set.
    #[must_use]
    pub fn next_tick(&self, now: Now) -> Option<Instant> {
        self.limits.rotation.as_ref()?;
        if self.trouble.is_some() {
            return None;
        }
        let paused = self.rotation_paused_until.filter(|until| now.at < *until);
        let wait = match self.period_end {
            Some(end) if self.handle.is_some() => end
                .saturating_sub(now.epoch_s)
                .clamp(0, CLOCK_CHECK.as_secs().cast_signed()),
            _ if self.ticked => CLOCK_CHECK.as_secs().cast_signed(),
            _ => 0,
        };
        let due = now.at + Duration::from_secs(wait.unsigned_abs());
        Some(paused.map_or(due, |until| until.max(due)))
    }

    pub(super) fn rotate(&mut self, store: &mut Store, now: Now) -> Result<(), Suspended> {
        self.ready(now)?;
        let Some(id) = self.handle.as_ref().map(|handle| handle.id) else {
            return Err(Suspended);
        };
        let plan = match self.plan(now) {
            Ok(plan) => plan,
            Err(error) => {
                self.pause_rotation(&error, now);
                return Ok(());
            }
        };
        // Without a free slot the file grows on for a while: a line is worth more than a size.
        let Some(slot) = store.acquire() else {
            let error = io::Error::other("too many log files have unfinished writes");
            self.pause_rotation(&error, now);
            return Ok(());
        };
        let turned = store
            .begin_rotate(slot, &self.path, id, &plan)
            .and_then(|()| turn(&self.path, id, &plan));
        if let Err(error) = turned {
            self.pause_rotation(&error, now);
        }
        failpoint::reach("log.rotated");
        self.handle = None;
        self.compress_due = true;
        // The new file is there before the record goes: a successor must not take it for the old
        // one.
        let opened = self.ready(now);
        if let Err(error) = store.release(slot) {
            self.suspend(&error, now, None);
            return Err(Suspended);
        }
        opened
    }

    fn plan(&self, now: Now) -> io::Result<Turn> {
        let backup_count = self.limits.backup_count;
        Ok(match &self.limits.rotation {
            None => Turn::Shift { backup_count },
            Some(rotation) => {
                let end = self.period_end.unwrap_or(now.epoch_s);
                Turn::Rename {
                    suffix: free_suffix(&self.path, &schedule::stamp(rotation, end))?,
                    backup_count,
                }
            }
        })
    }

    pub(super) fn pause_rotation(&mut self, error: &io::Error, now: Now) {
        tracing::warn!(path = %self.path.display(), %error, "cannot rotate the log file; it keeps growing");
        self.rotation_paused_until = Some(now.at + ROTATION_RETRY);
    }
}
