//! The ops of the JSON dialect, one struct each.
//!
//! Optional fields have the default the README states; a field that is absent and one at its
//! default are the same request. The classic dialect makes sockets and processes through the same
//! structs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::json::bounded;
use crate::name::{Name, NamePattern};
use crate::process::{Account, Environment, Input, Overflow, Rlimit, Sockets, Stderr, Stdout, Tag};
use crate::record::Serial;
use crate::size::ByteSize;
use crate::socket::{Family, SocketType, Umask};
use crate::text::ByteString;

/// `hello`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// Who the client says it is, for the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
}

/// `status`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {}

/// `value.set`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValueSet {
    /// Name to keep it under.
    pub name: Name,
    /// Any bytes, at most [`crate::limits::MAX_VALUE_BYTES`].
    pub value: ByteString,
}

/// `value.get`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValueGet {
    /// Name it is kept under.
    pub name: Name,
}

/// `value.list`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValueList {
    /// Which; none means all.
    #[serde(
        default,
        deserialize_with = "bounded::patterns",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub names: Vec<NamePattern>,
}

/// `value.remove`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValueRemove {
    /// Which; at least one.
    #[serde(deserialize_with = "bounded::patterns")]
    pub names: Vec<NamePattern>,
}

/// `socket.make`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SocketMake {
    /// Its name.
    pub name: Name,
    /// Unix when a path is given, otherwise inet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
    /// A stream unless said otherwise.
    #[serde(default, rename = "type")]
    pub socket_type: SocketType,
    /// Length of the accept queue, 5 unless said otherwise.
    #[serde(
        default,
        deserialize_with = "bounded::backlog",
        skip_serializing_if = "Option::is_none"
    )]
    pub backlog: Option<u32>,
    /// Absolute path of a unix socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<ByteString>,
    /// Umask to make the path under; the kernel's own otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub umask: Option<Umask>,
    /// Address or host name to bind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Port to bind; 0 or none lets the system choose.
    #[serde(
        default,
        deserialize_with = "bounded::port",
        skip_serializing_if = "Option::is_none"
    )]
    pub port: Option<u16>,
    /// The only interface to accept from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Give each process a socket of its own bound to the same port.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reuseport: bool,
    /// Make the socket non-blocking, for everyone who inherits it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nonblocking: bool,
    /// Take the path over from whoever serves it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replace: bool,
    /// Whether an inet6 socket leaves IPv4 to others; the system's setting otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6only: Option<bool>,
    /// Act in a namespace somebody else has claimed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// `socket.list`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SocketList {
    /// Which; none means all.
    #[serde(
        default,
        deserialize_with = "bounded::patterns",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub names: Vec<NamePattern>,
}

/// `socket.remove`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SocketRemove {
    /// Which; at least one.
    #[serde(deserialize_with = "bounded::patterns")]
    pub names: Vec<NamePattern>,
    /// Act in a namespace somebody else has claimed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// `socket.fetch`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SocketFetch {
    /// Which.
    pub name: Name,
}

