//! `papactl quit`: ends the manager; the workers stay in the kernel.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::cli::Common;
use crate::commands::{CommandError, namespace, print, print_json, status_of_all};
use crate::control::client::{ManagerClient, ManagerError};
use crate::control::message::{Command, Request, StatusReply};
use crate::runtime_dir::RuntimeDir;

/// How often to look whether the manager is gone.
const POLL: Duration = Duration::from_millis(10);

/// Runs the verb.
pub(super) fn run(common: &Common) -> Result<(), CommandError> {
    let status = end_manager(common, Command::Quit)?;
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

/// Sends `command`, which ends the manager, and waits until it is gone. Gives its last status.
pub(super) fn end_manager(common: &Common, command: Command) -> Result<StatusReply, CommandError> {
    let directory = RuntimeDir::locate();
    let namespace = namespace(common)?;
    let deadline = Instant::now() + common.timeout();
    let mut client = ManagerClient::connect(&directory, &namespace)?;
    let status = status_of_all(common, &mut client)?;
    match client.ask::<Map<String, Value>>(&Request::waiting(command), common.timeout()) {
        // It may be gone before its answer is read.
        Ok(_) | Err(ManagerError::Gone) => {}
        Err(error) => return Err(error.into()),
    }
    loop {
        match ManagerClient::connect(&directory, &namespace) {
            Err(ManagerError::NotRunning { .. }) => return Ok(status),
            _ if Instant::now() >= deadline => {
                return Err(ManagerError::Timeout(common.timeout()).into());
            }
            _ => thread::sleep(POLL),
        }
    }
}
