//! `papactl kill`: stops workers, which are then replaced.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::cli::Common;
use crate::cli::args::KillArgs;
use crate::commands::{CommandError, connect, done, signal, wait_for};
use crate::control::message::{Command, Kill, Selection};

/// Runs the verb.
pub(super) fn run(common: &Common, args: &KillArgs) -> Result<(), CommandError> {
    let grace = args.graceful_timeout.map(|seconds| {
        Duration::try_from_secs_f64(seconds).map_err(|_| {
            CommandError::Usage(format!(
                "--graceful-timeout {seconds}: expected a number of seconds from 0"
            ))
        })
    });
    let command = Command::Kill(Kill {
        name: args.name.clone(),
        pid: args.pid,
        signal: args.signum.as_deref().map(signal::number).transpose()?,
        graceful_timeout: grace.transpose()?,
    });
    let mut client = connect(common)?;
    let selection = Selection::named(&args.name);
    let _: Map<String, Value> = wait_for(common, &mut client, &selection, command)?;
    done(common)
}
