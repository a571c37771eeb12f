//! Replaces the keeper on purpose, while at every moment two processes hold everything.
//!
//! The kernel tells its keeper (`Succeed`) and execs into a second keeper, with a line and a pidfd
//! of the first one among its descriptors. The new keeper starts a kernel as usual. When that
//! kernel has fetched everything, and before it writes or reads anything, it dismisses the old
//! keeper (`Dismiss`), which reports what only it knew, answers (`Dismissed`) and ends.
//!
//! If one of them dies meanwhile, the old keeper decides who is the keeper. If the new one ends
//! before the dismissal has arrived, the old one stays and starts a kernel as after a crash; it
//! closes the line, and the new keeper's kernel ends unused. If the old keeper dies, the new one is
//! the keeper. The new keeper is this kernel's parent, so its death is seen without asking.
//!
//! Invariant: of the kernels the two keepers start at most one comes to write.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::socket::MsgFlags;
use nix::unistd::{Pid, getppid};
use papa_test_hooks::failpoint;

use crate::keeper::wire::{Kept, Key, Kind, MAX_MESSAGE, ToKeeper, ToKernel};
use crate::sys::{message, pidfd};
use papa_test_hooks::patience::scaled;

/// How long the keeper before may take to answer its dismissal.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How long it may take to be gone when it was killed for not answering.
const END_LIMIT: Duration = Duration::from_secs(1);

const LINE: Key = Key {
    kind: Kind::PREDECESSOR,
    id: 0,
};
const HANDLE: Key = Key {
    kind: Kind::PREDECESSOR,
    id: 1,
};

/// A keeper that is to be replaced and still holds everything.
#[derive(Debug)]
pub struct Predecessor {
    /// The kernel's line to it.
    line: OwnedFd,
    /// Its handle.
    process: OwnedFd,
}

/// The keeper before goes on; this kernel must not.
#[derive(Debug, PartialEq, Eq)]
pub struct Stays;

impl Predecessor {
    /// The keeper of a kernel, its parent, about to be replaced.
    ///
    /// # Errors
    /// `ESRCH` when it has died, or the errno of `pidfd_open(2)`.
    pub fn of_kernel(keeper: i32, line: impl AsFd) -> Result<Self, Errno> {
        let process = pidfd::pidfd_open(keeper)?;
        // Its number is its as long as it is our parent.
        if getppid().as_raw() != keeper {
            return Err(Errno::ESRCH);
        }
        let line = line.as_fd().try_clone_to_owned();
        let line = line.map_err(|_| Errno::EMFILE)?;
        Ok(Self { line, process })
    }

    /// What goes along with the descriptors of the next keeper.
    #[must_use]
    pub fn entries(&self) -> [(Key, &OwnedFd); 2] {
        [(LINE, &self.line), (HANDLE, &self.process)]
    }

    /// The one named among what a kernel has fetched.
    #[must_use]
    pub fn take(kept: &mut Kept) -> Option<Self> {
        let (line, process) = (kept.remove(&LINE), kept.remove(&HANDLE));
        Some(Self {
            line: line?,
            process: process?,
        })
    }

    /// Keys the keeper need not hold once it is gone.
    #[must_use]
    pub fn keys() -> [Key; 2] {
        [LINE, HANDLE]
    }

    /// Dismisses it, on behalf of the kernel of `keeper`, which has everything;
    /// what only it knew is passed to `say` as it is heard.
    ///
    /// # Errors
    /// [`Stays`] when `keeper` has ended and it has taken everything up again.
    pub fn dismiss(self, keeper: Pid, mut say: impl FnMut(ToKernel)) -> Result<(), Stays> {
        failpoint::reach("succession.dismiss");
        let bytes = ToKeeper::Dismiss.encode();
        let (mut told, deadline) = (false, Instant::now() + scaled(ANSWER_LIMIT));
        loop {
            // One that does not read is seen by its silence, one that is gone
            // by the end of the line.
            if !told {
                let sent = message::send(&self.line, &bytes, &[], MsgFlags::MSG_DONTWAIT);
                told = sent != Err(Errno::EAGAIN);
            }
            match self.hear() {
                Heard::Message(ToKernel::Dismissed) => {
                    failpoint::reach("succession.dismissed");
                    return Ok(());
                }
                Heard::Message(message) => say(message),
                // It has died, or is gone already: or it stays, which it does
                // only when it has seen `keeper` end.
                Heard::End if getppid() == keeper => return Ok(()),
                Heard::End => return Err(Stays),
                Heard::Nothing if Instant::now() < deadline => wait(&self.line, deadline),
                Heard::Nothing => break,
            }
        }
        // It stands still. Where the next keeper lives it must not wake up beside
        // that; otherwise it is the one to wake up. Process 1 cannot be killed,
        // but finds its dismissal when it does.
        if getppid() != keeper {
            return Err(Stays);
        }
        let _ = pidfd::pidfd_send_signal(&self.process, Signal::SIGKILL as i32);
        wait(&self.process, Instant::now() + END_LIMIT);
        while let Heard::Message(message) = self.hear() {
            say(message);
        }
        Ok(())
    }

