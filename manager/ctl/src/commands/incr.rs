//! `papactl incr`: more workers for a watcher; prints how many are wanted then.

use crate::cli::Common;
use crate::cli::args::CountArgs;
use crate::commands::{CommandError, count};
use papa_control::message::Command;

/// Runs the verb.
pub(super) fn run(common: &Common, args: &CountArgs) -> Result<(), CommandError> {
    count(common, &args.words, |name, by| Command::Incr { name, by })
}
