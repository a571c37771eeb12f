//! `papactl list`: the watchers' names, or the pids of some, as Circus prints them.

use papa_system::printable::printable;
use serde_json::json;

use crate::cli::Common;
use crate::cli::args::NamesArg;
use crate::commands::{CommandError, connect, meant, print, print_json, status_of_all, with_ok};
use papa_control::message::{Command, ListReply, Request};

/// Runs the verb.
pub(super) fn run(common: &Common, args: &NamesArg) -> Result<(), CommandError> {
    let mut client = connect(common)?;
    if args.names.is_empty() {
        let reply: ListReply = client.ask(
            &Request::waiting(Command::List { name: None }),
            common.timeout(),
        )?;
        if common.json {
            return print_json(&with_ok(reply));
        }
        let ListReply::Watchers { watchers } = reply else {
            return Err(CommandError::Failed(
                "the manager answered with pids".to_owned(),
            ));
        };
        if watchers.is_empty() {
            return print("no watchers\n");
        }
        return print(&format!("{}\n", printable(&watchers.join(","))));
    }
    let targets = meant::targets(common, &mut client, &args.names)?;
    let status = status_of_all(common, &mut client)?;
    let several = targets.len() > 1;
    let mut replies = serde_json::Map::new();
    for target in targets {
        let mut watchers = status.watchers.iter();
        let found = watchers.find(|watcher| watcher.name == target.watcher);
        let meant = target.worker.map(|worker| worker.wid);
        let pids: Vec<u32> = found
            .into_iter()
            .flat_map(|watcher| &watcher.workers)
            .filter(|worker| meant.is_none_or(|wid| wid == worker.wid))
            .map(|worker| worker.pid)
            .collect();
        if common.json {
            if !several {
                return print_json(&with_ok(ListReply::Pids { pids }));
            }
            replies.insert(target.watcher, json!({ "pids": pids }));
            continue;
        }
        let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
        let name = if several {
            format!("{}: ", printable(&target.watcher))
        } else {
            String::new()
        };
        print(&format!("{name}{}\n", pids.join(",")))?;
    }
    if common.json {
        return print_json(&with_ok(json!({ "watchers": replies })));
    }
    Ok(())
}
