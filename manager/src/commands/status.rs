//! `papactl status`: watchers, their state and their workers' pids.

use crate::cli::Common;
use crate::cli::args::NameArg;
use crate::commands::{CommandError, connect, print_selected};
use crate::control::client::ManagerError;
use crate::control::message::{RequestError, Selection};

/// Runs the verb.
pub(super) fn run(common: &Common, args: &NameArg) -> Result<(), CommandError> {
    let mut client = connect(common)?;
    let selection = Selection {
        name: args.name.clone(),
        ..Selection::default()
    };
    if let Some(name) = &args.name {
        let status = super::status_of_all(common, &mut client)?;
        if !status
            .watchers
            .iter()
            .any(|watcher| selection.matches(&watcher.name.to_lowercase()))
        {
            return Err(ManagerError::from(RequestError::unknown_watcher(name)).into());
        }
    }
    print_selected(common, &mut client, &selection)
}
