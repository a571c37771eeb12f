//! Finding the kernel, and the few questions that need no namespace.
//!
//! Owns the order of the usual places: the kernel's private socket, its abstract socket, its TCP
//! port; and what is said when something else sits there (`taken`). The conversation itself is
//! `papa_client`'s.
//! Source: manager/docs/papactl.md.

use std::fmt::Display;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, io};

use nix::unistd::Uid;
use papa_client::{Address, Client, ClientError, Options};
use papa_config::KernelEndpoint;
use papa_processes::departing::Departing;
use papa_protocol::json::reply::ClaimInfo;
use papa_protocol::json::request::ops;
use papa_protocol::json::status::StatusReply;
use papa_protocol::process::Process;
use papa_system::runtime_dir::{DEFAULT_KERNEL_PORT, RuntimeDir, abstract_kernel_socket};
use tokio::time::timeout;

mod taken;

pub use taken::account;

/// How long a kernel may take to greet and to answer: it does nothing slow.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long kernel and keeper may take to be gone after they have agreed to end.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// A kernel that answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Where it answered.
    pub address: Address,
    /// Its process.
    pub pid: u32,
    /// How many processes it runs.
    pub running: u64,
}

/// Why there is no usable kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Something listens where the kernel would, and is not one.
    #[error(
        "{address}: {source}; if an original papa or another program listens there, end it or name another place as papa_endpoint in [circus]"
    )]
    Unusable {
        /// The place.
        address: Address,
        /// What happened.
        #[source]
        source: ClientError,
    },
    /// Somebody else has the port; who, and what to do.
    #[error("{0}")]
    Taken(String),
    /// The kernel was found and then failed.
    #[error("the kernel at {address}: {source}")]
    Failed {
        /// The kernel.
        address: Address,
        /// What happened.
        #[source]
        source: ClientError,
    },
    /// An address nobody can be at.
    #[error("kernel address {text:?}: expected /path, @name or tcp://host:port")]
    Address {
        /// As given.
        text: String,
    },
    /// It has agreed to end and has not.
    #[error(
        "the kernel at {address} agreed to end; process {pid} still runs after {} s",
        END_TIMEOUT.as_secs()
    )]
    Lingers {
        /// Where the kernel was.
        address: Address,
        /// The kernel's, or its keeper's.
        pid: u32,
    },
    /// The system refused something basic.
    #[error("talking to the kernel: {0}")]
    Io(#[from] io::Error),
}

/// The kernel is in another process namespace: its process ids mean nothing here.
#[derive(Debug, thiserror::Error)]
#[error(
    "the kernel at {address} (pid {pid} where it runs) is in another process namespace, perhaps another container, so its workers cannot be signalled from here; give this manager a kernel of its own: papa_endpoint = unix:PATH in [circus]"
)]
pub struct KernelElsewhere {
    /// Where it answers.
    pub address: String,
    /// The process id it gives itself.
    pub pid: u64,
}

impl KernelError {
    /// Something answered at `address`, and it is no kernel of ours.
    pub fn at(address: &Address, source: ClientError) -> Self {
        match taken::describe(address, &source) {
            Some(text) => Self::Taken(text),
            None => Self::Unusable {
                address: address.clone(),
                source,
            },
        }
    }
}

/// Where to look for the kernel, best first; `endpoint` is what the configuration names.
///
/// # Errors
/// The configuration names a host that is neither an address nor `localhost`.
pub fn candidates(
    directory: &RuntimeDir,
    endpoint: Option<&KernelEndpoint>,
) -> Result<Vec<Address>, KernelError> {
    let (port, tcp) = match endpoint {
        None => (
            DEFAULT_KERNEL_PORT,
            Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_KERNEL_PORT))),
        ),
        Some(endpoint @ KernelEndpoint::Tcp(_, port)) => (*port, parse(&endpoint.to_string())?),
        Some(other) => return Ok(vec![parse(&other.to_string())?]),
    };
    // Descriptors pass over unix sockets only, so these come first. They are only ever those of
    // this machine.
    let local = match &tcp {
        Address::Tcp(address) => address.ip().is_loopback(),
        Address::Unix(_) | Address::Abstract(_) => true,
    };
    let mut addresses = Vec::new();
    if local {
        // A directory that we may not use has no socket of ours; the other places may still have
        // the kernel.
        if directory.can_hold_sockets() {
            addresses.push(Address::Unix(directory.kernel_socket(port)));
        }
        addresses.push(Address::Abstract(
            abstract_kernel_socket(Uid::effective(), port).into_bytes(),
        ));
    }
    addresses.push(tcp);
    Ok(addresses)
}

