//! The manager's requests to the kernel.
//!
//! Owns the translation of workers and sockets into the kernel's operations, and requests that take
//! several steps: claim and values here, the list of everything in `inventory`, sockets in `sockets`,
//! workers in `processes`, the last lines of ended workers in `words`. Leaves to others: when to ask
//! (`supervisor`), the connection (`papa_client`).
//! Invariant: every request can be repeated: what exists already is answered, not made twice.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use papa_client::{Address, Client};
use papa_protocol::json::request as ops;
use papa_protocol::name::{Name, NamePattern};
use papa_protocol::text::ByteString;

pub use papa_control::namespace::LinkError;
use papa_control::namespace::Namespace;

mod inventory;
mod kernel_pid;
mod processes;
mod sockets;
mod words;

pub use inventory::Inventory;
pub use processes::settings;
pub use sockets::ASIDE;

/// The kernel, as the manager of one namespace sees it. Clones share the connection.
#[derive(Debug, Clone)]
pub struct KernelLink {
    /// Connection and name.
    ours: Namespace,
    /// Where the kernel is, for further connections.
    addresses: Vec<Address>,
    /// File mode mask of workers whose watcher has none; see `state::umask_value`.
    umask: Option<u32>,
    /// Serials of the sockets that exist, by their names in the file. Older kernels give none.
    sockets: Arc<Mutex<BTreeMap<String, Option<u64>>>>,
    kernel_pid: Arc<kernel_pid::Shared>,
}

impl KernelLink {
    /// Speaks for `namespace`.
    #[must_use]
    pub fn new(client: Client, addresses: Vec<Address>, namespace: String) -> Self {
        Self {
            ours: Namespace::new(client, namespace),
            addresses,
            umask: None,
            sockets: Arc::default(),
            kernel_pid: Arc::default(),
        }
    }

    /// The kernel's process id, which an upgrade may have changed. If the kernel does not answer
    /// within `patience`, the process id of its `hello`.
    pub async fn process_now(&self, patience: Duration) -> i32 {
        let ask = async || {
            let asked = tokio::time::timeout(patience, self.client().call(ops::Status {})).await;
            let pid = match asked {
                Ok(Ok(status)) => status.pid,
                _ => self.client().hello().pid,
            };
            i32::try_from(pid).unwrap_or(0)
        };
        self.kernel_pid.get(ask).await
    }

    /// Sets the file mode mask of workers whose watcher names none.
    pub fn set_umask(&mut self, mask: Option<u32>) {
        self.umask = mask;
    }

    /// The connection.
    #[must_use]
    pub fn client(&self) -> &Client {
        self.ours.client()
    }

    /// First part of every name of this manager in the kernel.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.ours.name()
    }

    /// What does not need a manager: the claim, the end of processes.
    #[must_use]
    pub fn ours(&self) -> &Namespace {
        &self.ours
    }

    /// Subscribes to every change in the namespace.
    ///
    /// # Errors
    /// The kernel refused or did not answer.
    pub async fn subscribe(&self) -> Result<(), LinkError> {
        let names = vec![self.everything()];
        self.client().call(ops::Subscribe { names }).await?;
        Ok(())
    }

    /// Has the kernel keep a value; `None` removes it.
    ///
    /// # Errors
    /// The kernel refused or did not answer.
    pub async fn keep(&self, name: &str, value: Option<String>) -> Result<(), LinkError> {
        let name = Name::new(name)?;
        match value {
            Some(text) => {
                let value = ByteString::from(text);
                self.client().call(ops::ValueSet { name, value }).await?;
            }
            None => {
                let names = vec![NamePattern::new(name.as_ref())];
                self.client().call(ops::ValueRemove { names }).await?;
            }
        }
        Ok(())
    }

    fn everything(&self) -> NamePattern {
        NamePattern::new(&format!("{}.*", self.namespace()))
    }
}
