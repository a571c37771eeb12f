//! The reel: one process's captured, unacknowledged output in a memory file.
//!
//! Owns the bytes between pipe and reader; knows nothing of processes or clients. The file is
//! linear and sparse: the byte at position p lies p bytes after the data's offset, the file's size
//! is the commit, and what has been acknowledged or dropped is given back as holes. `splice` fills
//! the file, because a process killed between a read and a write would lose what it had read. The
//! intent word says which stream a splice belongs to that is not indexed yet. The index (end,
//! stream, stamp) lies before the data; it is a ring that begins anew whenever nothing is left
//! unacknowledged.
//!
//! If the size of files is limited, the data is a ring as well. A splice writes into the landing
//! after it, where the file's size is the commit as before. From there the bytes are copied into
//! the ring, one store in the header says that they are in it, and the landing is cut off.
//!
//! | module | holds |
//! |---|---|
//! | `layout` | where things lie in the file |
//!
//! Invariant: `start <= committed`, records are contiguous from `start` to
//! `committed`, and all of it can be read back from the file alone.
//! Source: `splice(2)`, `fallocate(2)` (`FALLOC_FL_PUNCH_HOLE`).

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bytes::BytesMut;
use nix::errno::Errno;
use papa_protocol::record::{Record, Stream};
use papa_test_hooks::failpoint;

use crate::sys::memfd;
use crate::sys::process::{Readiness, readiness, waiting_bytes};

mod layout;

use layout::{
    ENTRY, HEADER_BYTES, INDEX_OFFSET, LANDED_AT, LANDING_BYTES, Layout, MAGIC_AT, PAGE,
    RING_END_AT, word,
};
pub use layout::{FIRST_DATA_OFFSET, LINEAR_FILE_BYTES, MIN_FILE_BYTES, largest_reel};

/// Largest plausible position: no process writes that much, so a larger one is damage.
const MAX_POSITION: u64 = 1 << 62;
/// Header words.
const INTENT_AT: u64 = 8;
/// The word `start`; it is moved before what lies before it is given back.
pub const START_AT: u64 = 16;

/// Most bytes taken from a pipe at once, so that one loud process does not starve the others.
const MAX_SPLICE: usize = 1 << 20;
/// A reel is filled in this many parts.
const FILLING_STEPS: u64 = 4;
/// … but not smaller than this many bytes.
const MIN_FILLING_STEP: u64 = 64 * 1024;
/// A full reel drops its oldest output in this many parts.
const DROPPING_STEPS: u64 = 8;
/// … but not smaller than this many bytes.
const MIN_DROPPING_STEP: u64 = 4096;
/// A record grows, instead of a new one being made, while it is shorter than this many bytes …
const JOIN_BYTES: u64 = 4096;
/// … and younger than this, so that a process that writes byte by byte does not cost an index entry
/// per byte.
const JOIN_US: u64 = 1_000;
/// Acknowledged bytes are given back in steps of this many.
const PUNCH_STEP: u64 = 256 * 1024;
/// When the clock steps back by no more than this, stamps stay as they are; a larger step is
/// followed.
const CLOCK_STEP_US: u64 = 1_000_000;

/// The result of reading a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capture {
    /// This many bytes were taken.
    Bytes(usize),
    /// The pipe is empty now.
    Empty,
    /// Every writer has closed it.
    End,
}

/// The layouts of a reel's file; not every version reads all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReelKind {
    /// Every version reads it.
    First,
    /// Its index is larger.
    LargeIndex,
    /// Its data is a ring.
    Ring,
}

/// The store itself.
#[derive(Debug)]
pub struct Reel {
    file: OwnedFd,
    layout: Layout,
    limit: u64,
    /// First byte still kept.
    start: u64,
    /// One past the last byte kept.
    committed: u64,
    dropped: u64,
    records: VecDeque<Record>,
    /// Slot number of `records[0]`, not wrapped around.
    first_slot: u64,
    /// Records from the first on whose entries are in the file; all others
    /// are of the stream of the intent word.
    indexed: usize,
    punched: u64,
    intent: u32,
    /// Last stamp given, in microseconds since the epoch.
    last_stamp: u64,
    /// The file refuses splices; bytes are read and written instead.
    copying: bool,
    /// Bytes of a ring that are still in its landing.
    landed: u64,
    /// The landing is to be cut off before anything is taken.
    landing_used: bool,
}

