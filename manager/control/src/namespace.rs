//! One namespace of the kernel: what its manager asks of it, and papactl where no manager runs.
//!
//! Owns the claim, the marks of workers, and the end of processes: their pidfds and the
//! acknowledgement of their exits. Leaves to others: starting workers and everything else that only
//! a manager asks (`kernel_link` of the manager), the connection (`papa_client`).
//! Invariant: every request can be repeated.
//! Source: protocol/README.md.

use std::os::fd::OwnedFd;

use papa_client::{Client, ClientError};
use papa_processes::mark::{Lineage, Mark};
use papa_protocol::json::reply::ErrorCode;
use papa_protocol::json::request as ops;
use papa_protocol::name::{Name, NameError};
use papa_protocol::record::Serial;
use papa_system::sys;

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

/// A namespace and a connection to its kernel. Clones share the connection.
#[derive(Debug, Clone)]
pub struct Namespace {
    client: Client,
    name: String,
}

impl Namespace {
    /// The namespace `name` in the kernel at the other end of `client`.
    #[must_use]
    pub fn new(client: Client, name: String) -> Self {
        Self { client, name }
    }

    /// The connection.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Its name: the first part of every name in it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Claims the namespace and answers the epoch. `holder` names this manager to those who are
    /// refused later.
    ///
    /// # Errors
    /// `claimed` while another manager lives.
    pub async fn claim(&self, holder: &str) -> Result<u64, LinkError> {
        let claim = ops::Claim {
            namespace: Name::new(&self.name)?,
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
        let namespace = Name::new(&self.name)?;
        self.client.call(ops::ClaimRelease { namespace }).await?;
        Ok(())
    }

    /// The mark in the environment of worker `wid` of the watcher `key` (lower case).
    ///
    /// # Errors
    /// See [`Self::lineage`].
    pub async fn mark(&self, key: &str, wid: u32) -> Result<Mark, LinkError> {
        Ok(Mark {
            namespace: self.name.clone(),
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

    /// A pidfd for a process whose exit we have not acknowledged.
    ///
    /// # Errors
    /// `not_found` when the kernel has forgotten it.
    pub async fn pidfd(&self, serial: u64, pid: i32) -> Result<OwnedFd, LinkError> {
        let request = ops::ProcessPidfd {
            serial: Serial(serial),
        };
        match self.client.call_for_descriptor(request).await {
            Ok((_, pidfd)) => Ok(pidfd),
            // TCP carries no descriptors. The kernel does not reap a process before its exit is
            // acknowledged, so a process that is listed after the open is the one that was opened.
            Err(ClientError::Unsupported | ClientError::NoDescriptor) => {
                let pidfd = sys::pidfd_open(pid)?;
                let list = ops::ProcessList {
                    names: Vec::new(),
                    serials: vec![Serial(serial)],
                };
                let processes = self.client.call(list).await?.processes;
                if processes.is_empty() {
                    return Err(std::io::Error::from_raw_os_error(nix::libc::ESRCH).into());
                }
                Ok(pidfd)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Acknowledges the exit of a process. With `discard` its output is removed too.
    ///
    /// # Errors
    /// The connection's queue stays full.
    pub async fn acknowledge_exit(&self, serial: u64, discard: bool) -> Result<(), LinkError> {
        let serials = vec![Serial(serial)];
        if discard {
            // The kernel answers `not_found` where the acknowledgement has removed the process.
            let acknowledge = ops::ExitAck {
                serials: serials.clone(),
            };
            let remove = ops::ProcessRemove {
                serials,
                ..ops::ProcessRemove::default()
            };
            for result in [
                self.client.call(acknowledge).await.map(drop),
                self.client.call(remove).await.map(drop),
            ] {
                match result {
                    Err(error) if error.code() == Some(ErrorCode::NotFound) => {}
                    other => other?,
                }
            }
            return Ok(());
        }
        self.client.call(ops::ExitAck { serials }).await?;
        Ok(())
    }
}
