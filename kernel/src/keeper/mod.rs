//! The keeper: holds copies of what must not die and restarts the kernel.
//!
//! It reads nothing that a user typed. It keeps descriptors by [`Key`], is the only child
//! subreaper, waits for whatever it adopts, and keeps how that ended until the kernel has recorded
//! it. It never decides anything about workers. When it dies, the kernel execs into this role with
//! all descriptors and goes on (`change/takeover.rs`). A keeper that is replaced on purpose stays
//! until the next one's kernel has everything too (`change/succession.rs`).
//!
//! How the kernel is started and watched is in `kernel.rs`, what is heard and said in `talk.rs`,
//! and which program is started, also when none of them serves, in `program.rs`.
//!
//! Invariant: a descriptor or a registration sent by a kernel that has died since is received
//! before the next kernel is started.
//! Source: `prctl(2)` (`PR_SET_CHILD_SUBREAPER`), `waitid(2)`, `unix(7)`.

mod init;
mod kernel;
pub mod link;
pub mod manifest;
pub mod notify;
pub mod program;
mod talk;
pub mod understudy;
pub mod wire;

use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;
use papa_test_hooks::failpoint;

use self::kernel::Kernel;
use self::program::Program;
use self::wire::{Kept, Key, Kind};
use crate::logging::Log;
use crate::sys::pidfd::{Outcome, Target, WaitStatus, wait_id};
use crate::sys::process;
use papa_test_hooks::patience::scaled;

/// Time between two questions whether the kernel is there.
pub const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How long a kernel may take to recover.
const RECOVERY_LIMIT: Duration = Duration::from_secs(120);
/// First and longest delay before another kernel when the last one never got
/// to serve.
const RESTART_DELAY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));
/// Failed first starts after which a daemon that holds nothing gives up.
const FIRST_START_TRIES: u32 = 3;

/// The name the keeper shows in a process list.
pub const TITLE: &str = "papa: keeper";
/// The name the kernel shows in a process list.
pub const KERNEL_TITLE: &str = "papa: kernel";

/// The keeper's whole state.
struct Keeper {
    /// Copies of descriptors.
    kept: Kept,
    /// Serials of registered workers by process number.
    serials: HashMap<i32, u64>,
    /// Process numbers of registered workers by serial.
    pids: BTreeMap<u64, i32>,
    /// How adopted workers ended, by serial, and whether the kernel has been told.
    exits: BTreeMap<u64, (WaitStatus, bool)>,
    /// Signals that are to be passed on to the kernel.
    signals: Vec<u8>,
    kernel: Option<Kernel>,
    /// Sockets of dead kernels not yet at end of file, with their deadline.
    ended: Vec<(OwnedFd, Instant)>,
    /// When the next kernel may be started.
    start_at: Instant,
    /// Kernels in a row that have never served.
    failures: u32,
    /// A kernel has served, now or before a change of role.
    served: bool,
    /// The service manager knows that this keeper's kernel serves.
    announced: bool,
    /// Until when nothing is sent, since the system had no room for the last message.
    mute_until: Option<Instant>,
    exit_code: Option<u8>,
    /// A program that is known to take inherited descriptors.
    able: Option<OwnedFd>,
    /// Held open until a kernel serves: its end tells the stand-in process that this one has died
    /// or does not need it any more.
    understudy: Option<OwnedFd>,
    /// The next keeper's kernel has everything: the line to answer it on, and
    /// who the next keeper is while it lives.
    dismissed: Option<(OwnedFd, Option<Pid>)>,
    /// Who is the keeper after this one.
    successor: Option<i32>,
    /// Until when callers are not told that there is no kernel, since no descriptor was left to
    /// accept them with.
    deaf_until: Option<Instant>,
    notify_socket: Option<String>,
    ready: Option<OwnedFd>,
    arguments: Vec<CString>,
    program: Program,
}