impl Reel {
    /// Makes an empty reel that keeps about `limit` bytes, or what has room
    /// where files may have `largest_file` bytes at most.
    ///
    /// # Errors
    /// `EFBIG` where that is less than [`MIN_FILE_BYTES`], else the errno of
    /// `memfd_create(2)`.
    pub fn create(limit: u64, largest_file: Option<u64>) -> Result<Self, Errno> {
        let layout = Layout::new(limit, largest_file)?;
        let file = crate::sys::process::move_up(memfd::memfd_create("papa-reel")?);
        // Sized without a page: the header of the first kind is written with
        // the first output.
        memfd::set_size(&file, layout.empty_size())?;
        if let Some(header) = layout.header() {
            memfd::write_at(&file, &header, MAGIC_AT)?;
        }
        Ok(Self::empty(file, layout, limit))
    }

    /// Makes an empty reel of the first kind, which every version can read; it holds fewer records
    /// than [`Self::create`]'s.
    ///
    /// # Errors
    /// The errno of `memfd_create(2)`.
    pub fn create_for_older(limit: u64) -> Result<Self, Errno> {
        let file = crate::sys::process::move_up(memfd::memfd_create("papa-reel")?);
        memfd::set_size(&file, Layout::FIRST.empty_size())?;
        Ok(Self::empty(file, Layout::FIRST, limit))
    }

    fn empty(file: OwnedFd, layout: Layout, limit: u64) -> Self {
        Self {
            file,
            layout,
            limit: layout.ring.map_or(limit, |ring| ring.limit.min(limit)),
            start: 0,
            committed: 0,
            dropped: 0,
            records: VecDeque::new(),
            first_slot: 0,
            indexed: 0,
            punched: 0,
            intent: 0,
            last_stamp: 0,
            copying: false,
            landed: 0,
            landing_used: false,
        }
    }

