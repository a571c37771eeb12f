//! The manager's end of the control socket.
//!
//! Owns the unix socket, its privacy, and one task per connection that turns lines into requests
//! and replies into lines. Leaves to others: what a request does (`supervisor`).
//! Invariant: a request is read only from a peer of our own uid or root; a line is at most
//! `MAX_REQUEST_BYTES` long; replies go out in the order of the requests.

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Uid;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use crate::control::message::{
    Command, Errno, EventsReply, Listen, MAX_REQUEST_BYTES, Reply, Request, RequestError, Since,
};
use crate::control::sessions::{MAX_LISTENERS, Session, Sessions};
use crate::control::stuck::{Found, end_if_stuck, holder, lock_path};
use crate::error::ManagerError;
use crate::runtime_dir::RuntimeDir;

/// Only the owner may connect; the directory is private too.
const SOCKET_MODE: u32 = 0o600;
/// Pause when no descriptor is left for a new connection.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// How often the socket's path is looked for: a runtime directory may be cleaned up under a manager
/// that runs for months.
const LOOK_FOR_PATH: Duration = Duration::from_secs(5);

/// How often an asker that has finished asking is looked for while its answer is worked on.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

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
    bound: Arc<Mutex<Bound>>,
    accepting: tokio::task::JoinHandle<()>,
}

/// What we have at the path.
#[derive(Debug)]
struct Bound {
    /// Of the socket we bound there.
    inode: Option<(u64, u64)>,
    /// Held for as long as we live: two that start at once cannot both find the socket dead and
    /// replace it. When the file is gone with its directory, the kernel's claim is what keeps a
    /// second manager out.
    _lock: Flock<fs::File>,
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
        let failed = |source| ManagerError::ControlSocket {
            path: path.clone(),
            source,
        };
        match end_if_stuck(&path).map_err(failed)? {
            Found::Nobody => {}
            Found::Lives(pid) => return Err(running(pid)),
            Found::Ended(pid) => {
                tracing::warn!(pid, "ended an earlier manager that did not answer");
            }
        }
        let Some(lock) = lock(&path).map_err(failed)? else {
            // It is starting, or ending.
            return Err(running(holder(&path)));
        };
        note_holder(&lock);
        let listener = listen(&path).map_err(failed)?;
        let bound = Arc::new(Mutex::new(Bound {
            inode: inode(&path),
            _lock: lock,
        }));
        Ok(Self {
            accepting: tokio::spawn(accept(listener, asked, path.clone(), bound.clone())),
            path,
            bound,
        })
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.accepting.abort();
        // Another manager may have bound the path meanwhile: its socket stays.
        let bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        if bound.inode.is_some()
            && bound.inode == inode(&self.path)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::debug!(%error, "the control socket's path stays");
        }
    }
}

/// The lock beside the socket, unless somebody has it.
fn lock(socket: &Path) -> io::Result<Option<Flock<fs::File>>> {
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(SOCKET_MODE)
        .open(lock_path(socket))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::Error::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}

/// For whoever comes while the socket does not answer.
fn note_holder(lock: &Flock<fs::File>) {
    let _ = lock.set_len(0);
    let _ = (&**lock).write_all(std::process::id().to_string().as_bytes());
}

/// Makes directory, lock and socket anew where somebody removed them. None if they are there, or
/// another manager is at the path.
fn listen_again(path: &Path) -> io::Result<Option<(UnixListener, Bound)>> {
    if fs::symlink_metadata(path).is_ok() {
        return Ok(None);
    }
    RuntimeDir::of_socket(path)
        .ensure()
        .map_err(io::Error::other)?;
    let Some(lock) = lock(path)? else {
        return Ok(None);
    };
    note_holder(&lock);
    let listener = listen(path)?;
    let bound = Bound {
        inode: inode(path),
        _lock: lock,
    };
    Ok(Some((listener, bound)))
}

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

async fn accept(
    mut listener: UnixListener,
    asked: mpsc::Sender<Asked>,
    path: PathBuf,
    bound: Arc<Mutex<Bound>>,
) {
    let sessions = Sessions::default();
    let mut trouble = None;
    loop {
        let accepted = tokio::time::timeout(LOOK_FOR_PATH, listener.accept()).await;
        match accepted {
            Ok(Ok((stream, _))) if is_trusted(&stream) => serve(stream, &sessions, &asked),
            Ok(Ok(_)) => tracing::warn!("refused a control connection of another user"),
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot accept a control connection");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
            Err(_) => match listen_again(&path) {
                Ok(None) => {}
                Ok(Some((again, now))) => {
                    tracing::warn!(path = %path.display(), "control socket was removed; recreating it");
                    *bound.lock().unwrap_or_else(PoisonError::into_inner) = now;
                    listener = again;
                    trouble = None;
                }
                // Once for each reason, not every time.
                Err(error) if trouble.as_ref() != Some(&error.to_string()) => {
                    tracing::warn!(path = %path.display(), %error, "cannot recreate the control socket, which was removed");
                    trouble = Some(error.to_string());
                }
                Err(_) => {}
            },
        }
    }
}

