//! The bodies of replies: what a positive answer to each command holds.
//!
//! Owns the fields and their names on the wire; Circus's come first, additions after them. The
//! envelope is `message`'s.
//! Source: manager/docs/control.md.

use std::collections::{BTreeMap, VecDeque};

use papa_logs::form::LineForm;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::last_words::End;
use papa_config::{StreamConfig, WatcherConfig};

/// Answer to `status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusReply {
    /// `status NAME` only: the state of that watcher, in place of "ok".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// State by watcher name.
    #[serde(default)]
    pub statuses: BTreeMap<String, WatcherState>,
    /// The same in detail, by name.
    #[serde(default)]
    pub watchers: Vec<WatcherStatus>,
    /// The manager itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manager: Option<ManagerStatus>,
}

/// Answer to one fetch of a listener.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct EventsReply {
    /// Which manager's life the numbers belong to.
    pub incarnation: String,
    /// Number of the last event looked at: where to go on.
    pub seq: u64,
    /// Events that are lost to this listener; none when their number is not known.
    pub missed: Option<u64>,
    /// In order.
    pub events: Vec<Map<String, Value>>,
}

/// Answer to `shutdown`, when everything has ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ShutdownReply {
    /// Output that was given up, by watcher; none: all of it is where it should be.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<LostOutput>,
}

/// Output of one watcher that was not written.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LostOutput {
    /// Its name.
    pub watcher: String,
    /// Where it should have gone.
    pub files: Vec<String>,
    /// How much, in bytes.
    pub bytes: u64,
    /// Why not.
    pub reason: String,
}

impl std::fmt::Display for LostOutput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let files = self.files.join(" and ");
        write!(f, "{}: {} bytes of output", self.watcher, self.bytes)?;
        if !files.is_empty() {
            write!(f, " for {files}")?;
        }
        write!(f, " are lost: {}", self.reason)
    }
}

/// Circus's four states of a watcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WatcherState {
    /// No workers are wanted.
    Stopped,
    /// Workers are being started.
    Starting,
    /// Workers run.
    Active,
    /// Workers are being stopped.
    Stopping,
}

impl WatcherState {
    /// The word used on the wire and on the screen.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Active => "active",
            Self::Stopping => "stopping",
        }
    }
}

/// One watcher in detail.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WatcherStatus {
    /// As written in the file.
    pub name: String,
    /// What it is doing.
    pub state: WatcherState,
    /// Workers wanted.
    pub numprocesses: u32,
    /// Workers that exist, by number.
    pub workers: Vec<WorkerStatus>,
    /// It is started by the first connection to its sockets.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dormant: bool,
    /// What hinders it, for people: `exited with 1 five times, next try 8 s later`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// It was given up, pauses after too many ends, or ends again and again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub failing: bool,
    /// It is wanted, and not all its workers have shown that they stay: they run for less than a
    /// moment, or have not said that they are ready.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub settling: bool,
    /// Its workers were to end, and all have, with 0.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub done: bool,
    /// Workers of it that an earlier kernel left running.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub orphans: Vec<OrphanStatus>,
}

/// A worker that an earlier kernel left running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrphanStatus {
    /// Its number within the watcher.
    pub wid: u32,
    /// Process id.
    pub pid: u32,
    /// How long it had been running when it was found, in seconds.
    pub age: u64,
    /// What it runs.
    pub command: String,
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its number within the watcher.
    pub wid: u32,
    /// Process id.
    pub pid: u32,
    /// The kernel's serial.
    pub serial: u64,
    /// Microseconds since the epoch.
    pub started_us: u64,
    /// Ticks since boot, where they are known: with the pid they name one process for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_ticks: Option<u64>,
    /// It has been asked to stop.
    #[serde(default)]
    pub stopping: bool,
}

/// The manager itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ManagerStatus {
    /// Process id.
    pub pid: u32,
    /// Version of the program.
    pub version: String,
    /// The configuration file.
    pub config: String,
    /// The namespace it claims.
    pub namespace: String,
    /// Address of its kernel, as `--kernel` takes it.
    pub kernel: String,
    /// Process id of its kernel; none while it is not connected.
    #[serde(default)]
    pub kernel_pid: Option<u32>,
    /// Seconds since the epoch.
    pub started: f64,
}

/// Answer to `list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ListReply {
    /// Lower-case names, sorted.
    Watchers { watchers: Vec<String> },
    /// Pids of live workers.
    Pids { pids: Vec<u32> },
}

/// Answer to `numprocesses`, `incr`, `decr`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumProcessesReply {
    /// Of one watcher, or of all together.
    pub numprocesses: u64,
    /// When one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watcher_name: Option<String>,
    /// `incr` and `decr` of a singleton: nothing was changed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub singleton: bool,
}

