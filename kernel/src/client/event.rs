//! Events of connections, and the sender that takes them to their receiver.
//!
//! The receiver is a closure: nothing in this folder knows who receives.

use std::fmt;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use papa_protocol::classic;
use papa_protocol::json::request as json;

use super::connection::Frozen;
use super::exchange::{Peer, SessionId, WatchWord};
use super::inbox::Outbox;

/// Where a task of this thread sends its events. The receiver handles each before `send` returns.
/// Clones lead to the same receiver.
pub struct Sender<E>(Rc<dyn Fn(E)>);

/// Where connections and listeners send what happens, with the session's number.
pub type Events = Sender<(SessionId, Incoming)>;

impl<E> Sender<E> {
    /// A sender to `receive`.
    pub fn new(receive: impl Fn(E) + 'static) -> Self {
        Self(Rc::new(receive))
    }

    /// Has the receiver handle `event` now.
    pub fn send(&self, event: E) {
        (self.0)(event);
    }
}

impl<E> Clone for Sender<E> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<E> fmt::Debug for Sender<E> {
    /// The receiver may own the sender, so nothing of it is shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sender")
    }
}

/// An event of a connection.
#[derive(Debug)]
pub enum Incoming {
    /// The connection exists.
    Connected {
        /// Who is there.
        peer: Peer,
        /// Where to send its orders.
        outbox: Outbox,
    },
    /// A classic line, parsed.
    Classic(Result<classic::Request, classic::Error>),
    /// The line that answers a batch.
    Acknowledge(WatchWord),
    /// A JSON line, parsed, with the descriptor that came along.
    Json(Result<json::Request, json::Rejected>, Option<OwnedFd>),
    /// A batch has been written.
    Drained,
    /// A queued push has been written.
    Pushed,
    /// The connection has stopped; this is its state.
    Frozen(Box<Frozen>),
    /// No descriptor is left to accept another connection. Belongs to no session.
    CannotAccept,
    /// The connection is gone.
    Gone,
}
