//! Rotating a log file: the file gets another name, older ones move up or are deleted, and a new
//! one begins.
//!
//! Owns the names of rotated files, plain and compressed, and every step of a rotation. Leaves to
//! others: when (`file`, `schedule`), the record of it (`store`), compressing (`gzip`).
//! Invariant: every step can be repeated after any other, and the file meant is renamed or none; of
//! a plain and a compressed file of one name the compressed one is complete, because it got its
//! name last.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use papa_system::walk::Anchored;
use papa_test_hooks::failpoint;

use crate::file_id::{FileId, file_id};
use crate::pulse;

/// What compressed files end in.
pub(super) const GZ: &str = ".gz";
/// Rotated files whose names begin with the same stamp; a rotation each second for most of a day.
const MAX_SAME_STAMP: u32 = 50_000;

/// How a file is rotated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// To `.1`, older ones moving up; this many are kept.
    Shift {
        /// At least 1.
        backup_count: u32,
    },
    /// To a name of its own.
    Rename {
        /// What is added to the name, with its dot.
        suffix: String,
        /// How many such files are kept; 0 means all.
        backup_count: u32,
    },
}

/// Rotates a file, or finishes a rotation that was interrupted.
pub(super) fn turn(path: &Path, id: FileId, plan: &Turn) -> io::Result<()> {
    let place = Anchored::at(path)?;
    let path = place.path();
    match plan {
        Turn::Shift { backup_count } => shift(path, id, *backup_count),
        Turn::Rename {
            suffix,
            backup_count,
        } => {
            if is_still(path, id)? {
                failpoint::reach("log.rotating");
                pulse::step();
                fs::rename(path, added(path, suffix))?;
            }
            failpoint::reach("log.rotating");
            prune(path, *backup_count)
        }
    }
}

/// A free name for the file of the period `stamp`: a rotated file is never overwritten.
pub(super) fn free_suffix(path: &Path, stamp: &str) -> io::Result<String> {
    let place = Anchored::at(path)?;
    let taken = |suffix: &str| {
        exists(&added(place.path(), suffix))
            || exists(&added(place.path(), &format!("{suffix}{GZ}")))
    };
    let first = format!(".{stamp}");
    if !taken(&first) {
        return Ok(first);
    }
    // The numbers in use are found by one look at the directory, not by asking for each.
    let last = rotated(place.path())?
        .into_iter()
        .filter(|file| file.stamp == stamp)
        .map(|file| file.number)
        .max()
        .unwrap_or(0);
    if last >= MAX_SAME_STAMP {
        return Err(io::Error::other(format!(
            "more than {MAX_SAME_STAMP} files are called {}.{stamp}",
            path.display()
        )));
    }
    Ok(format!(".{stamp}.{}", last + 1))
}

/// `path` with something added to its last part.
pub(super) fn added(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

/// A rotated file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rotated {
    /// The digits behind the log file's name.
    pub(crate) stamp: String,
    /// The digits behind those, of which the first file has none.
    pub(crate) number: u32,
    pub(crate) path: PathBuf,
    pub(crate) compressed: bool,
}

/// Rotated files of `path`, by name alone. Names of other makes (logrotate's dates begin with a
/// dash) are not ours.
pub(crate) fn rotated(path: &Path) -> io::Result<Vec<Rotated>> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let entry_name = entry.file_name();
        let rest = entry_name
            .as_bytes()
            .strip_prefix(name.as_bytes())
            .and_then(|rest| rest.strip_prefix(b"."))
            .and_then(|rest| std::str::from_utf8(rest).ok());
        let Some(rest) = rest else {
            continue;
        };
        let plain = rest.strip_suffix(GZ);
        let (stamp, number) = plain
            .unwrap_or(rest)
            .split_once('.')
            .unwrap_or((plain.unwrap_or(rest), "0"));
        let digits =
            |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if let (true, Some(number)) = (
            digits(stamp) && digits(number) && stamp.len() <= 14,
            number.parse().ok(),
        ) {
            found.push(Rotated {
                stamp: stamp.to_owned(),
                number,
                compressed: plain.is_some(),
                path: entry.path(),
            });
        }
    }
    Ok(found)
}

/// Where a rotated file of an anchored `path` is now, whatever was renamed meanwhile.
pub(super) fn find_rotated(path: &Path, id: FileId) -> io::Result<Option<PathBuf>> {
    Ok(rotated(path)?
        .into_iter()
        .map(|file| file.path)
        .find(|path| fs::symlink_metadata(path).is_ok_and(|data| file_id(&data) == id)))
}

/// Removes plain files whose compressed form is there, and finds the newest that has none.
pub(super) fn next_plain(path: &Path) -> io::Result<Option<PathBuf>> {
    let place = Anchored::at(path)?;
    let files = rotated(place.path())?;
    let mut newest: Option<&Rotated> = None;
    for file in files.iter().filter(|file| !file.compressed) {
        if exists(&gz(&file.path)) {
            fs::remove_file(&file.path)?;
        } else if newest.is_none_or(|known| known < file) && is_file(&file.path) {
            newest = Some(file);
        }
    }
    let name = newest.and_then(|file| file.path.file_name());
    Ok(name.map(|name| path.with_file_name(name)))
}

/// What somebody else put in a rotated file's place (a FIFO, a link) is never compressed, and must
/// not keep the others from it.
fn is_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file())
}

/// The compressed form's name.
pub(super) fn gz(path: &Path) -> PathBuf {
    added(path, GZ)
}

