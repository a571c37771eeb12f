//! Layout of the log state: where things lie in the memfd, and how a slot's record is written in
//! bytes.
//!
//! Owns offsets, bounds and encodings; reads and writes nothing. Numbers are little-endian words of
//! eight bytes.
//! Invariant: everything one system call must not tear lies within one page; decoding foreign bytes
//! gives `None`, never a panic.

use std::io;
use std::path::PathBuf;

use papa_protocol::record::Stream;

use crate::file_id::FileId;
use crate::rotate::Turn;

/// First eight bytes of the memfd; the last digit is the layout's version. It rises only when an
/// earlier version would misread what is there. Further kinds of positions do not need that, they
/// are carried along; nor do words that were zero, which are passed over; nor a further phase or
/// higher bounds of a record, which an earlier version refuses as it does a later layout.
pub(super) const MAGIC: &[u8; 8] = b"PAPALOG1";
pub(super) const MAGIC_FAMILY: &[u8] = b"PAPALOG";
/// How many entries and slots were ever used, each written before the first use: what lies beyond
/// need not be read.
pub(super) const ENTRIES_USED_OFFSET: u64 = 8;
pub(super) const SLOTS_USED_OFFSET: u64 = 16;
/// The unit everything is aligned to: a write inside one page is not torn by a kill.
pub(super) const PAGE: u64 = 4096;
pub(super) const PAGE_BYTES: usize = 4096;

/// Done positions the table has room for: two streams and a gap counter of some 20,000 processes.
pub(super) const MAX_DONE_ENTRIES: usize = 65_536;
/// Serial, kind, position, and eight bytes kept free.
pub(super) const DONE_ENTRY_BYTES: usize = 32;
pub(super) const DONE_OFFSET: u64 = PAGE;

/// Writes that may be unfinished at once, each of another file; free slots cost no memory.
pub const MAX_SLOTS: usize = 1024;
pub(super) const SLOTS_OFFSET: u64 = DONE_OFFSET + (MAX_DONE_ENTRIES * DONE_ENTRY_BYTES) as u64;
pub(super) const SLOT_STRIDE: u64 = 128 * PAGE;
/// Where the two copies of a slot's record lie; the generation word is at 0.
pub(super) const RECORD_OFFSETS: [u64; 2] = [64, 256];
pub(super) const RECORD_WORDS: usize = 16;
pub(super) const RECORD_BYTES: usize = RECORD_WORDS * 8;
pub(super) const PATH_OFFSET: u64 = PAGE;
/// Longest path of a log file: what fits the page kept for it.
pub const MAX_PATH_BYTES: usize = 4096;
pub(super) const DELTAS_OFFSET: u64 = 2 * PAGE;
pub(super) const DELTA_BYTES: usize = 24;
/// Done positions one write may carry; more sources than that are written in several.
pub const MAX_DELTAS: usize = 2048;
pub(super) const BUFFER_OFFSET: u64 = DELTAS_OFFSET + (MAX_DELTAS * DELTA_BYTES) as u64;
/// Bytes of one write: large enough to spread the commits, small enough to stay in the processor's
/// cache while copied.
pub const MAX_BATCH_BYTES: usize = 256 * 1024;
pub(super) const STATE_BYTES: u64 = SLOTS_OFFSET + MAX_SLOTS as u64 * SLOT_STRIDE;

const _: () = assert!(BUFFER_OFFSET + (MAX_BATCH_BYTES as u64) <= SLOT_STRIDE);
const _: () = assert!(RECORD_OFFSETS[1] + (RECORD_BYTES as u64) <= PAGE);

/// What a done position counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Bytes of standard output below the position are in their file.
    Out,
    /// Bytes of standard error below the position are in their file.
    Err,
    /// Everything dropped below the position was reported in a gap line: how it was counted at
    /// first. Read, never written.
    Gap,
    /// So many dropped bytes were reported in gap lines.
    Dropped,
    /// 1 when a line matched what the process's readiness waits for.
    Matched,
    /// Where a line of standard output was cut that goes on; see `Cut`.
    OutCut,
    /// The same for standard error.
    ErrCut,
    /// What a later version counts; never 0 to 7. Carried along until the process is forgotten: it
    /// never goes back either.
    Other(u64),
}

impl From<Stream> for Kind {
    fn from(stream: Stream) -> Self {
        match stream {
            Stream::Out => Self::Out,
            Stream::Err => Self::Err,
        }
    }
}

impl Kind {
    pub(super) fn to_word(self) -> u64 {
        match self {
            Self::Out => 1,
            Self::Err => 2,
            Self::Gap => 3,
            Self::Dropped => 4,
            Self::Matched => 5,
            Self::OutCut => 6,
            Self::ErrCut => 7,
            Self::Other(word) => word,
        }
    }

    /// `None` for 0: nothing is there.
    pub(super) fn from_word(word: u64) -> Option<Self> {
        match word {
            0 => None,
            1 => Some(Self::Out),
            2 => Some(Self::Err),
            3 => Some(Self::Gap),
            4 => Some(Self::Dropped),
            5 => Some(Self::Matched),
            6 => Some(Self::OutCut),
            7 => Some(Self::ErrCut),
            other => Some(Self::Other(other)),
        }
    }
}

/// Where a line was cut that is too long for one piece. Kept like a position, which it begins with,
/// so it only ever grows; it speaks of the end of what is written as long as that is the stream's
/// done position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    /// The done position with which it is written.
    pub(super) position: u64,
    /// Parts of the line up to there, at least 1; more than [`Cut::MAX_PARTS`] are not counted.
    pub(super) parts: u32,
}

