//! One `[watcher:NAME]`, and what its keys say of hooks and orphans.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use papa_protocol::process::{Account, Rlimit};

use crate::ini::Entry;
use crate::problem::Origin;
use crate::signal::SignalNumber;
use crate::types::health::{BackoffConfig, FlappingConfig, HealthCheck, Readiness};
use crate::types::stream::StreamConfig;
use crate::variables;
use crate::worker_name::worker_of;

/// One `[watcher:NAME]`: a group of identical workers.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct WatcherConfig {
    /// As written.
    pub name: String,
    /// Lower case: how it is looked up and named in the kernel.
    pub key: String,
    /// The section's first line.
    pub origin: Origin,
    /// The words of the command, complete but for the worker's number and socket numbers; see
    /// `render_worker`.
    pub argv_template: Vec<String>,
    /// How many workers.
    pub numprocesses: u32,
    /// At most one worker.
    pub singleton: bool,
    /// Where workers start, absolute.
    pub working_dir: PathBuf,
    /// Where that was when the file was read, links followed: workers start there until it is read
    /// again, so that one that is replaced meanwhile is of the same release.
    pub resolved_dir: PathBuf,
    /// The program likewise, if a link leads to its directory.
    pub resolved_program: Option<String>,
    /// The workers' environment, complete.
    pub env: BTreeMap<OsString, OsString>,
    /// Names in `env` that were set because of `uid`: those of `identity::ACCOUNT_VARIABLES` that
    /// the file does not set.
    pub account_env: Vec<&'static str>,
    /// Variables given at run time in place of those of the file's sections.
    pub env_given: Option<BTreeMap<String, String>>,
    /// User of the workers, looked up by the kernel; none means the kernel's.
    pub uid: Option<Account>,
    /// Group of the workers; none means the user's primary group, or the kernel's.
    pub gid: Option<Account>,
    /// By lower-case name: `nofile`, `core` …; soft and hard alike.
    pub rlimits: BTreeMap<String, Rlimit>,
    /// File mode mask, when given in `[circus]`.
    pub umask: Option<u32>,
    /// What asks a worker to end.
    pub stop_signal: SignalNumber,
    /// Also ask the worker's direct children.
    pub stop_children: bool,
    /// What a worker leaves running when it ends runs on, and is nobody's.
    pub leave_children: bool,
    /// How long a worker may take to end before it is killed.
    pub graceful_timeout: Duration,
    /// Reload by sending SIGHUP instead of replacing workers.
    pub send_hup: bool,
    /// Start a new worker when one ends.
    pub respawn: bool,
    /// Attempts to start a worker when starting fails; none means for ever.
    pub max_retry: Option<u32>,
    /// Started along with the manager.
    pub autostart: bool,
    /// Higher starts earlier.
    pub priority: i64,
    /// Pause between the starts of two workers.
    pub warmup_delay: Duration,
    /// When a worker counts as serving; none: as soon as it runs.
    pub ready: Option<Readiness>,
    /// How long a worker may take to become ready.
    pub ready_timeout: Duration,
    /// How many workers beyond `numprocesses` a rolling reload has at most; 0: one goes before one
    /// comes.
    pub max_surge: u32,
    /// What becomes of workers an earlier kernel left running.
    pub orphans: OrphanPolicy,
    /// Age at which a worker is replaced; none: never.
    pub max_age: Option<Duration>,
    /// Random time added to `max_age`, drawn once for each worker.
    pub max_age_variance: Duration,
    /// Started by the first connection to one of its sockets.
    pub on_demand: bool,
    /// How a running worker is asked whether it is well.
    pub health: Option<HealthCheck>,
    /// Pauses after quick ends.
    pub backoff: BackoffConfig,
    /// When ends are so frequent that the watcher pauses and at last gives up; none: back-off
    /// alone.
    pub flapping: Option<FlappingConfig>,
    /// Lower-case names of watchers that are ready before this one is started, and stopped after
    /// it.
    pub depends_on: Vec<String>,
    /// True: workers outlive the manager. False: they are stopped when the manager quits.
    pub use_papa: bool,
    /// The workers inherit every socket.
    pub use_sockets: bool,
    /// Sockets the workers inherit: names of `SocketConfig`.
    pub sockets: Vec<String>,
    /// The socket that becomes the workers' standard input.
    pub stdin_socket: Option<String>,
    /// Where standard output goes.
    pub stdout: StreamConfig,
    /// Where standard error goes.
    pub stderr: StreamConfig,
    /// Accepted but not yet active.
    pub hooks: Vec<HookConfig>,
    /// Every key as written, variables replaced; what `options` shows and plugins read.
    pub options: BTreeMap<String, String>,
    /// Every key as written; what changing single keys starts from.
    pub entries: Vec<Entry>,
}

impl WatcherConfig {
    /// The sockets the workers serve: those the command or standard input names, else all they
    /// inherit.
    #[must_use]
    pub fn demand_sockets(&self) -> Vec<String> {
        let mentioned: BTreeSet<String> = self
            .argv_template
            .iter()
            .flat_map(|word| variables::keys(word))
            .filter_map(|key| key.strip_prefix("sockets.").map(str::to_owned))
            .chain(self.stdin_socket.clone())
            .collect();
        if mentioned.is_empty() {
            self.sockets.clone()
        } else {
            mentioned.into_iter().collect()
        }
    }

    /// Names of the sockets its workers cannot do without: those the command or standard input
    /// names, else all they inherit.
    #[must_use]
    pub fn needed_sockets(&self) -> BTreeSet<String> {
        self.demand_sockets().into_iter().collect()
    }

    /// Whether anybody reads what its workers write.
    #[must_use]
    pub fn is_logged(&self) -> bool {
        matches!(self.ready, Some(Readiness::Log(_)))
            || self.stdout.is_consumed()
            || self.stderr.is_consumed()
    }

    /// Name in the kernel of worker number `wid`.
    #[must_use]
    pub fn worker_name(&self, namespace: &str, wid: u32) -> String {
        format!("{namespace}.{}.{wid}", self.key)
    }

    /// Inverse of [`Self::worker_name`]: the worker number in a kernel name, if it belongs to this
    /// watcher.
    #[must_use]
    pub fn worker_number(&self, namespace: &str, kernel_name: &str) -> Option<u32> {
        let (watcher, number) = worker_of(namespace, kernel_name)?;
        (watcher == self.key).then_some(number)
    }
}

/// `hooks.NAME = target[, ignore failure]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookConfig {
    /// `before_start` and so on.
    pub name: String,
    /// Dotted Python callable.
    pub target: String,
    /// A failing hook counts as successful.
    pub ignore_failure: bool,
    /// Where it is written.
    pub origin: Origin,
}

/// What becomes of workers that a kernel left running which was lost together with its keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OrphanPolicy {
    /// They are ended before others are started.
    #[default]
    End,
    /// Others are started when they have ended by themselves.
    Wait,
    /// Others are started beside them.
    Leave,
}

impl std::str::FromStr for OrphanPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "end" => Ok(Self::End),
            "wait" => Ok(Self::Wait),
            "leave" => Ok(Self::Leave),
            _ => Err("expected end, wait or leave".to_owned()),
        }
    }
}

impl std::fmt::Display for OrphanPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::End => "end",
            Self::Wait => "wait",
            Self::Leave => "leave",
        })
    }
}
