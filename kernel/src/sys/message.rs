//! Messages with descriptors attached, over unix sockets.
//!
//! Source: `unix(7)`, `SCM_RIGHTS`; `recvmsg(2)`, `MSG_CMSG_CLOEXEC`.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    recvmsg, sendmsg, socketpair,
};

/// Most descriptors one message may carry; the system's own limit is 253.
pub const MAX_DESCRIPTORS: usize = 128;

/// What [`receive`] found.
#[derive(Debug)]
pub struct Received {
    /// Bytes put into the buffer; 0 is end of file.
    pub length: usize,
    /// The descriptors that came with them, close-on-exec.
    pub descriptors: Vec<OwnedFd>,
    /// Descriptors or bytes were cut off by the receiver's limits.
    pub truncated: bool,
}

/// A connected pair of close-on-exec sockets that keep message boundaries.
///
/// # Errors
/// The errno of `socketpair(2)`.
pub fn seqpacket_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
}

/// Sends `bytes` with `descriptors` attached.
///
/// # Errors
/// The errno of `sendmsg(2)`; `EAGAIN` when `flags` asks not to wait.
pub fn send(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    flags: MsgFlags,
) -> Result<usize, Errno> {
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    loop {
        match sendmsg::<UnixAddr>(
            socket.as_fd().as_raw_fd(),
            &[IoSlice::new(bytes)],
            control,
            flags | MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// Receives one message (or, on a stream, what is there up to the next one
/// with descriptors) into `buffer`.
///
/// # Errors
/// The errno of `recvmsg(2)`.
pub fn receive(socket: impl AsFd, buffer: &mut [u8], flags: MsgFlags) -> Result<Received, Errno> {
    let mut space = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = loop {
        match recvmsg::<UnixAddr>(
            socket.as_fd().as_raw_fd(),
            &mut slices,
            Some(&mut space),
            flags | MsgFlags::MSG_CMSG_CLOEXEC,
        ) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(message) => break message,
        }
    };
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            for number in numbers {
                // SAFETY: the kernel has just installed this descriptor in our
                // table for this message; nobody else knows its number.
                descriptors.push(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
    }
    Ok(Received {
        length: message.bytes,
        descriptors,
        truncated: message
            .flags
            .intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_travel_and_are_close_on_exec() {
        let (a, b) = seqpacket_pair().unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        send(&a, b"x", &[write.as_fd()], MsgFlags::empty()).unwrap();
        drop(write);
        let mut buffer = [0u8; 8];
        let got = receive(&b, &mut buffer, MsgFlags::empty()).unwrap();
        assert_eq!(
            (got.length, got.descriptors.len(), got.truncated),
            (1, 1, false)
        );
        let flags = nix::fcntl::fcntl(&got.descriptors[0], nix::fcntl::FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags, libc::FD_CLOEXEC);
        nix::unistd::write(&got.descriptors[0], b"hi").unwrap();
        assert_eq!(nix::unistd::read(&read, &mut buffer).unwrap(), 2);
        drop(a);
        assert_eq!(
            receive(&b, &mut buffer, MsgFlags::empty()).unwrap().length,
            0
        );
    }
}
