//! This process itself: its name, limits, signals, role, and exec.
//!
//! Source: `prctl(2)`, `execveat(2)`, `setrlimit(2)`, `signalfd(2)`.

use std::ffi::{CStr, CString};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::stat::Mode;
use nix::unistd::{ForkResult, Pid};

/// Highest signal number; `_NSIG` of the system.
const LAST_SIGNAL: i32 = 64;

/// First acts of the program, before anything could depend on them: children
/// must be waitable, broken pipes must be errors, signals must arrive, and
/// descriptors 0 to 2 must be open so that no file of ours lands there.
///
/// A `role` (keeper, kernel) keeps its signals blocked and reads them from a
/// descriptor; the launcher takes them as they come.
///
/// # Errors
/// The errno of the call that failed.
pub fn settle(role: bool) -> Result<(), Errno> {
    reset_dispositions();
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: no Rust handler is installed or replaced, only dispositions.
    unsafe {
        // Writes to a closed peer are answered with EPIPE, reels past a file
        // size limit with EFBIG; children get the defaults back.
        sigaction(Signal::SIGPIPE, &ignore)?;
        sigaction(Signal::SIGXFSZ, &ignore)?;
    }
    let mask = if role {
        role_signals()
    } else {
        SigSet::empty()
    };
    mask.thread_set_mask()?;
    for number in 0..=2 {
        // SAFETY: only asks for flags; a closed number answers EBADF.
        let open = unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0;
        if !open {
            let null = nix::fcntl::open(c"/dev/null", OFlag::O_RDWR, Mode::empty())?;
            // The lowest free number is the one just found closed.
            std::mem::forget(null);
        }
    }
    Ok(())
}

/// Whoever started this may have ignored anything (SIGCHLD, with which no end of
/// a child is ever told; SIGHUP; the rest): all are as the system has them, but
/// for those the language's runtime handles.
fn reset_dispositions() {
    let default = [0u64; 4];
    for signal in ignored() {
        // SAFETY: only sets a disposition; reads `default`, which is as long as
        // the system's structure.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null_mut::<u64>(),
                8usize,
            );
        }
    }
}

/// The signals keeper and kernel read from a descriptor.
fn role_signals() -> SigSet {
    [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ]
    .into_iter()
    .collect()
}

/// Makes orphans of our descendants our children.
///
/// # Errors
/// The errno of `prctl(2)`.
pub fn set_child_subreaper() -> Result<(), Errno> {
    nix::sys::prctl::set_child_subreaper(true)
}

/// Sets the short name shown by `ps -e` and `top`.
pub fn set_name(name: &CStr) {
    // A name is decoration; failing to set it changes nothing.
    let _ = nix::sys::prctl::set_name(name);
}

/// Asks to be let run soon after being woken: with a short slice a process
/// goes before those that have a longer one, and gets no more time for it.
/// When keeper or kernel dies, the other one is alone until it has run.
///
/// Children are as they would have been. Only where nobody has chosen another
/// policy or a priority above the usual one, which children would lose.
/// Source: `sched_setattr(2)`; before Linux 6.12 it changes nothing.
pub fn prefer_short_slices() {
    const SLICE_NS: u64 = 100_000;
    let Some(mut attributes) = scheduling(0) else {
        return;
    };
    let usual = i32::try_from(attributes.sched_policy) == Ok(libc::SCHED_OTHER);
    if !usual || attributes.sched_nice < 0 {
        return;
    }
    attributes.sched_runtime = SLICE_NS;
    attributes.sched_flags |= u64::from(libc::SCHED_FLAG_RESET_ON_FORK.unsigned_abs());
    // A system that refuses is as it was.
    // SAFETY: the pointer leads to a filled-in structure of ours of that size.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
}

/// How a process is scheduled; 0 is the calling thread.
fn scheduling(pid: i32) -> Option<libc::sched_attr> {
    // SAFETY: all fields are plain numbers.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = u32::try_from(size_of::<libc::sched_attr>()).ok()?;
    // SAFETY: the pointer leads to `size` writable bytes of ours.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, pid, &raw mut attributes, size, 0) };
    attributes.size = size;
    (got == 0).then_some(attributes)
}

/// Raises the soft limits on descriptors and file size to the hard ones, and
/// that on file size to none where this user may: a reel's offsets grow with
/// all a process ever writes. Returns what they were, to be given back to
/// children.
#[must_use]
pub fn raise_limits() -> Vec<(u32, u64, u64)> {
    [Resource::RLIMIT_NOFILE, Resource::RLIMIT_FSIZE]
        .into_iter()
        .filter_map(|resource| {
            let (soft, hard) = getrlimit(resource).ok()?;
            let none = libc::RLIM_INFINITY;
            let freed =
                resource == Resource::RLIMIT_FSIZE && setrlimit(resource, none, none).is_ok();
            if soft != hard && !freed {
                setrlimit(resource, hard, hard).ok()?;
            }
            Some((resource as u32, soft, hard))
        })
        .collect()
}

