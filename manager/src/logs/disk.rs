//! What log files need of the file system: careful opening, renaming, finding a file again.
//!
//! Owns no state. Invariant: `shift` can be repeated after any of its steps, and renames the file meant or none.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::Uid;

use crate::logs::layout::{FileId, MAX_BATCH_BYTES};

/// Readable by the group and others, as Circus's are under the usual umask.
const MODE: u32 = 0o644;

/// An open log file.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) file: File,
    pub(super) id: FileId,
    /// As of the last look.
    pub(super) size: u64,
    /// Not a pipe, terminal or device.
    pub(super) regular: bool,
}

/// The longest run of whole lines within `room` and one batch; at least one line, or a batch of a line longer than that.
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

/// Opens a log file for appending. A symbolic link at the end of the path is followed only if we or root made it: whoever may write
/// to a log directory must not choose which of our files grows.
pub(super) fn open(path: &Path) -> io::Result<Handle> {
    let with = |flags: OFlag| {
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(MODE)
            // Not blocking: a FIFO without a reader must not stop everybody else's logs.
            .custom_flags((flags | OFlag::O_NOCTTY | OFlag::O_NONBLOCK).bits())
            .open(path)
    };
    let file = match with(OFlag::O_NOFOLLOW) {
        Err(error) if error.raw_os_error() == Some(nix::libc::ELOOP) => {
            let owner = fs::symlink_metadata(path)?.uid();
            if owner != Uid::effective().as_raw() && owner != 0 {
                let text =
                    format!("a symbolic link made by uid {owner}, which is neither us nor root");
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
            }
            with(OFlag::empty())?
        }
        other => other?,
    };
    let metadata = file.metadata()?;
    Ok(Handle {
        id: file_id(&metadata),
        size: metadata.len(),
        regular: metadata.is_file(),
        file,
    })
}

pub(super) fn file_id(metadata: &fs::Metadata) -> FileId {
    FileId {
        device: metadata.dev(),
        inode: metadata.ino(),
    }
}

/// `path` with `.number` added to its last part.
pub(super) fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// Renames `path` to `.1` and older files up to the first gap, or over the oldest. Every step can be repeated: `path` is renamed
/// last and only while it is still the file meant.
pub(super) fn shift(path: &Path, id: FileId, backup_count: u32) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() || file_id(&metadata) == id => {}
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    let free = (1..backup_count)
        .find(|number| fs::symlink_metadata(numbered(path, *number)).is_err())
        .unwrap_or(backup_count);
    for number in (1..free).rev() {
        fs::rename(numbered(path, number), numbered(path, number + 1))?;
    }
    fs::rename(path, numbered(path, 1))
}

/// Finds the file an interrupted write went to, and how much of `bytes` it has.
pub(super) fn resume(
    path: &Path,
    id: FileId,
    start: u64,
    bytes: &[u8],
) -> io::Result<(File, usize)> {
    let Some(found) = find(path, id) else {
        tracing::warn!(path = %path.display(), "the file of an interrupted log write is gone; the write goes to a new one");
        return Ok((open(path)?.file, 0));
    };
    let handle = open(&found)?;
    if !handle.regular {
        return Ok((handle.file, 0));
    }
    let written = match OpenOptions::new().read(true).open(&found) {
        Ok(reader) => common_prefix(&reader, start, bytes)?,
        // Writable but not readable: the length is the best there is.
        Err(_) => usize::try_from(handle.size.saturating_sub(start))
            .unwrap_or(usize::MAX)
            .min(bytes.len()),
    };
    Ok((handle.file, written))
}

/// The path, or one beside it with `.something` added, that is the file meant.
pub(super) fn find(path: &Path, id: FileId) -> Option<PathBuf> {
    let is_it = |path: &Path| fs::metadata(path).is_ok_and(|data| file_id(&data) == id);
    if is_it(path) {
        return Some(path.to_owned());
    }
    let mut prefix = path.file_name()?.to_owned();
    prefix.push(".");
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

/// How many of `bytes` stand in the file at `start`. Compared, not computed: somebody else may have appended or truncated.
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
