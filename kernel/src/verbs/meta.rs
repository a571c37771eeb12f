//! What the kernel says of itself.

use papa_protocol::json::status::{Counts, HelloReply, Memory, StatusReply};
use papa_protocol::json::{FEATURE_PIDFD_INFO, FEATURE_SPLICE, PROTOCOL};
use papa_protocol::limits::{SESSION_BUDGET_BYTES, advertised};

use crate::VERSION;
use crate::owner::Owner;
use crate::sys::clock::now_us;
use crate::verbs::claim;
use crate::world::table;

impl Owner {
    /// Answers `hello`.
    pub(crate) fn hello(&self) -> HelloReply {
        let mut features = Vec::new();
        if self.world.config.splices {
            features.push(FEATURE_SPLICE.to_owned());
        }
        if self.world.has_exit_info {
            features.push(FEATURE_PIDFD_INFO.to_owned());
        }
        HelloReply {
            papa: VERSION.to_owned(),
            protocol: PROTOCOL,
            pid: std::process::id(),
            keeper: self.world.link.keeper().as_raw().unsigned_abs(),
            incarnation: self.world.table.incarnation,
            lineage: self.world.table.first_started_us,
            place: self.world.config.place(),
            cgroups: self
                .world
                .cgroups
                .as_ref()
                .map(|groups| groups.base().display().to_string()),
            features,
            limits: advertised(),
        }
    }

    /// Answers `status`.
    pub(crate) fn status(&self) -> StatusReply {
        let mut ledger = self.world.table.forgotten;
        for live in self.world.live.values() {
            table::add(&mut ledger, &live.ledger());
        }
        let listed = || self.world.table.processes().filter(|row| row.is_listed());
        StatusReply {
            version: VERSION.to_owned(),
            pid: std::process::id(),
            keeper: self.world.link.keeper().as_raw().unsigned_abs(),
            uid: nix::unistd::geteuid().as_raw(),
            started_us: self.world.table.first_started_us,
            uptime_ms: now_us().saturating_sub(self.world.table.first_started_us) / 1000,
            incarnation: self.world.table.incarnation,
            counts: Counts {
                processes: listed().count() as u64,
                running: listed().filter(|row| row.exit.is_none()).count() as u64,
                sockets: self.world.table.sockets().count() as u64,
                values: self.world.table.values.len() as u64,
                held: self.world.table.held.len() as u64,
                claims: claim::list(&self.world).len() as u64,
                sessions: self.sessions.len() as u64,
                troubled: self
                    .world
                    .live
                    .values()
                    .filter(|live| live.trouble.is_some())
                    .count() as u64,
            },
            memory: Memory {
                budget_bytes: SESSION_BUDGET_BYTES as u64,
                used_bytes: self.budget.used() as u64,
            },
            ledger,
            skipped_records: self.world.skipped_records,
            file_size_limit: crate::sys::process::file_size_limit()
                .filter(|bytes| *bytes < crate::world::reel::LINEAR_FILE_BYTES),
        }
    }
}