/// Runs the keeper until the kernel says to exit; returns the exit code.
///
/// `file` is the manifest, `arguments` what to show after the title.
///
/// # Errors
/// A manifest that cannot be read, or a system without signal descriptors.
pub fn run(file: OwnedFd, arguments: Vec<CString>) -> Result<u8, Errno> {
    process::set_name(c"papa-keeper");
    process::prefer_short_slices();
    process::set_child_subreaper()?;
    let (manifest, kept) = manifest::read(&file)?;
    failpoint::reach("takeover.executed");
    drop(file);
    let ready = manifest
        .ready
        .and_then(|number| process::take_inherited(number).ok());
    let signals = process::signal_descriptor(true)?;
    let mut keeper = Keeper {
        kept: kept.into_iter().collect(),
        serials: manifest
            .workers
            .iter()
            .map(|(serial, pid)| (*pid, *serial))
            .collect(),
        pids: manifest.workers.into_iter().collect(),
        exits: BTreeMap::new(),
        signals: Vec::new(),
        kernel: None,
        ended: Vec::new(),
        start_at: Instant::now(),
        failures: 0,
        served: manifest.served,
        announced: false,
        mute_until: None,
        exit_code: None,
        able: None,
        understudy: manifest
            .understudy
            .and_then(|number| process::take_inherited(number).ok()),
        dismissed: None,
        successor: None,
        deaf_until: None,
        notify_socket: manifest.notify_socket,
        ready,
        arguments,
        program: Program::default(),
    };
    let config = keeper.kept.get(&Key::new(Kind::CONFIG, 0));
    if let Some(Ok(config)) = config.map(crate::config::Config::read) {
        crate::logging::set_file(&config);
    }
    let before = keeper.kept.remove(&PROGRAM_BEFORE);
    if let Some(now) = keeper.kept.get(&PROGRAM) {
        keeper.program.keep_for_probation(before, now);
    }
    keeper.reap();
    loop {
        if let Some(code) = keeper.finished() {
            return Ok(code);
        }
        if keeper.takes_leave() || keeper.is_replaced() {
            if std::process::id() == 1 {
                say(format_args!(
                    "the kernel has taken this keeper's place; staying as process 1"
                ));
                return keeper.stay_as_init(&signals);
            }
            say(format_args!(
                "the kernel has taken this keeper's place; ending"
            ));
            return Ok(0);
        }
        keeper.turn(&signals)?;
    }
}

