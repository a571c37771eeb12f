//! The kernel's end of the line to its keeper.
//!
//! What has been sent is in the keeper's queue and survives this process, so
//! nothing waits for an answer but the first fetch.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::wire::{Kept, Key, MAX_KEYS, MAX_MESSAGE, ToKeeper, ToKernel, Verdict};
use crate::sys::message;

/// How long a message to the keeper may wait for room. The keeper does
/// nothing that takes time, so a longer wait means that it is stuck.
const SEND_LIMIT_SECONDS: i64 = 5;

/// The kernel's socket to the keeper.
#[derive(Debug)]
pub struct KeeperLink {
    socket: OwnedFd,
}

impl KeeperLink {
    /// Takes the socket this process was started with.
    ///
    /// # Errors
    /// The errno of `setsockopt(2)` when it is not a socket.
    pub fn new(socket: OwnedFd) -> Result<Self, Errno> {
        setsockopt(
            &socket,
            sockopt::SendTimeout,
            &TimeVal::seconds(SEND_LIMIT_SECONDS),
        )?;
        Ok(Self { socket })
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
        message::send(&self.socket, &message.encode(), fds, MsgFlags::empty()).map(drop)
    }

    /// Fetches every kept descriptor, and what became of a program that was
    /// tried before; blocks until all are here.
    ///
    /// # Errors
    /// `EPIPE` when the keeper goes away meanwhile.
    pub fn fetch_all(&self) -> Result<(Kept, Option<Verdict>), Errno> {
        let mut kept = Vec::new();
        let mut after = None;
        loop {
            self.tell(&ToKeeper::Fetch(after))?;
            loop {
                match self.receive(MsgFlags::empty())? {
                    Some((ToKernel::Entries(keys), descriptors)) => {
                        if keys.len() != descriptors.len() {
                            return Err(Errno::EMFILE);
                        }
                        after = keys.last().copied().or(after);
                        kept.extend(keys.into_iter().zip(descriptors));
                        break;
                    }
                    Some((ToKernel::Fetched(verdict), _)) => return Ok((kept, verdict)),
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

/// Tells a service manager that asked for it (`NOTIFY_SOCKET`) that the
/// daemon serves. Source: `sd_notify(3)`.
pub fn notify_service_manager() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let text = format!("READY=1\nMAINPID={}", std::process::id());
    let Ok(socket) = std::os::unix::net::UnixDatagram::unbound() else {
        return;
    };
    // Nobody listening is the service manager's affair.
    if let Some(name) = path.as_bytes().strip_prefix(b"@") {
        use std::os::linux::net::SocketAddrExt;
        if let Ok(address) = std::os::unix::net::SocketAddr::from_abstract_name(name) {
            let _ = socket.send_to_addr(text.as_bytes(), &address);
        }
    } else {
        let _ = socket.send_to(text.as_bytes(), &path);
    }
}
