//! Where lines end up: a file, or a syslog daemon.
//!
//! Owns nothing but the choice; both keep the same promise: what they took is recorded as done once
//! it is out, what they refuse is offered again.

use std::path::PathBuf;
use std::time::Instant;

use papa_config::SyslogConfig;

use crate::file::{LogFile, Suspended};
use crate::layout::{Delta, Source};
use crate::schedule::Now;
use crate::store::Store;
use crate::syslog::Syslog;

/// Which one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A file, absolute.
    File(PathBuf),
    /// A daemon.
    Syslog(SyslogConfig),
}

#[derive(Debug)]
pub(super) enum Sink {
    File(Box<LogFile>),
    Syslog(Box<Syslog>),
}

impl Sink {
    pub(super) fn new(address: &Address) -> Self {
        match address {
            Address::File(path) => Self::File(Box::new(LogFile::new(path.clone()))),
            Address::Syslog(config) => Self::Syslog(Box::new(Syslog::new(config.clone()))),
        }
    }

    pub(super) fn address(&self) -> Address {
        match self {
            Self::File(file) => Address::File(file.path().to_owned()),
            Self::Syslog(syslog) => Address::Syslog(syslog.config().clone()),
        }
    }

    pub(super) fn file_mut(&mut self) -> Option<&mut LogFile> {
        match self {
            Self::File(file) => Some(file),
            Self::Syslog(_) => None,
        }
    }

    pub(super) fn file(&self) -> Option<&LogFile> {
        match self {
            Self::File(file) => Some(file),
            Self::Syslog(_) => None,
        }
    }

    /// Adds one unit.
    pub(super) fn append(
        &mut self,
        store: &mut Store,
        unit: &[u8],
        delta: Delta,
        now: Now,
    ) -> Result<(), Suspended> {
        match self {
            Self::File(file) => file.append(store, &[unit], delta, now),
            Self::Syslog(syslog) => syslog.append(unit.to_vec(), delta),
        }
    }

    /// Notes something else that holds once the unit added last is out. What a daemon took is not
    /// known to be in its log, so nothing is noted of it.
    pub(super) fn note(&mut self, delta: Delta) {
        if let Self::File(file) = self {
            file.note(delta);
        }
    }

    /// Adds whole lines as they are, the first of them continuing `head`.
    pub(super) fn append_raw(
        &mut self,
        store: &mut Store,
        head: &[u8],
        body: &[u8],
        source: Source,
        position: u64,
        now: Now,
    ) -> Result<(), Suspended> {
        let end = Delta {
            source,
            position: position + body.len() as u64,
        };
        match self {
            Self::File(file) if head.is_empty() => {
                file.append_lines(store, body, source, position, now)
            }
            Self::File(file) => file.append(store, &[head, body], end, now),
            Self::Syslog(syslog) => syslog.append([head, body].concat(), end),
        }
    }

    pub(super) fn flush(&mut self, store: &mut Store, now: Now) -> Result<(), Suspended> {
        match self {
            Self::File(file) => file.flush(store, now),
            Self::Syslog(syslog) => syslog.flush(store, now),
        }
    }

    /// Goes on with what a failure or the clock has put off. True when it takes in again what it
    /// refused.
    pub(super) fn retry(&mut self, store: &mut Store, now: Now) -> bool {
        match self {
            Self::File(file) => {
                let resumed = file.retry(store, now);
                file.tick(store, now);
                resumed
            }
            Self::Syslog(syslog) => syslog.retry(store, now),
        }
    }

    pub(super) fn trouble(&self) -> Option<(&str, Instant)> {
        match self {
            Self::File(file) => file.trouble(),
            Self::Syslog(syslog) => syslog.trouble(),
        }
    }

    /// When `retry` has something to do.
    pub(super) fn next_retry(&self, now: Now) -> Option<Instant> {
        let other = match self {
            Self::File(file) => file.next_tick(now),
            Self::Syslog(syslog) => syslog.next_look(),
        };
        self.trouble()
            .map(|(_, at)| at)
            .into_iter()
            .chain(other)
            .min()
    }

    /// Whether something that was taken in is not out yet: its turn in a flush has not come, or it
    /// was flushed and waits.
    pub(super) fn is_behind(&self) -> bool {
        match self {
            Self::File(file) => file.is_behind(),
            Self::Syslog(syslog) => syslog.is_behind(),
        }
    }

    /// Gives back what was taken in of one stream and, flushed, is not out. True if there was
    /// something.
    pub(super) fn withdraw(&mut self, from: Source) -> bool {
        match self {
            Self::File(_) => false,
            Self::Syslog(syslog) => syslog.withdraw(from),
        }
    }

    pub(super) fn is_stuck(&self) -> bool {
        self.file().is_some_and(LogFile::is_stuck)
    }
}
