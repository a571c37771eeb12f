//! What became of the sockets: which cannot be made, and paths that went away under them.
//!
//! Owns the list of troubles by socket. A watcher waits for its sockets as it waits for other
//! watchers (`gates`): no start is tried and none is counted while one is missing. Leaves to
//! others: the making (`tasks`, `kernel_link`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use papa_config::worker_of;
use papa_protocol::process::Process;

use crate::adopt::Note;
use crate::config::Config;
use crate::control::message::ReloadHow;
use crate::supervisor::{Supervisor, WatcherId, tasks};
use crate::watcher::Watcher;

impl Supervisor {
    /// The kernel was asked for all sockets; these it could not make.
    pub(super) fn sockets_told(&mut self, troubles: BTreeMap<String, String>) {
        for (socket, reason) in &troubles {
            if self.socket_troubles.get(socket) != Some(reason) {
                tracing::warn!(
                    socket,
                    reason,
                    "the socket cannot be made; its watchers wait"
                );
            }
        }
        let before = std::mem::replace(&mut self.socket_troubles, troubles);
        for socket in before.keys() {
            if !self.socket_troubles.contains_key(socket) {
                tracing::info!(socket, "socket is available again");
                self.replace_users(socket);
            }
        }
        self.retry_sockets();
    }

    /// Some of what could not be made was tried again; others may have got into trouble meanwhile.
    pub(super) fn sockets_tried(&mut self, tried: &[String], failed: BTreeMap<String, String>) {
        self.sockets_retried = false;
        let mut troubles = self.socket_troubles.clone();
        troubles.retain(|name, _| !tried.contains(name));
        troubles.extend(failed);
        self.sockets_told(troubles);
    }

    /// Tries the sockets in trouble again, one task at a time and none that the configuration has
    /// no longer.
    pub(super) fn retry_sockets(&mut self) {
        let config = self.config.clone();
        let troubles = &mut self.socket_troubles;
        troubles.retain(|name, _| config.sockets.iter().any(|socket| socket.name == *name));
        let Some(link) = self.link.clone() else {
            return;
        };
        if self.sockets_retried || self.socket_troubles.is_empty() {
            return;
        }
        self.sockets_retried = true;
        let sockets = config.sockets.iter();
        let failed = sockets.filter(|socket| self.socket_troubles.contains_key(&socket.name));
        tasks::make_sockets_again(link, failed.cloned().collect(), self.events.clone());
    }

    /// A file is at the path of a unix socket; told every now and then. Asks the kernel whose it is
    /// where that is not known.
    pub(super) fn path_there(&mut self, name: &str, file: (u64, u64)) {
        let config = self.config.clone();
        let socket = config.sockets.iter().find(|socket| socket.name == name);
        if let (Some(socket), Some(link)) = (socket, &self.link)
            && self.own_files.get(name) != Some(&file)
            && !self.socket_troubles.contains_key(name)
            && !self.binding.contains(name)
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
            self.own_files.insert(name, file);
        }
    }

    /// Nobody can connect to a unix socket whose path is gone, whatever its holders do. Told again
    /// until the path is there.
    pub(super) fn path_gone(&mut self, name: &str, what: &str) {
        let config = self.config.clone();
        let socket = config.sockets.iter().find(|socket| socket.name == name);
        if let (Some(socket), Some(link)) = (socket, &self.link)
            && self.kernel_trouble.is_none()
            && !self.socket_troubles.contains_key(name)
            && self.binding.insert(name.to_owned())
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
        self.binding.remove(name);
        match result {
            Ok(()) => self.replace_users(name),
            Err(reason) => {
                tracing::warn!(socket = name, reason, "cannot rebind the socket");
                self.socket_troubles.insert(name.to_owned(), reason);
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
    /// predecessor bound one anew and was killed before it had replaced them.
    pub(super) fn with_sockets_of_before(&self, processes: &[Process]) -> Vec<WatcherId> {
        let Some(link) = &self.link else {
            return Vec::new();
        };
        let has_another = |process: &Process| {
            let (key, _) = worker_of(&self.config.namespace, &process.name)?;
            let id = *self.keys.get(key)?;
            let watcher = self.watchers.get(&id)?;
            let given = Note::of(process)?.sockets?;
            let newest = link.newest_of(&watcher.config().needed_sockets())?;
            let is_left = process.running && newest > given;
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
        let same = |known: &Arc<Config>| Arc::ptr_eq(known, &self.config);
        if self.paths_of.as_ref().is_some_and(same) {
            return;
        }
        self.paths_of = Some(self.config.clone());
        let sockets = self.config.sockets.iter();
        let paths = sockets.filter_map(|socket| Some((socket.name.clone(), socket.path.clone()?)));
        let paths: Vec<_> = paths.collect();
        self.own_files
            .retain(|name, _| paths.iter().any(|(known, _)| known == name));
        self.paths.send_replace(paths);
    }
}
