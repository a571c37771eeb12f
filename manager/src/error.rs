//! Why the manager ends with a failure.

use std::io;
use std::path::PathBuf;

use papa_control::kernel_search::KernelElsewhere;

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
    /// The kernel is in another process namespace.
    #[error(transparent)]
    Elsewhere(#[from] KernelElsewhere),
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

/// An error with everything that led to it, in one line. Many name their cause in their own text:
/// it is not said twice.
#[must_use]
pub fn causes(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn a_cause_that_an_error_names_itself_is_said_once() {
        let refused = || io::Error::from_raw_os_error(13);
        let socket = ManagerError::ControlSocket {
            path: PathBuf::from("/x"),
            source: refused(),
        };
        let error = anyhow::Error::from(socket).context("starting");
        assert_eq!(
            causes(&error),
            "starting: control socket /x: Permission denied (os error 13)"
        );
        let error = Err::<(), _>(refused()).context("log file /x").unwrap_err();
        assert_eq!(
            causes(&error),
            "log file /x: Permission denied (os error 13)"
        );
    }
}
