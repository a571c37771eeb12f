//! `papactl list`: the watchers' names, or the pids of one, as Circus prints them.

use crate::cli::Common;
use crate::cli::args::NameArg;
use crate::commands::{CommandError, connect, print, print_json, table, with_ok};
use crate::control::message::{Command, ListReply, Request};

/// Runs the verb.
pub(super) fn run(common: &Common, args: &NameArg) -> Result<(), CommandError> {
    let request = Request::waiting(Command::List {
        name: args.name.clone(),
    });
    let reply: ListReply = connect(common)?.ask(&request, common.timeout())?;
    if common.json {
        return print_json(&with_ok(reply));
    }
    let words = match reply {
        ListReply::Watchers { watchers } => watchers,
        ListReply::Pids { pids } => pids.iter().map(ToString::to_string).collect(),
    };
    print(&format!("{}\n", table::printable(&words.join(","))))
}
