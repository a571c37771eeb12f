//! The manager starts anew, as the program and with the file that are there now.
//!
//! Owns the questions that come before it: can that program be started, and will it take the file?
//! Once we are replaced nobody is left to go back to. Leaves to others: the replacement itself
//! (`main`), which comes after the loop.

use std::ffi::OsString;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::config::{Surroundings, load};
use crate::control::message::{Errno, Reply, Request, RequestError};
use crate::supervisor::tickets::{done, refuse};
use crate::supervisor::{Event, Outcome, Supervisor};

/// How long the program may take to read its configuration, and the older ones to say their
/// version.
const CHECK_TIME: Duration = Duration::from_secs(20);
/// How often it is looked whether it has.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How much of what it says is listened to, in bytes.
const MAX_SAID_BYTES: u64 = 16 * 1024;
/// What those are told who wait for something when the manager is replaced.
const GOES_ON: &str = "the manager is being replaced; what was asked for goes on under the next one, see `papactl status`";
/// Has a manager read its configuration and start nothing.
const CHECK: &str = "--check";
/// What one that does not know that answers, as `clap` has it.
const UNKNOWN: &str = "unexpected argument '--check'";

/// What a manager says when it was asked to check its configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// Its own version.
    pub version: String,
    /// The namespace it would claim.
    pub namespace: String,
}

/// Who asked; nobody if it was a signal.
pub(super) type Asker = Option<(Request, oneshot::Sender<Reply>)>;

impl Supervisor {
    /// Starts anew if the next manager would come up.
    pub(super) fn ask_for_upgrade(&mut self, asker: Asker) {
        let path = self.config.path.clone();
        let namespace = self.config.namespace.clone();
        let program = self.startup.program.clone();
        let arguments = self.startup.arguments.clone();
        let events = self.events.clone();
        let around = self.config.base.around.again();
        tokio::task::spawn_blocking(move || {
            let fits = match program {
                Some(program) => fits(&program, &arguments, &path, &namespace, &around),
                None => readable(&path, &namespace, &around),
            };
            // Nobody is there any more if the manager has ended meanwhile.
            let _ = events.blocking_send(Event::UpgradeExamined(fits, Box::new(asker)));
        });
    }

    /// It is known whether the next manager would come up. If so, we end so that it can take over
    /// in the same process: everything runs on, whatever `use_papa` says.
    pub(super) fn upgrade_examined(&mut self, fits: Result<(), String>, asker: Asker) {
        let result = self.ending.may_act().and_then(|()| {
            fits.map_err(|reason| {
                RequestError::new(Errno::Command, format!("nothing was changed: {reason}"))
            })
        });
        match (&result, asker) {
            (Ok(()), Some((request, reply))) => done(request, reply),
            (Err(error), Some((request, reply))) => refuse(request, reply, error),
            (Err(error), None) => tracing::error!(%error, "upgrade refused"),
            (Ok(()), None) => {}
        }
        if result.is_ok() {
            tracing::info!("executing the new program; workers stay in the kernel");
            // Whoever waits loses the connection with us; the work itself goes on.
            self.give_up_change(GOES_ON);
            for ticket in self.open_requests.take_tickets() {
                let error = RequestError::new(Errno::Asynchronous, GOES_ON);
                refuse(ticket.request, ticket.reply, &error);
            }
            self.ending.end(Outcome::Again);
        }
    }
}

/// Whether this program would come up with the file, in the same namespace. It says so itself: what
/// we make of the file is what another version would make of it only perhaps.
fn fits(
    program: &Path,
    arguments: &[OsString],
    file: &Path,
    namespace: &str,
    around: &Surroundings,
) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args(arguments).arg(CHECK);
    around.enter(&mut command);
    let said =
        say(&mut command).map_err(|reason| format!("{} {CHECK}: {reason}", program.display()))?;
    if said.success {
        let checked: Checked = serde_json::from_str(said.output.trim()).map_err(|error| {
            let program = program.display();
            format!("{program} {CHECK}: {error}; is it a papa-manager?")
        })?;
        return same_namespace(file, &checked.namespace, namespace);
    }
    if !said.errors.contains(UNKNOWN) {
        let (program, status) = (program.display(), said.status);
        let errors = said.errors.trim();
        return Err(format!("{program} {CHECK}: {status}\n{errors}"));
    }
    // One that is older than the check. What is known is that it starts, and that we could read the
    // file.
    let mut command = Command::new(program);
    let said = say(command.arg("--version"))
        .map_err(|reason| format!("{} --version: {reason}", program.display()))?;
    if !said.success {
        return Err(format!("{} --version: {}", program.display(), said.status));
    }
    tracing::info!(program = %program.display(), version = said.output.trim(), "does not know {CHECK}; its version is all that was asked for");
    readable(file, namespace, around)
}

