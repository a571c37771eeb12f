//! `papactl down`: stops workers, gives up sockets, ends the manager, and the kernel when nothing is left in it.

use std::path::Path;

use papa_protocol::client::Address;
use serde_json::json;

use crate::cli::Common;
use crate::commands::kernel::{self, KernelError};
use crate::commands::{CommandError, print, print_json, quit};
use crate::config::{self, Config, Surroundings};
use crate::control::client::ManagerError;
use crate::control::message::{Command, ManagerStatus};
use crate::runtime_dir::RuntimeDir;
use crate::tree;

/// Why the kernel stays although no manager runs, and what to do.
const STILL_HELD: &str = "workers of an earlier manager may run on in the kernel; `papactl up FILE` takes them over, then `papactl down` stops them";

/// Runs the verb.
pub(super) fn run(common: &Common) -> Result<(), CommandError> {
    let (manager, places) = match quit::end_manager(common, Command::Shutdown) {
        Ok(status) => ("ended", places_of(status.manager.as_ref())?),
        Err(CommandError::Manager(ManagerError::NotRunning { .. })) => {
            ("not running", places_without_manager(common)?)
        }
        Err(error) => return Err(error),
    };
    let strays = kernel::end_strays(&places)?;
    let (kernel, left) = match kernel::exit_if_idle(&places) {
        Ok(true) => ("ended".to_owned(), false),
        Ok(false) => ("not running".to_owned(), false),
        Err(error) => (format!("stays: {error}"), true),
    };
    let failed = left && manager != "ended";
    if common.json {
        let status = if failed { "error" } else { "ok" };
        print_json(
            &json!({"status": status, "reason": failed.then_some(STILL_HELD), "manager": manager, "kernel": kernel}),
        )?;
        return if failed {
            Err(CommandError::Reported)
        } else {
            Ok(())
        };
    }
    print(&format!("manager: {manager}\nkernel:  {kernel}\n"))?;
    if !strays.is_empty() {
        let ended = tree::describe(&strays);
        print(&format!("ended what workers had left running: {ended}\n"))?;
    }
    if failed {
        return Err(CommandError::Failed(STILL_HELD.to_owned()));
    }
    Ok(())
}

/// Where the manager's kernel may answer: the manager names one place of those its file allows.
fn places_of(manager: Option<&ManagerStatus>) -> Result<Vec<Address>, KernelError> {
    let Some(manager) = manager else {
        return kernel::candidates(&RuntimeDir::locate(), None);
    };
    match load(Path::new(&manager.config)) {
        Some(config) => kernel::candidates(&RuntimeDir::locate(), config.kernel.as_ref()),
        // Changed beyond reading since: what the manager says must do.
        None => Ok(vec![kernel::parse(&manager.kernel)?]),
    }
}

fn places_without_manager(common: &Common) -> Result<Vec<Address>, KernelError> {
    let config = common.config.as_deref().and_then(load);
    let endpoint = config.as_ref().and_then(|config| config.kernel.as_ref());
    kernel::candidates(&RuntimeDir::locate(), endpoint)
}

fn load(file: &Path) -> Option<Config> {
    let around = Surroundings::current().ok()?;
    config::load(file, &around).ok()
}
