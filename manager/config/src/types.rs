//! The resolved configuration: typed, complete, ready to act on.
//!
//! Owns the shapes only; `resolve` fills them. Paths are absolute, names in the kernel's form are
//! computed here so that manager and command line never disagree about them.
//! Invariant: a value of these types has passed every check, no text in it needs parsing again.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use papa_protocol::socket::{Family as SocketFamily, SocketType};

use crate::environment::Variables;
use crate::include::Pattern;
use crate::ini::{Document, Entry};
use crate::problem::{ConfigErrors, Origin, Problem};
use crate::resolve::Surroundings;
use crate::resolve::restarts::FlappingDefaults;
use crate::signal::SignalNumber;
use crate::variables;
use crate::worker_name::worker_of;

/// Namespace of the kernel's names unless `[circus] namespace` says otherwise; the one Circus
/// always used.
pub const DEFAULT_NAMESPACE: &str = "circus";

/// Everything an INI file says.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The main file, absolute.
    pub path: PathBuf,
    /// Every file read, the main one first.
    pub files: Vec<PathBuf>,
    /// Those of them that have no key.
    pub empty_files: Vec<PathBuf>,
    /// What the main file includes, and how many files that is.
    pub patterns: Vec<Pattern>,
    /// The kernel to use; none means: look in the usual places.
    pub kernel: Option<KernelEndpoint>,
    /// First part of every name in the kernel.
    pub namespace: String,
    /// Pause after starting each watcher.
    pub warmup_delay: Duration,
    /// File mode mask of every worker, when given.
    pub umask: Option<u32>,
    /// Where the manager's pid is written, absolute.
    pub pidfile: Option<PathBuf>,
    /// The manager's own log; none: standard error.
    pub log_output: Option<LogOutput>,
    /// A log file of the manager's own is put aside when it is this large; 0: never.
    pub log_max_bytes: u64,
    /// `loglevel`, lower case: one of critical, error, warning, info, debug.
    pub log_level: String,
    /// In start order: higher priority first, then by name.
    pub watchers: Vec<WatcherConfig>,
    /// In file order, which is the order in which workers inherit them.
    pub sockets: Vec<SocketConfig>,
    /// By name; accepted but not yet active.
    pub plugins: Vec<PluginConfig>,
    /// Every key of `[circus]` as written, variables replaced.
    pub options: BTreeMap<String, String>,
    /// What was accepted but is probably not what was meant, in file order.
    pub warnings: Vec<Problem>,
    /// What reading one more watcher needs.
    pub base: Arc<Base>,
}

/// What every watcher of a configuration is read with.
#[derive(Debug, Clone, PartialEq)]
pub struct Base {
    /// The files, read as one.
    pub document: Document,
    /// `[env]` and `[env:…]`.
    pub variables: Variables,
    /// Where the manager was started.
    pub around: Surroundings,
    /// What the flapping plugin's section says.
    pub flapping: FlappingDefaults,
    /// A plugin may read keys of watchers that nobody here knows.
    pub free_keys: bool,
}

impl Config {
    /// Refuses a configuration in which there is nothing to run: most probably it is another file
    /// that was meant. `named` is the file as whoever asks has called it.
    ///
    /// # Errors
    /// It has no watcher.
    pub fn require_watchers(&self, named: &Path) -> Result<(), ConfigErrors> {
        if !self.watchers.is_empty() {
            return Ok(());
        }
        let included = self.files.len().saturating_sub(1);
        let found = if self.base.document.sections().is_empty() {
            "the file is empty"
        } else {
            "there is no watcher in it"
        };
        let place = match included {
            0 => String::new(),
            1 => " and the file it includes".to_owned(),
            many => format!(" and the {many} files it includes"),
        };
        Err(ConfigErrors {
            path: self.path.clone(),
            errors: vec![Problem::new(
                &Origin::whole(named),
                format!("{found}{place}; expected at least one section [watcher:NAME] with a cmd"),
            )],
            warnings: self.warnings.clone(),
        })
    }

    /// Finds a watcher by name, ignoring case as Circus does.
    #[must_use]
    pub fn watcher(&self, name: &str) -> Option<&WatcherConfig> {
        let key = name.to_lowercase();
        self.watchers.iter().find(|watcher| watcher.key == key)
    }
}

/// Where the manager's own log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogOutput {
    /// A file, absolute.
    File(PathBuf),
    /// A syslog daemon, in the form of RFC 3164.
    Syslog(SyslogConfig),
}

