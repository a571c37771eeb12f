//! One worker's command from its watcher.
//!
//! Owns what differs from worker to worker: its number, and how it refers to sockets whose numbers
//! only the kernel knows. Pure. Everything that can be wrong was reported by `resolve`, so this
//! cannot fail.
//! Source: Circus's variables `$(circus.wid)` and `$(circus.sockets.NAME)`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use papa_protocol::process::{Account, Rlimit, Stderr, Stdout};

use crate::types::{StreamConfig, WatcherConfig, socket_name};
use crate::variables;

/// The variable that tells a worker its number; what the environment had under this name was
/// somebody else's.
pub const NUMBER_VARIABLE: &str = "PAPA_WID";

/// What the kernel is asked to start.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerSpec {
    /// Name in the kernel: `NAMESPACE.WATCHER.WID`.
    pub name: String,
    /// Program and arguments; may hold `$(socket.NAME.fileno)` unless `verbatim`.
    pub argv: Vec<String>,
    /// Nothing in `argv` is to be replaced by the kernel.
    pub verbatim: bool,
    /// The complete environment.
    pub env: BTreeMap<OsString, OsString>,
    /// Absolute.
    pub working_dir: PathBuf,
    /// User, or the kernel's.
    pub uid: Option<Account>,
    /// Group, or the user's.
    pub gid: Option<Account>,
    /// File mode mask, or the kernel's default.
    pub umask: Option<u32>,
    /// By lower-case name.
    pub rlimits: BTreeMap<String, Rlimit>,
    /// Names in the kernel of the sockets the worker inherits.
    pub sockets: Vec<String>,
    /// Name in the kernel of the socket that becomes standard input; none: `/dev/null`.
    pub stdin_socket: Option<String>,
    /// Standard output.
    pub stdout: Stdout,
    /// Standard error.
    pub stderr: Stderr,
}

/// Replaces `$(circus.wid)` in a text of `ready` or `health` for worker number `wid` (from 1).
#[must_use]
pub fn render_text(text: &str, wid: u32) -> String {
    variables::replace(text, |key| (key == "wid").then(|| wid.to_string()))
}

/// Makes the request for worker number `wid` (from 1) of `watcher`.
#[must_use]
pub fn render_worker(watcher: &WatcherConfig, namespace: &str, wid: u32) -> WorkerSpec {
    let mut verbatim = true;
    let mut env = watcher.env.clone();
    env.insert(NUMBER_VARIABLE.into(), wid.to_string().into());
    let program = watcher.resolved_program.iter();
    let given = watcher.argv_template.iter();
    let words = program.chain(given.skip(usize::from(watcher.resolved_program.is_some())));
    let argv = words
        .map(|word| {
            variables::replace(word, |key| {
                if key == "wid" {
                    return Some(wid.to_string());
                }
                let socket = key.strip_prefix("sockets.")?;
                verbatim = false;
                Some(format!(
                    "$(socket.{}.fileno)",
                    socket_name(namespace, socket)
                ))
            })
        })
        .collect();
    WorkerSpec {
        name: watcher.worker_name(namespace, wid),
        argv,
        verbatim,
        env,
        working_dir: watcher.resolved_dir.clone(),
        uid: watcher.uid.clone(),
        gid: watcher.gid.clone(),
        umask: watcher.umask,
        rlimits: watcher.rlimits.clone(),
        sockets: watcher
            .sockets
            .iter()
            .map(|name| socket_name(namespace, name))
            .collect(),
        stdin_socket: watcher
            .stdin_socket
            .as_ref()
            .map(|name| socket_name(namespace, name)),
        stdout: match watcher.stdout {
            StreamConfig::Null => Stdout::Null,
            _ => Stdout::Pipe,
        },
        stderr: match watcher.stderr {
            StreamConfig::Null => Stderr::Null,
            _ => Stderr::Pipe,
        },
    }
}
