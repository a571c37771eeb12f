//! Where a test's daemons live, and how everything in there is ended.
//!
//! A process belongs to a test by ancestry, or by the mark in its environment: what a killed daemon
//! leaves behind has another parent by then.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Json, binary, private_command, procfs, wait_for};

/// Set in the environment of whatever a test starts, so that its strays can be told from another
/// test's.
pub(crate) const MARK: &str = "PAPA_TEST_DIRECTORY";

/// Rounds of looking for leftovers before the clean-up gives up; each round kills what the last one
/// missed.
const CLEANUP_ROUNDS: usize = 50;

/// A scratch directory that is the runtime directory of daemons started by hand; they end with it.
#[derive(Debug)]
pub struct Scratch {
    directory: TempDir,
}

impl Scratch {
    /// A fresh one.
    ///
    /// # Panics
    /// When the temporary folder takes no directory.
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("papa-test-").tempdir();
        Self {
            directory: directory.expect("a temporary directory can be made"),
        }
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A path below it, as text.
    ///
    /// # Panics
    /// When the temporary directory's name is not UTF-8.
    pub fn path(&self, name: &str) -> String {
        let path = self.directory.path().join(name);
        path.to_str().expect("the path is UTF-8").to_owned()
    }

    /// The kernel's command, its runtime directory here.
    pub fn papa(&self) -> Command {
        private_command(&binary("papa"), self.directory())
    }

    /// The unix socket of a kernel here on this port.
    pub fn socket_path(&self, port: u16) -> PathBuf {
        self.directory().join("papa").join(format!("{port}.sock"))
    }

    /// `status` of the kernel here on this port, waiting until it serves.
    ///
    /// # Panics
    /// When it does not in time.
    #[track_caller]
    pub fn status(&self, port: u16) -> Value {
        wait_for("the kernel answers", || {
            let mut session = Json::unix(&self.socket_path(port)).ok()?;
            session.call("status", json!({})).ok()?.ok()
        })
    }

    /// What runs here.
    pub fn processes(&self) -> HashSet<i32> {
        below(self.directory.path(), &HashSet::new())
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        end_everything(self.directory.path(), &HashSet::new());
    }
}

/// A process that will not be taken for a later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pid: i32,
    started_ticks: u64,
}

impl Identity {
    /// Who has this pid now.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let stat = procfs::stat(pid)?;
        Some(Self {
            pid,
            started_ticks: stat.started_ticks,
        })
    }

    fn is_current(self) -> bool {
        Self::of(self.pid) == Some(self)
    }
}

/// What is alive of a test: by ancestry from these roots, or by the mark in its environment.
pub(crate) fn below(directory: &Path, roots: &HashSet<Identity>) -> HashSet<i32> {
    let mark = format!("{MARK}={}", directory.display());
    let mut found: HashSet<i32> = roots
        .iter()
        .filter(|root| root.is_current())
        .map(|root| root.pid)
        .collect();
    found.extend(
        procfs::pids()
            .into_iter()
            .filter(|pid| procfs::environment(*pid).contains(&mark)),
    );
    found.retain(|pid| procfs::alive(*pid));
    for root in found.clone() {
        found.extend(procfs::descendants(root));
    }
    found.retain(|pid| procfs::alive(*pid));
    found.remove(&i32::try_from(std::process::id()).unwrap_or_default());
    found
}

/// Keeper and kernel restart each other, so everything is stopped before anything is killed.
pub(crate) fn end_everything(directory: &Path, roots: &HashSet<Identity>) {
    for _ in 0..CLEANUP_ROUNDS {
        let found = below(directory, roots);
        if found.is_empty() {
            break;
        }
        for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
            for pid in &found {
                procfs::signal(*pid, signal);
            }
        }
        std::thread::yield_now();
    }
}
