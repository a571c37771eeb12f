//! Descriptors handed to the runtime's poll.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::poller::Poller;

/// Has the runtime watch the poller.
///
/// # Errors
/// The runtime cannot watch another descriptor.
pub fn watch<T>(poller: Rc<Poller<T>>) -> io::Result<AsyncFd<Rc<Poller<T>>>> {
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
