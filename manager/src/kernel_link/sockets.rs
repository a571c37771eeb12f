//! Sockets: made, found, tried out and removed in the kernel.
//!
//! Owns the request that a socket's section becomes, and the record of which sockets exist. Leaves
//! to others: when a socket is made, and what is done if it cannot be (`supervisor`).

use std::collections::BTreeSet;
use std::time::Duration;

use papa_client::ClientError;
use papa_protocol::json::reply::ErrorCode;
use papa_protocol::json::request as ops;
use papa_protocol::name::{Name, NameError, NamePattern};
use papa_protocol::socket::{SocketInfo, Umask};
use papa_protocol::text::ByteString;
use tokio::time::sleep;

use super::{KernelLink, LinkError};
use crate::config::{SocketConfig, WatcherConfig, socket_name};

/// Pause before a kernel that did not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// What the names of sockets begin with, after the namespace, that stay open for a change that may
/// be taken back. Names of sockets in a file are in lower case, so none has such a name.
pub const ASIDE: &str = "BEFORE.";

impl KernelLink {
    /// Makes a socket, or finds it made.
    ///
    /// # Errors
    /// The kernel refused; one that exists with other parameters is kept, with a warning.
    pub async fn make_socket(&self, socket: &SocketConfig) -> Result<(), LinkError> {
        let request = socket_request(socket, self.namespace())?;
        match self.ask_for_socket(request).await {
            Err(error) if error.code() == Some(ErrorCode::Exists) => {
                tracing::warn!(socket = socket.name, %error, "keeping the existing socket, which differs from the file");
                self.describe_socket(socket).await.map(drop)
            }
            other => {
                self.is_there(socket, &other?);
                Ok(())
            }
        }
    }

    /// Whether the kernel's socket of this name has the parameters of the file. A missing socket is
    /// made if it can be.
    ///
    /// # Errors
    /// The kernel did not answer, or refused for another reason than what is there.
    pub async fn has_socket(&self, socket: &SocketConfig) -> Result<bool, LinkError> {
        let request = socket_request(socket, self.namespace())?;
        match self.ask_for_socket(request).await {
            // Where the previous socket stands aside at that address, nothing has the name.
            Err(error)
                if matches!(
                    error.code(),
                    Some(ErrorCode::Exists | ErrorCode::BindFailed)
                ) =>
            {
                Ok(false)
            }
            other => {
                self.is_there(socket, &other?);
                Ok(true)
            }
        }
    }

    /// Forgets which sockets exist: another kernel has none of them.
    pub fn forget_sockets(&self) {
        if let Ok(mut known) = self.sockets.lock() {
            known.clear();
        }
    }

    fn is_there(&self, socket: &SocketConfig, info: &SocketInfo) {
        if let Ok(mut known) = self.sockets.lock() {
            known.insert(socket.name.clone(), info.serial);
        }
    }

    /// Names in the kernel of the sockets a worker inherits. A socket that does not exist is left
    /// out unless the worker needs it: then the kernel refuses the start.
    pub(super) fn to_inherit(&self, watcher: &WatcherConfig) -> Vec<String> {
        let needed = watcher.needed_sockets();
        let is_there = |name: &String| {
            let known = self.sockets.lock();
            known.is_ok_and(|known| known.contains_key(name))
        };
        let inherited = watcher.sockets.iter();
        inherited
            .filter(|name| needed.contains(*name) || is_there(name))
            .map(|name| socket_name(self.namespace(), name))
            .collect()
    }

    /// The highest serial of these sockets, if all are known.
    #[must_use]
    pub fn newest_of(&self, sockets: &BTreeSet<String>) -> Option<u64> {
        let known = self.sockets.lock().ok()?;
        let serials = sockets
            .iter()
            .map(|name| known.get(name).copied().flatten());
        let serials: Option<Vec<u64>> = serials.collect();
        serials?.into_iter().max()
    }

    /// Whether one of the sockets that exist has this serial.
    #[must_use]
    pub fn has_serial(&self, serial: u64) -> bool {
        let known = self.sockets.lock();
        known.is_ok_and(|known| known.values().any(|one| *one == Some(serial)))
    }

    async fn describe_socket(&self, socket: &SocketConfig) -> Result<SocketInfo, LinkError> {
        let request = ops::SocketList {
            names: vec![NamePattern::new(&socket.kernel_name(self.namespace()))],
        };
        let listed = self.client().call(request).await?.sockets;
        let found = listed.into_iter().next();
        let found = found.ok_or_else(|| std::io::Error::other("the kernel has no such socket"))?;
        self.is_there(socket, &found);
        Ok(found)
    }

    /// Makes a socket. Older kernels do not know `replace`, and always replace.
    async fn ask_for_socket(
        &self,
        mut request: ops::SocketMake,
    ) -> Result<SocketInfo, ClientError> {
        let made = match self.client().call(request.clone()).await {
            Err(error) if request.replace && error.code() == Some(ErrorCode::Invalid) => {
                request.replace = false;
                self.client().call(request).await
            }
            other => other,
        };
        made.map(|made| made.socket)
    }

    /// Whether the path of a unix socket leads to it; `None` where the kernel does not know.
    ///
    /// # Errors
    /// The kernel refused, did not answer, or has no such socket.
    pub async fn is_at_its_path(&self, socket: &SocketConfig) -> Result<Option<bool>, LinkError> {
        Ok(self.describe_socket(socket).await?.at_path)
    }

