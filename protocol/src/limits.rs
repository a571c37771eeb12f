//! Every bound on the wire, named, with its unit and the reason for its value.
//!
//! Owns the numbers only; whoever reads, stores or sends checks them before allocating. What a
//! client may want to know ahead of time is in [`advertised`], which `hello` carries.

use std::collections::BTreeMap;
use std::time::Duration;

/// Longest line in either dialect, newline excluded. A process with the largest argv and
/// environment Linux accepts by default (2 MiB together) fits even when every byte is written as a
/// JSON number of three digits and a comma.
pub const MAX_LINE_BYTES: usize = 8 << 20;

/// Most words in one classic line: far beyond any command line, and a word costs a few dozen bytes
/// of memory.
pub const MAX_WORDS_PER_LINE: usize = 65_536;

/// Longest name of a process, socket, value, held descriptor or namespace: what a file name may be.
pub const MAX_NAME_BYTES: usize = 255;

/// Most names, patterns or serials in one request: every process there can be, named one by one.
pub const MAX_NAMES_PER_REQUEST: usize = MAX_PROCESSES;

/// Longest value: room for a small state file; anything larger belongs in a held descriptor.
pub const MAX_VALUE_BYTES: usize = 1 << 20;

/// Arguments and environment of one process together, terminators included: Linux's default bound
/// of a quarter of an 8 MiB stack.
pub const MAX_ARGV_BYTES: usize = 2 << 20;

/// Longest single argument or `NAME=VALUE`, terminator included: Linux's `MAX_ARG_STRLEN`.
pub const MAX_ARGUMENT_BYTES: usize = 128 << 10;

/// Most arguments of one process.
pub const MAX_ARGUMENTS: usize = MAX_WORDS_PER_LINE;

/// Most environment variables given for one process.
pub const MAX_ENV_VARIABLES: usize = 16_384;

/// Longest path of a directory or socket file the kernel accepts, terminator included: Linux's
/// `PATH_MAX`. A unix socket's own bound of [`MAX_SOCKET_PATH_BYTES`] is far lower.
pub const MAX_PATH_BYTES: usize = 4096;

/// Longest path of a unix socket, terminator included: `sun_path`.
pub const MAX_SOCKET_PATH_BYTES: usize = 108;

/// Longest interface name, terminator included: `IFNAMSIZ`.
pub const MAX_INTERFACE_BYTES: usize = 16;

/// Longest host as text: what DNS allows.
pub const MAX_HOST_BYTES: usize = 255;

/// Largest accept queue that may be asked for; the system lowers it to `net.core.somaxconn`.
pub const MAX_BACKLOG: u32 = 65_535;

/// Most supplementary groups of one process: Linux's `NGROUPS_MAX`.
pub const MAX_GROUPS: usize = 65_536;

/// Most resource limits in one request; Linux has sixteen.
pub const MAX_RLIMITS: usize = 32;

/// Most held descriptors one process may start with.
pub const MAX_PASSED_DESCRIPTORS: usize = 64;

/// Most sockets one process may name.
pub const MAX_NAMED_SOCKETS: usize = 256;

/// Highest number a held descriptor may be placed at in a process.
pub const MAX_DESCRIPTOR_NUMBER: u32 = 1023;

/// Largest tag of a process, as compact JSON.
pub const MAX_TAG_BYTES: usize = 4 << 10;

/// Longest request id that is text.
pub const MAX_ID_BYTES: usize = 64;

/// Longest text by which a client or the holder of a claim describes itself.
pub const MAX_HOLDER_BYTES: usize = 1024;

/// Longest message of an error: enough to name the mistake, not to send the request back.
pub const MAX_MESSAGE_BYTES: usize = 4 << 10;

/// Most output bytes in one push, and in one classic batch: large enough to keep a fast writer
/// busy, small enough that a reader on the other end gets a word in between.
pub const MAX_BATCH_BYTES: usize = 4 << 20;

/// Most records in one push: their header line then stays below [`MAX_LINE_BYTES`] whatever the
/// numbers.
pub const MAX_BATCH_RECORDS: usize = 65_536;

/// Output kept per process unless the request says otherwise: what papa has always kept.
pub const REEL_BYTES: u64 = 1 << 20;

/// Largest reel that may be asked for.
pub const MAX_REEL_BYTES: u64 = 16 << 30;

/// Sessions served at once; each costs a descriptor and a few KiB.
pub const MAX_SESSIONS: usize = 1024;

/// Descriptors a session may have sent ahead of the requests that take them.
pub const MAX_PENDING_DESCRIPTORS_PER_SESSION: usize = 16;

/// Descriptors in one message: they belong to exactly one line.
pub const MAX_DESCRIPTORS_PER_MESSAGE: usize = 1;

/// Processes known at once, running or not.
pub const MAX_PROCESSES: usize = 32_768;

/// Listening sockets held at once.
pub const MAX_SOCKETS: usize = 4096;

/// Values kept at once.
pub const MAX_VALUES: usize = 65_536;

/// Names and contents of all values together.
pub const MAX_VALUES_BYTES: usize = 64 << 20;

/// Descriptors held for clients at once.
pub const MAX_HELD: usize = 4096;

/// Namespaces remembered with their epochs.
pub const MAX_CLAIMS: usize = 256;

/// Subscriptions of one session.
pub const MAX_SUBSCRIPTIONS_PER_SESSION: usize = 1024;

/// All sessions' unread input and unsent output together; when it is spent one is closed, a large
/// or idle one.
pub const SESSION_BUDGET_BYTES: usize = 64 << 20;

/// How long a writer waits for a consumer that stopped acknowledging before `auto` lets the oldest
/// output go.
pub const STALL_LIMIT: Duration = Duration::from_secs(2);

/// The limits a client may want to know before it asks, as `hello` sends them: name to value, units
/// in the names.
#[must_use]
pub fn advertised() -> BTreeMap<String, u64> {
    let entries: [(&str, usize); 14] = [
        ("line_bytes", MAX_LINE_BYTES),
        ("words_per_line", MAX_WORDS_PER_LINE),
        ("name_bytes", MAX_NAME_BYTES),
        ("value_bytes", MAX_VALUE_BYTES),
        ("argv_bytes", MAX_ARGV_BYTES),
        ("env_variables", MAX_ENV_VARIABLES),
        ("batch_bytes", MAX_BATCH_BYTES),
        ("sessions", MAX_SESSIONS),
        ("processes", MAX_PROCESSES),
        ("sockets", MAX_SOCKETS),
        ("values", MAX_VALUES),
        ("held", MAX_HELD),
        ("claims", MAX_CLAIMS),
        ("subscriptions_per_session", MAX_SUBSCRIPTIONS_PER_SESSION),
    ];
    let mut limits: BTreeMap<String, u64> = entries
        .into_iter()
        .map(|(name, limit)| (name.to_owned(), u64::try_from(limit).unwrap_or(u64::MAX)))
        .collect();
    limits.insert("max_reel_bytes".to_owned(), MAX_REEL_BYTES);
    limits.insert(
        "stall_ms".to_owned(),
        u64::try_from(STALL_LIMIT.as_millis()).unwrap_or(u64::MAX),
    );
    limits
}
