//! Captured output as it travels: which stream, up to which position, when.
//!
//! A process's output is one sequence of bytes counted from 0 since it started, standard output and
//! standard error interleaved as they were captured. A record says that the bytes from the previous
//! record's end to its own came from one stream at one time. Owns the wire form; the bytes
//! themselves are in `reel` and `codec`.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A process's number, never reused while names and pids are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Serial(pub u64);

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Where captured bytes came from; 1 and 2 on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stream {
    /// Standard output, and standard error where it was merged.
    Out,
    /// Standard error.
    Err,
}

impl Stream {
    /// Both, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Out, Self::Err];

    /// 1 or 2, the descriptor in the process.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Out => 1,
            Self::Err => 2,
        }
    }

    /// The stream with this number.
    #[must_use]
    pub fn from_number(number: u64) -> Option<Self> {
        match number {
            1 => Some(Self::Out),
            2 => Some(Self::Err),
            _ => None,
        }
    }

    /// `out` or `err`, as the classic dialect's frames say.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Out => "out",
            Self::Err => "err",
        }
    }
}

impl Serialize for Stream {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(self.number())
    }
}

impl<'de> Deserialize<'de> for Stream {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = u64::deserialize(deserializer)?;
        Self::from_number(number)
            .ok_or_else(|| de::Error::custom(format_args!("stream {number}: expected 1 or 2")))
    }
}

/// One captured chunk; `[end, stream, stamp_us]` on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Position just past the chunk, in bytes since the process started.
    pub end: u64,
    /// Where it came from.
    pub stream: Stream,
    /// When it was captured, in microseconds since the epoch.
    pub stamp_us: u64,
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.end, self.stream, self.stamp_us).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Record {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (end, stream, stamp_us) = Deserialize::deserialize(deserializer)?;
        Ok(Self {
            end,
            stream,
            stamp_us,
        })
    }
}
