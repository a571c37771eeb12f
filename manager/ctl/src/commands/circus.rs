//! Small verbs that circusctl had and scripts may use.

use serde_json::{Map, Value};

use crate::cli::Common;
use crate::commands::{CommandError, connect, print, print_json, with_ok};
use papa_control::message::{Command, Request};

/// `numprocesses [NAME]`: how many workers are meant to run.
pub(super) fn num_processes(common: &Common, name: Option<String>) -> Result<(), CommandError> {
    number(common, Command::NumProcesses { name }, "numprocesses")
}

/// `numwatchers`: how many watchers there are.
pub(super) fn num_watchers(common: &Common) -> Result<(), CommandError> {
    number(common, Command::NumWatchers, "numwatchers")
}

fn number(common: &Common, command: Command, field: &str) -> Result<(), CommandError> {
    let request = Request::waiting(command);
    let reply: Map<String, Value> = connect(common)?.ask(&request, common.timeout())?;
    if common.json {
        return print_json(&with_ok(reply));
    }
    print(&format!("{}\n", reply.get(field).unwrap_or(&Value::Null)))
}
