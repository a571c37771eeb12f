//! Accepts callers: finds out who they are, and refuses all but the daemon's user and root.
//!
//! The system names the caller on a unix socket. A caller on TCP is looked up by its connection
//! before the banner is sent.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use papa_protocol::limits::MAX_SESSIONS;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tracing::{debug, warn};

use crate::client::budget::Budget;
use crate::client::connection::{Connection, Frozen, Scratch, scratch};
use crate::client::event::{Events, Incoming};
use crate::client::exchange::{Peer, SessionId};
use crate::client::inbox::{Inbox, Outbox};
use crate::client::record::ConnectionRecord;
use crate::client::transport::Transport;
use crate::config::account;
use crate::sys::diag::tcp_holder;
use crate::sys::process::descriptor_limit;

/// Part of the descriptor limit that sessions may use.
const SESSION_SHARE: u64 = 4;
/// The number that stands for users a namespace does not know.
const OVERFLOW_UID: u32 = 65_534;

/// One of the kernel's own listeners.
#[derive(Debug)]
pub enum Listener {
    /// TCP on the loopback interface.
    Tcp(TcpListener),
    /// A unix socket.
    Unix(UnixListener),
}

impl Listener {
    /// Takes a listening descriptor.
    ///
    /// # Errors
    /// It is no listener of either kind, or the runtime refuses it.
    pub fn new(fd: OwnedFd, tcp: bool) -> io::Result<Self> {
        if tcp {
            let listener = std::net::TcpListener::from(fd);
            listener.set_nonblocking(true)?;
            Ok(Self::Tcp(TcpListener::from_std(listener)?))
        } else {
            let listener = std::os::unix::net::UnixListener::from(fd);
            listener.set_nonblocking(true)?;
            Ok(Self::Unix(UnixListener::from_std(listener)?))
        }
    }

    fn is_at(&self, path: &Path) -> bool {
        match self {
            Self::Tcp(_) => false,
            Self::Unix(listener) => listener
                .local_addr()
                .is_ok_and(|address| address.as_pathname() == Some(path)),
        }
    }

    async fn accept(&self) -> io::Result<(Transport, Option<SocketAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, theirs) = listener.accept().await?;
                Ok((Transport::Tcp(stream), Some(theirs)))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Transport::Unix(stream), None))
            }
        }
    }
}

/// What every listener's task shares.
#[derive(Debug, Clone)]
pub struct Server {
    events: Events,
    budget: Rc<Budget>,
    scratch: Scratch,
    next_session: Rc<Cell<SessionId>>,
    most_sessions: usize,
    retired: Rc<Retired>,
    /// Wakes listeners that could not accept, so that they try again.
    again: Rc<Notify>,
    /// The tasks that accept.
    accepting: Rc<RefCell<Vec<AbortHandle>>>,
}

/// The path that was retired last, and what announces that.
#[derive(Debug, Default)]
struct Retired {
    path: RefCell<PathBuf>,
    bell: Notify,
}

impl Server {
    /// A server that sends what its callers do to `events`.
    #[must_use]
    pub fn new(events: Events, budget: Rc<Budget>) -> Self {
        let share = usize::try_from(descriptor_limit() / SESSION_SHARE).unwrap_or(MAX_SESSIONS);
        Self {
            events,
            budget,
            scratch: scratch(),
            next_session: Rc::new(Cell::new(1)),
            most_sessions: share.clamp(8, MAX_SESSIONS),
            retired: Rc::default(),
            again: Rc::default(),
            accepting: Rc::default(),
        }
    }

    /// Starts to accept from a listener.
    pub fn serve(&self, listener: Listener) {
        let task = tokio::task::spawn_local(self.clone().run(listener));
        self.accepting.borrow_mut().push(task.abort_handle());
    }

    /// Stops accepting; callers wait in the accept queue.
    pub fn pause(&self) {
        for task in self.accepting.borrow_mut().drain(..) {
            task.abort();
        }
    }

    /// Wakes listeners that could not accept, so that they try again.
    pub fn accept_again(&self) {
        self.again.notify_waiters();
    }

    /// Goes on with a connection that was stopped in this program.
    pub fn thaw(&self, frozen: Frozen) {
        let Frozen { connection, inbox } = frozen;
        self.budget
            .open(connection.id(), Rc::clone(&inbox), Instant::now());
        connection.note_spoken();
        tokio::task::spawn_local(connection.go_on(inbox));
    }

    /// Goes on with a connection that was stopped in the program before; returns where to send its
    /// orders.
    ///
    /// # Errors
    /// The runtime refuses the socket.
    pub fn resume(
        &self,
        id: SessionId,
        socket: OwnedFd,
        tcp: bool,
        record: ConnectionRecord,
        take: impl FnMut(u64) -> Option<OwnedFd>,
    ) -> io::Result<Outbox> {
        self.next_session.set(self.next_session.get().max(id + 1));
        let transport = Transport::new(socket, tcp)?;
        let inbox = Rc::new(Inbox::default());
        self.budget.open(id, Rc::clone(&inbox), Instant::now());
        let mut connection = self.connection(id, transport);
        connection.restore(record, take);
        let outbox = Outbox::new(&inbox);
        tokio::task::spawn_local(connection.go_on(inbox));
        Ok(outbox)
    }

    fn connection(&self, id: SessionId, transport: Transport) -> Connection {
        Connection::new(
            id,
            transport,
            self.events.clone(),
            Rc::clone(&self.budget),
            Rc::clone(&self.scratch),
        )
    }

