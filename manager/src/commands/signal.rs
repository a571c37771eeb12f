//! `papactl signal`: sends a signal to workers.

use serde_json::{Map, Value};

use crate::cli::Common;
use crate::cli::args::SignalArgs;
use crate::commands::{CommandError, connect, done, meant, wait_for};
use crate::config::SignalNumber;
use crate::control::message::{Command, Reach, Selection, Signal};

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
    for target in meant::targets(common, &mut client, names)? {
        let selection = Selection::named(&target.watcher);
        let command = Command::Signal(Signal {
            name: target.watcher,
            pid: target.worker.map(|worker| worker.pid).or(pid),
            signal,
            reach,
        });
        let _: Map<String, Value> = wait_for(common, &mut client, &selection, command)?;
    }
    done(common)
}

/// A signal as typed.
pub(super) fn number(text: &str) -> Result<SignalNumber, CommandError> {
    text.parse()
        .map_err(|error| CommandError::Usage(format!("signal {text:?}: {error}")))
}