impl Keeper {
    /// One round: waits for something, then deals with all of it.
    fn turn(&mut self, signals: &SignalFd) -> Result<(), Errno> {
        let now = Instant::now();
        let timeout = self.deadline(now).saturating_duration_since(now);
        // Rounded up, or the last millisecond would be spent spinning.
        let timeout = timeout.as_millis().saturating_add(1);
        let timeout = PollTimeout::from(u16::try_from(timeout).unwrap_or(u16::MAX));
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if let Some(kernel) = &self.kernel
            && kernel.silent_since.is_none()
        {
            let mut flags = PollFlags::POLLIN;
            if self.has_outgoing(kernel) {
                flags |= PollFlags::POLLOUT;
            }
            fds.push(PollFd::new(kernel.socket.as_fd(), flags));
        }
        fds.extend(
            self.ended
                .iter()
                .map(|(socket, _)| PollFd::new(socket.as_fd(), PollFlags::POLLIN)),
        );
        // Nobody else would answer.
        let answers = self.can_answer(now);
        if answers {
            let controls = self.kept.range(Key::range(Kind::CONTROL));
            fds.extend(controls.map(|(_, fd)| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        drop(fds);
        self.take_signals(signals);
        self.listen_to_kernel();
        self.hear_last_words();
        self.speak();
        self.check_on_kernel();
        self.program.end_probation();
        self.take_program_from_operator();
        if answers {
            self.answer_callers();
        }
        self.end_if_asked_twice();
        if self.exit_code.is_none()
            && self.kernel.is_none()
            && self.dismissed.is_none()
            && self.ended.is_empty()
            && (Instant::now() >= self.start_at || self.program.is_offered())
        {
            self.start_kernel();
        }
        Ok(())
    }

    /// Takes all signals that have come.
    fn take_signals(&mut self, signals: &SignalFd) {
        while let Ok(Some(info)) = signals.read_signal() {
            match Signal::try_from(info.ssi_signo.cast_signed()) {
                Ok(Signal::SIGCHLD) => self.reap(),
                Ok(Signal::SIGUSR1) => crate::logging::reopen(),
                Ok(signal @ (Signal::SIGTERM | Signal::SIGINT | Signal::SIGUSR2)) => {
                    #[allow(clippy::cast_possible_truncation, reason = "at most 64")]
                    self.signals.push((signal as i32).cast_unsigned() as u8);
                }
                _ => {}
            }
        }
    }

    /// Ends a keeper that was asked twice to end while no kernel serves that could be asked, if
    /// nothing is kept.
    fn end_if_asked_twice(&mut self) {
        let asked = self
            .signals
            .iter()
            .filter(|number| **number != SIGUSR2)
            .count();
        let holds = self.holds();
        let serves = self.kernel.as_ref().is_some_and(|kernel| kernel.serving);
        if asked >= 2 && !serves && !holds {
            if let Some(kernel) = &self.kernel {
                let _ = kill(kernel.pid, Signal::SIGKILL);
            }
            self.exit_code = Some(1);
        }
    }

    /// Until when nothing has to be done unless something happens.
    fn deadline(&self, now: Instant) -> Instant {
        let mut earliest = now + scaled(PING_INTERVAL);
        let mut by = |at: Option<Instant>| {
            if let Some(at) = at {
                earliest = earliest.min(at);
            }
        };
        if let Some(kernel) = &self.kernel {
            by(kernel.deadline(self.recovery_limit()));
            by(self
                .mute_until
                .filter(|until| kernel.serving || *until > now));
        } else {
            let last_words = self.ended.iter().map(|(_, until)| *until).max();
            by(last_words.or(Some(self.start_at)));
            by(self.deaf_until);
        }
        earliest.max(now)
    }

    fn finished(&self) -> Option<u8> {
        let code = self.exit_code?;
        self.kernel.is_none().then_some(code)
    }

    // ---- children ------------------------------------------------------

    /// Waits for everything that has ended. Only the keeper may ask for any
    /// child: it is the only one here that waits.
    fn reap(&mut self) {
        let mut looked_again = false;
        loop {
            let Ok(Some((pid, _))) = wait_id(Target::Any, true) else {
                return;
            };
            if self
                .kernel
                .as_ref()
                .is_some_and(|kernel| kernel.pid.as_raw() == pid)
            {
                if let Ok(Some((_, status))) = wait_id(Target::Pid(pid), false) {
                    self.kernel_ended(status);
                }
                continue;
            }
            if let Some(serial) = self.serials.get(&pid).copied()
                && let Some(pidfd) = self.kept.get(&Key::new(Kind::PIDFD, serial))
                // By handle: the number may belong to a stranger by now, if
                // the kernel waited for the worker and the number came back.
                && let Ok(Some((_, status))) = wait_id(Target::Pidfd(pidfd.as_fd()), false)
            {
                failpoint::reach("exit.adopted");
                self.serials.remove(&pid);
                self.pids.remove(&serial);
                self.exits.insert(serial, (status, false));
                continue;
            }
            // A worker of a kernel that died just now may have lived so
            // shortly that its registration is still unread.
            if !looked_again {
                looked_again = true;
                self.listen_to_kernel();
                self.hear_last_words();
                continue;
            }
            looked_again = false;
            if wait_id(Target::Pid(pid), false).is_err() {
                return;
            }
        }
    }

    /// Whether there is anything that would be lost with this process.
    fn holds(&self) -> bool {
        self.kept.keys().any(|key| !key.kind.is_basic())
    }
}

/// Where the program every kernel runs is kept.
pub const PROGRAM: Key = Key {
    kind: Kind::BINARY,
    id: 0,
};

/// The program before, where a keeper is replaced along with the kernel: the
/// next keeper goes back to it if the new one ends soon.
pub const PROGRAM_BEFORE: Key = Key {
    kind: Kind::BINARY,
    id: 1,
};

#[allow(clippy::cast_possible_truncation, reason = "at most 64")]
const SIGUSR2: u8 = (Signal::SIGUSR2 as i32).cast_unsigned() as u8;

/// How a kernel ended, for people.
fn how(outcome: Outcome) -> String {
    match outcome {
        Outcome::Code(code) => format!("exited with code {code}"),
        Outcome::Signal { number, .. } => format!("was ended by signal {number}"),
    }
}

/// Writes a line to the log.
fn say(text: std::fmt::Arguments<'_>) {
    let line = format!("papa: keeper: {text}\n");
    // Whatever becomes of it must not matter here.
    let _ = Log.write_all(line.as_bytes());
}
