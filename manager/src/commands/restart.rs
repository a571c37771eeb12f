//! `papactl restart`: stops and starts watchers, and waits until they are up.

use crate::cli::{Common, NameArg};
use crate::commands::{CommandError, change};
use crate::control::message::Command;

/// Runs the verb.
pub(super) fn run(common: &Common, args: &NameArg) -> Result<(), CommandError> {
    change(common, args.name.as_ref(), Command::Restart)
}
