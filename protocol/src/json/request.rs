//! Requests of the JSON dialect: an id, an op, and the op's fields.
//!
//! Owns parsing a line into a typed [`Op`] and encoding one. Every op is a struct of its own in
//! [`ops`]; the table at the end of this file ties it to its word and its reply, so adding one
//! makes every match speak.
//! Invariant: a parsed op has passed its `check`, so every bound of [`crate::limits`] holds for it.

use std::borrow::Cow;
use std::fmt;

use bytes::BytesMut;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::json::reply::{self, ErrorCode, Failure};
use crate::json::status;
use crate::limits::MAX_ID_BYTES;
use crate::socket::quoted;
use crate::text::escape_control;

mod check;
pub mod ops;

pub use ops::*;

/// What a client calls a request by; the reply carries it back.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(untagged)]
pub enum Id {
    /// A whole number.
    Number(u64),
    /// Text of at most [`MAX_ID_BYTES`].
    Text(String),
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrText;

        impl Visitor<'_> for NumberOrText {
            type Value = Id;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(
                    f,
                    "an id: a whole number or text of at most {MAX_ID_BYTES} bytes"
                )
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Id, E> {
                Ok(Id::Number(number))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Id, E> {
                if text.len() > MAX_ID_BYTES {
                    return Err(E::invalid_length(text.len(), &self));
                }
                Ok(Id::Text(text.to_owned()))
            }
        }

        deserializer.deserialize_any(NumberOrText)
    }
}

/// One line from a client.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Without one only a failure is answered.
    pub id: Option<Id>,
    /// What is asked.
    pub op: Op,
}

/// A line that is not a request, with the id to answer under if one could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The id of the request, where it has a legal one.
    pub id: Option<Id>,
    /// What is wrong.
    pub failure: Failure,
}

/// An op as a struct: its word, its reply, its checks.
pub trait Operation: Serialize + DeserializeOwned + Into<Op> {
    /// The word on the wire.
    const WORD: &'static str;
    /// What a success answers.
    type Reply: Serialize + DeserializeOwned + Send + 'static;

    /// Checks what the types cannot: lengths, ranges, contradictions.
    ///
    /// # Errors
    /// Names the field, what was found and what is accepted.
    fn check(&self) -> Result<(), Failure> {
        Ok(())
    }
}

impl Request {
    /// Reads one line, newline excluded. A blank line is `None`.
    ///
    /// # Errors
    /// Says what is wrong with the line, under its id where that could be read.
    pub fn parse(line: &[u8]) -> Result<Option<Self>, Rejected> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        // Serde would take an array for a struct, field by field.
        if line.trim_ascii_start().first() != Some(&b'{') {
            let message = "expected one JSON object per line, such as {\"id\":1,\"op\":\"status\"}";
            return Err(Rejected {
                id: None,
                failure: Failure::new(ErrorCode::Invalid, message),
            });
        }
        let envelope: Envelope<'_> = serde_json::from_slice(line).map_err(|error| Rejected {
            id: None,
            failure: invalid(&error),
        })?;
        let id = envelope.id;
        let parsed = match envelope.op {
            Some(Word(word)) => Op::parse(&word, line),
            None => Err(Failure::new(
                ErrorCode::Invalid,
                "the field \"op\" is missing",
            )),
        };
        match parsed {
            Ok(op) => Ok(Some(Self { id, op })),
            Err(failure) => Err(Rejected { id, failure }),
        }
    }

    /// Appends this request as a line, newline included.
    pub fn encode(&self, out: &mut BytesMut) {
        self.op.encode(self.id.as_ref(), out);
    }
}

/// Appends `op` as a line under `id`, newline included.
pub fn encode<O: Operation>(id: Option<&Id>, op: &O, out: &mut BytesMut) {
    #[derive(Serialize)]
    struct Line<'a, O> {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a Id>,
        op: &'a str,
        #[serde(flatten)]
        fields: &'a O,
    }

    reply::write_line(
        &Line {
            id,
            op: O::WORD,
            fields: op,
        },
        out,
    );
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(default)]
    id: Option<Id>,
    #[serde(default, borrow)]
    op: Option<Word<'a>>,
}

