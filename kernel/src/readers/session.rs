//! What the owner knows of a connection, and what passes between the two.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use papa_protocol::classic;
use papa_protocol::json::push::{Push, Shutdown};
use papa_protocol::json::request as json;
use papa_protocol::name::{Name, NamePattern};
use serde::{Deserialize, Serialize};

use crate::change::upgrade::Examined;
use crate::client::connection::{Frozen, Outbox};
use crate::world::live::SessionId;

/// Most pushes a session may have unwritten before it is taken to be dead.
pub const MAX_QUEUED_PUSHES: usize = 16_384;

/// How long the first batch of a classic watch is held back.
pub const FIRST_BATCH_DELAY: Duration = Duration::from_millis(20);

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// The user that holds the connection.
    pub uid: u32,
    /// The process, where the transport tells.
    pub pid: Option<i32>,
    /// Came over TCP rather than a unix socket.
    pub tcp: bool,
}

/// What a connection should take the next line for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expect {
    /// A classic command.
    Command,
    /// Nothing yet: a batch of watched output comes first.
    Batch,
    /// The acknowledgement of a batch.
    Acknowledgement,
    /// A JSON request.
    Json,
    /// Nothing: the session ends when this is written.
    Close,
}

/// What the owner has a connection write.
#[derive(Debug)]
pub struct Outgoing {
    /// The bytes, in pieces.
    pub pieces: Vec<Bytes>,
    /// A descriptor to send with the first byte.
    pub descriptor: Option<OwnedFd>,
    /// For replies and classic batches: what comes next.
    pub next: Option<Expect>,
    /// A batch of output: report when it is written.
    pub batch: bool,
}

/// What the owner tells a connection.
#[derive(Debug)]
pub enum Order {
    /// Write this.
    Write(Outgoing),
    /// Stop where you are, and hand over what you have.
    Freeze {
        /// Even though an answer is awaited.
        unanswered: bool,
    },
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
    /// Of no connection: the dry run of a new program is over.
    Examined(Box<Examined>),
    /// It is gone.
    Gone,
}

/// What a line that answers a batch of watched output says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchWord {
    /// More, please.
    More,
    /// No more of it; commands are taken again.
    Stop,
    /// No more of it, and the session ends.
    Leave,
}

impl WatchWord {
    /// Reads the line. None for one that says nothing of the kind.
    #[must_use]
    pub fn read(line: &[u8]) -> Option<Self> {
        let word = line.trim_ascii();
        let is = |other: &str| word.eq_ignore_ascii_case(other.as_bytes());
        match word {
            b"" => Some(Self::More),
            _ if is("q") => Some(Self::Stop),
            _ if is("quit") || is("exit") => Some(Self::Leave),
            _ => None,
        }
    }
}

/// How far one subscription has come with one process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cursor {
    /// Next position to send.
    pub position: u64,
    /// The exit has been announced.
    pub exit_sent: bool,
    /// The ends of the streams have been announced.
    pub ends_sent: [bool; 2],
}

/// What a subscription is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubKind {
    /// A classic watch; frames and a line of acknowledgement.
    Watch,
    /// A consumer, and how it gets the bytes.
    Consume(json::Delivery),
    /// A follower.
    Follow {
        /// Starts with the oldest output kept.
        from_start: bool,
    },
    /// Events about what is made and removed.
    Changes,
}

/// One subscription of a session.
#[derive(Debug)]
pub struct Subscription {
    /// What it is for.
    pub kind: SubKind,
    /// Names it is about; none means all.
    pub patterns: Vec<NamePattern>,
    /// Processes it reads, by serial.
    pub cursors: BTreeMap<u64, Cursor>,
    /// Those with something to send, in turn.
    pub pending: VecDeque<u64>,
    /// The same as a set.
    pub is_pending: BTreeSet<u64>,
    /// Events sent.
    pub seq: u64,
}

impl Subscription {
    /// A subscription without processes yet.
    #[must_use]
    pub fn new(kind: SubKind, patterns: Vec<NamePattern>) -> Self {
        Self {
            kind,
            patterns,
            cursors: BTreeMap::new(),
            pending: VecDeque::new(),
            is_pending: BTreeSet::new(),
            seq: 0,
        }
    }

    /// Whether it is about `name`.
    #[must_use]
    pub fn wants(&self, name: &Name) -> bool {
        self.patterns.is_empty() || self.patterns.iter().any(|pattern| pattern.matches(name))
    }

    /// Queues a process once.
    pub fn mark(&mut self, serial: u64) {
        if self.is_pending.insert(serial) {
            self.pending.push_back(serial);
        }
    }

