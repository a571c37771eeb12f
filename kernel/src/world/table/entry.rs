//! The records of the journal: one for each kind of change.

use papa_protocol::name::Name;
use papa_protocol::process::{Exit, Ledger};
use papa_protocol::text::ByteString;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{ProcessRow, SocketRow};

/// One change, as the journal keeps it. New kinds may be added and fields may
/// be added with defaults; what is here keeps its meaning.
#[derive(Debug, Clone, Serialize, Deserialize)]
// Tag beside content: an inner tag would have serde keep the content in a form
// that raw JSON (a process's tag) cannot be read from.
#[serde(tag = "t", content = "v", rename_all = "snake_case")]
pub enum Entry {
    /// A kernel has started on this journal.
    Boot {
        /// Its incarnation.
        incarnation: u64,
        /// When the first of the line started, in microseconds.
        first_started_us: u64,
    },
    /// Numbers never to be given again, and the sums of what is forgotten.
    Counters {
        /// The next process's serial.
        next_serial: u64,
        /// The next id of a socket or held descriptor.
        next_id: u64,
        /// Output of processes no longer listed.
        #[serde(default)]
        forgotten: Ledger,
    },
    /// A value was set.
    Value {
        /// Its name.
        name: Name,
        /// Its content.
        value: ByteString,
    },
    /// A value was cleared.
    Unvalue {
        /// Its name.
        name: Name,
    },
    /// A socket was made; or, where one of this id is known, has another name now.
    Socket(Box<SocketRow>),
    /// A socket was closed.
    Unsocket {
        /// Its id.
        id: u64,
    },
    /// A process is about to be started.
    Intent(Box<ProcessRow>),
    /// It was.
    Started {
        /// Which.
        serial: u64,
        /// Its number.
        pid: u32,
    },
    /// A process has ended.
    Exit {
        /// Which.
        serial: u64,
        /// How.
        exit: Exit,
    },
    /// Its consumer knows of a process's exit: the name is free, the rest
    /// stays until the output is read.
    ExitKnown {
        /// Which.
        serial: u64,
    },
    /// Nobody wants a process's output any more; when it has ended it is
    /// forgotten.
    Removing {
        /// Which.
        serial: u64,
    },
    /// A process is no longer listed.
    Forget {
        /// Which.
        serial: u64,
        /// Where its output went.
        #[serde(default)]
        ledger: Ledger,
    },
    /// A descriptor is held for a client.
    Hold {
        /// Its id with the keeper.
        id: u64,
        /// Its name.
        name: Name,
        /// What it is, for people.
        kind: String,
    },
    /// It is not any more.
    Unhold {
        /// Its name.
        name: Name,
    },
    /// A namespace was claimed.
    Claim {
        /// The namespace.
        namespace: Name,
        /// Who claimed it.
        holder: String,
        /// The how-manieth claim of it this is.
        epoch: u64,
    },
    /// A claim was given back; its epoch is remembered.
    Release {
        /// The namespace.
        namespace: Name,
    },
}

/// A record as compaction writes it.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Record<'a> {
    /// One of ours.
    Entry(Entry),
    /// One of a later version, as it was.
    Unknown(&'a RawValue),
}

/// What a journal record turned out to be.
#[derive(Debug)]
pub enum Read {
    /// A change.
    Entry(Entry),
    /// A kind of change only a later version knows.
    Unknown(Box<RawValue>),
    /// Nothing that can be read.
    Bad(serde_json::Error),
}

impl Entry {
    /// Reads a record's text.
    #[must_use]
    pub fn read(text: &[u8]) -> Read {
        #[derive(Deserialize)]
        struct Tag<'a> {
            t: &'a str,
        }
        match serde_json::from_slice(text) {
            Ok(entry) => Read::Entry(entry),
            Err(error) => match serde_json::from_slice::<Tag<'_>>(text) {
                Ok(tag) if !Self::KINDS.contains(&tag.t) => {
                    serde_json::from_slice(text).map_or_else(Read::Bad, Read::Unknown)
                }
                _ => Read::Bad(error),
            },
        }
    }

    /// Every kind of record this version writes.
    const KINDS: [&'static str; 16] = [
        "boot",
        "counters",
        "value",
        "unvalue",
        "socket",
        "unsocket",
        "intent",
        "started",
        "exit",
        "exit_known",
        "removing",
        "forget",
        "hold",
        "unhold",
        "claim",
        "release",
    ];
}
