//! The log state's way to and from the kernel.
//!
//! Owns the name it is held under and the lock that keeps two processes from working on it.
//! Invariant: whoever has a `LogWriter` on a held state has its lock.

use std::io;
use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use papa_client::{Client, ClientError};
use papa_protocol::json::reply::ErrorCode;
use papa_protocol::json::request as ops;
use papa_protocol::name::Name;

use crate::exchange::{LogSettings, Reports, SessionError, TRY_AGAIN};
use crate::schedule::Now;
use crate::store::Store;
use crate::writer::LogWriter;

/// Name the log state's memfd is held under.
#[must_use]
pub fn held_logs(namespace: &str) -> String {
    format!("{namespace}.manager.logs")
}

/// Fetches the state a predecessor left with the kernel, or leaves a new one there.
pub(super) async fn open_state(
    client: &Client,
    settings: &LogSettings,
    reports: &mut Reports,
) -> Result<LogWriter, SessionError> {
    let name = held_logs(&settings.namespace);
    let fetch = ops::Fetch {
        name: Name::new(&name).map_err(|error| SessionError::Name(error.to_string()))?,
    };
    match client.call_for_descriptor(fetch).await {
        Ok((_, descriptor)) => {
            if !try_lock(&descriptor)? {
                let text = "another manager is still writing the logs; waiting for it to end";
                tracing::warn!("{text}");
                reports.troubles(vec![format!("logs: {text}")]);
                reports.send();
                lock(&descriptor).await?;
            }
            match Store::open(descriptor) {
                Ok((store, unfinished)) => {
                    return Ok(LogWriter::open(store, unfinished, Now::read()));
                }
                // Of a later version: what it says must not be lost, so nothing is written until
                // somebody decides.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    return Err(error.into());
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    tracing::error!(%error, "replacing the log state in the kernel, which is unusable");
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(error) if error.code() == Some(ErrorCode::NotFound) => {}
        Err(ClientError::Unsupported | ClientError::NoDescriptor) => {
            tracing::warn!(
                "the kernel is reached over TCP, which cannot carry the log state: lines may repeat if the manager is killed"
            );
            return Ok(LogWriter::open(Store::create()?, Vec::new(), Now::read()));
        }
        Err(error) => return Err(error.into()),
    }
    let store = Store::create()?;
    hold(client, &name, &store).await?;
    Ok(LogWriter::open(store, Vec::new(), Now::read()))
}

/// Leaves the state with the kernel and locks it: closing the copy that was sent gave the lock up.
pub(super) async fn hold(client: &Client, name: &str, store: &Store) -> Result<(), SessionError> {
    let name = Name::new(name).map_err(|error| SessionError::Name(error.to_string()))?;
    let copy = store.descriptor().try_clone_to_owned()?;
    client
        .call_with_descriptor(ops::Hold { name }, copy)
        .await?;
    lock(store.descriptor()).await
}

/// Waits until no other process works on the state. The lock belongs to the process, not to the
/// descriptor, which is why it works among copies of one descriptor, and it ends with the process.
async fn lock(descriptor: impl AsFd) -> Result<(), SessionError> {
    while !try_lock(&descriptor)? {
        tokio::time::sleep(TRY_AGAIN).await;
    }
    Ok(())
}

fn try_lock(descriptor: &impl AsFd) -> io::Result<bool> {
    let whole = libc::flock {
        l_type: i16::try_from(libc::F_WRLCK).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(descriptor.as_fd(), FcntlArg::F_SETLK(&whole)) {
        Ok(_) => Ok(true),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
