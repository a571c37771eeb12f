//! `papactl reopenlogs`: the manager opens its log files anew, after somebody moved them.

use serde_json::{Map, Value};

use crate::cli::Common;
use crate::commands::{CommandError, connect, done};
use papa_control::message::{Command, Request};

/// Runs the verb.
pub(super) fn run(common: &Common) -> Result<(), CommandError> {
    let request = Request::waiting(Command::ReopenLogs);
    let _: Map<String, Value> = connect(common)?.ask(&request, common.timeout())?;
    done(common)
}