/// Whether we would take the file again.
fn readable(file: &Path, namespace: &str, around: &Surroundings) -> Result<(), String> {
    let config = load(file, around).map_err(|errors| errors.to_string())?;
    same_namespace(file, &config.namespace, namespace)
}

fn same_namespace(file: &Path, next: &str, now: &str) -> Result<(), String> {
    if next == now {
        return Ok(());
    }
    Err(format!(
        "{} says namespace {next:?}, and the workers are in {now:?}; `papactl down` and `papactl up` change it",
        file.display()
    ))
}

/// What a program said and how it ended.
struct Said {
    success: bool,
    status: String,
    output: String,
    errors: String,
}

/// Runs a program that ends by itself, and no longer than it may.
fn say(command: &mut Command) -> Result<Said, String> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let (output, errors) = (listen(child.stdout.take()), listen(child.stderr.take()));
    let deadline = Instant::now() + CHECK_TIME;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(LOOK_AGAIN),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                let limit = CHECK_TIME.as_secs();
                return Err(format!("no answer within {limit} s"));
            }
            Err(error) => return Err(error.to_string()),
        }
    };
    // What it may have started can hold its pipes open: that is waited for no longer either.
    let rest = || deadline.saturating_duration_since(Instant::now());
    Ok(Said {
        success: status.success(),
        status: status.to_string(),
        output: output.recv_timeout(rest()).unwrap_or_default(),
        errors: errors.recv_timeout(rest()).unwrap_or_default(),
    })
}

/// Reads on a thread of its own, which ends with the pipe.
fn listen(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        let Some(mut pipe) = pipe else {
            return;
        };
        let mut bytes = Vec::new();
        let _ = pipe.by_ref().take(MAX_SAID_BYTES).read_to_end(&mut bytes);
        // The rest is read and dropped: a full pipe would keep the program from ending.
        let _ = io::copy(&mut pipe, &mut io::sink());
        let _ = send.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receive
}

/// Where our program is, as long as nobody has replaced it: then the system knows it as deleted.
#[must_use]
pub fn own_program() -> Option<PathBuf> {
    std::env::current_exe().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_program_that_would_not_come_up_is_seen_before() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("c.ini");
        std::fs::write(&file, "[watcher:a]\ncmd = sleep 1\n").unwrap();
        let program = directory.path().join("manager");
        let fits = |script: &str| {
            // Written under another name: nothing that still has it open can keep it from being
            // started.
            let fresh = directory.path().join("manager.new");
            std::fs::write(&fresh, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&fresh, PermissionsExt::from_mode(0o755)).unwrap();
            std::fs::rename(&fresh, &program).unwrap();
            fits(
                &program,
                &["c.ini".into()],
                &file,
                "circus",
                &Surroundings::current().unwrap(),
            )
        };
        let answer = |namespace: &str| {
            format!(
                r#"[ "$*" = "c.ini --check" ] && echo '{{"version":"9","namespace":"{namespace}","of":"the future"}}'"#
            )
        };
        assert_eq!(fits(&answer("circus")), Ok(()));
        let old =
            format!("case $* in --version) echo 1;; *) echo \"{UNKNOWN}\" >&2; exit 2;; esac");
        assert_eq!(fits(&old), Ok(()));
        for (script, expected) in [
            (answer("blue"), "in \"circus\""),
            (
                "echo 'c.ini:2: no such key' >&2; exit 2".into(),
                "no such key",
            ),
            ("exit 3".into(), "exit status: 3"),
            ("echo yes".into(), "is it a papa-manager?"),
            (
                format!("echo \"{UNKNOWN}\" >&2; exit 2"),
                "--version: exit status: 2",
            ),
        ] {
            let error = fits(&script).unwrap_err();
            assert!(error.contains(expected), "{script}: {error}");
        }
        std::fs::write(&file, "[watcher:a]\nnumprocesses = many\n").unwrap();
        let error = fits(&old).unwrap_err();
        assert!(error.contains("\"many\""), "{error}");
    }
}