/// The limit on file size there is, in bytes.
#[must_use]
pub fn file_size_limit() -> Option<u64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_FSIZE).ok()?;
    (soft != libc::RLIM_INFINITY).then_some(soft)
}

/// The hard limit on descriptors, or the soft one where that is all there is.
#[must_use]
pub fn descriptor_limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft)
}

/// Takes the descriptor inherited at `number` and makes it close-on-exec.
///
/// # Errors
/// `EBADF` when nothing is open there.
pub fn take_inherited(number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: only asks for flags; a closed number answers EBADF.
    Errno::result(unsafe { libc::fcntl(number, libc::F_GETFD) })?;
    // SAFETY: open as just checked; callers take each inherited number once,
    // at start, before anything else could own it.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    set_inheritable(&fd, false)?;
    Ok(fd)
}

/// Signals this process ignores, looked up once: [`settle`] was the last to
/// decide that.
#[must_use]
pub fn ignored_signals() -> &'static [i32] {
    static IGNORED: OnceLock<Vec<i32>> = OnceLock::new();
    IGNORED.get_or_init(ignored)
}

fn ignored() -> Vec<i32> {
    (1..=LAST_SIGNAL)
        .filter(|signal| {
            // The handler comes first. Not through libc, which hides the
            // signals it uses itself.
            let mut action = [0u64; 4];
            // SAFETY: changes nothing, and writes to `action`, which is as
            // long as the system's structure.
            let asked = unsafe {
                libc::syscall(
                    libc::SYS_rt_sigaction,
                    *signal,
                    ptr::null::<u64>(),
                    action.as_mut_ptr(),
                    8usize,
                )
            };
            asked == 0 && action[0] == libc::SIG_IGN as u64
        })
        .collect()
}

/// Numbers below this are left to what processes are given, so that the table
/// they start with is small.
const FIRST_KEPT: RawFd = 1024;

/// Gives a long-lived descriptor a number out of the way. One that cannot be
/// moved stays where it is.
#[must_use]
pub fn move_up(fd: OwnedFd) -> OwnedFd {
    match fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(FIRST_KEPT)) {
        // SAFETY: the call has just made this descriptor for us alone.
        Ok(number) => unsafe { OwnedFd::from_raw_fd(number) },
        Err(_) => fd,
    }
}

/// Whether an exec hands `fd` on.
///
/// # Errors
/// The errno of `fcntl(2)`.
pub fn set_inheritable(fd: impl AsFd, inheritable: bool) -> Result<(), Errno> {
    let flags = if inheritable {
        FdFlag::empty()
    } else {
        FdFlag::FD_CLOEXEC
    };
    fcntl(fd, FcntlArg::F_SETFD(flags)).map(drop)
}

