//! What log files need of the file system: careful opening, finding a file again.
//!
//! Owns no state. Invariant: no path is followed to where a stranger's symbolic link points.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{FileStat, fstat};
use papa_system::walk;

use crate::file_id::{FileId, file_id};
use crate::layout::MAX_BATCH_BYTES;
use crate::own_output::OWN_STDOUT;

/// Mode of new log files: readable by group and others, as Circus's are under the usual umask.
const MODE: u32 = 0o644;

/// An open log file.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) file: File,
    pub(super) id: FileId,
    /// Size when it was last read.
    pub(super) size: u64,
    /// Not a pipe, terminal or device.
    pub(super) regular: bool,
}

/// The longest run of whole lines within `room` and one batch; at least one line, or a batch of a
/// line longer than that.
pub(super) fn split_lines(lines: &[u8], room: u64) -> (&[u8], &[u8]) {
    let room = usize::try_from(room)
        .unwrap_or(usize::MAX)
        .min(MAX_BATCH_BYTES);
    if lines.len() <= room {
        return (lines, &[]);
    }
    let within = lines.get(..room).unwrap_or(lines);
    let length = match within.iter().rposition(|byte| *byte == b'\n') {
        Some(last) => last + 1,
        None => lines
            .iter()
            .position(|byte| *byte == b'\n')
            .map_or(lines.len(), |first| first + 1)
            .min(MAX_BATCH_BYTES),
    };
    lines.split_at(length)
}

/// Opens a log file for appending, making its directories if asked. A symbolic link in the path is
/// followed only if we or root made it: whoever may write to a log directory must not choose which
/// of our files grows.
pub(super) fn open(path: &Path, mkdir: bool) -> io::Result<Handle> {
    if path == Path::new(OWN_STDOUT) {
        // Ours already, and by its path it may not open again: sockets never do, another user's
        // terminal may not.
        let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let id = file_id(&file.metadata()?);
        return Ok(Handle {
            file,
            id,
            size: 0,
            regular: false,
        });
    }
    let file = walk::open_append(path, mkdir, MODE)?;
    let metadata = file.metadata()?;
    Ok(Handle {
        id: file_id(&metadata),
        size: metadata.len(),
        regular: metadata.is_file(),
        file,
    })
}

/// Whether our standard output leads there.
pub(super) fn is_own_stdout(id: FileId) -> bool {
    #[allow(clippy::useless_conversion, reason = "the types differ by system")]
    let same =
        |data: FileStat| u64::from(data.st_dev) == id.device && u64::from(data.st_ino) == id.inode;
    fstat(io::stdout()).is_ok_and(same)
}

/// The file in which an interrupted write is to be finished.
#[derive(Debug)]
pub(super) struct Resumed {
    pub(super) handle: Handle,
    /// Bytes of the write that are in it, or were until somebody truncated it.
    pub(super) written: usize,
    /// It is not the file the write had begun in, which is gone: all of the write goes to this one.
    pub(super) is_another: bool,
}

/// Finds the file an interrupted write went to, and how much of `bytes` it has. `known` bytes were
/// in it before, even if it has been truncated since: whoever copied and truncated it has them.
pub(super) fn resume(
    path: &Path,
    id: FileId,
    start: u64,
    bytes: &[u8],
    known: usize,
) -> io::Result<Resumed> {
    let known = known.min(bytes.len());
    if path == Path::new(OWN_STDOUT) {
        // Nothing tells how much of it got through.
        return Ok(Resumed {
            handle: open(path, false)?,
            written: known,
            is_another: false,
        });
    }
    let Some(found) = find(path, id) else {
        tracing::warn!(path = %path.display(), "file of an interrupted log write is gone; writing to a new one");
        return Ok(Resumed {
            handle: open(path, false)?,
            written: 0,
            is_another: true,
        });
    };
    let handle = open(&found, false)?;
    if !handle.regular {
        return Ok(Resumed {
            handle,
            written: known,
            is_another: false,
        });
    }
    // This is the file that was opened, whatever its path leads to by now.
    let opened = format!("/proc/self/fd/{}", handle.file.as_raw_fd());
    let written = match File::open(opened) {
        Ok(reader) => common_prefix(&reader, start, bytes)?,
        // The file is writable but not readable, so its length has to do.
        Err(_) => usize::try_from(handle.size.saturating_sub(start))
            .unwrap_or(usize::MAX)
            .min(bytes.len()),
    };
    Ok(Resumed {
        handle,
        written: written.max(known),
        is_another: false,
    })
}

/// The path, or one beside it with something added, that is the file meant: `.1`, or `-20261122` as
/// logrotate's `dateext` has it.
pub(super) fn find(path: &Path, id: FileId) -> Option<PathBuf> {
    let is_it = |path: &Path| fs::metadata(path).is_ok_and(|data| file_id(&data) == id);
    if is_it(path) {
        return Some(path.to_owned());
    }
    let prefix = path.file_name()?;
    fs::read_dir(path.parent()?)
        .ok()?
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(prefix.as_encoded_bytes())
        })
        .map(|entry| entry.path())
        .find(|path| is_it(path))
}

/// How many of `bytes` stand in the file at `start`. Compared, not computed: somebody else may have
/// appended or truncated.
pub(super) fn common_prefix(file: &File, start: u64, bytes: &[u8]) -> io::Result<usize> {
    let mut found = vec![0; bytes.len()];
    let mut filled = 0;
    while let Some(rest) = found.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, start + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes
        .iter()
        .zip(&found[..filled])
        .take_while(|(ours, theirs)| ours == theirs)
        .count())
}
