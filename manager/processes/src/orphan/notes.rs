//! The file in which a manager notes its workers by process number.
//!
//! A manager knows a worker whose environment carries no mark only by its process number. If keeper
//! and kernel are lost, and the manager is killed or replaced as well, this file tells the next
//! manager, or `papactl down`, which processes are the orphans.
//! Owns the file's name and format. Leaves to others: what is noted and when
//! (`supervisor::orphans`), and whether a noted process still is what it was (`Search`).
//! Invariants: the file is replaced as a whole, so no reader sees half of it. A process number
//! counts only together with its start, the boot and the process namespace it is from.
//! Source: `proc_sys_kernel(5)` for the boot, `pid_namespaces(7)` for the namespace.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::mark::Mark;
use crate::orphan::Known;
use papa_system::runtime_dir::RuntimeDir;

/// Largest file that is read, in bytes: 100,000 processes have room in it.
const MAX_BYTES: u64 = 16 * 1024 * 1024;
/// Only our user has to read it.
const MODE: u32 = 0o600;

/// Where the workers of one namespace are noted.
#[derive(Debug, Clone)]
pub struct Notes {
    directory: RuntimeDir,
    namespace: String,
}

/// What the file holds.
#[derive(Debug, Serialize, Deserialize)]
struct Noted {
    /// Boot and process namespace that the numbers are from.
    numbers_of: String,
    processes: Vec<NotedProcess>,
}

/// One process.
#[derive(Debug, Serialize, Deserialize)]
struct NotedProcess {
    pid: i32,
    /// In ticks since boot.
    started: u64,
    watcher: String,
    wid: u32,
    /// As in the mark.
    lineage: String,
}

impl Notes {
    /// The notes of `namespace` in this directory.
    #[must_use]
    pub fn new(directory: RuntimeDir, namespace: &str) -> Self {
        Self {
            directory,
            namespace: namespace.to_owned(),
        }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.worker_notes(&self.namespace)
    }

    /// What was noted last. Nothing if the file does not exist, or is from another boot or another
    /// process namespace; a file that cannot be used is passed over with a warning.
    #[must_use]
    pub fn read(&self) -> Vec<Known> {
        let path = self.path();
        let noted = match read(&path) {
            Ok(noted) => noted,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
            Err(error) => {
                tracing::warn!(
                    path = %path.display(),
                    %error,
                    "cannot read which workers an earlier manager knew; orphans without an environment mark stay unknown"
                );
                return Vec::new();
            }
        };
        if noted.numbers_of != numbers_of() {
            return Vec::new();
        }
        let known = noted.processes.into_iter().filter_map(|process| {
            Some(Known {
                pid: process.pid,
                started: process.started,
                mark: Mark {
                    namespace: self.namespace.clone(),
                    watcher: process.watcher,
                    wid: process.wid,
                    lineage: process.lineage.parse().ok()?,
                },
            })
        });
        known.collect()
    }

    /// Notes these and nothing else. Without any, the file is removed.
    ///
    /// # Errors
    /// The file or its directory cannot be written; what was noted before stays.
    pub fn write(&self, known: &[Known]) -> io::Result<()> {
        let path = self.path();
        if known.is_empty() {
            return match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        let processes = known.iter().map(|known| NotedProcess {
            pid: known.pid,
            started: known.started,
            watcher: known.mark.watcher.clone(),
            wid: known.mark.wid,
            lineage: known.mark.lineage.to_string(),
        });
        let noted = Noted {
            numbers_of: numbers_of(),
            processes: processes.collect(),
        };
        self.directory.ensure().map_err(io::Error::other)?;
        replace(&path, &serde_json::to_vec(&noted)?)
    }
}

fn read(path: &Path) -> io::Result<Noted> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// Written beside the file and moved into its place.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(MODE)
        .open(&temporary)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// What process numbers mean here: they are given anew at each boot and in each namespace.
fn numbers_of() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    format!("{} {}", boot.trim(), namespace.display())
}

#[cfg(test)]
mod tests {
    use nix::unistd::Uid;

    use super::*;
    use crate::mark::Lineage;

    fn known(pid: i32) -> Known {
        Known {
            pid,
            started: 7,
            mark: Mark {
                namespace: "circus".to_owned(),
                watcher: "web \"1\"".to_owned(),
                wid: 3,
                lineage: Lineage {
                    started_us: 5,
                    place: "/run/with @ and space.sock".to_owned(),
                },
            },
        }
    }

    fn notes(base: &Path) -> Notes {
        let directory = RuntimeDir::locate_for(Uid::effective(), Some(base.as_os_str()));
        Notes::new(directory, "circus")
    }

    #[test]
    fn workers_known_by_number_were_forgotten_with_their_manager() {
        let base = tempfile::tempdir().unwrap();
        let notes = notes(base.path());
        assert_eq!(notes.read(), Vec::new());
        notes.write(&[known(12), known(13)]).unwrap();
        assert_eq!(notes.read(), [known(12), known(13)]);
        notes.write(&[known(14)]).unwrap();
        assert_eq!(notes.read(), [known(14)]);
        // The runtime directory may be cleaned up under us.
        fs::remove_dir_all(notes.directory.path()).unwrap();
        notes.write(&[known(15)]).unwrap();
        assert_eq!(notes.read(), [known(15)]);
        notes.write(&[]).unwrap();
        notes.write(&[]).unwrap();
        assert_eq!(fs::read_dir(notes.directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn numbers_of_another_boot_or_a_broken_file_name_nobody() {
        let base = tempfile::tempdir().unwrap();
        let notes = notes(base.path());
        notes.write(&[known(12)]).unwrap();
        let text = fs::read_to_string(notes.path()).unwrap();
        let other = text.replace(&numbers_of(), "another boot");
        assert_ne!(other, text);
        let pieces = ["", "{", "[]", "\0", &text[..text.len() / 2], other.as_str()];
        for piece in pieces {
            fs::write(notes.path(), piece).unwrap();
            assert_eq!(notes.read(), Vec::new(), "{piece:?}");
        }
        notes.write(&[known(12)]).unwrap();
        assert_eq!(notes.read(), [known(12)]);
    }
}
