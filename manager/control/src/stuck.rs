//! A manager that listens and does not answer: found, and ended so that another can take its place.
//!
//! Owns the question whether anybody answers at a control socket, and the end of one that does not.
//! Its workers live on and its successor adopts them; of two that write the same log files one
//! would be too many, so it is killed rather than asked: one that only stood still must not wake up
//! beside its successor. Blocking: nothing else can be done meanwhile.
//! Invariant: nobody is killed who answers, whom a debugger holds, or who is not the one the lock
//! beside the socket names.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::SIGKILL;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket};
use papa_test_hooks::patience::scaled;

use crate::message::{Command, Request};
use papa_system::sys;

/// How long a manager may leave a question unanswered; it does nothing in its loop that takes time.
const MANAGER_STUCK: Duration = Duration::from_secs(20);
/// How long one that was killed may take to be gone. Longer only if a disk or a network file system
/// holds it.
const END_LIMIT: Duration = Duration::from_secs(10);
/// Pause between two attempts to ask.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// Who was found at a control socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nobody listens.
    Nobody,
    /// A manager that answers, or that is to be left alone.
    Lives(Option<i32>),
    /// One that did not answer; it has ended.
    Ended(i32),
}

/// The file whose lock a manager holds for as long as it lives, beside its control socket.
#[must_use]
pub fn lock_path(socket: &Path) -> PathBuf {
    socket.with_extension("lock")
}

/// Process id of the manager that wrote itself into the lock last.
#[must_use]
pub fn holder(socket: &Path) -> Option<i32> {
    fs::read_to_string(lock_path(socket)).ok()?.parse().ok()
}

/// Asks who is at the socket, and ends a manager that does not answer for 20 seconds.
///
/// # Errors
/// The socket cannot be used, or the manager does not end.
pub fn end_if_stuck(path: &Path) -> io::Result<Found> {
    let deadline = Instant::now() + scaled(MANAGER_STUCK);
    let mut listens = None;
    while Instant::now() < deadline {
        match ask(path, deadline) {
            Ok(Answer::Given(pid)) => return Ok(Found::Lives(pid)),
            Ok(Answer::None(pid)) => listens = pid,
            // It starts or ends just now.
            Ok(Answer::Closed) | Err(Errno::EAGAIN) => thread::sleep(ASK_AGAIN),
            Err(Errno::ENOENT | Errno::ECONNREFUSED) => return Ok(Found::Nobody),
            Err(errno) => return Err(errno.into()),
        }
    }
    // With its queue full it does not even tell its number; it has written that down.
    match listens.or_else(|| holder(path)) {
        Some(pid) if holder(path) == Some(pid) && !is_traced(pid) => end(pid),
        other => Ok(Found::Lives(other)),
    }
}

enum Answer {
    Given(Option<i32>),
    None(Option<i32>),
    Closed,
}

fn ask(path: &Path, deadline: Instant) -> Result<Answer, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let asking: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // Not waiting: a manager that stands still takes nobody from a full queue.
    connect(asking.as_raw_fd(), &UnixAddr::new(path)?)?;
    let pid = getsockopt(&asking, PeerCredentials).ok();
    let pid = pid.map(|peer| peer.pid()).filter(|pid| *pid > 0);
    let mut stream = UnixStream::from(asking);
    let question = Request::waiting(Command::Status { name: None }).to_line();
    let left = deadline.saturating_duration_since(Instant::now());
    let mut byte = [0u8];
    let answered = stream
        .set_nonblocking(false)
        .and_then(|()| stream.set_read_timeout(Some(left.max(ASK_AGAIN))))
        .and_then(|()| stream.set_write_timeout(Some(left.max(ASK_AGAIN))))
        .and_then(|()| stream.write_all(&question))
        .and_then(|()| stream.read(&mut byte));
    Ok(match answered {
        Ok(0) => Answer::Closed,
        Ok(_) => Answer::Given(pid),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
            ) =>
        {
            Answer::None(pid)
        }
        Err(_) => Answer::Closed,
    })
}

fn end(pid: i32) -> io::Result<Found> {
    // It has the lock as long as it lives, so the number is its.
    let pidfd = sys::pidfd_open(pid)?;
    sys::pidfd_send_signal(pidfd.as_fd(), SIGKILL)?;
    let limit = u16::try_from(END_LIMIT.as_millis()).unwrap_or(u16::MAX);
    let mut ended = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    match poll(&mut ended, PollTimeout::from(limit))? {
        0 => Err(io::Error::other(format!(
            "the manager, pid {pid}, does not answer and does not end; something in the system holds it, a dead disk perhaps"
        ))),
        _ => Ok(Found::Ended(pid)),
    }
}

/// Whether a debugger holds it; then it is slow on purpose.
fn is_traced(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|text| {
        text.lines()
            .find_map(|line| line.strip_prefix("TracerPid:"))
            .is_some_and(|tracer| tracer.trim() != "0")
    })
}
