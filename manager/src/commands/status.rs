//! `papactl status`: watchers, their state and their workers' pids.

use crate::cli::Common;
use crate::cli::args::NamesArg;
use crate::commands::{CommandError, connect, meant, print_targets};

/// Runs the verb.
pub(super) fn run(common: &Common, args: &NamesArg) -> Result<(), CommandError> {
    let mut client = connect(common)?;
    let targets = meant::targets(common, &mut client, &args.names)?;
    print_targets(common, &mut client, &targets)
}