    /// The next process with something to send.
    pub fn next_pending(&mut self) -> Option<u64> {
        let serial = self.pending.pop_front()?;
        self.is_pending.remove(&serial);
        Some(serial)
    }
}

/// A batch of classic frames awaiting its acknowledgement: for each process
/// the position reached and whether its exit was in it.
pub type WatchBatch = Vec<(u64, u64, bool)>;

/// A connection, as the owner sees it.
#[derive(Debug)]
pub struct Session {
    /// Its number.
    pub id: SessionId,
    /// Who is there.
    pub peer: Peer,
    /// What it calls itself, if it said so.
    pub client: Option<String>,
    outbox: Outbox,
    /// Speaks JSON.
    pub json: bool,
    /// A batch is on its way; the next waits.
    pub busy: bool,
    /// Pushes not written yet.
    pub queued: usize,
    /// Subscriptions by number.
    pub subs: BTreeMap<u64, Subscription>,
    /// The number of the next subscription.
    pub next_sub: u64,
    /// Until when the first batch of a watch is held back: the classic client
    /// reads the line a watch starts with and then waits for the socket, so
    /// what it read along with that line it would never look at.
    pub hold_until: Option<Instant>,
    /// The unacknowledged classic batch.
    pub watch_batch: Option<WatchBatch>,
    /// Namespaces that were claimed away from it.
    pub lost: HashSet<Name>,
}

impl Session {
    /// A new session.
    #[must_use]
    pub fn new(id: SessionId, peer: Peer, outbox: Outbox) -> Self {
        Self {
            id,
            peer,
            client: None,
            outbox,
            json: false,
            busy: false,
            queued: 0,
            subs: BTreeMap::new(),
            next_sub: 1,
            hold_until: None,
            watch_batch: None,
            lost: HashSet::new(),
        }
    }

    /// Adds a subscription and returns its number.
    pub fn add_sub(&mut self, sub: Subscription) -> u64 {
        let number = self.next_sub;
        self.next_sub += 1;
        self.subs.insert(number, sub);
        number
    }

    /// Answers the request under way.
    pub fn reply(&self, bytes: BytesMut, next: Expect) {
        self.send(Outgoing {
            pieces: vec![bytes.freeze()],
            descriptor: None,
            next: Some(next),
            batch: false,
        });
    }

    /// Answers with a descriptor.
    pub fn reply_with(&self, bytes: BytesMut, descriptor: Option<OwnedFd>, next: Expect) {
        self.send(Outgoing {
            pieces: vec![bytes.freeze()],
            descriptor,
            next: Some(next),
            batch: false,
        });
    }

    /// Pushes a line nobody asked for just now. False if the session has let
    /// too many pile up and must go.
    #[must_use]
    pub fn push(&mut self, bytes: BytesMut) -> bool {
        self.queued += 1;
        self.send(Outgoing {
            pieces: vec![bytes.freeze()],
            descriptor: None,
            next: None,
            batch: false,
        });
        self.queued <= MAX_QUEUED_PUSHES
    }

    /// Sends a batch; nothing more until it is written.
    pub fn send_batch(&mut self, pieces: Vec<Bytes>, next: Option<Expect>) {
        self.busy = true;
        self.send(Outgoing {
            pieces,
            descriptor: None,
            next,
            batch: true,
        });
    }

    /// Ends a classic watch that has no process left, unless a batch awaits its
    /// acknowledgement, which ends it.
    pub fn end_watch_of_nothing(&mut self) {
        if self.watch_batch.is_some() {
            return;
        }
        let before = self.subs.len();
        self.subs
            .retain(|_, sub| sub.kind != SubKind::Watch || !sub.cursors.is_empty());
        if self.subs.len() < before {
            let mut text = BytesMut::new();
            classic::finish(classic::NOTHING_LEFT, &mut text);
            self.reply(text, Expect::Command);
        }
    }

    /// Says that the kernel ends, and ends the session.
    pub fn say_farewell(&mut self) {
        let mut text = BytesMut::new();
        if self.json {
            Push::Shutdown(Shutdown {
                signal: 0,
                ends: true,
            })
            .encode(&mut text);
        } else {
            text.extend_from_slice(classic::KERNEL_ENDS.as_bytes());
        }
        self.reply(text, Expect::Close);
    }

    /// Ends the session.
    pub fn close(&self) {
        self.send(Outgoing {
            pieces: Vec::new(),
            descriptor: None,
            next: Some(Expect::Close),
            batch: false,
        });
    }

    /// Has the connection stop and hand over what it has; it takes no further
    /// line.
    pub fn freeze(&self, unanswered: bool) {
        self.outbox.send_first(Order::Freeze { unanswered });
    }

    fn send(&self, outgoing: Outgoing) {
        self.outbox.send(Order::Write(outgoing));
    }
}
