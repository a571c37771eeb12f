//! The state that lets an interrupted log write be finished exactly once.
//!
//! Owns the layout of one sparse memfd: a table of done positions (how far each stream of each
//! process is in its file) and a pool of slots, each holding one write or rotation in progress:
//! what is being done, to which inode, the formatted bytes, and the done positions that hold once
//! it is finished. Leaves to others: opening files, writing them (`file`), keeping the memfd alive
//! (the kernel holds it).
//!
//! Invariant: a slot's record changes by one aligned store of its generation word, which selects
//! one of two copies; everything a record refers to (path, bytes, positions) is in place before
//! that store and untouched until the next. Done positions are applied only under a record that
//! carries them, so applying them again changes nothing. SIGKILL between any two system calls
//! therefore leaves a state from which the rest can be done, never repeated. The memfd is read and
//! written with pread and pwrite, never mapped: no unsafe code, and a fault cannot kill the
//! manager.
//! Source: "The way of a line of output" in ARCHITECTURE.md.

mod positions;

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::file_id::FileId;
use crate::layout::{
    BUFFER_OFFSET, Cut, DELTA_BYTES, DELTAS_OFFSET, Delta, Kind, MAGIC, MAGIC_FAMILY,
    MAX_BATCH_BYTES, MAX_DELTAS, MAX_PATH_BYTES, MAX_SLOTS, PATH_OFFSET, Phase, RECORD_BYTES,
    RECORD_OFFSETS, SLOT_STRIDE, SLOTS_USED_OFFSET, STATE_BYTES, Slot, SlotRecord, Source,
    Unfinished, Work, of_a_later_version, read_word,
};
use crate::rotate::{Turn, join_suffix, split_suffix};
use crate::store::positions::{Positions, read_count, write_count};

/// The state memfd, opened.
#[derive(Debug)]
pub struct Store {
    file: File,
    positions: Positions,
    free_slots: BTreeSet<usize>,
    /// Slots at and beyond this one were never used.
    slots_used: usize,
}

impl Store {
    /// Makes an empty state in a new memfd.
    ///
    /// # Errors
    /// What `memfd_create` and `ftruncate` answer.
    pub fn create() -> io::Result<Self> {
        let fd = memfd_create(c"papa-manager-logs", MFdFlags::MFD_CLOEXEC)?;
        Self::format(File::from(fd))
    }

    /// Makes an empty state in `file`, whatever was in it.
    ///
    /// # Errors
    /// When the file cannot be sized or written.
    pub fn format(file: File) -> io::Result<Self> {
        file.set_len(0)?;
        file.set_len(STATE_BYTES)?;
        file.write_all_at(MAGIC, 0)?;
        Ok(Self {
            file,
            positions: Positions::default(),
            free_slots: BTreeSet::new(),
            slots_used: 0,
        })
    }

