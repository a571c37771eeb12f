//! Starting a worker: vfork, a few raw system calls, exec.
//!
//! The child shares this process's memory until it execs, so between the two
//! it allocates nothing, takes no lock and calls nothing but the system. All it
//! needs is laid out in a [`Plan`] before. Its last act before exec is to send
//! its own pidfd to the keeper, if there is one: from that moment the worker is
//! known, whatever happens to this process. A step that fails is left in shared
//! memory.
//!
//! Source: `vfork(2)`, `clone(2)`, `execve(2)`; design "Spawn".

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use papa_protocol::failpoint;

use super::process;

/// Seconds a child may take from its start to its exec before it is killed:
/// bounds a hanging file system, since this process stands still meanwhile.
pub const EXEC_LIMIT_SECONDS: i64 = 10;

/// Bytes of stack for the child, of which system-call wrappers use little.
const STACK_BYTES: usize = 64 * 1024;

/// First byte of the message a child sends to the keeper; see `keeper.rs`.
pub const REGISTER: u8 = 3;

/// What the child does between vfork and exec, fully prepared.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The process's serial, sent with its registration.
    pub serial: u64,
    /// The keeper's socket; none when the keeper has died, and this process,
    /// which knows of the child, is about to take its place.
    pub keeper: Option<BorrowedFd<'a>>,
    /// Paths to try in turn, as `execvp(3)` would.
    pub candidates: Vec<CString>,
    /// Argument vector, the first being the name shown.
    pub argv: Vec<CString>,
    /// Environment, `NAME=VALUE`.
    pub env: Vec<CString>,
    /// Directory to change to.
    pub directory: Option<CString>,
    /// Descriptors to hand over: ours, and the number the child finds it at.
    pub descriptors: Vec<(BorrowedFd<'a>, RawFd)>,
    /// User to become.
    pub uid: Option<u32>,
    /// Group to become.
    pub gid: Option<u32>,
    /// Supplementary groups to take; `None` leaves them.
    pub groups: Option<Vec<u32>>,
    /// File mode mask.
    pub umask: Option<u32>,
    /// Nice value.
    pub nice: Option<i32>,
    /// Text for `/proc/self/oom_score_adj`.
    pub oom_score_adj: Option<CString>,
    /// Resource, soft and hard limit.
    pub rlimits: Vec<(u32, u64, u64)>,
    /// Index in `env` of an entry `LISTEN_PID=` followed by room for the
    /// child's own number, which only it knows in time.
    pub listen_pid: Option<usize>,
}

/// Where a start failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Step {
    /// Making the child itself.
    Clone = 1,
    /// `setsid(2)`.
    Session,
    /// Moving descriptors to their numbers.
    Descriptors,
    /// `setrlimit(2)`.
    Limits,
    /// Nice value or OOM score.
    Priority,
    /// `chdir(2)`.
    Directory,
    /// `setgroups(2)`, `setresgid(2)`.
    Group,
    /// `setresuid(2)`.
    User,
    /// Telling the keeper.
    Register,
    /// `execve(2)`.
    Exec,
    /// The child was killed before it got anywhere.
    Killed,
}

/// A start that did not come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// What was being done.
    pub step: Step,
    /// Why it failed.
    pub errno: Errno,
}

/// A started child.
#[derive(Debug)]
pub struct Started {
    /// Its number, for people and logs.
    pub pid: i32,
    /// The handle to it.
    pub pidfd: OwnedFd,
}

/// All raw pointers and numbers, laid out for the child.
struct Frame {
    failed_step: i32,
    failed_errno: i32,
    keeper: Option<RawFd>,
    candidates: Vec<*const libc::c_char>,
    argv: Vec<*const libc::c_char>,
    env: Vec<*const libc::c_char>,
    directory: *const libc::c_char,
    /// Signals this process ignores.
    ignored: &'static [i32],
    moves: Vec<(RawFd, RawFd)>,
    base: RawFd,
    /// No descriptor from here on is needed.
    cut: libc::c_uint,
    uid: Option<u32>,
    gid: Option<u32>,
    groups: Option<Vec<u32>>,
    umask: Option<u32>,
    nice: Option<i32>,
    oom_score_adj: Option<(*const libc::c_char, usize)>,
    rlimits: Vec<(u32, libc::rlimit)>,
    listen_pid: *mut libc::c_char,
    message: [u8; 13],
    /// Whether a test has the child stop before it registers, and before it execs.
    stops: [bool; 2],
}

/// Room for the digits of a process number in a `LISTEN_PID=` entry.
pub const LISTEN_PID_ENTRY: &str = "LISTEN_PID=0000000000";

