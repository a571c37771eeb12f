//! What became of the sockets: which cannot be made, and paths that went away under them.
//!
//! Owns what is done about them; what is known of them is `known`. A watcher waits for its sockets as it waits for other
//! watchers (`gates`): no start is tried and none is counted while one is missing. Leaves to
//! others: the making (`tasks`, `kernel_link`).

use std::collections::{BTreeMap, BTreeSet};

use papa_config::worker_of;
use papa_protocol::process::Process;

use crate::control::message::ReloadHow;
use crate::note::Note;
use crate::supervisor::{Supervisor, WatcherId, tasks};
use crate::watcher::Watcher;

mod known;

pub(super) use known::{Missing, Sockets};

impl Supervisor {
    /// The kernel was asked for all sockets; these it could not make.
    pub(super) fn sockets_told(&mut self, troubles: BTreeMap<String, String>) {
        for socket in self.sockets.told(troubles) {
            tracing::info!(socket, "socket is available again");
            self.replace_users(&socket);
        }
        self.retry_sockets();
    }

    /// Some of what could not be made was tried again.
    pub(super) fn sockets_tried(&mut self, tried: &[String], failed: BTreeMap<String, String>) {
        let troubles = self.sockets.retried(tried, failed);
        self.sockets_told(troubles);
    }

    /// Tries the sockets in trouble again, one task at a time and none that the configuration has
    /// no longer.
    pub(super) fn retry_sockets(&mut self) {
        let link = self.connection.link();
        let failed = self.sockets.retry(&self.config, link.is_some());
        if let Some(link) = link.filter(|_| !failed.is_empty()) {
            tasks::make_sockets_again(link.clone(), failed, self.events.clone());
        }
    }

    /// A file is at the path of a unix socket; told every now and then. Asks the kernel whose it is
    /// where that is not known.
    pub(super) fn path_there(&mut self, name: &str, file: (u64, u64)) {
        let config = self.config.clone();
        let socket = config.sockets.iter().find(|socket| socket.name == name);
        if let (Some(socket), Some(link)) = (socket, self.connection.link())
            && self.sockets.is_file_unknown(name, file)
        {
            tasks::ask_whose_path(link.clone(), socket.clone(), file, self.events.clone());
        }
    }

    /// The kernel has said whose the file is. A kernel that does not know is not asked about the
    /// same file again.
    pub(super) fn path_told(&mut self, name: String, file: (u64, u64), own: Option<bool>) {
        if own == Some(false) {
            self.path_gone(&name, "something else is at the path of the socket");
        } else {
            self.sockets.know_file(name, file);
        }
    }

    /// Nobody can connect to a unix socket whose path is gone, whatever its holders do. Told again
    /// until the path is there.
    pub(super) fn path_gone(&mut self, name: &str, what: &str) {
        let config = self.config.clone();
        let socket = config.sockets.iter().find(|socket| socket.name == name);
        if let (Some(socket), Some(link)) = (socket, self.connection.link())
            && self.connection.trouble().is_none()
            && self.sockets.begin_binding(name)
        {
            tracing::warn!(
                socket = name,
                path = socket.place(),
                "{what}; it is bound anew as soon as it can be"
            );
            tasks::bind_anew(link.clone(), socket.clone(), self.events.clone());
        }
    }

    /// A socket whose path was gone is bound anew.
    pub(super) fn bound_anew(&mut self, name: &str, result: Result<(), String>) {
        self.sockets.bound(name, &result);
        match result {
            Ok(()) => self.replace_users(name),
            Err(reason) => {
                tracing::warn!(socket = name, reason, "cannot rebind the socket");
                self.retry_sockets();
            }
        }
    }

    /// Workers that run have the socket of before, which nobody can reach; they are replaced.
    fn replace_users(&mut self, name: &str) {
        let runs = |watcher: &Watcher| {
            let mut workers = watcher.workers().values();
            workers.any(|worker| worker.process().is_some() && worker.is_wanted())
        };
        let using: Vec<WatcherId> = self
            .watchers
            .iter()
            .filter(|(_, watcher)| {
                watcher.is_wanted()
                    && runs(watcher)
                    && watcher.config().needed_sockets().contains(name)
            })
            .map(|(id, _)| *id)
            .collect();
        self.replace_workers(using);
    }

    /// Replaces the workers of these watchers, also where a reload is only a SIGHUP: they would
    /// keep the socket they have.
    pub(super) fn replace_workers(&mut self, watchers: Vec<WatcherId>) {
        for id in watchers {
            let Some(watcher) = self.watchers.get(&id) else {
                continue;
            };
            let how = match watcher.config().send_hup {
                true => ReloadHow::Sequential,
                false => ReloadHow::Graceful,
            };
            self.reload_one(id, how);
        }
    }

    /// Watchers with workers among `processes` that have another socket than there is now: a
    /// predecessor bound one anew, or took a change back, and was killed before it had replaced
    /// them.
    pub(super) fn with_sockets_of_before(&self, processes: &[Process]) -> Vec<WatcherId> {
        let Some(link) = self.connection.link() else {
            return Vec::new();
        };
        let has_another = |process: &Process| {
            let (key, _) = worker_of(&self.config.namespace, &process.name)?;
            let id = *self.keys.get(key)?;
            let watcher = self.watchers.get(&id)?;
            let given = Note::of(process)?.sockets?;
            let newest = link.newest_of(&watcher.config().needed_sockets())?;
            // One that was put aside and came back has a lower serial than the one that was closed.
            // One that the file no longer names exists still.
            let is_other = newest > given || (newest < given && !link.has_serial(given));
            let is_left = process.running && is_other;
            // One that is being reloaded replaces them anyway.
            (is_left && watcher.is_wanted() && !watcher.is_rolling()).then_some(id)
        };
        let found: BTreeSet<WatcherId> = processes.iter().filter_map(has_another).collect();
        for id in &found {
            let watcher = self.watchers.get(id).map(|known| &known.config().name);
            tracing::warn!(
                watcher,
                "its workers have a socket that was bound anew since; they are replaced"
            );
        }
        found.into_iter().collect()
    }

    /// Tells the task that looks at paths which there are, where the configuration is another one
    /// than before.
    pub(super) fn tell_paths(&mut self) {
        self.sockets.publish_paths(&self.config);
    }
}
