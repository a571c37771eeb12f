//! The manager's own log: standard error, a file that can be reopened, or a syslog daemon.
//!
//! Owns where a formatted line goes; what is said is everybody's. A line the syslog daemon does not
//! take at once goes to standard error instead: the loop waits for no log. Files are put aside when
//! they are large (`kept`), and what is said over and over is counted instead (`repeats`).
//! Source: Circus's `logoutput`; RFC 3164 for the messages.

mod repeats;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context;
use chrono::Local;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use papa_logs::own_output::{
    CappedFile, Leads, NEW_FILE_MODE, keep_output, reopen_output, write_to_output,
};
use papa_logs::syslog_socket::{SyslogSocket, rfc3164_header};
use papa_system::walk::open_append;
use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogOutput, SyslogConfig};
use crate::own_log::repeats::Repeats;

/// Most bytes of one line on standard error: what a pipe that says it has room has room for.
const STDERR_LINE_BYTES: usize = 4096;

/// A handle to the log in use.
#[derive(Debug, Clone)]
pub struct OwnLog {
    /// Shared with the subscriber: reopening replaces what it writes to.
    sink: Arc<Mutex<Sink>>,
    repeats: Repeats,
    on_standard_error: bool,
}

/// Where the log goes.
#[derive(Debug)]
pub struct Setting<'a> {
    /// None is standard error.
    pub output: Option<LogOutput>,
    /// A file is put aside when it is this large, in bytes; 0: never.
    pub max_bytes: u64,
    /// Where `papactl up` has our standard output and error go.
    pub started_with: &'a Path,
    /// What is said.
    pub level: LevelFilter,
}

#[derive(Debug, Default)]
enum Sink {
    #[default]
    StandardError,
    /// The file that standard output and error lead to.
    Output,
    File {
        file: File,
        path: PathBuf,
        kept: CappedFile,
    },
    Syslog(SyslogSocket, u8),
}

impl OwnLog {
    /// Makes this the process's log; without an output it is on standard error.
    ///
    /// # Errors
    /// The file cannot be opened, the syslog daemon not be found, or there is a log already.
    pub fn start(setting: Setting<'_>) -> anyhow::Result<Self> {
        let max_bytes = setting.max_bytes;
        let mut on_standard_error = setting.output.is_none();
        let sink = match setting.output {
            None => Sink::StandardError,
            Some(LogOutput::File(path)) => {
                let file = open_append(&path, false, NEW_FILE_MODE)
                    .with_context(|| format!("log file {}", path.display()))?;
                let leads = keep_output(&path, max_bytes);
                on_standard_error = leads.err;
                if leads != Leads::default() {
                    // One descriptor for one file: whoever puts it aside must know all that lead
                    // there.
                    Sink::Output
                } else {
                    let kept = CappedFile::new(path.clone(), max_bytes);
                    Sink::File { file, path, kept }
                }
            }
            Some(LogOutput::Syslog(syslog)) => connect(&syslog)
                .with_context(|| format!("logoutput: syslog at {:?}", syslog.address))?,
        };
        let sink = match sink {
            Sink::Output => Sink::Output,
            sink => match (keep_output(setting.started_with, max_bytes), sink) {
                (Leads { err: true, .. }, Sink::StandardError) => Sink::Output,
                (_, sink) => sink,
            },
        };
        let log = Self {
            sink: Arc::new(Mutex::new(sink)),
            repeats: Repeats::default(),
            on_standard_error,
        };
        tracing_subscriber::fmt()
            .with_max_level(setting.level)
            .with_ansi(false)
            .with_target(false)
            .log_internal_errors(false)
            .with_writer(log.clone())
            .finish()
            .with(log.repeats.clone())
            .try_init()
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(log)
    }

    /// Whether its lines go where standard error goes.
    #[must_use]
    pub fn is_standard_error(&self) -> bool {
        self.on_standard_error
    }

    /// Opens files by their paths again; nothing to do elsewhere.
    ///
    /// # Errors
    /// The file cannot be opened; the old one stays in use.
    pub fn reopen(&self) -> io::Result<()> {
        reopen_output();
        if let Sink::File { file, path, .. } =
            &mut *self.sink.lock().unwrap_or_else(PoisonError::into_inner)
        {
            *file = open_append(path, false, NEW_FILE_MODE)?;
        }
        Ok(())
    }

