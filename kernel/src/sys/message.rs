//! Messages with descriptors attached, over unix sockets.
//!
//! Source: `unix(7)`, `SCM_RIGHTS`; `recvmsg(2)`, `MSG_CMSG_CLOEXEC`.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socketpair,
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

/// Room for the descriptors of one message, aligned as the system writes it.
#[repr(C)]
union Control {
    header: libc::cmsghdr,
    bytes: [u8; CONTROL_BYTES],
}

// SAFETY: only computes.
#[allow(clippy::cast_possible_truncation, reason = "some hundred bytes")]
const CONTROL_BYTES: usize =
    unsafe { libc::CMSG_SPACE((MAX_DESCRIPTORS * size_of::<RawFd>()) as u32) } as usize;

/// Receives one message (or, on a stream, what is there up to the next one
/// with descriptors) into `buffer`. Descriptors for which there is no room, here
/// or in this process's table, are closed by the system; those before them come.
///
/// A peer that closed with something of ours unread is told of by ECONNRESET,
/// once and before what it had sent; that is read all the same, and then the end.
///
/// # Errors
/// The errno of `recvmsg(2)`.
pub fn receive(socket: impl AsFd, buffer: &mut [u8], flags: MsgFlags) -> Result<Received, Errno> {
    let mut control = Control {
        bytes: [0; CONTROL_BYTES],
    };
    let mut slice = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: all zeroes is a message without anything.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = CONTROL_BYTES as _;
    let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
    let length = loop {
        // SAFETY: the message names memory of the lengths it says, which lives
        // until the call is over and is borrowed by nobody else.
        let result =
            unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, flags.bits()) };
        match Errno::result(result) {
            Err(Errno::EINTR | Errno::ECONNRESET) => {}
            other => break other?.cast_unsigned(),
        }
    };
    Ok(Received {
        length,
        descriptors: take_descriptors(&message),
        truncated: message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0,
    })
}

/// The descriptors that came with `message`, also where some did not. The
/// `nix` crate tells of none then, and they would stay open unowned.
fn take_descriptors(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut descriptors = Vec::new();
    // SAFETY: the system has filled in the message; its control bytes are still
    // there, and the macros stay within the length it gave. A number it names is
    // new in our table, and nobody else knows it.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let bytes =
                    ((*header).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
                let numbers = libc::CMSG_DATA(header).cast::<RawFd>();
                for index in 0..bytes / size_of::<RawFd>() {
                    let number = numbers.add(index).read_unaligned();
                    descriptors.push(OwnedFd::from_raw_fd(number));
                }
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    descriptors
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::OFlag;
    use papa_test_hooks::patience::eventually;

    #[test]
    fn descriptors_travel_and_are_close_on_exec() {
        let (a, b) = seqpacket_pair().unwrap();
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
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

    #[test]
    fn last_words_are_heard_though_the_peer_left_something_unread() {
        let (a, b) = seqpacket_pair().unwrap();
        send(&b, b"unread", &[], MsgFlags::empty()).unwrap();
        send(&a, b"last words", &[], MsgFlags::empty()).unwrap();
        drop(a);
        let mut buffer = [0u8; 16];
        let mut heard =
            || receive(&b, &mut buffer, MsgFlags::MSG_DONTWAIT).map(|received| received.length);
        assert_eq!(heard(), Ok(10));
        assert!(eventually(|| heard() == Ok(0)));
    }

    #[test]
    fn those_that_fit_come_and_the_others_are_closed() {
        let (a, b) = seqpacket_pair().unwrap();
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        let count = MAX_DESCRIPTORS + 72;
        send(&a, b"x", &vec![write.as_fd(); count], MsgFlags::empty()).unwrap();
        drop(write);
        let mut buffer = [0u8; 8];
        let got = receive(&b, &mut buffer, MsgFlags::empty()).unwrap();
        assert!(got.truncated);
        // What fills the alignment may let one more in.
        let came = got.descriptors.len();
        assert!(
            (MAX_DESCRIPTORS..=MAX_DESCRIPTORS + 1).contains(&came),
            "{came}"
        );
        // Nobody has a copy that nobody owns.
        drop(got);
        assert_eq!(nix::unistd::read(&read, &mut buffer), Ok(0));
    }
}
