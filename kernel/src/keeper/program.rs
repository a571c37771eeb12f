//! Which program the kernel is started with, and what happens when none serves.
//!
//! A new program is tried first. When it serves it becomes the one to start. If it ends before, or
//! by itself soon after, the program before is started again and told why. After some failed
//! recoveries in a row the keeper tries less often: it keeps everything, tells callers what it
//! knows, and on SIGUSR2 tries the program that an operator has put in the old one's place.

use std::ffi::OsString;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::sys::socket::{MsgFlags, Shutdown, send, shutdown};
use nix::sys::stat::{Mode, fstat};

use super::wire::{Key, Kind, Verdict};
use super::{Keeper, PROGRAM, RECOVERY_LIMIT, RESTART_DELAY, SIGUSR2, say};
use crate::sys::pidfd::Outcome;
use crate::sys::socket::local_port;
use papa_test_hooks::patience::scaled;

/// How long a program that is tried may take until it serves, and the next
/// keeper until its kernel has everything.
const TRIAL_LIMIT: Duration = Duration::from_secs(20);
/// Failed recoveries in a row after which another one is not soon tried.
const CRASH_LOOP: u32 = 3;
/// How long until it is tried again: the cause, such as a lack of memory, may be gone.
const HOLDING_DELAY: Duration = Duration::from_secs(60);
/// How long a kernel has to serve until it counts as able to serve, and its program as good.
const PROBATION: Duration = Duration::from_secs(10);
/// How long callers wait when no descriptor was left to accept them with.
const DEAF_PAUSE: Duration = Duration::from_secs(1);
/// Callers told in one turn that there is no kernel.
const CALLERS_PER_TURN: usize = 16;

/// Programs other than the one that has served.
#[derive(Debug, Default)]
pub(super) struct Program {
    /// Runs as the kernel, or will with the next start, and has not served.
    tried: Option<OwnedFd>,
    /// Put there by an operator, to be tried with the next start.
    offered: Option<OwnedFd>,
    /// The one before, until when the one that took its place is on probation.
    before: Option<(OwnedFd, Instant)>,
    /// Kernels in a row that served and soon ended by themselves.
    pub(super) quick_ends: u32,
    /// What became of the last one that was tried, until a kernel serves.
    pub(super) verdict: Option<Verdict>,
    /// How the last kernel that did not serve ended.
    pub(super) last_failure: String,
    /// It was killed, and not by this keeper, so the program is not to blame.
    pub(super) last_killed: bool,
}

impl Program {
    pub(super) fn tried(&self) -> Option<&OwnedFd> {
        self.tried.as_ref()
    }

    pub(super) fn is_tried(&self) -> bool {
        self.tried.is_some()
    }

    pub(super) fn is_offered(&self) -> bool {
        self.offered.is_some()
    }

    /// The kernel becomes this program now.
    pub(super) fn try_now(&mut self, program: OwnedFd) {
        self.tried = Some(program);
        self.verdict = None;
    }

    /// The kernel could not execute it and has kept its program.
    pub(super) fn untried(&mut self) {
        self.tried = None;
    }

    /// The next start tries what an operator offers, if anything.
    pub(super) fn take_offer(&mut self) {
        if let Some(program) = self.offered.take() {
            self.try_now(program);
        }
    }

    /// A kernel serves; returns the program if it is a new one.
    pub(super) fn serves(&mut self) -> Option<OwnedFd> {
        self.verdict = None;
        self.tried.take()
    }

    /// The program `now` has taken the place of the one before.
    pub(super) fn keep_for_probation(&mut self, before: Option<OwnedFd>, now: &OwnedFd) {
        let until = Instant::now() + scaled(PROBATION);
        // The same file would be no help.
        self.before = before
            .filter(|before| !is_same_file(before, now))
            .map(|before| (before, until));
    }

    /// Forgets the program before when its successor has proved itself.
    pub(super) fn end_probation(&mut self) {
        self.before.take_if(|(_, until)| Instant::now() >= *until);
    }

    /// The program to go back to after a kernel that served has ended: only if its program is on
    /// probation and it ended by itself. A kernel that was killed is not to blame.
    pub(super) fn after_end(&mut self, outcome: Outcome, served: Duration) -> Option<OwnedFd> {
        let killed =
            matches!(outcome, Outcome::Signal { number, .. } if number == Signal::SIGKILL as i32);
        if killed {
            self.quick_ends = 0;
            return None;
        }
        let soon = served < scaled(PROBATION);
        self.quick_ends = if soon { self.quick_ends + 1 } else { 0 };
        let (program, until) = self.before.take()?;
        if Instant::now() >= until {
            return None;
        }
        self.verdict = Some(Verdict::Ended(outcome));
        Some(program)
    }

    /// The kernel that ran the tried program has ended before it served.
    pub(super) fn failed(&mut self, outcome: Outcome, late: bool) {
        self.tried = None;
        self.verdict = Some(if late {
            Verdict::Late
        } else {
            Verdict::Ended(outcome)
        });
    }
}

impl Keeper {
    /// How long the kernel of now may take to recover.
    pub(super) fn recovery_limit(&self) -> Duration {
        let succeeds = self.kernel.as_ref().is_some_and(|kernel| kernel.succeeds);
        scaled(if self.program.is_tried() || succeeds {
            TRIAL_LIMIT
        } else {
            RECOVERY_LIMIT
        })
    }

