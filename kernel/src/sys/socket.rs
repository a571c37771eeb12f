//! Listening sockets, made with every option before bind.
//!
//! Source: `socket(7)`, `ip(7)`, `unix(7)`.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::sockopt::{BindToDevice, Ipv6V6Only, PeerCredentials, ReuseAddr, ReusePort};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, UnixAddr, bind, connect,
    getsockname, getsockopt, listen, setsockopt, socket,
};
use nix::sys::stat::{Mode, umask};
use papa_protocol::text::escape_control_bytes;

/// Backlog of the kernel's own listeners: callers wait here while a killed
/// kernel is replaced instead of being refused.
pub const CONTROL_BACKLOG: i32 = 4096;

/// Everything about a socket that must be said before or at bind.
#[derive(Debug, Clone)]
pub struct Options<'a> {
    /// What kind of socket.
    pub kind: SockType,
    /// Length of the accept queue; only stream and seqpacket listen.
    pub backlog: i32,
    /// Device to bind to.
    pub interface: Option<&'a str>,
    /// Several sockets may share the port.
    pub reuseport: bool,
    /// Mask for the mode of a socket file.
    pub umask: Option<u32>,
    /// Set `O_NONBLOCK`, which all holders share.
    pub nonblocking: bool,
    /// Whether an IPv6 socket leaves IPv4 to others; none: what the system has them do.
    pub v6only: Option<bool>,
}

/// Where to bind.
#[derive(Debug, Clone, Copy)]
pub enum Address<'a> {
    /// An internet address.
    Internet(SocketAddr),
    /// A path; a stale file there is the caller's to remove.
    Path(&'a Path),
    /// A name in the abstract namespace.
    Abstract(&'a [u8]),
}

/// Makes, binds and (where the kind listens) starts listening.
///
/// # Errors
/// The errno of the call that failed.
pub fn open_listener(address: Address<'_>, options: &Options<'_>) -> Result<OwnedFd, Errno> {
    let family = match address {
        Address::Internet(SocketAddr::V4(_)) => AddressFamily::Inet,
        Address::Internet(SocketAddr::V6(_)) => AddressFamily::Inet6,
        Address::Path(_) | Address::Abstract(_) => AddressFamily::Unix,
    };
    let mut flags = SockFlag::SOCK_CLOEXEC;
    if options.nonblocking {
        flags |= SockFlag::SOCK_NONBLOCK;
    }
    let fd = socket(family, options.kind, flags, None)?;
    match address {
        Address::Internet(address) => {
            setsockopt(&fd, ReuseAddr, &true)?;
            if options.reuseport {
                setsockopt(&fd, ReusePort, &true)?;
            }
            if let Some(device) = options.interface {
                setsockopt(&fd, BindToDevice, &device.into())?;
            }
            if let (SocketAddr::V6(_), Some(only)) = (address, options.v6only) {
                setsockopt(&fd, Ipv6V6Only, &only)?;
            }
            bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
        }
        Address::Path(path) => {
            let address = UnixAddr::new(path)?;
            // The mask is the process's, but so is its only thread.
            let before = options
                .umask
                .map(|mask| umask(Mode::from_bits_truncate(mask)));
            let bound = bind(fd.as_raw_fd(), &address);
            if let Some(before) = before {
                umask(before);
            }
            bound?;
        }
        Address::Abstract(name) => bind(fd.as_raw_fd(), &UnixAddr::new_abstract(name)?)?,
    }
    if matches!(options.kind, SockType::Stream | SockType::SeqPacket) {
        let backlog = Backlog::new(options.backlog).unwrap_or(Backlog::MAXALLOWABLE);
        listen(&fd, backlog)?;
    }
    Ok(fd)
}

/// The port an internet socket is bound to, 0 for others.
///
/// # Errors
/// The errno of `getsockname(2)`.
pub fn local_port(fd: impl AsFd) -> Result<u16, Errno> {
    let address: SockaddrStorage = getsockname(fd.as_fd().as_raw_fd())?;
    Ok(address
        .as_sockaddr_in()
        .map(nix::sys::socket::SockaddrIn::port)
        .or_else(|| {
            address
                .as_sockaddr_in6()
                .map(nix::sys::socket::SockaddrIn6::port)
        })
        .unwrap_or(0))
}

/// Whether someone accepts connections at the abstract `name`.
#[must_use]
pub fn abstract_answers(name: &[u8]) -> bool {
    std::os::unix::net::SocketAddr::from_abstract_name(name)
        .and_then(|address| std::os::unix::net::UnixStream::connect_addr(&address))
        .is_ok()
}

/// Who listens at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Server {
    /// The process that began to listen, where the system says it. It may have
    /// ended since and left the socket to others.
    pub pid: Option<i32>,
}

