//! The mark: what each worker's environment says of whose it is.
//!
//! Owns the names of its variables, their forms, and reading them of a running process. A mark is
//! found in whatever a worker starts, as long as that keeps the environment; what clears it is known
//! by a resource limit that has the mark's digest. The mark names the line of kernels it was started
//! by, so that workers of a manager which itself runs below a worker are not taken for that worker's.
//! Invariant: anybody may write any mark into the environment of a process of their own, so a mark
//! counts only for processes of the users the caller names.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::str::FromStr;

/// The namespace of the manager.
pub const NAMESPACE: &str = "PAPA_NAMESPACE";
/// The watcher's name, in lower case.
pub const WATCHER: &str = "PAPA_WATCHER";
/// The number of the worker.
pub const WID: &str = papa_config::NUMBER_VARIABLE;
/// The line of kernels.
pub const LINEAGE: &str = "PAPA_LINEAGE";

/// All variables of a mark.
pub const VARIABLES: [&str; 4] = [NAMESPACE, WATCHER, WID, LINEAGE];

/// Longest environment that is read: the system lets a program start with 6 MiB at most.
const MAX_ENVIRONMENT_BYTES: u64 = 6 * 1024 * 1024;

/// A line of kernels: the first, and all that took its place after a crash or an upgrade.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage {
    /// When the first started, in microseconds since the epoch.
    pub started_us: u64,
    /// The port it serves, or the path of its socket; empty where the kernel does not say.
    pub place: String,
}

impl Lineage {
    /// Whether both serve the same place. One that is not known is no place: it may be that of
    /// another installation, whose kernel lives. A kernel on a port has a socket `PORT.sock`, by
    /// which alone the next one may have been asked for.
    #[must_use]
    pub fn is_at(&self, other: &Self) -> bool {
        let (one, two) = (self.place.as_str(), other.place.as_str());
        (one == two && !one.is_empty()) || is_of(one, two) || is_of(two, one)
    }
}

/// Whether this path is of the socket that a kernel on this port has.
fn is_of(path: &str, port: &str) -> bool {
    let file = Path::new(path).file_name().and_then(|name| name.to_str());
    path.contains('/')
        && port.parse::<u16>().is_ok()
        && file.and_then(|file| file.strip_suffix(".sock")) == Some(port)
}

impl std::fmt::Display for Lineage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.started_us, self.place)
    }
}

impl FromStr for Lineage {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (started_us, place) = text.split_once('@').unwrap_or((text, ""));
        Ok(Self {
            started_us: started_us.parse()?,
            place: place.to_owned(),
        })
    }
}

/// Whose a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The namespace of the manager.
    pub namespace: String,
    /// The watcher's name, in lower case.
    pub watcher: String,
    /// The number of the worker.
    pub wid: u32,
    /// The kernels it was started by.
    pub lineage: Lineage,
}