    /// Opens the state that a predecessor left, and returns its unfinished work.
    ///
    /// # Errors
    /// `InvalidData` when this is not a log state; `Unsupported` when it is one of a later version,
    /// or has work of a kind that only a later version knows: nothing of it is changed then.
    pub fn open(fd: OwnedFd) -> io::Result<(Self, Vec<Unfinished>)> {
        let file = File::from(fd);
        let length = file.metadata()?.len();
        let mut magic = [0; MAGIC.len()];
        if length >= MAGIC.len() as u64 {
            file.read_exact_at(&mut magic, 0)?;
        }
        if magic != *MAGIC && magic.starts_with(MAGIC_FAMILY) {
            return Err(of_a_later_version("its layout is another"));
        }
        if &magic != MAGIC {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the log state has an unknown layout",
            ));
        }
        if length < STATE_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the log state is too short",
            ));
        }
        let mut store = Self {
            file,
            positions: Positions::default(),
            free_slots: BTreeSet::new(),
            slots_used: 0,
        };
        store.positions = Positions::load(&store.file)?;
        store.slots_used = read_count(&store.file, SLOTS_USED_OFFSET, MAX_SLOTS)?;
        let mut unfinished = Vec::new();
        for index in 0..store.slots_used {
            match store.load_slot(Slot(index))? {
                Some(work) => unfinished.push(work),
                None => {
                    store.free_slots.insert(index);
                }
            }
        }
        Ok((store, unfinished))
    }

    /// The memfd, to leave with the kernel.
    #[must_use]
    pub fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Done position of `source`; 0 if it has none.
    #[must_use]
    pub fn done(&self, source: Source) -> u64 {
        self.positions.done(source)
    }

    /// Cuts of the line that the written part of a stream ends in; 0 at the end of a line.
    pub(super) fn parts(&self, source: Source) -> u32 {
        let cut = Cut::from_word(self.done(source.cuts()));
        if cut.parts > 0 && cut.position == self.done(source) {
            cut.parts
        } else {
            0
        }
    }

    /// The process of each position; a process with several comes several times.
    pub fn serials(&self) -> impl Iterator<Item = u64> {
        self.positions.serials()
    }

    /// Forgets every process for which `keep` says no. Only for processes the kernel has forgotten:
    /// it would deliver their output again.
    ///
    /// # Errors
    /// When the memfd cannot be written.
    pub fn retain(&mut self, keep: impl FnMut(u64) -> bool) -> io::Result<()> {
        self.positions.retain(&self.file, keep)
    }

    /// Records a position on its own, where nothing is written along with it.
    ///
    /// # Errors
    /// When the memfd cannot be written or the table is full.
    pub fn set_done(&mut self, delta: Delta) -> io::Result<()> {
        self.positions.set(&self.file, delta)
    }

    /// Takes the lowest free slot, whose pages are warm. `None` when unfinished writes have all.
    pub fn acquire(&mut self) -> Option<Slot> {
        if let Some(slot) = self.free_slots.pop_first() {
            return Some(Slot(slot));
        }
        if self.slots_used >= MAX_SLOTS
            || write_count(&self.file, SLOTS_USED_OFFSET, self.slots_used + 1).is_err()
        {
            return None;
        }
        self.slots_used += 1;
        Some(Slot(self.slots_used - 1))
    }

    /// Records that `parts`, one behind the other, are about to be appended to `file` at `start`,
    /// after which `deltas` hold.
    ///
    /// # Errors
    /// When a bound is passed or the memfd cannot be written; the slot is then as before.
    pub fn begin_write(
        &self,
        slot: Slot,
        path: &Path,
        file: FileId,
        start: u64,
        parts: &[&[u8]],
        deltas: &[Delta],
    ) -> io::Result<()> {
        let length = parts.iter().map(|part| part.len()).sum();
        if length > MAX_BATCH_BYTES || deltas.len() > MAX_DELTAS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the log write is too large",
            ));
        }
        let mut offset = slot.offset() + BUFFER_OFFSET;
        for part in parts {
            self.file.write_all_at(part, offset)?;
            offset += part.len() as u64;
        }
        let mut encoded = Vec::with_capacity(deltas.len() * DELTA_BYTES);
        for delta in deltas {
            encoded.extend_from_slice(&delta.source.serial.to_le_bytes());
            encoded.extend_from_slice(&delta.source.kind.to_word().to_le_bytes());
            encoded.extend_from_slice(&delta.position.to_le_bytes());
        }
        self.file
            .write_all_at(&encoded, slot.offset() + DELTAS_OFFSET)?;
        let path_length = self.write_path(slot, path.as_os_str().as_bytes())?;
        self.commit(
            slot,
            &SlotRecord {
                phase: Phase::Writing,
                file,
                start,
                length,
                path_length,
                deltas: deltas.len(),
                ..SlotRecord::IDLE
            },
        )
    }

    /// Records that the first `written` bytes of a write that failed are in the file: the file may
    /// be truncated before the rest follows.
    ///
    /// # Errors
    /// When the memfd cannot be written.
    pub fn note_written(&self, slot: Slot, written: usize) -> io::Result<()> {
        self.change(slot, |record| record.written = written)
    }

    /// Records that a write goes to another file, all of it, at `start`: the one it had begun in is
    /// gone.
    ///
    /// # Errors
    /// When the memfd cannot be written.
    pub fn retarget(&self, slot: Slot, file: FileId, start: u64) -> io::Result<()> {
        self.change(slot, |record| {
            record.file = file;
            record.start = start;
            record.written = 0;
        })
    }

    fn change(&self, slot: Slot, change: impl FnOnce(&mut SlotRecord)) -> io::Result<()> {
        let Some(mut record) = self.record(slot)? else {
            return Err(of_a_later_version("a write has become of an unknown kind"));
        };
        change(&mut record);
        self.commit(slot, &record)
    }

    /// Records that a write is complete: the `deltas` it was begun with hold from here on.
    ///
    /// # Errors
    /// When the memfd cannot be written or the table is full; the write stays recorded as
    /// unfinished, and asking again is right.
    pub fn finish_write(&mut self, slot: Slot, deltas: &[Delta]) -> io::Result<()> {
        for delta in deltas {
            self.set_done(*delta)?;
        }
        self.release(slot)
    }

    /// Records that `file` is about to be turned away from `path`.
    ///
    /// # Errors
    /// When the memfd cannot be written.
    pub fn begin_rotate(
        &self,
        slot: Slot,
        path: &Path,
        file: FileId,
        plan: &Turn,
    ) -> io::Result<()> {
        let (phase, suffix, backup_count) = match plan {
            Turn::Shift { backup_count } => (Phase::Rotating, "", *backup_count),
            Turn::Rename {
                suffix,
                backup_count,
            } => (Phase::Renaming, suffix.as_str(), *backup_count),
        };
        let path_length = self.write_path(slot, &join_suffix(path.as_os_str(), suffix))?;
        self.commit(
            slot,
            &SlotRecord {
                phase,
                file,
                backup_count,
                path_length,
                suffix_length: suffix.len(),
                ..SlotRecord::IDLE
            },
        )
    }

    /// Ends a rotation, or a write of which no byte reached the file: the slot is free, no done
    /// position changes.
    ///
    /// # Errors
    /// When the memfd cannot be written.
    pub fn release(&mut self, slot: Slot) -> io::Result<()> {
        self.commit(slot, &SlotRecord::IDLE)?;
        if slot.0 > 0 {
            // Only the first slot's pages are kept: it is the one in constant use.
            punch(
                &self.file,
                slot.offset() + PATH_OFFSET,
                SLOT_STRIDE - PATH_OFFSET,
            );
        }
        self.free_slots.insert(slot.0);
        Ok(())
    }

    fn commit(&self, slot: Slot, record: &SlotRecord) -> io::Result<()> {
        let generation = self.generation(slot)?.wrapping_add(1);
        let copy = RECORD_OFFSETS[usize::from(generation & 1 == 1)];
        self.file
            .write_all_at(&record.encode(), slot.offset() + copy)?;
        self.file
            .write_all_at(&generation.to_le_bytes(), slot.offset())
    }

    fn generation(&self, slot: Slot) -> io::Result<u64> {
        let mut word = [0; 8];
        self.file.read_exact_at(&mut word, slot.offset())?;
        Ok(u64::from_le_bytes(word))
    }

    fn record(&self, slot: Slot) -> io::Result<Option<SlotRecord>> {
        let generation = self.generation(slot)?;
        let copy = RECORD_OFFSETS[usize::from(generation & 1 == 1)];
        let mut bytes = [0; RECORD_BYTES];
        self.file.read_exact_at(&mut bytes, slot.offset() + copy)?;
        Ok(SlotRecord::decode(&bytes))
    }

    fn write_path(&self, slot: Slot, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > MAX_PATH_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the log file's path is too long",
            ));
        }
        self.file.write_all_at(bytes, slot.offset() + PATH_OFFSET)?;
        Ok(bytes.len())
    }

    fn read_deltas(&self, slot: Slot, count: usize) -> io::Result<Vec<Delta>> {
        let mut bytes = vec![0; count * DELTA_BYTES];
        self.file
            .read_exact_at(&mut bytes, slot.offset() + DELTAS_OFFSET)?;
        Ok(bytes
            .chunks_exact(DELTA_BYTES)
            .filter_map(|chunk| {
                Some(Delta {
                    source: Source {
                        serial: read_word(chunk, 0),
                        kind: Kind::from_word(read_word(chunk, 8))?,
                    },
                    position: read_word(chunk, 16),
                })
            })
            .collect())
    }

    fn load_slot(&self, slot: Slot) -> io::Result<Option<Unfinished>> {
        // Its file and its slot must not be used: a later version would still finish it.
        let Some(record) = self.record(slot)? else {
            let what = format!("slot {} has unfinished work of an unknown kind", slot.0);
            return Err(of_a_later_version(&what));
        };
        let mut path = vec![0; record.path_length];
        self.file
            .read_exact_at(&mut path, slot.offset() + PATH_OFFSET)?;
        let (path, suffix) = split_suffix(path, record.suffix_length);
        let backup_count = record.backup_count;
        let work = match record.phase {
            Phase::Idle => return Ok(None),
            Phase::Writing => {
                let mut bytes = vec![0; record.length];
                self.file
                    .read_exact_at(&mut bytes, slot.offset() + BUFFER_OFFSET)?;
                Work::Write {
                    start: record.start,
                    bytes,
                    deltas: self.read_deltas(slot, record.deltas)?,
                }
            }
            Phase::Rotating => Work::Rotate(Turn::Shift { backup_count }),
            Phase::Renaming => Work::Rotate(Turn::Rename {
                suffix,
                backup_count,
            }),
        };
        Ok(Some(Unfinished {
            slot,
            path,
            file: record.file,
            work,
            written: record.written,
        }))
    }
}