/// Has whatever this process was started with beside its standard descriptors
/// go no further: whoever waits for the end of a pipe would wait for a daemon.
pub fn inherit_no_further() {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else {
        return;
    };
    for number in entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<RawFd>().ok())
        .filter(|number| *number > 2)
    {
        // SAFETY: sets a flag by number; one that is closed answers EBADF.
        unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

/// Makes `number` (0, 1 or 2) another name for `fd`.
///
/// # Errors
/// The errno of `dup2(2)`.
pub fn put_at(fd: impl AsFd, number: RawFd) -> Result<(), Errno> {
    // SAFETY: only the standard descriptors are replaced, which no OwnedFd of
    // this program owns.
    Errno::result(unsafe { libc::dup2(fd.as_fd().as_raw_fd(), number) }).map(drop)
}

/// The program file of this process, held open: it can be started again even
/// if the path has another file by then.
///
/// # Errors
/// The errno of `open(2)`.
pub fn own_binary() -> Result<OwnedFd, Errno> {
    nix::fcntl::open(
        c"/proc/self/exe",
        OFlag::O_PATH | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
}

/// Replaces this process's program by `binary`; `first` arrives as
/// descriptor 3. Returns only on failure.
///
/// # Errors
/// The errno of `dup2(2)` or `execveat(2)`.
pub fn exec(
    binary: BorrowedFd<'_>,
    first: BorrowedFd<'_>,
    argv: &[CString],
    env: &[CString],
) -> Errno {
    // The binary must not sit at 3, where `first` goes, and whatever is there
    // now is put back if the exec fails.
    let binary = match fcntl(binary, FcntlArg::F_DUPFD_CLOEXEC(4)) {
        Ok(number) => own(number),
        Err(errno) => return errno,
    };
    // SAFETY: only names the number for this call; a closed one answers EBADF.
    let at_three = unsafe { BorrowedFd::borrow_raw(3) };
    let before = match fcntl(at_three, FcntlArg::F_DUPFD_CLOEXEC(4)) {
        Ok(number) => Some(own(number)),
        Err(Errno::EBADF) => None,
        Err(errno) => return errno,
    };
    // SAFETY: descriptor 3 is replaced on purpose: on success this program
    // ends here, and on failure it becomes what it was.
    let result = unsafe {
        if first.as_raw_fd() == 3 {
            libc::fcntl(3, libc::F_SETFD, 0)
        } else {
            libc::dup2(first.as_raw_fd(), 3)
        }
    };
    if result < 0 {
        return Errno::last();
    }
    // The next program's signals stay blocked until it reads them from its
    // own descriptor: one that arrives in between must not be the end.
    let _ = role_signals().thread_set_mask();
    let empty = nix::fcntl::AtFlags::AT_EMPTY_PATH;
    let errno = match nix::unistd::execveat(&binary, c"", argv, env, empty) {
        Err(errno) => errno,
        Ok(never) => match never {},
    };
    // SAFETY: whoever owns the number gets the same open description back, or
    // the closed number it was.
    unsafe {
        match &before {
            Some(before) => libc::dup3(before.as_raw_fd(), 3, libc::O_CLOEXEC),
            None => libc::close(3),
        };
    }
    errno
}

/// The owner of a descriptor just made.
fn own(number: RawFd) -> OwnedFd {
    // SAFETY: callers pass what a call has just made for them alone.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// The environment of this process, for an exec.
#[must_use]
pub fn environment() -> Vec<CString> {
    use std::os::unix::ffi::OsStringExt;
    std::env::vars_os()
        .filter_map(|(name, value)| {
            let mut entry = name.into_vec();
            entry.push(b'=');
            entry.extend(value.into_vec());
            CString::new(entry).ok()
        })
        .collect()
}

/// Forks. Only for processes with a single thread.
///
/// # Errors
/// The errno of `fork(2)`.
pub fn fork() -> Result<ForkResult, Errno> {
    // SAFETY: the launcher and the keeper have one thread, so the child may
    // go on as the parent would.
    unsafe { nix::unistd::fork() }
}

/// Ends a forked child that has not exec'ed: nothing of what the parent has
/// registered for its own end is run.
pub fn exit_forked(code: i32) -> ! {
    // SAFETY: ends this process; takes no pointer.
    unsafe { libc::_exit(code) }
}

/// Blocks a role's signals and returns a descriptor to read them from; SIGCHLD
/// is among them if `children` are waited for by it.
///
/// # Errors
/// The errno of `signalfd(2)`.
pub fn signal_descriptor(children: bool) -> Result<nix::sys::signalfd::SignalFd, Errno> {
    let mut set = role_signals();
    if !children {
        set.remove(Signal::SIGCHLD);
    }
    set.thread_block()?;
    nix::sys::signalfd::SignalFd::with_flags(
        &set,
        nix::sys::signalfd::SfdFlags::SFD_CLOEXEC | nix::sys::signalfd::SfdFlags::SFD_NONBLOCK,
    )
}

/// Whether a debugger holds `pid`; such a process is slow on purpose.
#[must_use]
pub fn is_traced(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|text| {
        text.lines()
            .find_map(|line| line.strip_prefix("TracerPid:"))
            .is_some_and(|tracer| tracer.trim() != "0")
    })
}

/// Whether `pid` has begun to end: it may have closed what it had, and be its
/// children's parent still. One that is gone has, too.
/// Source: `proc_pid_stat(5)`, the ninth field; `PF_EXITING`.
#[must_use]
pub fn is_exiting(pid: Pid) -> bool {
    const EXITING: u64 = 0x4;
    flags_of(pid.as_raw()).is_none_or(|flags| flags & EXITING != 0)
}

/// The system's own flags of a process, also of one that was not waited for.
#[must_use]
pub fn flags_of(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    rest.split_whitespace().nth(6)?.parse().ok()
}

/// Whether a process runs a program that it has executed itself, and not the copy of its parent's
/// that it was forked with.
///
/// Source: `proc_pid_stat(5)`, the ninth field; `PF_FORKNOEXEC` of the system's `linux/sched.h`.
#[must_use]
pub fn has_executed(pid: i32) -> bool {
    const FORKED_AND_NOT_EXECUTED: u64 = 0x40;
    flags_of(pid).is_some_and(|flags| flags & FORKED_AND_NOT_EXECUTED == 0)
}

/// The number of the parent of `pid`, if the process exists.
#[must_use]
pub fn parent_of(pid: i32) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

/// The numbers of this process's children, none where the system does not say.
/// Only for processes with a single thread: each thread has its own.
/// Source: `proc_tid_children(5)`.
#[must_use]
pub fn children() -> Vec<i32> {
    fs::read_to_string("/proc/thread-self/children").map_or_else(
        |_| Vec::new(),
        |text| {
            text.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect()
        },
    )
}

/// Asks the system for `bytes` of pipe capacity; a refusal leaves it as it is.
pub fn set_pipe_size(pipe: impl AsFd, bytes: i32) {
    let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(bytes));
}

/// What a pipe has for its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// Something, or it cannot be said.
    Bytes,
    /// Nothing now.
    Nothing,
    /// Nothing, and nobody is left to write.
    End,
}

