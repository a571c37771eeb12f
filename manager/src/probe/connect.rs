//! Connections to what is probed.
//!
//! Owns name look-ups. They block inside the C library and cannot be called off, so only a few may
//! be under way at once: a name server that is away costs that many threads for its own time limit,
//! not one per watcher.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, LazyLock};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;

use crate::config::target::Target;

/// Look-ups under way at once.
const MAX_LOOKUPS: usize = 8;
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;

static LOOKUPS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(MAX_LOOKUPS)));

/// A connection, whatever it runs over.
pub(super) trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

/// Connects; of a name with several addresses to the first that answers.
///
/// # Errors
/// What the last address answered.
///
/// # Cancel safety
/// Cancel safe, but that a look-up under way goes on.
pub(super) async fn connect(target: &Target) -> io::Result<Box<dyn Connection>> {
    let (host, port) = match target {
        Target::Unix(path) => return Ok(Box::new(UnixStream::connect(path).await?)),
        Target::Tcp(host, port) => (host, *port),
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses(host, port).await? {
        match TcpStream::connect(address).await {
            // A port nobody listens on may be chosen for our own end, and then we talk to
            // ourselves.
            Ok(stream) if stream.local_addr().ok() == Some(address) => {
                last = io::ErrorKind::ConnectionRefused.into();
            }
            Ok(stream) => return Ok(Box::new(stream)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn addresses(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(vec![
            SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port),
            SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port),
        ]);
    }
    // Given back by the thread, not by us: we may be dropped long before it ends.
    let permit = LOOKUPS
        .clone()
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let host = host.to_owned();
    tokio::task::spawn_blocking(move || {
        let found = (host.as_str(), port).to_socket_addrs();
        drop(permit);
        Ok(found?.take(MAX_ADDRESSES).collect())
    })
    .await
    .map_err(io::Error::other)?
}
