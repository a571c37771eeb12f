//! Descriptors handed to the runtime's poll.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::world::live::Poller;

/// Has the runtime watch the poller.
///
/// # Errors
/// The runtime cannot watch another descriptor.
pub fn watch(poller: Poller) -> io::Result<AsyncFd<Poller>> {
    // SAFETY: a Poller owns its epoll descriptor from its making to its drop
    // and always answers the same number.
    unsafe { AsyncFd::register_with_interest(poller, Interest::READABLE) }
        .map_err(|error| error.into_parts().1)
}

/// Has the runtime tell when `fd` can be read.
///
/// # Errors
/// The runtime cannot watch another descriptor.
pub fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd keeps its number from its making to its drop.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }
        .map_err(|error| error.into_parts().1)
}
