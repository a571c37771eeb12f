//! Where things lie in a reel's file.
//!
//! There are three kinds. In one of the first kind, which all versions read,
//! the data begins behind an index of 65,280 entries. A reel that keeps more
//! than that index is made for has a larger one, and says in its header where
//! its data begins. Where files may only become so large (`RLIMIT_FSIZE`),
//! offsets cannot grow with all that was ever captured: the data is a ring
//! then, followed by a landing in which what was taken waits until it has been
//! copied into the ring. That costs a second copy, so below a large limit a
//! reel begins without a ring and moves to one if it ever gets there.
//!
//! Owns offsets; reads and writes nothing itself.
//! Source: kernel/README.md, "Processes"; `setrlimit(2)`.

use std::ops::Range;

use nix::errno::Errno;

/// What memory is given back in.
pub(super) const PAGE: u64 = 4096;
/// Where the ring of index entries begins.
pub(super) const INDEX_OFFSET: u64 = PAGE;
/// Bytes of one index entry.
pub(super) const ENTRY: u64 = 16;
/// Bytes of the header in use.
pub(super) const HEADER_BYTES: usize = 88;
/// First byte of the data in a reel of the first kind.
pub const FIRST_DATA_OFFSET: u64 = 1 << 20;
/// Largest reel of the first kind, in bytes: its index has an entry for 16 of
/// them, as that of larger ones.
const FIRST_KIND_BYTES: u64 = 1 << 20;
/// Bytes of data for which there is an index entry.
const BYTES_PER_ENTRY: u64 = 16;
/// Bytes of the landing: what is taken in one go at most.
pub(super) const LANDING_BYTES: u64 = 64 * 1024;
/// Smallest index of a ring, in bytes.
const MIN_RING_INDEX: u64 = 64 * 1024;
/// Smallest largest file in which a ring has room.
pub const MIN_FILE_BYTES: u64 = 256 * 1024;
/// Where files may have this many bytes, a reel begins without a ring: few processes ever write so
/// much, and the largest reel (16 GiB and an index of that size) fits in twice.
pub const LINEAR_FILE_BYTES: u64 = 1 << 36;
/// Nothing in a file lies behind this; more in a header is a mistake.
const MAX_OFFSET: u64 = 1 << 46;

pub(super) const MAGIC_AT: u64 = 0;
const DATA_OFFSET_AT: usize = 40;
const RING_BYTES_AT: usize = 48;
const RING_LIMIT_AT: usize = 56;
/// In a ring: one past the last byte in it, and …
pub(super) const RING_END_AT: u64 = 64;
/// … how many bytes of the landing are in it already.
pub(super) const LANDED_AT: u64 = 72;
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"paparel1");
/// Of the other two kinds: a version that knows only the first refuses it.
pub(super) const MAGIC_2: u64 = u64::from_le_bytes(*b"paparel2");

/// What a reel keeps at most, in bytes, where a file may have `largest_file`.
#[must_use]
pub fn largest_reel(largest_file: u64) -> u64 {
    // Index and data are of one size, and an eighth is for the newest.
    let room = largest_file.saturating_sub(INDEX_OFFSET + LANDING_BYTES + 3 * PAGE);
    room / 17 * 8
}

/// Where things lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// File offset of the first byte of data.
    pub(super) data_offset: u64,
    /// The data's ring; without one the byte at position p lies at
    /// `data_offset + p`.
    pub(super) ring: Option<Ring>,
}

/// Data that wraps around.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ring {
    /// Bytes it holds.
    pub(super) bytes: u64,
    /// Bytes the reel is to keep: fewer than that, so that the newest fits in
    /// before the oldest goes.
    pub(super) limit: u64,
}

impl Layout {
    /// The first kind.
    pub(super) const FIRST: Self = Self {
        data_offset: FIRST_DATA_OFFSET,
        ring: None,
    };

    /// For a reel that keeps `limit` bytes in a file of at most `largest_file`.
    ///
    /// # Errors
    /// `EFBIG` if it has no room below that.
    pub(super) fn new(limit: u64, largest_file: Option<u64>) -> Result<Self, Errno> {
        if let Some(largest) = largest_file.filter(|largest| *largest < LINEAR_FILE_BYTES) {
            return Self::ring(limit, largest);
        }
        if limit <= FIRST_KIND_BYTES {
            return Ok(Self::FIRST);
        }
        let entries = limit.div_ceil(BYTES_PER_ENTRY);
        Ok(Self {
            data_offset: INDEX_OFFSET + (entries * ENTRY).next_multiple_of(PAGE),
            ring: None,
        })
    }

