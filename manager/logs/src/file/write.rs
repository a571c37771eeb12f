//! Bytes on their way into a log file.
//!
//! Owns what waits to be written, what is left of a write that failed, and the write itself. Leaves
//! to others: the record of it (`store`), what to do about a failure (`file`).
//! Invariant: `written` counts what the system took, after every call and whatever came of it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use papa_test_hooks::failpoint;

use crate::file_id::FileId;
use crate::layout::{Delta, Slot, Source, Unfinished, Work};
use crate::pulse;

/// What a pipe that is writable at all takes without waiting, by POSIX at least 512, on Linux this.
const PIPE_BUF: usize = 4096;

/// Bytes that wait to be written, and the positions that they reach.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) bytes: Vec<u8>,
    pub(super) deltas: Vec<Delta>,
    index: HashMap<Source, usize>,
}

impl Pending {
    pub(super) fn note(&mut self, delta: Delta) {
        // Usually the source is the same as last time.
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

    /// Empties it after a write and keeps its memory.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.deltas.clear();
        self.index.clear();
    }
}

/// What must be finished before anything else goes to the file.
#[derive(Debug)]
pub(super) enum Stuck {
    /// Our own write, begun and not complete.
    Write(Attempt),
    /// One whose file is not open: a predecessor's, or ours whose file was deleted or let go.
    Unopened(Unfinished),
}

/// A write recorded in the store and not complete.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) slot: Slot,
    pub(super) file: File,
    pub(super) id: FileId,
    /// Length of the file when the write began.
    pub(super) start: u64,
    /// Not a pipe or terminal.
    pub(super) regular: bool,
    pub(super) bytes: Vec<u8>,
    pub(super) written: usize,
    pub(super) deltas: Vec<Delta>,
}

impl Attempt {
    /// Whether somebody has deleted the file: what is written there is lost, and its space stays
    /// taken as long as it is open.
    pub(super) fn is_deleted(&self) -> bool {
        self.regular && self.file.metadata().is_ok_and(|data| data.nlink() == 0)
    }

    /// The same work without the open file, to be looked for by `path`.
    pub(super) fn let_go(self, path: &Path) -> Unfinished {
        let written = if self.is_deleted() { 0 } else { self.written };
        Unfinished {
            slot: self.slot,
            path: path.to_owned(),
            file: self.id,
            work: Work::Write {
                start: self.start,
                bytes: self.bytes,
                deltas: self.deltas,
            },
            written,
        }
    }

    /// Writes what is left.
    pub(super) fn proceed(&mut self) -> io::Result<()> {
        write(
            &self.file,
            self.regular,
            [&self.bytes, &[]],
            &mut self.written,
            "log.in_rest",
        )
    }
}

/// Writes what is left of `parts` once `written` bytes of them are in the file. A test that arms
/// the failpoint `place` has half of it written first.
pub(super) fn write(
    mut file: &File,
    regular: bool,
    parts: [&[u8]; 2],
    written: &mut usize,
    place: &str,
) -> io::Result<()> {
    loop {
        let [first, second] = parts;
        let later = written.saturating_sub(first.len());
        let first = first.get(*written..).unwrap_or_default();
        let second = second.get(later..).unwrap_or_default();
        let next = if first.is_empty() { second } else { first };
        if next.is_empty() {
            return Ok(());
        }
        pulse::step();
        let half = next.get(..next.len() / 2).unwrap_or_default();
        if regular && !half.is_empty() && failpoint::take("log.full") {
            // In a test the disk becomes full in the middle of a write.
            *written += file.write(half)?;
            return Err(Errno::ENOSPC.into());
        }
        let result = match (regular, failpoint::is_armed(place)) {
            // Others write to it too, so it never gets more than it has room for.
            (false, _) => {
                writable_now(file)?;
                file.write(next.get(..PIPE_BUF).unwrap_or(next))
            }
            (true, true) if !half.is_empty() => file.write(half),
            (true, _) => file.write_vectored(&[IoSlice::new(first), IoSlice::new(second)]),
        };
        match result {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                *written += count;
                failpoint::reach(place);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Others share our standard output, so it is not made non-blocking; poll says if it has room.
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
