//! `papactl status`: watchers, their state and their workers' pids.

use std::collections::HashSet;

use papa_system::printable::printable;

use crate::cli::Common;
use crate::cli::args::StatusArgs;
use crate::commands::meant::Target;
use crate::commands::{CommandError, connect, meant, note, print_targets, status_with_kernel};
use papa_control::message::{WatcherState, WatcherStatus};

/// Runs the verb.
pub(super) fn run(common: &Common, args: &StatusArgs) -> Result<(), CommandError> {
    let mut client = connect(common)?;
    let status = status_with_kernel(common, &mut client)?;
    let targets = meant::targets_in(&status, &args.whom.names)?;
    let failing = if args.check {
        not_as_wanted(&status.watchers, &targets)
    } else {
        Vec::new()
    };
    let manager = status.manager.clone();
    print_targets(common, status, &targets)?;
    match manager {
        Some(manager) if manager.kernel_pid.is_none() => {
            note(&format!(
                "papactl: no kernel answers the manager (pid {}), so it cannot say what runs; `papactl up {}` starts one",
                manager.pid,
                printable(&manager.config)
            ));
            Err(CommandError::Reported)
        }
        _ if failing.is_empty() => Ok(()),
        _ => {
            note(&format!("papactl: not as wanted: {}", failing.join(", ")));
            Err(CommandError::Unwell)
        }
    }
}

/// The watchers that are meant and not as they are wanted.
fn not_as_wanted(watchers: &[WatcherStatus], targets: &[Target]) -> Vec<String> {
    let meant: HashSet<&str> = targets
        .iter()
        .map(|target| target.watcher.as_str())
        .collect();
    let short = |watcher: &WatcherStatus| {
        let wanted = matches!(watcher.state, WatcherState::Active | WatcherState::Starting);
        wanted && !watcher.dormant && watcher.workers.len() < watcher.numprocesses as usize
    };
    watchers
        .iter()
        .filter(|watcher| meant.contains(watcher.name.as_str()))
        .filter(|watcher| watcher.failing || short(watcher))
        .map(|watcher| printable(&watcher.name))
        .collect()
}
