//! The record of the client sessions that the next program goes on with.
//!
//! Owns the file's form: magic, length, JSON, and after it the raw bytes the JSON counts (unread
//! input, unsent output). Descriptors are named by their number with the keeper. One version writes
//! the record and another reads it, so fields that are missing have a default and unknown ones are
//! passed over. A session that cannot be understood in every part is left out: its client connects
//! anew, which is better than a session that works in part.
//!
//! Invariant: a program takes the record from the keeper before it touches a session, so that no
//! two programs go on with the same session.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use bytes::Bytes;
use nix::errno::Errno;
use papa_protocol::json::request::Id;
use papa_protocol::json::status::{Program, UpgradeCheck};
use papa_protocol::name::{Name, NamePattern};
use papa_protocol::text::ByteString;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::client::exchange::{Peer, SessionId};
use crate::client::record::ConnectionRecord;
use crate::readers::session::{Cursor, SubKind};
use crate::sys::memfd;

/// The first bytes of the file.
const MAGIC: [u8; 8] = *b"papahnd1";
/// Bytes before the JSON: magic and length.
const PREFIX: usize = 16;
/// Longest file that is read, in bytes: more than all sessions may hold.
const MAX_BYTES: u64 = 512 * 1024 * 1024;

/// Everything that is handed over.
#[derive(Debug, Default, Serialize)]
pub struct HandOver {
    /// Why the program changes.
    pub change: Change,
    /// How far the output of processes had been delivered.
    pub processes: Vec<Delivered>,
    /// The sessions.
    pub sessions: Vec<SessionRecord>,
    /// Sessions that could not be understood.
    #[serde(skip)]
    pub left_out: usize,
}

/// The same as read, before its parts are understood one by one.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Unparsed {
    change: Value,
    processes: Vec<Value>,
    sessions: Vec<Value>,
}

/// The bytes of one session that lie behind the JSON.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Lengths {
    connection: ConnectionLengths,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ConnectionLengths {
    input: usize,
    output: Vec<PieceLength>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PieceLength {
    length: usize,
}

/// A change of program under way.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Change {
    /// The session that asked and the id of its request; none if a signal did.
    pub asked: Option<(SessionId, Option<Id>)>,
    /// The program before.
    pub before: Program,
    /// The program to be: device and file number.
    pub to: (u64, u64),
    /// Its path, for people.
    pub to_path: String,
    /// The same for the system, if it was named.
    pub path: Option<ByteString>,
    /// The keeper is to be replaced too.
    pub keeper: bool,
    /// The keeper's process number when the request came.
    pub keeper_before: i32,
    /// The kernel has changed, and the keeper is being replaced.
    pub succession: bool,
    /// What the dry run found.
    pub check: Option<UpgradeCheck>,
}

/// How far one process's output had been delivered.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Delivered {
    /// The process.
    pub serial: u64,
    /// First position no consumer was sent.
    pub to: u64,
    /// Bytes consumers were sent.
    pub bytes: u64,
    /// Session and subscription of the consumer.
    pub consumer: Option<(SessionId, u64)>,
}

/// A session and its connection.
#[derive(Debug, Serialize, Deserialize)]
pub struct SessionRecord {
    /// Its number.
    pub id: SessionId,
    /// Who is there.
    pub peer: Peer,
    /// The connection.
    pub connection: ConnectionRecord,
    /// What it calls itself.
    #[serde(default)]
    pub client: Option<String>,
    /// Speaks JSON.
    #[serde(default)]
    pub json: bool,
    /// A batch is on its way.
    #[serde(default)]
    pub busy: bool,
    /// Pushes not written yet.
    #[serde(default)]
    pub queued: usize,
    /// Subscriptions by number.
    #[serde(default)]
    pub subs: BTreeMap<u64, SubRecord>,
    /// The number of the next.
    #[serde(default)]
    pub next_sub: u64,
    /// The first batch of a watch is held back.
    #[serde(default)]
    pub held_back: bool,
    /// The classic batch that awaits its acknowledgement.
    #[serde(default)]
    pub watch_batch: Option<Vec<(u64, u64, bool)>>,
    /// Namespaces claimed away from it.
    #[serde(default)]
    pub lost: Vec<Name>,
    /// Namespaces whose claim it holds.
    #[serde(default)]
    pub claims: Vec<Name>,
}

/// A subscription.
#[derive(Debug, Serialize, Deserialize)]
pub struct SubRecord {
    /// What it is for.
    pub kind: SubKind,
    /// Names it is about.
    #[serde(default)]
    pub patterns: Vec<NamePattern>,
    /// Processes it reads, by serial.
    #[serde(default)]
    pub cursors: BTreeMap<u64, Cursor>,
    /// Events sent.
    #[serde(default)]
    pub seq: u64,
}

impl HandOver {
    /// Writes the file.
    ///
    /// # Errors
    /// The errno of the system; `EINVAL` if the record cannot be written as JSON.
    pub fn write(&self) -> Result<OwnedFd, Errno> {
        let json = serde_json::to_vec(self).map_err(|_| Errno::EINVAL)?;
        let file = memfd::memfd_create("papa-handover")?;
        let mut prefix = [0; PREFIX];
        prefix[..8].copy_from_slice(&MAGIC);
        prefix[8..].copy_from_slice(&(json.len() as u64).to_le_bytes());
        memfd::write_at(&file, &prefix, 0)?;
        memfd::write_at(&file, &json, PREFIX as u64)?;
        let mut at = (PREFIX + json.len()) as u64;
        for piece in self
            .sessions
            .iter()
            .flat_map(|session| &session.connection.bytes)
        {
            memfd::write_at(&file, piece, at)?;
            at += piece.len() as u64;
        }
        Ok(file)
    }

