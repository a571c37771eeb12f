//! One log file: opened with care, appended to exactly once, rotated by size.
//!
//! Owns the open file, the bytes waiting to be written and the state of a write that failed; its
//! unfinished work is recorded in the `Store` before it begins. Leaves to others: what is written
//! (`writer`), when to try again.
//! Invariant: a byte reaches the file only under a record in the store, and a failed write leaves
//! either nothing in the file or a record from which the rest is written. One `LogFile` exists per
//! path, however many streams name it.
//! Source: Circus 0.17.2's `FileStream` for names and moment of a rotation.

#[cfg(test)]
mod cut;
#[cfg(test)]
mod damage;
#[cfg(test)]
mod fixtures;
mod turning;
mod write;

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use papa_config::RotationConfig;
use papa_test_hooks::failpoint;

use crate::disk::{Handle, find, is_own_stdout, open, resume, split_lines};
use crate::file::write::{Attempt, Pending, Stuck};
use crate::file_id::file_id;
use crate::layout::{Delta, MAX_BATCH_BYTES, MAX_DELTAS, Slot, Source, Unfinished, Work};
use crate::own_output::{OWN_STDOUT, look_at_output};
use crate::rotate::turn;
use crate::schedule::Now;
use crate::store::Store;

/// First pause after a file refused a write.
const RETRY_MIN: Duration = Duration::from_millis(250);
/// Longest pause: a disk that has room again is noticed within it.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Whole lines of at least this many bytes are written from where they are, with what was pending;
/// fewer are collected.
const DIRECT_BYTES: usize = 32 * 1024;

/// Entries for its position and for a line that was cut.
const DELTAS_OF_A_UNIT: usize = 2;

/// When a file is rotated or reopened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Rotate before a write that would reach this size; 0 means never.
    pub max_bytes: u64,
    /// Rotated files kept; 0 means: never rotate.
    pub backup_count: u32,
    /// Reopen when somebody else moved the file.
    pub watch_path: bool,
    /// Rotate by time; all files are then named by it, also those turned for their size.
    pub rotation: Option<RotationConfig>,
    /// Compress rotated files.
    pub compress: bool,
    /// Make missing directories.
    pub mkdir: bool,
}

/// The file cannot be written for now; what was offered is not in it and must be offered again
/// later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suspended;

/// One log file.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    limits: Limits,
    /// A stream has named the path: a predecessor's write may be finished before that.
    limits_decided: bool,
    /// The log has a line about the dispute.
    limits_disputed: bool,
    handle: Option<Handle>,
    pending: Pending,
    trouble: Option<Trouble>,
    /// Grows with failures in a row.
    retry_delay: Duration,
    /// The log has a line about its trouble, and none yet that a write succeeded since.
    said: bool,
    rotation_paused_until: Option<Instant>,
    /// When the period of the open file ends, in seconds since the epoch.
    period_end: Option<i64>,
    /// Whether `tick` has looked at the path since it is known when to turn it.
    ticked: bool,
    /// There may be rotated files to compress.
    compress_due: bool,
}

#[derive(Debug)]
struct Trouble {
    reason: String,
    remedy: Option<&'static str>,
    retry_at: Instant,
    stuck: Option<Stuck>,
}