    /// A copy of this reel in a file of its own, laid out as a ring so that it stays below
    /// `largest_file` bytes whatever is captured. Positions, records and counts are the same; this
    /// one is left as it is.
    ///
    /// # Errors
    /// `EFBIG` if what is kept has no room in it (see [`Self::drop_for_ring`]), else what the
    /// system says.
    pub fn to_ring(&self, largest_file: u64) -> Result<Self, Errno> {
        let layout = Layout::ring(self.limit, largest_file)?;
        let (Some(ring), Some(mut header)) = (layout.ring, layout.header()) else {
            return Err(Errno::EFBIG);
        };
        if self.committed - self.start > ring.limit
            || self.records.len() as u64 >= layout.max_records() - 1
        {
            return Err(Errno::EFBIG);
        }
        for (at, word) in [
            (INTENT_AT, u64::from(self.intent)),
            (START_AT, self.start),
            (START_AT + 16, self.dropped),
            (RING_END_AT, self.committed),
        ] {
            let at = usize::try_from(at).map_err(|_| Errno::EFBIG)?;
            header[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        let file = crate::sys::process::move_up(memfd::memfd_create("papa-reel")?);
        memfd::set_size(&file, layout.empty_size())?;
        memfd::write_at(&file, &header, MAGIC_AT)?;
        let index: Vec<u8> = self.records.iter().flat_map(encode).collect();
        memfd::write_at(&file, &index, INDEX_OFFSET)?;
        let mut bytes = BytesMut::new();
        let mut at = self.start;
        while at < self.committed {
            let end = self.committed.min(at + MAX_SPLICE as u64);
            bytes.clear();
            self.read(
                &mut bytes,
                at,
                usize::try_from(end - at).map_err(|_| Errno::EFBIG)?,
            )?;
            write_pieces(&file, &layout, at..end, &bytes)?;
            at = end;
        }
        Ok(Self {
            file,
            layout,
            limit: ring.limit,
            records: self.records.clone(),
            first_slot: 0,
            indexed: self.records.len(),
            punched: self.start,
            landed: 0,
            landing_used: false,
            ..*self
        })
    }

    /// Drops the oldest output until [`Self::to_ring`] has room for the rest. Returns the bytes
    /// lost.
    ///
    /// # Errors
    /// `EFBIG` where no ring has room, else what the system says when the header cannot be written.
    pub fn drop_for_ring(&mut self, largest_file: u64) -> Result<u64, Errno> {
        let layout = Layout::ring(self.limit, largest_file)?;
        let limit = layout.ring.map_or(0, |ring| ring.limit);
        let mut lost = self.drop_until(limit, layout.max_records())?;
        // One record may be more than all of the ring.
        let oldest = self.committed.saturating_sub(limit);
        if self.start < oldest {
            let cut = oldest - self.start;
            self.move_start(oldest, cut)?;
            lost += cut;
        }
        Ok(lost)
    }

    /// Reads a reel back and changes nothing in it; `now_us` is the stamp for
    /// bytes taken but not yet indexed. [`Self::settle`] comes before anything
    /// else is taken.
    ///
    /// # Errors
    /// What the system says when the file cannot be read.
    pub fn recover(file: OwnedFd, limit: u64, now_us: u64) -> Result<Self, Errno> {
        let size = memfd::size(&file)?;
        let mut header = [0u8; HEADER_BYTES];
        memfd::read_at(&file, &mut header, 0)?;
        let word = |at: u64| word(&header, usize::try_from(at).unwrap_or(0));
        let layout = Layout::read(&header)?;
        let mut reel = Self::empty(file, layout, limit);
        let behind = size.saturating_sub(layout.empty_size());
        reel.committed = behind;
        if layout.ring.is_some() {
            if word(RING_END_AT) > MAX_POSITION {
                return Err(Errno::EBADMSG);
            }
            reel.landing_used = behind > 0 || word(LANDED_AT) > 0;
            // What has been copied but not been cut off is in the ring.
            reel.landed = if word(LANDED_AT) > 0 { 0 } else { behind };
            reel.committed = word(RING_END_AT).saturating_add(reel.landed);
        }
        if word(MAGIC_AT) != 0 {
            reel.intent = u32::try_from(word(INTENT_AT)).unwrap_or(0);
            reel.start = word(START_AT).min(reel.committed);
            if let Some(ring) = layout.ring {
                let oldest = (reel.committed - reel.landed).saturating_sub(ring.bytes);
                reel.start = reel.start.max(oldest);
            }
            reel.first_slot = word(START_AT + 8) % layout.max_records();
            reel.dropped = word(START_AT + 16).min(reel.start);
        }
        let max_records = layout.max_records();
        let mut end = reel.start;
        let mut buffer = vec![0u8; usize::try_from(ENTRY * 256).unwrap_or(4096)];
        let mut slot = reel.first_slot;
        'ring: while slot < reel.first_slot + max_records {
            // Up to the end of the ring at most, so that one read suffices.
            let here = slot % max_records;
            let count = (max_records - here).min(256);
            let bytes = usize::try_from(count * ENTRY).unwrap_or(0);
            memfd::read_at(
                &reel.file,
                &mut buffer[..bytes],
                INDEX_OFFSET + here * ENTRY,
            )?;
            for entry in buffer[..bytes].chunks_exact(16) {
                let record = decode(entry);
                // Older laps of the ring end at or before what is kept.
                if record.end <= end || record.end > reel.committed {
                    break 'ring;
                }
                end = record.end;
                reel.last_stamp = record.stamp_us;
                reel.records.push_back(record);
            }
            slot += count;
        }
        reel.indexed = reel.records.len();
        if end < reel.committed {
            // Spliced, and killed before the index entry.
            let stream = Stream::from_number(u64::from(reel.intent)).unwrap_or(Stream::Out);
            let end = reel.committed;
            reel.push_record(stream, end, now_us);
        }
        Ok(reel)
    }

    /// Finishes what a kernel may have been killed before doing: gives back what lies before the
    /// start, and indexes what was taken.
    pub fn settle(&mut self) {
        // If there is no memory for this, it is done before more is taken.
        let _ = self.bring_in();
        self.give_back();
        // If there is no memory for this, it is done before the intent changes.
        let _ = self.write_index();
    }

    /// Its layout, which decides which versions can read it.
    #[must_use]
    pub fn kind(&self) -> ReelKind {
        if self.layout.ring.is_some() {
            ReelKind::Ring
        } else if self.layout == Layout::FIRST {
            ReelKind::First
        } else {
            ReelKind::LargeIndex
        }
    }

    /// Checks that `file` is a reel this version reads, and changes nothing.
    ///
    /// # Errors
    /// `EBADMSG` for anything else.
    pub fn check(file: &OwnedFd) -> Result<(), Errno> {
        let mut header = [0u8; HEADER_BYTES];
        memfd::read_at(file, &mut header, MAGIC_AT)?;
        Layout::read(&header).map(drop)
    }

    /// Takes what is in `pipe`, at most `most` bytes and `MAX_SPLICE`.
    ///
    /// # Errors
    /// `ENOSPC`/`ENOMEM` when the system has no memory for it; the bytes
    /// then stay in the pipe.
    pub fn capture(
        &mut self,
        pipe: impl AsFd,
        stream: Stream,
        most: u64,
        now_us: u64,
    ) -> Result<Capture, Errno> {
        if self.intent != u32::from(stream.number()) {
            // A process that never writes costs no page.
            match readiness(pipe.as_fd()) {
                Readiness::Bytes => {
                    self.set_intent(stream)?;
                    failpoint::reach("capture.intent");
                }
                Readiness::Nothing => return Ok(Capture::Empty),
                Readiness::End => return Ok(Capture::End),
            }
        }
        let mut offset = self.layout.data_offset + self.committed;
        let mut most = most;
        if let Some(ring) = self.layout.ring {
            self.bring_in()?;
            offset = self.layout.empty_size();
            most = most
                .min(LANDING_BYTES)
                .min(ring.bytes.saturating_sub(self.committed - self.start));
            if most == 0 {
                // The caller makes room before.
                return Err(Errno::ENOSPC);
            }
        }
        let most = usize::try_from(most).map_or(MAX_SPLICE, |most| most.clamp(1, MAX_SPLICE));
        let taken = if self.copying {
            self.copy(&pipe, offset, most)
        } else {
            match memfd::splice_at(&pipe, &self.file, offset, most) {
                Err(Errno::EINVAL) => {
                    self.copying = true;
                    self.copy(&pipe, offset, most)
                }
                other => other,
            }
        };
        match taken {
            Ok(0) => Ok(Capture::End),
            Ok(bytes) => {
                failpoint::reach("capture.spliced");
                self.committed += bytes as u64;
                if self.layout.ring.is_some() {
                    self.landed = bytes as u64;
                    self.landing_used = true;
                    // If this fails, it is done before anything else is taken.
                    let _ = self.bring_in();
                }
                self.add_record(stream, self.committed, now_us);
                failpoint::reach("capture.indexed");
                Ok(Capture::Bytes(bytes))
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(Capture::Empty),
            Err(errno) => Err(errno),
        }
    }

    /// Copies what is in the landing into the ring, and cuts it off.
    ///
    /// May be interrupted anywhere: the copy is done again until the header
    /// says that it was made, and then only the cutting off.
    fn bring_in(&mut self) -> Result<(), Errno> {
        if self.landed > 0 {
            let mut bytes = BytesMut::new();
            let from = self.committed - self.landed;
            let length = usize::try_from(self.landed).map_err(|_| Errno::EFBIG)?;
            self.read(&mut bytes, from, length)?;
            write_pieces(&self.file, &self.layout, from..self.committed, &bytes)?;
            let mut words = [0u8; 16];
            words[..8].copy_from_slice(&self.committed.to_le_bytes());
            words[8..].copy_from_slice(&self.landed.to_le_bytes());
            memfd::write_at(&self.file, &words, RING_END_AT)?;
            self.landed = 0;
        }
        if self.landing_used {
            memfd::set_size(&self.file, self.layout.empty_size())?;
            memfd::write_at(&self.file, &[0; 8], LANDED_AT)?;
            self.landing_used = false;
        }
        Ok(())
    }

    /// Records which stream the bytes belong to that a splice takes before they are indexed.
    fn set_intent(&mut self, stream: Stream) -> Result<(), Errno> {
        // What still lacks an entry belongs to the stream before.
        self.write_index()?;
        let intent = u32::from(stream.number());
        let mut words = [0u8; 16];
        words[..8].copy_from_slice(&self.layout.magic().to_le_bytes());
        words[8..].copy_from_slice(&u64::from(intent).to_le_bytes());
        memfd::write_at(&self.file, &words, MAGIC_AT)?;
        self.intent = intent;
        Ok(())
    }

    fn copy(&self, pipe: impl AsFd, offset: u64, most: usize) -> Result<usize, Errno> {
        let there = waiting_bytes(pipe.as_fd())?.clamp(1, 64 * 1024);
        let mut buffer = vec![0u8; most.min(there)];
        // Bytes that are read are gone from the pipe, so room is made for them first.
        memfd::reserve(&self.file, offset, buffer.len() as u64)?;
        let length = nix::unistd::read(pipe.as_fd(), &mut buffer)?;
        if let Err(errno) = memfd::write_at(&self.file, &buffer[..length], offset) {
            // The size is the commit: half a write must not count.
            let _ = memfd::set_size(&self.file, offset);
            return Err(errno);
        }
        Ok(length)
    }

    fn add_record(&mut self, stream: Stream, end: u64, now_us: u64) {
        self.push_record(stream, end, now_us);
        // The bytes are taken. An entry for which there is no memory is
        // written with the next, before the intent changes.
        let _ = self.write_index();
    }

    fn push_record(&mut self, stream: Stream, end: u64, now_us: u64) {
        let stamp_us = if now_us < self.last_stamp && self.last_stamp - now_us < CLOCK_STEP_US {
            self.last_stamp
        } else {
            now_us
        };
        let count = self.records.len();
        let previous_end = match count {
            0 | 1 => self.start,
            _ => self.records[count - 2].end,
        };
        let joins = |last: &Record| {
            last.stream == stream
                && end - previous_end <= JOIN_BYTES
                && stamp_us.abs_diff(last.stamp_us) < JOIN_US
        };
        match self.records.back_mut() {
            // The caller stops before the ring is full. If it does not, a wrong stream is better
            // than overwriting the first record.
            Some(last) if joins(last) || count as u64 >= self.layout.max_records() => {
                last.end = end;
                self.indexed = self.indexed.min(count - 1);
            }
            _ => {
                self.last_stamp = stamp_us;
                self.records.push_back(Record {
                    end,
                    stream,
                    stamp_us,
                });
            }
        }
    }

    /// Writes the entries that the file lacks.
    fn write_index(&mut self) -> Result<(), Errno> {
        while let Some(record) = self.records.get(self.indexed) {
            let slot = (self.first_slot + self.indexed as u64) % self.layout.max_records();
            memfd::write_at(&self.file, &encode(record), INDEX_OFFSET + slot * ENTRY)?;
            self.indexed += 1;
        }
        Ok(())
    }

    /// Bytes to take at a time while there is room: a part of the whole, so
    /// that the consumer works on one part while the next comes in.
    #[must_use]
    pub fn filling_step(&self) -> u64 {
        let room = self.limit.saturating_sub(self.committed - self.start);
        room.min((self.limit / FILLING_STEPS).max(MIN_FILLING_STEP))
    }

    /// Bytes to take at a time while the oldest output is dropped: a part of the whole, so that no
    /// more than a part is dropped for it.
    #[must_use]
    pub fn dropping_step(&self) -> u64 {
        (self.limit / DROPPING_STEPS).max(MIN_DROPPING_STEP)
    }

    /// Whether another splice would go past the limits.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.committed - self.start >= self.limit
            || self.records.len() as u64 >= self.layout.max_records() - 1
    }

    /// Whether more is kept than the limits allow.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.committed - self.start > self.limit
            || self.records.len() as u64 >= self.layout.max_records() - 1
    }

