//! What keeps a socket from being bound: the process behind "address already in use", a connection
//! that still has the port, an address that no interface has, something at the path.
//!
//! Owns the way from an address to a process: the system's tables of sockets say the inode,
//! `/proc/PID/fd` says who has it. Only looks, and everything it reads may be gone the next moment:
//! an answer is for people, nothing is decided by it.
//! Source: `proc_pid_fd(5)`, `proc_pid_net(5)`; `net/ipv4/tcp_ipv4.c` and `net/ipv6/tcp_ipv6.c` of
//! Linux for the columns.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// Most bytes read of one of the system's tables.
const MAX_TABLE_BYTES: u64 = 8 * 1024 * 1024;
/// Most processes looked at.
const MAX_PROCESSES: usize = 32_768;
/// Longest command shown, in characters.
const MAX_COMMAND_CHARS: usize = 60;
/// State of a listening TCP socket, and of an unconnected UDP one, in those tables.
const LISTENING: [&str; 2] = ["0A", "07"];
/// State of a connection that is over and keeps its port for a minute.
const TIME_WAIT: &str = "06";

/// Who holds an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its process, where it could be found: those of other users only by root.
    pub pid: Option<i32>,
    /// Its command line, control characters and all.
    pub command: String,
    /// The user who opened the socket, if the table says so.
    pub uid: Option<u32>,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.pid, self.uid) {
            (Some(pid), _) => write!(f, "{} (pid {pid})", self.command),
            (None, Some(uid)) => write!(f, "a process of user {uid}, which only root can name"),
            (None, None) => f.write_str("a process that cannot be named"),
        }
    }
}

/// An address that somebody else has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sought {
    /// None: a name that was not looked up; anybody at the port may be in the way.
    pub address: Option<IpAddr>,
    /// Its port.
    pub port: u16,
    /// UDP, otherwise TCP.
    pub datagram: bool,
}

/// Who listens where it is in the way of `sought`: at the address itself, else at a wildcard that
/// includes it or that it includes.
#[must_use]
pub fn of_address(sought: &Sought) -> Option<Holder> {
    let is_listening = |socket: &Socket| LISTENING.contains(&socket.state.as_str());
    let (uid, inodes) = hindering(sought, is_listening)?;
    holder(&inodes, Some(uid))
}

/// The connection that has the port where nobody listens, as a sentence about the address.
#[must_use]
pub fn of_connection(sought: &Sought) -> Option<String> {
    let is_open =
        |socket: &Socket| socket.state != TIME_WAIT && !LISTENING.contains(&socket.state.as_str());
    if let Some((uid, inodes)) = hindering(sought, is_open) {
        // A connection that its program has closed has no inode any more.
        let holder = holder(&inodes, Some(uid)).filter(|holder| holder.pid.is_some());
        let by = holder.map_or_else(String::new, |holder| format!(" of {holder}"));
        return Some(format!("is taken by a connection{by}"));
    }
    hindering(sought, |socket| socket.state == TIME_WAIT).map(|_| {
        "is taken by a connection that has ended (TIME_WAIT); the system gives the port free within a minute".to_owned()
    })
}

/// Says so where `address` cannot be bound because no interface of this machine has it.
#[must_use]
pub fn not_here(address: IpAddr) -> Option<String> {
    let error = std::net::UdpSocket::bind((address, 0)).err()?;
    (error.kind() == std::io::ErrorKind::AddrNotAvailable)
        .then(|| "cannot be bound: no network interface of this machine has the address".to_owned())
}

/// What keeps a unix socket from being bound at `path`, as a sentence about the path; none where it
/// is a socket that somebody serves.
#[must_use]
pub fn of_path(path: &Path) -> Option<String> {
    let directory = path.parent()?;
    match fs::metadata(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let directory = directory.display();
            return Some(format!(
                "cannot be bound: there is no directory {directory}"
            ));
        }
        Ok(found) if !found.is_dir() => {
            let directory = directory.display();
            return Some(format!("cannot be bound: {directory} is no directory"));
        }
        _ => {}
    }
    let kind = fs::symlink_metadata(path).ok()?.file_type();
    let what = if kind.is_socket() {
        return None;
    } else if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_dir() {
        "a directory"
    } else {
        "a file that is no socket"
    };
    Some(format!(
        "cannot be bound: {what} is there; remove it, or use another path"
    ))
}

