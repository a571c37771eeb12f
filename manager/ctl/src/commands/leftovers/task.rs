//! What is to be ended and how, and what became of it.

use std::time::{Duration, Instant};

use nix::libc;
use papa_client::Address;
use papa_config::{Config, WatcherConfig};
use papa_control::message::{LostOutput, WatcherStatus};
use papa_processes::pidfd::Whom;
use papa_processes::tree;

/// From one look at what still runs to the next.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long workers have whose watcher is not known; as long as a file gives them that says
/// nothing.
const UNKNOWN_GRACE: Duration = Duration::from_secs(30);
/// How long what was killed may take to be gone.
pub(super) const KILLED_PATIENCE: Duration = Duration::from_secs(5);

/// What was ended.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    /// For people, one sentence each.
    pub(crate) said: Vec<String>,
    /// What runs still when the time was over, for people.
    pub(crate) left: Vec<String>,
    /// Output of workers that nobody had written.
    pub(crate) lost: Vec<LostOutput>,
}

/// What is to be ended, and until when.
#[derive(Debug)]
pub(crate) struct Task<'a> {
    /// Where the kernel may answer.
    pub(crate) addresses: &'a [Address],
    /// Whose workers they are.
    pub(crate) namespace: &'a str,
    /// How each is to be ended.
    pub(crate) config: Option<&'a Config>,
    /// Workers that a manager knew whose kernel is lost.
    pub(crate) known: &'a [WatcherStatus],
    /// Nothing is waited for any longer.
    pub(crate) deadline: Instant,
}

/// How a worker is asked to end.
#[derive(Clone, Copy)]
pub(super) struct Manner {
    pub(super) signal: i32,
    pub(super) whom: Whom,
    pub(super) grace: Duration,
}

impl Manner {
    pub(super) fn of(config: Option<&WatcherConfig>) -> Self {
        config.map_or(
            Self {
                signal: libc::SIGTERM,
                whom: Whom::Worker,
                grace: UNKNOWN_GRACE,
            },
            |config| Self {
                signal: config.stop_signal.number(),
                whom: if config.stop_children {
                    Whom::WorkerAndChildren
                } else {
                    Whom::Worker
                },
                grace: config.graceful_timeout,
            },
        )
    }
}

/// A process that runs still, for people.
pub(super) fn left(pid: i32, started: Option<u64>) -> Option<String> {
    let stat = tree::stat(pid)?;
    if stat.is_zombie() || started.is_some_and(|started| started != stat.started) {
        return None;
    }
    let state = char::from(stat.state);
    Some(format!("pid {pid} ({}), state {state}", stat.command))
}
