//! The journal: records of what exists, in a memory file that outlives this process.
//!
//! Owns the file's layout: a header page, then records one after another, each `length, checksum,
//! JSON`. Knows nothing of what the records mean. A reply is sent only after its record is in the
//! journal. Compaction writes the whole image before the records, or after them in the same sparse
//! file if there is no room, and then moves `start` by one aligned store; the old records are given
//! back.
//!
//! Invariant: from `start` on, every record up to the first bad checksum was
//! appended whole. No reply was sent for the bytes after that.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use papa_test_hooks::failpoint;
use serde::Serialize;
use thiserror::Error;

use crate::sys::memfd;
use crate::sys::process::file_size_limit;

/// First bytes of a journal.
const MAGIC: u64 = u64::from_le_bytes(*b"papajrn1");
/// Offsets in the header page, each of an aligned word.
const START: u64 = 8;
const ATTEMPT: u64 = 16;
const DEATHS: u64 = 24;
const SKIPPED: u64 = 32;
const SUSPECT: u64 = 40;
/// First byte that may hold a record.
const FIRST: u64 = 4096;
/// Bytes before a record's text: length and checksum.
const PREFIX: usize = 8;
/// Set in the length of a record that is left out from now on.
const LEFT_OUT: u32 = 1 << 31;
/// Longest record, in bytes: more than any request of the wire can lead to.
pub const MAX_RECORD_BYTES: usize = 32 * 1024 * 1024;
/// The journal is rewritten when it is this many bytes …
const COMPACT_MIN_BYTES: u64 = 256 * 1024;
/// … and this many times as long as its live part.
const COMPACT_RATIO: u64 = 4;
/// Where the size of files is limited it is rewritten when it is this part of
/// the largest file, so that the image has room behind it, …
const COMPACT_FILE_PART: u64 = 4;
/// … and has grown by this part of its live part, or when only this part of
/// the largest file is left behind it.
const COMPACT_GROWTH_PART: u64 = 4;
const COMPACT_END_PART: u64 = 8;
/// After a compaction that failed, the next is tried when the journal has
/// grown by this part of its length …
const COMPACT_RETRY_PART: u64 = 4;
/// … but by no less than this many bytes; and where less is left below the
/// largest file, when half of that is used or no record fits any more.
const COMPACT_RETRY_MIN_BYTES: u64 = 64 * 1024;
/// Times recovery may die on one record before it is left out.
const MAX_DEATHS: u64 = 2;

/// A journal that cannot be used.
#[derive(Debug, Error)]
pub enum JournalError {
    /// The file is something else.
    #[error("not a journal of this program")]
    NotAJournal,
    /// The record is longer than [`MAX_RECORD_BYTES`].
    #[error("record of {0} bytes: at most {MAX_RECORD_BYTES} fit")]
    TooLong(usize),
    /// The record could not be written as JSON.
    #[error("record cannot be written")]
    Encode(#[from] serde_json::Error),
    /// The system refused.
    #[error("journal: {0}")]
    System(Errno),
}

// Not marked as a source, since its text is part of this error's.
impl From<Errno> for JournalError {
    fn from(errno: Errno) -> Self {
        Self::System(errno)
    }
}

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    file: OwnedFd,
    start: u64,
    end: u64,
    /// Bytes the image had after the last compaction.
    live: u64,
    /// Bytes a file may have (`RLIMIT_FSIZE`).
    largest_file: Option<u64>,
    /// No compaction is tried before the journal ends here: the last one failed.
    retry_at: u64,
}

/// A journal that is read record by record.
#[derive(Debug)]
pub struct Replay {
    journal: Journal,
    at: u64,
    /// Offset of a record that is left out because recovery died on it.
    poison: Option<u64>,
    /// Offset of the record the last recovery died on.
    died_on: Option<u64>,
    /// The same while it is the record handed out last.
    suspect: Option<u64>,
    /// Records left out, this time or before.
    pub skipped: u64,
}

impl Journal {
    /// Writes an empty journal into an empty memory file.
    ///
    /// # Errors
    /// The errno of the write.
    pub fn create() -> Result<OwnedFd, Errno> {
        let file = memfd::memfd_create("papa-journal")?;
        let mut header = [0u8; 64];
        header[..8].copy_from_slice(&MAGIC.to_le_bytes());
        header[8..16].copy_from_slice(&FIRST.to_le_bytes());
        memfd::write_at(&file, &header, 0)?;
        memfd::set_size(&file, FIRST)?;
        Ok(file)
    }

