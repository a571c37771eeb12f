//! A keeper that was replaced and is process 1: its end would be everybody's.
//!
//! It holds nothing any more and starts nobody. It reaps what falls to it,
//! passes signals on to its successor, and ends when the last child has.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;

use super::Keeper;
use crate::sys::pidfd::{Outcome, Target, wait_id};

impl Keeper {
    /// Stays until nobody is left; returns how the successor ended.
    pub(super) fn stay_as_init(self, signals: &SignalFd) -> Result<u8, Errno> {
        let mut successor = self.kernel.as_ref().map(|kernel| kernel.pid);
        // With the descriptors: an open copy would keep ports and pipes alive
        // of which the successor knows nothing.
        drop(self);
        let mut code = 0;
        loop {
            while let Some((pid, status)) = match wait_id(Target::Any, false) {
                Err(Errno::ECHILD) => return Ok(code),
                other => other?,
            } {
                if successor == Some(Pid::from_raw(pid)) {
                    // Its kernel takes its place, if it has one.
                    successor = None;
                    code = match status.outcome {
                        Outcome::Code(number) => u8::try_from(number).unwrap_or(1),
                        Outcome::Signal { .. } => 1,
                    };
                }
            }
            let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
            while let Ok(Some(info)) = signals.read_signal() {
                match (Signal::try_from(info.ssi_signo.cast_signed()), successor) {
                    (
                        Ok(signal @ (Signal::SIGTERM | Signal::SIGINT | Signal::SIGUSR2)),
                        Some(pid),
                    ) => {
                        // Not waited for yet, so the number is its.
                        let _ = kill(pid, signal);
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
