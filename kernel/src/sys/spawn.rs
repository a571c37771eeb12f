//! Starting a worker: a child in this process's memory, a few raw system calls,
//! exec.
//!
//! The child shares this process's memory until it execs, so between the two
//! it allocates nothing, takes no lock and calls nothing but the system; not
//! even `errno` is its own. All it needs is laid out in a [`Plan`] before. It
//! sends its own pidfd to the keeper, if there is one, before it changes its
//! user: from that moment the worker is known, whatever happens to this
//! process. A step that fails is left in shared memory.
//!
//! Until the child has all its descriptors this process waits for it, as
//! `vfork(2)` would. Behind that it may hang for as long as a file system
//! does not answer, and then it is a [`Starting`] that is asked again later.
//! The system clears a word in shared memory when the child has exec'ed or
//! ended (`CLONE_CHILD_CLEARTID`).
//!
//! Source: `vfork(2)`, `clone(2)`, `execve(2)`; design "Spawn".

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use papa_test_hooks::failpoint;

use super::cgroup::ControlGroup;
use super::pidfd::{Target, wait_id};
use super::process;
use super::raw::{CLONE_FLAGS, call};

/// How long a child may take from its start to its exec before it is killed: a
/// file system that does not answer for longer is taken to be gone.
pub const EXEC_LIMIT: Duration = Duration::from_secs(10);

/// Seconds after which the child's own timer kills it, should this process have
/// ended meanwhile.
const OWN_TIMER_SECONDS: i64 = EXEC_LIMIT.as_secs().cast_signed() + 5;

/// Bytes of stack for the child, of which system-call wrappers use little.
const STACK_BYTES: usize = 64 * 1024;

/// Times a child makes its control group, if somebody removes it meanwhile.
const GROUP_TRIES: usize = 3;

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
    /// The control group to make and to be in; whoever cannot starts where we are.
    pub cgroup: Option<ControlGroup>,
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
    /// The child was killed before its program started.
    Killed,
    /// It took longer than [`EXEC_LIMIT`].
    Late,
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
    /// Why it is not in its control group.
    pub outside: Option<Errno>,
}

/// What came of a start so far.
#[derive(Debug)]
pub enum Outcome {
    /// The program runs.
    Started(Started),
    /// It does not yet: whatever the child waits for takes its time.
    Starting(Starting),
}

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

/// What the child reads and writes until it has exec'ed or ended.
struct Memory {
    frame: Frame,
    _stack: Box<[std::mem::MaybeUninit<u128>]>,
    /// What the frame's pointers lead to.
    _strings: [Vec<CString>; 3],
    _others: [Option<CString>; 2],
    _group: Option<ControlGroup>,
}

