//! `papactl stop`: stops watchers and waits until their workers have ended.

use crate::cli::Common;
use crate::cli::args::SelectArgs;
use crate::commands::{CommandError, change};
use papa_control::message::Command;

/// Runs the verb.
pub(super) fn run(common: &Common, args: &SelectArgs) -> Result<(), CommandError> {
    change(common, args, "stop", Command::Stop)
}