    /// Serves one listener until its path is retired.
    async fn run(self, listener: Listener) {
        let mut retired = false;
        loop {
            let accepted = tokio::select! {
                biased;
                accepted = listener.accept() => accepted,
                () = std::future::ready(()), if retired => return,
                () = self.retired.bell.notified() => {
                    // Callers that had found the path before are served.
                    retired = listener.is_at(&self.retired.path.borrow());
                    continue;
                }
            };
            match accepted {
                Ok((transport, theirs)) => self.admit(transport, theirs),
                Err(error) => {
                    debug!(%error, "accept");
                    if is_exhaustion(&error) {
                        warn!(%error, "out of descriptors; not accepting further callers for now");
                        let again = self.again.notified();
                        self.events.send((0, Incoming::CannotAccept));
                        tokio::select! {
                            () = again => {}
                            () = self.retired.bell.notified() => {
                                retired = listener.is_at(&self.retired.path.borrow());
                            }
                        }
                    }
                }
            }
        }
    }

    /// Ends the tasks of listeners that were bound to `path`, which does not lead to them any more.
    pub fn retire(&self, path: &Path) {
        path.clone_into(&mut self.retired.path.borrow_mut());
        self.retired.bell.notify_waiters();
    }

    fn admit(&self, transport: Transport, theirs: Option<SocketAddr>) {
        let peer = match identify(&transport, theirs) {
            Ok(peer) => peer,
            Err(Refusal::Gone) => {
                debug!("a caller has gone");
                return;
            }
            Err(Refusal::Because(reason)) => {
                warn!(reason, "caller refused");
                let text = format!("papa: you are not served: {reason}\n");
                transport.dismiss(text.as_bytes());
                return;
            }
            Err(Refusal::User(uid)) => {
                warn!(uid, reason = "it belongs to another user", "caller refused");
                // A caller that has gone, or does not read, need not know.
                let text = refusal(uid, nix::unistd::geteuid().as_raw());
                transport.dismiss(text.as_bytes());
                return;
            }
        };
        if !self.budget.make_room(self.most_sessions) {
            warn!(
                limit = self.most_sessions,
                "caller refused: too many sessions"
            );
            return;
        }
        let id = self.next_session.get();
        self.next_session.set(id + 1);
        debug!(
            session = id,
            uid = peer.uid,
            pid = peer.pid,
            tcp = peer.tcp,
            "caller"
        );
        let inbox = Rc::new(Inbox::default());
        self.budget.open(id, Rc::clone(&inbox), Instant::now());
        let mut connection = self.connection(id, transport);
        connection.greet();
        let outbox = Outbox::new(&inbox);
        self.events.send((id, Incoming::Connected { peer, outbox }));
        tokio::task::spawn_local(connection.go_on(inbox));
    }
}

fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS)
    )
}

/// What a caller of another user is told, with the way out.
fn refusal(theirs: u32, ours: u32) -> String {
    format!(
        "papa: this kernel belongs to {} and serves only that user and root, not {}; start one of your own on another port \
         (papa -p 20203) and name it in your file: papa_endpoint = tcp://127.0.0.1:20203 in [circus]\n",
        account(ours),
        account(theirs)
    )
}

/// Why a caller is not served.
enum Refusal {
    /// It has closed the connection already, so nobody is told.
    Gone,
    /// It cannot be identified, for this reason.
    Because(&'static str),
    /// It belongs to this user, who is not served.
    User(u32),
}

/// Whether the overflow uid of a caller is its real one: either no user is unknown here, or the
/// process with this number is in this process's user namespace.
/// Source: `user_namespaces(7)`.
fn is_really(pid: Option<i32>) -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let everybody = u32::MAX.to_string();
    if map.split_whitespace().eq(["0", "0", everybody.as_str()]) {
        return true;
    }
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/user")).ok();
    // 0 stands for a process outside of this pid namespace.
    let theirs = pid
        .filter(|pid| *pid > 0)
        .and_then(|pid| namespace(&pid.to_string()));
    theirs.is_some() && theirs == namespace("self")
}

/// Who is at the other end, if that user is served.
fn identify(transport: &Transport, theirs: Option<SocketAddr>) -> Result<Peer, Refusal> {
    let own = nix::unistd::geteuid().as_raw();
    let (uid, pid, tcp) = match transport {
        Transport::Unix(stream) => {
            let credentials = getsockopt(&stream.as_fd(), PeerCredentials)
                .map_err(|_| Refusal::Because("cannot determine the caller's user id"))?;
            // A caller without a process number is in another pid namespace.
            let pid = Some(credentials.pid()).filter(|pid| *pid > 0);
            (credentials.uid(), pid, false)
        }
        Transport::Tcp(stream) => {
            // Answers are sent at once (TCP_NODELAY).
            let _ = stream.set_nodelay(true);
            let ours = stream.local_addr().map_err(|_| Refusal::Gone)?;
            let theirs = theirs.ok_or(Refusal::Because("cannot determine the caller's address"))?;
            let holder = tcp_holder(theirs, ours).map_err(|errno| match errno {
                Errno::ENOENT => Refusal::Gone,
                _ => Refusal::Because("cannot determine the caller's user id"),
            })?;
            // The caller may have gone while it waited to be accepted, and another user may have
            // taken its port. A connection that is still open is the only one between the two
            // addresses.
            if holder.inode == 0 || holder.connecting || stream.peer_addr().is_err() {
                return Err(Refusal::Gone);
            }
            (holder.uid, None, true)
        }
    };
    if uid == OVERFLOW_UID && !(own == OVERFLOW_UID && is_really(pid)) {
        return Err(Refusal::Because("it belongs to another user namespace"));
    }
    if uid != own && uid != 0 {
        return Err(Refusal::User(uid));
    }
    Ok(Peer { uid, pid, tcp })
}
