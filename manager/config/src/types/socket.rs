//! One `[socket:NAME]`.

use std::path::PathBuf;

pub use papa_protocol::socket::{Family as SocketFamily, SocketType};

use crate::problem::Origin;

/// One `[socket:NAME]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SocketConfig {
    /// Lower case.
    pub name: String,
    /// The section's first line.
    pub origin: Origin,
    /// Address family.
    pub family: SocketFamily,
    /// Socket type.
    pub kind: SocketType,
    /// Path of a unix socket, absolute.
    pub path: Option<PathBuf>,
    /// File mode mask of a unix socket's path.
    pub umask: Option<u32>,
    /// Host of an inet socket.
    pub host: Option<String>,
    /// Port of an inet socket; 0 means any.
    pub port: Option<u16>,
    /// Network interface to bind to.
    pub interface: Option<String>,
    /// Length of the accept queue.
    pub backlog: u32,
    /// A fresh socket on the same port for each worker.
    pub reuseport: bool,
    /// Replace an existing unix path that is in nobody's use.
    pub replace: bool,
    /// Set `O_NONBLOCK` on the shared socket, as Circus does unless `blocking` or, as papa's were,
    /// `use_papa` is written.
    pub nonblocking: bool,
    /// Whether an IPv6 socket leaves IPv4 to others; none: what the system has them do.
    pub v6only: Option<bool>,
    /// False: removed when the manager quits.
    pub use_papa: bool,
}

impl SocketConfig {
    /// Name in the kernel.
    #[must_use]
    pub fn kernel_name(&self, namespace: &str) -> String {
        socket_name(namespace, &self.name)
    }

    /// Where it is bound, for people.
    #[must_use]
    pub fn place(&self) -> String {
        let host = self.host.as_deref().unwrap_or_default();
        let port = self.port.unwrap_or_default();
        match &self.path {
            Some(path) => path.display().to_string(),
            None if host.contains(':') => format!("[{host}]:{port}"),
            None => format!("{host}:{port}"),
        }
    }
}

/// Name in the kernel of the socket `name`.
#[must_use]
pub fn socket_name(namespace: &str, name: &str) -> String {
    format!("{namespace}.{name}")
}
