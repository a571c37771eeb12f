//! A connected socket that carries bytes and, on a unix socket, descriptors.
//!
//! Owns the system calls of the client and who is let in on the other end. Never blocks; everything
//! received is close-on-exec.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bytes::BytesMut;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::{Interest, Ready};
use tokio::net::{TcpStream, UnixStream};

use papa_protocol::limits::MAX_PENDING_DESCRIPTORS_PER_SESSION;

use crate::address::Address;
use crate::server_user;

/// Bytes read at once while a descriptor may come; replies that carry one are short.
const DESCRIPTOR_READ_BYTES: usize = 16 << 10;

/// Room for descriptors in one read. The kernel sends one per message; a read may see no more than
/// one message's.
const DESCRIPTOR_SPACE: usize = rustix::cmsg_space!(ScmRights(MAX_PENDING_DESCRIPTORS_PER_SESSION));

#[derive(Debug)]
pub(super) enum Transport {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Transport {
    /// Connects and checks who listens there.
    pub(super) async fn connect(address: &Address) -> io::Result<Self> {
        match address {
            Address::Unix(path) => Self::checked(UnixStream::connect(path).await?),
            Address::Abstract(name) => {
                use std::os::unix::ffi::OsStringExt as _;
                let mut path = vec![0];
                path.extend_from_slice(name);
                // A leading NUL means the abstract namespace to tokio.
                let path = std::ffi::OsString::from_vec(path);
                Self::checked(UnixStream::connect(path).await?)
            }
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
        }
    }

    /// Anyone may listen under a name in the abstract namespace or in a shared directory, and what
    /// a kernel is told are commands and secrets: it must be ours or root's.
    fn checked(stream: UnixStream) -> io::Result<Self> {
        let peer = stream.peer_cred()?.uid();
        let own = rustix::process::geteuid().as_raw();
        if peer != own && peer != 0 {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("the listener belongs to uid {peer}, expected uid {own} or root"),
            ));
        }
        Ok(Self::Unix(stream))
    }

    /// Checks who is at the other end of a TCP connection, once something was heard from there.
    pub(super) fn check_server(&self) -> io::Result<()> {
        match self {
            // Checked when it was connected.
            Self::Unix(_) => Ok(()),
            Self::Tcp(stream) => server_user::check(stream),
        }
    }

    /// Whether descriptors can be passed.
    pub(super) fn passes_descriptors(&self) -> bool {
        matches!(self, Self::Unix(_))
    }

    /// # Cancel safety
    /// Cancel safe: nothing is consumed.
    pub(super) async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        match self {
            Self::Unix(stream) => stream.ready(interest).await,
            Self::Tcp(stream) => stream.ready(interest).await,
        }
    }

    /// Appends what has arrived to `buffer`; 0 is the end.
    pub(super) fn try_read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.try_read_buf(buffer),
            Self::Tcp(stream) => stream.try_read_buf(buffer),
        }
    }

    /// As [`Self::try_read`], also collecting descriptors, which the plain read would close.
    pub(super) fn try_read_with_descriptors(
        &self,
        buffer: &mut BytesMut,
        descriptors: &mut VecDeque<OwnedFd>,
    ) -> io::Result<usize> {
        let Self::Unix(stream) = self else {
            return self.try_read(buffer);
        };
        stream.try_io(Interest::READABLE, || {
            let mut bytes = [0; DESCRIPTOR_READ_BYTES];
            let mut space = [MaybeUninit::uninit(); DESCRIPTOR_SPACE];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let received = recvmsg(
                stream.as_fd(),
                &mut [IoSliceMut::new(&mut bytes)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
            )?;
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    descriptors.extend(fds);
                }
            }
            if received.flags.contains(ReturnFlags::CTRUNC) {
                // Some were lost, most likely for want of free numbers; which reply they belonged
                // to is unknown.
                return Err(io::Error::other(
                    "a descriptor was lost on arrival (EMFILE?)",
                ));
            }
            let read = received.bytes.min(bytes.len());
            buffer.extend_from_slice(&bytes[..read]);
            Ok(read)
        })
    }

    /// Writes some of `bytes`.
    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.try_write(bytes),
            Self::Tcp(stream) => stream.try_write(bytes),
        }
    }

    /// Writes some of `bytes`, the descriptor with the first of them.
    pub(super) fn try_write_with_descriptor(
        &self,
        bytes: &[u8],
        descriptor: BorrowedFd<'_>,
    ) -> io::Result<usize> {
        let Self::Unix(stream) = self else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        stream.try_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let descriptors = [descriptor];
            if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
                return Err(io::Error::other("no room for a descriptor"));
            }
            let sent = sendmsg(
                stream.as_fd(),
                &[IoSlice::new(bytes)],
                &mut ancillary,
                SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            )?;
            Ok(sent)
        })
    }
}
