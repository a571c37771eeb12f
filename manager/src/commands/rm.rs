//! `papactl rm`: stops a watcher and forgets it.

use serde_json::{Map, Value};

use crate::cli::Common;
use crate::cli::args::RmArgs;
use crate::commands::{CommandError, connect, done, wait_for};
use crate::control::message::{Command, Selection};

/// Runs the verb.
pub(super) fn run(common: &Common, args: &RmArgs) -> Result<(), CommandError> {
    let command = Command::Rm {
        name: args.name.clone(),
        nostop: args.nostop,
    };
    let mut client = connect(common)?;
    let selection = Selection::named(&args.name);
    let _: Map<String, Value> = wait_for(common, &mut client, &selection, command)?;
    done(common)
}