    /// A ring for a reel that keeps `limit` bytes, or what has room, in a file of at most `largest`
    /// bytes.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(super) fn ring(limit: u64, largest: u64) -> Result<Self, Errno> {
        if largest < MIN_FILE_BYTES {
            return Err(Errno::EFBIG);
        }
        let limit = limit.min(largest_reel(largest));
        let index = limit.max(MIN_RING_INDEX).next_multiple_of(PAGE);
        Ok(Self {
            data_offset: INDEX_OFFSET + index,
            ring: Some(Ring {
                bytes: (limit + (limit / super::DROPPING_STEPS).max(super::MIN_DROPPING_STEP))
                    .next_multiple_of(PAGE),
                limit,
            }),
        })
    }

    /// Reads it from a header; an empty one is of the first kind.
    ///
    /// # Errors
    /// `EBADMSG` for a header that no version of this program has written.
    pub(super) fn read(header: &[u8; HEADER_BYTES]) -> Result<Self, Errno> {
        match word(header, 0) {
            0 | MAGIC => return Ok(Self::FIRST),
            MAGIC_2 => {}
            _ => return Err(Errno::EBADMSG),
        }
        let layout = Self {
            data_offset: word(header, DATA_OFFSET_AT),
            ring: match word(header, RING_BYTES_AT) {
                0 => None,
                bytes => Some(Ring {
                    bytes,
                    limit: word(header, RING_LIMIT_AT),
                }),
            },
        };
        let right = layout.data_offset > INDEX_OFFSET
            && layout.data_offset.is_multiple_of(PAGE)
            && layout.data_offset <= MAX_OFFSET
            && layout
                .ring
                .is_none_or(|ring| ring.bytes <= MAX_OFFSET && ring.limit <= ring.bytes);
        if right {
            Ok(layout)
        } else {
            Err(Errno::EBADMSG)
        }
    }

    /// The header of an empty reel; `None` for the first kind, whose header is
    /// written with the first output.
    pub(super) fn header(&self) -> Option<[u8; HEADER_BYTES]> {
        if *self == Self::FIRST {
            return None;
        }
        let mut header = [0u8; HEADER_BYTES];
        let mut put =
            |at: usize, word: u64| header[at..at + 8].copy_from_slice(&word.to_le_bytes());
        put(0, MAGIC_2);
        put(DATA_OFFSET_AT, self.data_offset);
        if let Some(ring) = self.ring {
            put(RING_BYTES_AT, ring.bytes);
            put(RING_LIMIT_AT, ring.limit);
        }
        Some(header)
    }

    pub(super) fn magic(&self) -> u64 {
        if *self == Self::FIRST { MAGIC } else { MAGIC_2 }
    }

    /// Entries in the index: what fits before the data.
    pub(super) fn max_records(&self) -> u64 {
        (self.data_offset - INDEX_OFFSET) / ENTRY
    }

    /// Size of the file while nothing is in it.
    pub(super) fn empty_size(&self) -> u64 {
        self.data_offset + self.ring.map_or(0, |ring| ring.bytes)
    }

    /// Where in the file the positions of `range` lie; those of a ring from
    /// `landed` on lie in the landing. At most three pieces, in order.
    pub(super) fn pieces(
        &self,
        range: Range<u64>,
        landed: u64,
    ) -> impl Iterator<Item = Range<u64>> {
        let mut pieces = [0..0, 0..0, 0..0];
        match self.ring {
            None => pieces[0] = self.data_offset + range.start..self.data_offset + range.end,
            Some(ring) => {
                let end = range.end.min(landed);
                if range.start < end {
                    let from = range.start % ring.bytes;
                    let here = (end - range.start).min(ring.bytes - from);
                    pieces[0] = self.data_offset + from..self.data_offset + from + here;
                    let rest = (end - range.start - here).min(ring.bytes);
                    pieces[1] = self.data_offset..self.data_offset + rest;
                }
                let start = range.start.max(landed);
                if start < range.end {
                    let landing = self.empty_size();
                    pieces[2] = landing + (start - landed)..landing + (range.end - landed);
                }
            }
        }
        pieces.into_iter().filter(|piece| piece.start < piece.end)
    }
}

/// The word at a byte of the header.
pub(super) fn word(header: &[u8; HEADER_BYTES], at: usize) -> u64 {
    let mut bytes = [0u8; 8];
    bytes.copy_from_slice(&header[at..at + 8]);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_did_not_grow_lost_short_lines() {
        for mib in [1, 2, 64, 16 << 10] {
            let limit = mib << 20;
            let layout = Layout::new(limit, None).unwrap();
            assert!(layout.max_records() + 256 >= limit / 16, "{mib} MiB");
            let header = layout.header().unwrap_or([0; HEADER_BYTES]);
            assert_eq!(Layout::read(&header), Ok(layout), "{mib} MiB");
        }
        assert_eq!(Layout::new(1 << 20, None), Ok(Layout::FIRST));
    }

    #[test]
    fn whatever_the_limits_a_ring_stays_below_the_largest_file() {
        for limit in [0, 1, 1000, 4095, 65_536, 1 << 20, 64 << 20, 16 << 30] {
            for largest in [
                MIN_FILE_BYTES,
                300_001,
                1 << 20,
                4 << 20,
                1 << 30,
                LINEAR_FILE_BYTES - 1,
            ] {
                let layout = Layout::new(limit, Some(largest)).unwrap();
                assert!(
                    layout.empty_size() + LANDING_BYTES <= largest,
                    "{limit} {largest}"
                );
                let ring = layout.ring.unwrap();
                assert!(ring.limit <= limit && ring.limit < ring.bytes);
                assert!(largest < 4 << 20 || limit > 1 << 20 || ring.limit == limit);
                assert_eq!(Layout::read(&layout.header().unwrap()), Ok(layout));
            }
        }
        assert_eq!(Layout::new(1, Some(MIN_FILE_BYTES - 1)), Err(Errno::EFBIG));
    }

    #[test]
    fn any_limit_on_file_size_however_large_made_every_reel_a_ring() {
        for limit in [0, 1 << 20, 64 << 20, 16 << 30] {
            for largest in [LINEAR_FILE_BYTES, 1 << 40, u64::MAX / 2] {
                let layout = Layout::new(limit, Some(largest)).unwrap();
                assert_eq!(Ok(layout), Layout::new(limit, None));
                assert!(
                    layout.empty_size() + 2 * limit <= largest,
                    "{limit} {largest}"
                );
            }
        }
    }
}
