//! `papactl signal`: sends a signal to workers.

use serde_json::{Map, Value};

use crate::cli::Common;
use crate::cli::args::SignalArgs;
use crate::commands::{CommandError, connect, done, wait_for};
use crate::config::SignalNumber;
use crate::control::message::{Command, Reach, Selection, Signal};

/// Runs the verb.
pub(super) fn run(common: &Common, args: &SignalArgs) -> Result<(), CommandError> {
    let (pid, signal) = match args.words.as_slice() {
        [pid, signal] => {
            let number = pid.parse().ok().filter(|pid| *pid > 0).ok_or_else(|| {
                CommandError::Usage(format!("pid {pid:?}: expected a worker's process id"))
            })?;
            (Some(number), signal)
        }
        [signal] => (None, signal),
        _ => {
            return Err(CommandError::Usage(
                "expected a signal, with a pid before it if only one worker is meant".to_owned(),
            ));
        }
    };
    let command = Command::Signal(Signal {
        name: args.name.clone(),
        pid,
        signal: number(signal)?,
        reach: match (args.recursive, args.children) {
            (true, _) => Reach::Tree,
            (false, true) => Reach::Children,
            (false, false) => Reach::Worker,
        },
    });
    let mut client = connect(common)?;
    let selection = Selection::named(&args.name);
    let _: Map<String, Value> = wait_for(common, &mut client, &selection, command)?;
    done(common)
}

/// A signal as typed.
pub(super) fn number(text: &str) -> Result<SignalNumber, CommandError> {
    text.parse()
        .map_err(|error| CommandError::Usage(format!("signal {text:?}: {error}")))
}
