//! What happens on connections, and the way it takes to whoever handles it.
//!
//! The receiver is a closure: nothing in this folder knows who listens.

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
    /// The receiver may own who sends: nothing of it is shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sender")
    }
}

/// What a connection tells the owner.
#[derive(Debug)]
pub enum Incoming {
    /// It exists.
    Connected {
        /// Who is there.
        peer: Peer,
        /// Where to send what it shall do.
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
    /// It has stopped, and this is what it has.
    Frozen(Box<Frozen>),
    /// Of no connection: there is no descriptor for another one.
    CannotAccept,
    /// It is gone.
    Gone,
}
