//! `papactl signal`: sends a signal to workers.

use serde_json::{Map, Value};

use crate::cli::Common;
use crate::cli::args::SignalArgs;
use crate::commands::{CommandError, connect, done, meant, wait_for};
use papa_config::SignalNumber;
use papa_control::client::ManagerError;
use papa_control::message::{Command, Reach, Selection, Signal};

/// Runs the verb.
pub(super) fn run(common: &Common, args: &SignalArgs) -> Result<(), CommandError> {
    let [words @ .., signal] = args.words.as_slice() else {
        return Err(CommandError::Usage(
            "expected a watcher and a signal: papactl signal web HUP".to_owned(),
        ));
    };
    let (names, pid) = meant::names_and_pid(words);
    let signal = number(signal)?;
    let reach = match (args.recursive, args.children) {
        (true, _) => Reach::Tree,
        (false, true) => Reach::Children,
        (false, false) => Reach::Worker,
    };
    let mut client = connect(common)?;
    let targets = meant::targets(common, &mut client, names)?;
    let several = targets.len() > 1;
    let mut failures = Vec::new();
    for target in targets {
        let selection = Selection::named(&target.watcher);
        let command = Command::Signal(Signal {
            name: target.watcher,
            pid: target.worker.map(|worker| worker.pid).or(pid),
            signal,
            reach,
        });
        let outcome = wait_for::<Map<String, Value>>(common, &mut client, &selection, command);
        match outcome {
            // One that has no workers keeps the signal from no other.
            Err(CommandError::Manager(ManagerError::Refused(refused))) if several => {
                failures.push(refused.reason);
            }
            outcome => drop(outcome?),
        }
    }
    if !failures.is_empty() {
        return Err(CommandError::Failed(format!(
            "{}; the others got it",
            failures.join("; ")
        )));
    }
    done(common)
}

/// A signal as typed.
pub(super) fn number(text: &str) -> Result<SignalNumber, CommandError> {
    text.parse()
        .map_err(|error| CommandError::Usage(format!("signal {text:?}: {error}")))
}