/// `process.make`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessMake {
    /// Its name.
    pub name: Name,
    /// Command and arguments. Only a classic request may come without any; it has no command, and
    /// the kernel says so once it has looked for a process of that name.
    #[serde(deserialize_with = "bounded::arguments")]
    pub argv: Vec<ByteString>,
    /// Environment variables.
    #[serde(default, skip_serializing_if = "is_default")]
    pub env: Environment,
    /// Add `env` to the kernel's own environment instead of starting from nothing.
    #[serde(default, skip_serializing_if = "is_default")]
    pub env_inherit: bool,
    /// Directory to start in; the kernel's own otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<ByteString>,
    /// Run the command line by `/bin/sh -c`, further arguments being the script's.
    #[serde(default, skip_serializing_if = "is_default")]
    pub shell: bool,
    /// User to run as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<Account>,
    /// Group to run as; the user's own otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<Account>,
    /// Supplementary groups; the user's own otherwise.
    #[serde(
        default,
        deserialize_with = "bounded::groups",
        skip_serializing_if = "Option::is_none"
    )]
    pub groups: Option<Vec<Account>>,
    /// File mode mask; the kernel's own otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub umask: Option<Umask>,
    /// Scheduling priority from -20 to 19.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nice: Option<i32>,
    /// How readily it is killed when memory runs out, from -1000 to 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// Resource limits by name as typed, such as `nofile`; the kernel knows which exist.
    #[serde(
        default,
        deserialize_with = "bounded::rlimits",
        skip_serializing_if = "is_default"
    )]
    pub rlimits: BTreeMap<String, Rlimit>,
    /// Sockets to inherit at their own numbers.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sockets: Sockets,
    /// Sockets to pass as systemd does, from number 3, in this order.
    #[serde(
        default,
        deserialize_with = "bounded::socket_names",
        skip_serializing_if = "is_default"
    )]
    pub listen_fds: Vec<Name>,
    /// Held descriptors to place at these numbers.
    #[serde(
        default,
        deserialize_with = "bounded::descriptors",
        skip_serializing_if = "is_default"
    )]
    pub descriptors: BTreeMap<u32, Name>,
    /// What it reads from.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stdin: Input,
    /// Where its standard output goes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stdout: Stdout,
    /// Where its standard error goes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stderr: Stderr,
    /// What happens when the reel is full.
    #[serde(default, skip_serializing_if = "is_default")]
    pub overflow: Overflow,
    /// How much unacknowledged output is kept, [`crate::limits::REEL_BYTES`] unless said otherwise;
    /// 0 captures nothing.
    #[serde(
        default,
        deserialize_with = "bounded::reel_bytes",
        skip_serializing_if = "Option::is_none"
    )]
    pub reel_bytes: Option<ByteSize>,
    /// Leave `$(socket.NAME.fileno)` in the arguments as it is.
    #[serde(default, skip_serializing_if = "is_default")]
    pub verbatim: bool,
    /// Any JSON to keep with the process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<Tag>,
    /// Act in a namespace somebody else has claimed.
    #[serde(default, skip_serializing_if = "is_default")]
    pub force: bool,
}

/// `process.list`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessList {
    /// Which by name; none here and in `serials` means all.
    #[serde(
        default,
        deserialize_with = "bounded::patterns",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub names: Vec<NamePattern>,
    /// Which by serial.
    #[serde(
        default,
        deserialize_with = "bounded::serials",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub serials: Vec<Serial>,
}

/// `process.remove`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessRemove {
    /// Which by name.
    #[serde(
        default,
        deserialize_with = "bounded::patterns",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub names: Vec<NamePattern>,
    /// Which by serial; at least one here or in `names`.
    #[serde(
        default,
        deserialize_with = "bounded::serials",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub serials: Vec<Serial>,
    /// Act in a namespace somebody else has claimed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// `process.pidfd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessPidfd {
    /// Which.
    pub serial: Serial,
}

/// How a consumer gets the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// Behind each header line.
    #[default]
    Inline,
    /// Not at all: the consumer reads them from the reel it fetched.
    Reel,
    /// Little comes inline, much is left in the reel.
    Auto,
}

/// `output.consume`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputConsume {
    /// Whose output; processes made later that match are included.
    #[serde(deserialize_with = "bounded::patterns")]
    pub names: Vec<NamePattern>,
    /// How the bytes come.
    #[serde(default, skip_serializing_if = "is_default")]
    pub bytes: Delivery,
    /// Take over from the consumer there is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// Where a follower starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FollowFrom {
    /// With what is captured next.
    #[default]
    Now,
    /// With the oldest output kept.
    Start,
}

/// `output.follow`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputFollow {
    /// Whose output; processes made later that match are included.
    #[serde(deserialize_with = "bounded::patterns")]
    pub names: Vec<NamePattern>,
    /// Where to start.
    #[serde(default, skip_serializing_if = "is_default")]
    pub from: FollowFrom,
}