/// Answer to `options`, `get`, `globaloptions`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OptionsReply {
    /// By key; texts, numbers, booleans, null for what is not set.
    pub options: BTreeMap<String, Value>,
}

/// Answer to `start`, `restart`, `reload` of one watcher, when waited for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct InfoReply {
    /// None where nothing was done.
    pub info: Option<ChangeInfo>,
}

/// What became of a watcher's workers, by pid.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ChangeInfo {
    /// Those that ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stopped: Vec<u32>,
    /// Those that are new.
    pub started: Vec<u32>,
    /// Those that ran before and run on.
    pub kept: Vec<u32>,
}

/// Answer to `add` with `start`, when waited for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StartedReply {
    /// Pids of new workers.
    pub started: Vec<u32>,
    /// Pids of workers that were there.
    pub kept: Vec<u32>,
}

/// Answer to `reloadconfig`: what is, or with `plan` would be, done.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PlanReply {
    /// In the order of doing; empty when file and running state agree.
    pub plan: Vec<PlanStep>,
    /// Why it is only done with `accept_removal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needs_acceptance: Option<String>,
    /// Warnings of the file, one line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// One difference between the file and what runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanStep {
    /// What is done.
    pub action: PlanAction,
    /// To what: `watcher:web`, `socket:api`, `circus`.
    pub what: String,
    /// Why, one text for each reason: `cmd: "a" -> "b"`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub why: Vec<String>,
}

/// What `reloadconfig` does to one section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlanAction {
    /// It is new.
    Add,
    /// It is gone from the file.
    Remove,
    /// Takes effect without touching a worker.
    Change,
    /// Workers are replaced, new ones first.
    Roll,
    /// Workers are stopped and started.
    Restart,
    /// Set at run time, or only a new manager can apply it; the reasons say which.
    Keep,
}

impl PlanAction {
    /// The word used on the screen.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Change => "change",
            Self::Roll => "roll",
            Self::Restart => "restart",
            Self::Keep => "keep",
        }
    }
}

/// Answer to `logs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogsReply {
    /// Per watcher, its log files.
    pub logs: Vec<WatcherLogs>,
    /// What is wrong with log files, by their paths: what they hold is older than what their
    /// watchers say.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub troubles: BTreeMap<String, String>,
    /// Watchers that are gone, whose workers had ended unasked: of a change that was taken back,
    /// for example.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<WatcherLogs>,
}

/// A watcher's log files; a stream that goes nowhere readable has none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatcherLogs {
    /// As written in the file.
    pub name: String,
    /// File of standard output.
    pub stdout: Option<String>,
    /// File of standard error.
    pub stderr: Option<String>,
    /// What the lines of standard output look like; a manager of an earlier version does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout_lines: Option<LineForm>,
    /// What the lines of standard error look like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_lines: Option<LineForm>,
    /// How the latest workers ended that nobody had asked to, with their last lines.
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    pub ends: VecDeque<End>,
    /// Something that ended workers wrote is on its way to the files still.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
}

/// Log files of `watchers`, for the answer to `logs` and for `papactl logs` without a manager.
#[must_use]
pub fn log_files<'a>(watchers: impl Iterator<Item = &'a WatcherConfig>) -> LogsReply {
    let file = |stream: &StreamConfig| {
        stream
            .file()
            .map(|file| file.filename.to_string_lossy().into_owned())
    };
    LogsReply {
        logs: watchers
            .map(|watcher| WatcherLogs {
                name: watcher.name.clone(),
                stdout: file(&watcher.stdout),
                stderr: file(&watcher.stderr),
                stdout_lines: Some(LineForm::of(&watcher.stdout)),
                stderr_lines: Some(LineForm::of(&watcher.stderr)),
                ends: VecDeque::new(),
                draining: false,
            })
            .collect(),
        troubles: BTreeMap::new(),
        gone: Vec::new(),
    }
}

/// Answer to `listsockets`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SocketsReply {
    /// By descriptor number.
    pub sockets: Vec<SocketEntry>,
}

/// One socket held for the workers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketEntry {
    /// Its descriptor's number in the kernel and in workers; none where each worker gets its own.
    pub fd: Option<u32>,
    /// As in the file, without the namespace.
    pub name: String,
    /// Length of the accept queue.
    pub backlog: u32,
    /// Where it is bound, unless it is a unix socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Where it is bound, unless it is a unix socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Where a unix socket is bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Why it is not there, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// Answer to `doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DoctorReply {
    /// What was looked at, and what was found.
    pub findings: Vec<Finding>,
}

/// One thing `doctor` looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was looked at: `kernel`, `ledger circus.web.1`.
    pub about: String,
    /// What was found, for people.
    pub text: String,
    /// One of many that another finding sums up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detail: bool,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Notice,
    /// Something does not work.
    Problem,
}

impl Level {
    /// The word used on the screen.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Notice => "notice",
            Self::Problem => "problem",
        }
    }
}