/// Deletes the oldest files that were renamed by time.
fn prune(path: &Path, keep: u32) -> io::Result<()> {
    if keep == 0 {
        return Ok(());
    }
    let mut files = rotated(path)?;
    // Stamps have at least eight digits; fewer are a shift's numbers.
    files.retain(|file| file.stamp.len() >= 8);
    files.sort();
    let mut names: Vec<(&str, u32)> = files
        .iter()
        .map(|file| (file.stamp.as_str(), file.number))
        .collect();
    names.dedup();
    let surplus = names.len().saturating_sub(keep as usize);
    for file in &files {
        let name = (file.stamp.as_str(), file.number);
        if names.iter().take(surplus).any(|gone| *gone == name) {
            pulse::step();
            remove(&file.path)?;
        }
    }
    Ok(())
}

/// Renames `path` to `.1` and older files up to the first gap, or over the oldest. `path` is
/// renamed last and only while it is still the file meant.
fn shift(path: &Path, id: FileId, backup_count: u32) -> io::Result<()> {
    if !is_still(path, id)? {
        return Ok(());
    }
    let numbered = |number: u32| added(path, &format!(".{number}"));
    let there = |number| exists(&numbered(number)) || exists(&gz(&numbered(number)));
    let free = (1..backup_count)
        .find(|number| !there(*number))
        .unwrap_or(backup_count);
    // The oldest goes in both forms before another gets its name: what is left of it must not be
    // taken for the other's.
    remove(&numbered(free))?;
    remove(&gz(&numbered(free)))?;
    for number in (1..free).rev() {
        failpoint::reach("log.rotating");
        pulse::step();
        let (from, to) = (numbered(number), numbered(number + 1));
        if exists(&gz(&from)) {
            remove(&from)?;
            fs::rename(gz(&from), gz(&to))?;
        } else {
            fs::rename(from, to)?;
        }
    }
    failpoint::reach("log.rotating");
    fs::rename(path, numbered(1))
}

/// Whether the path still leads to the file meant. A link at the path is followed when it is
/// opened, and the link itself is renamed.
fn is_still(path: &Path, id: FileId) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        // What stands there now, a directory or a FIFO, may have got the number of a file that is
        // gone.
        Ok(metadata) => {
            Ok(metadata.is_symlink() || (metadata.is_file() && file_id(&metadata) == id))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A path and a suffix in one run of bytes, as the store keeps them.
pub(super) fn split_suffix(mut bytes: Vec<u8>, suffix: usize) -> (PathBuf, String) {
    let text = bytes.split_off(bytes.len().saturating_sub(suffix));
    (
        PathBuf::from(OsString::from_vec(bytes)),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

/// Inverse of `join_suffix`.
pub(super) fn join_suffix(path: &OsStr, suffix: &str) -> Vec<u8> {
    [path.as_bytes(), suffix.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Directory(tempfile::TempDir);

    impl Directory {
        fn new(names: &[&str]) -> Self {
            let directory = Self(tempfile::tempdir().unwrap());
            for name in names {
                fs::write(directory.path(name), name).unwrap();
            }
            directory
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn turn(&self, plan: &Turn) {
            let path = self.path("log");
            let id = file_id(&fs::metadata(&path).unwrap());
            turn(&path, id, plan).unwrap();
            // Again: the file has gone from the path, so nothing happens.
            turn(&path, id, plan).unwrap();
        }

        /// Names and, where it was another once, what they hold.
        fn list(&self) -> Vec<String> {
            let mut names: Vec<String> = fs::read_dir(self.0.path())
                .unwrap()
                .map(|entry| {
                    let entry = entry.unwrap();
                    let text = fs::read_to_string(entry.path()).unwrap();
                    format!("{} {text}", entry.file_name().into_string().unwrap())
                })
                .collect();
            names.sort();
            names
        }
    }

    #[test]
    fn plain_and_compressed_files_move_up_together() {
        let files = Directory::new(&["log", "log.1", "log.2.gz", "log.3", "log.3.gz", "log.x"]);
        files.turn(&Turn::Shift { backup_count: 3 });
        assert_eq!(
            files.list(),
            [
                "log.1 log",
                "log.2 log.1",
                "log.3.gz log.2.gz",
                "log.x log.x"
            ]
        );
    }

    #[test]
    fn a_gap_ends_the_moving() {
        let files = Directory::new(&["log", "log.1.gz", "log.1", "log.3"]);
        files.turn(&Turn::Shift { backup_count: 5 });
        assert_eq!(
            files.list(),
            ["log.1 log", "log.2.gz log.1.gz", "log.3 log.3"]
        );
    }

    #[test]
    fn a_name_by_time_is_never_taken_twice_and_the_oldest_go() {
        let files = Directory::new(&[
            "log",
            "log.20261120",
            "log.20261121.gz",
            "log.20261122",
            "log.20261122.1.gz",
            "log.7",
        ]);
        let path = files.path("log");
        assert_eq!(free_suffix(&path, "20261123").unwrap(), ".20261123");
        let suffix = free_suffix(&path, "20261122").unwrap();
        assert_eq!(suffix, ".20261122.2");
        files.turn(&Turn::Rename {
            suffix,
            backup_count: 3,
        });
        assert_eq!(
            files.list(),
            [
                "log.20261122 log.20261122",
                "log.20261122.1.gz log.20261122.1.gz",
                "log.20261122.2 log",
                "log.7 log.7"
            ]
        );
    }
}
