//! What became of the sockets: which cannot be made, and paths that went away under them.
//!
//! Owns the list of troubles by socket. A watcher waits for its sockets as it waits for other watchers (`gates`): no start is tried and
//! none is counted while one is missing. Leaves to others: the making (`tasks`, `kernel_link`).

use std::collections::BTreeMap;
use std::sync::Arc;

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
                tracing::info!(socket, "the socket is there");
                self.replace_users(socket);
            }
        }
        self.retry_sockets();
    }

    /// What could not be made was tried again.
    pub(super) fn sockets_tried(&mut self, troubles: BTreeMap<String, String>) {
        self.sockets_retried = false;
        self.sockets_told(troubles);
    }

    /// Tries the sockets in trouble again, one task at a time and none that the configuration has no longer.
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

    /// Nobody can connect to a unix socket whose path is gone, whatever its holders do. Told again until the path is there.
    pub(super) fn path_gone(&mut self, name: &str) {
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
                "somebody removed the path of the socket; it is bound anew"
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
                tracing::warn!(socket = name, reason, "the socket cannot be bound anew");
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
                    && watcher.config().used_sockets().contains(name)
            })
            .map(|(id, _)| *id)
            .collect();
        for id in using {
            self.reload_one(id, ReloadHow::Graceful);
        }
    }

    /// Tells the task that looks at paths which there are, where the configuration is another one than before.
    pub(super) fn tell_paths(&mut self) {
        let same = |known: &Arc<Config>| Arc::ptr_eq(known, &self.config);
        if self.paths_of.as_ref().is_some_and(same) {
            return;
        }
        self.paths_of = Some(self.config.clone());
        let sockets = self.config.sockets.iter();
        let paths = sockets.filter_map(|socket| Some((socket.name.clone(), socket.path.clone()?)));
        self.paths.send_replace(paths.collect());
    }
}
