//! Many descriptors watched through one (`epoll(7)`).

use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

/// What a watched descriptor is called in reports.
pub trait Token: Sized {
    /// The number the system keeps for it.
    fn token(self) -> u64;
    /// What has this number.
    fn from_token(token: u64) -> Self;
}

/// A set of watched descriptors that is one descriptor itself.
#[derive(Debug)]
pub struct Poller<T> {
    epoll: Epoll,
    tokens: PhantomData<T>,
}

/// Most reports taken at once.
pub const MAX_REPORTS: usize = 256;

impl<T: Token> Poller<T> {
    /// An empty set.
    ///
    /// # Errors
    /// The errno of `epoll_create1(2)`.
    pub fn new() -> Result<Self, Errno> {
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            tokens: PhantomData,
        })
    }

    /// Starts watching `fd` for input.
    ///
    /// # Errors
    /// The errno of `epoll_ctl(2)`; `EEXIST` if it is watched already.
    pub fn add(&self, fd: impl AsFd, source: T) -> Result<(), Errno> {
        self.epoll
            .add(fd, EpollEvent::new(EpollFlags::EPOLLIN, source.token()))
    }

    /// Stops watching `fd`. Needed before every close: the keeper's copy
    /// would keep a closed descriptor in the set.
    pub fn remove(&self, fd: impl AsFd) {
        // Not being watched is what is wanted.
        let _ = self.epoll.delete(fd);
    }

    /// What is ready now, without waiting.
    ///
    /// # Errors
    /// The errno of `epoll_wait(2)`.
    pub fn ready(&self) -> Result<Vec<T>, Errno> {
        let mut events = [EpollEvent::empty(); MAX_REPORTS];
        let count = match self.epoll.wait(&mut events, 0u8) {
            Err(Errno::EINTR) => 0,
            other => other?,
        };
        Ok(events[..count]
            .iter()
            .map(|event| T::from_token(event.data()))
            .collect())
    }
}

impl<T> AsFd for Poller<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

impl<T> std::os::fd::AsRawFd for Poller<T> {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.epoll.0)
    }
}
