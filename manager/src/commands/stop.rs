//! `papactl stop`: stops watchers and waits until their workers are gone.

use crate::cli::{Common, NameArg};
use crate::commands::{CommandError, change};
use crate::control::message::Command;

/// Runs the verb.
pub(super) fn run(common: &Common, args: &NameArg) -> Result<(), CommandError> {
    change(common, args.name.as_ref(), Command::Stop)
}
