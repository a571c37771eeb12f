//! A session: who is at the other end of a connection, and what it reads.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use papa_protocol::classic;
use papa_protocol::json::push::{Push, Shutdown};
use papa_protocol::json::request as json;
use papa_protocol::name::{Name, NamePattern};
use serde::{Deserialize, Serialize};

use crate::client::exchange::{Expect, MAX_QUEUED_PUSHES, Order, Outgoing, Peer, SessionId};
use crate::client::inbox::Outbox;

/// How long the first batch of a classic watch is held back.
pub const FIRST_BATCH_DELAY: Duration = Duration::from_millis(20);

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
