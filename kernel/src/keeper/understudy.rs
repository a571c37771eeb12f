//! The stand-in: a copy of this process that waits while there is no keeper.
//!
//! When a keeper has died, this process alone holds everything until there is another keeper with a
//! kernel. A fork is quick, however much is held, and the copy has every descriptor. The copy waits
//! for the end of a pipe that this process, also in the keeper's role, holds open until a kernel
//! serves. If the pipe ends because this process has died, the copy takes the keeper's place.
//!
//! The *right* decides whether it may: one byte in a pipe that both processes have, and the kernel
//! that is started meanwhile. The process that reads the byte goes on; a process that does not find
//! it ends. The next kernel takes it when it has fetched everything, before it writes or reads
//! anything.
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
    /// The copy waits for the end of this pipe.
    pub line: OwnedFd,
    /// The right.
    pub right: OwnedFd,
}

/// Which of the two this is.
#[derive(Debug)]
pub enum Side {
    /// The process that goes on.
    Original(Understudy),
    /// The copy; the original has died.
    Copy,
}

/// Makes a copy of this process, and returns in the copy only if that is to go on.
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

/// Takes the right; false if another process has it.
fn take(right: &OwnedFd) -> bool {
    nix::unistd::read(right, &mut [0; 1]) == Ok(1)
}

/// Takes the right if there is one among `kept`. True if no copy was waiting, or it will not go on
/// any more.
pub fn may_go_on(kept: &mut Kept) -> bool {
    kept.remove(&RIGHT).is_none_or(|right| take(&right))
}

/// The same for a kernel of this keeper that has everything. A kernel that took the right and was
/// killed at once leaves none; but while the keeper lives, only its kernels have reason to take it.
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
