//! Waiting for what comes of a start.

use std::os::fd::OwnedFd;
use std::ptr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::memory::Memory;
use super::{EXEC_LIMIT, Failure, Started, Step};
use crate::sys::pidfd::{Target, pidfd_send_signal, wait_id};
use crate::sys::process;

/// A child that has not exec'ed yet.
pub struct Starting {
    /// Its number.
    pub pid: i32,
    pidfd: Option<OwnedFd>,
    since: Instant,
    /// None once it is over.
    memory: Option<Box<Memory>>,
}

impl std::fmt::Debug for Starting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Starting")
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}

impl Starting {
    pub(super) fn new(pid: i32, pidfd: OwnedFd, memory: Box<Memory>) -> Self {
        Self {
            pid,
            pidfd: Some(pidfd),
            since: Instant::now(),
            memory: Some(memory),
        }
    }

    /// When the child is to be given up.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.since + EXEC_LIMIT
    }

    /// The handle to the child, until it is handed on with the result.
    #[must_use]
    pub fn pidfd(&self) -> Option<&OwnedFd> {
        self.pidfd.as_ref()
    }

    /// Looks, without waiting, what came of the start; then this is not asked
    /// again.
    ///
    /// # Errors
    /// As [`start`](super::start).
    pub fn look(&mut self) -> Option<Result<Started, Failure>> {
        let memory = self.memory.as_ref()?;
        if memory.frame.lives.load(Ordering::Acquire) != 0 {
            return None;
        }
        let failed = memory.frame.failed_step.load(Ordering::Acquire);
        let errno = Errno::from_raw(memory.frame.failed_errno.load(Ordering::Acquire));
        let outside = memory.frame.outside.load(Ordering::Acquire);
        self.memory = None;
        let failure = if failed != 0 {
            Some(Failure {
                step: step(failed),
                errno,
            })
        } else if is_dead(self.pid) && never_execed(self.pid) {
            Some(Failure {
                step: Step::Killed,
                errno: Errno::EINTR,
            })
        } else {
            None
        };
        if let Some(failure) = failure {
            while let Ok(None) = wait_id(Target::Pid(self.pid), false) {
                // The child is between its last words and its end: microseconds.
                std::thread::yield_now();
            }
            return Some(Err(failure));
        }
        let pidfd = self.pidfd.take()?;
        Some(Ok(Started {
            pid: self.pid,
            pidfd,
            outside: (outside != 0).then(|| Errno::from_raw(outside)),
        }))
    }

    /// Waits for what comes of the start: however long while the child needs
    /// descriptors of ours, which takes no file system, and then `patience`.
    ///
    /// # Errors
    /// As [`start`](super::start).
    pub fn wait(&mut self, patience: Duration) -> Option<Result<Started, Failure>> {
        let until = Instant::now() + patience;
        loop {
            if let Some(result) = self.look() {
                return Some(result);
            }
            let frame = &self.memory.as_ref()?.frame;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() && frame.placed.load(Ordering::Acquire) != 0 {
                return None;
            }
            let left = left.clamp(Duration::from_millis(1), Duration::from_secs(1));
            let limit = libc::timespec {
                tv_sec: left.as_secs().cast_signed() as _,
                tv_nsec: i64::from(left.subsec_nanos()) as _,
            };
            // SAFETY: the word and the time live for the whole call. A word
            // that has changed, a signal or the time ends it.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    frame.lives.as_ptr(),
                    libc::FUTEX_WAIT,
                    1,
                    ptr::from_ref(&limit),
                );
            }
        }
    }

    /// Kills a child that takes too long and gives its handle on: it may be
    /// where not even that ends it at once.
    pub fn give_up(&mut self) -> Option<OwnedFd> {
        let pidfd = self.pidfd.take()?;
        let _ = pidfd_send_signal(&pidfd, libc::SIGKILL);
        Some(pidfd)
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take()
            && memory.frame.lives.load(Ordering::Acquire) != 0
        {
            // The child still uses it. A few KiB, of a start that hangs.
            Box::leak(memory);
        }
    }
}

/// Whether a child of ours has ended.
fn is_dead(pid: i32) -> bool {
    matches!(wait_id(Target::Pid(pid), true), Ok(Some(_)))
}

/// Whether a process, which may be a zombie, has run no program of its own.
/// Source: `proc_pid_stat(5)`, the ninth field; `PF_FORKNOEXEC`.
fn never_execed(pid: i32) -> bool {
    const FORK_NO_EXEC: u64 = 0x40;
    process::flags_of(pid).is_some_and(|flags| flags & FORK_NO_EXEC != 0)
}

fn step(number: i32) -> Step {
    [
        Step::Clone,
        Step::Session,
        Step::Descriptors,
        Step::Limits,
        Step::Priority,
        Step::Directory,
        Step::Group,
        Step::User,
        Step::Register,
        Step::Exec,
        Step::Killed,
        Step::Late,
    ]
    .into_iter()
    .find(|step| *step as i32 == number)
    .unwrap_or(Step::Killed)
}
