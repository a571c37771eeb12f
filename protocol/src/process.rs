//! Processes as both dialects describe them: accounts, limits, streams, and what is known of one.
//!
//! Owns the wire forms. Looking up users, starting and watching are the kernel's.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::value::RawValue;

use crate::limits::MAX_TAG_BYTES;
use crate::name::Name;
use crate::record::Serial;
use crate::text::ByteString;

/// A user or group, by number or by name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Account {
    /// Its number; never the one that means "none" to the system.
    Id(u32),
    /// Its name, not looked up yet.
    Name(String),
}

impl Account {
    /// Reads a word: digits are a number if they fit one; anything else is a name.
    #[must_use]
    pub fn new(word: &str) -> Self {
        match word.parse() {
            Ok(id) if id != u32::MAX && word.bytes().all(|byte| byte.is_ascii_digit()) => {
                Self::Id(id)
            }
            _ => Self::Name(word.to_owned()),
        }
    }

    /// Whether the text looked like a number, so that the error should speak of an id.
    #[must_use]
    pub fn looks_numeric(&self) -> bool {
        match self {
            Self::Id(_) => true,
            Self::Name(name) => name
                .strip_prefix(['-', '+'])
                .unwrap_or(name)
                .bytes()
                .all(|byte| byte.is_ascii_digit()),
        }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl Serialize for Account {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Id(id) => serializer.serialize_u32(*id),
            Self::Name(name) => serializer.serialize_str(name),
        }
    }
}

impl<'de> Deserialize<'de> for Account {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrName;

        impl de::Visitor<'_> for NumberOrName {
            type Value = Account;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number from 0 to 4294967294 or a name")
            }

            fn visit_u64<E: de::Error>(self, id: u64) -> Result<Account, E> {
                u32::try_from(id)
                    .ok()
                    .filter(|id| *id != u32::MAX)
                    .map(Account::Id)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Unsigned(id), &self))
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Account, E> {
                Ok(Account::new(name))
            }
        }

        deserializer.deserialize_any(NumberOrName)
    }
}

/// A soft and a hard resource limit; `None` is infinity.
///
/// In JSON a number or `"infinity"` for both, or an array of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rlimit {
    /// What is enforced.
    pub soft: Option<u64>,
    /// How far the process may raise it.
    pub hard: Option<u64>,
}

impl Rlimit {
    /// Both limits the same.
    #[must_use]
    pub fn both(limit: Option<u64>) -> Self {
        Self {
            soft: limit,
            hard: limit,
        }
    }
}

/// One limit on its own: a number or `"infinity"`.
struct Limit(Option<u64>);

impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(limit) => serializer.serialize_u64(limit),
            None => serializer.serialize_str("infinity"),
        }
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let limit = deserializer.deserialize_any(RlimitVisitor { pair: false })?;
        Ok(Self(limit.soft))
    }
}

impl Serialize for Rlimit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.soft == self.hard {
            Limit(self.soft).serialize(serializer)
        } else {
            (Limit(self.soft), Limit(self.hard)).serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Rlimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RlimitVisitor { pair: true })
    }
}

struct RlimitVisitor {
    /// Whether an array of two is allowed here.
    pair: bool,
}

impl<'de> de::Visitor<'de> for RlimitVisitor {
    type Value = Rlimit;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number or \"infinity\"")?;
        if self.pair {
            f.write_str(", or an array of two of them: soft, hard")?;
        }
        Ok(())
    }

    fn visit_u64<E: de::Error>(self, limit: u64) -> Result<Rlimit, E> {
        Ok(Rlimit::both(Some(limit)))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Rlimit, E> {
        if text == "infinity" {
            Ok(Rlimit::both(None))
        } else {
            Err(E::invalid_value(de::Unexpected::Str(text), &self))
        }
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut sequence: A) -> Result<Rlimit, A::Error> {
        if !self.pair {
            return Err(de::Error::invalid_type(de::Unexpected::Seq, &self));
        }
        let missing = |index| de::Error::invalid_length(index, &"an array of two: soft, hard");
        let Limit(soft) = sequence.next_element()?.ok_or_else(|| missing(0))?;
        let Limit(hard) = sequence.next_element()?.ok_or_else(|| missing(1))?;
        if sequence.next_element::<de::IgnoredAny>()?.is_some() {
            return Err(missing(3));
        }
        Ok(Rlimit { soft, hard })
    }
}

/// What a process reads from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// `/dev/null`.
    #[default]
    Null,
    /// A socket the kernel holds, as inetd would pass it.
    Socket(Name),
    /// A held descriptor.
    Held(Name),
}

/// Where standard output goes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stdout {
    /// Captured.
    #[default]
    Pipe,
    /// `/dev/null`.
    Null,
    /// A held descriptor.
    Held(Name),
}

/// Where standard error goes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stderr {
    /// Captured as a stream of its own.
    #[default]
    Pipe,
    /// `/dev/null`.
    Null,
    /// Wherever standard output goes.
    Stdout,
    /// A held descriptor.
    Held(Name),
}

/// What happens when a process writes more than its reel holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overflow {
    /// The writer waits while a consumer keeps acknowledging; otherwise the oldest output goes and
    /// is counted.
    #[default]
    Auto,
    /// The writer waits, however long.
    Block,
    /// The oldest output goes and is counted; the writer never waits.
    DropOldest,
}