/// Looks at `pipe` without taking anything.
#[must_use]
pub fn readiness(pipe: BorrowedFd<'_>) -> Readiness {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(pipe, PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::ZERO) {
        Ok(0) => Readiness::Nothing,
        Ok(_) if fds[0].revents() == Some(PollFlags::POLLHUP) => Readiness::End,
        _ => Readiness::Bytes,
    }
}

nix::ioctl_read_bad!(fionread, libc::FIONREAD, libc::c_int);

/// Bytes in `pipe` now.
///
/// # Errors
/// The errno of `ioctl(2)`, `FIONREAD`.
pub fn waiting_bytes(pipe: BorrowedFd<'_>) -> Result<usize, Errno> {
    use std::os::fd::AsRawFd;
    let mut count: libc::c_int = 0;
    // SAFETY: the descriptor is open as long as it is borrowed, and the system
    // writes one int to where it is told to.
    unsafe { fionread(pipe.as_raw_fd(), &raw mut count) }?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Whether nothing is in `pipe` now (end of file is not nothing).
#[must_use]
pub fn is_empty(pipe: BorrowedFd<'_>) -> bool {
    readiness(pipe) == Readiness::Nothing
}

/// Gives `pipe` to `uid`, so that a worker of that user can open
/// `/dev/stdout`.
///
/// # Errors
/// The errno of `fchown(2)`.
pub fn set_owner(pipe: impl AsFd, uid: u32) -> Result<(), Errno> {
    nix::unistd::fchown(pipe, Some(nix::unistd::Uid::from_raw(uid)), None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::OFlag;
    use papa_test_hooks::patience::eventually;

    #[test]
    fn a_pipe_says_what_it_has() {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        assert_eq!(readiness(read.as_fd()), Readiness::Nothing);
        nix::unistd::write(&write, b"x").unwrap();
        assert_eq!(readiness(read.as_fd()), Readiness::Bytes);
        drop(write);
        assert_eq!(readiness(read.as_fd()), Readiness::Bytes);
        nix::unistd::read(&read, &mut [0; 1]).unwrap();
        assert!(eventually(|| readiness(read.as_fd()) == Readiness::End));
    }

    #[test]
    fn the_parent_is_found_and_nobody_traces_us() {
        let own = std::process::id().cast_signed();
        assert_eq!(parent_of(own), Some(nix::unistd::getppid().as_raw()));
        assert!(!is_traced(Pid::from_raw(own)) || std::env::var_os("UNDER_DEBUGGER").is_some());
    }

    #[test]
    fn a_child_before_its_exec_was_taken_for_the_program_whose_title_it_has() {
        assert!(has_executed(std::process::id().cast_signed()));
        let child = match fork().unwrap() {
            ForkResult::Parent { child } => child,
            ForkResult::Child => loop {
                nix::unistd::pause();
            },
        };
        let executed = has_executed(child.as_raw());
        nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).unwrap();
        nix::sys::wait::waitpid(child, None).unwrap();
        assert!(!executed);
    }

    #[test]
    fn children_have_no_short_slices() {
        // The attributes are a thread's.
        std::thread::spawn(|| {
            let of_child = || {
                let mut child = std::process::Command::new("sleep")
                    .arg("100")
                    .spawn()
                    .unwrap();
                let attributes = scheduling(child.id().cast_signed()).unwrap();
                child.kill().unwrap();
                child.wait().unwrap();
                (
                    attributes.sched_flags,
                    attributes.sched_nice,
                    attributes.sched_runtime,
                )
            };
            let before = of_child();
            prefer_short_slices();
            let own = scheduling(0).unwrap();
            if own.sched_nice >= 0 {
                assert_eq!(own.sched_flags & 1, 1, "children are reset");
            }
            assert_eq!(of_child(), before);
        })
        .join()
        .unwrap();
    }
}