    /// Reads the file.
    ///
    /// # Errors
    /// `EBADMSG` for anything else.
    pub fn read(file: impl AsFd) -> Result<Self, Errno> {
        let size = memfd::size(&file)?;
        if size > MAX_BYTES {
            return Err(Errno::EBADMSG);
        }
        let mut bytes = vec![0; usize::try_from(size).map_err(|_| Errno::EBADMSG)?];
        let length = memfd::read_at(&file, &mut bytes, 0)?;
        bytes.truncate(length);
        Self::parse(Bytes::from(bytes)).ok_or(Errno::EBADMSG)
    }

    /// Reads the file's bytes.
    #[must_use]
    pub fn parse(mut bytes: Bytes) -> Option<Self> {
        if bytes.len() < PREFIX || bytes[..8] != MAGIC {
            return None;
        }
        let prefix = bytes.split_to(PREFIX);
        let length = u64::from_le_bytes(prefix[8..].try_into().ok()?);
        let length = usize::try_from(length).ok()?;
        if length > bytes.len() {
            return None;
        }
        let json = bytes.split_to(length);
        let found: Unparsed = serde_json::from_slice(&json).ok()?;
        let mut handed = Self {
            change: serde_json::from_value(found.change).unwrap_or_default(),
            processes: found
                .processes
                .into_iter()
                .filter_map(|process| serde_json::from_value(process).ok())
                .collect(),
            ..Self::default()
        };
        for session in found.sessions {
            let Lengths { connection } = Lengths::deserialize(&session).ok()?;
            let lengths = connection.output.iter().map(|piece| piece.length);
            let mut pieces = Vec::with_capacity(connection.output.len() + 1);
            for length in std::iter::once(connection.input).chain(lengths) {
                if length > bytes.len() {
                    return None;
                }
                pieces.push(bytes.split_to(length));
            }
            match serde_json::from_value::<SessionRecord>(session) {
                Ok(mut session) => {
                    session.connection.bytes = pieces;
                    handed.sessions.push(session);
                }
                Err(_) => handed.left_out += 1,
            }
        }
        Some(handed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::record::OutputRecord;

    fn session(id: SessionId) -> SessionRecord {
        SessionRecord {
            id,
            peer: Peer {
                uid: 1,
                pid: Some(2),
                tcp: false,
            },
            connection: ConnectionRecord {
                socket: 7,
                input: 3,
                output: vec![OutputRecord {
                    length: 2,
                    ..OutputRecord::default()
                }],
                bytes: vec![Bytes::from_static(b"abc"), Bytes::from_static(b"de")],
                ..ConnectionRecord::default()
            },
            client: None,
            json: true,
            busy: false,
            queued: 0,
            subs: BTreeMap::from([(
                1,
                SubRecord {
                    kind: SubKind::Follow { from_start: true },
                    patterns: vec![NamePattern::Prefix("a.".into())],
                    cursors: BTreeMap::from([(9, Cursor::default())]),
                    seq: 4,
                },
            )]),
            next_sub: 2,
            held_back: false,
            watch_batch: None,
            lost: Vec::new(),
            claims: Vec::new(),
        }
    }

    #[test]
    fn it_reads_back() {
        let written = HandOver {
            sessions: vec![session(1), session(2)],
            ..HandOver::default()
        };
        let found = HandOver::read(written.write().unwrap()).unwrap();
        assert_eq!(format!("{found:?}"), format!("{written:?}"));
    }

    #[test]
    fn a_session_with_an_unknown_word_is_left_out_alone() {
        let written = HandOver {
            sessions: vec![session(1), session(2), session(3)],
            ..HandOver::default()
        };
        let file = written.write().unwrap();
        let mut bytes = vec![0; usize::try_from(memfd::size(&file).unwrap()).unwrap()];
        memfd::read_at(&file, &mut bytes, 0).unwrap();
        // The second session's subscription gets a kind that does not exist.
        let kind = b"\"follow\"";
        let places: Vec<usize> = (0..bytes.len() - kind.len())
            .filter(|at| bytes[*at..].starts_with(kind))
            .collect();
        assert_eq!(places.len(), 3);
        bytes[places[1]..places[1] + kind.len()].copy_from_slice(b"\"hollow\"");
        let found = HandOver::parse(Bytes::from(bytes)).unwrap();
        assert_eq!(found.left_out, 1);
        let expected = [session(1), session(3)];
        assert_eq!(format!("{:?}", found.sessions), format!("{expected:?}"));
    }

    #[test]
    fn what_is_not_one_is_refused_wherever_it_is_cut() {
        let written = HandOver {
            sessions: vec![session(1)],
            ..HandOver::default()
        };
        let file = written.write().unwrap();
        let mut bytes = vec![0; usize::try_from(memfd::size(&file).unwrap()).unwrap()];
        memfd::read_at(&file, &mut bytes, 0).unwrap();
        let bytes = Bytes::from(bytes);
        for cut in 0..bytes.len() {
            assert!(HandOver::parse(bytes.slice(..cut)).is_none(), "{cut}");
        }
        assert!(HandOver::parse(bytes).is_some());
    }
}
