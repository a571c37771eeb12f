//! The messages between keeper and kernel: fixed binary messages with descriptors attached, on a
//! socket that keeps message boundaries.
//!
//! The keeper reads nothing else, and nothing that a user typed gets here. Numbers are
//! little-endian. Unknown kinds of message are ignored, so that either side may be the newer one.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use crate::sys::pidfd::{Outcome, Usage, WaitStatus};

/// What a kept descriptor is. The numbers are part of the handover between versions and are never
/// reused; descriptors of an unknown kind are carried along.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind(pub u8);

impl Kind {
    /// The kernel's epoll, only held. When it closes, the system drops thousands of files one by
    /// one, and a killed kernel would do that before the keeper learns of its end.
    pub const POLLER: Self = Self(0);
    /// The daemon's settings, a memfd.
    pub const CONFIG: Self = Self(1);
    /// The journal, a memfd.
    pub const JOURNAL: Self = Self(2);
    /// One of the kernel's own listeners; the id says which.
    pub const CONTROL: Self = Self(3);
    /// The program file.
    pub const BINARY: Self = Self(4);
    /// A worker's pidfd; the id is its serial, as for the next three.
    pub const PIDFD: Self = Self(16);
    /// Read end of a worker's standard output.
    pub const OUT: Self = Self(17);
    /// Read end of a worker's standard error.
    pub const ERR: Self = Self(18);
    /// A worker's unacknowledged output, a memfd.
    pub const REEL: Self = Self(19);
    /// A listener made for workers; the id is its own.
    pub const SOCKET: Self = Self(32);
    /// A descriptor held for a client.
    pub const HELD: Self = Self(33);
    /// How the client sessions stood when the program changed, a memfd.
    pub const HANDOVER: Self = Self(48);
    /// A descriptor of a client session in a hand-over; the id is its number there.
    pub const SESSION: Self = Self(49);
    /// The keeper whose place this one takes, as long as it is there: the line
    /// to it (0), and its handle (1).
    pub const PREDECESSOR: Self = Self(50);

    /// The right to go on where a keeper that took over may have died; see `understudy.rs`.
    pub const RIGHT: Self = Self(51);

    /// Whether this version knows what it is.
    #[must_use]
    pub fn is_known(self) -> bool {
        let known = [
            Self::POLLER,
            Self::CONFIG,
            Self::JOURNAL,
            Self::CONTROL,
            Self::BINARY,
            Self::PIDFD,
            Self::OUT,
            Self::ERR,
            Self::REEL,
            Self::SOCKET,
            Self::HELD,
            Self::HANDOVER,
            Self::SESSION,
            Self::PREDECESSOR,
            Self::RIGHT,
        ];
        known.contains(&self)
    }

    /// Whether every daemon has such a descriptor from its start.
    #[must_use]
    pub fn is_basic(self) -> bool {
        self <= Self::BINARY || self == Self::PREDECESSOR || self == Self::RIGHT
    }
}

/// Names one kept descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// What it is.
    pub kind: Kind,
    /// Which one.
    pub id: u64,
}

impl Key {
    /// A key of `kind` and `id`.
    #[must_use]
    pub fn new(kind: Kind, id: u64) -> Self {
        Self { kind, id }
    }

    /// All keys of `kind`.
    #[must_use]
    pub fn range(kind: Kind) -> std::ops::RangeInclusive<Self> {
        Self::new(kind, 0)..=Self::new(kind, u64::MAX)
    }
}

/// Bytes of one encoded key.
const KEY_BYTES: usize = 9;
/// Most keys in one message; each may bring a descriptor.
pub const MAX_KEYS: usize = crate::sys::message::MAX_DESCRIPTORS;
/// Longest message either side sends.
pub const MAX_MESSAGE: usize = 16 + MAX_KEYS * KEY_BYTES;

