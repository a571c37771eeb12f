//! Places in the programs where a test has a process stand still; see `papa_test_hooks::failpoint`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A directory of armed places.
#[derive(Debug, Clone)]
pub struct Failpoints {
    directory: PathBuf,
}

/// Who stands still.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// `keeper`, `kernel` or `manager`.
    pub role: String,
    /// Its number. At a place between vfork and exec it is the parent's.
    pub pid: i32,
}

impl Failpoints {
    /// Tells a process where to look.
    pub const VARIABLE: &str = "PAPA_FAILPOINTS";

    /// The places armed in this directory, which is made if it is not there.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn at(directory: &Path) -> Self {
        fs::create_dir_all(directory).expect("the directory of failpoints can be made");
        Self {
            directory: directory.to_owned(),
        }
    }

    /// Has what this starts look here.
    pub fn put_into<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env(Self::VARIABLE, &self.directory)
    }

    /// Has the process of this role stop where it reaches the place for the n-th time from now.
    ///
    /// # Panics
    /// When that cannot be written.
    pub fn arm(&self, place: &str, time: u64, role: &str) {
        let draft = self.directory.join(".draft");
        fs::write(&draft, format!("{time} {role}")).expect("a failpoint can be written");
        fs::rename(draft, self.directory.join(place)).expect("a failpoint can be armed");
    }

    /// Who stands still at the place, or did.
    #[must_use]
    pub fn hit(&self, place: &str) -> Option<Hit> {
        let text = fs::read_to_string(self.directory.join(format!("{place}.hit"))).ok()?;
        let (role, pid) = text.trim_end().split_once(' ')?;
        Some(Hit {
            role: role.to_owned(),
            pid: pid.parse().ok()?,
        })
    }

    /// Nothing is armed any more, and no hit is known.
    pub fn clear(&self) {
        for entry in fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten()
        {
            // What a process takes at this moment is gone by itself.
            let _ = fs::remove_file(entry.path());
        }
    }
}
