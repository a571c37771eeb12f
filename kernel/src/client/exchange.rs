//! The types that pass between a connection and the owner.

use std::os::fd::OwnedFd;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A connection's number; never reused within one kernel.
pub type SessionId = u64;

/// Most unwritten pushes of a session; with more it counts as dead and is closed.
pub const MAX_QUEUED_PUSHES: usize = 16_384;

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// The user that holds the connection.
    pub uid: u32,
    /// The process, where the transport tells.
    pub pid: Option<i32>,
    /// The connection is TCP rather than a unix socket.
    pub tcp: bool,
}

/// What a connection takes the next line for.
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

/// Bytes that a connection is to write.
#[derive(Debug)]
pub struct Outgoing {
    /// The bytes, in pieces.
    pub pieces: Vec<Bytes>,
    /// A descriptor to send with the first byte.
    pub descriptor: Option<OwnedFd>,
    /// For replies and classic batches: what the next line is taken for.
    pub next: Option<Expect>,
    /// A batch of output: report when it is written.
    pub batch: bool,
}

/// An order of the owner to a connection.
#[derive(Debug)]
pub enum Order {
    /// Write this.
    Write(Outgoing),
    /// Stop, and hand over your state.
    Freeze {
        /// Stop even while an answer is awaited.
        unanswered: bool,
    },
}

/// The answer to a batch of watched output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchWord {
    /// The batch is acknowledged; the watch goes on.
    More,
    /// The batch is acknowledged; the watch ends and commands are taken again.
    Stop,
    /// The batch is acknowledged, and the session ends.
    Leave,
}

impl WatchWord {
    /// Reads the line. None for a line that is no answer.
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
