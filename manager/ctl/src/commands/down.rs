//! `papactl down`: stops workers, gives up sockets, ends the manager, and the kernel when nothing
//! is left in it.

use std::path::Path;
use std::time::Instant;

use papa_client::Address;
use serde_json::json;

use crate::cli::Common;
use crate::commands::kernel::{self, KernelError};
use crate::commands::leftovers::{self, Ended, Task};
use crate::commands::{
    CommandError, connect, loaded, namespace, print, print_json, quit, status_of_all,
};
use papa_control::client::ManagerError;
use papa_control::message::{Command, ManagerStatus};
use papa_processes::tree;
use papa_system::runtime_dir::RuntimeDir;

/// Why the kernel stays although no manager runs, and what to do.
const STILL_HELD: &str = "something is left in the kernel that is not of this manager's workers: `papactl kernel status` tells what it holds";

/// Runs the verb.
pub(super) fn run(common: &Common) -> Result<(), CommandError> {
    let namespace = namespace(common)?;
    let deadline = Instant::now() + common.timeout();
    let mut ended = Ended::default();
    let (manager, places) = match quit::end_manager(common, Command::Shutdown) {
        Ok((status, said)) => {
            ended.lost = said.lost;
            ("ended", places_of(status.manager.as_ref())?)
        }
        Err(CommandError::Manager(ManagerError::NotRunning { .. })) => {
            let config = common.config.as_deref().and_then(loaded);
            let endpoint = config.as_ref().and_then(|config| config.kernel.as_ref());
            let places = kernel::candidates(&RuntimeDir::locate(), endpoint)?;
            ended = leftovers::end(&Task {
                addresses: &places,
                namespace: &namespace,
                config: config.as_ref(),
                known: &[],
                deadline,
            })?;
            ("not running", places)
        }
        Err(error @ CommandError::Manager(ManagerError::Refused(_))) => {
            // Without a kernel the manager can stop nothing: its workers are orphans, and it is in
            // the way of their end.
            let Some(manager) = manager_without_kernel(common) else {
                return Err(error);
            };
            let (known, _) = quit::end_manager(common, Command::Quit)?;
            let places = places_of(Some(&manager))?;
            let config = loaded(Path::new(&manager.config));
            ended = leftovers::end(&Task {
                addresses: &places,
                namespace: &namespace,
                config: config.as_ref(),
                known: &known.watchers,
                deadline,
            })?;
            ("ended", places)
        }
        Err(error) => return Err(error),
    };
    let strays = kernel::end_strays(&places)?;
    if !strays.is_empty() {
        let strays = tree::describe(&strays);
        ended
            .said
            .push(format!("ended what workers had left running: {strays}"));
    }
    let (kernel, left) = match kernel::end_if_idle(&places) {
        Ok(true) => ("ended".to_owned(), false),
        Ok(false) => ("not running".to_owned(), false),
        Err(error) => (format!("stays: {error}"), true),
    };
    let lost: Vec<String> = ended.lost.iter().map(ToString::to_string).collect();
    let failure = if let Some(left_running) = leftovers::tell_left(&ended.left) {
        Some(left_running)
    } else if !lost.is_empty() {
        Some(lost.join("; "))
    } else {
        (left && manager != "ended").then(|| STILL_HELD.to_owned())
    };
    if common.json {
        let status = if failure.is_some() { "error" } else { "ok" };
        print_json(
            &json!({"status": status, "reason": failure, "manager": manager, "kernel": kernel, "ended": ended.said, "left": ended.left, "lost": ended.lost}),
        )?;
        return match failure {
            Some(_) => Err(CommandError::Reported),
            None => Ok(()),
        };
    }
    let mut text: String = ended.said.iter().map(|said| format!("{said}\n")).collect();
    text.push_str(&format!("manager: {manager}\nkernel:  {kernel}\n"));
    print(&text)?;
    failure.map_or(Ok(()), |failure| Err(CommandError::Failed(failure)))
}

/// The manager, if there is one and it has no kernel.
fn manager_without_kernel(common: &Common) -> Option<ManagerStatus> {
    let mut client = connect(common).ok()?;
    let manager = status_of_all(common, &mut client).ok()?.manager?;
    manager.kernel_pid.is_none().then_some(manager)
}

/// Where the manager's kernel may answer: the manager names one place of those its file allows.
fn places_of(manager: Option<&ManagerStatus>) -> Result<Vec<Address>, KernelError> {
    let Some(manager) = manager else {
        return kernel::candidates(&RuntimeDir::locate(), None);
    };
    match loaded(Path::new(&manager.config)) {
        Some(config) => kernel::candidates(&RuntimeDir::locate(), config.kernel.as_ref()),
        // Changed beyond reading since: what the manager says must do.
        None => Ok(vec![kernel::parse(&manager.kernel)?]),
    }
}
