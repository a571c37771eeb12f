//! What the kernel says of itself.

use papa_protocol::json::status::{Counts, HelloReply, Memory, StatusReply};
use papa_protocol::json::{FEATURE_PIDFD_INFO, FEATURE_SPLICE, PROTOCOL};
use papa_protocol::limits::{SESSION_BUDGET_BYTES, advertised};

use super::claim;
use super::room::Usage;
use crate::VERSION;
use crate::readers::Readers;
use crate::sys::clock::now_us;
use crate::sys::process::file_size_limit;
use crate::world::World;
use crate::world::reel::LINEAR_FILE_BYTES;
use crate::world::table;

/// Answers `hello`.
pub(crate) fn hello(world: &World) -> HelloReply {
    let mut features = Vec::new();
    if world.config.splices {
        features.push(FEATURE_SPLICE.to_owned());
    }
    if world.has_exit_info {
        features.push(FEATURE_PIDFD_INFO.to_owned());
    }
    HelloReply {
        papa: VERSION.to_owned(),
        protocol: PROTOCOL,
        pid: std::process::id(),
        keeper: world.link.keeper().as_raw().unsigned_abs(),
        incarnation: world.table.incarnation,
        lineage: world.table.first_started_us,
        place: world.config.place(),
        cgroups: world
            .cgroups
            .as_ref()
            .map(|groups| groups.base().display().to_string()),
        features,
        limits: advertised(),
    }
}

/// Answers `status`.
pub(crate) fn status(world: &World, readers: &Readers, usage: Usage) -> StatusReply {
    let mut ledger = world.table.forgotten;
    for live in world.live.values() {
        table::add(&mut ledger, &live.ledger());
    }
    StatusReply {
        version: VERSION.to_owned(),
        pid: std::process::id(),
        keeper: world.link.keeper().as_raw().unsigned_abs(),
        uid: nix::unistd::geteuid().as_raw(),
        started_us: world.table.first_started_us,
        uptime_ms: now_us().saturating_sub(world.table.first_started_us) / 1000,
        incarnation: world.table.incarnation,
        counts: counts(world, readers),
        memory: Memory {
            budget_bytes: SESSION_BUDGET_BYTES as u64,
            used_bytes: usage.session_bytes as u64,
        },
        ledger,
        skipped_records: world.skipped_records,
        file_size_limit: file_size_limit().filter(|bytes| *bytes < LINEAR_FILE_BYTES),
    }
}

fn counts(world: &World, readers: &Readers) -> Counts {
    let listed = || world.table.processes().filter(|row| row.is_listed());
    let troubled = world.live.values().filter(|live| live.trouble.is_some());
    Counts {
        processes: listed().count() as u64,
        running: listed().filter(|row| row.exit.is_none()).count() as u64,
        sockets: world.table.sockets().count() as u64,
        values: world.table.values.len() as u64,
        held: world.table.held.len() as u64,
        claims: claim::list(world).len() as u64,
        sessions: readers.sessions.len() as u64,
        troubled: troubled.count() as u64,
    }
}