impl LogFile {
    /// A file that is opened when the first byte comes.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            limits: Limits::default(),
            limits_decided: false,
            limits_disputed: false,
            handle: None,
            pending: Pending::default(),
            trouble: None,
            retry_delay: RETRY_MIN,
            said: false,
            rotation_paused_until: None,
            period_end: None,
            ticked: false,
            compress_due: false,
        }
    }

    /// Finishes what a predecessor had begun. When that fails the file is suspended, as after any
    /// failed write.
    pub fn recover(store: &mut Store, unfinished: Unfinished, now: Now) -> Self {
        let mut log = Self::new(unfinished.path.clone());
        log.take_over(store, unfinished, now);
        log
    }

    fn take_over(&mut self, store: &mut Store, unfinished: Unfinished, now: Now) {
        match &unfinished.work {
            Work::Write { .. } => self.take_over_write(store, unfinished, now),
            Work::Rotate(turning) => {
                tracing::info!(path = %self.path.display(), "finishing an interrupted log rotation");
                if let Err(error) = turn(&self.path, unfinished.file, turning) {
                    // As when it is ours: a line is worth more than a size, and the next turn fills
                    // what this one left.
                    self.pause_rotation(&error, now);
                }
                if let Err(error) = store.release(unfinished.slot) {
                    self.suspend(&error, now, Some(Stuck::Unopened(unfinished)));
                }
            }
        }
    }

    fn take_over_write(&mut self, store: &mut Store, unfinished: Unfinished, now: Now) {
        let path = self.path.display();
        let (slot, file, written) = (unfinished.slot, unfinished.file, unfinished.written);
        let Work::Write { start, bytes, .. } = &unfinished.work else {
            return;
        };
        let found = resume(&self.path, file, *start, bytes, written).and_then(|found| {
            if found.is_another {
                // Before a byte is in it: a successor must find it there.
                store.retarget(slot, found.handle.id, found.handle.size)?;
            }
            Ok(found)
        });
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                if !self.said {
                    tracing::warn!(%path, %error, "cannot finish an interrupted log write yet");
                }
                return self.suspend(&error, now, Some(Stuck::Unopened(unfinished)));
            }
        };
        let (handle, written) = (found.handle, found.written);
        tracing::info!(%path, bytes = bytes.len(), written, "finishing an interrupted log write");
        if let Work::Write {
            start,
            bytes,
            deltas,
        } = unfinished.work
        {
            let attempt = Attempt {
                slot,
                id: handle.id,
                start: if found.is_another { handle.size } else { start },
                file: handle.file,
                regular: handle.regular,
                bytes,
                written,
                deltas,
            };
            self.finish(store, attempt, now);
        }
    }

    /// The next stream to name the path decides anew.
    pub fn renew_limits(&mut self) {
        self.limits_decided = false;
        self.limits_disputed = false;
    }

    /// Sets when the file is rotated. The first stream that names a path decides, since two rules
    /// for one file would conflict.
    pub fn set_limits(&mut self, limits: Limits) {
        let nothing = Limits::default();
        if limits == nothing && self.limits_decided {
            // A stream without limits accepts those of others.
        } else if !self.limits_decided || self.limits == nothing {
            self.limits = limits;
            self.limits_decided = true;
            self.compress_due = limits.compress;
            self.period_end = None;
            self.ticked = false;
        } else if self.limits != limits && !self.limits_disputed {
            self.limits_disputed = true;
            tracing::warn!(path = %self.path.display(), max_bytes = self.limits.max_bytes, backup_count = self.limits.backup_count, "two streams share a log file; using the limits of the first");
        }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether rotated files may wait for compression; asking again after `compressed_all` says no.
    #[must_use]
    pub fn wants_compression(&self) -> bool {
        self.limits.compress && self.compress_due
    }

    /// Notes that no rotated file waits for compression.
    pub fn compressed_all(&mut self) {
        self.compress_due = false;
    }

    /// Why the file is suspended, and when it is tried again; none if it is not.
    #[must_use]
    pub fn trouble(&self) -> Option<(&str, Instant)> {
        self.trouble
            .as_ref()
            .map(|t| (t.reason.as_str(), t.retry_at))
    }

    /// What a person can do about it, where that is known.
    #[must_use]
    pub fn remedy(&self) -> Option<&'static str> {
        self.trouble.as_ref().and_then(|trouble| trouble.remedy)
    }

    /// Whether the file is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.handle.is_some()
    }

    /// Closes the file until the next byte comes, if nothing waits to be written.
    pub fn rest(&mut self) {
        if self.pending.bytes.is_empty() {
            self.handle = None;
        }
    }

    /// Whether a write is in the file in part.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        self.trouble.as_ref().is_some_and(|t| t.stuck.is_some())
    }

    /// Closes the file; the next byte opens the path anew. A file in which half a write stands is
    /// let go too, if it is deleted or can be found again; it is tried at once.
    pub fn reopen(&mut self) {
        self.handle = None;
        let Some(trouble) = &mut self.trouble else {
            return;
        };
        trouble.retry_at = Instant::now();
        trouble.stuck = match trouble.stuck.take() {
            Some(Stuck::Write(attempt))
                if attempt.is_deleted() || find(&self.path, attempt.id).is_some() =>
            {
                Some(Stuck::Unopened(attempt.let_go(&self.path)))
            }
            stuck => stuck,
        };
    }

    /// Adds one unit that must not be torn by a rotation, given in parts; `delta` holds once it is
    /// in the file.
    ///
    /// # Errors
    /// [`Suspended`]: nothing pending was written either.
    pub fn append(
        &mut self,
        store: &mut Store,
        parts: &[&[u8]],
        delta: Delta,
        now: Now,
    ) -> Result<(), Suspended> {
        let length = parts.iter().map(|part| part.len()).sum();
        self.make_room(store, length, now)?;
        for part in parts {
            self.pending.bytes.extend_from_slice(part);
        }
        self.pending.note(delta);
        Ok(())
    }

    /// Notes what else holds once the unit added last is in the file.
    pub(super) fn note(&mut self, delta: Delta) {
        self.pending.note(delta);
    }

    /// Adds whole lines of one source, the first byte being at `position`; a rotation may fall
    /// between two lines.
    ///
    /// # Errors
    /// [`Suspended`]: nothing pending was written either.
    pub fn append_lines(
        &mut self,
        store: &mut Store,
        mut lines: &[u8],
        source: Source,
        mut position: u64,
        now: Now,
    ) -> Result<(), Suspended> {
        while !lines.is_empty() {
            self.ready(now)?;
            let batch = MAX_BATCH_BYTES.saturating_sub(self.pending.bytes.len());
            let room = if batch < DIRECT_BYTES {
                self.room(now)
            } else {
                self.room(now).min(batch as u64)
            };
            let (piece, rest) = split_lines(lines, room);
            position += piece.len() as u64;
            let delta = Delta { source, position };
            if piece.len() < DIRECT_BYTES {
                self.append(store, &[piece], delta, now)?;
            } else {
                self.make_room(store, piece.len(), now)?;
                self.pending.note(delta);
                self.write(store, piece, now)?;
            }
            lines = rest;
        }
        Ok(())
    }

    /// Whether something that was taken in is not in the file: it waits for the next flush, or the
    /// file was suspended since the last.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        !self.pending.bytes.is_empty() || self.trouble.is_some()
    }

    /// Writes everything pending.
    ///
    /// # Errors
    /// [`Suspended`]: what was pending is gone from here and must be offered again once the file
    /// resumes, but for what the store then says is done.
    pub fn flush(&mut self, store: &mut Store, now: Now) -> Result<(), Suspended> {
        if self.trouble.is_some() {
            return Err(Suspended);
        }
        if self.pending.bytes.is_empty() {
            return Ok(());
        }
        self.write(store, &[], now)
    }

    /// Tries again after a failure. True when the file resumed: its sources are to be read again
    /// from their done positions.
    pub fn retry(&mut self, store: &mut Store, now: Now) -> bool {
        let Some(trouble) = self.trouble.take_if(|trouble| trouble.retry_at <= now.at) else {
            return false;
        };
        match trouble.stuck {
            Some(Stuck::Write(attempt)) if attempt.is_deleted() => {
                let unfinished = attempt.let_go(&self.path);
                self.take_over(store, unfinished, now);
            }
            Some(Stuck::Write(attempt)) => self.finish(store, attempt, now),
            Some(Stuck::Unopened(unfinished)) => self.take_over(store, unfinished, now),
            None => {
                let _ = self.ready(now);
            }
        }
        self.trouble.is_none()
    }

    /// Writes what is pending and `more` behind it, for which the position is noted already.
    fn write(&mut self, store: &mut Store, more: &[u8], now: Now) -> Result<(), Suspended> {
        self.check_path();
        self.ready(now)?;
        let mut written = 0;
        match self.begin(store, more) {
            Ok(slot) => {
                let result = self.carry_out(store, slot, more, &mut written);
                if let Err(error) = result {
                    self.break_off(store, slot, more, written, &error, now);
                }
            }
            Err(error) => self.suspend(&error, now, None),
        }
        self.trouble.as_ref().map_or(Ok(()), |_| Err(Suspended))
    }

    fn begin(&mut self, store: &mut Store, more: &[u8]) -> io::Result<Slot> {
        let Some(handle) = &self.handle else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let slot = store.acquire().ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::QuotaExceeded,
                "too many log files have unfinished writes",
            )
        })?;
        let Pending { bytes, deltas, .. } = &self.pending;
        let parts = [bytes, more];
        if let Err(error) =
            store.begin_write(slot, &self.path, handle.id, handle.size, &parts, deltas)
        {
            store.release(slot)?;
            return Err(error);
        }
        failpoint::reach("log.before_write");
        Ok(slot)
    }

    fn carry_out(
        &mut self,
        store: &mut Store,
        slot: Slot,
        more: &[u8],
        written: &mut usize,
    ) -> io::Result<()> {
        let Some(handle) = &mut self.handle else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let parts = [self.pending.bytes.as_slice(), more];
        write::write(&handle.file, handle.regular, parts, written, "log.in_write")?;
        failpoint::reach("log.after_write");
        store.finish_write(slot, &self.pending.deltas)?;
        handle.size += *written as u64;
        self.pending.clear();
        self.is_well();
        Ok(())
    }

    /// Notes that a write succeeded.
    fn is_well(&mut self) {
        self.retry_delay = RETRY_MIN;
        if std::mem::take(&mut self.said) {
            tracing::info!(path = %self.path.display(), "log file can be written again");
        }
    }

    /// Suspends the file after a recorded write that failed.
    fn break_off(
        &mut self,
        store: &mut Store,
        slot: Slot,
        more: &[u8],
        written: usize,
        error: &io::Error,
        now: Now,
    ) {
        let Some(handle) = self.handle.take().filter(|_| written > 0) else {
            // Not a byte is in the file: the record can simply go.
            let released = store.release(slot);
            return self.suspend(released.as_ref().err().unwrap_or(error), now, None);
        };
        let Pending {
            mut bytes, deltas, ..
        } = std::mem::take(&mut self.pending);
        bytes.extend_from_slice(more);
        failpoint::reach("log.cut");
        if let Err(error) = store.note_written(slot, written) {
            tracing::warn!(path = %self.path.display(), %error, "cannot record the progress of a write in the log state");
        }
        failpoint::reach("log.cut_noted");
        let attempt = Attempt {
            slot,
            id: handle.id,
            start: handle.size,
            file: handle.file,
            regular: handle.regular,
            bytes,
            written,
            deltas,
        };
        self.suspend(error, now, Some(Stuck::Write(attempt)));
    }

    /// Carries a write that had failed, or a predecessor's, to its end, or suspends the file.
    fn finish(&mut self, store: &mut Store, mut attempt: Attempt, now: Now) {
        failpoint::reach("log.before_rest");
        if let Err(error) = attempt.proceed() {
            if attempt.written > 0 {
                if let Err(error) = store.note_written(attempt.slot, attempt.written) {
                    tracing::warn!(path = %self.path.display(), %error, "cannot record the progress of a write in the log state");
                }
                return self.suspend(&error, now, Some(Stuck::Write(attempt)));
            }
            let released = store.release(attempt.slot);
            return self.suspend(&released.err().unwrap_or(error), now, None);
        }
        failpoint::reach("log.after_rest");
        if let Err(error) = store.finish_write(attempt.slot, &attempt.deltas) {
            return self.suspend(&error, now, Some(Stuck::Write(attempt)));
        }
        self.is_well();
    }

    fn suspend(&mut self, error: &io::Error, now: Now, stuck: Option<Stuck>) {
        if !std::mem::replace(&mut self.said, true) {
            tracing::warn!(path = %self.path.display(), %error, "cannot write the log file; its output waits in the kernel");
        }
        self.pending = Pending::default();
        self.handle = None;
        self.trouble = Some(Trouble {
            reason: format!(
                "log {} cannot be written: {}",
                self.path.display(),
                words(error)
            ),
            remedy: remedy(error),
            retry_at: now.at + self.retry_delay,
            stuck,
        });
        self.retry_delay = (self.retry_delay * 2).min(RETRY_MAX);
    }

    /// Opens the file if it is not open.
    fn ready(&mut self, now: Now) -> Result<(), Suspended> {
        if self.trouble.is_some() {
            return Err(Suspended);
        }
        if self.handle.is_none() {
            match open(&self.path, self.limits.mkdir) {
                Ok(handle) => {
                    self.handle = Some(handle);
                    self.period_end = None;
                }
                Err(error) => {
                    self.suspend(&error, now, None);
                    return Err(Suspended);
                }
            }
        }
        self.find_period(now);
        Ok(())
    }

    /// Makes the next `length` bytes fit the batch and the size limit.
    fn make_room(&mut self, store: &mut Store, length: usize, now: Now) -> Result<(), Suspended> {
        self.ready(now)?;
        if self.pending.bytes.len() + length > MAX_BATCH_BYTES
            || self.pending.deltas.len() + DELTAS_OF_A_UNIT > MAX_DELTAS
        {
            self.flush(store, now)?;
            self.ready(now)?;
        }
        self.turn_if_over(store, now)?;
        if length as u64 > self.room(now) && self.size() + self.pending.bytes.len() as u64 > 0 {
            self.flush(store, now)?;
            self.rotate(store, now)?;
        }
        Ok(())
    }

    /// Closes the file when it was deleted, or moved and the path is to be watched: what is written
    /// there would be lost.
    fn check_path(&mut self) {
        let is_own_output = self.path == Path::new(OWN_STDOUT);
        if is_own_output {
            look_at_output();
        }
        let Some(handle) = &mut self.handle else {
            return;
        };
        let data = handle.file.metadata();
        // The length is read anew, because logrotate may have truncated the file in place.
        handle.size = data.as_ref().map_or(handle.size, Metadata::len);
        let deleted = handle.regular && data.is_ok_and(|data| data.nlink() == 0);
        let moved = self.limits.watch_path
            && fs::metadata(&self.path).map_or(true, |data| file_id(&data) != handle.id);
        let put_aside = is_own_output && !is_own_stdout(handle.id);
        if deleted || moved || put_aside {
            self.handle = None;
        }
    }
}

/// The text of an error without its number.
fn words(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error ") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}

fn remedy(error: &io::Error) -> Option<&'static str> {
    Some(match Errno::from_raw(error.raw_os_error()?) {
        Errno::ENOENT => "make its directory, or set mkdir = yes for the stream",
        Errno::EACCES => "let the user of the manager write there",
        Errno::EPERM => {
            "let the user of the manager write there; `lsattr` shows whether it is immutable"
        }
        Errno::ENOSPC => "make room on its disk",
        Errno::EDQUOT => "make room, or raise the quota",
        Errno::EROFS => "mount its file system writable",
        Errno::EISDIR => "remove the directory that is in its place",
        Errno::ENXIO => "remove the FIFO in its place, or let somebody read it",
        Errno::EFBIG => {
            "raise the limit on file size (`ulimit -f`) and start the manager anew, or set max_bytes for the stream"
        }
        Errno::EIO => "its disk fails; `dmesg` says more",
        _ => return None,
    })
}