impl Overflow {
    /// The word on the wire.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Block => "block",
            Self::DropOldest => "drop_oldest",
        }
    }
}

/// Which of the kernel's sockets a process inherits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sockets {
    /// These, besides those its arguments or `listen_fds` name.
    Named(Vec<Name>),
    /// All of them, as the classic dialect does.
    All,
}

impl Default for Sockets {
    fn default() -> Self {
        Self::Named(Vec::new())
    }
}

/// Environment variables by name; their values never show in `Debug`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Environment(pub BTreeMap<String, ByteString>);

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Any JSON a client wants kept with a process, up to [`MAX_TAG_BYTES`] in compact form.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Tag(serde_json::Value);

impl Tag {
    /// Keeps `value`, if it is small enough.
    #[must_use]
    pub fn new(value: serde_json::Value) -> Option<Self> {
        (value.to_string().len() <= MAX_TAG_BYTES).then_some(Self(value))
    }

    /// The JSON kept.
    #[must_use]
    pub fn value(&self) -> &serde_json::Value {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Tag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Measured as text before it becomes a tree, which would be many times as large.
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        if raw.get().len() > MAX_TAG_BYTES {
            return Err(de::Error::custom(format_args!(
                "tag of {} bytes: at most {MAX_TAG_BYTES} are allowed",
                raw.get().len()
            )));
        }
        serde_json::from_str(raw.get())
            .map(Self)
            .map_err(de::Error::custom)
    }
}

/// How and when a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit code, unless a signal ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Whether it left a core dump.
    #[serde(default)]
    pub core: bool,
    /// When the exit was seen, in microseconds since the epoch.
    pub stamp_us: u64,
    /// What it used, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rusage: Option<Rusage>,
}

impl Exit {
    /// One number as the classic dialect gives it: the code, or the signal negated.
    #[must_use]
    pub fn classic_code(&self) -> i32 {
        match (self.code, self.signal) {
            (_, Some(signal)) => signal.saturating_neg(),
            (Some(code), None) => code,
            (None, None) => 0,
        }
    }
}

/// What a process used in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rusage {
    /// Time on the CPU in user mode.
    pub user_us: u64,
    /// Time on the CPU in the kernel.
    pub system_us: u64,
    /// Largest resident set.
    pub max_rss_kib: u64,
}

/// How many bytes of output went where; `captured` is the sum of what is still kept, acknowledged
/// and dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ledger {
    /// Read from the process.
    pub captured: u64,
    /// Sent to a consumer at least once.
    pub delivered: u64,
    /// Acknowledged by a consumer.
    pub acknowledged: u64,
    /// Given up unread because the reel was full, or removed.
    pub dropped: u64,
}

impl Ledger {
    /// Bytes that are kept still: nobody has acknowledged them, and they were not given up.
    #[must_use]
    pub fn untaken(&self) -> u64 {
        self.captured
            .saturating_sub(self.acknowledged)
            .saturating_sub(self.dropped)
    }
}

/// The positions at which the streams reached end of file, where they have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ends {
    /// Of standard output.
    pub out: Option<u64>,
    /// Of standard error.
    pub err: Option<u64>,
}

/// A process the kernel knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// Its number, never reused.
    pub serial: Serial,
    /// Its name.
    pub name: Name,
    /// Its process id, reusable once it has ended.
    pub pid: u32,
    /// Whether it has not ended.
    pub running: bool,
    /// When it was started, in microseconds since the epoch.
    pub started_us: u64,
    /// Its command line, socket references not replaced.
    pub argv: Vec<ByteString>,
    /// Whether the command line is run by a shell.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shell: bool,
    /// User it runs as, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group it runs as, where that was asked for or follows from the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Directory it started in, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<ByteString>,
    /// The client's own note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<Tag>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// Where its streams ended.
    pub ends: Ends,
    /// Where its output went.
    pub ledger: Ledger,
    /// What happens when its reel is full.
    pub overflow: Overflow,
    /// How much unacknowledged output is kept.
    pub reel_bytes: u64,
    /// Whether a consumer is connected.
    pub consumer: bool,
    /// Why its output cannot be stored at the moment, where it cannot: it stays in the pipe, and
    /// the process waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

impl Serialize for Sockets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Named(names) => names.serialize(serializer),
            Self::All => serializer.serialize_str("all"),
        }
    }
}

impl<'de> Deserialize<'de> for Sockets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NamesOrAll;

        impl<'de> de::Visitor<'de> for NamesOrAll {
            type Value = Sockets;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of socket names or \"all\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Sockets, E> {
                if text == "all" {
                    Ok(Sockets::All)
                } else {
                    Err(E::invalid_value(de::Unexpected::Str(text), &self))
                }
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, sequence: A) -> Result<Sockets, A::Error> {
                crate::json::bounded::collect(sequence, crate::limits::MAX_NAMED_SOCKETS)
                    .map(Sockets::Named)
            }
        }

        deserializer.deserialize_any(NamesOrAll)
    }
}

impl Serialize for Environment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Environment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::json::bounded::map(deserializer, crate::limits::MAX_ENV_VARIABLES).map(Self)
    }
}
