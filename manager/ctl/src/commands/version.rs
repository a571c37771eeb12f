//! `papactl version`: the versions of papactl, the manager and the kernel.

use papa_system::printable::printable;
use serde_json::json;

use crate::cli::Common;
use crate::commands::{CommandError, connect, kernel, note, print, print_json};
use papa_control::client::ManagerError;
use papa_control::message::{Command, Request, StatusReply};

/// Runs the verb. What does not run has no version; that is no failure.
pub(super) fn run(common: &Common) -> Result<(), CommandError> {
    let connected = connect(common).inspect_err(|error| {
        // That none runs is said in the table; that one cannot be found from here is not.
        if !matches!(
            error,
            CommandError::Manager(ManagerError::NotRunning { .. })
        ) {
            note(&format!("papactl: {}", printable(&error.to_string())));
        }
    });
    let manager = connected.ok().and_then(|mut client| {
        let request = Request::waiting(Command::Status { name: None });
        let status: StatusReply = client.ask(&request, common.timeout()).ok()?;
        Some(status.manager?.version)
    });
    let kernel = kernel::verbs::version(common);
    if common.json {
        return print_json(&json!({
            "status": "ok",
            "papactl": env!("CARGO_PKG_VERSION"),
            "manager": manager,
            "kernel": kernel,
        }));
    }
    let shown =
        |version: Option<String>| version.map_or("not running".to_owned(), |text| printable(&text));
    print(&format!(
        "papactl  {}\nmanager  {}\nkernel   {}\n",
        env!("CARGO_PKG_VERSION"),
        shown(manager),
        shown(kernel)
    ))
}