/// Where the kernel listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum KernelEndpoint {
    /// A unix socket's path.
    Unix(PathBuf),
    /// An abstract unix socket, without the leading `@`.
    Abstract(String),
    /// Host and port.
    Tcp(String, u16),
}

/// The form `--kernel` takes: `unix:/path`, `@name`, `tcp://host:port`.
impl fmt::Display for KernelEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Abstract(name) => write!(f, "@{name}"),
            Self::Tcp(host, port) if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "tcp://{host}:{port}"),
        }
    }
}

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
    /// User of the workers; none means the kernel's.
    pub uid: Option<Identity>,
    /// Group of the workers; none means the user's primary group, or the kernel's.
    pub gid: Option<Identity>,
    /// By lower-case name: `nofile`, `core` …
    pub rlimits: BTreeMap<String, RlimitValue>,
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

/// How a worker says, or is found, to serve. Texts may hold `$(circus.wid)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// `READY=1` to the socket in `NOTIFY_SOCKET`, as systemd has it.
    Notify,
    /// Something written to this descriptor, s6's way.
    Fd(u32),
    /// `HOST:PORT` accepts a connection.
    Tcp(String),
    /// A URL, `http://HOST[:PORT]/PATH`, answers 200 to 399.
    Http(String),
    /// A line of output matches this regular expression.
    Log(String),
    /// It has run for so long.
    Delay(Duration),
}

/// `health`, `health_interval` and so on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is asked.
    pub probe: HealthProbe,
    /// From the end of one check to the next.
    pub interval: Duration,
    /// A check that takes longer has failed.
    pub timeout: Duration,
    /// Failures in a row after which the worker is replaced; at least 1.
    pub retries: u32,
}

/// How a running worker is asked whether it is well. Texts may hold `$(circus.wid)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthProbe {
    /// `HOST:PORT` accepts a connection.
    Tcp(String),
    /// A URL answers 200 to 399.
    Http(String),
    /// A command ends with 0; run with the watcher's user, directory and environment, and
    /// `PAPA_PID`.
    Command(Vec<String>),
}

/// Pauses between the restarts of a worker that ends soon after its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BackoffConfig {
    /// The pause after the second quick end in a row.
    pub first: Duration,
    /// Longest pause.
    pub max: Duration,
    /// A worker that ran so long was well.
    pub reset: Duration,
}

/// When a watcher's workers end so often that going on has no prospect. Commanded stops never
/// count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FlappingConfig {
    /// Ends within `window` that are too many; at least 1.
    pub attempts: u32,
    /// See `attempts`.
    pub window: Duration,
    /// How long the watcher then pauses.
    pub retry_in: Duration,
    /// Pauses after which the watcher is stopped for good; none: never.
    pub max_retry: Option<u32>,
}

/// Where one output stream of a watcher's workers goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum StreamConfig {
    /// Nothing configured: the kernel keeps the latest output, nobody consumes it.
    #[default]
    Unset,
    /// `/dev/null` in the worker (`close_child_stdout`, class `null`).
    Null,
    /// The manager's own standard output, unchanged.
    Stdout,
    /// The same, each line with a prefix and in colour.
    Fancy(FancyConfig),
    /// The system's log, or one on another host.
    Syslog(SyslogConfig),
    /// A file.
    File(FileStreamConfig),
}

impl StreamConfig {
    /// What a trouble with it is reported by: the file, or the daemon.
    #[must_use]
    pub fn place(&self) -> Option<String> {
        match self {
            Self::Unset | Self::Null => None,
            Self::Stdout | Self::Fancy(_) => Some("/dev/stdout".to_owned()),
            Self::Syslog(syslog) => Some(format!("syslog {}", syslog.address)),
            Self::File(file) => Some(file.filename.display().to_string()),
        }
    }

    /// Whether the manager reads the stream.
    #[must_use]
    pub fn is_consumed(&self) -> bool {
        match self {
            Self::Unset | Self::Null => false,
            Self::Stdout | Self::Fancy(_) | Self::Syslog(_) | Self::File(_) => true,
        }
    }

    /// The file, if the stream goes to one.
    #[must_use]
    pub fn file(&self) -> Option<&FileStreamConfig> {
        match self {
            Self::File(file) => Some(file),
            Self::Unset | Self::Null | Self::Stdout | Self::Fancy(_) | Self::Syslog(_) => None,
        }
    }
}

