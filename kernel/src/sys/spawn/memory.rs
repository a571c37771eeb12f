//! What a child needs, laid out for it before it exists.

use std::ffi::CString;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;
use std::sync::atomic::AtomicI32;

use nix::errno::Errno;
use papa_test_hooks::failpoint;

use super::{LISTEN_PID_ENTRY, Plan, REGISTER};
use crate::sys::cgroup::ControlGroup;
use crate::sys::process;

/// Bytes of stack for the child, of which system-call wrappers use little.
const STACK_BYTES: usize = 64 * 1024;

/// What the child reads and writes until it has exec'ed or ended.
pub(super) struct Memory {
    pub frame: Frame,
    stack: Box<[std::mem::MaybeUninit<u128>]>,
    /// What the frame's pointers lead to.
    _strings: [Vec<CString>; 3],
    _others: [Option<CString>; 2],
    _group: Option<ControlGroup>,
}

/// All raw pointers and numbers, laid out for the child.
pub(super) struct Frame {
    /// Not 0 until the child has exec'ed or ended; the system clears it.
    pub lives: AtomicI32,
    /// Whether the child has the descriptors it needs and has registered.
    pub placed: AtomicI32,
    pub failed_step: AtomicI32,
    pub failed_errno: AtomicI32,
    pub keeper: Option<RawFd>,
    /// The control group's parent, itself and its file, if there is to be one.
    pub cgroup: Option<[*const libc::c_char; 3]>,
    /// Why it could not be entered.
    pub outside: AtomicI32,
    pub candidates: Vec<*const libc::c_char>,
    pub argv: Vec<*const libc::c_char>,
    pub env: Vec<*const libc::c_char>,
    pub directory: *const libc::c_char,
    /// Signals this process ignores.
    pub ignored: &'static [i32],
    pub moves: Vec<(RawFd, RawFd)>,
    pub base: RawFd,
    /// No descriptor from here on is needed.
    pub cut: libc::c_uint,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub groups: Option<Vec<u32>>,
    pub umask: Option<u32>,
    pub nice: Option<i32>,
    pub oom_score_adj: Option<(*const libc::c_char, usize)>,
    pub rlimits: Vec<(u32, libc::rlimit)>,
    pub listen_pid: *mut libc::c_char,
    pub message: [u8; 13],
    /// Whether a test has the child stop before it registers, and before it execs.
    pub stops: [bool; 2],
}

impl Memory {
    /// Lays out everything that `plan` says.
    ///
    /// # Errors
    /// `EINVAL` if the entry for `LISTEN_PID` has no room for a number.
    pub(super) fn lay_out(mut plan: Plan<'_>) -> Result<Box<Self>, Errno> {
        let listen_pid = match plan.listen_pid {
            None => ptr::null_mut(),
            Some(index) => place_of_number(&mut plan.env[index])?,
        };
        let frame = Frame::new(&mut plan, listen_pid);
        Ok(Box::new(Self {
            frame,
            // Left as it is: the child touches little of it.
            stack: Box::<[u128]>::new_uninit_slice(STACK_BYTES / 16),
            _strings: [plan.candidates, plan.argv, plan.env],
            _others: [plan.directory, plan.oom_score_adj],
            _group: plan.cgroup,
        }))
    }

    /// Where the child's stack begins; it grows downwards.
    pub(super) fn stack_top(&mut self) -> *mut std::mem::MaybeUninit<u128> {
        self.stack.as_mut_ptr().wrapping_add(self.stack.len())
    }
}

/// Where the child writes its number into an entry of its environment.
fn place_of_number(entry: &mut CString) -> Result<*mut libc::c_char, Errno> {
    if entry.as_bytes().len() != LISTEN_PID_ENTRY.len() {
        return Err(Errno::EINVAL);
    }
    // The entry's own buffer, so that the child can write digits into it; `into_raw` gives the
    // right to do so.
    let raw = std::mem::take(entry).into_raw();
    // SAFETY: `raw` comes from `into_raw` just now and its length is unchanged; it is taken back so
    // that it is freed as usual.
    *entry = unsafe { CString::from_raw(raw) };
    // SAFETY: the entry has `LISTEN_PID_ENTRY.len()` bytes.
    Ok(unsafe { raw.add("LISTEN_PID=".len()) })
}

/// Pointers to strings, ended by a null pointer.
fn terminated(list: &[CString]) -> Vec<*const libc::c_char> {
    let pointers = list.iter().map(|entry| entry.as_ptr());
    pointers.chain([ptr::null()]).collect()
}

impl Frame {
    fn new(plan: &mut Plan<'_>, listen_pid: *mut libc::c_char) -> Self {
        let targets = plan.descriptors.iter().map(|(_, to)| *to);
        let highest = targets.max().unwrap_or(2);
        let sources = plan.descriptors.iter().map(|(from, _)| from.as_raw_fd());
        let keeper = plan.keeper.map(|keeper| keeper.as_raw_fd());
        let cut = sources.chain(keeper).max().unwrap_or(2) + 1;
        let mut message = [0u8; 13];
        message[0] = REGISTER;
        message[1..9].copy_from_slice(&plan.serial.to_le_bytes());
        Self {
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
        }
    }
}
