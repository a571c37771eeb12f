//! Listening sockets as both dialects describe them.
//!
//! Owns the words for families and types, the umask's notations and the description of a socket the
//! kernel holds. Opening one, and the rules for equal parameters, are the kernel's.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::name::Name;
use crate::text::{ByteString, escape_control, shorten};

/// The accept queue a socket gets unless asked otherwise, as in papa 1.0.6.
pub const DEFAULT_BACKLOG: u32 = 5;

/// Address family of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// A path in the file system.
    Unix,
    /// IPv4.
    #[default]
    Inet,
    /// IPv6.
    Inet6,
}

impl Family {
    /// The word on the wire.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Unix => "unix",
            Self::Inet => "inet",
            Self::Inet6 => "inet6",
        }
    }

    /// The host bound when none is given: this machine alone, or every address of an interface.
    #[must_use]
    pub fn default_host(self, interface: bool) -> Option<&'static str> {
        match (self, interface) {
            (Self::Unix, _) => None,
            (Self::Inet, false) => Some("127.0.0.1"),
            (Self::Inet, true) => Some("0.0.0.0"),
            (Self::Inet6, false) => Some("::1"),
            (Self::Inet6, true) => Some("::"),
        }
    }
}

impl FromStr for Family {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "unix" => Ok(Self::Unix),
            "inet" => Ok(Self::Inet),
            "inet6" => Ok(Self::Inet6),
            _ => Err(format!(
                "family {}: expected unix, inet or inet6",
                quoted(word)
            )),
        }
    }
}

/// Type of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SocketType {
    /// Connections carrying bytes.
    #[default]
    Stream,
    /// Datagrams; never listened on.
    Dgram,
    /// Raw packets; never listened on.
    Raw,
    /// Reliable datagrams; never listened on.
    Rdm,
    /// Connections carrying messages.
    Seqpacket,
}

impl SocketType {
    /// The word on the wire.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Dgram => "dgram",
            Self::Raw => "raw",
            Self::Rdm => "rdm",
            Self::Seqpacket => "seqpacket",
        }
    }

    /// Whether connections are accepted on such a socket.
    #[must_use]
    pub fn listens(self) -> bool {
        matches!(self, Self::Stream | Self::Seqpacket)
    }
}

impl FromStr for SocketType {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "stream" => Ok(Self::Stream),
            "dgram" => Ok(Self::Dgram),
            "raw" => Ok(Self::Raw),
            "rdm" => Ok(Self::Rdm),
            "seqpacket" => Ok(Self::Seqpacket),
            _ => Err(format!(
                "type {}: expected stream, dgram, raw, rdm or seqpacket",
                quoted(word)
            )),
        }
    }
}

/// A file mode mask from 0 to 0o777.
///
/// The dialects write it differently: JSON as octal text `"022"` (a number is taken as it is),
/// classic as a decimal number, since papa 1.0.6 read `umask=022` as twenty-two and clients have
/// learnt to send decimals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Umask(u16);

impl Umask {
    /// The mask, if `bits` is at most 0o777.
    #[must_use]
    pub fn new(bits: u64) -> Option<Self> {
        u16::try_from(bits)
            .ok()
            .filter(|bits| *bits <= 0o777)
            .map(Self)
    }

    /// The bits.
    #[must_use]
    pub fn bits(self) -> u32 {
        u32::from(self.0)
    }
}

impl Serialize for Umask {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:03o}", self.0))
    }
}

impl<'de> Deserialize<'de> for Umask {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bits;

        impl de::Visitor<'_> for Bits {
            type Value = Umask;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a umask: octal text up to \"777\" or a number up to 511")
            }

            fn visit_u64<E: de::Error>(self, bits: u64) -> Result<Umask, E> {
                Umask::new(bits)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Unsigned(bits), &self))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Umask, E> {
                Some(text)
                    .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
                    .and_then(|text| u64::from_str_radix(text, 8).ok())
                    .and_then(Umask::new)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_any(Bits)
    }
}

/// A socket the kernel holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketInfo {
    /// Its name.
    pub name: Name,
    /// Its address family.
    pub family: Family,
    /// Its type.
    #[serde(rename = "type")]
    pub socket_type: SocketType,
    /// Length of the accept queue.
    pub backlog: u32,
    /// Path of a unix socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<ByteString>,
    /// Umask the path was made under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub umask: Option<Umask>,
    /// Host as asked for, or the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Port bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Interface it is restricted to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Each process gets a socket of its own, bound to the same port.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reuseport: bool,
    /// Made non-blocking, as asked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nonblocking: bool,
    /// Whether an inet6 socket leaves IPv4 to others, as asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6only: Option<bool>,
    /// Grows with each socket made: tells this one from one of the same name before it. None from
    /// an older kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<u64>,
    /// Whether the path of a unix socket leads to it. None where the system does not tell, and from
    /// an older kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_path: Option<bool>,
    /// The descriptor's number in the kernel and in processes that inherit it; none with
    /// `reuseport`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fileno: Option<u32>,
}

/// `word` in quotes, shortened and without control characters, for an error's text.
pub(crate) fn quoted(word: &str) -> String {
    /// Enough to recognise one's own typing.
    const QUOTED_BYTES: usize = 200;
    format!("\"{}\"", escape_control(&shorten(word, QUOTED_BYTES)))
}
