//! The two ways a connection's bytes travel.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll};

use bytes::Bytes;
use nix::sys::socket::MsgFlags;
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

use crate::sys::message;

/// Pieces written by one call.
const WRITE_PIECES: usize = 16;
/// Most bytes read from a caller that is not served.
const DISMISSED_BYTES: usize = 4096;

/// The two transports.
#[derive(Debug)]
pub enum Transport {
    /// TCP on the loopback interface.
    Tcp(TcpStream),
    /// A unix socket, which carries descriptors.
    Unix(UnixStream),
}

impl Transport {
    /// The socket.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }

    /// Takes a connected socket.
    ///
    /// # Errors
    /// The runtime refuses it.
    pub fn new(fd: OwnedFd, tcp: bool) -> io::Result<Self> {
        if tcp {
            let stream = std::net::TcpStream::from(fd);
            stream.set_nonblocking(true)?;
            Ok(Self::Tcp(TcpStream::from_std(stream)?))
        } else {
            let stream = std::os::unix::net::UnixStream::from(fd);
            stream.set_nonblocking(true)?;
            Ok(Self::Unix(UnixStream::from_std(stream)?))
        }
    }

    /// Waits until it can be read (if `reads`) or written (if `writes`).
    pub(super) fn poll_ready(
        &self,
        reads: bool,
        writes: bool,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if writes {
            let ready = match self {
                Self::Tcp(stream) => stream.poll_write_ready(context),
                Self::Unix(stream) => stream.poll_write_ready(context),
            };
            if ready.is_ready() {
                return ready;
            }
        }
        if reads {
            return match self {
                Self::Tcp(stream) => stream.poll_read_ready(context),
                Self::Unix(stream) => stream.poll_read_ready(context),
            };
        }
        Poll::Pending
    }

    pub(super) fn read(&self, scratch: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => {
                let length = stream.try_read(scratch)?;
                if length > 0 && length < scratch.len() {
                    // A short read has emptied the socket. Telling the runtime
                    // spares a read that would find nothing; what comes later
                    // is reported anew.
                    let _ = stream.try_io(Interest::READABLE, || {
                        Err::<(), _>(io::ErrorKind::WouldBlock.into())
                    });
                }
                Ok(length)
            }
            // A short read may only mean that the next bytes come with a descriptor.
            Self::Unix(stream) => stream.try_io(Interest::READABLE, || {
                let got = message::receive(stream.as_fd(), scratch, MsgFlags::MSG_DONTWAIT)?;
                fds.extend(got.descriptors);
                Ok(got.length)
            }),
        }
    }

    /// Sends a refusal to a caller that is not served, as far as there is room at once. The
    /// caller's input is read, since the system throws the refusal away if input is left unread.
    pub(crate) fn dismiss(self, words: &[u8]) {
        use nix::sys::socket::{Shutdown, recv, send, shutdown};
        let number = self.as_fd().as_raw_fd();
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        // A caller that has gone need not know.
        let _ = send(number, words, flags);
        let _ = shutdown(number, Shutdown::Write);
        let _ = recv(number, &mut [0; DISMISSED_BYTES], flags);
    }

    pub(super) fn write(
        &self,
        pieces: &VecDeque<Bytes>,
        fd: Option<&OwnedFd>,
    ) -> io::Result<usize> {
        let first = pieces.front().map_or(&[][..], |piece| piece);
        match (self, fd) {
            (Self::Unix(stream), Some(fd)) => stream.try_io(Interest::WRITABLE, || {
                Ok(message::send(
                    stream.as_fd(),
                    first,
                    &[fd.as_fd()],
                    MsgFlags::MSG_DONTWAIT,
                )?)
            }),
            // An answer is one piece: cheaper for the system than a list of
            // one.
            (Self::Tcp(stream), _) if pieces.len() == 1 => stream.try_write(first),
            (Self::Unix(stream), None) if pieces.len() == 1 => stream.try_write(first),
            (Self::Tcp(stream), _) => stream.try_write_vectored(&slices(pieces)),
            (Self::Unix(stream), None) => stream.try_write_vectored(&slices(pieces)),
        }
    }
}

fn slices(pieces: &VecDeque<Bytes>) -> Vec<IoSlice<'_>> {
    pieces
        .iter()
        .take(WRITE_PIECES)
        .map(|piece| IoSlice::new(piece))
        .collect()
}
