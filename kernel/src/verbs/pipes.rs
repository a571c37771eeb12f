//! The pipes a process writes its output into.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use papa_protocol::json::request::ProcessMake;
use papa_protocol::process::{Stderr, Stdout};

use crate::sys::process::{move_up, set_owner};

/// The pipes of a process about to be started.
#[derive(Debug, Default)]
pub(crate) struct Pipes {
    /// Our ends.
    pub out: Option<OwnedFd>,
    pub err: Option<OwnedFd>,
    /// The child's ends.
    pub child_out: Option<OwnedFd>,
    pub child_err: Option<OwnedFd>,
}

/// Opens the pipes `make` asks for; their write ends belong to `uid` where it is given.
///
/// # Errors
/// The errno of `pipe2(2)` or `fcntl(2)`.
pub(crate) fn open_pipes(
    make: &ProcessMake,
    reel_bytes: u64,
    uid: Option<u32>,
) -> Result<Pipes, Errno> {
    let mut pipes = Pipes::default();
    if reel_bytes == 0 {
        return Ok(pipes);
    }
    let open = || -> Result<(OwnedFd, OwnedFd), Errno> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let read = move_up(read);
        // Only our end: the flag belongs to the end, and the worker's writes
        // must wait as on any pipe.
        fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        if let Some(uid) = uid {
            // A user who may not give files away runs everything as itself.
            let _ = set_owner(&write, uid);
        }
        Ok((read, write))
    };
    if make.stdout == Stdout::Pipe {
        let (read, write) = open()?;
        (pipes.out, pipes.child_out) = (Some(read), Some(write));
    }
    if make.stderr == Stderr::Pipe {
        let (read, write) = open()?;
        (pipes.err, pipes.child_err) = (Some(read), Some(write));
    }
    Ok(pipes)
}