/// User and inodes of the sockets that are in the way of `sought` most surely.
fn hindering(sought: &Sought, wanted: impl Fn(&Socket) -> bool) -> Option<(u32, BTreeSet<u64>)> {
    let tables = if sought.datagram {
        ["/proc/net/udp", "/proc/net/udp6"]
    } else {
        ["/proc/net/tcp", "/proc/net/tcp6"]
    };
    let mut found: BTreeMap<Hindrance, (u32, BTreeSet<u64>)> = BTreeMap::new();
    for table in tables {
        for line in read(Path::new(table)).lines().skip(1) {
            if let Some(socket) = Socket::parse(line)
                && let Some(hindrance) = socket.hinders(sought)
                && wanted(&socket)
            {
                let (_, inodes) = found
                    .entry(hindrance)
                    .or_insert_with(|| (socket.uid, BTreeSet::new()));
                inodes.insert(socket.inode);
            }
        }
    }
    found.into_values().next()
}

/// How a socket is in the way, the surest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Hindrance {
    /// It has the very address.
    Same,
    /// One of the two is the wildcard of their family.
    Wildcard,
    /// One is `::`, which may take IPv4 too, and the other an IPv4 address.
    BothFamilies,
}

/// One line of the tables.
#[derive(Debug, PartialEq, Eq)]
struct Socket {
    /// Two hexadecimal digits. Source: `include/net/tcp_states.h` of Linux.
    state: String,
    address: IpAddr,
    port: u16,
    uid: u32,
    inode: u64,
}

impl Socket {
    /// `sl local remote st queues tr tm retr uid timeout inode`.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let local = words.nth(1)?;
        let state = words.nth(1)?;
        let (address, port) = local.rsplit_once(':')?;
        Some(Self {
            state: state.to_owned(),
            address: address_of(address)?,
            port: u16::from_str_radix(port, 16).ok()?,
            uid: words.nth(3)?.parse().ok()?,
            inode: words.nth(1)?.parse().ok()?,
        })
    }

    fn hinders(&self, sought: &Sought) -> Option<Hindrance> {
        if self.port != sought.port {
            return None;
        }
        let Some(wanted) = sought.address.map(|address| address.to_canonical()) else {
            return Some(Hindrance::Wildcard);
        };
        let own = self.address.to_canonical();
        let any_v6 = |address: IpAddr| address.is_ipv6() && address.is_unspecified();
        if own == wanted {
            Some(Hindrance::Same)
        } else if own.is_ipv4() == wanted.is_ipv4() {
            (own.is_unspecified() || wanted.is_unspecified()).then_some(Hindrance::Wildcard)
        } else {
            (any_v6(own) || any_v6(wanted)).then_some(Hindrance::BothFamilies)
        }
    }
}

