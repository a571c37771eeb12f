//! What is known of the sockets: which cannot be made, which are being made or bound anew, and
//! which files at their paths are theirs.
//!
//! Leaves to others: making and binding (`tasks`), and what a missing socket means for watchers
//! (`gates`).
//! Invariants: one retry is under way at a time, and one binding per socket; a socket that is no
//! longer in the configuration is not retried.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use crate::config::{Config, SocketConfig};

/// A file by its device and inode.
pub(super) type FileId = (u64, u64);

/// Sockets that workers cannot be given now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::supervisor) struct Missing {
    /// By name: why it cannot be made, for people.
    troubles: BTreeMap<String, String>,
    /// A fresh kernel has not been asked for the sockets yet, so none is there.
    all: bool,
}

impl Missing {
    /// The first of `used` that is missing, with the reason, for people.
    pub(in crate::supervisor) fn first_of(&self, used: &BTreeSet<String>) -> Option<String> {
        if self.all {
            let name = used.first()?;
            return Some(format!("socket {name}: it is not made yet"));
        }
        let mut troubles = self.troubles.iter();
        let (name, reason) = troubles.find(|(name, _)| used.contains(*name))?;
        Some(format!("socket {name}: {reason}"))
    }

    /// Whether no socket is missing.
    pub(in crate::supervisor) fn is_empty(&self) -> bool {
        self.troubles.is_empty() && !self.all
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct Sockets {
    missing: Missing,
    /// Those in trouble are being made again.
    retrying: bool,
    /// Unix sockets that are being bound anew.
    binding: BTreeSet<String>,
    /// Files at the paths of unix sockets that are those sockets, as far as is known.
    own_files: BTreeMap<String, FileId>,
    /// For the task that looks whether the paths are there.
    paths: watch::Sender<Vec<(String, PathBuf)>>,
    /// The configuration the paths are from.
    paths_of: Option<Arc<Config>>,
}

impl Sockets {
    /// What workers cannot be given now.
    pub(in crate::supervisor) fn missing(&self) -> &Missing {
        &self.missing
    }

    /// Why sockets cannot be made, by name, for people.
    pub(in crate::supervisor) fn troubles(&self) -> &BTreeMap<String, String> {
        &self.missing.troubles
    }

    /// The kernel holds none of them any more.
    pub(in crate::supervisor) fn lose(&mut self) {
        self.missing.all = true;
    }

    /// A kernel was asked for all sockets.
    pub(in crate::supervisor) fn made(&mut self) {
        self.missing.all = false;
    }

    /// The kernel was asked for sockets; these it could not make, and why. Answers those that are
    /// available again.
    pub(super) fn told(&mut self, troubles: BTreeMap<String, String>) -> Vec<String> {
        for (socket, reason) in &troubles {
            if self.missing.troubles.get(socket) != Some(reason) {
                tracing::warn!(
                    socket,
                    reason,
                    "the socket cannot be made; its watchers wait"
                );
            }
        }
        let before = std::mem::replace(&mut self.missing.troubles, troubles);
        let troubles = &self.missing.troubles;
        let available = before
            .into_keys()
            .filter(|name| !troubles.contains_key(name));
        available.collect()
    }

    /// The sockets to make again now; none while a retry is under way or no kernel is
    /// `attached`.
    pub(super) fn retry(&mut self, config: &Config, attached: bool) -> Vec<SocketConfig> {
        let is_known = |name: &String| config.sockets.iter().any(|socket| socket.name == *name);
        self.missing.troubles.retain(|name, _| is_known(name));
        if !attached || self.retrying {
            return Vec::new();
        }
        let sockets = config.sockets.iter();
        let failed = sockets.filter(|socket| self.missing.troubles.contains_key(&socket.name));
        let failed: Vec<SocketConfig> = failed.cloned().collect();
        self.retrying = !failed.is_empty();
        failed
    }

    /// The retry of these is over; some have failed. Answers all troubles there are then: others
    /// may have come up meanwhile.
    pub(super) fn retried(
        &mut self,
        tried: &[String],
        failed: BTreeMap<String, String>,
    ) -> BTreeMap<String, String> {
        self.retrying = false;
        let mut troubles = self.missing.troubles.clone();
        troubles.retain(|name, _| !tried.contains(name));
        troubles.extend(failed);
        troubles
    }

    /// A change has lost these, and why they cannot be made now.
    pub(in crate::supervisor) fn lost(&mut self, lost: BTreeMap<String, String>) {
        self.missing.troubles.extend(lost);
    }

    /// Whether the kernel is to be asked if this file, at the path of a socket, is that socket.
    pub(super) fn is_file_unknown(&self, name: &str, file: FileId) -> bool {
        self.own_files.get(name) != Some(&file)
            && !self.missing.troubles.contains_key(name)
            && !self.binding.contains(name)
    }

    /// This file is the socket, or the kernel does not know.
    pub(super) fn know_file(&mut self, name: String, file: FileId) {
        self.own_files.insert(name, file);
    }

    /// Begins to bind a socket anew; false if that is under way, or the socket is in trouble.
    pub(super) fn begin_binding(&mut self, name: &str) -> bool {
        !self.missing.troubles.contains_key(name) && self.binding.insert(name.to_owned())
    }

    /// A socket is bound anew, or cannot be.
    pub(super) fn bound(&mut self, name: &str, result: &Result<(), String>) {
        self.binding.remove(name);
        if let Err(reason) = result {
            let troubles = &mut self.missing.troubles;
            troubles.insert(name.to_owned(), reason.clone());
        }
    }

    /// The paths of unix sockets, whenever they change.
    pub(in crate::supervisor) fn watch_paths(&self) -> watch::Receiver<Vec<(String, PathBuf)>> {
        self.paths.subscribe()
    }

    /// Publishes the paths of `config`, if that is another configuration than before.
    pub(super) fn publish_paths(&mut self, config: &Arc<Config>) {
        let same = |known: &Arc<Config>| Arc::ptr_eq(known, config);
        if self.paths_of.as_ref().is_some_and(same) {
            return;
        }
        self.paths_of = Some(config.clone());
        let sockets = config.sockets.iter();
        let paths = sockets.filter_map(|socket| Some((socket.name.clone(), socket.path.clone()?)));
        let paths: Vec<_> = paths.collect();
        self.own_files
            .retain(|name, _| paths.iter().any(|(known, _)| known == name));
        self.paths.send_replace(paths);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Surroundings, load};

    fn config(sections: &str) -> Arc<Config> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("test.ini");
        std::fs::write(&path, sections).unwrap();
        Arc::new(load(&path, &Surroundings::current().unwrap()).unwrap())
    }

    fn troubles(name: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(name.to_owned(), "port in use".to_owned())])
    }

    #[test]
    fn one_retry_is_under_way_at_a_time_and_none_of_a_socket_that_is_gone() {
        let with = config("[socket:web]\nhost = 127.0.0.1\nport = 0\n");
        let without = config("[socket:other]\nhost = 127.0.0.1\nport = 0\n");
        let mut sockets = Sockets::default();
        assert!(sockets.retry(&with, true).is_empty(), "nothing is missing");
        assert_eq!(sockets.told(troubles("web")), Vec::<String>::new());
        assert!(sockets.retry(&with, false).is_empty(), "there is no kernel");
        assert_eq!(sockets.retry(&with, true).len(), 1);
        assert!(sockets.retry(&with, true).is_empty(), "one is under way");
        sockets.lost(troubles("later"));
        let left = sockets.retried(&["web".to_owned()], BTreeMap::new());
        assert_eq!(left, troubles("later"), "it came up during the retry");
        assert_eq!(sockets.told(BTreeMap::new()), ["later", "web"]);
        assert!(sockets.missing().is_empty());
        sockets.told(troubles("web"));
        assert!(sockets.retry(&without, true).is_empty());
        assert!(sockets.missing().is_empty(), "it is no longer configured");
    }

    #[test]
    fn what_is_missing_names_the_socket_and_the_reason() {
        let mut sockets = Sockets::default();
        let used = BTreeSet::from(["web".to_owned()]);
        assert_eq!(sockets.missing().first_of(&used), None);
        sockets.lose();
        let missing = sockets.missing().first_of(&used);
        assert_eq!(missing.as_deref(), Some("socket web: it is not made yet"));
        assert_eq!(sockets.missing().first_of(&BTreeSet::new()), None);
        sockets.made();
        sockets.told(troubles("web"));
        let missing = sockets.missing().first_of(&used);
        assert_eq!(missing.as_deref(), Some("socket web: port in use"));
    }

    #[test]
    fn a_path_is_bound_once_at_a_time_and_its_file_asked_about_once() {
        let mut sockets = Sockets::default();
        assert!(sockets.is_file_unknown("web", (1, 2)));
        sockets.know_file("web".to_owned(), (1, 2));
        assert!(!sockets.is_file_unknown("web", (1, 2)));
        assert!(sockets.is_file_unknown("web", (1, 3)), "another file");
        assert!(sockets.begin_binding("web"));
        assert!(!sockets.begin_binding("web"));
        assert!(!sockets.is_file_unknown("web", (1, 3)), "it is replaced");
        sockets.bound("web", &Err("no such directory".to_owned()));
        assert!(!sockets.begin_binding("web"), "it is retried with others");
        assert!(sockets.troubles().contains_key("web"));
    }

    #[test]
    fn paths_are_published_once_per_configuration() {
        let first =
            config("[socket:a]\npath = /tmp/a.sock\n[socket:b]\nhost = 127.0.0.1\nport = 0\n");
        let mut sockets = Sockets::default();
        let mut paths = sockets.watch_paths();
        sockets.publish_paths(&first);
        assert!(paths.has_changed().unwrap());
        let published = paths.borrow_and_update().clone();
        assert_eq!(published, [("a".to_owned(), PathBuf::from("/tmp/a.sock"))]);
        sockets.know_file("a".to_owned(), (1, 2));
        sockets.publish_paths(&first);
        assert!(!paths.has_changed().unwrap());
        sockets.publish_paths(&config("[socket:c]\npath = /tmp/c.sock\n"));
        assert!(sockets.is_file_unknown("a", (1, 2)), "a is forgotten");
    }
}