/// Text that borrows from the line where it holds no escapes.
struct Word<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Word<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl<'de> Visitor<'de> for Text {
            type Value = Word<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Word<'de>, E> {
                Ok(Word(Cow::Borrowed(text)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Word<'de>, E> {
                Ok(Word(Cow::Owned(text.to_owned())))
            }
        }

        deserializer.deserialize_str(Text)
    }
}

/// The parser's words; a request is one line, so only the column says where.
fn invalid(error: &serde_json::Error) -> Failure {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let message = match text.strip_suffix(&place) {
        Some(what) => format!("{what} (column {})", error.column()),
        None => text,
    };
    Failure::new(ErrorCode::Invalid, &escape_control(&message))
}

fn parse_op<O: Operation>(line: &[u8]) -> Result<O, Failure> {
    let mut deserializer = serde_json::Deserializer::from_slice(line);
    let fields = Fields::<O>(std::marker::PhantomData);
    let op = deserializer
        .deserialize_map(fields)
        .map_err(|error| invalid(&error))?;
    op.check()?;
    Ok(op)
}

/// Deserialises an op from the whole line, straight from the text: `id` and `op` are stepped over,
/// every other key is the op's own. (Going through a tree of values would let eight mebibytes of
/// `[0,0,…` take a hundred.)
struct Fields<O>(std::marker::PhantomData<O>);

impl<'de, O: Operation> Visitor<'de> for Fields<O> {
    type Value = O;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<O, A::Error> {
        O::deserialize(MapAccessDeserializer::new(WithoutEnvelope(access)))
    }
}

struct WithoutEnvelope<A>(A);

impl<'de, A: MapAccess<'de>> MapAccess<'de> for WithoutEnvelope<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        while let Some(Word(key)) = self.0.next_key()? {
            if key == "id" || key == "op" {
                self.0.next_value::<de::IgnoredAny>()?;
            } else {
                return seed.deserialize(key.into_deserializer()).map(Some);
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.0.next_value_seed(seed)
    }
}