impl Cut {
    const PARTS_BITS: u32 = 16;
    pub(super) const MAX_PARTS: u32 = (1 << Self::PARTS_BITS) - 1;

    /// `None` for a position beyond 2^48, which is 280 TB of one process: a line that is cut there
    /// begins anew.
    pub(super) fn to_word(self) -> Option<u64> {
        let parts = u64::from(self.parts.min(Self::MAX_PARTS));
        let fits = self.position >> (u64::BITS - Self::PARTS_BITS) == 0;
        fits.then_some(self.position << Self::PARTS_BITS | parts)
    }

    pub(super) fn from_word(word: u64) -> Self {
        let parts = word & u64::from(Self::MAX_PARTS);
        Self {
            position: word >> Self::PARTS_BITS,
            parts: u32::try_from(parts).unwrap_or(Self::MAX_PARTS),
        }
    }
}

/// One stream of one process; serials are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Source {
    /// The process.
    pub serial: u64,
    /// Which of its positions.
    pub kind: Kind,
}

impl Source {
    /// Where its cuts are counted.
    pub(super) fn cuts(self) -> Self {
        let kind = match self.kind {
            Kind::Err => Kind::ErrCut,
            _ => Kind::OutCut,
        };
        Self { kind, ..self }
    }
}

/// A done position that takes effect when a write is finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delta {
    /// Whose position.
    pub source: Source,
    /// Exclusive: everything below is in the file.
    pub position: u64,
}

/// A slot of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot(pub(super) usize);

impl Slot {
    pub(super) fn offset(self) -> u64 {
        SLOTS_OFFSET + self.0 as u64 * SLOT_STRIDE
    }
}

/// Work that a predecessor had begun.
#[derive(Debug)]
pub struct Unfinished {
    /// Where it is recorded.
    pub slot: Slot,
    /// The log file's path.
    pub path: PathBuf,
    /// The file as it was when the work began.
    pub file: FileId,
    /// What was going on.
    pub work: Work,
    /// Bytes of a write that are known to have reached the file, whatever became of it since.
    pub written: usize,
}

/// Work that takes more than one system call.
#[derive(Debug)]
pub enum Work {
    /// `bytes` were being appended at `start`.
    Write {
        /// File length when the write began.
        start: u64,
        /// All the bytes of the write.
        bytes: Vec<u8>,
        /// Done positions once they are in the file.
        deltas: Vec<Delta>,
    },
    /// The file was being turned.
    Rotate(Turn),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Idle,
    Writing,
    /// To `.1`, older ones moving up.
    Rotating,
    /// To a name of its own, whose ending stands behind the path.
    Renaming,
}

/// One record of a slot, as stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct SlotRecord {
    pub(super) phase: Phase,
    pub(super) file: FileId,
    pub(super) start: u64,
    pub(super) length: usize,
    pub(super) path_length: usize,
    pub(super) deltas: usize,
    pub(super) backup_count: u32,
    /// Of the bytes of the path, those at the end that are the new name's ending.
    pub(super) suffix_length: usize,
    /// Bytes of a write that failed half way which had reached the file by then.
    pub(super) written: usize,
}

impl SlotRecord {
    pub(super) const IDLE: Self = Self {
        phase: Phase::Idle,
        file: FileId {
            device: 0,
            inode: 0,
        },
        start: 0,
        length: 0,
        path_length: 0,
        deltas: 0,
        backup_count: 0,
        suffix_length: 0,
        written: 0,
    };

    pub(super) fn encode(&self) -> [u8; RECORD_BYTES] {
        let phase = match self.phase {
            Phase::Idle => 0,
            Phase::Writing => 1,
            Phase::Rotating => 2,
            Phase::Renaming => 3,
        };
        let words = [
            phase,
            self.file.device,
            self.file.inode,
            self.start,
            self.length as u64,
            self.path_length as u64,
            self.deltas as u64,
            u64::from(self.backup_count),
            self.suffix_length as u64,
            self.written as u64,
        ];
        let mut bytes = [0; RECORD_BYTES];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// `None` when something is going on that this version does not know, or within bounds that it
    /// does not have.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let word = |index: usize| -> Option<u64> { Some(read_word(bytes, index * 8)) };
        let bounded =
            |value: u64, limit: usize| usize::try_from(value).ok().filter(|v| *v <= limit);
        Some(Self {
            phase: match word(0)? {
                // An idle slot; its other words do not count.
                0 => return Some(Self::IDLE),
                1 => Phase::Writing,
                2 => Phase::Rotating,
                3 => Phase::Renaming,
                _ => return None,
            },
            file: FileId {
                device: word(1)?,
                inode: word(2)?,
            },
            start: word(3)?,
            length: bounded(word(4)?, MAX_BATCH_BYTES)?,
            path_length: bounded(word(5)?, MAX_PATH_BYTES)?,
            deltas: bounded(word(6)?, MAX_DELTAS)?,
            backup_count: u32::try_from(word(7)?).ok()?,
            suffix_length: bounded(word(8)?, MAX_PATH_BYTES)?,
            written: bounded(word(9)?, MAX_BATCH_BYTES)?,
        })
    }
}

/// The little-endian word at `offset`; 0 beyond the end, which no caller asks for.
pub(super) fn read_word(bytes: &[u8], offset: usize) -> u64 {
    let mut word = [0; 8];
    if let Some(found) = bytes.get(offset..offset + 8) {
        word.copy_from_slice(found);
    }
    u64::from_le_bytes(word)
}

/// The error for a state that a later version left: its lines must not be lost or repeated, so it
/// stays as it is.
pub(super) fn of_a_later_version(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        format!(
            "the log state was left by a later version ({what}), whose manager must be started again; output waits in the kernel"
        ),
    )
}