    /// How long to wait before the next kernel, after one that did not serve.
    pub(super) fn restart_delay(&self) -> Duration {
        if self.is_in_crash_loop() {
            return scaled(HOLDING_DELAY);
        }
        let doublings = self.failures.max(self.program.quick_ends).min(16);
        (RESTART_DELAY.0 * 2u32.saturating_pow(doublings)).min(RESTART_DELAY.1)
    }

    fn is_in_crash_loop(&self) -> bool {
        self.failures >= CRASH_LOOP && (self.served || self.holds())
    }

    /// There is no kernel, and there will be none soon.
    pub(super) fn is_holding(&self) -> bool {
        self.kernel.is_none() && self.is_in_crash_loop()
    }

    /// Whether callers are told so now.
    pub(super) fn can_answer(&self, now: Instant) -> bool {
        self.is_holding() && self.deaf_until.is_none_or(|until| now >= until)
    }

    pub(super) fn say_if_holding(&self) {
        if self.is_holding() {
            say(format_args!("{}", self.state_of_things()));
        }
    }

    /// What an operator should know, in one line.
    fn state_of_things(&self) -> String {
        let workers = self.kept.range(Key::range(Kind::PIDFD)).count();
        let again = self.start_at.saturating_duration_since(Instant::now());
        format!(
            "no kernel: {} in a row did not serve, the last one {}; {workers} processes and {} descriptors are held and stay; \
             {}; the next try by itself is in {} s",
            self.failures,
            self.program.last_failure,
            self.kept.len(),
            self.advice(),
            again.as_secs(),
        )
    }

    /// What an operator can do about a kernel that does not serve.
    fn advice(&self) -> String {
        let own = std::process::id();
        if self.program.last_killed {
            return format!(
                "the system kills what it has no memory for: see whether it did (dmesg, memory.events of the cgroup), \
                 make room or raise the limit, and send SIGUSR2 to process {own} to try again at once"
            );
        }
        let path = self
            .program_path()
            .map_or_else(|| "its path".to_owned(), |path| path.display().to_string());
        format!(
            "put a program that works at {} and send SIGUSR2 to process {own}",
            path.escape_debug()
        )
    }

    /// Tells who calls that there is no kernel, and closes.
    pub(super) fn answer_callers(&mut self) {
        if !self.is_holding() {
            return;
        }
        let text = format!("papa: {}\n", self.state_of_things());
        let mut left = CALLERS_PER_TURN;
        for (_, control) in self.kept.range(Key::range(Kind::CONTROL)) {
            while left > 0 {
                let caller = match accept(control) {
                    Ok(caller) => caller,
                    // Callers in the queue would wake this process all the time.
                    Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM) => {
                        self.deaf_until = Some(Instant::now() + DEAF_PAUSE);
                        return;
                    }
                    Err(_) => break,
                };
                left -= 1;
                let number = caller.as_raw_fd();
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                // A caller that has gone need not know.
                let _ = send(number, text.as_bytes(), flags);
                let _ = shutdown(number, Shutdown::Write);
            }
        }
    }

    /// Handles SIGUSR2 while no kernel serves: the file that is at the program's path now is tried
    /// next.
    pub(super) fn take_program_from_operator(&mut self) {
        let serves = self.kernel.as_ref().is_some_and(|kernel| kernel.serving);
        let troubled = self.failures > 0 || self.program.quick_ends > 0;
        if serves || !troubled || !self.signals.contains(&SIGUSR2) {
            return;
        }
        self.signals.retain(|number| *number != SIGUSR2);
        let opened = self.program_path().ok_or(Errno::ENOENT).and_then(|path| {
            nix::fcntl::open(&path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        });
        match opened {
            Ok(program) => {
                say(format_args!(
                    "SIGUSR2: trying the program that is there now"
                ));
                self.program.offered = Some(program);
                if let Some(kernel) = &self.kernel {
                    let _ = nix::sys::signal::kill(kernel.pid, Signal::SIGKILL);
                }
            }
            Err(errno) => say(format_args!(
                "SIGUSR2: the program cannot be opened: {errno}"
            )),
        }
    }

    /// The path the present program was started from, whatever is there today.
    fn program_path(&self) -> Option<PathBuf> {
        path_of(self.kept.get(&PROGRAM)?)
    }
}

pub(super) fn is_same_file(one: &OwnedFd, other: &OwnedFd) -> bool {
    let file = |fd| fstat(fd).ok().map(|stat| (stat.st_dev, stat.st_ino));
    file(one).is_some() && file(one) == file(other)
}

/// The next caller; `EAGAIN` if none waits.
fn accept(control: &OwnedFd) -> Result<OwnedFd, Errno> {
    let accept = || -> std::io::Result<OwnedFd> {
        let copy = control.try_clone()?;
        if local_port(control).is_ok_and(|port| port != 0) {
            let listener = TcpListener::from(copy);
            listener.set_nonblocking(true)?;
            Ok(listener.accept()?.0.into())
        } else {
            let listener = UnixListener::from(copy);
            listener.set_nonblocking(true)?;
            Ok(listener.accept()?.0.into())
        }
    };
    accept().map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
}

/// The path a program file was opened at. The system marks one that has been
/// replaced since.
#[must_use]
pub fn path_of(program: impl AsFd) -> Option<PathBuf> {
    let link = format!("/proc/self/fd/{}", program.as_fd().as_raw_fd());
    let target = std::fs::read_link(link).ok()?.into_os_string();
    Some(without_mark(target.as_bytes()))
}

fn without_mark(path: &[u8]) -> PathBuf {
    let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
    PathBuf::from(OsString::from_vec(path.to_vec()))
}
