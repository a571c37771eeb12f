//! Output read where the kernel keeps it, where it is too much to be sent.
//!
//! Owns the descriptors of reels and the memory read into. Leaves to others: asking for a
//! descriptor (`session`), what becomes of the bytes (`writer`).
//! Invariant: what is handed out was still kept after it had been read. What the kernel has let go
//! reads as zeros, and it moves the word that says so before.
//! Source: protocol/README.md, "Output".

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use papa_protocol::record::Record;
use papa_system::sys;

use crate::layout::MAX_BATCH_BYTES;

/// Descriptors kept. Only processes that write much have one; with more of them than this the
/// descriptor is asked for again.
const MAX_OPEN: usize = 128;
/// Bytes read at once, as many as one write takes.
const READ_BYTES: usize = MAX_BATCH_BYTES;

/// The same where there are few descriptors.
fn most_open() -> usize {
    (sys::descriptor_limit() / 8).clamp(1, MAX_OPEN)
}

/// The open reels.
#[derive(Debug, Default)]
pub(super) struct Reels {
    open: HashMap<u64, Reel>,
    /// Requests so far.
    clock: u64,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Reel {
    file: File,
    data_offset: u64,
    start_offset: u64,
    last_used: u64,
}

/// A part of a reel that was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ReelPart<'a> {
    /// Position of the first byte; later than asked for if the kernel had dropped that.
    pub(super) start: u64,
    pub(super) bytes: &'a [u8],
}

impl ReelPart<'_> {
    /// Position just past the last byte.
    pub(super) fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// Those of `all` records that are about these bytes.
    pub(super) fn records(&self, all: &[Record]) -> impl Iterator<Item = Record> {
        let (start, end) = (self.start, self.end());
        let first = all.partition_point(|record| record.end <= start);
        let last = all.partition_point(|record| record.end < end);
        let records = all.get(first..).unwrap_or(&[]);
        records
            .iter()
            .take((last + 1).saturating_sub(first))
            .filter(move |_| start < end)
            .map(move |record| Record {
                end: record.end.min(end),
                ..*record
            })
    }
}

impl Reels {
    pub(super) fn has(&self, serial: u64) -> bool {
        self.open.contains_key(&serial)
    }

    pub(super) fn open(
        &mut self,
        serial: u64,
        descriptor: OwnedFd,
        data_offset: u64,
        start_offset: u64,
    ) {
        if self.open.len() >= most_open()
            && let Some(idle) = self.open.iter().min_by_key(|(_, reel)| reel.last_used)
        {
            let idle = *idle.0;
            self.open.remove(&idle);
        }
        let reel = Reel {
            file: File::from(descriptor),
            data_offset,
            start_offset,
            last_used: self.clock,
        };
        self.open.insert(serial, reel);
    }

    pub(super) fn close(&mut self, serial: u64) {
        self.open.remove(&serial);
    }

    pub(super) fn clear(&mut self) {
        self.open.clear();
    }

    /// Reads the bytes at these positions, or the first of them.
    ///
    /// # Errors
    /// When the reel is not open, or ends before.
    pub(super) fn read(&mut self, serial: u64, wanted: Range<u64>) -> io::Result<ReelPart<'_>> {
        self.clock += 1;
        let reel = self.open.get_mut(&serial).ok_or(io::ErrorKind::NotFound)?;
        reel.last_used = self.clock;
        self.buffer.resize(READ_BYTES, 0);
        let length = usize::try_from(wanted.end - wanted.start)
            .unwrap_or(READ_BYTES)
            .min(READ_BYTES);
        let bytes = self.buffer.get_mut(..length).unwrap_or_default();
        let offset = reel.data_offset.checked_add(wanted.start);
        let offset = offset.ok_or(io::ErrorKind::InvalidInput)?;
        reel.file.read_exact_at(bytes, offset)?;
        let mut word = [0; 8];
        reel.file.read_exact_at(&mut word, reel.start_offset)?;
        let gone = u64::from_le_bytes(word).saturating_sub(wanted.start);
        let gone = usize::try_from(gone).unwrap_or(length).min(length);
        Ok(ReelPart {
            start: wanted.start + gone as u64,
            bytes: bytes.get(gone..).unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use papa_protocol::record::Stream;

    use super::*;

    const DATA_OFFSET: u64 = 64;
    const START_OFFSET: u64 = 16;

    fn reel(bytes: &[u8]) -> (Reels, File) {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, DATA_OFFSET).unwrap();
        let mut reels = Reels::default();
        let descriptor = file.try_clone().unwrap().into();
        reels.open(7, descriptor, DATA_OFFSET, START_OFFSET);
        (reels, file)
    }

    #[test]
    fn what_was_dropped_is_not_handed_out() {
        let (mut reels, file) = reel(b"0123456789");
        let whole = reels.read(7, 2..10).unwrap();
        assert_eq!((whole.start, whole.bytes), (2, b"23456789".as_slice()));
        file.write_all_at(&5u64.to_le_bytes(), START_OFFSET)
            .unwrap();
        let part = reels.read(7, 2..10).unwrap();
        assert_eq!((part.start, part.bytes), (5, b"56789".as_slice()));
        let nothing = reels.read(7, 2..4).unwrap();
        assert_eq!((nothing.end(), nothing.bytes), (4, b"".as_slice()));
        assert!(reels.read(7, 2..11).is_err(), "beyond the end");
        assert!(reels.read(8, 0..1).is_err(), "not open");
    }

    #[test]
    fn records_are_cut_to_what_was_read() {
        let record = |end| Record {
            end,
            stream: Stream::Out,
            stamp_us: end,
        };
        let all = [record(10), record(20), record(30)];
        let ends = |start, bytes: &[u8]| -> Vec<(u64, u64)> {
            let part = ReelPart { start, bytes };
            let records = part.records(&all).map(|r| (r.end, r.stamp_us));
            records.collect()
        };
        assert_eq!(ends(0, &[0; 10]), [(10, 10)]);
        assert_eq!(ends(5, &[0; 10]), [(10, 10), (15, 20)]);
        assert_eq!(ends(10, &[0; 20]), [(20, 20), (30, 30)]);
        assert_eq!(ends(12, &[0; 1]), [(13, 20)]);
        assert_eq!(ends(12, &[]), []);
    }

    #[test]
    fn the_reel_longest_unused_makes_room() {
        let (mut reels, file) = reel(b"x");
        for serial in 100..100 + MAX_OPEN as u64 - 1 {
            reels.open(serial, file.try_clone().unwrap().into(), DATA_OFFSET, 16);
            reels.read(serial, 0..1).unwrap();
        }
        reels.read(7, 0..1).unwrap();
        reels.open(99, file.try_clone().unwrap().into(), DATA_OFFSET, 16);
        assert!(reels.has(7) && reels.has(99) && !reels.has(100));
    }
}
