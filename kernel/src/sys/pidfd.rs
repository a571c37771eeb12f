//! Pidfds: handles to processes, which never come to mean another process.
//!
//! Source: `pidfd_open(2)`, `waitid(2)`, and `PIDFD_GET_INFO` of Linux 6.13
//! (`PIDFD_INFO_EXIT` of 6.15) in `include/uapi/linux/pidfd.h`.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

/// `_IOWR(0xFF, 11, struct pidfd_info)` for the 64-byte first version.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::unnecessary_cast,
    reason = "the same 32 bits, whatever integer the C library declares"
)]
const PIDFD_GET_INFO: libc::Ioctl = 0xC040_FF0B_u32 as libc::Ioctl;
const PIDFD_INFO_PID: u64 = 1 << 0;
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// First version of `struct pidfd_info`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct PidfdInfo {
    mask: u64,
    cgroup_id: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    identities: [u32; 8],
    exit_code: i32,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitStatus {
    /// Exit code, or the number of the signal that ended it.
    pub outcome: Outcome,
    /// Resources used, where whoever waited was the parent.
    pub usage: Option<Usage>,
}

/// The two ways to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The process called `exit` with this code.
    Code(i32),
    /// A signal ended it; `core` tells whether it left a core file.
    Signal {
        /// The signal's number.
        number: i32,
        /// A core file was written.
        core: bool,
    },
}

/// What a process used over its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Microseconds in user mode.
    pub user_us: u64,
    /// Microseconds in the system.
    pub system_us: u64,
    /// Largest resident set, in KiB.
    pub max_rss_kib: u64,
}

/// Opens a handle to `pid`.
///
/// # Errors
/// `ESRCH` when there is no such process, else the errno of `pidfd_open(2)`.
pub fn pidfd_open(pid: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: plain system call without pointers.
    let number = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let number = Errno::result(number)?;
    let number = i32::try_from(number).map_err(|_| Errno::EBADF)?;
    // SAFETY: the system call has just made this descriptor for us alone; it
    // is close-on-exec by definition.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Sends `signal` to the process behind `pidfd`.
///
/// # Errors
/// `ESRCH` when it has been waited for, else the errno of
/// `pidfd_send_signal(2)`.
pub fn pidfd_send_signal(pidfd: impl AsFd, signal: i32) -> Result<(), Errno> {
    // SAFETY: a null siginfo is what the call documents as "as kill(2) does".
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    Errno::result(result).map(drop)
}

/// What to wait for.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// The process behind this handle.
    Pidfd(std::os::fd::BorrowedFd<'a>),
    /// The child with this number.
    Pid(i32),
    /// Any child; only for the one process that is allowed to (the keeper).
    Any,
}

/// Asks, without waiting, whether `target` has ended; returns its number and
/// how it ended. With `keep` the zombie stays for a later call.
///
/// # Errors
/// `ECHILD` when it is not a child of this process.
pub fn wait_id(target: Target<'_>, keep: bool) -> Result<Option<(i32, WaitStatus)>, Errno> {
    let (kind, id) = match target {
        Target::Pidfd(fd) => (libc::P_PIDFD, fd.as_raw_fd()),
        Target::Pid(pid) => (libc::P_PID, pid),
        Target::Any => (libc::P_ALL, 0),
    };
    let options =
        libc::WEXITED | libc::WNOHANG | libc::__WALL | if keep { libc::WNOWAIT } else { 0 };
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    loop {
        // SAFETY: both pointers lead to properly sized, writable memory that
        // outlives the call. The raw call is used for its fifth argument.
        let result = unsafe {
            libc::syscall(
                libc::SYS_waitid,
                kind,
                id,
                info.as_mut_ptr(),
                options,
                usage.as_mut_ptr(),
            )
        };
        match Errno::result(result) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(_) => break,
        }
    }
    // SAFETY: zero-initialised and, on success, filled in by the kernel; all
    // bit patterns are valid for these C structs.
    let (info, usage) = unsafe { (info.assume_init(), usage.assume_init()) };
    // SAFETY: for WEXITED events the si_pid/si_status members are the active
    // ones; a zero si_pid means that nothing has ended.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    let outcome = match info.si_code {
        libc::CLD_EXITED => Outcome::Code(status),
        code => Outcome::Signal {
            number: status,
            core: code == libc::CLD_DUMPED,
        },
    };
    let micros = |time: libc::timeval| {
        u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000
            + u64::try_from(time.tv_usec).unwrap_or(0)
    };
    let usage = Usage {
        user_us: micros(usage.ru_utime),
        system_us: micros(usage.ru_stime),
        max_rss_kib: u64::try_from(usage.ru_maxrss).unwrap_or(0),
    };
    Ok(Some((
        pid,
        WaitStatus {
            outcome,
            usage: Some(usage),
        },
    )))
}

