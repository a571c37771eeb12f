//! Replies of the JSON dialect and their encoding.
//!
//! Owns what a success of each op carries, the error codes, and the line around both. The kernel
//! serialises these structs, the client deserialises them, ignoring fields it does not know.

use std::collections::BTreeMap;
use std::fmt;

use bytes::{BufMut, BytesMut};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::json::push::{End, Event, Exited, Lost, OutputHeader, Push, Shutdown};
use crate::json::request::Id;
use crate::limits::MAX_MESSAGE_BYTES;
use crate::name::Name;
use crate::process::Process;
use crate::socket::SocketInfo;
use crate::text::{ByteString, shorten};

/// Why a request failed: what clients match on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is malformed or contradicts itself.
    Invalid,
    /// There is no such op.
    UnknownOp,
    /// What was named does not exist.
    NotFound,
    /// The name is taken by something else.
    Exists,
    /// Somebody else has claimed the namespace, or consumes the output.
    Claimed,
    /// The claim this session had was taken over.
    StaleEpoch,
    /// A limit is reached.
    Limit,
    /// Not allowed, or not now.
    Denied,
    /// The process could not be started.
    SpawnFailed,
    /// The socket could not be opened.
    BindFailed,
    /// Not possible on this connection or this system.
    Unsupported,
    /// The request takes a descriptor and none came with it.
    NoDescriptor,
    /// Something that should not happen did.
    Internal,
    /// A code this version does not know; never sent.
    #[serde(other)]
    Unknown,
}

/// A failed request: a code for programs, a message for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What went wrong.
    pub code: ErrorCode,
    /// The same in words; never empty, control characters escaped by whoever quoted them.
    pub message: String,
}

impl Failure {
    /// Makes a failure, cutting the message to [`MAX_MESSAGE_BYTES`].
    #[must_use]
    pub fn new(code: ErrorCode, message: &str) -> Self {
        Self {
            code,
            message: shorten(message, MAX_MESSAGE_BYTES).into_owned(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// A success with nothing to say: `{}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Done {}

/// Of `value.get`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValueReply {
    /// The value, or null where there is none.
    pub value: Option<ByteString>,
}

/// Of `value.list`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Values {
    /// Values by name.
    pub values: BTreeMap<Name, ByteString>,
}

/// Of everything that removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Removed {
    /// How many there were.
    pub removed: u64,
}

/// Of `socket.make`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketMade {
    /// The socket.
    pub socket: SocketInfo,
    /// Whether it is new.
    pub created: bool,
}

/// Of `socket.list`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SocketsReply {
    /// Sorted by name.
    pub sockets: Vec<SocketInfo>,
}

/// Of `process.make`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessMade {
    /// The process.
    pub process: Process,
    /// Whether it is new.
    pub created: bool,
}

/// Of `process.list`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Processes {
    /// Sorted by name.
    pub processes: Vec<Process>,
}

/// Of `output.consume`, `output.follow` and `subscribe`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscribed {
    /// The subscription's number in this session.
    pub sub: u64,
}

/// Of `output.reel`, besides the descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reel {
    /// Where in the file position 0 is.
    pub data_offset: u64,
    /// Where in the file the oldest position kept is, a little-endian word of eight bytes; none
    /// from a kernel of an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_offset: Option<u64>,
}

/// One held descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The name it is held under.
    pub name: Name,
    /// What it is, for people: `memfd`, `socket`, `pipe`, `file` …
    pub kind: String,
}

/// Of `hold.list`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HeldReply {
    /// Sorted by name.
    pub held: Vec<Held>,
}

/// Of `claim`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimed {
    /// Rises with each successful claim of the namespace.
    pub epoch: u64,
}

/// One claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimInfo {
    /// The namespace.
    pub namespace: Name,
    /// Who claimed it.
    pub holder: String,
    /// The last epoch given.
    pub epoch: u64,
    /// Whether the holder is connected; a claim without one is vacant.
    pub live: bool,
}

/// Of `claim.list`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Claims {
    /// Sorted by namespace.
    pub claims: Vec<ClaimInfo>,
}

/// Appends a success as a line. `id` is `None` only for the greeting after the switch to JSON.
pub fn encode_ok<T: Serialize>(id: Option<&Id>, ok: &T, out: &mut BytesMut) {
    #[derive(Serialize)]
    struct Line<'a, T> {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a Id>,
        ok: &'a T,
    }

    write_line(&Line { id, ok }, out);
}

/// Appends a failure as a line; without an id it says `"id":null`.
pub fn encode_error(id: Option<&Id>, error: &Failure, out: &mut BytesMut) {
    #[derive(Serialize)]
    struct Line<'a> {
        id: Option<&'a Id>,
        error: &'a Failure,
    }

    write_line(&Line { id, error }, out);
}

/// Appends `value` as one line of JSON, newline included.
pub(crate) fn write_line<T: Serialize>(value: &T, out: &mut BytesMut) {
    let start = out.len();
    if serde_json::to_writer((&mut *out).writer(), value).is_err() {
        // Serialising our own types into memory cannot fail: every map key is text or a number.
        // Should a type ever break that, the line is left out rather than sent in half.
        debug_assert!(false, "a wire type does not serialise");
        out.truncate(start);
        return;
    }
    out.put_u8(b'\n');
}

/// One line from the kernel, as the client reads it.
#[derive(Debug)]
pub enum Message {
    /// An answer.
    Reply {
        /// The request it answers; none for the greeting and for failures of requests without one.
        id: Option<Id>,
        /// Its result, the success still as text.
        result: Result<Box<RawValue>, Failure>,
    },
    /// Captured output; its bytes follow the line if it is inline.
    Output(OutputHeader),
    /// Anything else pushed.
    Push(Push),
    /// Something a later version pushes; to be ignored.
    Unknown,
}

impl Message {
    /// Reads one line.
    ///
    /// # Errors
    /// The line is not JSON, or a field has the wrong type.
    pub fn parse(line: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Line {
            #[serde(default)]
            id: Option<Id>,
            ok: Option<Box<RawValue>>,
            error: Option<Failure>,
            output: Option<OutputHeader>,
            end: Option<End>,
            exit: Option<Exited>,
            event: Option<Event>,
            lost: Option<Lost>,
            shutdown: Option<Shutdown>,
        }

        let line: Line = serde_json::from_slice(line)?;
        let push = line
            .end
            .map(Push::End)
            .or(line.exit.map(Push::Exit))
            .or(line.event.map(|event| Push::Event(Box::new(event))))
            .or(line.lost.map(Push::Lost))
            .or(line.shutdown.map(Push::Shutdown));
        Ok(match (line.output, line.error, line.ok, push) {
            (Some(output), ..) => Self::Output(output),
            (_, Some(error), ..) => Self::Reply {
                id: line.id,
                result: Err(error),
            },
            (_, _, Some(ok), _) => Self::Reply {
                id: line.id,
                result: Ok(ok),
            },
            (.., Some(push)) => Self::Push(push),
            _ => Self::Unknown,
        })
    }
}
