//! When a worker counts as serving, as well, and as ending too often.

use std::time::Duration;

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

/// What holds for watchers without `flapping.*` keys of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlappingDefaults {
    /// Watchers without such keys are judged too.
    pub active: bool,
    /// The values of keys they do not set.
    pub values: FlappingConfig,
}