macro_rules! operations {
    ($($(#[$doc:meta])* $op:ident($storage:ty) $word:literal => $reply:ty $(, $check:path)?;)*) => {
        /// What a request asks for.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Op {
            $($(#[$doc])* $op($storage),)*
        }

        impl Op {
            /// Every word there is.
            pub const WORDS: &'static [&'static str] = &[$($word),*];

            /// The word on the wire.
            #[must_use]
            pub fn word(&self) -> &'static str {
                match self {
                    $(Self::$op(_) => $word,)*
                }
            }

            fn parse(word: &str, line: &[u8]) -> Result<Self, Failure> {
                match word {
                    $($word => parse_op::<$op>(line).map(|op| Self::$op(op.into())),)*
                    _ => Err(Failure::new(
                        ErrorCode::UnknownOp,
                        &format!("unknown op {}: expected one of {}", quoted(word), Self::WORDS.join(", ")),
                    )),
                }
            }

            /// Appends this op as a line under `id`, newline included.
            pub fn encode(&self, id: Option<&Id>, out: &mut BytesMut) {
                match self {
                    $(Self::$op(op) => encode::<$op>(id, op, out),)*
                }
            }
        }

        $(
            impl From<$op> for Op {
                fn from(op: $op) -> Self {
                    Self::$op(op.into())
                }
            }

            impl Operation for $op {
                const WORD: &'static str = $word;
                type Reply = $reply;
                $(
                    fn check(&self) -> Result<(), Failure> {
                        $check(self)
                    }
                )?
            }
        )*
    };
}

operations! {
    /// Who is there, and what it can do.
    Hello(Hello) "hello" => status::HelloReply, Hello::checked;
    /// How the kernel is.
    Status(Status) "status" => status::StatusReply;
    /// Keeps a value.
    ValueSet(ValueSet) "value.set" => reply::Done, ValueSet::checked;
    /// Reads a value.
    ValueGet(ValueGet) "value.get" => reply::ValueReply;
    /// Reads many values.
    ValueList(ValueList) "value.list" => reply::Values;
    /// Forgets values.
    ValueRemove(ValueRemove) "value.remove" => reply::Removed, ValueRemove::checked;
    /// Opens a socket, or answers the equal one there is.
    SocketMake(SocketMake) "socket.make" => reply::SocketMade, SocketMake::checked;
    /// Describes sockets.
    SocketList(SocketList) "socket.list" => reply::SocketsReply;
    /// Closes sockets.
    SocketRemove(SocketRemove) "socket.remove" => reply::Removed, SocketRemove::checked;
    /// Hands out a socket's descriptor.
    SocketFetch(SocketFetch) "socket.fetch" => reply::Done;
    /// Starts a process, or answers the equal one there is.
    ProcessMake(Box<ProcessMake>) "process.make" => reply::ProcessMade, ProcessMake::checked;
    /// Describes processes.
    ProcessList(ProcessList) "process.list" => reply::Processes;
    /// Forgets processes and their output.
    ProcessRemove(ProcessRemove) "process.remove" => reply::Removed, ProcessRemove::checked;
    /// Hands out a process's pidfd.
    ProcessPidfd(ProcessPidfd) "process.pidfd" => reply::Done;
    /// Becomes the consumer of processes' output.
    OutputConsume(OutputConsume) "output.consume" => reply::Subscribed, OutputConsume::checked;
    /// Looks at processes' output.
    OutputFollow(OutputFollow) "output.follow" => reply::Subscribed, OutputFollow::checked;
    /// Ends a subscription of this session, of any kind.
    OutputStop(OutputStop) "output.stop" => reply::Done;
    /// Hands out a reel's descriptor.
    OutputReel(OutputReel) "output.reel" => reply::Reel;
    /// Says that output up to a position may go.
    OutputAck(OutputAck) "output.ack" => reply::Done;
    /// Says that exits are known.
    ExitAck(ExitAck) "exit.ack" => reply::Done;
    /// Leaves a descriptor with the kernel.
    Hold(Hold) "hold" => reply::Done;
    /// Gets a held descriptor back.
    Fetch(Fetch) "fetch" => reply::Done;
    /// Describes held descriptors.
    HoldList(HoldList) "hold.list" => reply::HeldReply;
    /// Lets held descriptors go.
    HoldDrop(HoldDrop) "hold.drop" => reply::Removed, HoldDrop::checked;
    /// Takes a namespace.
    Claim(Claim) "claim" => reply::Claimed, Claim::checked;
    /// Gives a namespace back.
    ClaimRelease(ClaimRelease) "claim.release" => reply::Done;
    /// Describes claims.
    ClaimList(ClaimList) "claim.list" => reply::Claims;
    /// Asks for events.
    Subscribe(Subscribe) "subscribe" => reply::Subscribed;
    /// Ends the kernel, if it is idle.
    KernelExit(KernelExit) "kernel.exit" => reply::Done;
    /// Changes the kernel's program, and everything stays.
    KernelUpgrade(KernelUpgrade) "kernel.upgrade" => status::Upgraded, KernelUpgrade::checked;
}

impl Op {
    /// Whether the request takes a descriptor that must have arrived with its line.
    #[must_use]
    pub fn takes_descriptor(&self) -> bool {
        matches!(self, Self::Hold(_))
    }

    /// Whether a success is answered with a descriptor.
    #[must_use]
    pub fn gives_descriptor(&self) -> bool {
        matches!(
            self,
            Self::SocketFetch(_) | Self::ProcessPidfd(_) | Self::OutputReel(_) | Self::Fetch(_)
        )
    }
}
