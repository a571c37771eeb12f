//! Where a kernel listens, as text and as what to connect to.
//!
//! Owns reading and writing addresses. Host names are not looked up: the kernel serves this machine
//! alone, and a look-up would block.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

use papa_protocol::limits::MAX_SOCKET_PATH_BYTES;
use papa_protocol::text::{escape_control, escape_control_bytes};

/// Where a kernel listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A unix socket in the file system.
    Unix(PathBuf),
    /// A unix socket in the abstract namespace, without the leading NUL.
    Abstract(Vec<u8>),
    /// TCP.
    Tcp(SocketAddr),
}

/// Text that is not an address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "address \"{}\": expected an absolute path, @NAME for an abstract socket, HOST:PORT with a numeric host or \
     localhost, or a port number",
    escape_control(.0)
)]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError(text.to_owned());
        let plain = ["unix://", "unix:", "ipc://", "ipc:", "tcp://", "tcp:"]
            .iter()
            .find_map(|scheme| text.strip_prefix(scheme))
            .unwrap_or(text);
        if plain.contains('\0') || plain.len() >= MAX_SOCKET_PATH_BYTES {
            return Err(error());
        }
        if plain.starts_with('/') {
            return Ok(Self::Unix(plain.into()));
        }
        if let Some(name) = plain.strip_prefix('@').filter(|name| !name.is_empty()) {
            return Ok(Self::Abstract(name.as_bytes().to_vec()));
        }
        if let Ok(port) = plain.parse() {
            return Ok(Self::Tcp(SocketAddr::new(
                IpAddr::V4(Ipv4Addr::LOCALHOST),
                port,
            )));
        }
        let numeric = match plain.strip_prefix("localhost:") {
            Some(port) => format!("127.0.0.1:{port}"),
            None => plain.to_owned(),
        };
        numeric.parse().map(Self::Tcp).map_err(|_| error())
    }
}

impl Address {
    /// The place of a kernel that is reached here and does not say its own: a port, or the path of
    /// a socket.
    pub(super) fn place(&self) -> String {
        match self {
            Self::Unix(path) => path.to_string_lossy().into_owned(),
            // The kernel's own are `papa/UID/PORT`.
            Self::Abstract(name) => {
                let name = String::from_utf8_lossy(name);
                name.rsplit('/').next().unwrap_or_default().to_owned()
            }
            Self::Tcp(address) => address.port().to_string(),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => f.write_str(&escape_control(&path.to_string_lossy())),
            Self::Abstract(name) => write!(f, "@{}", escape_control_bytes(name)),
            Self::Tcp(address) => write!(f, "{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_place_where_the_kernel_names_none() {
        for (address, place) in [
            ("unix:/run/papa/20202.sock", "/run/papa/20202.sock"),
            ("127.0.0.1:20202", "20202"),
            ("@papa/1000/20202", "20202"),
        ] {
            let address: Address = address.parse().unwrap();
            assert_eq!(address.place(), place);
        }
    }

    #[test]
    fn every_notation_is_read() {
        let tcp = |text: &str| Address::Tcp(text.parse().unwrap());
        for (text, address) in [
            (
                "/run/papa/20202.sock",
                Address::Unix("/run/papa/20202.sock".into()),
            ),
            ("ipc:///tmp/p.sock", Address::Unix("/tmp/p.sock".into())),
            ("unix:/tmp/p.sock", Address::Unix("/tmp/p.sock".into())),
            ("@papa/0/20202", Address::Abstract(b"papa/0/20202".to_vec())),
            ("20202", tcp("127.0.0.1:20202")),
            ("localhost:1", tcp("127.0.0.1:1")),
            ("tcp://127.0.0.1:20202", tcp("127.0.0.1:20202")),
            ("[::1]:20202", tcp("[::1]:20202")),
        ] {
            assert_eq!(text.parse(), Ok(address), "{text}");
        }
    }

    #[test]
    fn what_is_not_an_address_is_refused() {
        for text in [
            "",
            "@",
            "rel/path",
            "example.com:1",
            "65536",
            "localhost:x",
            "/a\0b",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
        assert!(
            format!("/{}", "x".repeat(MAX_SOCKET_PATH_BYTES))
                .parse::<Address>()
                .is_err()
        );
    }
}
