//! The manager starts anew, as the program and with the file that are there now.
//!
//! Owns the questions that come before it: can that program be started, and will it take the file? Once we are replaced nobody is left
//! to go back to. Leaves to others: the replacement itself (`main`), which comes after the loop.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::config::{Surroundings, load};
use crate::control::message::{Errno, Reply, Request, RequestError};
use crate::supervisor::tickets::{done, refuse};
use crate::supervisor::{Event, Outcome, Phase, Supervisor};

/// How long the program may take to say its version.
const VERSION_TIME: Duration = Duration::from_secs(5);
/// How often it is looked whether it has.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Who asked; nobody if it was a signal.
pub(super) type Asker = Option<(Request, oneshot::Sender<Reply>)>;

impl Supervisor {
    /// Starts anew if the next manager would come up.
    pub(super) fn ask_for_upgrade(&mut self, asker: Asker) {
        let path = self.config.path.clone();
        let namespace = self.config.namespace.clone();
        let program = self.program.clone();
        let events = self.events.clone();
        tokio::task::spawn_blocking(move || {
            let fits = fits(program.as_deref(), &path, &namespace);
            // Nobody is there any more if the manager has ended meanwhile.
            let _ = events.blocking_send(Event::UpgradeExamined(fits, Box::new(asker)));
        });
    }

    /// It is known whether the next manager would come up. If so, we end so that it can take over in the same process: everything
    /// runs on, whatever `use_papa` says.
    pub(super) fn upgrade_examined(&mut self, fits: Result<(), String>, asker: Asker) {
        let result = match self.phase {
            Phase::Attaching | Phase::Managing => fits.map_err(|reason| {
                RequestError::new(Errno::Command, format!("nothing was changed: {reason}"))
            }),
            Phase::Quitting | Phase::ShuttingDown { .. } | Phase::Done => {
                Err(RequestError::new(Errno::Command, "the manager is ending"))
            }
        };
        match (&result, asker) {
            (Ok(()), Some((request, reply))) => done(request, reply),
            (Err(error), Some((request, reply))) => refuse(request, reply, error),
            (Err(error), None) => tracing::error!(%error, "not started anew"),
            (Ok(()), None) => {}
        }
        if result.is_ok() {
            tracing::info!("starting anew; workers stay in the kernel");
            self.outcome = Outcome::Again;
            self.phase = Phase::Done;
        }
    }
}

/// Whether a manager would come up with this program and this file, in the same namespace.
fn fits(program: Option<&Path>, file: &Path, namespace: &str) -> Result<(), String> {
    let around =
        Surroundings::current().map_err(|error| format!("where we are is unknown: {error}"))?;
    let config = load(file, &around).map_err(|errors| errors.to_string())?;
    if config.namespace != namespace {
        return Err(format!(
            "{} says namespace {:?}, and the workers are in {namespace:?}; `papactl down` and `papactl up` change it",
            file.display(),
            config.namespace
        ));
    }
    match program {
        Some(program) => starts(program),
        None => Ok(()),
    }
}

/// Whether the program can be started at all: it may be half copied, or made for another machine.
fn starts(program: &Path) -> Result<(), String> {
    let failed = |what: String| format!("{} --version: {what}", program.display());
    let mut child = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let deadline = Instant::now() + VERSION_TIME;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(failed(status.to_string())),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(LOOK_AGAIN),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                let limit = VERSION_TIME.as_secs();
                return Err(failed(format!("no answer within {limit} s")));
            }
            Err(error) => return Err(failed(error.to_string())),
        }
    }
}

/// Where our program is, as long as nobody has replaced it: then the system knows it as deleted.
#[must_use]
pub fn own_program() -> Option<PathBuf> {
    std::env::current_exe().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_cannot_be_started_and_a_file_with_mistakes_are_seen_before() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("c.ini");
        std::fs::write(&file, "[watcher:a]\ncmd = sleep 1\n").unwrap();
        let fits = |program: &str, namespace| fits(Some(Path::new(program)), &file, namespace);
        assert_eq!(fits("true", "circus"), Ok(()));
        for (program, namespace, expected) in [
            ("false", "circus", "exit status: 1"),
            ("/no/such/program", "circus", "No such file"),
            ("true", "blue", "in \"blue\""),
        ] {
            let error = fits(program, namespace).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        std::fs::write(&file, "[watcher:a]\nnumprocesses = many\n").unwrap();
        let error = fits("true", "circus").unwrap_err();
        assert!(error.contains("\"many\""), "{error}");
    }
}
