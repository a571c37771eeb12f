//! The manager's own log: standard error, a file that can be reopened, or a syslog daemon.
//!
//! Owns where a formatted line goes; what is said is everybody's. A line the syslog daemon does not take at once goes to
//! standard error instead: the loop waits for no log.
//! Source: Circus's `logoutput`; RFC 3164 for the messages.

use std::fs::File;
use std::io::{self, Write};
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use chrono::Local;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{LogOutput, SyslogAddress, SyslogConfig};
use crate::walk::{check_append, open_append};

/// Only we read it: it names commands and files.
const MODE: u32 = 0o600;
/// Most bytes of one line on standard error: what a pipe that says it has room has room for.
const STDERR_LINE_BYTES: usize = 4096;

/// A handle to the log in use.
#[derive(Debug, Clone)]
pub struct OwnLog {
    path: Option<PathBuf>,
    /// Shared with the subscriber: reopening replaces what it writes to.
    sink: Arc<Mutex<Sink>>,
}

#[derive(Debug, Default)]
enum Sink {
    #[default]
    StandardError,
    File(File),
    Unix(UnixDatagram, u8),
    Udp(UdpSocket, u8),
}

impl OwnLog {
    /// Makes this the process's log; without an output it is on standard error.
    ///
    /// # Errors
    /// The file cannot be opened, the syslog daemon not be found, or there is a log already.
    pub fn start(output: Option<LogOutput>, level: LevelFilter) -> anyhow::Result<Self> {
        let (path, sink) = match output {
            None => (None, Sink::StandardError),
            Some(LogOutput::File(path)) => {
                let file = open_append(&path, false, MODE)
                    .with_context(|| format!("log file {}", path.display()))?;
                (Some(path), Sink::File(file))
            }
            Some(LogOutput::Syslog(syslog)) => {
                let sink = connect(&syslog)
                    .with_context(|| format!("logoutput: syslog at {:?}", syslog.address))?;
                (None, sink)
            }
        };
        let log = Self {
            path,
            sink: Arc::new(Mutex::new(sink)),
        };
        tracing_subscriber::fmt()
            .with_max_level(level)
            .with_ansi(false)
            .with_target(false)
            .log_internal_errors(false)
            .with_writer(log.clone())
            .try_init()
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(log)
    }

    /// Opens the file by its path again; nothing to do elsewhere.
    ///
    /// # Errors
    /// The file cannot be opened; the old one stays in use.
    pub fn reopen(&self) -> io::Result<()> {
        if let Some(path) = &self.path {
            let file = open_append(path, false, MODE)?;
            *self.sink.lock().unwrap_or_else(PoisonError::into_inner) = Sink::File(file);
        }
        Ok(())
    }
}

/// Whether a start would find a place for the log there.
///
/// # Errors
/// As [`OwnLog::start`].
pub fn check(output: Option<&LogOutput>) -> anyhow::Result<()> {
    match output {
        None => Ok(()),
        Some(LogOutput::File(path)) => {
            check_append(path).with_context(|| format!("log file {}", path.display()))
        }
        Some(LogOutput::Syslog(syslog)) => connect(syslog)
            .map(drop)
            .with_context(|| format!("logoutput: syslog at {:?}", syslog.address)),
    }
}

fn connect(syslog: &SyslogConfig) -> io::Result<Sink> {
    Ok(match &syslog.address {
        SyslogAddress::Unix(path) => {
            let socket = UnixDatagram::unbound()?;
            socket.connect(path)?;
            socket.set_nonblocking(true)?;
            Sink::Unix(socket, syslog.facility)
        }
        SyslogAddress::Udp(host, port) => {
            let any = if host.contains(':') {
                "[::]:0"
            } else {
                "0.0.0.0:0"
            };
            let socket = UdpSocket::bind(any)?;
            socket.connect((host.as_str(), *port))?;
            socket.set_nonblocking(true)?;
            Sink::Udp(socket, syslog.facility)
        }
    })
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
    /// Never fails: a line that cannot be written (full disk, closed terminal, a reader that went) is lost, and nothing else.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = match &*self.sink.lock().unwrap_or_else(PoisonError::into_inner) {
            Sink::File(file) => {
                let _ = (&mut &*file).write_all(bytes);
                return Ok(bytes.len());
            }
            Sink::StandardError => Err(io::ErrorKind::NotConnected.into()),
            Sink::Unix(socket, facility) => socket.send(&message(*facility, self.level, bytes)),
            Sink::Udp(socket, facility) => socket.send(&message(*facility, self.level, bytes)),
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
    let head = format!(
        "<{}>{} papa-manager[{}]: ",
        u32::from(facility) * 8 + severity,
        Local::now().format("%b %e %H:%M:%S"),
        std::process::id()
    );
    let mut message = head.into_bytes();
    message.extend_from_slice(line.trim_ascii_end());
    message
}

#[cfg(test)]
mod tests {
    use super::*;

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