impl Mark {
    /// The variables of the environment that make the mark.
    #[must_use]
    pub fn variables(&self) -> [(&'static str, String); 4] {
        [
            (NAMESPACE, self.namespace.clone()),
            (WATCHER, self.watcher.clone()),
            (WID, self.wid.to_string()),
            (LINEAGE, self.lineage.to_string()),
        ]
    }

    /// The resource limit that says the same; see [`limit`].
    #[must_use]
    pub fn limit(&self) -> u64 {
        let entry = |(name, value)| format!("{name}={value}").into_bytes();
        limit(&self.variables().map(entry))
    }

    /// Reads the mark in an environment, as `/proc/PID/environ` has it.
    #[must_use]
    pub fn parse(environment: &[u8]) -> Option<Self> {
        let variable = |name: &str| {
            let mut entries = environment.split(|byte| *byte == 0);
            let value = entries
                .find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
            std::str::from_utf8(value).ok()
        };
        Some(Self {
            lineage: variable(LINEAGE)?.parse().ok()?,
            namespace: variable(NAMESPACE)?.to_owned(),
            watcher: variable(WATCHER)?.to_owned(),
            wid: variable(WID)?.parse().ok()?,
        })
    }

    /// The mark of a running process, and the user it runs as; none if it has no mark, or is not
    /// ours to read.
    #[must_use]
    pub fn of(pid: i32) -> Option<(Self, u32)> {
        let file = File::open(format!("/proc/{pid}/environ")).ok()?;
        let owner = std::fs::metadata(format!("/proc/{pid}")).ok()?.uid();
        let mut environment = Vec::new();
        file.take(MAX_ENVIRONMENT_BYTES)
            .read_to_end(&mut environment)
            .ok()?;
        Some((Self::parse(&environment)?, owner))
    }
}

/// The mark as a limit of time under realtime scheduling (`RLIMIT_RTTIME`), in microseconds: at
/// least 142 years, so that it limits nothing. A program that clears its environment keeps its
/// limits. `entries` are those of the environment.
#[must_use]
pub fn limit(entries: &[Vec<u8>]) -> u64 {
    /// Below 2^53, which every reader of JSON keeps exactly.
    const LEAST: u64 = 1 << 52;
    // FNV-1a, which is the same in every build.
    let hash = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let bytes = entries.iter().flat_map(|entry| entry.iter().chain(&[0]));
    LEAST | (bytes.fold(0xcbf2_9ce4_8422_2325, hash) >> 12)
}

/// The limits of a process's time under realtime scheduling, soft and hard, in microseconds; none is
/// infinity.
#[must_use]
pub fn limits_of(pid: i32) -> Option<(Option<u64>, Option<u64>)> {
    parse_limits(&std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?)
}

/// Source: `proc_pid_limits(5)`.
fn parse_limits(limits: &str) -> Option<(Option<u64>, Option<u64>)> {
    let line = |line: &str| line.strip_prefix("Max realtime timeout").map(str::to_owned);
    let values = limits.lines().find_map(line)?;
    let limit = |text: &str| match text {
        "unlimited" => Some(None),
        limit => Some(Some(limit.parse().ok()?)),
    };
    let mut values = values.split_ascii_whitespace();
    Some((limit(values.next()?)?, limit(values.next()?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_a_limit_that_limits_nothing_and_differs_for_each_worker() {
        let mark = |wid| Mark {
            namespace: "circus".into(),
            watcher: "web".into(),
            wid,
            lineage: "17@20202".parse().unwrap(),
        };
        assert_ne!(mark(1).limit(), mark(2).limit());
        for wid in 1..100 {
            let limit = mark(wid).limit();
            assert!((1 << 52..1 << 53).contains(&limit), "{limit}");
        }
    }

    #[test]
    fn the_limit_of_a_process_is_read() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
            Max realtime priority     0                    0                    \n\
            Max realtime timeout      7                    4503599627382841     us        \n";
        let read = Some((Some(7), Some(4_503_599_627_382_841)));
        assert_eq!(parse_limits(limits), read);
        let none =
            "Max realtime timeout      unlimited            unlimited            us        \n";
        assert_eq!(parse_limits(none), Some((None, None)));
        assert_eq!(parse_limits("Max realtime timeout      7"), None);
        assert_eq!(parse_limits(""), None);
        assert!(limits_of(std::process::id().try_into().unwrap()).is_some());
    }

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        let mark = Mark {
            namespace: "circus".into(),
            watcher: "web.api".into(),
            wid: 3,
            lineage: Lineage {
                started_us: 1_795_376_225_030_000,
                place: "/run/a@b.sock".into(),
            },
        };
        let mut environment = b"A=1\0PAPA_NAMESPACES=x\0".to_vec();
        for (name, value) in mark.variables() {
            environment.extend_from_slice(format!("{name}={value}\0").as_bytes());
        }
        assert_eq!(Mark::parse(&environment), Some(mark));
    }

    #[test]
    fn a_kernel_on_a_port_and_the_next_one_at_its_socket_are_at_one_place() {
        let at = |place: &str| Lineage {
            started_us: 1,
            place: place.to_owned(),
        };
        for (one, two, same) in [
            ("20202", "/run/user/0/papa/20202.sock", true),
            ("20202", "20202", true),
            ("20202", "", false),
            ("", "", false),
            ("20202", "20203", false),
            ("20202", "/run/user/0/papa/20203.sock", false),
            ("20202", "/run/20202.sock/x", false),
            ("/a/20202.sock", "/b/20202.sock", false),
            ("x", "/a/x.sock", false),
        ] {
            assert_eq!(at(one).is_at(&at(two)), same, "{one:?} {two:?}");
            assert_eq!(at(two).is_at(&at(one)), same, "{two:?} {one:?}");
        }
    }

    #[test]
    fn an_environment_with_half_a_mark_has_none() {
        for text in [
            "",
            "PAPA_WID=1",
            "PAPA_NAMESPACE=a\0PAPA_WATCHER=b\0PAPA_WID=1",
            "PAPA_NAMESPACE=a\0PAPA_WATCHER=b\0PAPA_WID=x\0PAPA_LINEAGE=1@20202",
            "PAPA_NAMESPACE=a\0PAPA_WATCHER=b\0PAPA_WID=1\0PAPA_LINEAGE=x@20202",
        ] {
            assert_eq!(Mark::parse(text.as_bytes()), None, "{text:?}");
        }
    }
}
