//! `papactl reload`: replaces workers, and waits until the new ones serve.

use crate::cli::Common;
use crate::cli::args::ReloadArgs;
use crate::commands::{CommandError, change};
use papa_control::message::{Command, ReloadHow};

/// Runs the verb.
pub(super) fn run(common: &Common, args: &ReloadArgs) -> Result<(), CommandError> {
    let how = match (args.terminate, args.sequential) {
        (true, _) => ReloadHow::Terminate,
        (false, true) => ReloadHow::Sequential,
        (false, false) => ReloadHow::Graceful,
    };
    change(common, &args.select, "reload", |selection| {
        Command::Reload { selection, how }
    })
}
