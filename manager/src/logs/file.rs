//! One log file: opened with care, appended to exactly once, rotated by size.
//!
//! Owns the open file, the bytes waiting to be written and the state of a write that failed; its unfinished work is recorded in the
//! `Store` before it begins. Leaves to others: what is written (`writer`), when to try again.
//! Invariant: a byte reaches the file only under a record in the store, and a failed write leaves either nothing in the file or a
//! record from which the rest is written. One `LogFile` exists per path, however many streams name it.
//! Source: design.md, "Logs exactly once"; reference/circus.md section 4 for names and moment of a rotation.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::config::RotationConfig;
use crate::logs::disk::{Handle, file_id, open, resume, split_lines};
use crate::logs::failpoint::{self, Step};
use crate::logs::layout::{Delta, MAX_BATCH_BYTES, MAX_DELTAS, Slot, Source, Unfinished, Work};
use crate::logs::rotate::{Plan, free_suffix, turn};
use crate::logs::schedule::{self, Now};
use crate::logs::store::Store;

/// First pause after a file refused a write.
const RETRY_MIN: Duration = Duration::from_millis(250);
/// Longest pause: a disk that has room again is noticed within it.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// A file that could not be rotated grows on; rotation is tried again after this.
const ROTATION_RETRY: Duration = Duration::from_secs(60);

/// How often a clock that may be set is looked at.
const CLOCK_CHECK: Duration = Duration::from_secs(30);
/// What a pipe that is writable at all takes without waiting, by POSIX at least 512, on Linux this.
const PIPE_BUF: usize = 4096;

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

/// The file cannot be written for now; what was offered is not in it and must be offered again later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suspended;

/// One log file.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    limits: Limits,
    /// A stream has named the path: a predecessor's write may be finished before that.
    limits_decided: bool,
    /// Said so once.
    limits_disputed: bool,
    handle: Option<Handle>,
    pending: Pending,
    trouble: Option<Trouble>,
    /// Grows with failures in a row.
    retry_delay: Duration,
    rotation_paused_until: Option<Instant>,
    /// When the period of the open file ends, in seconds since the epoch.
    period_end: Option<i64>,
    /// Whether `tick` has looked at the path since it is known when to turn it.
    ticked: bool,
    /// There may be rotated files to compress.
    compress_due: bool,
}

#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    deltas: Vec<Delta>,
    index: HashMap<Source, usize>,
}

#[derive(Debug)]
struct Trouble {
    reason: String,
    retry_at: Instant,
    stuck: Option<Stuck>,
}

/// Our standard output is not ours alone, so it is never made non-blocking; it is asked instead.
fn writable_now(file: &File) -> io::Result<()> {
    let mut asked = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
    match poll(&mut asked, PollTimeout::ZERO)? {
        0 => Err(io::Error::new(
            io::ErrorKind::WouldBlock,
            "its reader does not keep up",
        )),
        _ => Ok(()),
    }
}

/// What must be finished before anything else goes to the file.
#[derive(Debug)]
enum Stuck {
    /// Our own write, begun and not complete.
    Write(Attempt),
    /// A predecessor's, not even looked at with success.
    Predecessor(Unfinished),
}

/// A write recorded in the store and not complete.
#[derive(Debug)]
struct Attempt {
    slot: Slot,
    file: File,
    /// Not a pipe or terminal.
    regular: bool,
    bytes: Vec<u8>,
    written: usize,
    deltas: Vec<Delta>,
}

impl Attempt {
    /// Writes what is left.
    fn proceed(&mut self) -> io::Result<()> {
        while let Some(rest) = self
            .bytes
            .get(self.written..)
            .filter(|rest| !rest.is_empty())
        {
            let (first, last) = rest.split_at(rest.len() / 2);
            let rest = match (self.regular, failpoint::reach_in_write()) {
                // Ours is not the only hand on it: never more than there is room for.
                (false, _) => {
                    writable_now(&self.file)?;
                    rest.get(..PIPE_BUF).unwrap_or(rest)
                }
                (true, true) if !first.is_empty() && !last.is_empty() => first,
                (true, _) => rest,
            };
            match self.file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.written += count;
                    failpoint::reach(Step::InWrite);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
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
            rotation_paused_until: None,
            period_end: None,
            ticked: false,
            compress_due: false,
        }
    }

