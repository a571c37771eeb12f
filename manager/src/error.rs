//! Why the manager ends with a failure.

use std::io;
use std::path::PathBuf;

use crate::kernel_link::LinkError;
use crate::runtime_dir::RuntimeDirError;

/// What ends the manager.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// Another manager answers on our socket.
    #[error("a manager already runs for namespace {namespace:?}{}", pid.map(|pid| format!(", pid {pid}")).unwrap_or_default())]
    AlreadyRunning {
        /// The namespace both want.
        namespace: String,
        /// The other one.
        pid: Option<i32>,
    },
    /// The control socket cannot be made.
    #[error("control socket {path}: {source}", path = path.display())]
    ControlSocket {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The runtime directory is unusable.
    #[error(transparent)]
    RuntimeDir(#[from] RuntimeDirError),
    /// The kernel refused us the namespace.
    #[error("namespace {namespace:?} is not ours: {source}")]
    Claim {
        /// The namespace.
        namespace: String,
        /// What the kernel said; names the holder.
        #[source]
        source: LinkError,
    },
    /// Another manager took the namespace while we slept.
    #[error("namespace {namespace:?} was taken over by {by}")]
    TakenOver {
        /// The namespace.
        namespace: String,
        /// Who has it now.
        by: String,
    },
    /// Everything was to be stopped, and there is no kernel that could do it.
    #[error(
        "nothing was stopped, because no kernel is connected ({reason}); workers may run on, and `papactl up FILE` finds them"
    )]
    NotStopped {
        /// Why it is not connected, for people.
        reason: String,
    },
    /// The system refused something basic.
    #[error(transparent)]
    Io(#[from] io::Error),
}