impl Server {
    /// Who that is, for people: `pid 12 (gunicorn)`. The command line is not
    /// read: it lies in that process's memory, and whoever reads it may wait
    /// for as long as that is locked.
    #[must_use]
    pub fn describe(self) -> String {
        let Some(pid) = self.pid else {
            return "a process the system does not name".to_owned();
        };
        match std::fs::read(format!("/proc/{pid}/comm")) {
            Ok(name) => format!("pid {pid} ({})", escape_control_bytes(name.trim_ascii())),
            Err(_) => format!("whoever has the socket of pid {pid}, which has ended"),
        }
    }
}

/// Asks who serves the socket at `path`, by connecting to it without waiting:
/// one that does not accept keeps nobody. Those that accept see a connection
/// that says nothing.
///
/// # Errors
/// The errno of `connect(2)` where it does not tell, such as `EACCES`.
pub fn server_at(path: &Path) -> Result<Option<Server>, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match connect(fd.as_raw_fd(), &UnixAddr::new(path)?) {
        Ok(()) => {
            let pid = getsockopt(&fd, PeerCredentials).map(|peer| peer.pid());
            Ok(Some(Server {
                // One of another pid namespace is 0.
                pid: pid.ok().filter(|pid| *pid > 0),
            }))
        }
        // The queue is full, or the socket is of another type.
        Err(Errno::EAGAIN | Errno::EPROTOTYPE) => Ok(Some(Server { pid: None })),
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Whether what is at `path` is the file that `socket` was bound to.
///
/// # Errors
/// The errno of `stat(2)` or of asking the system about the socket.
pub fn is_bound_at(socket: impl AsFd, path: &Path) -> Result<bool, Errno> {
    let file = nix::sys::stat::lstat(path)?;
    let bound = super::diag::unix_file(socket)?;
    let there = (file.st_dev, file.st_ino);
    Ok(is_same_file(bound, there, || {
        nix::sys::statfs::statfs(path).map_or(0, |system| magic(system.filesystem_type()))
    }))
}

/// File systems whose files have other devices than the file system itself: each subvolume of btrfs
/// and bcachefs, and each layer of overlayfs, has one of its own.
/// Source: `statfs(2)`, `include/uapi/linux/magic.h`.
const MAGICS_WITH_MORE_DEVICES: [u32; 3] = [0x9123_683E, 0xCA45_1A4E, 0x794C_7630];

/// Whether the device of the file system and cut inode that a socket is `bound` to are those of the
/// file that is `there`. `magic` says what file system the file is on; where its files have other
/// devices the inode decides alone, and a copy of a whole subvolume at that path is taken for the
/// original.
fn is_same_file(bound: (u64, u32), there: (u64, u64), magic: impl FnOnce() -> u32) -> bool {
    there.1 & u64::from(u32::MAX) == u64::from(bound.1)
        && (there.0 == bound.0 || MAGICS_WITH_MORE_DEVICES.contains(&magic()))
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "32 bits are in use; C libraries differ in the type"
)]
fn magic(kind: nix::sys::statfs::FsType) -> u32 {
    kind.0 as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use papa_test_hooks::patience::eventually;

    fn options() -> Options<'static> {
        Options {
            kind: SockType::Stream,
            backlog: 5,
            interface: None,
            reuseport: false,
            umask: None,
            nonblocking: false,
            v6only: None,
        }
    }

    #[test]
    fn both_wildcards_could_not_have_one_port() {
        let v6only = |v6only| Options {
            v6only: Some(v6only),
            ..options()
        };
        let every = |port| Address::Internet(SocketAddr::from(([0; 8], port)));
        let Ok(first) = open_listener(every(0), &v6only(true)) else {
            return; // a system without IPv6
        };
        let port = local_port(&first).unwrap();
        let v4 = SocketAddr::from(([0, 0, 0, 0], port));
        let second = open_listener(Address::Internet(v4), &options()).unwrap();
        drop(first);
        assert_eq!(
            open_listener(every(port), &v6only(false)).unwrap_err(),
            Errno::EADDRINUSE
        );
        drop(second);
        assert!(eventually(
            || open_listener(every(port), &v6only(false)).is_ok()
        ));
    }

    #[test]
    fn two_share_a_port_only_when_both_said_so_before_bind() {
        let shared = Options {
            reuseport: true,
            ..options()
        };
        let any = "127.0.0.1:0".parse().unwrap();
        let first = open_listener(Address::Internet(any), &shared).unwrap();
        let port = local_port(&first).unwrap();
        let same = SocketAddr::from(([127, 0, 0, 1], port));
        assert!(open_listener(Address::Internet(same), &shared).is_ok());
        assert_eq!(
            open_listener(Address::Internet(same), &options()).unwrap_err(),
            Errno::EADDRINUSE
        );
    }

    #[test]
    fn datagram_sockets_are_bound_and_do_not_listen() {
        let datagram = Options {
            kind: SockType::Datagram,
            ..options()
        };
        let any = "127.0.0.1:0".parse().unwrap();
        let fd = open_listener(Address::Internet(any), &datagram).unwrap();
        assert_ne!(local_port(&fd).unwrap(), 0);
    }
    #[test]
    fn a_socket_on_btrfs_was_taken_for_gone_from_its_path() {
        const EXT4: u32 = 0xEF53;
        const BTRFS: u32 = 0x9123_683E;
        const OVERLAYFS: u32 = 0x794C_7630;
        for (bound, there, magic, same) in [
            ((42, 257), (42, 257), EXT4, true),
            ((42, 257), (42, 258), EXT4, false),
            ((42, 257), (44, 257), EXT4, false),
            // In a subvolume, and on an upper layer of another file system.
            ((42, 257), (44, 257), BTRFS, true),
            ((45, 264), (46, 264), OVERLAYFS, true),
            ((42, 257), (44, 258), BTRFS, false),
            // The system says the lower half of the inode.
            ((42, 257), (42, (1 << 32) + 257), EXT4, true),
        ] {
            let found = is_same_file(bound, there, || magic);
            assert_eq!(found, same, "{bound:?} {there:?} {magic:x}");
        }
    }

    #[test]
    fn who_serves_a_path_is_named_without_asking_its_memory() {
        let own = Server {
            pid: Some(std::process::id().cast_signed()),
        };
        let name = std::fs::read_to_string("/proc/self/comm").unwrap();
        let pid = std::process::id();
        assert_eq!(own.describe(), format!("pid {pid} ({})", name.trim_end()));
        let gone = Server {
            pid: Some(i32::MAX),
        };
        assert!(gone.describe().contains("which has ended"));
    }

    #[test]
    fn a_path_is_served_while_anybody_listens_whatever_the_type() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        assert_eq!(server_at(&path), Ok(None));
        for kind in [SockType::Stream, SockType::Datagram, SockType::SeqPacket] {
            let options = Options {
                kind,
                backlog: 0,
                ..options()
            };
            let socket = open_listener(Address::Path(&path), &options).unwrap();
            let own = (kind == SockType::Stream).then(|| std::process::id().cast_signed());
            assert_eq!(server_at(&path), Ok(Some(Server { pid: own })), "{kind:?}");
            // The one above waits to be accepted, so that the queue is full.
            assert_eq!(server_at(&path), Ok(Some(Server { pid: None })), "{kind:?}");
            assert_eq!(is_bound_at(&socket, &path), Ok(true));
            drop(socket);
            assert!(eventually(|| server_at(&path) == Ok(None)), "{kind:?}");
            std::fs::remove_file(&path).unwrap();
        }
    }
}