    /// Checks that a socket can be made, by making one like it under another name and removing it.
    ///
    /// # Errors
    /// The kernel refused or did not answer.
    pub async fn try_socket(&self, socket: &SocketConfig) -> Result<(), LinkError> {
        self.forget_trial().await?;
        let mut request = socket_request(socket, self.namespace())?;
        request.name = self.trial()?;
        // A trial does not replace a socket that somebody uses.
        let replaces = std::mem::take(&mut request.replace);
        match self.client().call(request).await {
            Err(error) if replaces && error.code() == Some(ErrorCode::BindFailed) => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => self.forget_trial().await,
        }
    }

    /// Removes the socket of a trial: a manager that was killed in `try_socket` leaves one, which
    /// keeps an address taken.
    ///
    /// # Errors
    /// The kernel refused or did not answer.
    pub async fn forget_trial(&self) -> Result<(), LinkError> {
        let request = ops::SocketRemove {
            names: vec![NamePattern::new(&self.trial()?)],
            force: false,
        };
        match self.client().call(request).await {
            Err(error) if error.code() == Some(ErrorCode::NotFound) => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }

    /// Name of a trial's socket, outside of every namespace so that no file's socket has it.
    fn trial(&self) -> Result<Name, NameError> {
        Name::new(&format!("{}-trial", self.namespace()))
    }

    /// Puts a socket in the place of a different one that has its name. That one stays open aside,
    /// until [`Self::close_aside`], and comes back when it is asked for in the same way. Waits until
    /// the kernel answers, because asking twice does the same as asking once.
    ///
    /// # Errors
    /// The kernel refused, with `exists` where it cannot put sockets aside. Then nothing has changed.
    pub async fn exchange_socket(&self, socket: &SocketConfig) -> Result<(), LinkError> {
        let mut request = socket_request(socket, self.namespace())?;
        request.aside = Name::new(&format!("{}{}", self.aside(), socket.name)).ok();
        loop {
            match self.ask_for_socket(request.clone()).await {
                // A kernel refuses a whole request for a member that it does not know, and names it.
                Err(error)
                    if request.aside.is_some()
                        && error.code() == Some(ErrorCode::Invalid)
                        && error.to_string().contains("`aside`") =>
                {
                    request.aside = None;
                }
                Err(error) => {
                    let error = LinkError::from(error);
                    if !error.is_unanswered() {
                        return Err(error);
                    }
                    sleep(ASK_AGAIN).await;
                }
                Ok(info) => {
                    self.is_there(socket, &info);
                    return Ok(());
                }
            }
        }
    }

    /// Whether a socket of this name stands aside.
    ///
    /// # Errors
    /// The kernel refused or did not answer.
    pub async fn is_aside(&self, name: &str) -> Result<bool, LinkError> {
        let request = ops::SocketList {
            names: vec![NamePattern::new(&format!("{}{name}", self.aside()))],
        };
        Ok(!self.client().call(request).await?.sockets.is_empty())
    }

    /// Closes the sockets that stand aside. Waits until the kernel answers.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn close_aside(&self) -> Result<(), LinkError> {
        let request = ops::SocketRemove {
            names: vec![NamePattern::new(&format!("{}*", self.aside()))],
            force: false,
        };
        loop {
            match self.client().call(request.clone()).await {
                Err(error) if error.code() == Some(ErrorCode::NotFound) => return Ok(()),
                Err(error) => {
                    let error = LinkError::from(error);
                    if !error.is_unanswered() {
                        return Err(error);
                    }
                    sleep(ASK_AGAIN).await;
                }
                Ok(_) => return Ok(()),
            }
        }
    }

    fn aside(&self) -> String {
        format!("{}.{ASIDE}", self.namespace())
    }

    /// Removes a socket; one that is gone is no error.
    ///
    /// # Errors
    /// The kernel refused or did not answer.
    pub async fn remove_socket(&self, socket: &SocketConfig) -> Result<(), LinkError> {
        if let Ok(mut known) = self.sockets.lock() {
            known.remove(&socket.name);
        }
        let request = ops::SocketRemove {
            names: vec![NamePattern::new(&socket.kernel_name(self.namespace()))],
            force: false,
        };
        match self.client().call(request).await {
            Err(error) if error.code() == Some(ErrorCode::NotFound) => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }
}

fn socket_request(socket: &SocketConfig, namespace: &str) -> Result<ops::SocketMake, LinkError> {
    let mut request = ops::SocketMake::new(Name::new(&socket.kernel_name(namespace))?);
    request.family = Some(socket.family);
    request.socket_type = socket.kind;
    request.backlog = Some(socket.backlog);
    request.path = socket
        .path
        .as_ref()
        .map(|path| ByteString::from(path.clone().into_os_string()));
    request.umask = socket.umask.and_then(|bits| Umask::new(bits.into()));
    request.host = socket.host.clone();
    request.port = socket.port;
    request.interface = socket.interface.clone();
    request.reuseport = socket.reuseport;
    request.nonblocking = socket.nonblocking;
    request.replace = socket.replace && socket.path.is_some();
    request.v6only = socket.v6only;
    Ok(request)
}
