//! What the kernel sends without being asked again: output, ends, exits, events and notices.
//!
//! Owns these messages and their encoding. Each is one line; an inline [`OutputHeader`] is followed
//! by exactly `length` bytes, which are not part of this module.

use bytes::BytesMut;
use serde::{Deserialize, Serialize};

use crate::json::reply::write_line;
use crate::name::Name;
use crate::process::{Exit, Process};
use crate::record::{Record, Serial, Stream};
use crate::socket::SocketInfo;

/// Announces captured output.
///
/// Record k spans from the previous record's end, or `start`, to its own end; the last ends at
/// `start + length`. A `start` beyond where the reader was is a gap: what lies between was dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputHeader {
    /// The subscription it belongs to.
    pub sub: u64,
    /// Whose output.
    pub serial: Serial,
    /// Position of the first byte.
    pub start: u64,
    /// Number of bytes.
    pub length: u64,
    /// Whether the bytes follow the line; otherwise they are in the reel.
    pub inline: bool,
    /// Which bytes came from which stream, and when.
    pub records: Vec<Record>,
}

impl OutputHeader {
    /// Number of bytes that follow the line.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        if self.inline { self.length } else { 0 }
    }

    /// Position just past the last byte.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.length)
    }
}

/// A stream reached end of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The subscription it belongs to.
    pub sub: u64,
    /// Whose stream.
    pub serial: Serial,
    /// Which stream.
    pub stream: Stream,
    /// The position at which it ended.
    pub position: u64,
}

/// A process ended; its streams may go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exited {
    /// The subscription it belongs to.
    pub sub: u64,
    /// Which process.
    pub serial: Serial,
    /// How and when.
    #[serde(flatten)]
    pub exit: Exit,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventType {
    /// A process was started.
    Made,
    /// A process ended.
    Exited,
    /// A process was forgotten.
    Removed,
    /// A socket was opened.
    SocketMade,
    /// A socket was closed.
    SocketRemoved,
    /// A type this version does not know; never sent.
    #[serde(other)]
    Unknown,
}

/// Something changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The subscription it belongs to.
    pub sub: u64,
    /// Rises by one with each event of this subscription.
    pub seq: u64,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: EventType,
    /// To whom.
    pub name: Name,
    /// The process's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<Serial>,
    /// The process as it is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// The socket as it is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<SocketInfo>,
}

/// A claim of this session was taken over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// The namespace.
    pub namespace: Name,
    /// Who has it now.
    pub by: String,
}

/// The kernel was asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shutdown {
    /// The signal that asked; 0 where it was a request.
    pub signal: i32,
    /// It ends now and this session is closed. Otherwise it stays for the sake of its processes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ends: bool,
}

/// Any push but output.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Push {
    /// `{"end":…}`
    End(End),
    /// `{"exit":…}`
    Exit(Exited),
    /// `{"event":…}`
    Event(Box<Event>),
    /// `{"lost":…}`
    Lost(Lost),
    /// `{"shutdown":…}`
    Shutdown(Shutdown),
}

impl Push {
    /// Appends this push as a line, newline included.
    pub fn encode(&self, out: &mut BytesMut) {
        write_line(self, out);
    }
}

/// Appends a header as a line, newline included; its bytes come next, if it is inline.
pub fn encode_output(header: &OutputHeader, out: &mut BytesMut) {
    #[derive(Serialize)]
    struct Line<'a> {
        output: &'a OutputHeader,
    }

    write_line(&Line { output: header }, out);
}
