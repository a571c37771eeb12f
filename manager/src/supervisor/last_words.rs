//! What a worker that ended by itself wrote last, read before anything else follows from its end.
//!
//! Owns the order: the output is read while the kernel still has the process, then the end is dealt
//! with, so that whatever is said about the end can say what the worker said. Leaves to others:
//! what an end means (`watcher`), its record (`last_words`).
//! Invariant: an end is dealt with at most [`PATIENCE`] after it was noticed, whatever the kernel
//! does.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use papa_protocol::process::Exit;

use crate::kernel_link::KernelLink;
use crate::last_words::{End, Ends};
use crate::state;
use crate::supervisor::{Event, Supervisor, WatcherId};
use crate::worker::Worker;

/// How long the kernel gets to hand the output over.
const PATIENCE: Duration = Duration::from_secs(1);

impl Supervisor {
    /// Has the last words of a worker that ended by itself read; the end is dealt with when they
    /// are there. False if nobody has to wait.
    pub(super) fn hear_first(&mut self, serial: u64, exit: &Exit) -> bool {
        if self.dead.is_heard(serial) {
            return true;
        }
        let owner = self.watchers.owner(serial);
        let owner = owner.and_then(|id| self.watchers.get(&id));
        let known = owner.is_some_and(|watcher| {
            let mut workers = watcher.workers().values();
            workers.any(|worker| worker.ends_by_itself() && is_of(worker, serial))
        });
        let Some(link) = self.connection.link().cloned().filter(|_| known) else {
            return false;
        };
        let Some(permits) = self.dead.hear(serial, exit.clone()) else {
            return false;
        };
        let events = self.events.clone();
        tokio::spawn(async move {
            let reading = async {
                let _permit = permits.acquire().await.ok()?;
                read(&link, serial).await
            };
            let lines = tokio::time::timeout(PATIENCE, reading).await;
            let lines = lines.ok().flatten().unwrap_or_default();
            let _ = events.send(Event::Heard { serial, lines }).await;
        });
        true
    }

    /// They are there.
    pub(super) fn heard(&mut self, serial: u64, lines: Vec<String>) {
        // It may have been dealt with meanwhile, when the kernel came back and told everything
        // anew.
        if let Some(exit) = self.dead.stop_hearing(serial) {
            self.dead.set_words(HashMap::from([(serial, lines)]));
            self.ended_now(serial, exit);
            self.dead.forget_words();
        }
    }

    /// Has the watcher know how one of its workers ended, before it decides what follows. Answers
    /// the record, if it is one of a worker.
    pub(super) fn note_end(&mut self, serial: u64, exit: Option<&Exit>) -> Option<End> {
        let id = self.watchers.owner(serial)?;
        let mut workers = self.watchers.get(&id)?.workers().iter();
        let (wid, worker) = workers.find(|(_, worker)| is_of(worker, serial))?;
        let (wid, worker) = (*wid, *worker);
        let asked = !worker.ends_by_itself();
        let lines = self.dead.take_words(serial);
        let end = worker.process()?.end(wid, exit, asked, lines);
        if !asked
            && exit.is_some()
            && let Some(watcher) = self.watchers.get_mut(&id)
        {
            watcher.note_last_words(end.clone());
        }
        Some(end)
    }

    /// Queues how workers of a watcher ended, if that is new.
    pub(super) fn save_ends(&mut self, id: WatcherId) {
        let Some(watcher) = self.watchers.get(&id) else {
            return;
        };
        let Some(newest) = watcher.last_ends().back().map(|end| end.serial) else {
            return;
        };
        if self.outbox.tell_end(id, newest) {
            let name = state::ends_value(&self.config.namespace, &watcher.config().key);
            let value = serde_json::to_string(watcher.last_ends()).unwrap_or_default();
            self.outbox.keep(name, Some(value));
        }
    }

    /// Takes over what a predecessor has kept.
    pub(super) fn take_over_ends(&mut self, ends: BTreeMap<String, Ends>) {
        for (key, ends) in ends {
            let id = self.keys.get(&key).copied();
            if let Some(id) = id
                && let Some(watcher) = self.watchers.get_mut(&id)
            {
                if let Some(end) = ends.back() {
                    self.outbox.tell_end(id, end.serial);
                }
                watcher.resume_ends(ends);
            }
        }
    }
}

fn is_of(worker: &Worker, serial: u64) -> bool {
    worker
        .process()
        .is_some_and(|process| process.serial == serial)
}

/// The last lines of an ended process, if there are any.
async fn read(link: &KernelLink, serial: u64) -> Option<Vec<String>> {
    match link.last_lines_of(serial).await {
        Ok(lines) => Some(lines),
        Err(error) => {
            tracing::debug!(serial, %error, "what a worker wrote last cannot be read");
            None
        }
    }
}