/// All raw pointers and numbers, laid out for the child.
struct Frame {
    /// Not 0 until the child has exec'ed or ended; the system clears it.
    lives: AtomicI32,
    /// Whether the child has the descriptors it needs and has registered.
    placed: AtomicI32,
    failed_step: AtomicI32,
    failed_errno: AtomicI32,
    keeper: Option<RawFd>,
    /// The control group's parent, itself and its file, if there is to be one.
    cgroup: Option<[*const libc::c_char; 3]>,
    /// Why it could not be entered.
    outside: AtomicI32,
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

/// Starts a process as `plan` says and waits until it has exec'ed or failed, or
/// for `patience`, behind which it is left to be asked later.
///
/// # Errors
/// The step that failed and its errno. Nothing is left of the child; if it had
/// registered with the keeper, the caller takes that back.
pub fn start(mut plan: Plan<'_>, patience: Duration) -> Result<Outcome, Failure> {
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
    let frame = Frame {
        lives: AtomicI32::new(1),
        placed: AtomicI32::new(0),
        failed_step: AtomicI32::new(0),
        failed_errno: AtomicI32::new(0),
        keeper,
        cgroup: plan
            .cgroup
            .as_ref()
            .map(|group| [&group.base, &group.path, &group.procs].map(|path| path.as_ptr())),
        outside: AtomicI32::new(0),
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
    let mut stack = Box::<[u128]>::new_uninit_slice(STACK_BYTES / 16);
    // Left as it is: the child touches little of it.
    let top = stack.as_mut_ptr().wrapping_add(stack.len());
    let mut memory = Box::new(Memory {
        frame,
        _stack: stack,
        _strings: [plan.candidates, plan.argv, plan.env],
        _others: [plan.directory, plan.oom_score_adj],
        _group: plan.cgroup,
    });
    let lives = memory.frame.lives.as_ptr();
    let argument = ptr::from_mut(&mut memory.frame);
    let mut raw_pidfd: RawFd = -1;
    let all = nix::sys::signal::SigSet::all();
    let before = all
        .thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_SETMASK)
        .map_err(clone_failed)?;
    // SAFETY: `memory` lives until the system says that the child has exec'ed or
    // ended (`Starting` never frees it before), and is written by the child
    // alone, but for atomics. The descriptors of `plan` are open until the child
    // has said that it has them. All signals are blocked, so no handler runs in
    // the child. `child` makes nothing but raw system calls.
    let pid = unsafe {
        libc::clone(
            child,
            top.cast(),
            CLONE_FLAGS | libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_PIDFD | libc::SIGCHLD,
            argument.cast(),
            ptr::from_mut(&mut raw_pidfd),
            ptr::null_mut::<libc::c_void>(),
            lives,
        )
    };
    let cloned = Errno::result(pid);
    let _ = before.thread_set_mask();
    let pid = cloned.map_err(clone_failed)?;
    if CLONE_FLAGS & libc::CLONE_VFORK != 0 {
        // It has exec'ed or ended, or this process would stand still.
        memory.frame.lives.store(0, Ordering::Release);
    }
    // SAFETY: clone succeeded with CLONE_PIDFD, so this number is a new
    // descriptor of ours that nobody else knows.
    let pidfd = unsafe { OwnedFd::from_raw_fd(raw_pidfd) };
    let mut starting = Starting {
        pid,
        pidfd: Some(pidfd),
        since: Instant::now(),
        memory: Some(memory),
    };
    match starting.wait(patience) {
        Some(result) => result.map(Outcome::Started),
        None => Ok(Outcome::Starting(starting)),
    }
}

impl Starting {
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
    /// As [`start`].
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
    /// As [`start`].
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
        let _ = super::pidfd::pidfd_send_signal(&pidfd, libc::SIGKILL);
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

/// The child's whole life before exec.
extern "C" fn child(argument: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the parent passes its `Frame`, keeps it and reads only its atomics.
    let frame = unsafe { &mut *argument.cast::<Frame>() };
    // SAFETY: only raw system calls on prepared memory; see `start`.
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
    // memory that the parent keeps, laid out by `start`.
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
        // The limits, the user and all that may hang come behind the
        // registration: as a worker's user, or below its limits, too many
        // descriptors may be on their way already (ETOOMANYREFS).
        for (resource, limit) in &frame.rlimits {
            let resource = *resource as usize;
            if let Err(errno) = ask(
                libc::SYS_prlimit64,
                [0, resource, at(ptr::from_ref(limit)), 0, 0, 0],
            ) {
                return (Step::Limits, errno);
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
            return (Step::Group, errno);
        }
        if let Some(gid) = frame.gid.map(|gid| gid as usize)
            && let Err(errno) = ask(libc::SYS_setresgid, [gid, gid, gid, 0, 0, 0])
        {
            return (Step::Group, errno);
        }
        if let Some(uid) = frame.uid.map(|uid| uid as usize)
            && let Err(errno) = ask(libc::SYS_setresuid, [uid, uid, uid, 0, 0, 0])
        {
            return (Step::User, errno);
        }
        // As the user it will be, so that a directory only that user may
        // enter works and one it may not enter is refused.
        if !frame.directory.is_null()
            && let Err(errno) = ask(libc::SYS_chdir, [at(frame.directory), 0, 0, 0, 0, 0])
        {
            return (Step::Directory, errno);
        }
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
        // A timer of its own kills the child if it hangs and nobody is left to
        // do so; exec deletes it.
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
        // Belt and braces: everything of ours is close-on-exec already. Linux
        // before 5.11 refuses, and then the belt must do.
        let _ = ask(
            libc::SYS_close_range,
            [3, last, libc::CLOSE_RANGE_CLOEXEC as usize, 0, 0, 0],
        );
        ask(libc::SYS_setsid, [0; 6]).map_err(|errno| (Step::Session, errno))?;
        // Handlers are reset by exec, ignored signals are not.
        let default = [0u64; 4];
        for signal in frame.ignored {
            let _ = ask(
                libc::SYS_rt_sigaction,
                [int(*signal), at(default.as_ptr()), 0, 8, 0, 0],
            );
        }
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