    /// Finishes what a predecessor had begun. When that fails the file is suspended, as after any failed write.
    pub fn recover(store: &mut Store, unfinished: Unfinished, now: Now) -> Self {
        let mut log = Self::new(unfinished.path.clone());
        log.take_over(store, unfinished, now);
        log
    }

    fn take_over(&mut self, store: &mut Store, unfinished: Unfinished, now: Now) {
        let path = self.path.display();
        match &unfinished.work {
            Work::Write { start, bytes, .. } => {
                let (file, regular, written) = match resume(
                    &self.path,
                    unfinished.file,
                    *start,
                    bytes,
                ) {
                    Ok(found) => found,
                    Err(error) => {
                        tracing::warn!(%path, %error, "an interrupted log write cannot be finished yet");
                        return self.suspend(&error, now, Some(Stuck::Predecessor(unfinished)));
                    }
                };
                tracing::info!(%path, bytes = bytes.len(), written, "finishing an interrupted log write");
                if let Work::Write { bytes, deltas, .. } = unfinished.work {
                    let attempt = Attempt {
                        slot: unfinished.slot,
                        file,
                        regular,
                        bytes,
                        written,
                        deltas,
                    };
                    self.finish(store, attempt, now);
                }
            }
            Work::Rotate(plan) => {
                tracing::info!(%path, "finishing an interrupted log rotation");
                let turned = turn(&self.path, unfinished.file, plan);
                if let Err(error) = turned.and_then(|()| store.release(unfinished.slot)) {
                    self.suspend(&error, now, Some(Stuck::Predecessor(unfinished)));
                }
            }
        }
    }

    /// The next stream to name the path decides anew.
    pub fn renew_limits(&mut self) {
        self.limits_decided = false;
        self.limits_disputed = false;
    }

