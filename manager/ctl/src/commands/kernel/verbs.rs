//! `papactl kernel status|upgrade|dump`: the kernel that the manager uses, or the one in the usual
//! places.

use papa_client::{Address, Client};
use papa_protocol::json::request::ops;
use serde_json::{Value, json};

use super::asking::{ask_status, with_kernel};
use super::{candidates, parse, upgrade};
use crate::cli::Common;
use crate::cli::args::KernelVerb;
use crate::commands::{CommandError, connect, print, print_json, status_of_all};
use papa_config::{self as config, Surroundings};
use papa_control::client::ManagerError;
use papa_system::runtime_dir::RuntimeDir;

/// Runs the verb.
pub(in crate::commands) fn run(common: &Common, verb: &KernelVerb) -> Result<(), CommandError> {
    let addresses = places(common)?;
    match verb {
        KernelVerb::Status => status(common, &addresses),
        KernelVerb::Upgrade(args) => upgrade::run(common, &addresses, args),
        KernelVerb::Dump => dump(common, &addresses),
    }
}

/// Where the kernel may be: the manager knows; without one the file, or the usual places.
pub(in crate::commands) fn places(common: &Common) -> Result<Vec<Address>, CommandError> {
    let asked = connect(common).and_then(|mut client| Ok(status_of_all(common, &mut client)?));
    let manager = match asked {
        Ok(status) => status.manager,
        Err(
            CommandError::Elsewhere(_) | CommandError::Manager(ManagerError::NotRunning { .. }),
        ) => None,
        Err(error) => return Err(error),
    };
    if let Some(manager) = manager {
        return Ok(vec![parse(&manager.kernel)?]);
    }
    let endpoint = match &common.config {
        Some(file) => config::load(file, &Surroundings::current()?)?.kernel,
        None => None,
    };
    Ok(candidates(&RuntimeDir::locate(), endpoint.as_ref())?)
}

/// Version of the kernel that runs, if one does.
pub(in crate::commands) fn version(common: &Common) -> Option<String> {
    let (_, status) = ask_status(&places(common).ok()?).ok()?;
    Some(status.version)
}

fn status(common: &Common, addresses: &[Address]) -> Result<(), CommandError> {
    let (address, status) = ask_status(addresses)?;
    if common.json {
        return print_json(
            &json!({"status": "ok", "address": address.to_string(), "kernel": status}),
        );
    }
    let (counts, ledger) = (&status.counts, &status.ledger);
    let kept = ledger
        .captured
        .saturating_sub(ledger.acknowledged)
        .saturating_sub(ledger.dropped);
    print(&format!(
        "address    {address}\n\
         pid        {} (keeper {}), version {}\n\
         up         {} s, start number {}\n\
         processes  {} running of {}\n\
         sockets    {}\n\
         held       {} descriptors, {} values\n\
         claims     {}\n\
         sessions   {}, {} of {} bytes\n\
         output     {} bytes captured = {} acknowledged + {} dropped + {kept} kept\n",
        status.pid,
        status.keeper,
        status.version,
        status.uptime_ms / 1000,
        status.incarnation,
        counts.running,
        counts.processes,
        counts.sockets,
        counts.held,
        counts.values,
        counts.claims,
        counts.sessions,
        status.memory.used_bytes,
        status.memory.budget_bytes,
        ledger.captured,
        ledger.acknowledged,
        ledger.dropped,
    ))
}

fn dump(common: &Common, addresses: &[Address]) -> Result<(), CommandError> {
    let (address, mut everything) = with_kernel(addresses, &async |client: &Client| {
        // One after another: together they could be larger than a session may be.
        Ok(json!({
            "status": client.call(ops::Status {}).await?,
            "claims": client.call(ops::ClaimList {}).await?.claims,
            "sockets": client.call(ops::SocketList::default()).await?.sockets,
            "processes": client.call(ops::ProcessList::default()).await?.processes,
            "values": client.call(ops::ValueList::default()).await?.values,
            "held": client.call(ops::HoldList::default()).await?.held,
        }))
    })?;
    everything["address"] = Value::from(address.to_string());
    if common.json {
        return print_json(&everything);
    }
    let text = serde_json::to_string_pretty(&everything).map_err(std::io::Error::other)?;
    print(&format!("{text}\n"))
}
