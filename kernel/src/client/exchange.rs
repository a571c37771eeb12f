//! What passes between a connection and the owner: orders one way, words the other.
//!
//! Types alone; neither side is known here.

use std::os::fd::OwnedFd;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A connection's number; never reused within one kernel.
pub type SessionId = u64;

/// Most pushes a session may have unwritten before it is taken to be dead.
pub const MAX_QUEUED_PUSHES: usize = 16_384;

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