/// Starts a process as `plan` says and waits until it has exec'ed or failed.
///
/// # Errors
/// The step that failed and its errno. Nothing is left of the child; if it had
/// registered with the keeper, the caller takes that back.
pub fn vfork_exec(mut plan: Plan<'_>) -> Result<Started, Failure> {
    let clone_failed = |errno| Failure {
        step: Step::Clone,
        errno,
    };
    let terminated = |list: &[CString]| {
        let mut pointers: Vec<_> = list.iter().map(|entry| entry.as_ptr()).collect();
        pointers.push(ptr::null());
        pointers
    };
    let listen_pid = match plan.listen_pid {
        None => ptr::null_mut(),
        Some(index) => {
            // The entry's own buffer, so that the child can write digits into
            // it; `into_raw` gives the right to do so.
            let entry = std::mem::take(&mut plan.env[index]);
            let raw = entry.into_raw();
            // SAFETY: `raw` comes from `into_raw` just now and its length is
            // unchanged; it is taken back so that it is freed as usual.
            plan.env[index] = unsafe { CString::from_raw(raw) };
            let offset = "LISTEN_PID=".len();
            if plan.env[index].as_bytes().len() != LISTEN_PID_ENTRY.len() {
                return Err(clone_failed(Errno::EINVAL));
            }
            // SAFETY: the entry has at least `LISTEN_PID_ENTRY.len()` bytes.
            unsafe { raw.add(offset) }
        }
    };
    let highest = plan
        .descriptors
        .iter()
        .map(|(_, to)| *to)
        .max()
        .unwrap_or(2);
    let sources = plan.descriptors.iter().map(|(from, _)| from.as_raw_fd());
    let keeper = plan.keeper.map(|keeper| keeper.as_raw_fd());
    let cut = sources.chain(keeper).max().unwrap_or(2) + 1;
    let mut message = [0u8; 13];
    message[0] = REGISTER;
    message[1..9].copy_from_slice(&plan.serial.to_le_bytes());
    let mut frame = Frame {
        failed_step: 0,
        failed_errno: 0,
        keeper,
        candidates: plan.candidates.iter().map(|entry| entry.as_ptr()).collect(),
        argv: terminated(&plan.argv),
        env: terminated(&plan.env),
        directory: plan
            .directory
            .as_ref()
            .map_or(ptr::null(), |dir| dir.as_ptr()),
        ignored: process::ignored_signals(),
        moves: plan
            .descriptors
            .iter()
            .map(|(from, to)| (from.as_raw_fd(), *to))
            .collect(),
        base: highest.max(2) + 1,
        cut: cut.unsigned_abs(),
        uid: plan.uid,
        gid: plan.gid,
        groups: plan.groups.take(),
        umask: plan.umask,
        nice: plan.nice,
        oom_score_adj: plan
            .oom_score_adj
            .as_ref()
            .map(|text| (text.as_ptr(), text.as_bytes().len())),
        rlimits: plan
            .rlimits
            .iter()
            .map(|(resource, soft, hard)| {
                (
                    *resource,
                    libc::rlimit {
                        rlim_cur: *soft,
                        rlim_max: *hard,
                    },
                )
            })
            .collect(),
        listen_pid,
        message,
        stops: ["spawn.child", "spawn.registered"].map(failpoint::take),
    };
    // Left as it is: the child touches little of it.
    let mut stack = Box::<[u128]>::new_uninit_slice(STACK_BYTES / 16);
    let mut raw_pidfd: RawFd = -1;
    let all = nix::sys::signal::SigSet::all();
    let before = all
        .thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_SETMASK)
        .map_err(clone_failed)?;
    // SAFETY: CLONE_VFORK suspends this thread (the only one) until the child
    // has exec'ed or died, so `frame`, `stack` and `plan` outlive every access
    // and nothing is written by two at a time. All signals are blocked, so no
    // handler runs in the child. `child` makes nothing but system calls.
    let pid = unsafe {
        libc::clone(
            child,
            stack.as_mut_ptr().add(stack.len()).cast(),
            libc::CLONE_VM
                | libc::CLONE_VFORK
                | libc::CLONE_FILES
                | libc::CLONE_PIDFD
                | libc::SIGCHLD,
            ptr::from_mut(&mut frame).cast(),
            ptr::from_mut(&mut raw_pidfd),
        )
    };
    let cloned = Errno::result(pid);
    let _ = before.thread_set_mask();
    let pid = cloned.map_err(clone_failed)?;
    // SAFETY: clone succeeded with CLONE_PIDFD, so this number is a new
    // descriptor of ours that nobody else knows.
    let pidfd = unsafe { OwnedFd::from_raw_fd(raw_pidfd) };
    if frame.failed_step == 0 {
        // The child may have been killed (by its timer) before exec; then it
        // has left neither a step nor a program behind, and is seen to be
        // dead by whoever waits. Nothing to tell apart here.
        return Ok(Started { pid, pidfd });
    }
    while let Ok(None) = super::pidfd::wait_id(super::pidfd::Target::Pid(pid), false) {
        // The child is between its failure note and its end: microseconds.
        std::thread::yield_now();
    }
    Err(Failure {
        step: step(frame.failed_step),
        errno: Errno::from_raw(frame.failed_errno),
    })
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
    ]
    .into_iter()
    .find(|step| *step as i32 == number)
    .unwrap_or(Step::Killed)
}

