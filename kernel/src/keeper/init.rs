//! A keeper that was replaced and is process 1, whose end would end every process.
//!
//! It holds nothing any more and starts nothing. It reaps orphans, passes signals on to the present
//! keeper, and ends when that has ended on purpose or when its last child has ended.

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
    /// Stays until no child is left; returns the exit code of its last successor.
    pub(super) fn stay_as_init(self, signals: &SignalFd) -> Result<u8, Errno> {
        let (mut successor, arguments) = (self.successor, self.arguments);
        // Open copies would keep ports and pipes alive that the successor does not know of.
        drop((self.kept, self.kernel, self.ended, self.program, self.ready));
        let keeper_of_now = || keeper_among(&process::children(), &arguments);
        let mut code = 0;
        loop {
            // A successor may be replaced too; the process that replaces it becomes a child of
            // process 1 when it ends.
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
                        // It was not waited for yet, so its number cannot have been reused.
                        let _ = kill(Pid::from_raw(pid), signal);
                    }
                    // No keeper is left to decide, so every process is asked to end.
                    (Ok(signal @ (Signal::SIGTERM | Signal::SIGINT)), None) => {
                        let _ = kill(Pid::from_raw(-1), signal);
                    }
                    _ => {}
                }
            }
        }
    }
}

/// The child that is the present keeper, or the kernel that is about to take the place of a keeper
/// that has died.
fn keeper_among(children: &[i32], arguments: &[CString]) -> Option<i32> {
    [TITLE, KERNEL_TITLE].into_iter().find_map(|title| {
        let mut children = children.iter().copied();
        children.find(|pid| has_title(*pid, title, arguments))
    })
}