    /// Opens a journal for replay. A record on which recovery has died
    /// `MAX_DEATHS` times is left out.
    ///
    /// # Errors
    /// [`JournalError::NotAJournal`], or what the system said.
    pub fn replay(file: OwnedFd) -> Result<Replay, JournalError> {
        let header = read_header(&file)?;
        let word = |offset| header_word(&header, offset);
        let start = word(START);
        let (attempt, mut deaths, skipped) = (word(ATTEMPT), word(DEATHS), word(SKIPPED));
        let mut poison = None;
        if attempt != 0 {
            // The last recovery did not come past this record. A process may
            // also have been killed there by chance, so it takes two on the
            // very same one.
            deaths = if word(SUSPECT) == attempt {
                deaths.saturating_add(1)
            } else {
                1
            };
            set_word(&file, SUSPECT, attempt)?;
            set_word(&file, DEATHS, deaths)?;
            if deaths >= MAX_DEATHS {
                poison = Some(attempt);
            }
        }
        Ok(Replay {
            journal: Self {
                file,
                start,
                end: start,
                live: 0,
                largest_file: file_size_limit(),
                retry_at: 0,
            },
            at: start,
            poison,
            died_on: (attempt != 0).then_some(attempt),
            suspect: None,
            skipped,
        })
    }

    /// Reads the records without recovering: nothing is marked and nothing cut off. The journal may
    /// grow meanwhile.
    ///
    /// # Errors
    /// As [`Self::replay`].
    pub fn scan(file: OwnedFd) -> Result<Scan, JournalError> {
        let at = header_word(&read_header(&file)?, START);
        Ok(Scan { file, at })
    }