    /// Says how often lines were left out that came too often: to be called every few seconds, and
    /// `all` at the end.
    pub fn say_left_out(&self, all: bool) {
        self.repeats.say(all);
    }
}

fn connect(syslog: &SyslogConfig) -> io::Result<Sink> {
    SyslogSocket::connect(&syslog.address).map(|socket| Sink::Syslog(socket, syslog.facility))
}

/// What `loglevel` lets through; the tracing crate has no level above error.
#[must_use]
pub fn level(name: &str) -> LevelFilter {
    match name {
        "critical" | "error" => LevelFilter::ERROR,
        "warning" => LevelFilter::WARN,
        "debug" => LevelFilter::DEBUG,
        _ => LevelFilter::INFO,
    }
}

impl<'a> MakeWriter<'a> for OwnLog {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line {
            sink: Arc::clone(&self.sink),
            level: Level::INFO,
        }
    }

    fn make_writer_for(&'a self, about: &Metadata<'_>) -> Line {
        Line {
            sink: Arc::clone(&self.sink),
            level: *about.level(),
        }
    }
}

/// Takes one event, which comes as one write.
#[derive(Debug)]
pub struct Line {
    sink: Arc<Mutex<Sink>>,
    level: Level,
}

impl Write for Line {
    /// Never fails: a line that cannot be written (full disk, closed terminal, a reader that is
    /// gone) is lost.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = match &mut *self.sink.lock().unwrap_or_else(PoisonError::into_inner) {
            Sink::File { file, kept, .. } => {
                if let Some(new) = kept.look(file.as_fd(), Instant::now()) {
                    *file = new;
                }
                let _ = file.write_all(bytes);
                return Ok(bytes.len());
            }
            Sink::Output if write_to_output(bytes) => return Ok(bytes.len()),
            Sink::Output | Sink::StandardError => Err(io::ErrorKind::NotConnected.into()),
            Sink::Syslog(socket, facility) => socket.send(&message(*facility, self.level, bytes)),
        };
        if sent.is_err() {
            to_standard_error(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes what standard error takes at once; a reader that stands still must not stop the manager.
fn to_standard_error(bytes: &[u8]) {
    let stderr = io::stderr();
    let mut polled = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    let takes = poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
        && polled[0].revents() == Some(PollFlags::POLLOUT);
    if takes {
        let _ = nix::unistd::write(stderr.as_fd(), &bytes[..bytes.len().min(STDERR_LINE_BYTES)]);
    }
}

/// `<PRI>Mmm dd hh:mm:ss papa-manager[PID]: text`, as a daemon on this machine expects it.
fn message(facility: u8, level: Level, line: &[u8]) -> Vec<u8> {
    let severity = match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    };
    let priority = facility * 8 + severity;
    let pid = std::process::id();
    let header = rfc3164_header(priority, &Local::now(), "papa-manager", pid);
    let mut message = header.into_bytes();
    message.extend_from_slice(line.trim_ascii_end());
    message
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;
    use crate::config::SyslogAddress;

    #[test]
    fn a_line_becomes_one_message_and_none_is_lost_when_nobody_listens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let daemon = UnixDatagram::bind(&path).unwrap();
        let syslog = SyslogConfig {
            address: SyslogAddress::Unix(path.clone()),
            facility: 19,
            rfc5424: false,
        };
        let mut line = Line {
            sink: Arc::new(Mutex::new(connect(&syslog).unwrap())),
            level: Level::WARN,
        };
        line.write_all(b"something happened\n").unwrap();
        let mut bytes = [0; 256];
        let length = daemon.recv(&mut bytes).unwrap();
        let text = std::str::from_utf8(&bytes[..length]).unwrap();
        assert!(text.starts_with("<156>"), "{text}");
        assert!(
            text.ends_with(&format!(
                " papa-manager[{}]: something happened",
                std::process::id()
            )),
            "{text}"
        );
        drop(daemon);
        assert_eq!(line.write(b"x\n").unwrap(), 2);
        std::fs::remove_file(&path).unwrap();
        assert!(connect(&syslog).is_err());
    }
}
