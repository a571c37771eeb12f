//! Who has a place that the launcher wants to bind: the process behind "address already in use".
//!
//! Owns the way from a place to a process: the system's tables of sockets say user and inode,
//! `/proc/PID/fd` says which process has that inode open. Only looks; an answer is for people, and
//! nothing is decided by it.
//! Source: `proc_pid_net(5)`, `proc_pid_fd(5)`; `net/unix/af_unix.c` of Linux for the columns.

use std::fs;
use std::path::Path;

use papa_protocol::text::escape_control;

/// State of a listening TCP socket in the tables.
const LISTENING: &str = "0A";
/// Flag of a listening unix socket in the table: `__SO_ACCEPTCON`.
const ACCEPTS: &str = "00010000";
/// Most processes looked at.
const MAX_PROCESSES: usize = 32_768;
/// Longest command shown, in characters.
const MAX_COMMAND_CHARS: usize = 60;
/// How the titles of a keeper and a kernel begin.
const PAPA: &str = "papa: ";

/// A socket that somebody listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listener {
    /// The user who made it; none where the table does not say.
    pub uid: Option<u32>,
    inode: u64,
}

/// A process that has such a socket open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    pub pid: i32,
    /// Its command line, control characters escaped.
    pub command: String,
}

impl Holder {
    /// Whether it is the keeper or the kernel of a papa.
    pub(crate) fn is_papa(&self) -> bool {
        self.command.starts_with(PAPA)
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (pid {})", self.command, self.pid)
    }
}

impl Listener {
    /// Who listens on a TCP port of this machine.
    pub(crate) fn on_port(port: u16) -> Option<Self> {
        let tables = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter();
        let mut texts = tables.filter_map(|path| fs::read_to_string(path).ok());
        texts.find_map(|text| text.lines().skip(1).find_map(|line| tcp(line, port)))
    }

    /// Who listens at a path, or with a leading `@` at an abstract name.
    pub(crate) fn at(place: &Path) -> Option<Self> {
        let table = fs::read_to_string("/proc/net/unix").ok()?;
        let mut lines = table.lines().skip(1);
        lines.find_map(|line| unix(line, place))
    }

    /// The process that has it open; none where only root may look.
    pub(crate) fn holder(self) -> Option<Holder> {
        let link = format!("socket:[{}]", self.inode);
        let mut pids: Vec<i32> = fs::read_dir("/proc")
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .take(MAX_PROCESSES)
            .collect();
        pids.sort_unstable();
        let has = |pid: &i32| {
            let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
                return false;
            };
            descriptors.flatten().any(|descriptor| {
                fs::read_link(descriptor.path())
                    .is_ok_and(|target| target.as_os_str() == link.as_str())
            })
        };
        let pid = pids.into_iter().find(has)?;
        Some(Holder {
            pid,
            command: command(pid),
        })
    }
}

/// `sl local remote st queues tr tm retr uid timeout inode`.
fn tcp(line: &str, port: u16) -> Option<Listener> {
    let mut words = line.split_whitespace();
    let local = words.nth(1)?;
    let state = words.nth(1)?;
    let (_, own) = local.rsplit_once(':')?;
    if state != LISTENING || u16::from_str_radix(own, 16).ok()? != port {
        return None;
    }
    Some(Listener {
        uid: words.nth(3)?.parse().ok(),
        inode: words.nth(1)?.parse().ok()?,
    })
}

/// `Num RefCount Protocol Flags Type St Inode Path`; the path may have spaces.
fn unix(line: &str, place: &Path) -> Option<Listener> {
    let mut words = line.splitn(7, char::is_whitespace);
    let flags = words.nth(3)?;
    let rest = words.nth(2)?.trim_start();
    let (inode, path) = rest.split_once(' ')?;
    if flags != ACCEPTS || Path::new(path) != place {
        return None;
    }
    Some(Listener {
        uid: None,
        inode: inode.parse().ok()?,
    })
}

/// The command line of a process, or its short name.
fn command(pid: i32) -> String {
    let read = |file: &str| {
        let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
        escape_control(text.trim()).into_owned()
    };
    let line = read("cmdline");
    let line = if line.is_empty() { read("comm") } else { line };
    line.chars().take(MAX_COMMAND_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    use papa_test_hooks::patience::eventually;

    use super::*;

    #[test]
    fn a_place_that_was_taken_named_no_process() {
        let own = Some(std::process::id().cast_signed());
        let pid = |listener: Option<Listener>| listener?.holder().map(|holder| holder.pid);
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        assert_eq!(pid(Listener::on_port(port)), own);
        drop(tcp);
        assert!(eventually(|| Listener::on_port(port).is_none()));

        let directory = tempfile::tempdir().unwrap();
        for name in ["s", "with a space"] {
            let path = directory.path().join(name);
            let unix = UnixListener::bind(&path).unwrap();
            assert_eq!(pid(Listener::at(&path)), own, "{name}");
            drop(unix);
            assert!(eventually(|| Listener::at(&path).is_none()));
        }
    }

    #[test]
    fn lines_of_the_tables_are_read_as_far_as_they_are_some() {
        let line = "0000000000000000: 00000002 00000000 00010000 0001 01 18446 @a b";
        assert_eq!(
            unix(line, Path::new("@a b")).map(|found| found.inode),
            Some(18446)
        );
        for line in [
            "",
            "x",
            "0: 2 0 00010000 0001 01",
            "0: 2 0 00010000 0001 01 7",
            "é é é é é é é é",
        ] {
            assert_eq!(unix(line, Path::new("")), None, "{line}");
            assert_eq!(tcp(line, 1), None, "{line}");
        }
    }
}
