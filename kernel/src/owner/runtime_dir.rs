//! Keeps the private socket's path alive: the runtime directory may be cleaned up while a daemon
//! runs for months.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{SockType, UnixAddr, getsockname};
use tracing::{info, warn};

use super::Owner;
use crate::client::server::Listener;
use crate::config::make_runtime_dir;
use crate::keeper::wire::{Key, Kind};
use crate::sys::socket::{Address, CONTROL_BACKLOG, Options, open_listener};
use crate::world::deadline::Deadline;

/// Time between two checks of the path.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

impl Owner {
    /// Starts to check the path, if there is one.
    pub(super) fn look_after_runtime_dir(&mut self) {
        if self.world.config.port != 0 && !self.world.config.socket_paths.is_empty() {
            self.world.agenda.after(LOOK_INTERVAL, Deadline::RuntimeDir);
        }
    }

    /// Makes the directory and the socket anew if they are gone.
    pub(super) fn on_runtime_dir(&mut self, now: Instant) {
        self.world
            .agenda
            .at(now + LOOK_INTERVAL, Deadline::RuntimeDir);
        let Some(path) = self.world.config.socket_paths.first().cloned() else {
            return;
        };
        if path.exists() {
            return;
        }
        match self.bind_again(&path) {
            Ok(()) => {
                self.runtime_dir_trouble = None;
                info!(path = %path.display(), "private socket bound again");
            }
            // It is tried every ten seconds and logged once.
            Err(error) if self.runtime_dir_trouble.as_ref() == Some(&error) => {}
            Err(error) => {
                warn!(path = %path.display(), error, "private socket is gone");
                self.runtime_dir_trouble = Some(error);
            }
        }
    }

    fn bind_again(&mut self, path: &Path) -> Result<(), String> {
        if let Some(dir) = path.parent() {
            make_runtime_dir(dir)?;
        }
        let options = Options {
            kind: SockType::Stream,
            backlog: CONTROL_BACKLOG,
            interface: None,
            reuseport: false,
            umask: Some(0o177),
            nonblocking: true,
            v6only: None,
        };
        let fd = open_listener(Address::Path(path), &options)
            .map_err(|errno| errno.desc().to_owned())?;
        let id = self
            .world
            .fixed
            .controls
            .iter()
            .map(|(id, _)| id + 1)
            .max()
            .unwrap_or(0);
        let copy = fd.try_clone().map_err(|error| error.to_string())?;
        let listener = Listener::new(copy, false).map_err(|error| error.to_string())?;
        // It is served even if the keeper gets no copy, since the path leads to it now.
        let _ = self.keep(&[(Key::new(Kind::CONTROL, id), fd.as_fd())]);
        self.retire_listener(path);
        self.world.fixed.controls.push((id, fd));
        if let Some(server) = self.server.clone() {
            server.serve(listener);
        }
        Ok(())
    }

    /// Closes the listener that the path does not lead to any more.
    fn retire_listener(&mut self, path: &Path) {
        let controls = std::mem::take(&mut self.world.fixed.controls);
        let (old, others): (Vec<_>, Vec<_>) =
            controls.into_iter().partition(|(_, fd)| is_at(fd, path));
        self.world.fixed.controls = others;
        let keys: Vec<Key> = old
            .iter()
            .map(|(id, _)| Key::new(Kind::CONTROL, *id))
            .collect();
        self.world.unkeep(&keys);
        if let Some(server) = &self.server {
            server.retire(path);
        }
    }
}

/// Whether a socket was bound to `path`, whatever is there now.
fn is_at(socket: &OwnedFd, path: &Path) -> bool {
    getsockname::<UnixAddr>(socket.as_raw_fd()).is_ok_and(|address| address.path() == Some(path))
}
