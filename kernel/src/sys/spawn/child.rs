//! The child's life between clone and exec.
//!
//! Invariant: everything here is a raw system call on memory the parent has laid out. Nothing
//! allocates, takes a lock, or touches `errno`.

use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::Ordering;

use super::memory::Frame;
use super::{EXEC_LIMIT, Step};
use crate::sys::raw::call;

/// Seconds after which the child's own timer kills it, should this process have
/// ended meanwhile.
const OWN_TIMER_SECONDS: i64 = EXEC_LIMIT.as_secs().cast_signed() + 5;

/// Times a child makes its control group, if somebody removes it meanwhile.
const GROUP_TRIES: usize = 3;

/// The child's whole life before exec.
pub(super) extern "C" fn run(argument: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the parent passes its `Frame`, keeps it and reads only its atomics.
    let frame = unsafe { &mut *argument.cast::<Frame>() };
    // SAFETY: only raw system calls on prepared memory; see [`Memory`](super::memory::Memory).
    unsafe {
        let (step, errno) = prepare_and_exec(frame);
        frame.failed_errno.store(errno, Ordering::Release);
        frame.failed_step.store(step as i32, Ordering::Release);
        call(libc::SYS_exit_group, [127, 0, 0, 0, 0, 0]);
    }
    127
}

/// A pointer as a system call takes it.
fn at<T>(pointer: *const T) -> usize {
    pointer as usize
}

/// A number as a system call takes it: negative ones keep their sign.
#[allow(clippy::cast_sign_loss, reason = "the bits are what counts")]
fn int(number: i32) -> usize {
    number as isize as usize
}

/// Makes a system call in the child; with its errno instead of a negative
/// result.
///
/// # Safety
/// As the call itself.
unsafe fn ask(number: libc::c_long, arguments: [usize; 6]) -> Result<usize, i32> {
    // SAFETY: the caller upholds it.
    let result = unsafe { call(number, arguments) };
    if result < 0 {
        Err(i32::try_from(-result).unwrap_or(libc::EINVAL))
    } else {
        Ok(usize::try_from(result).unwrap_or(0))
    }
}

/// Returns the step that failed, and its errno.
///
/// # Safety
/// Runs in the child only; every pointer in `frame` is valid.
unsafe fn prepare_and_exec(frame: &mut Frame) -> (Step, i32) {
    // SAFETY: for the whole body: arguments are plain numbers or pointers into
    // memory that the parent keeps, laid out in `memory.rs`.
    unsafe {
        if let Err(failed) = place(frame) {
            return failed;
        }
        // With the rights we have, and before anything can be started from here.
        if let Some(paths) = frame.cgroup
            && let Err(errno) = enter_group(paths)
        {
            frame.outside.store(errno, Ordering::Release);
        }
        if let Err(failed) = settle(frame) {
            return failed;
        }
        exec(frame)
    }
}

/// Takes limits, mask, groups, user and directory. They come after the registration: as a worker's
/// user, or below its limits, too many descriptors may be on their way already (`ETOOMANYREFS`).
///
/// # Safety
/// Runs in the child only; every pointer in `frame` is valid.
unsafe fn settle(frame: &Frame) -> Result<(), (Step, i32)> {
    // SAFETY: as in `prepare_and_exec`.
    unsafe {
        for (resource, limit) in &frame.rlimits {
            let resource = *resource as usize;
            if let Err(errno) = ask(
                libc::SYS_prlimit64,
                [0, resource, at(ptr::from_ref(limit)), 0, 0, 0],
            ) {
                return Err((Step::Limits, errno));
            }
        }
        if let Some(mask) = frame.umask {
            let _ = ask(libc::SYS_umask, [mask as usize, 0, 0, 0, 0, 0]);
        }
        if let Some(groups) = &frame.groups
            && let Err(errno) = ask(
                libc::SYS_setgroups,
                [groups.len(), at(groups.as_ptr()), 0, 0, 0, 0],
            )
        {
            return Err((Step::Group, errno));
        }
        if let Some(gid) = frame.gid.map(|gid| gid as usize)
            && let Err(errno) = ask(libc::SYS_setresgid, [gid, gid, gid, 0, 0, 0])
        {
            return Err((Step::Group, errno));
        }
        if let Some(uid) = frame.uid.map(|uid| uid as usize)
            && let Err(errno) = ask(libc::SYS_setresuid, [uid, uid, uid, 0, 0, 0])
        {
            return Err((Step::User, errno));
        }
        // As the user it will be, so that a directory only that user may
        // enter works and one it may not enter is refused.
        if !frame.directory.is_null()
            && let Err(errno) = ask(libc::SYS_chdir, [at(frame.directory), 0, 0, 0, 0, 0])
        {
            return Err((Step::Directory, errno));
        }
        Ok(())
    }
}

