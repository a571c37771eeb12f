//! The bodies of replies: what a positive answer to each command holds.
//!
//! Owns the fields and their names on the wire; Circus's come first, additions after them. The envelope is
//! `message`'s.
//! Source: manager/README.md, "Control".

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::{StreamConfig, WatcherConfig};

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
    /// What hinders it, for people: `exited with 1 five times, next try in 8 s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
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

/// Answer to `numprocesses`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumProcessesReply {
    /// Of one watcher, or of all together.
    pub numprocesses: u64,
    /// When one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watcher_name: Option<String>,
}

/// Answer to `options`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OptionsReply {
    /// As in the file.
    pub options: BTreeMap<String, String>,
}

/// Answer to `logs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogsReply {
    /// Per watcher, its log files.
    pub logs: Vec<WatcherLogs>,
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
            })
            .collect(),
    }
}
