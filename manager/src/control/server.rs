//! The manager's end of the control socket.
//!
//! Owns the unix socket, its privacy, and one task per connection that turns lines into requests and replies into lines. Leaves to
//! others: what a request does (`supervisor`).
//! Invariant: a request is read only from a peer of our own uid or root; a line is at most `MAX_REQUEST_BYTES` long; replies go out in
//! the order of the requests.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::unistd::Uid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use crate::control::message::{Errno, MAX_REQUEST_BYTES, Reply, Request, RequestError};
use crate::error::ManagerError;

/// Connections served at once; more wait in the accept queue.
const MAX_CONNECTIONS: usize = 128;
/// Only the owner may connect; the directory is private too.
const SOCKET_MODE: u32 = 0o600;
/// Pause when no descriptor is left for a new connection.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// A request and where its answer goes.
#[derive(Debug)]
pub struct Asked {
    /// What is asked.
    pub request: Request,
    /// Takes the answer; dropped without one, the connection ends.
    pub reply: oneshot::Sender<Reply>,
}

/// The listening socket; its path is removed when this is dropped.
#[derive(Debug)]
pub struct ControlServer {
    path: PathBuf,
    /// Of the socket we bound there.
    inode: Option<(u64, u64)>,
    accepting: tokio::task::JoinHandle<()>,
}

impl ControlServer {
    /// Listens at `path`, in a directory that was checked, and sends requests to `asked`.
    ///
    /// # Errors
    /// A live manager answers there, or the socket cannot be made.
    pub async fn bind(
        path: PathBuf,
        namespace: &str,
        asked: mpsc::Sender<Asked>,
    ) -> Result<Self, ManagerError> {
        let running = |pid| ManagerError::AlreadyRunning {
            namespace: namespace.to_owned(),
            pid,
        };
        match UnixStream::connect(&path).await {
            Ok(stream) => {
                let peer = stream.peer_cred().ok();
                return Err(running(peer.and_then(|peer| peer.pid())));
            }
            // Nobody is there. Anything else is somebody who is busy or stopped.
            Err(error) if DEAD.contains(&error.kind()) => {}
            Err(error) => {
                tracing::warn!(%error, "the control socket does not answer");
                return Err(running(None));
            }
        }
        let listener = listen(&path).map_err(|source| ManagerError::ControlSocket {
            path: path.clone(),
            source,
        })?;
        Ok(Self {
            inode: inode(&path),
            path,
            accepting: tokio::spawn(accept(listener, asked)),
        })
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.accepting.abort();
        // Another manager may have bound the path meanwhile: its socket stays.
        if self.inode.is_some()
            && self.inode == inode(&self.path)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::debug!(%error, "the control socket's path stays");
        }
    }
}

/// What connecting to a path answers when nobody listens there.
const DEAD: [io::ErrorKind; 2] = [io::ErrorKind::ConnectionRefused, io::ErrorKind::NotFound];

fn inode(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE))?;
    Ok(listener)
}

async fn accept(listener: UnixListener, asked: mpsc::Sender<Asked>) {
    let permits = std::sync::Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) if is_trusted(&stream) => {
                let asked = asked.clone();
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, &asked).await {
                        tracing::debug!(%error, "a control connection ended");
                    }
                    drop(permit);
                });
            }
            Ok(_) => tracing::warn!("a control connection of another user was refused"),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a control connection");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

fn is_trusted(stream: &UnixStream) -> bool {
    let ours = Uid::effective().as_raw();
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == ours || peer.uid() == 0)
}

async fn converse(stream: UnixStream, asked: &mpsc::Sender<Asked>) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = MAX_REQUEST_BYTES as u64 + 1;
        let length = (&mut reader)
            .take(limit)
            .read_until(b'\n', &mut line)
            .await?;
        if length == 0 {
            return Ok(());
        }
        if line.pop_if(|last| *last == b'\n').is_none() {
            // A last line without its newline is answered too; one that fills the limit is not.
            if length as u64 == limit {
                let reason = format!("a request line has more than {MAX_REQUEST_BYTES} bytes");
                let error = RequestError::new(Errno::Message, reason);
                return writer
                    .write_all(&Reply::error(serde_json::Value::Null, now(), error).to_line())
                    .await;
            }
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let reply = match Request::parse(&line) {
            Ok(request) => {
                let cast = request.cast;
                let (sender, receiver) = oneshot::channel();
                let question = Asked {
                    request,
                    reply: sender,
                };
                if asked.send(question).await.is_err() {
                    return Ok(());
                }
                if cast {
                    continue;
                }
                // No answer: the manager has ended.
                let Ok(reply) = receiver.await else {
                    return Ok(());
                };
                reply
            }
            Err((id, error)) => Reply::error(id, now(), error),
        };
        writer.write_all(&reply.to_line()).await?;
    }
}

/// Seconds since the epoch, as Circus's replies carry them.
#[must_use]
pub fn now() -> f64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
