//! What `hello` and `status` answer.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::process::Ledger;

/// Of `hello`, and the first line after the switch to JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloReply {
    /// Version of the kernel.
    pub papa: String,
    /// Version of the dialect, [`crate::json::PROTOCOL`].
    pub protocol: u32,
    /// The kernel's process id.
    pub pid: u32,
    /// The keeper's process id.
    pub keeper: u32,
    /// How often this kernel has been started, crashes and upgrades included; never falls while its
    /// processes live.
    pub incarnation: u64,
    /// When the first kernel of this one's line started, in microseconds since the epoch: the same
    /// after every crash, upgrade and recovery, another in a fresh kernel. 0: the kernel is older
    /// than this field.
    #[serde(default)]
    pub lineage: u64,
    /// The port it serves, or the path of its socket. Of a kernel older than this field a client
    /// takes the address it was reached at.
    #[serde(default)]
    pub place: String,
    /// Directory with the control group of every process, called by its serial. None: processes
    /// have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroups: Option<String>,
    /// What this kernel and system can do.
    pub features: Vec<String>,
    /// The bounds a client should know, as [`crate::limits::advertised`] lists them.
    pub limits: BTreeMap<String, u64>,
}

impl HelloReply {
    /// Whether this kernel knows what the one that said `before` knew: it is the same, or its
    /// successor after a crash or an upgrade. Otherwise it is a fresh kernel, whose serials mean
    /// other processes.
    #[must_use]
    pub fn continues(&self, before: &Self) -> bool {
        if self.lineage != 0 && before.lineage != 0 {
            return self.lineage == before.lineage;
        }
        // Kernels without a lineage count their starts, and the count never falls.
        self.incarnation > before.incarnation
            || (self.incarnation == before.incarnation && self.pid == before.pid)
    }
}

/// Of `status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReply {
    /// Version of the kernel.
    pub version: String,
    /// The kernel's process id.
    pub pid: u32,
    /// The keeper's process id.
    pub keeper: u32,
    /// The user both run as.
    pub uid: u32,
    /// When the first kernel of this incarnation's line started, in microseconds since the epoch.
    pub started_us: u64,
    /// How long ago that was.
    pub uptime_ms: u64,
    /// As in `hello`.
    pub incarnation: u64,
    /// How many of what there is.
    pub counts: Counts,
    /// What sessions use of their budget.
    pub memory: Memory,
    /// All processes' output since the first start, forgotten ones included.
    pub ledger: Ledger,
    /// Journal records a recovery died of twice and left out.
    pub skipped_records: u64,
    /// Bytes a file of the kernel's may have at most, if there is a limit below 64 GiB that it
    /// cannot raise: reels are cut to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_size_limit: Option<u64>,
}

/// How many of what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Processes known.
    pub processes: u64,
    /// Those of them that run.
    pub running: u64,
    /// Sockets.
    pub sockets: u64,
    /// Values.
    pub values: u64,
    /// Held descriptors.
    pub held: u64,
    /// Namespaces with a claim, vacant ones included.
    pub claims: u64,
    /// Connections.
    pub sessions: u64,
    /// Processes whose output cannot be stored at the moment; `process.list` says which and why.
    #[serde(default, skip_serializing_if = "is_none_troubled")]
    pub troubled: u64,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks with a reference"
)]
fn is_none_troubled(count: &u64) -> bool {
    *count == 0
}

/// What sessions use of their budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Memory {
    /// [`crate::limits::SESSION_BUDGET_BYTES`].
    pub budget_bytes: u64,
    /// Unread input and unsent output of all sessions.
    pub used_bytes: u64,
}

/// Of `kernel.upgrade`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgraded {
    /// The program that ran when the request came.
    pub before: Program,
    /// The program that runs now; after a dry run, the one that was tried.
    pub after: Program,
    /// The kernel's process id now.
    pub pid: u32,
    /// The keeper's process id now.
    pub keeper: u32,
    /// As in `hello`.
    pub incarnation: u64,
    /// Only a dry run was asked for: nothing was changed.
    #[serde(default)]
    pub dry_run: bool,
    /// What the dry run found; none if the program knows no dry run and was forced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<UpgradeCheck>,
}

/// A program.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Program {
    /// Its version; none if it did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Where it was started from, control characters escaped.
    #[serde(default)]
    pub path: String,
}

/// What a program found of everything it would take over.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct UpgradeCheck {
    /// Its version.
    pub version: String,
    /// Journal records it read.
    pub records: u64,
    /// Journal records of kinds it does not know. It would carry them along, but not act on them.
    pub unknown_records: u64,
    /// Journal records it cannot read.
    pub unreadable_records: u64,
    /// Processes in them.
    pub processes: u64,
    /// Reels it read.
    pub reels: u64,
    /// Reels it cannot read.
    pub unreadable_reels: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(incarnation: u64, pid: u32, lineage: u64) -> HelloReply {
        HelloReply {
            papa: String::new(),
            protocol: 1,
            pid,
            keeper: 1,
            incarnation,
            lineage,
            place: String::new(),
            cgroups: None,
            features: Vec::new(),
            limits: BTreeMap::new(),
        }
    }

    #[test]
    fn a_fresh_kernel_is_told_from_a_successor() {
        let first = hello(1, 10, 500);
        assert!(hello(2, 11, 500).continues(&first), "after a crash");
        assert!(
            !hello(1, 12, 900).continues(&first),
            "as young as the first"
        );
        assert!(!hello(7, 12, 900).continues(&first), "started more often");
    }

    #[test]
    fn a_kernel_without_a_lineage_is_told_by_its_count_and_pid() {
        let first = hello(3, 10, 500);
        assert!(hello(4, 11, 0).continues(&first));
        assert!(hello(3, 10, 0).continues(&first), "the same one");
        assert!(!hello(3, 11, 0).continues(&first));
        assert!(!hello(1, 11, 0).continues(&first));
    }
}
