//! The resolved configuration: typed, complete, ready to act on.
//!
//! Owns the shapes only; `resolve` fills them. Paths are absolute, and names in the kernel are
//! computed here, so that the manager and papactl form them alike.
//! Invariant: a value of these types has passed every check; no text in it needs parsing again.

mod health;
mod socket;
mod stream;
mod watcher;

pub use health::{
    BackoffConfig, FlappingConfig, FlappingDefaults, HealthCheck, HealthProbe, Readiness,
};
pub use socket::{SocketConfig, SocketFamily, SocketType, socket_name};
pub use stream::{
    FancyConfig, FileStreamConfig, RotateWhen, RotationConfig, StreamClass, StreamConfig,
    SyslogAddress, SyslogConfig,
};
pub use watcher::{HookConfig, OrphanPolicy, WatcherConfig};

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::environment::Variables;
use crate::include::Pattern;
use crate::ini::Document;
use crate::problem::{ConfigErrors, Origin, Problem};
use crate::surroundings::Surroundings;

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
