//! How far each stream of each process is in its file, as the log state has it.
//!
//! Owns the table of done positions, in the memfd and in memory. Leaves to others: the writes that
//! move them (`store`).
//! Invariant: memory says what the memfd says; a position never goes back; an entry is one write
//! inside a page.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::layout::{
    DONE_ENTRY_BYTES, DONE_OFFSET, Delta, ENTRIES_USED_OFFSET, Kind, MAX_DONE_ENTRIES, PAGE,
    PAGE_BYTES, Source, of_a_later_version, read_word,
};

/// The table.
#[derive(Debug, Default)]
pub(super) struct Positions {
    done: HashMap<Source, (usize, u64)>,
    free_entries: BTreeSet<usize>,
    /// Entries at and beyond this one were never used.
    entries_used: usize,
}

impl Positions {
    /// Reads the table.
    pub(super) fn load(file: &File) -> io::Result<Self> {
        let mut positions = Self {
            entries_used: read_count(file, ENTRIES_USED_OFFSET, MAX_DONE_ENTRIES)?,
            ..Self::default()
        };
        let mut page = [0; PAGE_BYTES];
        let entries_per_page = PAGE_BYTES / DONE_ENTRY_BYTES;
        let mut index = 0;
        for number in 0..positions.entries_used.div_ceil(entries_per_page) {
            file.read_exact_at(&mut page, DONE_OFFSET + number as u64 * PAGE)?;
            for entry in page.chunks_exact(DONE_ENTRY_BYTES) {
                let serial = read_word(entry, 0);
                if let Some(kind) = Kind::from_word(read_word(entry, 8)) {
                    let source = Source { serial, kind };
                    positions.done.insert(source, (index, read_word(entry, 16)));
                } else if index < positions.entries_used {
                    positions.free_entries.insert(index);
                }
                index += 1;
            }
        }
        Ok(positions)
    }

    pub(super) fn done(&self, source: Source) -> u64 {
        self.done.get(&source).map_or(0, |(_, position)| *position)
    }

    pub(super) fn serials(&self) -> impl Iterator<Item = u64> {
        self.done.keys().map(|source| source.serial)
    }

    #[cfg(test)]
    pub(super) fn entries_used(&self) -> usize {
        self.entries_used
    }

    pub(super) fn retain(
        &mut self,
        file: &File,
        mut keep: impl FnMut(u64) -> bool,
    ) -> io::Result<()> {
        let gone: Vec<Source> = self
            .done
            .keys()
            .filter(|s| !keep(s.serial))
            .copied()
            .collect();
        for source in gone {
            if let Some((entry, _)) = self.done.remove(&source) {
                // With the word that is kept free: a later version may have used it.
                file.write_all_at(&[0; DONE_ENTRY_BYTES], entry_offset(entry))?;
                self.free_entries.insert(entry);
            }
        }
        Ok(())
    }

    pub(super) fn set(&mut self, file: &File, delta: Delta) -> io::Result<()> {
        let entry = match self.done.get(&delta.source) {
            // A write finished twice must not undo a later one.
            Some((_, position)) if *position >= delta.position => return Ok(()),
            Some((entry, _)) => *entry,
            None => self.new_entry(file)?,
        };
        let Source { serial, kind } = delta.source;
        write_entry(file, entry, [serial, kind.to_word(), delta.position])?;
        self.done.insert(delta.source, (entry, delta.position));
        Ok(())
    }

    fn new_entry(&mut self, file: &File) -> io::Result<usize> {
        if let Some(entry) = self.free_entries.pop_first() {
            return Ok(entry);
        }
        if self.entries_used >= MAX_DONE_ENTRIES {
            return Err(io::Error::new(
                io::ErrorKind::QuotaExceeded,
                format!("more than {MAX_DONE_ENTRIES} streams have log positions"),
            ));
        }
        write_count(file, ENTRIES_USED_OFFSET, self.entries_used + 1)?;
        self.entries_used += 1;
        Ok(self.entries_used - 1)
    }
}

/// Reads one of the words that say how much was ever used.
pub(super) fn read_count(file: &File, offset: u64, limit: usize) -> io::Result<usize> {
    let mut word = [0; 8];
    file.read_exact_at(&mut word, offset)?;
    let count = u64::from_le_bytes(word);
    let known = usize::try_from(count).ok().filter(|count| *count <= limit);
    known.ok_or_else(|| {
        of_a_later_version(&format!("{count} places are in use, not {limit} at most"))
    })
}

/// Writes one of them.
pub(super) fn write_count(file: &File, offset: u64, count: usize) -> io::Result<()> {
    file.write_all_at(&(count as u64).to_le_bytes(), offset)
}

fn write_entry(file: &File, entry: usize, words: [u64; 3]) -> io::Result<()> {
    let mut bytes = [0; 24];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    file.write_all_at(&bytes, entry_offset(entry))
}

fn entry_offset(entry: usize) -> u64 {
    DONE_OFFSET + (entry * DONE_ENTRY_BYTES) as u64
}
