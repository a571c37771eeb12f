//! What a configuration depends on besides its files: the environment and the working directory.

use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::environment::Environment;

/// What a configuration depends on besides its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings {
    /// The environment: `$(circus.env.X)`, `copy_env`.
    pub environment: Environment,
    /// Where relative paths in the file begin, absolute: the manager's working directory, as in
    /// Circus.
    pub directory: PathBuf,
}

impl Surroundings {
    /// Those of this process. The directory is the one whoever started us went into, through links:
    /// a release directory's link leads somewhere else tomorrow.
    ///
    /// # Errors
    /// The working directory is gone or cannot be entered, and `PWD` does not say where it was.
    pub fn current() -> io::Result<Self> {
        let logical = env::var_os("PWD").map(PathBuf::from);
        Ok(Self {
            environment: env::vars_os().collect(),
            directory: directory(logical, env::current_dir())?,
        })
    }

    /// Has a program start where we were started, by that name; wherever it is if that is gone.
    pub fn enter(&self, command: &mut Command) {
        if self.directory.is_dir() {
            command
                .current_dir(&self.directory)
                .env("PWD", &self.directory);
        }
    }

    /// The same directory with this process's environment, wherever its working directory is by
    /// now.
    #[must_use]
    pub fn again(&self) -> Self {
        Self {
            environment: env::vars_os().collect(),
            directory: self.directory.clone(),
        }
    }
}

/// The working directory by its logical name, if that leads there still. A working directory that
/// is gone has only that name.
fn directory(logical: Option<PathBuf>, physical: io::Result<PathBuf>) -> io::Result<PathBuf> {
    let logical = logical.filter(|path| path.is_absolute());
    let physical = match (physical, logical.as_ref()) {
        (Ok(physical), _) => physical,
        (Err(_), Some(logical)) => return Ok(logical.clone()),
        (Err(error), None) => return Err(error),
    };
    let place = |path: &Path| {
        fs::metadata(path)
            .map(|found| (found.dev(), found.ino()))
            .ok()
    };
    let here = place(&physical);
    Ok(logical
        .filter(|logical| here.is_some() && place(logical) == here)
        .unwrap_or(physical))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_known_by_the_name_it_was_entered_by() {
        let dir = tempfile::tempdir().unwrap();
        let base = fs::canonicalize(dir.path()).unwrap();
        let (real, link) = (base.join("r1"), base.join("current"));
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let gone = || Err(io::Error::from(io::ErrorKind::NotFound));
        assert_eq!(
            directory(Some(link.clone()), Ok(real.clone())).unwrap(),
            link
        );
        // A name that leads elsewhere is somebody else's.
        assert_eq!(
            directory(Some(base.clone()), Ok(real.clone())).unwrap(),
            real
        );
        assert_eq!(
            directory(Some("current".into()), Ok(real.clone())).unwrap(),
            real
        );
        assert_eq!(directory(None, Ok(real.clone())).unwrap(), real);
        assert_eq!(directory(Some(link.clone()), gone()).unwrap(), link);
        assert!(directory(None, gone()).is_err());
    }
}