    /// Lets everything before `position` go. Positions already gone change
    /// nothing; one past the end counts as the end. Returns the bytes freed.
    ///
    /// # Errors
    /// What the system says when the header cannot be written.
    pub fn acknowledge(&mut self, position: u64) -> Result<u64, Errno> {
        let position = position.min(self.committed);
        if position <= self.start {
            return Ok(0);
        }
        let freed = position - self.start;
        failpoint::reach("acknowledge.begin");
        self.move_start(position, 0)?;
        failpoint::reach("acknowledge.punched");
        Ok(freed)
    }

    /// Drops the oldest records until the limits hold, but never the newest
    /// one. Returns the bytes lost.
    ///
    /// # Errors
    /// What the system says when the header cannot be written.
    pub fn drop_oldest(&mut self) -> Result<u64, Errno> {
        self.drop_until(self.limit, self.layout.max_records())
    }

    fn drop_until(&mut self, limit: u64, max_records: u64) -> Result<u64, Errno> {
        let mut position = self.start;
        let mut records = 0;
        let count = self.records.len();
        while records + 1 < count
            && (self.committed - position > limit || (count - records) as u64 >= max_records - 1)
        {
            position = self.records[records].end;
            records += 1;
        }
        let lost = position - self.start;
        if lost > 0 {
            self.move_start(position, lost)?;
        }
        Ok(lost)
    }

