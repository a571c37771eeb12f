//! `papactl upgrade`: the manager starts anew, as the program that is installed now; the workers
//! stay.

use std::thread;
use std::time::{Duration, Instant};

use papa_system::printable::printable;
use serde_json::{Map, Value, json};

use crate::cli::Common;
use crate::commands::{
    CommandError, connect, namespace, print, print_json, progress, status_of_all,
};
use papa_control::client::{ManagerClient, ManagerError};
use papa_control::message::{Command, ManagerStatus, Request};
use papa_system::runtime_dir::RuntimeDir;

/// How often to look whether the new one answers.
const POLL: Duration = Duration::from_millis(20);

/// Runs the verb.
pub(super) fn run(common: &Common) -> Result<(), CommandError> {
    let deadline = Instant::now() + common.timeout();
    let namespace = namespace(common)?;
    let mut client = connect(common)?;
    let before = status_of_all(common, &mut client)?.manager;
    progress::say_when_interrupted(common);
    let request = Request::waiting(Command::Upgrade);
    match client.ask::<Map<String, Value>>(&request, common.timeout()) {
        // It may be gone before its answer is read.
        Ok(_) | Err(ManagerError::Gone) => {}
        Err(error) => return Err(error.into()),
    }
    let started = before.as_ref().map(|before| before.started);
    let after = if common.no_wait {
        before.clone()
    } else {
        Some(successor(common, &namespace, started, deadline)?)
    };
    if common.json {
        return print_json(&json!({"status": "ok", "before": before, "after": after}));
    }
    let version = |manager: &Option<ManagerStatus>| {
        let version = manager.as_ref().map(|manager| manager.version.as_str());
        printable(version.unwrap_or("?"))
    };
    let pid = after.as_ref().map_or(0, |after| after.pid);
    print(&format!(
        "manager: started anew, pid {pid}, version {} -> {}\n",
        version(&before),
        version(&after)
    ))
}

fn successor(
    common: &Common,
    namespace: &str,
    before: Option<f64>,
    deadline: Instant,
) -> Result<ManagerStatus, CommandError> {
    let directory = RuntimeDir::locate();
    loop {
        let status = ManagerClient::connect(&directory, namespace)
            .and_then(|mut client| status_of_all(common, &mut client));
        if let Ok(status) = status
            && let Some(manager) = status.manager
            && Some(manager.started) != before
            && manager.kernel_pid.is_some()
        {
            return Ok(manager);
        }
        if Instant::now() >= deadline {
            let log = directory.manager_log(namespace);
            return Err(CommandError::Failed(format!(
                "the new manager does not answer within {} s; its log is {}, and `papactl up FILE` starts one",
                common.timeout().as_secs_f64(),
                log.display()
            )));
        }
        thread::sleep(POLL);
    }
}