/// The child's whole life before exec.
extern "C" fn child(argument: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the parent passes its `Frame` and is suspended while we run.
    let frame = unsafe { &mut *argument.cast::<Frame>() };
    // SAFETY: only raw system calls on prepared memory; see `vfork_exec`.
    unsafe {
        let step = prepare_and_exec(frame);
        frame.failed_errno = *libc::__errno_location();
        frame.failed_step = step as i32;
        libc::syscall(libc::SYS_exit_group, 127);
    }
    127
}

/// Returns the step that failed, its errno in `errno`.
///
/// # Safety
/// Runs in the vforked child only; every pointer in `frame` is valid.
unsafe fn prepare_and_exec(frame: &mut Frame) -> Step {
    // SAFETY: for the whole body: arguments are plain numbers or pointers into the
    // suspended parent's memory, laid out by `vfork_exec`.
    unsafe {
        // A table of its own, first of all, and only as much of it as is
        // needed: a copy of all of a large one would stay with the process
        // for its whole life, 128 KiB of it where thousands are kept.
        if libc::syscall(
            libc::SYS_close_range,
            frame.cut,
            u32::MAX,
            libc::CLOSE_RANGE_UNSHARE,
        ) < 0
        {
            return Step::Descriptors;
        }
        // A timer of its own kills the child if it hangs; exec deletes it.
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGKILL;
        let mut timer: libc::c_int = 0;
        if libc::syscall(
            libc::SYS_timer_create,
            libc::CLOCK_MONOTONIC,
            &raw mut event,
            &raw mut timer,
        ) == 0
        {
            let mut limit: libc::itimerspec = std::mem::zeroed();
            limit.it_value.tv_sec = EXEC_LIMIT_SECONDS;
            libc::syscall(
                libc::SYS_timer_settime,
                timer,
                0,
                &raw const limit,
                ptr::null_mut::<libc::itimerspec>(),
            );
        }
        // Belt and braces: everything of ours is close-on-exec already. Linux
        // before 5.11 refuses, and then the belt must do.
        libc::syscall(
            libc::SYS_close_range,
            3u32,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        );
        if libc::syscall(libc::SYS_setsid) < 0 {
            return Step::Session;
        }
        // Handlers are reset by exec, ignored signals are not.
        let default = [0u64; 4];
        for signal in frame.ignored {
            libc::syscall(
                libc::SYS_rt_sigaction,
                *signal,
                default.as_ptr(),
                ptr::null_mut::<u64>(),
                8usize,
            );
        }
        // Sources first go above every target, so that no target is
        // overwritten before it has been moved.
        let mut high_keeper = None;
        if let Some(keeper) = frame.keeper {
            let high = libc::syscall(libc::SYS_fcntl, keeper, libc::F_DUPFD_CLOEXEC, frame.base);
            if high < 0 {
                return Step::Descriptors;
            }
            high_keeper = Some(high);
        }
        for (from, _) in &mut frame.moves {
            let high = libc::syscall(libc::SYS_fcntl, *from, libc::F_DUPFD_CLOEXEC, frame.base);
            if high < 0 {
                return Step::Descriptors;
            }
            #[allow(clippy::cast_possible_truncation, reason = "descriptors are ints")]
            {
                *from = high as RawFd;
            }
        }
        for (from, to) in &frame.moves {
            if libc::syscall(libc::SYS_dup3, *from, *to, 0) < 0 {
                return Step::Descriptors;
            }
        }
        if let Some(nice) = frame.nice
            && libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, nice) < 0
        {
            return Step::Priority;
        }
        if let Some((text, length)) = frame.oom_score_adj {
            let file = libc::syscall(
                libc::SYS_openat,
                libc::AT_FDCWD,
                c"/proc/self/oom_score_adj".as_ptr(),
                libc::O_WRONLY | libc::O_CLOEXEC,
                0,
            );
            if file < 0 || libc::syscall(libc::SYS_write, file, text, length) < 0 {
                return Step::Priority;
            }
        }
        // Last of what needs a descriptor: the limits may allow no more of them.
        let pid = libc::syscall(libc::SYS_getpid);
        let pidfd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        if pidfd < 0 {
            return Step::Register;
        }
        for (resource, limit) in &frame.rlimits {
            if libc::syscall(
                libc::SYS_prlimit64,
                0,
                *resource,
                ptr::from_ref(limit),
                ptr::null_mut::<libc::rlimit>(),
            ) < 0
            {
                return Step::Limits;
            }
        }
        if let Some(mask) = frame.umask {
            libc::syscall(libc::SYS_umask, mask);
        }
        if let Some(groups) = &frame.groups
            && libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) < 0
        {
            return Step::Group;
        }
        if let Some(gid) = frame.gid
            && libc::syscall(libc::SYS_setresgid, gid, gid, gid) < 0
        {
            return Step::Group;
        }
        if let Some(uid) = frame.uid
            && libc::syscall(libc::SYS_setresuid, uid, uid, uid) < 0
        {
            return Step::User;
        }
        // As the user it will be, so that a directory only that user may
        // enter works and one it may not enter is refused.
        if !frame.directory.is_null() && libc::syscall(libc::SYS_chdir, frame.directory) < 0 {
            return Step::Directory;
        }
        if !frame.listen_pid.is_null() {
            write_digits(frame.listen_pid, pid);
        }
        stop_self(frame.stops[0], pid);
        if let Some(keeper) = high_keeper
            && !register(frame, keeper, pid, pidfd)
        {
            return Step::Register;
        }
        stop_self(frame.stops[1], pid);
        let empty = 0u64;
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const empty,
            ptr::null_mut::<u64>(),
            8usize,
        );
        let mut denied = false;
        for candidate in &frame.candidates {
            libc::syscall(
                libc::SYS_execve,
                *candidate,
                frame.argv.as_ptr(),
                frame.env.as_ptr(),
            );
            match *libc::__errno_location() {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => denied = true,
                _ => return Step::Exec,
            }
        }
        if denied {
            *libc::__errno_location() = libc::EACCES;
        }
        Step::Exec
    }
}