fn serve(stream: UnixStream, sessions: &Sessions, asked: &mpsc::Sender<Asked>) {
    let Some(session) = sessions.enter() else {
        tokio::spawn(refuse(stream));
        return;
    };
    let (number, asked) = (session.number(), asked.clone());
    let task = tokio::spawn(async move {
        if let Err(error) = converse(stream, &asked, &session).await {
            tracing::debug!(%error, "a control connection ended");
        }
    });
    sessions.set_task(number, task.abort_handle());
}

/// Tells a connection for which there is no room; whoever only wants to know whether we live knows
/// it then.
async fn refuse(mut stream: UnixStream) {
    let reason = "as many requests are under way as this manager takes; try again when one is done";
    let error = RequestError::new(Errno::Command, reason);
    let line = Reply::error(serde_json::Value::Null, now(), error).to_line();
    let _ = tokio::time::timeout(LOOK_AGAIN, stream.write_all(&line)).await;
}

fn is_trusted(stream: &UnixStream) -> bool {
    let ours = Uid::effective().as_raw();
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == ours || peer.uid() == 0)
}

async fn converse(
    stream: UnixStream,
    asked: &mpsc::Sender<Asked>,
    session: &Session,
) -> io::Result<()> {
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
        session.asks();
        let reply = match Request::parse(&line) {
            Ok(Request {
                id,
                command: Command::Listen(listen),
                ..
            }) => {
                if session.listens() {
                    return stream_events(reader, writer, asked, id, listen).await;
                }
                let reason = format!("{MAX_LISTENERS} connections listen already; end one first");
                Reply::error(id, now(), RequestError::new(Errno::Command, reason))
            }
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
                    session.is_answered();
                    continue;
                }
                match unless_gone(&mut reader, receiver).await {
                    Some(reply) => reply,
                    None => return Ok(()),
                }
            }
            Err((id, error)) => Reply::error(id, now(), error),
        };
        writer.write_all(&reply.to_line()).await?;
        session.is_answered();
    }
}

/// The rest of a connection that listens: what it asks for is fetched batch by batch, so that a
/// slow reader holds up only this task.
async fn stream_events(
    mut reader: BufReader<OwnedReadHalf>,
    mut writer: OwnedWriteHalf,
    asked: &mpsc::Sender<Asked>,
    id: serde_json::Value,
    mut listen: Listen,
) -> io::Result<()> {
    let mut begun = false;
    loop {
        let (sender, receiver) = oneshot::channel();
        let request = Request {
            id: id.clone(),
            cast: false,
            // The first fetch says where the stream begins, the others wait for something to say.
            waiting: begun,
            command: Command::Listen(listen.clone()),
        };
        let question = Asked {
            request,
            reply: sender,
        };
        if asked.send(question).await.is_err() {
            return Ok(());
        }
        let Some(reply) = unless_gone(&mut reader, receiver).await else {
            return Ok(());
        };
        let batch: EventsReply = reply.body().map_err(io::Error::other)?;
        let mut lines = Vec::new();
        if !begun {
            let start = json!({"incarnation": batch.incarnation, "seq": batch.seq});
            lines.extend(Reply::ok(id.clone(), now(), &start).to_line());
            begun = true;
        }
        if batch.missed != Some(0) {
            let missed = json!({"topic": "listen.missed", "time": now(), "missed": batch.missed});
            lines.extend(format!("{missed}\n").into_bytes());
        }
        for event in &batch.events {
            serde_json::to_writer(&mut lines, event)?;
            lines.push(b'\n');
        }
        writer.write_all(&lines).await?;
        listen.since = Some(Since {
            incarnation: Some(batch.incarnation),
            seq: batch.seq,
        });
    }
}

/// The answer, or none if the manager ends first or whoever asked has gone: waiting for nobody
/// would hold a permit.
async fn unless_gone(
    reader: &mut BufReader<OwnedReadHalf>,
    answer: oneshot::Receiver<Reply>,
) -> Option<Reply> {
    tokio::select! {
        biased;
        answer = answer => answer.ok(),
        () = gone(reader) => None,
    }
}

/// Waits until the other end is closed.
///
/// # Cancel safety
/// Nothing is consumed.
async fn gone(reader: &mut BufReader<OwnedReadHalf>) {
    // Wakes at the end of the stream, but also for a next request, and for one who has only
    // finished asking.
    let _ = reader.fill_buf().await;
    while !is_hung_up(reader.get_ref().as_ref()) {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn is_hung_up(stream: &UnixStream) -> bool {
    let mut polled = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let ends = PollFlags::POLLHUP | PollFlags::POLLERR;
    poll(&mut polled, PollTimeout::ZERO).is_ok()
        && polled[0]
            .revents()
            .is_some_and(|events| events.intersects(ends))
}

/// Seconds since the epoch, as Circus's replies carry them.
#[must_use]
pub fn now() -> f64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