/// Kernel to keeper.
#[derive(Debug, PartialEq, Eq)]
pub enum ToKeeper {
    /// Keep the attached descriptors under these keys.
    Put(Vec<Key>),
    /// Let these go.
    Drop(Vec<Key>),
    /// A worker announces itself (sent by the child, pidfd attached).
    Register {
        /// Its serial.
        serial: u64,
        /// Its number.
        pid: i32,
    },
    /// Send the descriptors after this key (or from the start).
    Fetch(Option<Key>),
    /// The exit of this serial is recorded; forget it.
    Confirm(u64),
    /// Answer to [`ToKernel::Ping`].
    Pong,
    /// Recovery is done, clients are served.
    Serving,
    /// The kernel is about to exit on purpose; exit with this code too.
    Exiting(u8),
    /// The kernel is about to become the attached program. It is the one to
    /// start from now on if it serves, and forgotten if it does not.
    Try,
    /// That program, or the keeper's role, could not be started at all.
    Untried,
    /// The kernel is about to start as a keeper in this one's place. This one
    /// holds on until it is dismissed, and is the keeper if that one ends before.
    Succeed,
    /// The next keeper's kernel has every descriptor: this keeper may go.
    Dismiss,
    /// What the keeper before had to say that the kernel is to hear from this
    /// one: how an adopted worker ended.
    Exit {
        /// Its serial.
        serial: u64,
        /// How it ended.
        status: WaitStatus,
    },
    /// The same, of a signal the keeper before was sent.
    Signal(u8),
    /// What the kernel's program can do beyond its first version, in bits.
    Able(u8),
}

/// The program can be started with every descriptor at once.
pub const ABLE_TO_INHERIT: u8 = 1;

/// Why a program that was tried is not the one that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It ended before it served.
    Ended(Outcome),
    /// It did not serve in time.
    Late,
}

/// Keeper to kernel.
#[derive(Debug, PartialEq, Eq)]
pub enum ToKernel {
    /// Some of the kept descriptors, attached; ask again after the last one.
    Entries(Vec<Key>),
    /// There are no more; and what became of a program that was tried and
    /// did not serve.
    Fetched(Option<Verdict>),
    /// An adopted worker has ended.
    Exit {
        /// Its serial.
        serial: u64,
        /// How it ended.
        status: WaitStatus,
    },
    /// Are you there?
    Ping,
    /// The keeper was sent this signal.
    Signal(u8),
    /// This keeper, which is no longer the keeper, goes. All it knew was said.
    Dismissed,
    /// What this keeper can do beyond its first version, in bits.
    Able(u8),
}

/// The keeper can be replaced beside the next one.
pub const ABLE_TO_LEAVE: u8 = 1;