/// A log file and its rotation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileStreamConfig {
    /// Absolute.
    pub filename: PathBuf,
    /// Rotate before a write that would reach this size; 0 means never.
    pub max_bytes: u64,
    /// How many rotated files are kept; 0 with `max_bytes` never truncates, with `rotation` it
    /// keeps all.
    pub backup_count: u32,
    /// strftime format of the prefix `TIME [PID] | `; none means bytes pass unchanged.
    pub time_format: Option<String>,
    /// Reopen when somebody else moved the file (`WatchedFileStream`).
    pub watch_path: bool,
    /// Rotate by time (`TimedRotatingFileStream`).
    pub rotation: Option<RotationConfig>,
    /// Rotated files are compressed with gzip.
    pub compress: bool,
    /// Missing directories are made.
    pub mkdir: bool,
    /// Each line becomes a JSON object (`json`).
    pub json: bool,
    /// A longer line becomes several objects.
    pub max_line_bytes: usize,
}

/// When a file is rotated by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RotationConfig {
    /// The unit.
    pub when: RotateWhen,
    /// So many of them, at least 1.
    pub interval: u32,
    /// By UTC instead of local time.
    pub utc: bool,
}

/// `rotate_when`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotateWhen {
    /// So long after the file was made.
    Second,
    /// The same.
    Minute,
    /// The same.
    Hour,
    /// The same: 24 hours, not a date.
    Day,
    /// At the end of a date.
    Midnight,
    /// At the end of that day of the week, Monday being 0.
    Weekday(u8),
}

/// `FancyStdoutStream`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FancyConfig {
    /// 1 red to 7 white, as terminals count; none: one of them by the watcher's name.
    pub color: Option<u8>,
    /// strftime format of the prefix `TIME [PID] | `.
    pub time_format: String,
}

/// `syslog`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SyslogConfig {
    /// Where the messages go.
    pub address: SyslogAddress,
    /// 0 kern to 23 local7.
    pub facility: u8,
    /// RFC 5424; otherwise RFC 3164.
    pub rfc5424: bool,
}

/// Where a syslog daemon listens, always for datagrams.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SyslogAddress {
    /// A unix socket's path.
    Unix(PathBuf),
    /// Host and port.
    Udp(String, u16),
}

impl fmt::Display for SyslogAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Udp(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// One `[socket:NAME]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SocketConfig {
    /// Lower case.
    pub name: String,
    /// The section's first line.
    pub origin: Origin,
    /// Address family.
    pub family: SocketFamily,
    /// Socket type.
    pub kind: SocketType,
    /// Path of a unix socket, absolute.
    pub path: Option<PathBuf>,
    /// File mode mask of a unix socket's path.
    pub umask: Option<u32>,
    /// Host of an inet socket.
    pub host: Option<String>,
    /// Port of an inet socket; 0 means any.
    pub port: Option<u16>,
    /// Network interface to bind to.
    pub interface: Option<String>,
    /// Length of the accept queue.
    pub backlog: u32,
    /// A fresh socket on the same port for each worker.
    pub reuseport: bool,
    /// Replace an existing unix path that is in nobody's use.
    pub replace: bool,
    /// Set `O_NONBLOCK` on the shared socket, as Circus does unless `blocking` or, as papa's were,
    /// `use_papa` is written.
    pub nonblocking: bool,
    /// Whether an IPv6 socket leaves IPv4 to others; none: what the system has them do.
    pub v6only: Option<bool>,
    /// False: removed when the manager quits.
    pub use_papa: bool,
}

impl SocketConfig {
    /// Name in the kernel.
    #[must_use]
    pub fn kernel_name(&self, namespace: &str) -> String {
        socket_name(namespace, &self.name)
    }

    /// Where it is bound, for people.
    #[must_use]
    pub fn place(&self) -> String {
        let host = self.host.as_deref().unwrap_or_default();
        let port = self.port.unwrap_or_default();
        match &self.path {
            Some(path) => path.display().to_string(),
            None if host.contains(':') => format!("[{host}]:{port}"),
            None => format!("{host}:{port}"),
        }
    }
}

/// Name in the kernel of the socket `name`.
#[must_use]
pub fn socket_name(namespace: &str, name: &str) -> String {
    format!("{namespace}.{name}")
}

/// A user or group as written: the kernel resolves names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// By name.
    Name(String),
    /// By number.
    Number(u32),
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

/// A resource limit, soft and hard alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RlimitValue {
    /// In the limit's own unit.
    Limit(u64),
    /// No limit.
    Infinity,
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

/// One `[plugin:NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginConfig {
    /// Without `plugin:`.
    pub name: String,
    /// Every key as written, variables replaced.
    pub options: BTreeMap<String, String>,
    /// The section's first line.
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
