//! What the manager was started with, besides its configuration.

use std::ffi::OsString;
use std::path::PathBuf;

use papa_client::Address;

/// See the module.
#[derive(Debug)]
pub(super) struct Startup {
    /// Where to look for the kernel, best first.
    pub(super) addresses: Vec<Address>,
    /// The program that an upgrade executes, if it is known.
    pub(super) program: Option<PathBuf>,
    /// The arguments of that program.
    pub(super) arguments: Vec<OsString>,
    /// File mode mask of workers whose watcher has none: the manager's own, or the one that an
    /// earlier manager has kept.
    pub(super) umask: Option<u32>,
    /// Start of the manager, in seconds since the epoch.
    pub(super) at: f64,
}
