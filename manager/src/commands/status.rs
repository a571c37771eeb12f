//! `papactl status`: watchers, their state and their workers' pids.

use crate::cli::Common;
use crate::cli::args::NamesArg;
use crate::commands::{
    CommandError, connect, meant, note, print_targets, status_with_kernel, table,
};

/// Runs the verb.
pub(super) fn run(common: &Common, args: &NamesArg) -> Result<(), CommandError> {
    let mut client = connect(common)?;
    let targets = meant::targets(common, &mut client, &args.names)?;
    let status = status_with_kernel(common, &mut client)?;
    print_targets(common, &mut client, &targets)?;
    match status.manager {
        Some(manager) if manager.kernel_pid.is_none() => {
            note(&format!(
                "papactl: no kernel answers the manager (pid {}), so it cannot say what runs; `papactl up {}` starts one",
                manager.pid,
                table::printable(&manager.config)
            ));
            Err(CommandError::Reported)
        }
        _ => Ok(()),
    }
}
