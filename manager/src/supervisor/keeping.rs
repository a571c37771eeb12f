//! What the supervisor gives the outbox, and when it is sent.
//!
//! Leaves to others: the queue and the answers that wait for it (`outbox`), talking to the kernel
//! (`tasks`).

use std::time::{Duration, Instant};

use crate::kernel_link::KernelLink;
use crate::state;
use crate::supervisor::saves::{Fate, Key};
use crate::supervisor::{Event, Look, Supervisor, tasks};

impl Supervisor {
    /// Has the kernel keep `value` for this manager's successors under `name`, the value's whole
    /// name (see [`state`]); with none, nothing is kept there any more.
    ///
    /// It is queued: what is kept under other names just before or after may reach the kernel in
    /// another order, unless [`Outbox::then`](crate::supervisor::outbox::Outbox::then) is called in between. The latest value of a name
    /// wins, and it is sent again until the kernel has taken it. An exit is acknowledged, and a
    /// worker started, only after everything that was queued before.
    pub(super) fn keep(&mut self, name: String, value: Option<String>) {
        self.outbox.keep(name, value);
    }

    /// Nothing is to be known of a watcher any more.
    pub(super) fn forget_kept(&mut self, key: &str) {
        // The others say nothing without the last, which says that there is such a watcher; they
        // are sent in order of name.
        let namespace = self.config.namespace.clone();
        self.keep(state::ends_value(&namespace, key), None);
        self.keep(state::added_value(&namespace, key), None);
        self.keep(state::watcher_value(&namespace, key), None);
    }

    /// Queues what is new about the watchers.
    pub(super) fn save(&mut self) {
        if self.outbox.is_closed() {
            return;
        }
        for id in self.watchers.take(Look::Save) {
            let Some(watcher) = self.watchers.get(&id) else {
                continue;
            };
            let kept = watcher.kept();
            if self.outbox.tell(id, kept) {
                let name = state::watcher_value(&self.config.namespace, &watcher.config().key);
                self.outbox.keep(name, Some(kept.to_value()));
            }
            self.save_ends(id);
        }
    }

    /// Sends what is queued, unless something is on its way.
    pub(super) fn send_saves(&mut self, link: &KernelLink, now: Instant) {
        if !self.connection.takes_saves() {
            return;
        }
        let Some(parcel) = self.outbox.next(now) else {
            return;
        };
        let reload = parcel.entries.iter().any(|(key, _)| {
            let Key::Value(name) = key else {
                return false;
            };
            let key = state::key_of_watcher_value(&self.config.namespace, name);
            let watcher = key
                .and_then(|key| self.keys.get(key))
                .and_then(|id| self.watchers.get(id));
            watcher.is_some_and(|watcher| watcher.kept().roll.is_some())
        });
        tasks::send_saves(link.clone(), parcel, reload, self.events.clone());
    }

    /// What became of what was sent.
    pub(super) fn saves_told(&mut self, fates: Vec<(Key, Fate)>) {
        self.outbox.sent(fates, Instant::now());
    }

    /// The manager ends: what is queued is still sent, for at most `patience`.
    pub(super) async fn flush_saves(&mut self, link: &KernelLink, patience: Duration) {
        let until = tokio::time::Instant::now() + patience;
        while !self.outbox.is_empty() {
            self.send_saves(link, Instant::now());
            let again = self.outbox.sends_at().map_or(until, Into::into);
            tokio::select! {
                event = self.receiver.recv() => match event {
                    Some(Event::Saved(fates)) => self.saves_told(fates),
                    Some(_) => {}
                    None => return,
                },
                () = tokio::time::sleep_until(again.min(until)) => {
                    if tokio::time::Instant::now() >= until {
                        let trouble = self.outbox.trouble(Instant::now());
                        tracing::warn!(trouble, "the kernel has not saved all state of the manager yet");
                        return;
                    }
                }
            }
        }
    }
}
