//! Who holds a port: the process behind "address already in use".
//!
//! Owns the way from an address to a process: the system's tables of sockets say the inode,
//! `/proc/PID/fd` says who has it. Only looks, and everything it reads may be gone the next moment:
//! an answer is for people, nothing is decided by it.
//! Source: `proc_pid_fd(5)`, `proc_pid_net(5)`; `net/ipv4/tcp_ipv4.c` and `net/ipv6/tcp_ipv6.c` of
//! Linux for the columns.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;

/// Most bytes read of one of the system's tables.
const MAX_TABLE_BYTES: u64 = 8 * 1024 * 1024;
/// Most processes looked at.
const MAX_PROCESSES: usize = 32_768;
/// Longest command shown, in characters.
const MAX_COMMAND_CHARS: usize = 60;
/// State of a listening TCP socket, and of an unconnected UDP one, in those tables.
const LISTENING: [&str; 2] = ["0A", "07"];

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
    let tables = if sought.datagram {
        ["/proc/net/udp", "/proc/net/udp6"]
    } else {
        ["/proc/net/tcp", "/proc/net/tcp6"]
    };
    let mut found: BTreeMap<Hindrance, (u32, BTreeSet<u64>)> = BTreeMap::new();
    for table in tables {
        for line in read(Path::new(table)).lines().skip(1) {
            if let Some(listener) = Listener::parse(line)
                && let Some(hindrance) = listener.hinders(sought)
            {
                let (_, inodes) = found
                    .entry(hindrance)
                    .or_insert_with(|| (listener.uid, BTreeSet::new()));
                inodes.insert(listener.inode);
            }
        }
    }
    let (uid, inodes) = found.into_values().next()?;
    holder(&inodes, Some(uid))
}

/// How a listener is in the way, the surest first.
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
struct Listener {
    address: IpAddr,
    port: u16,
    uid: u32,
    inode: u64,
}

impl Listener {
    /// `sl local remote st queues tr tm retr uid timeout inode`.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let local = words.nth(1)?;
        let state = words.nth(1)?;
        let (address, port) = local.rsplit_once(':')?;
        if !LISTENING.contains(&state) {
            return None;
        }
        Some(Self {
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
    fn who_had_the_port_at_another_address_was_named() {
        let listener = TcpListener::bind("127.0.0.2:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let other = Some([127, 0, 0, 1].into());
        assert_eq!(of_address(&sought(other, port, false)), None);
        let v6 = Some(Ipv6Addr::LOCALHOST.into());
        assert_eq!(of_address(&sought(v6, port, false)), None);

        let at = |address: IpAddr| Listener {
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
            assert_eq!(Listener::parse(line), None, "{line}");
        }
    }
}
