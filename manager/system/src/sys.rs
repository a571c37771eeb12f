//! The few calls the manager needs and no safe wrapper offers.
//!
//! Owns all unsafe code of this crate; gives out only owned descriptors and errors.
//! Source: `pidfd_open(2)`, `pidfd_send_signal(2)`.

// Raw system calls have no safe form; each block says why it is sound.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::OnceLock;

use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::SigSet;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `linux/pidfd.h`, since Linux 6.9.
const PIDFD_SIGNAL_PROCESS_GROUP: libc::c_uint = 1 << 2;

/// A file that would grow beyond `RLIMIT_FSIZE` is an error (`EFBIG`), not the end of the process.
///
/// # Errors
/// What `signal(2)` answers.
pub fn ignore_file_size_signal() -> io::Result<()> {
    // SAFETY: no handler is installed, so no code of ours runs in a signal's context.
    let before = unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    if before == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Opens a pidfd of a running process or a zombie. The caller knows why `pid` cannot belong to
/// another process by now.
///
/// # Errors
/// `ESRCH` if no process has this pid.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call just made this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal to exactly the process the pidfd means.
///
/// # Errors
/// `ESRCH` when it has been waited for, `EPERM`, or `EINVAL` for an unknown signal.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    send_signal(pidfd, signal, 0)
}

/// Sends a signal to the whole group that the process leads, in one step that nobody in it can fork
/// past.
///
/// # Errors
/// The same, and `EINVAL` before Linux 6.9.
pub fn pidfd_send_signal_to_group(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    send_signal(pidfd, signal, PIDFD_SIGNAL_PROCESS_GROUP)
}

fn send_signal(pidfd: BorrowedFd<'_>, signal: i32, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: the descriptor is open for the length of the call; the info pointer may be null.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            flags,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Gives SIGCHLD its default disposition back. Whoever started us may have had it ignored, which is
/// inherited: the system then throws the exit status of our children away, so that starts seem
/// never to end and every health check fails.
pub fn notice_children() {
    // SAFETY: sets a default disposition, before there is a second thread; no handler of ours is
    // involved.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Closes everything but standard input, output and error. For the start of a program that is
/// handed nothing else: a descriptor of whoever started us may be a lock or the end of a pipe,
/// which would stay taken as long as we run.
///
/// Nothing of this program may be open yet.
pub fn close_inherited() {
    let range = |flags: libc::c_uint| {
        // SAFETY: takes three integers; nothing of ours is open yet, so no owner loses its
        // descriptor.
        unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, flags) }
    };
    // Systems before Linux 5.9 cannot, and then what is inherited stays.
    let _ = range(0);
}

/// The soft limit on descriptors as we were started with it, in case it was raised.
static STARTED_WITH: OnceLock<(u64, u64)> = OnceLock::new();

/// Raises the soft limit on descriptors to the hard one. What we start gets the one we were started
/// with back: a program that uses `select(2)` may not take more than 1024.
pub fn raise_descriptor_limit() {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return;
    };
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() {
        let _ = STARTED_WITH.set((soft, hard));
    }
}

/// The usual soft limit on descriptors.
const USUAL_DESCRIPTORS: u64 = 1024;

/// How many descriptors this process may have.
#[must_use]
pub fn descriptor_limit() -> usize {
    static LIMIT: OnceLock<usize> = OnceLock::new();
    *LIMIT.get_or_init(|| {
        let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(USUAL_DESCRIPTORS, |(soft, _)| soft);
        usize::try_from(soft).unwrap_or(usize::MAX)
    })
}

/// Has `command` start with the limit on descriptors that we were started with.
pub fn restore_descriptor_limit(command: &mut Command) {
    let Some((soft, hard)) = STARTED_WITH.get().copied() else {
        return;
    };
    let restore = move || Ok(setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?);
    // SAFETY: between fork and exec it makes one system call and neither allocates nor locks.
    unsafe { command.pre_exec(restore) };
}

/// Has `command` start with every signal blocked: what it is sent before it has handlers waits for
/// them.
pub fn hold_signals(command: &mut Command) {
    let block = || Ok(SigSet::all().thread_block()?);
    // SAFETY: between fork and exec it makes one system call and neither allocates nor locks.
    unsafe { command.pre_exec(block) };
}

/// Has `command` start in a session of its own, with no descriptor but those it is given: not even
/// what whoever started us let us inherit.
pub fn detach(command: &mut Command) {
    restore_descriptor_limit(command);
    let detach = || {
        nix::unistd::setsid()?;
        // SAFETY: takes three integers and touches no memory of ours.
        let result = unsafe {
            libc::syscall(
                libc::SYS_close_range,
                3,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            )
        };
        // Systems before Linux 5.11 cannot; what is ours is close-on-exec there too.
        let _ = result;
        Ok(())
    };
    // SAFETY: between fork and exec it makes two system calls and neither allocates nor locks.
    unsafe { command.pre_exec(detach) };
}

/// Lets the runtime say when `fd` becomes readable. Changes nothing about it: it need not be
/// non-blocking, as long as nobody reads just because of that.
///
/// # Errors
/// It cannot be waited for (a file), or the system has no room.
///
/// # Panics
/// Outside a tokio runtime with I/O.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd stays open and keeps its number until it is dropped, and the AsyncFd owns
    // it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}
