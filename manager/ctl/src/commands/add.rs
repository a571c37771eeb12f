//! `papactl add`: a watcher that is in no file.

use serde_json::{Map, Value};

use crate::cli::Common;
use crate::cli::args::AddArgs;
use crate::commands::{CommandError, connect, done, print_selected, set, wait_or_explain};
use papa_control::message::{Add, Command, Selection};
use papa_control::options::quote;

/// Runs the verb.
pub(super) fn run(common: &Common, args: &AddArgs) -> Result<(), CommandError> {
    if let Some(word) = args.command.first().filter(|word| word.starts_with('-')) {
        return Err(CommandError::Usage(format!(
            "{word:?}: no option of add is called so, and no program either; expected papactl add [OPTIONS] NAME PROGRAM [ARGUMENTS]"
        )));
    }
    // One word is a whole command line, as in a file; several were split by the shell already.
    let cmd = match args.command.as_slice() {
        [line] => line.clone(),
        words => words
            .iter()
            .map(|word| quote(word))
            .collect::<Vec<_>>()
            .join(" "),
    };
    let mut pairs = vec![("cmd", cmd.as_str())];
    for option in &args.options {
        pairs.push(option.split_once('=').ok_or_else(|| {
            CommandError::Usage(format!(
                "--option {option:?}: expected KEY=VALUE, for example numprocesses=2"
            ))
        })?);
    }
    let command = Command::Add(Add {
        name: args.name.clone(),
        options: set::values(&pairs)?,
        start: args.start,
    });
    let mut client = connect(common)?;
    let selection = Selection::named(&args.name);
    let lower = args.name.to_lowercase();
    let meant = |name: &str| name.to_lowercase() == lower;
    let _: Map<String, Value> = wait_or_explain(common, &mut client, &selection, command, meant)?;
    if args.start && !common.no_wait {
        return print_selected(common, &mut client, &selection);
    }
    done(common)
}
