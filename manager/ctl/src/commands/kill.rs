//! `papactl kill`: stops workers, which are then replaced.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::cli::Common;
use crate::cli::args::KillArgs;
use crate::commands::meant::{self, Target};
use crate::commands::{CommandError, connect, done, signal, wait_or_explain};
use papa_control::client::ManagerClient;
use papa_control::message::{Command, Kill, Selection};

/// Runs the verb.
pub(super) fn run(common: &Common, args: &KillArgs) -> Result<(), CommandError> {
    let grace = args.graceful_timeout.map(|seconds| {
        Duration::try_from_secs_f64(seconds).map_err(|_| {
            CommandError::Usage(format!(
                "--graceful-timeout {seconds}: expected a number of seconds from 0"
            ))
        })
    });
    let (names, pid) = meant::names_and_pid(&args.words);
    let how = Kill {
        name: String::new(),
        pid,
        signal: args.signum.as_deref().map(signal::number).transpose()?,
        graceful_timeout: grace.transpose()?,
    };
    let mut client = connect(common)?;
    let targets = meant::targets(common, &mut client, names)?;
    each(common, &mut client, targets, &how)?;
    done(common)
}

/// Stops every target in the way `how` says, one after another; a worker that is named there goes
/// before its pid.
pub(super) fn each(
    common: &Common,
    client: &mut ManagerClient,
    targets: Vec<Target>,
    how: &Kill,
) -> Result<(), CommandError> {
    for target in targets {
        let selection = Selection::named(&target.watcher);
        let name = target.watcher.clone();
        let command = Command::Kill(Kill {
            name: target.watcher,
            pid: target.worker.map(|worker| worker.pid).or(how.pid),
            ..how.clone()
        });
        let _: Map<String, Value> =
            wait_or_explain(common, client, &selection, command, |one| one == name)?;
    }
    Ok(())
}