/// Resets the signal mask and executes the first program there is. Returns only if there is none.
///
/// # Safety
/// Runs in the child only; every pointer in `frame` is valid.
unsafe fn exec(frame: &Frame) -> (Step, i32) {
    // SAFETY: as in `prepare_and_exec`.
    unsafe {
        let empty = 0u64;
        let _ = ask(
            libc::SYS_rt_sigprocmask,
            [int(libc::SIG_SETMASK), at(&raw const empty), 0, 8, 0, 0],
        );
        let mut last = libc::ENOENT;
        let mut denied = false;
        for candidate in &frame.candidates {
            let arguments = [
                at(*candidate),
                at(frame.argv.as_ptr()),
                at(frame.env.as_ptr()),
                0,
                0,
                0,
            ];
            match ask(libc::SYS_execve, arguments) {
                Ok(_) => {}
                Err(errno @ (libc::ENOENT | libc::ENOTDIR)) => last = errno,
                Err(libc::EACCES) => denied = true,
                Err(errno) => return (Step::Exec, errno),
            }
        }
        (Step::Exec, if denied { libc::EACCES } else { last })
    }
}

/// Makes a control group and enters it: its parent's path, its own, and that of the file to write
/// to.
///
/// # Safety
/// Runs in the child only; the pointers lead to strings.
unsafe fn enter_group([base, group, procs]: [*const libc::c_char; 3]) -> Result<(), i32> {
    const MODE: usize = 0o755;
    let here = int(libc::AT_FDCWD);
    let flags = int(libc::O_WRONLY | libc::O_CLOEXEC);
    let mut result = Ok(());
    for _ in 0..GROUP_TRIES {
        // SAFETY: system calls on strings that the parent keeps.
        result = unsafe {
            // Those that are there already are as good; anything else is seen by opening the file.
            let _ = ask(libc::SYS_mkdirat, [here, at(base), MODE, 0, 0, 0]);
            let _ = ask(libc::SYS_mkdirat, [here, at(group), MODE, 0, 0, 0]);
            let file = ask(libc::SYS_openat, [here, at(procs), flags, 0, 0, 0]);
            file.and_then(|file| {
                let written = ask(libc::SYS_write, [file, at(c"0".as_ptr()), 1, 0, 0, 0]);
                let _ = ask(libc::SYS_close, [file, 0, 0, 0, 0, 0]);
                written.map(drop)
            })
        };
        // Another kernel may have removed it between two of these.
        if !matches!(result, Err(libc::ENOENT | libc::ENODEV)) {
            break;
        }
    }
    result
}

/// What needs descriptors of the parent's, up to the registration; takes no
/// file system that could hang.
///
/// # Safety
/// Runs in the child only; every pointer in `frame` is valid.
unsafe fn place(frame: &mut Frame) -> Result<(), (Step, i32)> {
    // SAFETY: as in `prepare_and_exec`.
    unsafe {
        // A table of its own, first of all, and only as much of it as is
        // needed: a copy of all of a large one would stay with the process
        // for its whole life, 128 KiB of it where thousands are kept.
        let last = u32::MAX as usize;
        ask(
            libc::SYS_close_range,
            [
                frame.cut as usize,
                last,
                libc::CLOSE_RANGE_UNSHARE as usize,
                0,
                0,
                0,
            ],
        )
        .map_err(|errno| (Step::Descriptors, errno))?;
        set_own_timer();
        // Belt and braces: everything of ours is close-on-exec already. Linux
        // before 5.11 refuses, and then the belt must do.
        let _ = ask(
            libc::SYS_close_range,
            [3, last, libc::CLOSE_RANGE_CLOEXEC as usize, 0, 0, 0],
        );
        ask(libc::SYS_setsid, [0; 6]).map_err(|errno| (Step::Session, errno))?;
        reset_ignored_signals(frame);
        let keeper = move_descriptors(frame)?;
        set_priority(frame)?;
        let register_failed = |errno| (Step::Register, errno);
        let pid = ask(libc::SYS_getpid, [0; 6]).map_err(register_failed)?;
        let pidfd = ask(libc::SYS_pidfd_open, [pid, 0, 0, 0, 0, 0]).map_err(register_failed)?;
        if !frame.listen_pid.is_null() {
            write_digits(frame.listen_pid, pid);
        }
        stop_self(frame.stops[0], pid);
        if let Some(keeper) = keeper {
            register(frame, keeper, pid, pidfd).map_err(register_failed)?;
        }
        // A child that hangs must not keep the line of a kernel that has died
        // open: the next one is started when that ends.
        if let (Some(copy), Some(number)) = (keeper, frame.keeper) {
            let _ = ask(libc::SYS_close, [copy, 0, 0, 0, 0, 0]);
            if frame.moves.iter().all(|(_, to)| *to != number) {
                let _ = ask(libc::SYS_close, [int(number), 0, 0, 0, 0, 0]);
            }
        }
        stop_self(frame.stops[1], pid);
        frame.placed.store(1, Ordering::Release);
        Ok(())
    }
}

