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

use papa_client::{Address, Client, ClientError};
use papa_protocol::json::reply::ErrorCode;
use papa_protocol::json::request as ops;
use papa_protocol::name::{Name, NameError, NamePattern};
use papa_protocol::text::ByteString;

use crate::mark::{Lineage, Mark};

mod inventory;
mod kernel_pid;
mod processes;
mod sockets;
mod words;

pub use inventory::Inventory;
pub use processes::settings;

/// Why the kernel did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The kernel or the connection.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A name the kernel would not take.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The operating system, when signalling.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl LinkError {
    /// The kernel's code, if it refused.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Client(error) => error.code(),
            Self::Name(_) | Self::Io(_) => None,
        }
    }

    /// The kernel did not answer. Whether it acted is unknown; the request is to be repeated.
    #[must_use]
    pub fn is_unanswered(&self) -> bool {
        matches!(self, Self::Client(error) if !matches!(error, ClientError::Refused(_)))
    }
}

/// The kernel, as the manager of one namespace sees it. Clones share the connection.
#[derive(Debug, Clone)]
pub struct KernelLink {
    client: Client,
    /// Where the kernel is, for further connections.
    addresses: Vec<Address>,
    namespace: String,
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
            client,
            addresses,
            namespace,
            umask: None,
            sockets: Arc::default(),
            kernel_pid: Arc::default(),
        }
    }

    /// The kernel's process id, which an upgrade may have changed. If the kernel does not answer
    /// within `patience`, the process id of its `hello`.
    pub async fn process_now(&self, patience: Duration) -> i32 {
        let ask = async || {
            let asked = tokio::time::timeout(patience, self.client.call(ops::Status {})).await;
            let pid = match asked {
                Ok(Ok(status)) => status.pid,
                _ => self.client.hello().pid,
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
        &self.client
    }

    /// First part of every name of this manager in the kernel.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Claims the namespace and answers the epoch. `holder` names this manager to those who are
    /// refused later.
    ///
    /// # Errors
    /// `claimed` while another manager lives.
    pub async fn claim(&self, holder: &str) -> Result<u64, LinkError> {
        let claim = ops::Claim {
            namespace: Name::new(&self.namespace)?,
            holder: holder.to_owned(),
            force: false,
        };
        Ok(self.client.call(claim).await?.epoch)
    }

    /// Gives the namespace up for good.
    ///
    /// # Errors
    /// The kernel did not answer.
    pub async fn release(&self) -> Result<(), LinkError> {
        let namespace = Name::new(&self.namespace)?;
        self.client.call(ops::ClaimRelease { namespace }).await?;
        Ok(())
    }

    /// Subscribes to every change in the namespace.
    ///
    /// # Errors
    /// The kernel refused or did not answer.
    pub async fn subscribe(&self) -> Result<(), LinkError> {
        let names = vec![self.everything()];
        self.client.call(ops::Subscribe { names }).await?;
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
                self.client.call(ops::ValueSet { name, value }).await?;
            }
            None => {
                let names = vec![NamePattern::new(name.as_ref())];
                self.client.call(ops::ValueRemove { names }).await?;
            }
        }
        Ok(())
    }

    /// The mark in the environment of worker `wid` of the watcher `key` (lower case).
    ///
    /// # Errors
    /// See [`Self::lineage`].
    pub async fn mark(&self, key: &str, wid: u32) -> Result<Mark, LinkError> {
        Ok(Mark {
            namespace: self.namespace.clone(),
            watcher: key.to_owned(),
            wid,
            lineage: self.lineage().await?,
        })
    }

    /// The line of kernels that the connected one belongs to.
    ///
    /// # Errors
    /// An older kernel, which does not say it in `hello`, did not answer.
    pub async fn lineage(&self) -> Result<Lineage, LinkError> {
        let hello = self.client.hello();
        let started_us = match hello.lineage {
            0 => self.client.call(ops::Status {}).await?.started_us,
            started_us => started_us,
        };
        Ok(Lineage {
            started_us,
            place: hello.place.clone(),
        })
    }

    fn everything(&self) -> NamePattern {
        NamePattern::new(&format!("{}.*", self.namespace))
    }
}