fn put_keys(bytes: &mut Vec<u8>, keys: &[Key]) {
    for key in keys {
        bytes.push(key.kind.0);
        bytes.extend(key.id.to_le_bytes());
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}

fn take_u64(bytes: &mut &[u8]) -> Option<u64> {
    take::<8>(bytes).map(u64::from_le_bytes)
}

fn take_i32(bytes: &mut &[u8]) -> Option<i32> {
    take::<4>(bytes).map(i32::from_le_bytes)
}

fn take_keys(bytes: &mut &[u8]) -> Option<Vec<Key>> {
    let mut keys = Vec::with_capacity(bytes.len() / KEY_BYTES);
    while !bytes.is_empty() {
        let [kind] = take::<1>(bytes)?;
        let id = take_u64(bytes)?;
        keys.push(Key::new(Kind(kind), id));
    }
    (keys.len() <= MAX_KEYS).then_some(keys)
}

/// In the place of an outcome's kind: there was none in time.
const LATE: u8 = 255;

fn put_outcome(bytes: &mut Vec<u8>, outcome: Outcome) {
    let (kind, number): (u8, i32) = match outcome {
        Outcome::Code(code) => (0, code),
        Outcome::Signal { number, core } => (1 + u8::from(core), number),
    };
    bytes.push(kind);
    bytes.extend(number.to_le_bytes());
}

fn take_outcome(bytes: &mut &[u8]) -> Option<Outcome> {
    let [how] = take::<1>(bytes)?;
    let number = take_i32(bytes)?;
    Some(match how {
        0 => Outcome::Code(number),
        how => Outcome::Signal {
            number,
            core: how == 2,
        },
    })
}

fn put_exit(bytes: &mut Vec<u8>, serial: u64, status: WaitStatus) {
    bytes.extend(serial.to_le_bytes());
    put_outcome(bytes, status.outcome);
    if let Some(usage) = status.usage {
        for word in [usage.user_us, usage.system_us, usage.max_rss_kib] {
            bytes.extend(word.to_le_bytes());
        }
    }
}

fn take_exit(bytes: &mut &[u8]) -> Option<(u64, WaitStatus)> {
    let serial = take_u64(bytes)?;
    let outcome = take_outcome(bytes)?;
    let usage = match (take_u64(bytes), take_u64(bytes), take_u64(bytes)) {
        (Some(user_us), Some(system_us), Some(max_rss_kib)) => Some(Usage {
            user_us,
            system_us,
            max_rss_kib,
        }),
        _ => None,
    };
    Some((serial, WaitStatus { outcome, usage }))
}

impl ToKeeper {
    /// The message's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(16);
        match self {
            Self::Put(keys) => {
                bytes.push(1);
                put_keys(&mut bytes, keys);
            }
            Self::Drop(keys) => {
                bytes.push(2);
                put_keys(&mut bytes, keys);
            }
            Self::Register { serial, pid } => {
                bytes.push(crate::sys::spawn::REGISTER);
                bytes.extend(serial.to_le_bytes());
                bytes.extend(pid.to_le_bytes());
            }
            Self::Fetch(after) => {
                bytes.push(4);
                put_keys(&mut bytes, after.as_slice());
            }
            Self::Confirm(serial) => {
                bytes.push(5);
                bytes.extend(serial.to_le_bytes());
            }
            Self::Pong => bytes.push(6),
            Self::Serving => bytes.push(7),
            Self::Exiting(code) => bytes.extend([8, *code]),
            Self::Try => bytes.push(9),
            Self::Untried => bytes.push(10),
            Self::Succeed => bytes.push(11),
            Self::Dismiss => bytes.push(12),
            Self::Exit { serial, status } => {
                bytes.push(13);
                put_exit(&mut bytes, *serial, *status);
            }
            Self::Signal(number) => bytes.extend([14, *number]),
            Self::Able(bits) => bytes.extend([15, *bits]),
        }
        bytes
    }

    /// Reads a message; `None` for one this version does not know.
    #[must_use]
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let rest = &mut bytes;
        let [kind] = take::<1>(rest)?;
        Some(match kind {
            1 => Self::Put(take_keys(rest)?),
            2 => Self::Drop(take_keys(rest)?),
            crate::sys::spawn::REGISTER => Self::Register {
                serial: take_u64(rest)?,
                pid: take_i32(rest)?,
            },
            4 => Self::Fetch(take_keys(rest)?.first().copied()),
            5 => Self::Confirm(take_u64(rest)?),
            6 => Self::Pong,
            7 => Self::Serving,
            8 => Self::Exiting(take::<1>(rest)?[0]),
            9 => Self::Try,
            10 => Self::Untried,
            11 => Self::Succeed,
            12 => Self::Dismiss,
            13 => {
                let (serial, status) = take_exit(rest)?;
                Self::Exit { serial, status }
            }
            14 => Self::Signal(take::<1>(rest)?[0]),
            15 => Self::Able(take::<1>(rest)?[0]),
            _ => return None,
        })
    }
}

