//! The file that names the manager's pid.
//!
//! Owns writing it, refusing while it names another living process, and removing it at the end. A
//! pid that was given to another process after the file was written names nobody: files outlive
//! reboots.
//! Invariant: a file that names somebody else is neither removed nor replaced while that process
//! lives.
//! Source: Circus's `Pidfile`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::walk::Anchored;

/// Mode of the file: everybody may read a pid.
const MODE: u32 = 0o644;
/// Longest content that can be a pid, in bytes.
const MAX_BYTES: u64 = 32;
/// The clock's steps since boot and the rounding of a process's start may add up to this.
const SLACK: Duration = Duration::from_secs(2);
/// Unit of times in `/proc/PID/stat` on every Linux architecture, per second. Source: proc(5),
/// `USER_HZ`.
const TICKS_PER_SECOND: u64 = 100;

/// Why there is no pidfile.
#[derive(Debug, thiserror::Error)]
pub enum PidfileError {
    /// It names another living process.
    #[error(
        "pidfile {}: names process {pid}, which runs; end it, or remove the file if it is none of ours", path.display()
    )]
    Taken {
        /// The file.
        path: PathBuf,
        /// The process.
        pid: u32,
    },
    /// It cannot be written.
    #[error("pidfile {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

/// A file that names this process, removed on drop.
#[derive(Debug)]
pub struct Pidfile {
    path: PathBuf,
}

impl Pidfile {
    /// Writes `path`.
    ///
    /// # Errors
    /// It names another living process, or cannot be written.
    pub fn claim(path: &Path) -> Result<Self, PidfileError> {
        let own = std::process::id();
        if let Some(pid) = holder(path).filter(|pid| *pid != own) {
            return Err(PidfileError::Taken {
                path: path.to_owned(),
                pid,
            });
        }
        write(path, own).map_err(|source| PidfileError::Write {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
        })
    }

    /// Whether `path` has a place for it.
    ///
    /// # Errors
    /// Its directory cannot be entered.
    pub fn check(path: &Path) -> Result<(), PidfileError> {
        let place = Anchored::at(path).map_err(|source| PidfileError::Write {
            path: path.to_owned(),
            source,
        });
        place.map(drop)
    }
}

impl Pidfile {
    /// Whether [`Self::claim`] would succeed now, leaving nothing behind.
    ///
    /// # Errors
    /// As [`Self::claim`].
    pub fn check_free(path: &Path) -> Result<(), PidfileError> {
        if let Some(pid) = holder(path) {
            return Err(PidfileError::Taken {
                path: path.to_owned(),
                pid,
            });
        }
        let failed = |source| PidfileError::Write {
            path: path.to_owned(),
            source,
        };
        let place = Anchored::at(path).map_err(failed)?;
        if fs::symlink_metadata(place.path()).is_ok_and(|there| there.is_dir()) {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        let temporary = temporary(place.path(), std::process::id());
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(MODE)
            .open(&temporary)
            .map_err(failed);
        let _ = fs::remove_file(&temporary);
        made.map(drop)
    }
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        // A successor may have written its own pid meanwhile.
        if read_pid(&self.path) == Some(std::process::id()) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Writes a file beside it and renames that, so that nobody reads half a pid.
fn write(path: &Path, pid: u32) -> io::Result<()> {
    let place = Anchored::at(path)?;
    let path = place.path();
    let temporary = temporary(path, pid);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(MODE)
        .open(&temporary)
        .and_then(|mut file| file.write_all(format!("{pid}\n").as_bytes()))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn temporary(path: &Path, pid: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{pid}.tmp"));
    PathBuf::from(name)
}

fn read_pid(path: &Path) -> Option<u32> {
    let mut text = String::new();
    File::open(path)
        .ok()?
        .take(MAX_BYTES)
        .read_to_string(&mut text)
        .ok()?;
    text.trim().parse().ok().filter(|pid| *pid > 0)
}

/// The living process that wrote the file.
fn holder(path: &Path) -> Option<u32> {
    let pid = read_pid(path)?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let written = fs::metadata(path).and_then(|meta| meta.modified()).ok()?;
    match started(&stat) {
        Some(started) if started > written + SLACK => None,
        _ => Some(pid),
    }
}

/// When a process started, by its `/proc/PID/stat`.
fn started(stat: &str) -> Option<SystemTime> {
    // The name in brackets may hold anything, brackets too.
    let (_, fields) = stat.rsplit_once(')')?;
    // Field 22; two fields are before the closing bracket.
    let ticks: u64 = fields.split_whitespace().nth(19)?.parse().ok()?;
    let boot = fs::read_to_string("/proc/stat").ok()?;
    let boot: u64 = boot
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(boot + ticks / TICKS_PER_SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_names_us_until_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.pid");
        let pidfile = Pidfile::claim(&path).unwrap();
        assert_eq!(read_pid(&path), Some(std::process::id()));
        // The manager replaces itself under the same pid.
        let again = Pidfile::claim(&path).unwrap();
        drop(pidfile);
        assert!(!path.exists());
        drop(again);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn another_living_process_keeps_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.pid");
        fs::write(&path, "1\n").unwrap();
        let error = Pidfile::claim(&path).unwrap_err();
        assert!(
            error.to_string().contains("names process 1, which runs"),
            "{error}"
        );
        assert_eq!(read_pid(&path), Some(1));
        // As after a reboot: process 1 is younger than the file.
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(UNIX_EPOCH + Duration::from_secs(1))
            .unwrap();
        drop(Pidfile::claim(&path).unwrap());
        for text in ["", "x", "0", "4194305", "99999999999999999999"] {
            fs::write(&path, text).unwrap();
            drop(Pidfile::claim(&path).unwrap());
        }
        assert!(Pidfile::claim(&dir.path().join("no/such")).is_err());
    }

    #[test]
    fn a_process_start_is_read_past_any_name() {
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        assert!(started(&stat).unwrap() <= SystemTime::now() + SLACK);
        let odd = stat.replacen('(', "(a) b (", 1);
        assert_eq!(started(&odd), started(&stat));
        assert_eq!(started("1 (x"), None);
    }
}
