//! Asks the system who owns a TCP connection, and which file a unix socket is bound to.
//!
//! One exact lookup costs microseconds, however much else is open. A connection
//! whose owner has gone has inode 0 and says nothing about who made it.
//! Source: `sock_diag(7)`, `include/uapi/linux/inet_diag.h`,
//! `include/uapi/linux/unix_diag.h`.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Offset of the owner's uid in `struct inet_diag_msg`: 4 bytes of kinds, 48
/// of socket id, then expires, rqueue and wqueue.
const UID: usize = HEADER + 4 + 48 + 12;
/// Offset of the socket's state in it, and the state of one that is connecting.
const STATE: usize = HEADER + 1;
const SYN_SENT: u8 = 2;
const AF_UNIX: u8 = 1;
/// Asks for the file a unix socket is bound to, and the attribute that says it.
const UDIAG_SHOW_VFS: u32 = 2;
const UNIX_DIAG_VFS: u16 = 1;
/// Offset of the attributes behind `struct unix_diag_msg`.
const UNIX_ATTRIBUTES: usize = HEADER + 16;

/// Who holds the other end of a TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// Owner of the socket; meaningless when `inode` is 0.
    pub uid: u32,
    /// The socket's inode; 0 once nobody holds it.
    pub inode: u32,
    /// It has only asked to be connected yet.
    pub connecting: bool,
}

/// Asks who holds the socket whose own address is `theirs` and whose peer is
/// `ours`, both on this machine.
///
/// # Errors
/// `ENOENT` when there is no such socket, else the errno of the netlink calls.
pub fn tcp_holder(theirs: SocketAddr, ours: SocketAddr) -> Result<Holder, Errno> {
    parse(&exchange(&request(theirs, ours))?)
}

/// Device and inode of the file a unix socket was bound to, which may have
/// been removed or replaced since. The inode is cut to 32 bits.
///
/// # Errors
/// `ENOENT` when it is bound to no file, else the errno of the netlink calls.
pub fn unix_file(socket: impl AsFd) -> Result<(u64, u32), Errno> {
    let inode = nix::sys::stat::fstat(socket)?.st_ino;
    let inode = u32::try_from(inode).map_err(|_| Errno::EOVERFLOW)?;
    let mut body = vec![AF_UNIX, 0, 0, 0];
    body.extend(u32::MAX.to_ne_bytes());
    body.extend(inode.to_ne_bytes());
    body.extend(UDIAG_SHOW_VFS.to_ne_bytes());
    // No cookie.
    body.extend([0xff; 8]);
    parse_unix(&exchange(&message(&body))?)
}

/// Sends a question and receives the answer.
fn exchange(question: &[u8]) -> Result<Vec<u8>, Errno> {
    let netlink: OwnedFd = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkSockDiag,
    )?;
    sendto(
        netlink.as_raw_fd(),
        question,
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )?;
    // The answer is queued before sendto returns, so not waiting is right.
    let mut answer = vec![0u8; 1024];
    let length = recv(netlink.as_fd().as_raw_fd(), &mut answer, MsgFlags::empty())?;
    answer.truncate(length);
    Ok(answer)
}

