//! The manager's own log: standard error, or a file that can be reopened.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use tracing::level_filters::LevelFilter;

/// Only we read it: it names commands and files.
const MODE: u32 = 0o600;

/// A handle to the log in use.
#[derive(Debug, Clone)]
pub struct OwnLog {
    path: Option<PathBuf>,
    /// Shared with the subscriber: reopening replaces what it writes to.
    file: Arc<Mutex<Option<File>>>,
}

impl OwnLog {
    /// Makes this the process's log, in a file or on standard error.
    ///
    /// # Errors
    /// The file cannot be opened, or there is a log already.
    pub fn start(path: Option<&Path>, level: LevelFilter) -> anyhow::Result<Self> {
        let log = Self {
            path: path.map(Path::to_owned),
            file: Arc::default(),
        };
        log.reopen()
            .with_context(|| format!("log file {}", path.unwrap_or(Path::new("-")).display()))?;
        let writer = log.clone();
        tracing_subscriber::fmt()
            .with_max_level(level)
            .with_ansi(false)
            .with_target(false)
            .with_writer(move || writer.clone())
            .try_init()
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(log)
    }

    /// Opens the file by its path again; nothing to do on standard error.
    ///
    /// # Errors
    /// The file cannot be opened; the old one stays in use.
    pub fn reopen(&self) -> io::Result<()> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(MODE)
            .open(path)?;
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
        Ok(())
    }
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

impl Write for OwnLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &*self.file.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(file) => (&mut &*file).write(bytes),
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
