//! A keeper has died: until there is another one with a kernel, this process
//! is the only holder of everything. A copy of it waits beside.
//!
//! Forking takes a moment, however much is held, and the copy has every
//! descriptor. It waits for the end of a pipe that this process, also in the
//! keeper's role, holds open until a kernel serves. If that comes because this
//! process has died, the copy takes the keeper's place itself.
//!
//! Whether it may is decided by the *right*: one byte in a pipe that both of
//! them, and the kernel that is started meanwhile, have. Whoever reads it goes
//! on; whoever does not find it ends. The next kernel takes it when it has
//! fetched everything, before it writes or reads anything.
//!
//! Invariant: of the copy and the next kernel at most one goes on.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{ForkResult, Pid, getppid};
use papa_test_hooks::failpoint;

use crate::keeper::wire::{Kept, Key, Kind};
use crate::sys::process;

/// The right as it is kept.
pub const RIGHT: Key = Key {
    kind: Kind::RIGHT,
    id: 0,
};

/// This process's side of the copy that waits.
#[derive(Debug)]
pub struct Understudy {
    /// Its end is what the copy waits for.
    pub line: OwnedFd,
    /// The right.
    pub right: OwnedFd,
}

/// Which of the two this is.
#[derive(Debug)]
pub enum Side {
    /// The process that goes on.
    Original(Understudy),
    /// The copy, and the other one has died: it is this one's turn.
    Copy,
}

/// Makes a copy of this process, and returns in it only if it is to go on.
/// Where that cannot be done the process is alone, as it would have been.
///
/// # Errors
/// The errno of `pipe2(2)` or `fork(2)`.
pub fn prepare() -> Result<Side, Errno> {
    let (waits, line) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let (right, grant) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    nix::unistd::write(&grant, b"1")?;
    drop(grant);
    match process::fork()? {
        ForkResult::Parent { .. } => Ok(Side::Original(Understudy { line, right })),
        ForkResult::Child => {
            drop(line);
            wait_for_end(&waits);
            if !take(&right) {
                process::exit_forked(0);
            }
            failpoint::reach("understudy.goes_on");
            Ok(Side::Copy)
        }
    }
}

/// Waits until nobody holds the other end open.
fn wait_for_end(waits: &OwnedFd) {
    loop {
        let mut fds = [PollFd::new(waits.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::NONE).is_ok() {
            return;
        }
    }
}

/// Takes the right; false if somebody has it.
fn take(right: &OwnedFd) -> bool {
    nix::unistd::read(right, &mut [0; 1]) == Ok(1)
}

/// Takes the right where there is one among `kept`: whether there was no copy
/// waiting, or it will not go on any more.
pub fn may_go_on(kept: &mut Kept) -> bool {
    kept.remove(&RIGHT).is_none_or(|right| take(&right))
}

/// The same for a kernel that has everything, of this keeper. One that took the
/// right and was killed at once leaves none; but while the keeper lives nobody
/// but its kernels has had reason to take it.
#[must_use]
pub fn kernel_may_go_on(kept: &mut Kept, keeper: Pid) -> bool {
    may_go_on(kept) || (getppid() == keeper && !process::is_exiting(keeper))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_is_had_once() {
        let (right, grant) = nix::unistd::pipe2(OFlag::O_NONBLOCK).unwrap();
        nix::unistd::write(&grant, b"1").unwrap();
        drop(grant);
        let copy = right.try_clone().unwrap();
        assert!(may_go_on(&mut Kept::from([(RIGHT, right)])));
        assert!(!may_go_on(&mut Kept::from([(RIGHT, copy)])));
        assert!(may_go_on(&mut Kept::new()));
    }
}
