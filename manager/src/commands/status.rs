//! `papactl status`: watchers, their state and their workers' pids.

use crate::cli::Common;
use crate::cli::args::StatusArgs;
use crate::commands::meant::Target;
use crate::commands::{
    CommandError, connect, meant, note, print_targets, status_with_kernel, table,
};
use crate::control::message::{WatcherState, WatcherStatus};

/// Runs the verb.
pub(super) fn run(common: &Common, args: &StatusArgs) -> Result<(), CommandError> {
    let mut client = connect(common)?;
    let targets = meant::targets(common, &mut client, &args.whom.names)?;
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
        _ if args.check => check(&status.watchers, &targets),
        _ => Ok(()),
    }
}

/// Whether every watcher that is meant is as it is wanted.
fn check(watchers: &[WatcherStatus], targets: &[Target]) -> Result<(), CommandError> {
    let is_meant = |watcher: &&WatcherStatus| {
        let mut targets = targets.iter();
        targets.any(|target| target.watcher == watcher.name)
    };
    let short = |watcher: &WatcherStatus| {
        let wanted = matches!(watcher.state, WatcherState::Active | WatcherState::Starting);
        wanted && !watcher.dormant && watcher.workers.len() < watcher.numprocesses as usize
    };
    let meant = watchers.iter().filter(is_meant);
    let unwell: Vec<String> = meant
        .filter(|watcher| watcher.failing || short(watcher))
        .map(|watcher| table::printable(&watcher.name))
        .collect();
    if unwell.is_empty() {
        return Ok(());
    }
    note(&format!("papactl: not as wanted: {}", unwell.join(", ")));
    Err(CommandError::Unwell)
}