impl ToKernel {
    /// The message's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        match self {
            Self::Entries(keys) => {
                bytes.push(1);
                put_keys(&mut bytes, keys);
            }
            Self::Fetched(verdict) => {
                bytes.push(2);
                match verdict {
                    None => {}
                    Some(Verdict::Ended(outcome)) => put_outcome(&mut bytes, *outcome),
                    Some(Verdict::Late) => bytes.push(LATE),
                }
            }
            Self::Exit { serial, status } => {
                bytes.push(3);
                put_exit(&mut bytes, *serial, *status);
            }
            Self::Ping => bytes.push(4),
            Self::Signal(number) => bytes.extend([5, *number]),
            Self::Dismissed => bytes.push(6),
            Self::Able(bits) => bytes.extend([7, *bits]),
        }
        bytes
    }

    /// Reads a message; `None` for one this version does not know.
    #[must_use]
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let rest = &mut bytes;
        let [kind] = take::<1>(rest)?;
        Some(match kind {
            1 => Self::Entries(take_keys(rest)?),
            2 => Self::Fetched(match rest.first() {
                None => None,
                Some(&LATE) => Some(Verdict::Late),
                Some(_) => Some(Verdict::Ended(take_outcome(rest)?)),
            }),
            3 => {
                let (serial, status) = take_exit(rest)?;
                Self::Exit { serial, status }
            }
            4 => Self::Ping,
            5 => Self::Signal(take::<1>(rest)?[0]),
            6 => Self::Dismissed,
            7 => Self::Able(take::<1>(rest)?[0]),
            _ => return None,
        })
    }
}

/// Descriptors by their keys, as fetched or handed over.
pub type Kept = BTreeMap<Key, OwnedFd>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_reads_back() {
        let key = Key::new(Kind::REEL, u64::MAX);
        for message in [
            ToKeeper::Put(vec![key, Key::new(Kind::OUT, 1)]),
            ToKeeper::Drop(vec![key]),
            ToKeeper::Register { serial: 9, pid: -3 },
            ToKeeper::Fetch(None),
            ToKeeper::Fetch(Some(key)),
            ToKeeper::Confirm(5),
            ToKeeper::Pong,
            ToKeeper::Serving,
            ToKeeper::Exiting(2),
            ToKeeper::Try,
            ToKeeper::Untried,
            ToKeeper::Succeed,
            ToKeeper::Dismiss,
            ToKeeper::Signal(15),
            ToKeeper::Able(ABLE_TO_INHERIT),
        ] {
            assert_eq!(ToKeeper::decode(&message.encode()), Some(message));
        }
        for (outcome, usage) in [
            (Outcome::Code(255), None),
            (
                Outcome::Signal {
                    number: 9,
                    core: true,
                },
                Some(Usage {
                    user_us: 1,
                    system_us: 2,
                    max_rss_kib: 3,
                }),
            ),
        ] {
            let (serial, status) = (1, WaitStatus { outcome, usage });
            let message = ToKernel::Exit { serial, status };
            assert_eq!(ToKernel::decode(&message.encode()), Some(message));
            let message = ToKeeper::Exit { serial, status };
            assert_eq!(ToKeeper::decode(&message.encode()), Some(message));
        }
        for message in [
            ToKernel::Ping,
            ToKernel::Signal(15),
            ToKernel::Dismissed,
            ToKernel::Able(ABLE_TO_LEAVE),
        ] {
            assert_eq!(ToKernel::decode(&message.encode()), Some(message));
        }
    }

    #[test]
    fn what_became_of_a_program_reads_back() {
        let killed = Outcome::Signal {
            number: 9,
            core: false,
        };
        for verdict in [
            None,
            Some(Verdict::Late),
            Some(Verdict::Ended(killed)),
            Some(Verdict::Ended(Outcome::Code(1))),
        ] {
            let message = ToKernel::Fetched(verdict);
            assert_eq!(ToKernel::decode(&message.encode()), Some(message));
        }
    }

    #[test]
    fn what_is_cut_or_unknown_is_ignored() {
        assert_eq!(ToKeeper::decode(&[]), None);
        assert_eq!(ToKeeper::decode(&[200, 1]), None);
        assert_eq!(ToKernel::decode(&[3, 1, 2]), None);
        assert_eq!(ToKeeper::decode(&[1, 16, 0, 0]), None);
    }
}
