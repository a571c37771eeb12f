//! Processes that were told to end: a verb says "ended" when they have.
//!
//! A daemon closes its sockets before it is gone, and whoever removes its directory or starts the
//! next one must not meet it any more. Processes are opened while they still answer, so that a
//! number that is used again is never waited for.
//! Source: `pidfd_open(2)`, `poll(2)`.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use papa_system::sys;

use crate::tree;

/// What the names of our processes begin with. A daemon in another pid namespace tells a number that
/// is somebody else's here; it is not waited for.
const NAME: &str = "papa";

/// Processes that are about to end.
#[derive(Debug)]
pub struct Departing(Vec<(u32, OwnedFd)>);

impl Departing {
    /// Those of `pids` that run here.
    #[must_use]
    pub fn of(pids: impl IntoIterator<Item = u32>) -> Self {
        let open = |pid: u32| {
            let number = i32::try_from(pid).ok().filter(|number| *number > 0)?;
            let pidfd = sys::pidfd_open(number).ok()?;
            let name = tree::stat(number)?.command;
            name.starts_with(NAME).then_some((pid, pidfd))
        };
        Self(pids.into_iter().filter_map(open).collect())
    }

    /// Waits until all have ended, at most until `deadline`. Answers the first that still runs.
    #[must_use]
    pub fn wait(&self, deadline: Instant) -> Option<u32> {
        let lives = |(_, pidfd): &&(u32, OwnedFd)| !has_ended(pidfd, deadline);
        self.0.iter().find(lives).map(|(pid, _)| *pid)
    }
}

fn has_ended(pidfd: &OwnedFd, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let patience = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut watched = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut watched, patience) {
            Err(Errno::EINTR) => {}
            Ok(0) | Err(_) => return false,
            Ok(_) => return true,
        }
    }
}