/// An address as the tables have it: 32 bits at a time, in the machine's order.
fn address_of(text: &str) -> Option<IpAddr> {
    let part = |index: usize| {
        let digits = text.get(index * 8..index * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    match text.len() {
        8 => Some(IpAddr::from(part(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (index, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&part(index)?);
            }
            Some(IpAddr::from(bytes))
        }
        _ => None,
    }
}

fn holder(inodes: &BTreeSet<u64>, uid: Option<u32>) -> Option<Holder> {
    if inodes.is_empty() {
        return None;
    }
    let links: Vec<String> = inodes
        .iter()
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let mut pids: Vec<i32> = fs::read_dir("/proc")
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .take(MAX_PROCESSES)
        .collect();
    // The oldest is the one that opened it, most of the time.
    pids.sort_unstable();
    let has = |pid: &i32| {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
            return false;
        };
        descriptors.flatten().any(|descriptor| {
            fs::read_link(descriptor.path())
                .is_ok_and(|target| links.iter().any(|link| target.as_os_str() == link.as_str()))
        })
    };
    let pid = pids.into_iter().find(has);
    Some(Holder {
        pid,
        command: pid.map(command).unwrap_or_default(),
        uid,
    })
}

/// The command line of a process, or its short name.
fn command(pid: i32) -> String {
    let line = read(Path::new(&format!("/proc/{pid}/cmdline")));
    let line = line.trim_end_matches('\0').replace('\0', " ");
    let line = if line.trim().is_empty() {
        read(Path::new(&format!("/proc/{pid}/comm")))
    } else {
        line
    };
    line.trim().chars().take(MAX_COMMAND_CHARS).collect()
}

fn read(path: &Path) -> String {
    use std::io::Read;
    let mut bytes = Vec::new();
    if let Ok(file) = fs::File::open(path) {
        // What could not be read is as if it were not there.
        let _ = file.take(MAX_TABLE_BYTES).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};

    use super::*;
    use papa_test_hooks::patience::eventually;

    fn sought(address: Option<IpAddr>, port: u16, datagram: bool) -> Sought {
        Sought {
            address,
            port,
            datagram,
        }
    }

    #[test]
    fn an_address_in_use_named_nobody() {
        let own = i32::try_from(std::process::id()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        for address in [None, Some([127, 0, 0, 1].into()), Some([0; 4].into())] {
            let holder = of_address(&sought(address, port, false)).unwrap();
            assert_eq!(holder.pid, Some(own));
            assert!(!holder.command.is_empty());
            assert!(holder.to_string().ends_with(&format!("(pid {own})")));
        }
        drop(listener);
        assert!(eventually(
            || of_address(&sought(None, port, false)).is_none()
        ));

        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = datagrams.local_addr().unwrap().port();
        let holder = of_address(&sought(None, port, true)).unwrap();
        assert_eq!(holder.pid, Some(own));
    }

    #[test]
    fn a_port_that_only_a_connection_has_named_nobody() {
        let own = format!("(pid {})", std::process::id());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let ours = sought(
            Some([127, 0, 0, 1].into()),
            peer.local_addr().unwrap().port(),
            false,
        );
        assert_eq!(of_address(&ours), None);
        let said = of_connection(&ours).unwrap();
        assert!(
            said.contains("a connection of") && said.ends_with(&own),
            "{said}"
        );
        // Who closes first waits.
        let (accepted, _) = listener.accept().unwrap();
        drop(peer);
        drop(accepted);
        assert!(eventually(
            || of_connection(&ours).is_some_and(|said| said.contains("TIME_WAIT"))
        ));
    }

    #[test]
    fn an_address_of_no_interface_and_a_path_in_use_are_told() {
        assert_eq!(not_here([127, 0, 0, 1].into()), None);
        // Source: RFC 5737, for documents only.
        let said = not_here([192, 0, 2, 1].into()).unwrap();
        assert!(said.contains("no network interface"), "{said}");

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        assert_eq!(of_path(&path), None);
        assert!(
            of_path(&path.join("y.sock"))
                .unwrap()
                .contains("there is no directory")
        );
        fs::write(&path, "").unwrap();
        assert!(
            of_path(&path)
                .unwrap()
                .contains("a file that is no socket is there")
        );
        assert!(
            of_path(&path.join("y.sock"))
                .unwrap()
                .contains("is no directory")
        );
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(of_path(&path).unwrap().contains("a directory is there"));
        fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        assert!(of_path(&path).unwrap().contains("a symbolic link is there"));
        fs::remove_file(&path).unwrap();
        let served = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(of_path(&path), None);
        drop(served);
    }

    #[test]
    fn who_had_the_port_at_another_address_was_named() {
        let listener = TcpListener::bind("127.0.0.2:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let other = Some([127, 0, 0, 1].into());
        assert_eq!(of_address(&sought(other, port, false)), None);
        let v6 = Some(Ipv6Addr::LOCALHOST.into());
        assert_eq!(of_address(&sought(v6, port, false)), None);

        let at = |address: IpAddr| Socket {
            state: "0A".to_owned(),
            address,
            port: 80,
            uid: 0,
            inode: 1,
        };
        let any_v4 = IpAddr::from(Ipv4Addr::UNSPECIFIED);
        let any_v6 = IpAddr::from(Ipv6Addr::UNSPECIFIED);
        let one = IpAddr::from([10, 0, 0, 1]);
        let mapped = "::ffff:10.0.0.1".parse().unwrap();
        for (listener, wanted, expected) in [
            (one, one, Some(Hindrance::Same)),
            (mapped, one, Some(Hindrance::Same)),
            (any_v4, one, Some(Hindrance::Wildcard)),
            (one, any_v4, Some(Hindrance::Wildcard)),
            (any_v6, one, Some(Hindrance::BothFamilies)),
            (any_v4, any_v6, Some(Hindrance::BothFamilies)),
            (any_v4, IpAddr::from(Ipv6Addr::LOCALHOST), None),
            (one, [10, 0, 0, 2].into(), None),
        ] {
            let hindrance = at(listener).hinders(&sought(Some(wanted), 80, false));
            assert_eq!(hindrance, expected, "{listener} {wanted}");
        }
        assert_eq!(at(one).hinders(&sought(Some(one), 81, false)), None);
    }

    #[test]
    fn addresses_are_read_as_the_system_writes_them() {
        for (text, address) in [
            ("0100007F", "127.0.0.1"),
            ("00000000000000000000000001000000", "::1"),
            ("0000000000000000FFFF00000100007F", "::ffff:127.0.0.1"),
        ] {
            // The texts are those of a little-endian machine.
            if cfg!(target_endian = "little") {
                assert_eq!(address_of(text), address.parse().ok(), "{text}");
            }
        }
        for line in [
            "",
            "x",
            "0: 0100007F:1F90",
            "0: 0100007F:zz 0 0A",
            "0: é100007:1F90 0 0A 0 0 0 0 0 1",
        ] {
            assert_eq!(Socket::parse(line), None, "{line}");
        }
    }
}