/// Frees pages; where the file system cannot do that, they only cost memory.
fn punch(file: &File, offset: u64, length: u64) {
    let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else {
        return;
    };
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    if let Err(errno) = fallocate(file, flags, offset, length) {
        tracing::debug!(%errno, "the log state keeps its pages");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUT: Source = Source {
        serial: 7,
        kind: Kind::Out,
    };
    const FILE: FileId = FileId {
        device: 1,
        inode: 2,
    };

    fn reopen(store: &Store) -> (Store, Vec<Unfinished>) {
        let copy = store.descriptor().try_clone_to_owned().unwrap();
        Store::open(copy).unwrap()
    }

    #[test]
    fn a_begun_write_is_found_with_its_bytes_and_a_finished_one_is_not() {
        let mut store = Store::create().unwrap();
        let slot = store.acquire().unwrap();
        let delta = Delta {
            source: OUT,
            position: 5,
        };
        store
            .begin_write(
                slot,
                Path::new("/logs/a"),
                FILE,
                100,
                &[b"he", b"llo"],
                &[delta],
            )
            .unwrap();
        let (mut second, unfinished) = reopen(&store);
        assert_eq!(unfinished.len(), 1);
        assert_eq!(unfinished[0].path, Path::new("/logs/a"));
        assert_eq!(unfinished[0].file, FILE);
        let Work::Write {
            start,
            bytes,
            deltas,
        } = &unfinished[0].work
        else {
            panic!("{unfinished:?}");
        };
        assert_eq!(
            (*start, bytes.as_slice(), deltas.as_slice()),
            (100, &b"hello"[..], &[delta][..])
        );
        assert_eq!(second.done(OUT), 0);
        second.finish_write(unfinished[0].slot, deltas).unwrap();
        assert_eq!(second.done(OUT), 5);
        let (third, unfinished) = reopen(&second);
        assert!(unfinished.is_empty());
        assert_eq!(third.done(OUT), 5);
        assert_eq!(third.free_slots.len(), 1);
    }

    #[test]
    fn a_rotation_is_found_and_released() {
        let mut store = Store::create().unwrap();
        let slot = store.acquire().unwrap();
        store
            .begin_rotate(
                slot,
                Path::new("/logs/a"),
                FILE,
                &Turn::Shift { backup_count: 3 },
            )
            .unwrap();
        let (_, unfinished) = reopen(&store);
        assert!(matches!(
            unfinished[0].work,
            Work::Rotate(Turn::Shift { backup_count: 3 })
        ));
        store.release(slot).unwrap();
        assert!(reopen(&store).1.is_empty());
    }

    #[test]
    fn positions_never_go_back_and_forgotten_entries_are_used_again() {
        let mut store = Store::create().unwrap();
        for position in [5, 3] {
            store
                .set_done(Delta {
                    source: OUT,
                    position,
                })
                .unwrap();
        }
        assert_eq!(store.done(OUT), 5);
        store.retain(|serial| serial != 7).unwrap();
        assert_eq!(store.done(OUT), 0);
        let other = Source {
            serial: 8,
            kind: Kind::Gap,
        };
        store
            .set_done(Delta {
                source: other,
                position: 1,
            })
            .unwrap();
        let (store, _) = reopen(&store);
        assert_eq!(store.positions.entries_used(), 1);
        assert_eq!(store.done(other), 1);
    }

    #[test]
    fn a_foreign_memfd_is_refused() {
        let fd = memfd_create(c"other", MFdFlags::MFD_CLOEXEC).unwrap();
        let error = Store::open(fd).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
