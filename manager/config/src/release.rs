//! The release directory a watcher's workers start in, where a link leads to it.
//!
//! Owns which place a watcher was read with, whether that is still there, and what takes its place
//! when somebody has deleted it. Looks at the file system and changes nothing.
//! Invariant: a release whose reload failed is never chosen without a person having asked for it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::resolve::{resolved, resolved_program};
use crate::types::WatcherConfig;

/// What a file says of the place workers start in, and where that was when it was followed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Release {
    /// The working directory as the file has it.
    pub written_dir: PathBuf,
    /// Where its links led.
    pub dir: PathBuf,
    /// The program as the file has it, if a link leads to its directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub written_program: Option<String>,
    /// Where that was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
}

/// Where a worker is to be started.
#[derive(Debug, Clone, PartialEq)]
pub enum Place {
    /// In the release the watcher was read with.
    Own,
    /// That was deleted; in the one the links lead to now.
    Moved(Box<WatcherConfig>),
    /// That was deleted, and nothing may take its place. For people.
    Nowhere(String),
}

impl WatcherConfig {
    /// The release its workers start in; none if no link leads there, or its path is not UTF-8 and
    /// so cannot be kept.
    #[must_use]
    pub fn release(&self) -> Option<Release> {
        if self.resolved_dir == self.working_dir && self.resolved_program.is_none() {
            return None;
        }
        self.resolved_dir.to_str()?;
        self.working_dir.to_str()?;
        let program = self.resolved_program.clone();
        Some(Release {
            written_dir: self.working_dir.clone(),
            dir: self.resolved_dir.clone(),
            written_program: program.as_ref().and(self.argv_template.first().cloned()),
            program,
        })
    }

    /// Has workers start where `release` was, as far as the file names the same places still.
    pub fn pin(&mut self, release: &Release) {
        if self.working_dir == release.written_dir {
            self.resolved_dir.clone_from(&release.dir);
        }
        if release.program.is_some()
            && self.argv_template.first() == release.written_program.as_ref()
        {
            self.resolved_program.clone_from(&release.program);
        }
    }

    /// The same with its links followed anew.
    #[must_use]
    pub fn followed(&self) -> Self {
        let program = self.argv_template.first();
        Self {
            resolved_dir: resolved(&self.working_dir),
            resolved_program: program.and_then(|program| resolved_program(program)),
            ..self.clone()
        }
    }

    /// What is missing of the release its workers start in: the directory, or else the program.
    #[must_use]
    pub fn deleted_release(&self) -> Option<PathBuf> {
        self.release()?;
        if self.resolved_dir != self.working_dir && is_gone(&self.resolved_dir) {
            return Some(self.resolved_dir.clone());
        }
        let program = Path::new(self.resolved_program.as_ref()?);
        // The whole release rather than a directory in it, where that is known.
        let directory = program.parent().filter(|parent| is_gone(parent));
        is_gone(program).then(|| directory.unwrap_or(program).to_owned())
    }

    /// Where its next worker is to be started; `failed` is the release whose reload failed last.
    #[must_use]
    pub fn place(&self, failed: Option<&Release>) -> Place {
        let Some(deleted) = self.deleted_release() else {
            return Place::Own;
        };
        let followed = self.followed();
        let name = &self.name;
        let deleted = deleted.display();
        if is_gone(&followed.resolved_dir) || followed.deleted_release().is_some() {
            let link = self.working_dir.display();
            return Place::Nowhere(format!(
                "release {deleted} was deleted, and {link} leads to nothing that could be started instead; \
                 put it back, or have the link lead to another release"
            ));
        }
        match failed {
            Some(failed) if followed.release().as_ref() == Some(failed) => Place::Nowhere(format!(
                "release {deleted} was deleted, and the reload to {} was rolled back; put the deleted one back, \
                     or have the link lead to a release that works: `papactl reload {name}` starts where it leads",
                failed.describe()
            )),
            _ => Place::Moved(Box::new(followed)),
        }
    }
}

impl Release {
    /// For people: the directory, or the program where only that is reached through a link.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.program {
            Some(program) if self.dir == self.written_dir => program.clone(),
            _ => self.dir.display().to_string(),
        }
    }
}

/// Certainly: one that cannot be looked at may be there for the kernel.
fn is_gone(path: &Path) -> bool {
    fs::metadata(path).is_err_and(|error| {
        matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
        )
    })
}
