//! `papactl rm`: stops watchers and forgets them.

use crate::cli::Common;
use crate::cli::args::RmArgs;
use crate::commands::{CommandError, each_watcher};
use papa_control::message::Command;

/// Runs the verb.
pub(super) fn run(common: &Common, args: &RmArgs) -> Result<(), CommandError> {
    let nostop = args.nostop;
    let command = |name| Command::Rm { name, nostop };
    each_watcher(common, &args.names, "rm", command, |_| "ok".to_owned())
}
