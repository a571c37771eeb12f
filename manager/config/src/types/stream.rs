//! Where an output stream goes: files with their rotation, syslog, the manager's own output.

use std::fmt;
use std::path::PathBuf;

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

/// What a file calls the kinds of streams: `stdout_stream.class`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamClass {
    /// Circus's usual class.
    File,
    /// A file that somebody else may move.
    WatchedFile,
    /// A file that is rotated by time.
    TimedRotatingFile,
    /// A file of JSON objects; not in Circus.
    Json,
    /// The manager's own standard output.
    Stdout,
    /// The same, in colour.
    FancyStdout,
    /// The system's log; not in Circus.
    Syslog,
    /// `/dev/null`; not in Circus.
    Null,
}

impl StreamClass {
    /// Names and classes; of two names for one class the first is shown.
    pub const NAMES: [(&'static str, Self); 9] = [
        ("FileStream", Self::File),
        ("WatchedFileStream", Self::WatchedFile),
        ("TimedRotatingFileStream", Self::TimedRotatingFile),
        ("json", Self::Json),
        ("StdoutStream", Self::Stdout),
        ("FancyStdoutStream", Self::FancyStdout),
        ("syslog", Self::Syslog),
        ("null", Self::Null),
        ("None", Self::Null),
    ];
    /// Those that write a file.
    pub const FILES: [Self; 4] = [
        Self::File,
        Self::WatchedFile,
        Self::TimedRotatingFile,
        Self::Json,
    ];

    /// The class called `name`, with or without Circus's module in front.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let name = name.strip_prefix("circus.stream.").unwrap_or(name);
        let mut names = Self::NAMES.iter();
        names
            .find(|(known, _)| *known == name)
            .map(|(_, class)| *class)
    }

    /// Its name in a file.
    #[must_use]
    pub fn name(self) -> &'static str {
        let mut names = Self::NAMES.iter();
        names
            .find(|(_, class)| *class == self)
            .map_or("", |(name, _)| name)
    }

    /// Whether both are read into the same variant of [`StreamConfig`].
    #[must_use]
    pub fn is_like(self, other: Self) -> bool {
        self == other || (Self::FILES.contains(&self) && Self::FILES.contains(&other))
    }
}

impl StreamConfig {
    /// The class a file would name; none if nothing is configured.
    #[must_use]
    pub fn class(&self) -> Option<StreamClass> {
        Some(match self {
            Self::Unset => return None,
            Self::Null => StreamClass::Null,
            Self::Stdout => StreamClass::Stdout,
            Self::Fancy(_) => StreamClass::FancyStdout,
            Self::Syslog(_) => StreamClass::Syslog,
            Self::File(file) if file.json => StreamClass::Json,
            Self::File(file) if file.watch_path => StreamClass::WatchedFile,
            Self::File(file) if file.rotation.is_some() => StreamClass::TimedRotatingFile,
            Self::File(_) => StreamClass::File,
        })
    }

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