fn request(theirs: SocketAddr, ours: SocketAddr) -> Vec<u8> {
    let mut body = Vec::with_capacity(72);
    let family: u8 = match theirs {
        SocketAddr::V4(_) => 2,
        SocketAddr::V6(_) => 10,
    };
    body.extend([family, 6, 0, 0]);
    // All states: a peer that has said all it will say is half closed.
    body.extend(u32::MAX.to_ne_bytes());
    body.extend(theirs.port().to_be_bytes());
    body.extend(ours.port().to_be_bytes());
    for address in [theirs.ip(), ours.ip()] {
        let mut field = [0u8; 16];
        match address {
            IpAddr::V4(v4) => field[..4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => field.copy_from_slice(&v6.octets()),
        }
        body.extend(field);
    }
    body.extend(0u32.to_ne_bytes());
    // No cookie.
    body.extend([0xff; 8]);
    message(&body)
}

/// The netlink message that asks for one socket.
fn message(body: &[u8]) -> Vec<u8> {
    let total = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(total.to_ne_bytes());
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    message.extend(1u32.to_ne_bytes());
    message.extend(0u32.to_ne_bytes());
    message.extend(body);
    message
}

fn parse(answer: &[u8]) -> Result<Holder, Errno> {
    check(answer)?;
    Ok(Holder {
        uid: word(answer, UID)?,
        inode: word(answer, UID + 4)?,
        connecting: answer[STATE] == SYN_SENT,
    })
}

fn parse_unix(answer: &[u8]) -> Result<(u64, u32), Errno> {
    check(answer)?;
    let mut at = UNIX_ATTRIBUTES;
    while at < answer.len() {
        let header = word(answer, at)?.to_ne_bytes();
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]);
        if kind == UNIX_DIAG_VFS {
            let device = word(answer, at + 8)?;
            // The system's own form of a device: 12 bits major, 20 minor.
            let device = nix::sys::stat::makedev(
                u64::from(device >> 20),
                u64::from(device & ((1 << 20) - 1)),
            );
            return Ok((device, word(answer, at + 4)?));
        }
        at += length.next_multiple_of(4).max(4);
    }
    Err(Errno::ENOENT)
}

/// That the answer is one.
fn check(answer: &[u8]) -> Result<(), Errno> {
    let kind = answer.get(4..6).ok_or(Errno::EBADMSG)?;
    match u16::from_ne_bytes([kind[0], kind[1]]) {
        NLMSG_ERROR => Err(Errno::from_raw(
            word(answer, HEADER)?.cast_signed().wrapping_neg(),
        )),
        SOCK_DIAG_BY_FAMILY => Ok(()),
        _ => Err(Errno::EBADMSG),
    }
}

fn word(answer: &[u8], at: usize) -> Result<u32, Errno> {
    let bytes = answer.get(at..at + 4).ok_or(Errno::EBADMSG)?;
    bytes
        .try_into()
        .map(u32::from_ne_bytes)
        .map_err(|_| Errno::EBADMSG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_connection_is_ours_and_a_closed_one_nobodys() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, theirs) = listener.accept().unwrap();
        let ours = server.local_addr().unwrap();
        let holder = tcp_holder(theirs, ours).unwrap();
        assert_eq!(holder.uid, nix::unistd::geteuid().as_raw());
        assert_ne!(holder.inode, 0);
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(tcp_holder(theirs, ours).unwrap(), holder);
        drop(client);
        assert!(tcp_holder(theirs, ours).is_err() || tcp_holder(theirs, ours).unwrap().inode == 0);
    }

    #[test]
    fn a_cut_answer_is_an_error() {
        assert_eq!(parse(&[0; 3]), Err(Errno::EBADMSG));
        assert_eq!(parse(&[0; 40]), Err(Errno::EBADMSG));
    }
    #[test]
    fn a_unix_socket_knows_its_file_after_another_took_its_path() {
        use std::os::unix::fs::MetadataExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let file = std::fs::metadata(&path).unwrap();
        let low = |inode: u64| u32::try_from(inode & u64::from(u32::MAX)).unwrap();
        let own = (file.dev(), low(file.ino()));
        assert_eq!(unix_file(&socket), Ok(own));
        std::fs::remove_file(&path).unwrap();
        let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(unix_file(&socket), Ok(own));
        let (_one, unbound) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(unix_file(&unbound), Err(Errno::ENOENT));
    }

    #[test]
    fn attributes_without_length_end() {
        let mut answer = vec![0u8; 64];
        answer[4] = 20;
        assert_eq!(parse_unix(&answer), Err(Errno::ENOENT));
        answer.truncate(37);
        assert_eq!(parse_unix(&answer), Err(Errno::EBADMSG));
    }
}