    fn move_start(&mut self, position: u64, lost: u64) -> Result<(), Errno> {
        let gone = self
            .records
            .partition_point(|record| record.end <= position);
        let next_slot = self.first_slot + gone as u64;
        let drained = gone == self.records.len();
        // No entry in the ring ends behind the start then, so it can begin
        // anew: where the reader keeps up one page of it is in use.
        let first_slot = if drained { 0 } else { next_slot };
        let dropped = self.dropped + lost;
        let mut words = [0u8; 24];
        words[..8].copy_from_slice(&position.to_le_bytes());
        words[8..16].copy_from_slice(&first_slot.to_le_bytes());
        words[16..].copy_from_slice(&dropped.to_le_bytes());
        memfd::write_at(&self.file, &words, START_AT)?;
        failpoint::reach("acknowledge.moved");
        self.records.drain(..gone);
        self.indexed = self.indexed.saturating_sub(gone);
        self.first_slot = first_slot;
        self.dropped = dropped;
        self.start = position;
        if drained {
            if self.records.capacity() > 64 {
                self.records.shrink_to_fit();
            }
            if next_slot * ENTRY > PAGE {
                let _ = memfd::punch_hole(&self.file, INDEX_OFFSET + PAGE, self.layout.data_offset);
            }
        }
        self.give_back();
        Ok(())
    }