/// How a process that somebody else has waited for ended, if the system still
/// knows (Linux 6.15 and a handle opened before it was waited for).
///
/// # Errors
/// `ENOTTY` or `EINVAL` on older systems, `ESRCH` when it is not known.
pub fn exit_info(pidfd: impl AsFd) -> Result<Option<WaitStatus>, Errno> {
    let info = get_info(pidfd, PIDFD_INFO_EXIT)?;
    if info.mask & PIDFD_INFO_EXIT == 0 {
        return Ok(None);
    }
    let raw = info.exit_code;
    let outcome = if libc::WIFSIGNALED(raw) {
        Outcome::Signal {
            number: libc::WTERMSIG(raw),
            core: libc::WCOREDUMP(raw),
        }
    } else {
        Outcome::Code(libc::WEXITSTATUS(raw))
    };
    Ok(Some(WaitStatus {
        outcome,
        usage: None,
    }))
}

/// Whether this system tells how a process ended after the fact.
#[must_use]
pub fn has_exit_info() -> bool {
    std::os::fd::AsFd::as_fd(&match pidfd_open(std::process::id().cast_signed()) {
        Ok(own) => own,
        Err(_) => return false,
    })
    .try_clone_to_owned()
    .is_ok_and(|own| get_info(&own, PIDFD_INFO_EXIT | PIDFD_INFO_PID).is_ok())
}

fn get_info(pidfd: impl AsFd, mask: u64) -> Result<PidfdInfo, Errno> {
    let mut info = PidfdInfo {
        mask,
        ..PidfdInfo::default()
    };
    // SAFETY: the request number encodes the size of `PidfdInfo`, which is
    // what the pointer leads to.
    let result = unsafe {
        libc::ioctl(
            pidfd.as_fd().as_raw_fd(),
            PIDFD_GET_INFO,
            std::ptr::from_mut(&mut info),
        )
    };
    Errno::result(result)?;
    Ok(info)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_is_seen_kept_and_taken() {
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "exit 7"])
            .spawn()
            .unwrap();
        let pid = child.id().cast_signed();
        let pidfd = pidfd_open(pid).unwrap();
        let mut poll = [nix::poll::PollFd::new(
            pidfd.as_fd(),
            nix::poll::PollFlags::POLLIN,
        )];
        nix::poll::poll(&mut poll, 10_000u16).unwrap();
        let (seen, status) = wait_id(Target::Pidfd(pidfd.as_fd()), true)
            .unwrap()
            .unwrap();
        assert_eq!((seen, status.outcome), (pid, Outcome::Code(7)));
        assert!(wait_id(Target::Pid(pid), false).unwrap().is_some());
        assert_eq!(wait_id(Target::Pid(pid), false), Err(Errno::ECHILD));
        if has_exit_info() {
            let info = exit_info(&pidfd).unwrap().unwrap();
            assert_eq!(info.outcome, Outcome::Code(7));
        }
        let _ = child.wait();
    }
}
