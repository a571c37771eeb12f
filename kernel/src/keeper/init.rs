//! A keeper that was replaced and is process 1: its end would be everybody's.
//!
//! It holds nothing any more and starts nobody. It reaps what falls to it,
//! passes signals on to the keeper of now, and ends when that one has ended on
//! purpose, as it would have itself, or when the last child has.

use std::ffi::CString;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;

use super::talk::has_title;
use super::{KERNEL_TITLE, Keeper, TITLE};
use crate::sys::pidfd::{Outcome, Target, wait_id};
use crate::sys::process;

impl Keeper {
    /// Stays until nobody is left; returns how the last of its successors ended.
    pub(super) fn stay_as_init(self, signals: &SignalFd) -> Result<u8, Errno> {
        let (mut successor, arguments) = (self.successor, self.arguments);
        // An open copy would keep ports and pipes alive of which the successor
        // knows nothing.
        drop((self.kept, self.kernel, self.ended, self.program, self.ready));
        let keeper_of_now = || keeper_among(&process::children(), &arguments);
        let mut code = 0;
        loop {
            // Successors may be replaced in their turn, and who replaces one
            // becomes a child of process 1 when that one ends.
            successor = keeper_of_now().or(successor);
            while let Some((pid, status)) = match wait_id(Target::Any, false) {
                Err(Errno::ECHILD) => return Ok(code),
                other => other?,
            } {
                if successor != Some(pid) {
                    continue;
                }
                successor = keeper_of_now();
                code = match status.outcome {
                    Outcome::Code(number) => u8::try_from(number).unwrap_or(1),
                    Outcome::Signal { .. } => 1,
                };
                if successor.is_none() && matches!(status.outcome, Outcome::Code(_)) {
                    return Ok(code);
                }
            }
            let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
            while let Ok(Some(info)) = signals.read_signal() {
                let number = info.ssi_signo.cast_signed();
                match (Signal::try_from(number), keeper_of_now().or(successor)) {
                    (
                        Ok(signal @ (Signal::SIGTERM | Signal::SIGINT | Signal::SIGUSR2)),
                        Some(pid),
                    ) => {
                        // Not waited for yet, so the number is its.
                        let _ = kill(Pid::from_raw(pid), signal);
                    }
                    // Nobody is left to decide: everybody is asked to end.
                    (Ok(signal @ (Signal::SIGTERM | Signal::SIGINT)), None) => {
                        let _ = kill(Pid::from_raw(-1), signal);
                    }
                    _ => {}
                }
            }
        }
    }
}

/// The child of ours that is the keeper, or the kernel that is about to take
/// the place of one that has died.
fn keeper_among(children: &[i32], arguments: &[CString]) -> Option<i32> {
    [TITLE, KERNEL_TITLE].into_iter().find_map(|title| {
        let mut children = children.iter().copied();
        children.find(|pid| has_title(*pid, title, arguments))
    })
}