    /// Appends a record; when this returns, the record survives this process.
    ///
    /// # Errors
    /// [`JournalError::TooLong`], or `ENOSPC`/`ENOMEM` from the system; then
    /// nothing was appended.
    pub fn append(&mut self, record: &impl Serialize) -> Result<(), JournalError> {
        let bytes = encode(record)?;
        if let Err(errno) = memfd::write_at(&self.file, &bytes, self.end) {
            // A cut record has a bad checksum, but the next one must not be
            // hidden behind it.
            let _ = memfd::set_size(&self.file, self.end);
            if errno == Errno::EFBIG {
                // The limit may have been set later, and there may be room in front.
                self.largest_file = file_size_limit();
                self.retry_at = 0;
            }
            return Err(errno.into());
        }
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// Notes that recovery has survived, and cuts off what follows the last good record.
    ///
    /// # Errors
    /// What the system said.
    pub fn settle(&self) -> Result<(), JournalError> {
        memfd::set_size(&self.file, self.end)?;
        set_word(&self.file, ATTEMPT, 0)?;
        set_word(&self.file, DEATHS, 0)?;
        Ok(())
    }

    /// Whether enough of the journal is history to be worth rewriting.
    #[must_use]
    pub fn wants_compaction(&self) -> bool {
        if self.end < self.retry_at {
            return false;
        }
        let length = self.length();
        let is_near_limit = self.largest_file.is_some_and(|largest| {
            let has_grown = length > largest / COMPACT_FILE_PART
                && length - length / COMPACT_GROWTH_PART > self.live;
            let is_at_end = self.end > largest - largest / COMPACT_END_PART;
            has_grown || is_at_end && self.has_room_in_front()
        });
        is_near_limit
            || length > COMPACT_MIN_BYTES && length > self.live.saturating_mul(COMPACT_RATIO)
    }

    /// Replaces all records by `image`, in one step.
    ///
    /// # Errors
    /// As [`Self::append`]; then the old records are still in force, and it
    /// is not wanted again before the journal has grown by a part of its
    /// length.
    pub fn compact<'a, R: Serialize + 'a>(
        &mut self,
        image: impl Iterator<Item = R> + Clone,
    ) -> Result<(), JournalError> {
        let compacted = self.compact_in_front(image.clone()).and_then(|done| {
            if done {
                Ok(())
            } else {
                self.compact_behind(image)
            }
        });
        self.retry_at = 0;
        if compacted.is_err() {
            let _ = memfd::set_size(&self.file, self.end);
            let growth = (self.length() / COMPACT_RETRY_PART).max(COMPACT_RETRY_MIN_BYTES);
            let left = self
                .largest_file
                .map(|bytes| bytes.saturating_sub(self.end));
            self.retry_at = self.end + left.map_or(growth, |left| growth.min(left / 2).max(1));
            return compacted;
        }
        self.live = self.length();
        compacted
    }

    fn has_room_in_front(&self) -> bool {
        self.start - FIRST >= self.length()
    }

    /// Writes the image before the records, if there is room.
    fn compact_in_front<'a, R: Serialize + 'a>(
        &mut self,
        image: impl Iterator<Item = R>,
    ) -> Result<bool, JournalError> {
        if !self.has_room_in_front() {
            return Ok(false);
        }
        let Some(end) = self.write_image(image, FIRST, Some(self.start))? else {
            let _ = memfd::punch_hole(&self.file, FIRST, self.start / 4096 * 4096);
            return Ok(false);
        };
        failpoint::reach("compact.moved");
        (self.start, self.end) = (FIRST, end);
        // Before anything is appended: it must not end where a record of
        // before begins.
        memfd::set_size(&self.file, end)?;
        Ok(true)
    }

    fn compact_behind<'a, R: Serialize + 'a>(
        &mut self,
        image: impl Iterator<Item = R>,
    ) -> Result<(), JournalError> {
        // On a page of its own, so that all before it can be given back; and
        // behind an empty prefix, so that half an image is never replayed.
        let begin = (self.end + PREFIX as u64).next_multiple_of(4096);
        // Also for an empty image `start` must lie in the file.
        memfd::set_size(&self.file, begin)?;
        let end = self.write_image(image, begin, None)?.unwrap_or(begin);
        failpoint::reach("compact.moved");
        let _ = memfd::punch_hole(&self.file, FIRST, begin);
        (self.start, self.end) = (begin, end);
        Ok(())
    }

    /// Writes an image at `begin` and moves the start there; returns its end.
    /// `None` if it would not end before `limit` with an empty prefix behind.
    fn write_image<'a, R: Serialize + 'a>(
        &self,
        image: impl Iterator<Item = R>,
        begin: u64,
        limit: Option<u64>,
    ) -> Result<Option<u64>, JournalError> {
        let mut at = begin;
        let mut pending: Vec<u8> = Vec::new();
        let fits = |at: u64, pending: &[u8]| {
            limit.is_none_or(|limit| at + (pending.len() + PREFIX) as u64 <= limit)
        };
        for record in image {
            pending.extend(encode(&record)?);
            if !fits(at, &pending) {
                break;
            }
            if pending.len() > 256 * 1024 {
                memfd::write_at(&self.file, &pending, at)?;
                at += pending.len() as u64;
                pending.clear();
            }
        }
        if !fits(at, &pending) {
            return Ok(None);
        }
        memfd::write_at(&self.file, &pending, at)?;
        at += pending.len() as u64;
        if limit.is_some() {
            // Whatever lay here, the image ends before it.
            memfd::write_at(&self.file, &[0; PREFIX], at)?;
        }
        failpoint::reach("compact.written");
        set_word(&self.file, START, begin)?;
        Ok(Some(at))
    }

    /// The file, for the keeper.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Bytes in use by records.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.end - self.start
    }

    /// Makes every further record fail, as if the system had no memory.
    #[cfg(test)]
    pub(crate) fn break_file(&mut self) {
        self.file = memfd::reopen_read_only(self.as_fd()).unwrap();
    }
}