    /// Says when the file is rotated. The first stream to name a path decides: two rotations of one file would fight.
    pub fn set_limits(&mut self, limits: Limits) {
        let nothing = Limits::default();
        if limits == nothing && self.limits_decided {
            // A stream that says nothing of it agrees with those that do.
        } else if !self.limits_decided || self.limits == nothing {
            self.limits = limits;
            self.limits_decided = true;
            self.compress_due = limits.compress;
            self.period_end = None;
            self.ticked = false;
        } else if self.limits != limits && !self.limits_disputed {
            self.limits_disputed = true;
            tracing::warn!(path = %self.path.display(), max_bytes = self.limits.max_bytes, backup_count = self.limits.backup_count, "two streams share the log file; the first one's limits hold");
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether rotated files may wait for compression; asking again after `compressed_all` says no.
    #[must_use]
    pub fn wants_compression(&self) -> bool {
        self.limits.compress && self.compress_due
    }

    /// None is left.
    pub fn compressed_all(&mut self) {
        self.compress_due = false;
    }

    /// When the file was asked to wait until, and why; `None` when all is well.
    #[must_use]
    pub fn trouble(&self) -> Option<(&str, Instant)> {
        self.trouble
            .as_ref()
            .map(|t| (t.reason.as_str(), t.retry_at))
    }

    /// Whether a write is in the file in part.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        self.trouble.as_ref().is_some_and(|t| t.stuck.is_some())
    }

    /// Closes the file; the next byte opens the path anew.
    pub fn reopen(&mut self) {
        self.handle = None;
    }

    /// Adds one unit that must not be torn by a rotation, given in parts; `delta` holds once it is in the file.
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

    /// Adds whole lines of one source, the first byte being at `position`; a rotation may fall between two lines.
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
            let (piece, rest) = split_lines(lines, self.room(now));
            position += piece.len() as u64;
            self.append(store, &[piece], Delta { source, position }, now)?;
            lines = rest;
        }
        Ok(())
    }

    /// Writes everything pending.
    ///
    /// # Errors
    /// [`Suspended`]: what was pending is gone from here and must be offered again once the file resumes, but for what the store
    /// then says is done.
    pub fn flush(&mut self, store: &mut Store, now: Now) -> Result<(), Suspended> {
        if self.trouble.is_some() {
            return Err(Suspended);
        }
        if self.pending.bytes.is_empty() {
            return Ok(());
        }
        self.check_path();
        self.ready(now)?;
        match self.begin(store) {
            Ok(attempt) => self.finish(store, attempt, now),
            Err(error) => self.suspend(&error, now, None),
        }
        self.trouble.as_ref().map_or(Ok(()), |_| Err(Suspended))
    }

    /// Tries again after a failure. True when the file resumed: its sources are to be read again from their done positions.
    pub fn retry(&mut self, store: &mut Store, now: Now) -> bool {
        let Some(trouble) = self.trouble.take_if(|trouble| trouble.retry_at <= now.at) else {
            return false;
        };
        match trouble.stuck {
            Some(Stuck::Write(attempt)) => self.finish(store, attempt, now),
            Some(Stuck::Predecessor(unfinished)) => self.take_over(store, unfinished, now),
            None => {
                let _ = self.ready(now);
            }
        }
        if self.trouble.is_none() {
            tracing::info!(path = %self.path.display(), "the log file can be written again");
        }
        self.trouble.is_none()
    }

    fn begin(&mut self, store: &mut Store) -> io::Result<Attempt> {
        let Some(handle) = &mut self.handle else {
            return Err(io::ErrorKind::NotFound.into());
        };
        // The true length, not what we remember: logrotate may have truncated the file in place.
        handle.size = handle.file.metadata()?.len();
        let (file, regular) = (handle.file.try_clone()?, handle.regular);
        let slot = store.acquire().ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::QuotaExceeded,
                "too many log files have unfinished writes",
            )
        })?;
        let Pending { bytes, deltas, .. } = std::mem::take(&mut self.pending);
        if let Err(error) =
            store.begin_write(slot, &self.path, handle.id, handle.size, &bytes, &deltas)
        {
            store.release(slot)?;
            return Err(error);
        }
        failpoint::reach(Step::BeforeWrite);
        Ok(Attempt {
            slot,
            file,
            regular,
            bytes,
            written: 0,
            deltas,
        })
    }

    /// Carries a recorded write to its end, or suspends the file.
    fn finish(&mut self, store: &mut Store, mut attempt: Attempt, now: Now) {
        if let Err(error) = attempt.proceed() {
            if attempt.written > 0 {
                return self.suspend(&error, now, Some(Stuck::Write(attempt)));
            }
            // Not a byte is in the file: the record can simply go.
            let released = store.release(attempt.slot);
            return self.suspend(&released.err().unwrap_or(error), now, None);
        }
        failpoint::reach(Step::AfterWrite);
        if let Err(error) = store.finish_write(attempt.slot, &attempt.deltas) {
            return self.suspend(&error, now, Some(Stuck::Write(attempt)));
        }
        if let Some(handle) = &mut self.handle {
            handle.size += attempt.written as u64;
        }
        self.retry_delay = RETRY_MIN;
        self.pending.reuse(attempt.bytes, attempt.deltas);
    }

    fn suspend(&mut self, error: &io::Error, now: Now, stuck: Option<Stuck>) {
        if self.retry_delay == RETRY_MIN {
            tracing::warn!(path = %self.path.display(), %error, "the log file cannot be written; its output waits in the kernel");
        }
        self.pending = Pending::default();
        self.handle = None;
        self.trouble = Some(Trouble {
            reason: format!("{}: {error}", self.path.display()),
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
        if let (None, Some(rotation), Some(handle)) =
            (self.period_end, &self.limits.rotation, &self.handle)
        {
            let data = handle.file.metadata().ok();
            let modified = data.as_ref().and_then(|data| data.modified().ok());
            let modified = modified.map_or(now.epoch_s, schedule::seconds);
            // Not every file system knows it.
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
        Ok(())
    }

    /// Makes the next `length` bytes fit the batch and the size limit.
    fn make_room(&mut self, store: &mut Store, length: usize, now: Now) -> Result<(), Suspended> {
        self.ready(now)?;
        if self.pending.bytes.len() + length > MAX_BATCH_BYTES
            || self.pending.deltas.len() >= MAX_DELTAS
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

    fn size(&self) -> u64 {
        self.handle.as_ref().map_or(0, |handle| handle.size)
    }

    /// Bytes that may still be added before the size limit asks for a rotation.
    fn room(&self, now: Now) -> u64 {
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
    fn turn_if_over(&mut self, store: &mut Store, now: Now) -> Result<(), Suspended> {
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
        // A file that nobody writes to is not made for the sake of being turned.
        if self.handle.is_some() || fs::symlink_metadata(&self.path).is_ok() {
            let _ = self.ready(now).and_then(|()| self.turn_if_over(store, now));
        }
    }

    /// When the clock has something for `tick` to do. Looked at now and then before: clocks are set.
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

    fn rotate(&mut self, store: &mut Store, now: Now) -> Result<(), Suspended> {
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
        failpoint::reach(Step::Rotated);
        self.handle = None;
        self.compress_due = true;
        // The new file is there before the record goes: a successor must not take it for the old one.
        let opened = self.ready(now);
        if let Err(error) = store.release(slot) {
            self.suspend(&error, now, None);
            return Err(Suspended);
        }
        opened
    }

    fn plan(&self, now: Now) -> io::Result<Plan> {
        let backup_count = self.limits.backup_count;
        Ok(match &self.limits.rotation {
            None => Plan::Shift { backup_count },
            Some(rotation) => {
                let end = self.period_end.unwrap_or(now.epoch_s);
                Plan::Rename {
                    suffix: free_suffix(&self.path, &schedule::stamp(rotation, end))?,
                    backup_count,
                }
            }
        })
    }

    fn pause_rotation(&mut self, error: &io::Error, now: Now) {
        tracing::warn!(path = %self.path.display(), %error, "the log file cannot be rotated and grows on");
        self.rotation_paused_until = Some(now.at + ROTATION_RETRY);
    }

    /// Closes the file when it was deleted, or moved and the path is to be watched: what is written there would be lost.
    fn check_path(&mut self) {
        let Some(handle) = &self.handle else {
            return;
        };
        let deleted = handle.regular && handle.file.metadata().is_ok_and(|data| data.nlink() == 0);
        let moved = self.limits.watch_path
            && fs::metadata(&self.path).map_or(true, |data| file_id(&data) != handle.id);
        if deleted || moved {
            self.handle = None;
        }
    }
}

impl Pending {
    fn note(&mut self, delta: Delta) {
        // Runs of one source are the rule: look at the last before hashing.
        if let Some(last) = self
            .deltas
            .last_mut()
            .filter(|last| last.source == delta.source)
        {
            last.position = delta.position;
            return;
        }
        match self
            .index
            .get(&delta.source)
            .and_then(|at| self.deltas.get_mut(*at))
        {
            Some(known) => known.position = delta.position,
            None => {
                self.index.insert(delta.source, self.deltas.len());
                self.deltas.push(delta);
            }
        }
    }

    /// Takes the memory of a finished write back.
    fn reuse(&mut self, mut bytes: Vec<u8>, mut deltas: Vec<Delta>) {
        bytes.clear();
        deltas.clear();
        if self.bytes.is_empty() {
            *self = Self {
                bytes,
                deltas,
                index: HashMap::new(),
            };
        }
    }
}
