//! `papactl quit`: ends the manager; the workers stay in the kernel.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cli::Common;
use crate::commands::{
    CommandError, connect, namespace, print, print_json, progress, status_of_all,
};
use papa_control::client::{ManagerClient, ManagerError};
use papa_control::message::{Command, Request, Selection, ShutdownReply, StatusReply};
use papa_processes::departing::Departing;
use papa_system::runtime_dir::RuntimeDir;

/// How often to look whether the manager is gone.
const POLL: Duration = Duration::from_millis(10);

/// Runs the verb.
pub(super) fn run(common: &Common) -> Result<(), CommandError> {
    let (status, _) = end_manager(common, Command::Quit)?;
    let workers: usize = status
        .watchers
        .iter()
        .map(|watcher| watcher.workers.len())
        .sum();
    if common.json {
        return print_json(&json!({"status": "ok", "workers": workers}));
    }
    print(&format!(
        "manager: ended; {workers} {} on\n",
        if workers == 1 {
            "worker runs"
        } else {
            "workers run"
        }
    ))
}

/// Sends `command`, which ends the manager, and waits until it is gone. Gives its last status and
/// its answer.
pub(super) fn end_manager(
    common: &Common,
    command: Command,
) -> Result<(StatusReply, ShutdownReply), CommandError> {
    let directory = RuntimeDir::locate();
    let namespace = namespace(common)?;
    let deadline = Instant::now() + common.timeout();
    let mut client = connect(common)?;
    let status = status_of_all(common, &mut client)?;
    let departing = Departing::of(status.manager.as_ref().map(|manager| manager.pid));
    let quitting = command == Command::Quit;
    progress::say_when_interrupted(common);
    let watching = progress::Watching::start(common, &namespace, &Selection::all());
    let outcome = client.ask::<ShutdownReply>(&Request::waiting(command), common.timeout());
    drop(watching);
    let said = match outcome {
        Ok(said) => said,
        // It may be gone before its answer is read: workers stay in any case.
        Err(ManagerError::Gone | ManagerError::NotRunning { .. }) if quitting => {
            ShutdownReply::default()
        }
        // Not so here: what it had not stopped yet runs on.
        Err(ManagerError::Gone) => {
            return Err(CommandError::Failed(
                "the manager ended before everything was stopped; `papactl up FILE` takes over what runs, then `papactl down` stops it".to_owned(),
            ));
        }
        Err(ManagerError::Timeout(timeout)) => {
            let missing =
                progress::missing(&status_of_all(common, &mut client)?, &Selection::all());
            return Err(CommandError::Failed(format!(
                "not done within {} s: {missing}; {}",
                timeout.as_secs_f64(),
                progress::GOES_ON
            )));
        }
        Err(error) => return Err(error.into()),
    };
    loop {
        match ManagerClient::connect(&directory, &namespace) {
            Err(ManagerError::NotRunning { .. }) if departing.wait(deadline).is_none() => {
                return Ok((status, said));
            }
            _ if Instant::now() >= deadline => {
                return Err(ManagerError::Timeout(common.timeout()).into());
            }
            _ => thread::sleep(POLL),
        }
    }
}