    fn give_back(&mut self) {
        let drained = self.start == self.committed;
        if self.start - self.punched < PUNCH_STEP && !(drained && self.start > self.punched) {
            return;
        }
        if self.layout.ring.is_some() {
            self.give_back_of_ring(drained);
            return;
        }
        let base = self.layout.data_offset;
        let from = (base + self.punched) / PAGE * PAGE;
        let to = if drained {
            (base + self.start).next_multiple_of(PAGE)
        } else {
            (base + self.start) / PAGE * PAGE
        };
        // A hole costs nothing to be late with, so a refusal is no error.
        if memfd::punch_hole(&self.file, from, to).is_ok() {
            self.punched = self.start;
        }
    }

    /// As [`Self::give_back`]; a page that also holds what is kept stays, and
    /// is used again when the ring comes around.
    fn give_back_of_ring(&mut self, drained: bool) {
        let data = self.layout.data_offset..self.layout.empty_size();
        let mut done = true;
        if drained && self.landed == 0 {
            done = memfd::punch_hole(&self.file, data.start, data.end).is_ok();
        } else {
            let landed = self.committed - self.landed;
            let end = self.start.min(landed);
            // What is further back has been written over.
            let ring = self.layout.ring.map_or(0, |ring| ring.bytes);
            let from = self.punched.max(landed.saturating_sub(ring)).min(end);
            for piece in self.layout.pieces(from..end, landed) {
                let (from, to) = (piece.start.next_multiple_of(PAGE), piece.end / PAGE * PAGE);
                done &= memfd::punch_hole(&self.file, from, to).is_ok();
            }
        }
        if done {
            self.punched = self.start;
        }
    }