/// Reads an address as the manager's status and `--kernel` write it.
///
/// # Errors
/// An address of no known form.
pub fn parse(text: &str) -> Result<Address, KernelError> {
    text.parse().map_err(|_| KernelError::Address {
        text: text.to_owned(),
    })
}

/// Looks for a kernel at `addresses`.
///
/// # Errors
/// Something answers that is no kernel of ours, or it does not answer in time.
pub fn find(addresses: &[Address]) -> Result<Option<Kernel>, KernelError> {
    block_on(async {
        for address in addresses {
            match connect(address).await {
                Ok(client) => return describe(address, &client).await.map(Some),
                Err(error) if is_absent(address, &error) => {}
                Err(source) => return Err(KernelError::at(address, source)),
            }
        }
        Ok(None)
    })?
}

/// Who holds `namespace` in the kernel at `address`, in its own words; none where it is free.
///
/// # Errors
/// The kernel does not answer.
pub fn holder_of(address: &Address, namespace: &str) -> Result<Option<String>, KernelError> {
    let failed = |source| KernelError::Failed {
        address: address.clone(),
        source,
    };
    block_on(async {
        let client = connect(address).await.map_err(failed)?;
        let claims = client.call(ops::ClaimList {}).await.map_err(failed)?.claims;
        let live = |claim: &ClaimInfo| claim.live && claim.namespace.as_str() == namespace;
        Ok(claims.into_iter().find(live).map(|claim| claim.holder))
    })?
}

/// What a kernel says of itself.
#[derive(Debug)]
pub struct Examined {
    /// Its state.
    pub status: StatusReply,
    /// All its processes.
    pub processes: Vec<Process>,
}

/// Asks the kernel at the first of `addresses` that answers. None if none does.
///
/// # Errors
/// As [`find`]; the kernel does not answer in time.
pub fn examine(addresses: &[Address]) -> Result<Option<Examined>, KernelError> {
    let Some(kernel) = find(addresses)? else {
        return Ok(None);
    };
    block_on(async {
        let address = kernel.address;
        let asked = async {
            let client = connect(&address).await?;
            let processes = client.call(ops::ProcessList::default()).await?.processes;
            let status = client.call(ops::Status {}).await?;
            Ok(Examined { status, processes })
        };
        asked.await.map(Some).map_err(|source| KernelError::Failed {
            address: address.clone(),
            source,
        })
    })?
}

/// Asks the kernel at the first of `addresses` that answers to end, which it does only when it
/// holds nothing. False if none answers. It may run for a moment longer.
///
/// # Errors
/// It holds something still, or does not answer.
pub fn exit_if_idle(addresses: &[Address]) -> Result<bool, KernelError> {
    Ok(ask_to_exit(addresses)?.is_some())
}

/// The same, and waits until kernel and keeper are gone.
///
/// # Errors
/// It holds something still, does not answer, or does not end.
pub fn end_if_idle(addresses: &[Address]) -> Result<bool, KernelError> {
    let Some((address, departing)) = ask_to_exit(addresses)? else {
        return Ok(false);
    };
    match departing.wait(Instant::now() + END_TIMEOUT) {
        None => Ok(true),
        Some(pid) => Err(KernelError::Lingers { address, pid }),
    }
}

fn ask_to_exit(addresses: &[Address]) -> Result<Option<(Address, Departing)>, KernelError> {
    block_on(async {
        for address in addresses {
            let failed = |source| KernelError::Failed {
                address: address.clone(),
                source,
            };
            let client = match connect(address).await {
                Ok(client) => client,
                Err(error) if is_absent(address, &error) => continue,
                Err(error) => return Err(KernelError::at(address, error)),
            };
            let hello = client.hello();
            let departing = Departing::of([hello.pid, hello.keeper]);
            return match client.call(ops::KernelExit {}).await {
                // It may be gone before its answer is read.
                Ok(_) | Err(ClientError::Lost | ClientError::Closed) => {
                    Ok(Some((address.clone(), departing)))
                }
                Err(error) => Err(failed(error)),
            };
        }
        Ok(None)
    })?
}

