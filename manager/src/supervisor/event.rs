//! What the owner loop is told, what it is made from, and how it ends.
//!
//! Owns the closed list of everything that can happen to a manager. Leaves to others: what is done
//! about it (`supervisor`).
//! Invariant: a new kind of event makes `Supervisor::handle` speak; nothing reaches the loop by
//! another way.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use papa_client::{Address, Push};
use papa_logs::thread::LogReport;
use papa_protocol::process::Process;

use crate::config::{Config, Release};
use crate::control::server::Asked;
use crate::error::ManagerError;
use crate::kernel_link::{Inventory, KernelLink};
use crate::orphan::Orphan;
use crate::runtime_dir::RuntimeDir;
use crate::supervisor::probes::Finding;
use crate::supervisor::saves::{Fate, Key};
use crate::supervisor::upgrade::Asker;
use crate::tree::Answer;
use crate::watcher::StartFailure;

/// A file that was read to be applied.
#[derive(Debug)]
pub struct ReadFile {
    /// What it says.
    pub config: Config,
    /// By watcher: when its program or directory was changed last, in milliseconds since the
    /// epoch. None where one of them is missing.
    pub changed_ms: BTreeMap<String, Option<u64>>,
}

/// A watcher's number; never used twice by one manager, so that what comes late for a removed one
/// meets nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatcherId(pub(super) u32);

/// Everything that can happen.
#[derive(Debug)]
pub enum Event {
    /// The namespace is ours.
    Attached(Box<KernelLink>, Inventory),
    /// The kernel cannot be reached, or something there is not as it should be; for people, `None`
    /// when it is over.
    Trouble(Option<String>),
    /// Which sockets cannot be made, and why, for people; the others are there.
    Sockets(BTreeMap<String, String>),
    /// The same of those that could not be made before.
    SocketsAgain {
        tried: Vec<String>,
        failed: BTreeMap<String, String>,
    },
    /// The path of a unix socket that the kernel holds is gone: nobody can reach it.
    PathGone(String),
    /// At the path of a unix socket there is a file, of this device and inode.
    PathThere(String, (u64, u64)),
    /// Whether that file is the socket, if the kernel says so.
    PathTold(String, (u64, u64), Option<bool>),
    /// A socket whose path was gone is bound anew, or why not.
    BoundAnew(String, Result<(), String>),
    /// What there is, after the reconnection with this number.
    Listed(u64, Inventory),
    /// The kernel said something.
    Kernel(Push),
    /// What a worker that ended by itself wrote last.
    Heard { serial: u64, lines: Vec<String> },
    /// A start was answered.
    Started {
        watcher: WatcherId,
        wid: u32,
        /// Its release was deleted: where it was started instead.
        moved: Option<Release>,
        result: Result<Process, StartFailure>,
    },
    /// The log thread has something to say.
    Logs(LogReport),
    /// A request from the control socket.
    Asked(Asked),
    /// End, leaving the workers that can be left.
    Quit,
    /// End, and stop everything; the second time without patience.
    Stop,
    /// All output of an ended process was printed (`Console`).
    Shown(u64),
    /// Somebody moved the log files.
    ReopenLogs,
    /// There is no point in going on.
    Fatal(ManagerError),
    /// Everything was given back to the kernel.
    CleanedUp(BTreeMap<String, u64>),
    /// A stop signal is out.
    SignalSent,
    /// A probe has an answer.
    Found {
        watcher: WatcherId,
        wid: u32,
        serial: u64,
        finding: Finding,
    },
    /// Somebody connected to a socket of a watcher that waits for that.
    Demanded(WatcherId),
    /// The file was read again.
    Read(Box<Result<ReadFile, String>>),
    /// The sockets of a change are there, or nothing was changed.
    SocketsChanged {
        result: Result<(), String>,
        /// Sockets that are not there any more and could not be made again, and why.
        lost: BTreeMap<String, String>,
        /// Sockets that were replaced.
        made: Vec<String>,
    },
    /// Who is left of workers that have ended, or were killed.
    Left(Vec<Answer>),
    /// The look of this number has found these orphans of earlier kernels.
    OrphansFound(u64, Vec<Orphan>),
    /// The workers that are known were noted for the next manager, or why not.
    KnownNoted(Result<(), String>),
    /// What became of what was to be kept.
    Saved(Vec<(Key, Fate)>),
    /// Reload every watcher that runs.
    ReloadAll,
    /// Replace ourselves by what our path holds now.
    Upgrade,
    /// Whether what our path holds now would come up, and who wanted it to.
    UpgradeExamined(Result<(), String>, Box<Asker>),
}

/// How the manager ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// For good.
    Ended,
    /// The same, and everything was stopped on a signal.
    Stopped,
    /// Another is to be started in its place, in the same process.
    Again,
}

/// What the loop is made from.
#[derive(Debug)]
pub struct Setup {
    /// The configuration, complete.
    pub config: Config,
    /// The runtime directory.
    pub directory: RuntimeDir,
    /// Where to look for the kernel, best first.
    pub addresses: Vec<Address>,
    /// What is started in our place by an upgrade, if that is known.
    pub program: Option<PathBuf>,
    /// What it is started with.
    pub arguments: Vec<OsString>,
    /// Whether output that is in no file is written to standard output.
    pub console: bool,
    /// Our own file mode mask, for workers whose watcher has none, unless a predecessor has kept
    /// another.
    pub umask: Option<u32>,
}
