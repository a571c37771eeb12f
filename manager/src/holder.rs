//! Who holds a port or a path: the process behind "address already in use".
//!
//! Owns the way from an address to a process: the system's tables of sockets say the inode, `/proc/PID/fd` says who has it. Only looks,
//! and everything it reads may be gone the next moment: an answer is for people, nothing is decided by it.
//! Source: `proc_pid_fd(5)`, `proc_pid_net(5)`; `net/ipv4/tcp_ipv4.c` and `net/unix/af_unix.c` of Linux for the columns.

use std::collections::BTreeSet;
use std::fs;
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

/// Who listens on a port of any address of this machine's.
#[must_use]
pub fn of_port(port: u16, datagram: bool) -> Option<Holder> {
    let tables = if datagram {
        ["/proc/net/udp", "/proc/net/udp6"]
    } else {
        ["/proc/net/tcp", "/proc/net/tcp6"]
    };
    let mut inodes = BTreeSet::new();
    let mut user = None;
    for table in tables {
        for line in read(Path::new(table)).lines().skip(1) {
            if let Some((uid, inode)) = internet_line(line, port) {
                inodes.insert(inode);
                user = user.or(Some(uid));
            }
        }
    }
    holder(&inodes, user)
}

/// Who has a unix socket bound to this path.
#[must_use]
pub fn of_path(path: &Path) -> Option<Holder> {
    let path = path.to_str()?;
    let table = read(Path::new("/proc/net/unix"));
    let inodes = table
        .lines()
        .skip(1)
        .filter_map(|line| unix_line(line, path))
        .collect();
    holder(&inodes, None)
}

/// User and inode of a listener on `port`: `sl local remote st queues tr tm retr uid timeout inode`.
fn internet_line(line: &str, port: u16) -> Option<(u32, u64)> {
    let mut words = line.split_whitespace();
    let local = words.nth(1)?;
    let state = words.nth(1)?;
    let (_, number) = local.rsplit_once(':')?;
    if u16::from_str_radix(number, 16) != Ok(port) || !LISTENING.contains(&state) {
        return None;
    }
    let uid = words.nth(3)?.parse().ok()?;
    let inode = words.nth(1)?.parse().ok()?;
    Some((uid, inode))
}

/// Inode of a socket bound to `path`: `num refs protocol flags type state inode path`.
fn unix_line(line: &str, path: &str) -> Option<u64> {
    let mut rest = line;
    let mut inode = None;
    for column in 0..7 {
        rest = rest.trim_start();
        let end = rest.find(' ')?;
        if column == 6 {
            inode = rest[..end].parse().ok();
        }
        rest = &rest[end..];
    }
    (rest.strip_prefix(' ')? == path).then_some(inode?)
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
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn an_address_in_use_named_nobody() {
        let own = i32::try_from(std::process::id()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let holder = of_port(port, false).unwrap();
        assert_eq!(holder.pid, Some(own));
        assert!(!holder.command.is_empty());
        assert!(holder.to_string().ends_with(&format!("(pid {own})")));
        drop(listener);
        assert_eq!(of_port(port, false), None);

        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = datagrams.local_addr().unwrap().port();
        assert_eq!(of_port(port, true).unwrap().pid, Some(own));

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a b.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        assert_eq!(of_path(&path).unwrap().pid, Some(own));
        assert_eq!(of_path(&directory.path().join("a")), None);
    }

    #[test]
    fn foreign_lines_are_nobodys() {
        for line in ["", "x", "0: 0100007F:1F90", "0: 0100007F:zz 0 0A"] {
            assert_eq!(internet_line(line, 8080), None, "{line}");
            assert_eq!(unix_line(line, "/x"), None, "{line}");
        }
    }
}
