//! The kernel's end of the line to its keeper.
//!
//! A message that was sent is in the keeper's queue and survives this process, so only the first
//! fetch waits for an answer.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{MsgFlags, getsockopt, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::{Pid, getppid};

use super::wire::{ABLE_TO_LEAVE, Kept, Key, MAX_KEYS, MAX_MESSAGE, ToKeeper, ToKernel, Verdict};
use crate::sys::message;

/// How long a message to the keeper may wait for room. The keeper does
/// nothing that takes time, so a longer wait means that it is stuck.
const SEND_LIMIT_SECONDS: i64 = 5;

/// How long a killed keeper may take to be gone.
const KEEPER_END: Duration = Duration::from_secs(1);

/// The kernel's socket to the keeper.
#[derive(Debug)]
pub struct KeeperLink {
    socket: OwnedFd,
    keeper: Pid,
    /// What the keeper can do, as it has said.
    able: Cell<u8>,
    /// The keeper is gone; this process holds everything and takes its place.
    lost: Cell<bool>,
}

impl KeeperLink {
    /// Takes the socket this process was started with.
    ///
    /// # Errors
    /// The errno of `setsockopt(2)` or `getsockopt(2)` when it is not a socket.
    pub fn new(socket: OwnedFd) -> Result<Self, Errno> {
        setsockopt(
            &socket,
            sockopt::SendTimeout,
            &TimeVal::seconds(SEND_LIMIT_SECONDS),
        )?;
        let keeper = Pid::from_raw(getsockopt(&socket, sockopt::PeerCredentials)?.pid());
        Ok(Self {
            socket,
            keeper,
            able: Cell::new(0),
            lost: Cell::new(false),
        })
    }

    /// Notes that the keeper is gone. Nothing is sent any more: everything goes along when this
    /// process takes the keeper's place.
    pub fn lose(&self) {
        self.lost.set(true);
    }