impl Replay {
    /// The next record's text. Recovery is taken to have died on it if this
    /// is not called again.
    ///
    /// # Errors
    /// What the system said.
    pub fn next_record(&mut self) -> Result<Option<Vec<u8>>, JournalError> {
        loop {
            let file = &self.journal.file;
            // No record is to blame until the next one is handed out.
            set_word(file, ATTEMPT, 0)?;
            if self.suspect.take().is_some() {
                // Recovery got past this record, so the last death was by chance.
                set_word(file, DEATHS, 0)?;
                set_word(file, SUSPECT, 0)?;
            }
            let Some(found) = read_record(file, self.at)? else {
                return Ok(None);
            };
            let here = self.at;
            self.at += found.bytes();
            if found.word & LEFT_OUT != 0 {
                continue;
            }
            if self.poison == Some(here) {
                // Marked, not only passed over: of two such records each
                // would else be tried again after the other.
                memfd::write_at(file, &(found.word | LEFT_OUT).to_le_bytes(), here)?;
                self.poison = None;
                self.skipped = self.skipped.saturating_add(1);
                set_word(file, SKIPPED, self.skipped)?;
                set_word(file, DEATHS, 0)?;
                continue;
            }
            set_word(file, ATTEMPT, here)?;
            self.suspect = self.died_on.filter(|at| *at == here);
            return Ok(Some(found.text));
        }
    }

    /// Ends the replay; nothing is appended before the journal is settled.
    #[must_use]
    pub fn finish(self) -> Journal {
        let mut journal = self.journal;
        journal.end = self.at;
        journal
    }
}

/// A look at a journal that another process may be writing.
#[derive(Debug)]
pub struct Scan {
    file: OwnedFd,
    at: u64,
}

impl Scan {
    /// The next record's text.
    ///
    /// # Errors
    /// What the system said.
    pub fn next_record(&mut self) -> Result<Option<Vec<u8>>, JournalError> {
        loop {
            let Some(found) = read_record(&self.file, self.at)? else {
                return Ok(None);
            };
            self.at += found.bytes();
            if found.word & LEFT_OUT == 0 {
                return Ok(Some(found.text));
            }
        }
    }
}

/// A whole record with a good checksum.
struct Found {
    /// Its length and mark, as stored.
    word: u32,
    text: Vec<u8>,
}

impl Found {
    fn bytes(&self) -> u64 {
        (PREFIX + self.text.len()) as u64
    }
}

fn read_record(file: &OwnedFd, at: u64) -> Result<Option<Found>, Errno> {
    let mut prefix = [0u8; PREFIX];
    if memfd::read_at(file, &mut prefix, at)? < PREFIX {
        return Ok(None);
    }
    let [a, b, c, d, e, f, g, h] = prefix;
    let word = u32::from_le_bytes([a, b, c, d]);
    let length = (word & !LEFT_OUT) as usize;
    let checksum = u32::from_le_bytes([e, f, g, h]);
    if length == 0 || length > MAX_RECORD_BYTES {
        return Ok(None);
    }
    let mut text = vec![0; length];
    if memfd::read_at(file, &mut text, at + PREFIX as u64)? < length
        || crc32fast::hash(&text) != checksum
    {
        return Ok(None);
    }
    Ok(Some(Found { word, text }))
}

type Header = [u8; 64];

fn read_header(file: &OwnedFd) -> Result<Header, JournalError> {
    let mut header = [0u8; 64];
    memfd::read_at(file, &mut header, 0)?;
    let start = header_word(&header, START);
    if header_word(&header, 0) != MAGIC || start < FIRST || start > memfd::size(file)? {
        return Err(JournalError::NotAJournal);
    }
    Ok(header)
}

fn header_word(header: &Header, offset: u64) -> u64 {
    let at = usize::try_from(offset).unwrap_or(0);
    let mut bytes = [0u8; 8];
    bytes.copy_from_slice(&header[at..at + 8]);
    u64::from_le_bytes(bytes)
}

fn set_word(file: impl AsFd, offset: u64, word: u64) -> Result<(), Errno> {
    memfd::write_at(file, &word.to_le_bytes(), offset)
}

fn encode(record: &impl Serialize) -> Result<Vec<u8>, JournalError> {
    let mut bytes = vec![0; PREFIX];
    serde_json::to_writer(&mut bytes, record)?;
    let length = bytes.len() - PREFIX;
    let prefix = u32::try_from(length)
        .ok()
        .filter(|_| length <= MAX_RECORD_BYTES)
        .ok_or(JournalError::TooLong(length))?;
    let checksum = crc32fast::hash(&bytes[PREFIX..]);
    bytes[..4].copy_from_slice(&prefix.to_le_bytes());
    bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
    Ok(bytes)
}

#[cfg(test)]
mod tests;