    fn hear(&self) -> Heard {
        let mut buffer = [0u8; MAX_MESSAGE];
        loop {
            match message::receive(&self.line, &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(got) if got.length == 0 => return Heard::End,
                Ok(got) => {
                    if let Some(message) = ToKernel::decode(&buffer[..got.length]) {
                        return Heard::Message(message);
                    }
                }
                Err(Errno::EAGAIN) => return Heard::Nothing,
                Err(_) => return Heard::End,
            }
        }
    }
}

enum Heard {
    Message(ToKernel),
    Nothing,
    End,
}

/// Waits until `fd` has something, or the deadline.
fn wait(fd: &OwnedFd, deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now());
    let left = PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX);
    // Interrupted is as good as too early: the caller looks again.
    let _ = poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], left);
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;
    use crate::keeper::wire::ToKeeper;

    struct Other {
        child: Child,
        line: OwnedFd,
    }

    /// A process that is taken for the keeper before, and its end of the line.
    fn predecessor() -> (Predecessor, Other) {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let (ours, line) = message::seqpacket_pair().unwrap();
        let process = pidfd::pidfd_open(child.id().cast_signed()).unwrap();
        let predecessor = Predecessor {
            line: ours,
            process,
        };
        (predecessor, Other { child, line })
    }

    impl Other {
        fn say(&self, message: &ToKernel) {
            message::send(&self.line, &message.encode(), &[], MsgFlags::empty()).unwrap();
        }

        fn hears_the_dismissal(&self) -> bool {
            let mut buffer = [0; MAX_MESSAGE];
            let got = message::receive(&self.line, &mut buffer, MsgFlags::MSG_DONTWAIT).unwrap();
            ToKeeper::decode(&buffer[..got.length]) == Some(ToKeeper::Dismiss)
        }
    }

    impl Drop for Other {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    /// Never our parent.
    const DEAD: Pid = Pid::from_raw(i32::MAX);

    #[test]
    fn it_says_what_it_knew_and_goes() {
        let (predecessor, other) = predecessor();
        other.say(&ToKernel::Signal(15));
        other.say(&ToKernel::Dismissed);
        // Also when the next keeper has ended since: the answer decides.
        let mut said = Vec::new();
        assert_eq!(
            predecessor.dismiss(DEAD, |message| said.push(message)),
            Ok(())
        );
        assert_eq!(said, [ToKernel::Signal(15)]);
        assert!(other.hears_the_dismissal());
    }

    #[test]
    fn one_that_has_died_is_no_obstacle_while_the_next_one_lives() {
        let (predecessor, other) = predecessor();
        drop(other);
        assert_eq!(predecessor.dismiss(getppid(), drop), Ok(()));
    }

    #[test]
    fn one_that_closes_the_line_after_the_next_one_has_died_stays() {
        let (predecessor, mut other) = predecessor();
        let (_, line) = message::seqpacket_pair().unwrap();
        drop(std::mem::replace(&mut other.line, line));
        assert_eq!(predecessor.dismiss(DEAD, drop), Err(Stays));
    }

    #[test]
    fn one_that_stands_still_stays_if_the_next_one_has_died() {
        let (predecessor, mut other) = predecessor();
        assert_eq!(predecessor.dismiss(DEAD, drop), Err(Stays));
        assert_eq!(other.child.try_wait().unwrap(), None);
    }

    #[test]
    fn one_that_stands_still_beside_the_next_one_is_killed() {
        let (predecessor, mut other) = predecessor();
        assert_eq!(predecessor.dismiss(getppid(), drop), Ok(()));
        assert!(!other.child.wait().unwrap().success());
    }
}