    /// Whether the keeper is known to be gone.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.get()
    }

    /// Whether the keeper is gone, known or not.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        let mut fds = [PollFd::new(self.as_fd(), PollFlags::empty())];
        let closed = PollFlags::POLLHUP | PollFlags::POLLERR;
        self.is_lost()
            || poll(&mut fds, PollTimeout::ZERO).is_ok_and(|_| {
                let found = fds[0].revents();
                found.is_some_and(|found| found.intersects(closed))
            })
    }

    /// Whether the keeper ends when it is dismissed. A keeper of an earlier version has to be
    /// killed.
    #[must_use]
    pub fn keeper_leaves(&self) -> bool {
        self.able.get() & ABLE_TO_LEAVE != 0
    }

    /// Bounds how long a fetch waits for the keeper's answer.
    ///
    /// # Errors
    /// The errno of `setsockopt(2)`.
    pub fn set_answer_limit(&self, limit: Duration) -> Result<(), Errno> {
        let milliseconds = i64::try_from(limit.as_millis()).unwrap_or(i64::MAX);
        setsockopt(
            &self.socket,
            sockopt::ReceiveTimeout,
            &TimeVal::milliseconds(milliseconds),
        )
    }

    /// The process that made the line, which is this kernel's parent as long as it lives. The
    /// present parent may be another process, which must not be killed.
    #[must_use]
    pub fn keeper(&self) -> Pid {
        self.keeper
    }

    /// Kills the keeper, so that it does not wake up beside the process that takes its place. It is
    /// this process's parent as long as it lives, so its number cannot have been reused. Process 1
    /// cannot be killed; it ends by itself when it wakes up.
    pub fn end_keeper(&self) {
        let until = Instant::now() + KEEPER_END;
        while getppid() == self.keeper && self.keeper.as_raw() > 1 && Instant::now() < until {
            let _ = kill(self.keeper, Signal::SIGKILL);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// For polling, and for a vforked child to register on.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Gives the keeper copies of descriptors.
    ///
    /// # Errors
    /// `EPIPE` when the keeper has died, `EAGAIN` when it is stuck.
    pub fn put(&self, entries: &[(Key, BorrowedFd<'_>)]) -> Result<(), Errno> {
        for chunk in entries.chunks(MAX_KEYS) {
            let (keys, fds): (Vec<Key>, Vec<BorrowedFd<'_>>) = chunk.iter().copied().unzip();
            self.send(&ToKeeper::Put(keys), &fds)?;
        }
        Ok(())
    }

    /// Lets copies go.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub fn drop_keys(&self, keys: &[Key]) -> Result<(), Errno> {
        for chunk in keys.chunks(MAX_KEYS) {
            self.send(&ToKeeper::Drop(chunk.to_vec()), &[])?;
        }
        Ok(())
    }

    /// Says that this process is about to become `program`.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub fn try_program(&self, program: BorrowedFd<'_>) -> Result<(), Errno> {
        self.send(&ToKeeper::Try, &[program])
    }

    /// Sends a message without descriptors.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub fn tell(&self, message: &ToKeeper) -> Result<(), Errno> {
        self.send(message, &[])
    }

    fn send(&self, message: &ToKeeper, fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        if self.is_lost() {
            return Ok(());
        }
        message::send(&self.socket, &message.encode(), fds, MsgFlags::empty()).map(drop)
    }

    /// Fetches every kept descriptor into `kept`, and returns what became of a program that was
    /// tried before; blocks until all are here. A descriptor that `kept` had under the same key is
    /// closed when its copy arrives, so that both need not fit at once; one that the keeper does
    /// not have is closed at the end.
    ///
    /// # Errors
    /// `EPIPE` when the keeper ends meanwhile: `kept` then has what it had and what came. `EAGAIN`
    /// when it does not answer within the limit, if there is one; `EMFILE` when no descriptor fits
    /// any more.
    pub fn fetch_into(&self, kept: &mut Kept) -> Result<Option<Verdict>, Errno> {
        let mut fetched = BTreeSet::new();
        loop {
            self.tell(&ToKeeper::Fetch(fetched.last().copied()))?;
            loop {
                match self.receive(MsgFlags::empty())? {
                    Some((ToKernel::Entries(keys), descriptors)) => {
                        // If not all of them fit, the first have come and the others are asked for
                        // again.
                        if descriptors.is_empty() && !keys.is_empty() {
                            return Err(Errno::EMFILE);
                        }
                        for (key, descriptor) in keys.into_iter().zip(descriptors) {
                            fetched.insert(key);
                            kept.insert(key, descriptor);
                        }
                        break;
                    }
                    Some((ToKernel::Fetched(verdict), _)) => {
                        kept.retain(|key, _| fetched.contains(key));
                        return Ok(verdict);
                    }
                    Some((ToKernel::Able(bits), _)) => self.able.set(bits),
                    Some((ToKernel::Ping, _)) => self.tell(&ToKeeper::Pong)?,
                    // Exits and signals are sent only to a kernel that serves.
                    Some(_) => {}
                    None => return Err(Errno::EPIPE),
                }
            }
        }
    }

    /// The next message, if one is there; `Ok(None)` at end of file.
    ///
    /// # Errors
    /// `EAGAIN` when nothing is there now.
    pub fn try_receive(&self) -> Result<Option<ToKernel>, Errno> {
        Ok(self
            .receive(MsgFlags::MSG_DONTWAIT)?
            .map(|(message, _)| message))
    }

    fn receive(&self, flags: MsgFlags) -> Result<Option<(ToKernel, Vec<OwnedFd>)>, Errno> {
        let mut buffer = [0u8; MAX_MESSAGE];
        loop {
            let got = message::receive(&self.socket, &mut buffer, flags)?;
            if got.length == 0 {
                return Ok(None);
            }
            if let Some(message) = ToKernel::decode(&buffer[..got.length]) {
                return Ok(Some((message, got.descriptors)));
            }
        }
    }
}

/// Whether a message was not delivered because the keeper is gone or stuck.
#[must_use]
pub fn is_gone(told: Result<(), Errno>) -> bool {
    match told {
        Ok(()) => false,
        Err(
            Errno::EMFILE | Errno::ENFILE | Errno::ETOOMANYREFS | Errno::ENOMEM | Errno::ENOBUFS,
        ) => {
            tracing::error!("cannot send a descriptor to the keeper");
            false
        }
        Err(_) => true,
    }
}
