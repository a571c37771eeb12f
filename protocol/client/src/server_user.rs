//! Who serves a TCP connection on this machine.
//!
//! Any user may listen on a port, also on the kernel's while that does not run, and what a kernel
//! is told are commands and secrets. Nothing on the wire says who is there; the system's table of
//! connections does.
//! Source: `proc_pid_net(5)`, `/proc/net/tcp`.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;

use tokio::net::TcpStream;

/// Places of what is wanted among the words of a line.
const LOCAL: usize = 1;
const REMOTE: usize = 2;
const UID: usize = 7;
const INODE: usize = 9;

/// Checks that the other end of a loopback connection is held by our user or root. To be called
/// when something has been heard from there: before, nobody need have accepted it.
pub(super) fn check(stream: &TcpStream) -> io::Result<()> {
    let (ours, theirs) = (stream.local_addr()?, stream.peer_addr()?);
    if !theirs.ip().is_loopback() {
        return Ok(());
    }
    let table = match theirs {
        SocketAddr::V4(_) => "/proc/net/tcp",
        SocketAddr::V6(_) => "/proc/net/tcp6",
    };
    let file = File::open(table)?;
    let own = rustix::process::geteuid().as_raw();
    match holder(BufReader::new(file), theirs, ours)? {
        Some(uid) if uid == own || uid == 0 => Ok(()),
        Some(uid) => Err(refused(&format!(
            "the listener belongs to uid {uid}, expected uid {own} or root"
        ))),
        None => Err(refused(&format!("{table} does not say who listens there"))),
    }
}

fn refused(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, text)
}

/// Who holds the socket with these addresses, as seen from it; none when nobody does.
fn holder(table: impl BufRead, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u32>> {
    let (local, remote) = (shown(local), shown(remote));
    for line in table.lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.get(LOCAL) == Some(&local.as_str()) && words.get(REMOTE) == Some(&remote.as_str())
        {
            // A socket that no process has, has inode 0 and no user.
            let held = words.get(INODE).is_some_and(|inode| *inode != "0");
            return Ok(words
                .get(UID)
                .filter(|_| held)
                .and_then(|uid| uid.parse().ok()));
        }
    }
    Ok(None)
}

/// An address as the table has it: words of the machine's own byte order, in hexadecimal.
fn shown(address: SocketAddr) -> String {
    let octets = match address {
        SocketAddr::V4(v4) => v4.ip().octets().to_vec(),
        SocketAddr::V6(v6) => v6.ip().octets().to_vec(),
    };
    let mut text = String::new();
    for word in octets.as_chunks::<4>().0 {
        // Writing to a String cannot fail.
        let _ = write!(text, "{:08X}", u32::from_ne_bytes(*word));
    }
    let _ = write!(text, ":{:04X}", address.port());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn our_own_listener_is_ours_once_it_has_accepted() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = std::net::TcpListener::bind(address) else {
                // A machine without IPv6.
                continue;
            };
            let stream = TcpStream::connect(listener.local_addr().unwrap())
                .await
                .unwrap();
            assert!(check(&stream).is_err(), "nobody has accepted it");
            let (accepted, _) = listener.accept().unwrap();
            check(&stream).unwrap();
            drop(accepted);
        }
    }

    #[test]
    fn the_line_of_the_other_end_counts() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:4EEA 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1\n\
            1: 0100007F:C001 0100007F:4EEA 01 00000000:00000000 00:00000000 00000000     7        0 12 1\n\
            2: 0100007F:4EEA 0100007F:C001 01 00000000:00000000 00:00000000 00000000 65534        0 13 1\n\
            3: 0100007F:4EEA 0100007F:C002 06 00000000:00000000 00:00000000 00000000     0        0 0 1\n\
            4: cut\n";
        let found = |port: u16| {
            let local = SocketAddr::from(([127, 0, 0, 1], 20202));
            let remote = SocketAddr::from(([127, 0, 0, 1], port));
            holder(table.as_bytes(), local, remote).unwrap()
        };
        if cfg!(target_endian = "little") {
            assert_eq!(
                (found(0xc001), found(0xc002), found(1)),
                (Some(65534), None, None)
            );
        }
    }
}
