//! A log file and those it was turned into, in the order they were written.
//!
//! Owns one look at a directory that is not torn by a rotation going on, and whether two files are
//! the same one, compressed meanwhile or not. Reads no lines.
//! Invariant: a list that is called stable was the same in two looks.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};

use crate::file_id::{FileId, file_id};
use crate::rotate;

/// Most attempts to get two equal lists; a rotation takes a few system calls.
const MAX_LOOKS: usize = 20;
/// Stamps of files turned by time have at least eight digits; fewer are a shift's numbers.
const MIN_STAMP_DIGITS: usize = 8;
/// Where gzip says how long the text is, at the end.
const GZIP_LENGTH_BYTES: u64 = 4;

/// One file of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Generation {
    pub(super) path: PathBuf,
    pub(super) identity: FileId,
    pub(super) compressed: bool,
    pub(super) modified: DateTime<Utc>,
}

/// The files of one log, oldest first.
#[derive(Debug)]
pub(super) struct Generations {
    pub(super) files: Vec<Generation>,
    /// Whether nothing moved while they were listed.
    pub(super) stable: bool,
}

/// Lists the file at `path`, if there is one, and its predecessors.
pub(super) fn list(path: &Path) -> io::Result<Generations> {
    let mut files = look(path)?;
    for _ in 0..MAX_LOOKS {
        let again = look(path)?;
        let stable = names(&again).eq(names(&files));
        files = again;
        if stable {
            return Ok(Generations { files, stable });
        }
    }
    Ok(Generations {
        files,
        stable: false,
    })
}

fn names(files: &[Generation]) -> impl Iterator<Item = (&Path, FileId)> {
    files
        .iter()
        .map(|file| (file.path.as_path(), file.identity))
}

fn look(path: &Path) -> io::Result<Vec<Generation>> {
    let mut rotated = match rotate::rotated(path) {
        Ok(rotated) => rotated,
        // Without leave to list the directory the file itself may still be read.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
            ) =>
        {
            Vec::new()
        }
        Err(error) => return Err(error),
    };
    // Of a file that is being compressed both forms are there; the plain one is as complete and
    // quicker to read.
    rotated.sort_by(|a, b| {
        (&a.stamp, a.number, a.compressed).cmp(&(&b.stamp, b.number, b.compressed))
    });
    rotated.dedup_by(|a, b| a.stamp == b.stamp && a.number == b.number);
    let (mut by_time, mut by_size): (Vec<_>, Vec<_>) = rotated
        .into_iter()
        .partition(|file| file.stamp.len() >= MIN_STAMP_DIGITS);
    by_time.sort_by(|a, b| (&a.stamp, a.number).cmp(&(&b.stamp, b.number)));
    // `.1` is the newest; what is no number is long.
    by_size.sort_by_key(|file| std::cmp::Reverse(file.stamp.parse::<u32>().unwrap_or(u32::MAX)));
    let mut groups = [Vec::new(), Vec::new()];
    for (group, files) in groups.iter_mut().zip([by_size, by_time]) {
        for file in files {
            // A directory with such a name is no log.
            if !file.path.is_dir() {
                group.extend(generation(file.path, file.compressed)?);
            }
        }
    }
    // Both kinds exist where the configuration was changed; the kind turned last is the present
    // one.
    groups.sort_by_key(|group| group.last().map(|file| file.modified));
    let mut files = groups.concat();
    files.extend(generation(path.to_owned(), false)?);
    Ok(files)
}

fn generation(path: PathBuf, compressed: bool) -> io::Result<Option<Generation>> {
    match fs::metadata(&path) {
        Ok(metadata) if metadata.is_file() => Ok(Some(Generation {
            identity: file_id(&metadata),
            modified: modified(&metadata),
            compressed,
            path,
        })),
        Ok(_) => Err(io::Error::other("not a regular file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Time of the last write.
pub(super) fn modified(metadata: &Metadata) -> DateTime<Utc> {
    metadata.modified().map_or(DateTime::UNIX_EPOCH, Into::into)
}

impl Generation {
    /// Opens the file; none if another file has its name by now.
    pub(super) fn open(&self) -> io::Result<Option<File>> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let same = file_id(&file.metadata()?) == self.identity;
        Ok(same.then_some(file))
    }

    /// Whether this is `plain` in compressed form: it keeps the time of the last write, and says
    /// how long the text is.
    pub(super) fn is_compressed_from(&self, plain: &File) -> io::Result<bool> {
        let metadata = plain.metadata()?;
        if !self.compressed || self.modified != modified(&metadata) {
            return Ok(false);
        }
        let Some(file) = self.open()? else {
            return Ok(false);
        };
        let Some(at) = file.metadata()?.size().checked_sub(GZIP_LENGTH_BYTES) else {
            return Ok(false);
        };
        let mut length = [0; 4];
        file.read_exact_at(&mut length, at)?;
        // Modulo 2^32, as gzip counts.
        Ok(u64::from(u32::from_le_bytes(length)) == metadata.size() & u64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(names: &[&str]) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        for name in names {
            fs::write(directory.path().join(name), name).unwrap();
        }
        let found = list(&directory.path().join("log")).unwrap();
        assert!(found.stable);
        let name = |file: &Generation| file.path.file_name().unwrap().to_str().unwrap().to_owned();
        found.files.iter().map(name).collect()
    }

    #[test]
    fn files_are_in_the_order_they_were_written() {
        assert_eq!(
            listed(&[
                "log",
                "log.1",
                "log.2.gz",
                "log.10.gz",
                "log.2",
                "log.x",
                "logs"
            ]),
            ["log.10.gz", "log.2", "log.1", "log"]
        );
        assert_eq!(
            listed(&[
                "log.20261122",
                "log.20261121.gz",
                "log.20261121.2",
                "log.20261121.10"
            ]),
            [
                "log.20261121.gz",
                "log.20261121.2",
                "log.20261121.10",
                "log.20261122"
            ]
        );
        assert_eq!(listed(&[]), [""; 0]);
    }

    #[test]
    fn a_directory_that_is_not_there_has_no_files() {
        assert!(list(Path::new("/absent/log")).unwrap().files.is_empty());
    }
}