/// A timer of its own kills the child if it hangs and nobody is left to do so; exec deletes it.
///
/// # Safety
/// Runs in the child only.
unsafe fn set_own_timer() {
    // SAFETY: as in `prepare_and_exec`.
    unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGKILL;
        let mut timer: libc::c_int = 0;
        let made = ask(
            libc::SYS_timer_create,
            [
                int(libc::CLOCK_MONOTONIC),
                at(&raw const event),
                at(&raw mut timer),
                0,
                0,
                0,
            ],
        );
        if made.is_ok() {
            let mut limit: libc::itimerspec = std::mem::zeroed();
            limit.it_value.tv_sec = OWN_TIMER_SECONDS as _;
            let _ = ask(
                libc::SYS_timer_settime,
                [int(timer), 0, at(&raw const limit), 0, 0, 0],
            );
        }
    }
}

/// Sets the nice value and the score by which the system picks what to kill without memory.
///
/// # Safety
/// Runs in the child only.
unsafe fn set_priority(frame: &Frame) -> Result<(), (Step, i32)> {
    // SAFETY: as in `prepare_and_exec`.
    unsafe {
        if let Some(nice) = frame.nice {
            ask(
                libc::SYS_setpriority,
                [libc::PRIO_PROCESS as usize, 0, int(nice), 0, 0, 0],
            )
            .map_err(|errno| (Step::Priority, errno))?;
        }
        if let Some((text, length)) = frame.oom_score_adj {
            let path = c"/proc/self/oom_score_adj".as_ptr();
            let flags = int(libc::O_WRONLY | libc::O_CLOEXEC);
            let file = ask(
                libc::SYS_openat,
                [int(libc::AT_FDCWD), at(path), flags, 0, 0, 0],
            );
            file.and_then(|file| ask(libc::SYS_write, [file, at(text), length, 0, 0, 0]))
                .map_err(|errno| (Step::Priority, errno))?;
        }
        Ok(())
    }
}

/// Moves the descriptors to their numbers; returns where the line to the keeper is then.
///
/// # Safety
/// Runs in the child only.
unsafe fn move_descriptors(frame: &mut Frame) -> Result<Option<usize>, (Step, i32)> {
    // SAFETY: as in `prepare_and_exec`.
    unsafe {
        // Sources first go above every target, so that no target is
        // overwritten before it has been moved.
        let base = int(frame.base);
        let raise = |from: RawFd| {
            let arguments = [int(from), int(libc::F_DUPFD_CLOEXEC), base, 0, 0, 0];
            ask(libc::SYS_fcntl, arguments).map_err(|errno| (Step::Descriptors, errno))
        };
        let keeper = frame.keeper.map(raise).transpose()?;
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_possible_wrap,
            reason = "descriptors are ints"
        )]
        for (from, _) in &mut frame.moves {
            *from = raise(*from)? as RawFd;
        }
        for (from, to) in &frame.moves {
            ask(libc::SYS_dup3, [int(*from), int(*to), 0, 0, 0, 0])
                .map_err(|errno| (Step::Descriptors, errno))?;
        }
        Ok(keeper)
    }
}

/// Takes back that signals are ignored: exec resets handlers alone.
///
/// # Safety
/// Runs in the child only.
unsafe fn reset_ignored_signals(frame: &Frame) {
    // SAFETY: as in `prepare_and_exec`.
    unsafe {
        let default = [0u64; 4];
        for signal in frame.ignored {
            let _ = ask(
                libc::SYS_rt_sigaction,
                [int(*signal), at(default.as_ptr()), 0, 8, 0, 0],
            );
        }
    }
}

/// Stops this process where a test wants it to; see `papa_test_hooks::failpoint`.
///
/// # Safety
/// Runs in the child only; `pid` is its own.
unsafe fn stop_self(wanted: bool, pid: usize) {
    if cfg!(debug_assertions) && wanted {
        // SAFETY: a system call on two numbers.
        unsafe { call(libc::SYS_kill, [pid, int(libc::SIGSTOP), 0, 0, 0, 0]) };
    }
}

/// Sends serial, pid and pidfd to the keeper as one message.
///
/// # Safety
/// Runs in the child only.
unsafe fn register(frame: &mut Frame, keeper: usize, pid: usize, pidfd: usize) -> Result<(), i32> {
    // SAFETY: the message, its control block and the descriptors live on this
    // stack or in `frame` for the whole call.
    unsafe {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_possible_wrap,
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
        ask(
            libc::SYS_sendmsg,
            [
                keeper,
                at(&raw const header),
                int(libc::MSG_NOSIGNAL),
                0,
                0,
                0,
            ],
        )
        .map(drop)
    }
}

/// Writes `number` over the ten zeros at `target`, left-aligned, and ends the
/// text behind it.
///
/// # Safety
/// `target` leads to ten writable bytes followed by a NUL.
unsafe fn write_digits(target: *mut libc::c_char, number: usize) {
    let mut digits = [0u8; 10];
    let mut rest = number;
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
