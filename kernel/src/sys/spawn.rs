//! Starting a worker: a child in this process's memory, a few raw system calls, exec.
//!
//! The child shares this process's memory until it execs, so between the two it allocates nothing,
//! takes no lock and calls nothing but the system; not even `errno` is its own. Everything it needs
//! is in a [`Plan`], laid out before (`memory.rs`). The child sends its own pidfd to the keeper, if
//! there is one, before it changes its user: from that moment the worker is known, whatever happens
//! to this process (`child.rs`). A step that fails is left in shared memory.
//!
//! This process waits for the child until that has all its descriptors, as `vfork(2)` would. After
//! that the child may hang for as long as a file system does not answer; then it is a [`Starting`]
//! that is asked again later (`wait.rs`). The system clears a word in shared memory when the child
//! has exec'ed or ended (`CLONE_CHILD_CLEARTID`).
//!
//! Source: `vfork(2)`, `clone(2)`, `execve(2)`.

mod child;
mod memory;
mod wait;

use std::ffi::CString;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::errno::Errno;

use self::memory::Memory;
pub use self::wait::Starting;
use super::cgroup::ControlGroup;
use super::raw::CLONE_FLAGS;

/// How long a child may take from its start to its exec before it is killed: a
/// file system that does not answer for longer is taken to be gone.
pub const EXEC_LIMIT: Duration = Duration::from_secs(10);

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

/// Room for the digits of a process number in a `LISTEN_PID=` entry.
pub const LISTEN_PID_ENTRY: &str = "LISTEN_PID=0000000000";

/// Starts a process as `plan` says and waits until it has exec'ed or failed, or for `patience`,
/// after which it is left to be asked later.
///
/// # Errors
/// The step that failed and its errno. Nothing is left of the child; if it had registered with the
/// keeper, the caller takes that back.
pub fn start(plan: Plan<'_>, patience: Duration) -> Result<Outcome, Failure> {
    let mut memory = Memory::lay_out(plan).map_err(clone_failed)?;
    let (pid, pidfd) = clone(&mut memory).map_err(clone_failed)?;
    if CLONE_FLAGS & libc::CLONE_VFORK != 0 {
        // It has exec'ed or ended, or this process would stand still.
        memory.frame.lives.store(0, Ordering::Release);
    }
    let mut starting = Starting::new(pid, pidfd, memory);
    match starting.wait(patience) {
        Some(result) => result.map(Outcome::Started),
        None => Ok(Outcome::Starting(starting)),
    }
}

fn clone_failed(errno: Errno) -> Failure {
    Failure {
        step: Step::Clone,
        errno,
    }
}

/// Makes the child, which begins its life in `child.rs`. `memory` must live until the system has
/// cleared its word, and [`Starting`] sees to that.
fn clone(memory: &mut Memory) -> Result<(i32, OwnedFd), Errno> {
    let top = memory.stack_top();
    let lives = memory.frame.lives.as_ptr();
    let argument = ptr::from_mut(&mut memory.frame);
    let mut raw_pidfd: RawFd = -1;
    let all = nix::sys::signal::SigSet::all();
    let before = all.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_SETMASK)?;
    // SAFETY: `memory` lives until the system says that the child has exec'ed or
    // ended (`Starting` never frees it before), and is written by the child
    // alone, but for atomics. The descriptors of the plan are open until the child
    // has said that it has them. All signals are blocked, so no handler runs in
    // the child. `child` makes nothing but raw system calls.
    let pid = unsafe {
        libc::clone(
            child::run,
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
    let pid = cloned?;
    // SAFETY: clone succeeded with CLONE_PIDFD, so this number is a new
    // descriptor of ours that nobody else knows.
    let pidfd = unsafe { OwnedFd::from_raw_fd(raw_pidfd) };
    Ok((pid, pidfd))
}