    /// The records from `position` on; the first one may have begun before.
    pub fn records_from(&self, position: u64) -> impl Iterator<Item = &Record> {
        let skip = self
            .records
            .partition_point(|record| record.end <= position);
        self.records.range(skip..)
    }

    /// Appends `length` kept bytes from `position` on to `buffer`.
    ///
    /// # Errors
    /// The errno of `pread(2)`; the buffer is then as it was.
    pub fn read(&self, buffer: &mut BytesMut, position: u64, length: usize) -> Result<(), Errno> {
        let before = buffer.len();
        let landed = self.committed - self.landed;
        let mut count = 0;
        for piece in self
            .layout
            .pieces(position..position.saturating_add(length as u64), landed)
        {
            let here = usize::try_from(piece.end - piece.start).unwrap_or(usize::MAX);
            match memfd::append_at(&self.file, buffer, piece.start, here) {
                Ok(read) => count += read,
                Err(errno) => {
                    buffer.truncate(before);
                    return Err(errno);
                }
            }
        }
        if count < length {
            buffer.truncate(before);
            return Err(Errno::EIO);
        }
        Ok(())
    }

    /// First position still kept: what lies before was acknowledged or
    /// dropped.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.start
    }

    /// One past the last byte captured, which is also how many ever were.
    #[must_use]
    pub fn committed(&self) -> u64 {
        self.committed
    }

    /// Bytes lost to overflow.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// File offset of position 0, if the byte at each position p lies p bytes after it. None for a
    /// ring, which only this process can read.
    #[must_use]
    pub fn data_offset(&self) -> Option<u64> {
        self.layout
            .ring
            .is_none()
            .then_some(self.layout.data_offset)
    }

    /// The limit in bytes; less than was asked for where files are limited.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// The file itself, for a change of role.
    #[must_use]
    pub fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// The file, for the keeper and for consumers that move bytes themselves.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Writes the bytes at the positions of `range` into a ring.
fn write_pieces(
    file: &OwnedFd,
    layout: &Layout,
    range: std::ops::Range<u64>,
    mut bytes: &[u8],
) -> Result<(), Errno> {
    let landed = range.end;
    for piece in layout.pieces(range, landed) {
        let here = usize::try_from(piece.end - piece.start).unwrap_or(0);
        memfd::write_at(file, &bytes[..here], piece.start)?;
        bytes = &bytes[here..];
    }
    Ok(())
}

fn encode(record: &Record) -> [u8; 16] {
    let mut entry = [0u8; 16];
    entry[..8].copy_from_slice(&record.end.to_le_bytes());
    let word = record.stamp_us << 2 | u64::from(record.stream.number());
    entry[8..].copy_from_slice(&word.to_le_bytes());
    entry
}

fn decode(entry: &[u8]) -> Record {
    let word = |at: usize| {
        let mut bytes = [0u8; 8];
        bytes.copy_from_slice(&entry[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    Record {
        end: word(0),
        stream: if word(8) & 3 == u64::from(Stream::Err.number()) {
            Stream::Err
        } else {
            Stream::Out
        },
        stamp_us: word(8) >> 2,
    }
}

#[cfg(test)]
mod tests;
