//! The datagram socket to a syslog daemon, and how a message of RFC 3164 begins.
//!
//! The log writer and the manager's own log send through it; what they do with a message that the
//! daemon does not take is theirs.
//! Invariant: the socket never waits.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use chrono::{DateTime, Local};
use papa_config::SyslogAddress;

/// A socket that is connected to a daemon.
#[derive(Debug)]
pub enum SyslogSocket {
    /// On this machine.
    Unix(UnixDatagram),
    /// Anywhere.
    Udp(UdpSocket),
}

impl SyslogSocket {
    /// Connects to a daemon. Blocks while the name of a host is looked up.
    ///
    /// # Errors
    /// The name is unknown, or nobody has bound the path.
    pub fn connect(address: &SyslogAddress) -> io::Result<Self> {
        match address {
            SyslogAddress::Unix(path) => Self::unix(path),
            SyslogAddress::Udp(host, port) => {
                let mut last = io::ErrorKind::NotFound.into();
                for address in (host.as_str(), *port).to_socket_addrs()? {
                    match Self::udp(address) {
                        Ok(socket) => return Ok(socket),
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }

    /// Connects to the daemon that has bound `path`.
    ///
    /// # Errors
    /// Nobody has bound it, or the system calls fail.
    pub fn unix(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.connect(path)?;
        Ok(Self::Unix(socket))
    }

    /// Connects to `address`, whether or not somebody listens there.
    ///
    /// # Errors
    /// What the system calls answer.
    pub fn udp(address: SocketAddr) -> io::Result<Self> {
        let any: SocketAddr = if address.is_ipv4() {
            ([0, 0, 0, 0], 0).into()
        } else {
            ([0u16; 8], 0).into()
        };
        let socket = UdpSocket::bind(any)?;
        socket.set_nonblocking(true)?;
        socket.connect(address)?;
        Ok(Self::Udp(socket))
    }

    /// Sends one message.
    ///
    /// # Errors
    /// `WouldBlock` or `ENOBUFS` if there is no room, `EMSGSIZE` for a message that is too long.
    pub fn send(&self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Unix(socket) => socket.send(message),
            Self::Udp(socket) => socket.send(message),
        }
        .map(drop)
    }
}

/// `<PRI>Mmm dd hh:mm:ss TAG[PID]: `, with which a message of RFC 3164 begins. `tag` may have the
/// host in front; a local daemon adds that itself, as glibc's `syslog()` leaves it to it.
#[must_use]
pub fn rfc3164_header(
    priority: u8,
    time: &DateTime<Local>,
    tag: &str,
    pid: impl fmt::Display,
) -> String {
    format!(
        "<{priority}>{} {tag}[{pid}]: ",
        time.format("%b %e %H:%M:%S")
    )
}