/// Stops this process where a test wants it to; see `papa_protocol::failpoint`.
///
/// # Safety
/// Runs in the vforked child only; `pid` is its own.
unsafe fn stop_self(wanted: bool, pid: libc::c_long) {
    if cfg!(debug_assertions) && wanted {
        // SAFETY: a system call on two numbers.
        unsafe { libc::syscall(libc::SYS_kill, pid, libc::SIGSTOP) };
    }
}

/// Sends serial, pid and pidfd to the keeper as one message.
///
/// # Safety
/// Runs in the vforked child only.
unsafe fn register(
    frame: &mut Frame,
    keeper: libc::c_long,
    pid: libc::c_long,
    pidfd: libc::c_long,
) -> bool {
    // SAFETY: the message, its control block and the descriptors live on this
    // stack or in `frame` for the whole call.
    unsafe {
        #[allow(
            clippy::cast_possible_truncation,
            reason = "process and descriptor numbers are ints"
        )]
        let (pid, pidfd) = (pid as i32, pidfd as i32);
        frame.message[9..13].copy_from_slice(&pid.to_le_bytes());
        let mut slice = libc::iovec {
            iov_base: frame.message.as_mut_ptr().cast(),
            iov_len: frame.message.len(),
        };
        // A control block for one descriptor, aligned as cmsghdr asks.
        let mut control = [0u64; 4];
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &raw mut slice;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = libc::CMSG_SPACE(4) as _;
        let first = libc::CMSG_FIRSTHDR(&raw const header);
        (*first).cmsg_level = libc::SOL_SOCKET;
        (*first).cmsg_type = libc::SCM_RIGHTS;
        (*first).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(first).cast::<i32>().write_unaligned(pidfd);
        libc::syscall(
            libc::SYS_sendmsg,
            keeper,
            &raw const header,
            libc::MSG_NOSIGNAL,
        ) >= 0
    }
}

/// Writes `number` over the ten zeros at `target`, left-aligned, and ends the
/// text behind it.
///
/// # Safety
/// `target` leads to ten writable bytes followed by a NUL.
unsafe fn write_digits(target: *mut libc::c_char, number: libc::c_long) {
    let mut digits = [0u8; 10];
    let mut rest = number.unsigned_abs();
    let mut count = 0;
    while count == 0 || (rest > 0 && count < digits.len()) {
        #[allow(clippy::cast_possible_truncation, reason = "below ten")]
        {
            digits[count] = b'0' + (rest % 10) as u8;
        }
        rest /= 10;
        count += 1;
    }
    for index in 0..count {
        // SAFETY: index < count <= 10.
        unsafe {
            target
                .add(index)
                .cast::<u8>()
                .write(digits[count - 1 - index]);
        };
    }
    // SAFETY: count <= 10 and the eleventh byte is the NUL.
    unsafe { target.add(count).write(0) };
}
