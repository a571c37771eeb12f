//! Starting `papa` and `papa-manager` in the background.
//!
//! Owns where they are found (beside this program, then PATH) and what they said when they did not
//! come up: their output goes to a log file in the runtime directory, and what was added to it is
//! the reason shown.

use std::env;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use papa_config::Config;

use crate::cli::args::UpArgs;

/// How often to look whether a program has ended.
const POLL: Duration = Duration::from_millis(5);

/// How much of what a failed program said is shown, in bytes.
const MAX_SAID_BYTES: u64 = 8 * 1024;

/// Why a program could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It is nowhere.
    #[error("{name}: not found beside papactl ({}) nor in PATH", shown(beside))]
    NotFound {
        /// The program.
        name: &'static str,
        /// The directory of this program, if the system tells it.
        beside: Option<PathBuf>,
    },
    /// The system refused to start it.
    #[error("start {program}: {source}", program = program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Its log cannot be written.
    #[error("open log {log}: {source}", log = log.display())]
    Log {
        /// The log file.
        log: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It ended instead of serving.
    #[error("{name} did not come up ({status}):\n{said}")]
    Ended {
        /// The program.
        name: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote.
        said: String,
    },
    /// It neither serves nor ends.
    #[error("{name} did not come up within {seconds} s; see {log}", seconds = .timeout.as_secs_f64(), log = log.display())]
    Late {
        /// The program.
        name: &'static str,
        /// How long it was waited for.
        timeout: Duration,
        /// Where it writes.
        log: PathBuf,
    },
}

/// Finds the program `name`.
pub(super) fn find(name: &'static str) -> Result<PathBuf, ProgramError> {
    let beside = env::current_exe()
        .ok()
        .and_then(|program| program.parent().map(Path::to_owned));
    let path = env::var_os("PATH").unwrap_or_default();
    beside
        .clone()
        .into_iter()
        .chain(env::split_paths(&path))
        .map(|directory| directory.join(name))
        .find(|program| is_executable(program))
        .ok_or(ProgramError::NotFound { name, beside })
}

fn shown(beside: &Option<PathBuf>) -> String {
    match beside {
        Some(directory) => directory.display().to_string(),
        None => "whose directory is unknown: is /proc mounted?".to_owned(),
    }
}

fn is_executable(program: &Path) -> bool {
    program.is_absolute()
        && program
            .metadata()
            .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// A program started with its output going to a log file.
#[derive(Debug)]
pub(super) struct Background {
    name: &'static str,
    child: Child,
    log: PathBuf,
    /// Length of the log before this start.
    offset: u64,
}

impl Background {
    /// Starts the program `name` with `arguments`.
    pub(super) fn start<I: AsRef<OsStr>>(
        name: &'static str,
        arguments: impl IntoIterator<Item = I>,
        log: &Path,
    ) -> Result<Self, ProgramError> {
        let program = find(name)?;
        let log_failed = |source| ProgramError::Log {
            log: log.to_owned(),
            source,
        };
        let output = open_log(log).map_err(log_failed)?;
        let offset = output.metadata().map_err(log_failed)?.size();
        let errors = output.try_clone().map_err(log_failed)?;
        let mut command = Command::new(&program);
        for variable in papa_processes::mark::VARIABLES {
            // Typed by a worker, `up` starts something of its own: it is not to go when that worker
            // does.
            command.env_remove(variable);
        }
        let child = command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(|source| ProgramError::Start { program, source })?;
        Ok(Self {
            name,
            child,
            log: log.to_owned(),
            offset,
        })
    }

    /// An error if the program has ended, whatever its status.
    pub(super) fn check_alive(&mut self) -> Result<(), ProgramError> {
        match self.child.try_wait() {
            Ok(Some(status)) => Err(self.ended(status)),
            // The system cannot tell: the deadline decides.
            Ok(None) | Err(_) => Ok(()),
        }
    }

    /// Waits until the program ends with success, as one that puts itself in the background does.
    pub(super) fn wait(&mut self, timeout: Duration) -> Result<(), ProgramError> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(self.ended(status)),
                Ok(None) | Err(_) if Instant::now() >= deadline => return Err(self.late(timeout)),
                Ok(None) | Err(_) => thread::sleep(POLL),
            }
        }
    }

    /// The error for a program that is still not serving.
    pub(super) fn late(&self, timeout: Duration) -> ProgramError {
        ProgramError::Late {
            name: self.name,
            timeout,
            log: self.log.clone(),
        }
    }

    fn ended(&self, status: ExitStatus) -> ProgramError {
        let said = said_since(&self.log, self.offset).unwrap_or_default();
        let said = if said.trim().is_empty() {
            "it said nothing".to_owned()
        } else {
            said
        };
        ProgramError::Ended {
            name: self.name,
            status,
            said: said.trim_end().to_owned(),
        }
    }
}

/// Opens a log for appending; it may hold paths and names, so it is private.
fn open_log(log: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
        .open(log)
}

/// The end of what was added to `log` after its first `offset` bytes.
fn said_since(log: &Path, offset: u64) -> io::Result<String> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.size();
    let start = offset
        .max(length.saturating_sub(MAX_SAID_BYTES))
        .min(length);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(MAX_SAID_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The manager in the foreground, not started yet, and its path.
pub(super) fn foreground_manager(
    args: &UpArgs,
    config: &Config,
) -> Result<(PathBuf, Command), ProgramError> {
    let program = find("papa-manager")?;
    let mut command = Command::new(&program);
    command.arg("--foreground");
    if args.keep_workers {
        command.arg("--keep-workers");
    }
    command.arg(&config.path);
    Ok((program, command))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_ends_is_reported_with_its_own_words() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        std::fs::write(&log, "from an earlier start\n").unwrap();
        let mut program =
            Background::start("sh", ["-c", "echo no such luck >&2; exit 3"], &log).unwrap();
        let error = program
            .wait(Duration::from_secs(10))
            .unwrap_err()
            .to_string();
        assert_eq!(error, "sh did not come up (exit status: 3):\nno such luck");
        let mut silent = Background::start("sh", ["-c", "exit 1"], &log).unwrap();
        let error = silent
            .wait(Duration::from_secs(10))
            .unwrap_err()
            .to_string();
        assert!(error.ends_with("it said nothing"), "{error}");
    }

    #[test]
    fn a_program_that_returns_at_once_is_up() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut program = Background::start("sh", ["-c", ":"], &log).unwrap();
        program.wait(Duration::from_secs(10)).unwrap();
        assert_eq!(log.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = find("no-such-program-here").unwrap_err().to_string();
        assert!(
            error.starts_with("no-such-program-here: not found beside papactl"),
            "{error}"
        );
    }
}
