//! `papactl get`: some of a watcher's options.

use crate::cli::Common;
use crate::cli::args::GetArgs;
use crate::commands::{CommandError, options};
use papa_control::message::Command;

/// Runs the verb.
pub(super) fn run(common: &Common, args: &GetArgs) -> Result<(), CommandError> {
    let (name, keys) = (args.name.clone(), args.keys.clone());
    options::show_asked(common, Command::Get { name, keys })
}