/// `output.stop`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputStop {
    /// Which subscription, from `output.consume`, `output.follow` or `subscribe`.
    pub sub: u64,
}

/// `output.reel`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputReel {
    /// Whose.
    pub serial: Serial,
}

/// `output.ack`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputAck {
    /// For each process the position up to which, exclusively, its output may go. None at all is a
    /// sign of life.
    #[serde(deserialize_with = "bounded::positions")]
    pub acks: BTreeMap<Serial, u64>,
}

/// `exit.ack`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExitAck {
    /// Whose exits are known.
    #[serde(deserialize_with = "bounded::serials")]
    pub serials: Vec<Serial>,
}

/// `hold`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// Name to hold the descriptor under; one held under it already is replaced.
    pub name: Name,
}

/// `fetch`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fetch {
    /// Name it is held under.
    pub name: Name,
}

/// `hold.list`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HoldList {
    /// Which; none means all.
    #[serde(
        default,
        deserialize_with = "bounded::patterns",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub names: Vec<NamePattern>,
}

/// `hold.drop`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HoldDrop {
    /// Which; at least one.
    #[serde(deserialize_with = "bounded::patterns")]
    pub names: Vec<NamePattern>,
}

/// `claim`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// The namespace: names that start with it and a dot.
    pub namespace: Name,
    /// Who claims it, for those who are refused.
    pub holder: String,
    /// Take it from the session that holds it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// `claim.release`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimRelease {
    /// The namespace.
    pub namespace: Name,
}

/// `claim.list`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimList {}

/// `subscribe`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subscribe {
    /// Events about which names; none means all.
    #[serde(
        default,
        deserialize_with = "bounded::patterns",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub names: Vec<NamePattern>,
}

/// `kernel.exit`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelExit {}

/// `kernel.upgrade`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelUpgrade {
    /// Absolute path of the program to change to; without one, what is now where the running
    /// program was started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary: Option<ByteString>,
    /// Replace the keeper too.
    #[serde(default, skip_serializing_if = "is_default")]
    pub keeper: bool,
    /// Change even if the program's dry run finds fault, or it knows none.
    #[serde(default, skip_serializing_if = "is_default")]
    pub force: bool,
    /// Only try whether the program would take everything over.
    #[serde(default, skip_serializing_if = "is_default")]
    pub dry_run: bool,
}

impl SocketMake {
    /// A request for a socket of this name, everything else at its default.
    #[must_use]
    pub fn new(name: Name) -> Self {
        Self {
            name,
            family: None,
            socket_type: SocketType::default(),
            backlog: None,
            path: None,
            umask: None,
            host: None,
            port: None,
            interface: None,
            reuseport: false,
            nonblocking: false,
            replace: false,
            v6only: None,
            force: false,
        }
    }

    /// The family asked for, or the one that follows from the path.
    #[must_use]
    pub fn effective_family(&self) -> Family {
        self.family.unwrap_or(if self.path.is_some() {
            Family::Unix
        } else {
            Family::Inet
        })
    }
}

impl ProcessMake {
    /// A request for a process of this name running `argv`, everything else at its default.
    #[must_use]
    pub fn new(name: Name, argv: Vec<ByteString>) -> Self {
        Self {
            name,
            argv,
            env: Environment::default(),
            env_inherit: false,
            working_dir: None,
            shell: false,
            uid: None,
            gid: None,
            groups: None,
            umask: None,
            nice: None,
            oom_score_adj: None,
            rlimits: BTreeMap::new(),
            sockets: Sockets::default(),
            listen_fds: Vec::new(),
            descriptors: BTreeMap::new(),
            stdin: Input::Null,
            stdout: Stdout::Pipe,
            stderr: Stderr::Pipe,
            overflow: Overflow::Auto,
            reel_bytes: None,
            verbatim: false,
            tag: None,
            force: false,
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
