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

/// Declares the structs of ops. A field behind `[default]` may be absent, and is not written at its
/// default; one with `= "function"` is read by that function, which bounds it.
macro_rules! ops {
    ($(
        $(#[$about:meta])*
        $op:ident {$(
            $(#[$note:meta])*
            $([$optional:ident])? $field:ident: $form:ty $(= $read:literal)?
        ),* $(,)?}
    )*) => {$(
        $(#[$about])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $op {$(
            $(#[$note])*
            $(#[serde($optional, skip_serializing_if = "is_default")])?
            $(#[serde(deserialize_with = $read)])?
            pub $field: $form,
        )*}
    )*};
}

ops! {
    /// `hello`.
    #[derive(Default)]
    Hello {
        /// Who the client says it is, for the log.
        [default] client: Option<String>,
    }

    /// `status`.
    #[derive(Default)]
    Status {}

    /// `value.set`.
    ValueSet {
        /// Name to keep it under.
        name: Name,
        /// Any bytes, at most [`crate::limits::MAX_VALUE_BYTES`].
        value: ByteString,
    }

    /// `value.get`.
    ValueGet {
        /// Name it is kept under.
        name: Name,
    }

    /// `value.list`.
    #[derive(Default)]
    ValueList {
        /// Which; none means all.
        [default] names: Vec<NamePattern> = "bounded::patterns",
    }

    /// `value.remove`.
    ValueRemove {
        /// Which; at least one.
        names: Vec<NamePattern> = "bounded::patterns",
    }

    /// `socket.make`.
    SocketMake {
        /// Its name.
        name: Name,
        /// Unix when a path is given, otherwise inet.
        [default] family: Option<Family>,
        /// A stream unless said otherwise.
        #[serde(default, rename = "type")]
        socket_type: SocketType,
        /// Length of the accept queue, 5 unless said otherwise.
        [default] backlog: Option<u32> = "bounded::backlog",
        /// Absolute path of a unix socket.
        [default] path: Option<ByteString>,
        /// Umask to make the path under; the kernel's own otherwise.
        [default] umask: Option<Umask>,
        /// Address or host name to bind.
        [default] host: Option<String>,
        /// Port to bind; 0 or none lets the system choose.
        [default] port: Option<u16> = "bounded::port",
        /// The only interface to accept from.
        [default] interface: Option<String>,
        /// Give each process a socket of its own bound to the same port.
        [default] reuseport: bool,
        /// Make the socket non-blocking, for everyone who inherits it.
        [default] nonblocking: bool,
        /// Take the path over from whoever serves it.
        [default] replace: bool,
        /// Whether an inet6 socket leaves IPv4 to others; the system's setting otherwise.
        [default] v6only: Option<bool>,
        /// The name that a different socket of this name takes instead of being in the way. If the
        /// socket with that name is the one asked for, it takes `name` back.
        [default] aside: Option<Name>,
        /// Act in a namespace somebody else has claimed.
        [default] force: bool,
    }

    /// `socket.list`.
    #[derive(Default)]
    SocketList {
        /// Which; none means all.
        [default] names: Vec<NamePattern> = "bounded::patterns",
    }

    /// `socket.remove`.
    SocketRemove {
        /// Which; at least one.
        names: Vec<NamePattern> = "bounded::patterns",
        /// Act in a namespace somebody else has claimed.
        [default] force: bool,
    }

    /// `socket.fetch`.
    SocketFetch {
        /// Which.
        name: Name,
    }

    /// `process.make`.
    ProcessMake {
        /// Its name.
        name: Name,
        /// Command and arguments. Only a classic request may come without any; it has no command, and
        /// the kernel says so once it has looked for a process of that name.
        argv: Vec<ByteString> = "bounded::arguments",
        /// Environment variables.
        [default] env: Environment,
        /// Add `env` to the kernel's own environment instead of starting from nothing.
        [default] env_inherit: bool,
        /// Directory to start in; the kernel's own otherwise.
        [default] working_dir: Option<ByteString>,
        /// Run the command line by `/bin/sh -c`, further arguments being the script's.
        [default] shell: bool,
        /// User to run as.
        [default] uid: Option<Account>,
        /// Group to run as; the user's own otherwise.
        [default] gid: Option<Account>,
        /// Supplementary groups; the user's own otherwise.
        [default] groups: Option<Vec<Account>> = "bounded::groups",
        /// File mode mask; the kernel's own otherwise.
        [default] umask: Option<Umask>,
        /// Scheduling priority from -20 to 19.
        [default] nice: Option<i32>,
        /// How readily it is killed when memory runs out, from -1000 to 1000.
        [default] oom_score_adj: Option<i32>,
        /// Resource limits by name as typed, such as `nofile`; the kernel knows which exist.
        [default] rlimits: BTreeMap<String, Rlimit> = "bounded::rlimits",
        /// Sockets to inherit at their own numbers.
        [default] sockets: Sockets,
        /// Sockets to pass as systemd does, from number 3, in this order.
        [default] listen_fds: Vec<Name> = "bounded::socket_names",
        /// Held descriptors to place at these numbers.
        [default] descriptors: BTreeMap<u32, Name> = "bounded::descriptors",
        /// What it reads from.
        [default] stdin: Input,
        /// Where its standard output goes.
        [default] stdout: Stdout,
        /// Where its standard error goes.
        [default] stderr: Stderr,
        /// What happens when the reel is full.
        [default] overflow: Overflow,
        /// How much unacknowledged output is kept, [`crate::limits::REEL_BYTES`] unless said otherwise;
        /// 0 captures nothing.
        [default] reel_bytes: Option<ByteSize> = "bounded::reel_bytes",
        /// Leave `$(socket.NAME.fileno)` in the arguments as it is.
        [default] verbatim: bool,
        /// Any JSON to keep with the process.
        [default] tag: Option<Tag>,
        /// Act in a namespace somebody else has claimed.
        [default] force: bool,
    }

    /// `process.list`.
    #[derive(Default)]
    ProcessList {
        /// Which by name; none here and in `serials` means all.
        [default] names: Vec<NamePattern> = "bounded::patterns",
        /// Which by serial.
        [default] serials: Vec<Serial> = "bounded::serials",
    }

    /// `process.remove`.
    #[derive(Default)]
    ProcessRemove {
        /// Which by name.
        [default] names: Vec<NamePattern> = "bounded::patterns",
        /// Which by serial; at least one here or in `names`.
        [default] serials: Vec<Serial> = "bounded::serials",
        /// Act in a namespace somebody else has claimed.
        [default] force: bool,
    }

    /// `process.pidfd`.
    ProcessPidfd {
        /// Which.
        serial: Serial,
    }

    /// `output.consume`.
    OutputConsume {
        /// Whose output; processes made later that match are included.
        names: Vec<NamePattern> = "bounded::patterns",
        /// How the bytes come.
        [default] bytes: Delivery,
        /// Take over from the consumer there is.
        [default] force: bool,
    }

    /// `output.follow`.
    OutputFollow {
        /// Whose output; processes made later that match are included.
        names: Vec<NamePattern> = "bounded::patterns",
        /// Where to start.
        [default] from: FollowFrom,
    }

    /// `output.stop`.
    OutputStop {
        /// Which subscription, from `output.consume`, `output.follow` or `subscribe`.
        sub: u64,
    }

    /// `output.reel`.
    OutputReel {
        /// Whose.
        serial: Serial,
    }

    /// `output.ack`.
    #[derive(Default)]
    OutputAck {
        /// For each process the position up to which, exclusively, its output may go. None at all is a
        /// sign of life.
        acks: BTreeMap<Serial, u64> = "bounded::positions",
    }

    /// `exit.ack`.
    #[derive(Default)]
    ExitAck {
        /// Whose exits are known.
        serials: Vec<Serial> = "bounded::serials",
    }

    /// `hold`.
    Hold {
        /// Name to hold the descriptor under; one held under it already is replaced.
        name: Name,
    }

    /// `fetch`.
    Fetch {
        /// Name it is held under.
        name: Name,
    }

    /// `hold.list`.
    #[derive(Default)]
    HoldList {
        /// Which; none means all.
        [default] names: Vec<NamePattern> = "bounded::patterns",
    }

    /// `hold.drop`.
    HoldDrop {
        /// Which; at least one.
        names: Vec<NamePattern> = "bounded::patterns",
    }

    /// `claim`.
    Claim {
        /// The namespace: names that start with it and a dot.
        namespace: Name,
        /// Who claims it, for those who are refused.
        holder: String,
        /// Take it from the session that holds it.
        [default] force: bool,
    }

    /// `claim.release`.
    ClaimRelease {
        /// The namespace.
        namespace: Name,
    }

    /// `claim.list`.
    #[derive(Default)]
    ClaimList {}

    /// `subscribe`.
    #[derive(Default)]
    Subscribe {
        /// Events about which names; none means all.
        [default] names: Vec<NamePattern> = "bounded::patterns",
    }

    /// `kernel.exit`.
    #[derive(Default)]
    KernelExit {}

    /// `kernel.upgrade`.
    #[derive(Default)]
    KernelUpgrade {
        /// Absolute path of the program to change to; without one, what is now where the running
        /// program was started from.
        [default] binary: Option<ByteString>,
        /// Replace the keeper too.
        [default] keeper: bool,
        /// Change even if the program's dry run finds fault, or it knows none.
        [default] force: bool,
        /// Only try whether the program would take everything over.
        [default] dry_run: bool,
    }
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
            aside: None,
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