/// A connection to the kernel at `address`, which gives up after 5 seconds.
///
/// # Errors
/// Nobody listens, or whoever does is no kernel of ours.
pub async fn connect(address: &Address) -> Result<Client, ClientError> {
    connect_for(address, ANSWER_TIMEOUT).await
}

/// The same, where an answer may take as long as `patience`.
///
/// # Errors
/// As [`connect`].
pub async fn connect_for(address: &Address, patience: Duration) -> Result<Client, ClientError> {
    let options = Options {
        client: format!("papactl {}", std::process::id()),
        call_timeout: patience,
        ..Options::default()
    };
    let connected = timeout(
        ANSWER_TIMEOUT,
        Client::connect(vec![address.clone()], options),
    );
    match connected.await {
        // The stream of pushes is not wanted: nothing is subscribed to.
        Ok(Ok((client, _))) => Ok(client),
        Ok(Err(ClientError::Connect(mut attempts))) if attempts.len() == 1 => {
            Err(attempts.remove(0).1)
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(ClientError::Timeout(ANSWER_TIMEOUT)),
    }
}

async fn describe(address: &Address, client: &Client) -> Result<Kernel, KernelError> {
    let status = client
        .call(ops::Status {})
        .await
        .map_err(|source| KernelError::Failed {
            address: address.clone(),
            source,
        })?;
    Ok(Kernel {
        address: address.clone(),
        pid: status.pid,
        running: status.counts.running,
    })
}

/// Whether the kernel that calls itself `pid` is in another process namespace: a process of this
/// number does not exist here, or is no kernel. Where the system does not tell, it is not. A kernel
/// that was killed since it said its number is not there either.
#[must_use]
pub fn is_elsewhere(pid: impl Display) -> bool {
    match fs::read(format!("/proc/{pid}/cmdline")) {
        Ok(title) => !title.starts_with(TITLE),
        Err(error) => {
            error.kind() == io::ErrorKind::NotFound && Path::new("/proc/self/cmdline").exists()
        }
    }
}

/// How the titles of keepers and kernels begin.
const TITLE: &[u8] = b"papa: ";

/// Whether nobody listens, as opposed to somebody who answers wrongly. Any user may take any
/// abstract name: a stranger there means that the kernel is not.
#[must_use]
pub fn is_absent(address: &Address, error: &ClientError) -> bool {
    let ClientError::Io(error) = error else {
        return false;
    };
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => true,
        io::ErrorKind::PermissionDenied | io::ErrorKind::WouldBlock => {
            matches!(address, Address::Abstract(_))
        }
        _ => false,
    }
}

/// Does `work` on a runtime of its own.
///
/// # Errors
/// There is no room for a runtime.
pub fn block_on<T>(work: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(work))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(endpoint: Option<&KernelEndpoint>) -> Vec<String> {
        let directory = RuntimeDir::locate_for(Uid::from_raw(7), Some("/run/user/7".as_ref()));
        let addresses = candidates(&directory, endpoint).unwrap();
        addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_private_socket_comes_first() {
        let uid = Uid::effective();
        let found = places(None);
        assert_eq!(found.len(), 3);
        assert!(
            found[0].ends_with("/run/user/7/papa/20202.sock"),
            "{found:?}"
        );
        assert!(
            found[1].ends_with(&format!("papa/{uid}/20202")),
            "{found:?}"
        );
        assert!(found[2].ends_with("127.0.0.1:20202"), "{found:?}");
    }

    #[test]
    fn the_configured_place_is_the_only_one() {
        let unix = KernelEndpoint::Unix("/x/k.sock".into());
        assert_eq!(places(Some(&unix)).len(), 1);
        let other_port = KernelEndpoint::Tcp("localhost".into(), 7);
        assert!(places(Some(&other_port))[0].ends_with("papa/7.sock"));
        let remote = KernelEndpoint::Tcp("192.0.2.1".into(), 7);
        assert_eq!(places(Some(&remote)).len(), 1);
    }
}
