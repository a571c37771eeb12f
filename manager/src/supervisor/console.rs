//! Output that is in no file, under `--foreground`: who is shown, and what waits until it was
//! shown.
//!
//! Owns the moment at which the kernel may forget an ended worker that nobody else reads: once its
//! last lines are printed, or soon after where the reader of standard output is slow. Leaves to
//! others: the printing (`Console`).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::console::Console;
use crate::supervisor::{Event, Supervisor, WatcherId};
use crate::watcher::Watcher;

/// How long the kernel keeps an ended worker whose last lines are not printed yet; its successor
/// waits as long.
const PATIENCE: Duration = Duration::from_millis(500);

/// The console of a manager in the foreground, or none.
#[derive(Debug, Default)]
pub(super) struct Output {
    wanted: bool,
    console: Option<Console>,
    /// Changes of watchers' settings it was told of.
    told: u64,
    /// Ended processes whose last lines are not printed yet, whose they were, and until when that
    /// is waited for.
    waiting: BTreeMap<u64, (WatcherId, Instant)>,
    /// Standard output is read too slowly to wait for it.
    slow: bool,
}

impl Output {
    pub(super) fn new(wanted: bool) -> Self {
        Self {
            wanted,
            ..Self::default()
        }
    }

    /// Whether an ended process of watcher `key` is to stay in the kernel until its last lines are
    /// printed; it is noted down then.
    pub(super) fn awaits(&mut self, id: WatcherId, key: &str, serial: u64, now: Instant) -> bool {
        if self.waiting.contains_key(&serial) {
            return true;
        }
        let told = !self.slow
            && self
                .console
                .as_ref()
                .is_some_and(|console| console.tells_end_of(key));
        if told {
            self.waiting.insert(serial, (id, now + PATIENCE));
        }
        told
    }

    /// The kernel has forgotten it.
    pub(super) fn forget(&mut self, serial: u64) {
        self.waiting.remove(&serial);
    }

    /// The kernel is another one.
    pub(super) fn forget_all(&mut self) {
        self.waiting.clear();
    }

    /// Nothing more is to be printed, as far as that is waited for.
    pub(super) fn is_quiet(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.waiting.values().map(|(_, until)| *until).min()
    }
}

impl Supervisor {
    /// Tells the console whose output it shows, where that is new.
    pub(super) fn tell_console(&mut self, now: Instant) {
        if !self.console.wanted {
            return;
        }
        self.stop_waiting(now);
        let changes = self.watchers.config_changes();
        if self.console.told == changes {
            return;
        }
        if self.console.console.is_none() {
            let events = self.events.clone();
            let ended = move |serial| {
                // Should the loop be gone, nobody waits any more.
                let _ = events.blocking_send(Event::Shown(serial));
            };
            let namespace = self.config.namespace.clone();
            match Console::start(self.startup.addresses.clone(), namespace, ended) {
                Ok(console) => self.console.console = Some(console),
                Err(error) => {
                    tracing::warn!(%error, "not showing output of workers without a log file");
                    self.console.wanted = false;
                }
            }
        }
        if let Some(console) = &mut self.console.console {
            let configs = self.watchers.values().map(Watcher::config);
            console.show(configs.map(AsRef::as_ref));
        }
        self.console.told = changes;
    }

    /// The last lines of an ended process are printed.
    pub(super) fn shown(&mut self, serial: u64) {
        self.console.slow = false;
        if let Some((id, _)) = self.console.waiting.remove(&serial) {
            self.forget_shown(id, serial);
        }
    }

    /// Lets the kernel forget processes whose last lines take too long to print.
    fn stop_waiting(&mut self, now: Instant) {
        let gone: Vec<(u64, WatcherId)> = self
            .console
            .waiting
            .iter()
            .filter(|(_, (_, until))| *until <= now)
            .map(|(serial, (id, _))| (*serial, *id))
            .collect();
        for (serial, id) in gone {
            self.console.waiting.remove(&serial);
            if !self.console.slow {
                tracing::warn!(
                    "standard output is read too slowly; last lines of workers may be missing there"
                );
            }
            self.console.slow = true;
            self.forget_shown(id, serial);
        }
    }
}
