//! The keeper: holds copies of what must not die and restarts the kernel.
//!
//! A few hundred lines that read nothing a user typed. It keeps descriptors
//! by [`Key`], is the only child subreaper, waits for whatever it adopts and
//! keeps how it ended until the kernel has recorded it. It never decides
//! anything about workers. When it dies itself, the kernel execs into this
//! role with all descriptors and goes on (`takeover.rs`). A keeper that is
//! replaced on purpose holds on until the next one's kernel has everything too
//! (`succession.rs`).
//!
//! What it hears and says is in `talk.rs`; which program it starts, and what
//! it does when none of them serves, in `program.rs`.
//!
//! Invariant: a descriptor or a registration sent by a kernel that has died
//! since is received before the next kernel is started.
//! Source: design "Keeper"; probes `parent.py`, `role.c`, `vk.c`.

mod init;
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
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::unistd::{ForkResult, Pid};
use papa_test_hooks::failpoint;

use self::program::Program;
use self::talk::{REPLACED_AFTER, has_title};
use self::wire::{Kept, Key, Kind};
use crate::logging::Log;
use crate::sys::pidfd::{Outcome, Target, WaitStatus, wait_id};
use crate::sys::{message, process};
use papa_test_hooks::patience::scaled;

/// Between two questions whether the kernel is there.
pub const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How long a serving kernel may leave a question unanswered.
const KERNEL_STUCK: Duration = Duration::from_secs(20);
/// How long a kernel may take to recover.
const RECOVERY_LIMIT: Duration = Duration::from_secs(120);
/// How long the next kernel waits for the last words of a dead one: a child
/// of it that is still between vfork and exec.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// First and longest delay before another kernel when the last one never got
/// to serve.
const RESTART_DELAY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));
/// Failed first starts after which a daemon that holds nothing gives up.
const FIRST_START_TRIES: u32 = 3;

/// The name the keeper shows in a process list.
pub const TITLE: &str = "papa: keeper";
/// The name the kernel shows in a process list.
pub const KERNEL_TITLE: &str = "papa: kernel";

/// A running kernel, as the keeper sees it.
struct Kernel {
    pid: Pid,
    socket: OwnedFd,
    started: Instant,
    serving: bool,
    /// Since when, if it does.
    serving_since: Instant,
    /// When the oldest unanswered question was asked.
    asked: Option<Instant>,
    next_ping: Instant,
    /// Answer to a fetch that the socket had no room for yet.
    fetch: Option<Option<Key>>,
    ping_due: bool,
    /// Since when its line is closed though it has not ended.
    silent_since: Option<Instant>,
    /// It was killed because it took too long.
    late: bool,
    /// It becomes the next keeper, which is no kernel but has one.
    succeeds: bool,
}

struct Keeper {
    kept: Kept,
    serials: HashMap<i32, u64>,
    pids: BTreeMap<u64, i32>,
    exits: BTreeMap<u64, (WaitStatus, bool)>,
    signals: Vec<u8>,
    kernel: Option<Kernel>,
    /// Sockets of dead kernels not yet at end of file, with their deadline.
    ended: Vec<(OwnedFd, Instant)>,
    start_at: Instant,
    failures: u32,
    /// A kernel has served, now or before a change of role.
    served: bool,
    /// The service manager knows that this keeper's kernel serves.
    announced: bool,
    /// Nothing is sent before: the system had no room for the last message.
    mute_until: Option<Instant>,
    exit_code: Option<u8>,
    /// A program that takes what is left open for it.
    able: Option<OwnedFd>,
    /// Held open until a kernel serves: its end tells the process that would
    /// go on in this one's place that this one has died, or needs it no more.
    understudy: Option<OwnedFd>,
    /// The next keeper's kernel has everything: the line to answer it on, and
    /// who the next keeper is while it lives.
    dismissed: Option<(OwnedFd, Option<Pid>)>,
    /// Who is the keeper after this one.
    successor: Option<i32>,
    /// Nobody can be told that there is no kernel before: no descriptor was
    /// left to accept with.
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
    /// One round: wait for something, then deal with all of it.
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
        self.listen_to_kernel();
        self.hear_last_words();
        self.speak();
        self.check_on_kernel();
        self.program.end_probation();
        self.take_program_from_operator();
        if answers {
            self.answer_callers();
        }
        // Asked twice to end, and there is no kernel to ask: with nothing kept
        // there is no reason to stay.
        let asked = self
            .signals
            .iter()
            .filter(|number| **number != SIGUSR2)
            .count();
        let holds = self.holds();
        let serves = self.kernel.as_ref().is_some_and(|kernel| kernel.serving);
        if asked >= 2 && !serves && !holds {
            if let Some(kernel) = &self.kernel {
                let _ = nix::sys::signal::kill(kernel.pid, Signal::SIGKILL);
            }
            self.exit_code = Some(1);
        }
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

    fn deadline(&self, now: Instant) -> Instant {
        let mut earliest = now + scaled(PING_INTERVAL);
        match &self.kernel {
            Some(kernel) if !kernel.serving => {
                earliest = earliest.min(kernel.started + self.recovery_limit());
                if let Some(until) = self.mute_until.filter(|until| *until > now) {
                    earliest = earliest.min(until);
                }
                if let Some(since) = kernel.silent_since {
                    earliest = earliest.min(since + REPLACED_AFTER);
                }
            }
            Some(kernel) => {
                if let Some(since) = kernel.silent_since {
                    earliest = earliest.min(since + REPLACED_AFTER);
                }
                if let Some(until) = self.mute_until {
                    earliest = earliest.min(until);
                }
                earliest = earliest.min(kernel.next_ping);
                if let Some(asked) = kernel.asked {
                    earliest = earliest.min(asked + scaled(KERNEL_STUCK));
                }
            }
            None => {
                earliest = match self.ended.iter().map(|(_, until)| *until).max() {
                    Some(until) => earliest.min(until),
                    None => earliest.min(self.start_at),
                };
                if let Some(until) = self.deaf_until {
                    earliest = earliest.min(until);
                }
            }
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

    fn kernel_ended(&mut self, status: WaitStatus) {
        // What it said while it lived counts: that it tries a program, or that
        // it serves.
        self.listen_to_kernel();
        let Some(kernel) = self.kernel.take() else {
            return;
        };
        for (_, sent) in self.exits.values_mut() {
            *sent = false;
        }
        let now = Instant::now();
        if kernel.succeeds {
            self.successor_ended(kernel, status.outcome);
            return;
        }
        self.ended.push((kernel.socket, now + LAST_WORDS));
        self.hear_last_words();
        if self.exit_code.is_some() {
            return;
        }
        let how = how(status.outcome);
        if self.program.is_tried() {
            self.program.failed(status.outcome, kernel.late);
            self.start_at = now;
            say(format_args!(
                "the program that was tried {how}; going back to the one before"
            ));
            return;
        }
        if kernel.serving {
            self.failures = 0;
            let served = now.saturating_duration_since(kernel.serving_since);
            match self.program.after_end(status.outcome, served) {
                Some(before) => {
                    say(format_args!(
                        "the new program {how} soon after it served; going back to the one before"
                    ));
                    self.kept.insert(PROGRAM, before);
                    self.start_at = now;
                    return;
                }
                None if self.program.quick_ends > 0 => self.start_at = now + self.restart_delay(),
                None => self.start_at = now,
            }
        } else {
            self.failures += 1;
            self.program.last_failure.clone_from(&how);
            self.program.last_killed = !kernel.late
                && matches!(status.outcome, Outcome::Signal { number, .. } if number == Signal::SIGKILL as i32);
            self.start_at = now + self.restart_delay();
            if !self.served && !self.holds() && self.failures >= FIRST_START_TRIES {
                self.say_ready(&format!("the kernel {how} before it could serve"));
                self.exit_code = Some(1);
                return;
            }
        }
        say(format_args!(
            "kernel {} {how}; starting another",
            kernel.pid
        ));
        self.say_if_holding();
    }

    /// Whether there is anything that would be lost with this process.
    fn holds(&self) -> bool {
        self.kept.keys().any(|key| !key.kind.is_basic())
    }

    fn start_kernel(&mut self) {
        let now = Instant::now();
        let retry = now + RESTART_DELAY.1;
        self.program.take_offer();
        let program = self.program.tried().or(self.kept.get(&PROGRAM));
        let (Ok((ours, theirs)), Some(binary)) = (message::seqpacket_pair(), program) else {
            self.start_at = retry;
            return;
        };
        match process::fork() {
            Err(_) => self.start_at = retry,
            Ok(ForkResult::Parent { child }) => {
                self.kernel = Some(Kernel {
                    pid: child,
                    socket: ours,
                    started: now,
                    serving: false,
                    serving_since: now,
                    asked: None,
                    next_ping: now + scaled(PING_INTERVAL),
                    fetch: None,
                    ping_due: false,
                    silent_since: None,
                    late: false,
                    succeeds: false,
                });
            }
            Ok(ForkResult::Child) => {
                // From here on two processes hold everything.
                failpoint::reach("keeper.forked");
                // Off the terminal: a Ctrl-C is for the keeper alone.
                let _ = nix::unistd::setsid();
                let mut argv = vec![CString::from(KERNEL_C_TITLE)];
                argv.extend(self.arguments.iter().cloned());
                let list = self.list_for_kernel(binary, &theirs);
                let first = list.as_ref().unwrap_or(&theirs);
                let errno = process::exec(
                    binary.as_fd(),
                    first.as_fd(),
                    &argv,
                    &environment_for_kernel(),
                );
                say(format_args!("cannot start the kernel: {errno}"));
                process::exit_forked(1);
            }
        }
    }

    /// What the next kernel inherits, if its program is known to take that:
    /// then it has everything before this process could be killed, and needs
    /// the copies it fetches only for what it fetches with them. None if it is
    /// to fetch everything.
    fn list_for_kernel(&self, binary: &OwnedFd, line: &OwnedFd) -> Option<OwnedFd> {
        let own = process::own_binary().ok()?;
        let able = self.able.as_ref();
        if !program::is_same_file(binary, &own)
            && !able.is_some_and(|able| program::is_same_file(binary, able))
        {
            return None;
        }
        let beside = manifest::Beside {
            workers: self
                .pids
                .iter()
                .map(|(serial, pid)| (*serial, *pid))
                .collect(),
            served: self.served,
            line: Some(line),
            inherited: true,
            notify_socket: self.notify_socket.clone(),
            ..manifest::Beside::default()
        };
        let kept = self.kept.iter().map(|(key, fd)| (*key, fd));
        manifest::write(kept, beside).ok()
    }

    /// Asks a quiet kernel whether it is there and replaces a stuck one.
    fn check_on_kernel(&mut self) {
        let now = Instant::now();
        let limit = self.recovery_limit();
        let Self {
            kernel: Some(kernel),
            arguments,
            ..
        } = self
        else {
            return;
        };
        if kernel.silent_since.is_some() {
            // It has closed its line, and may be the keeper by now: `is_replaced` decides.
            return;
        }
        if kernel.serving && now >= kernel.next_ping {
            kernel.next_ping = now + scaled(PING_INTERVAL);
            if kernel.asked.is_none() {
                kernel.ping_due = true;
            }
        }
        let late = if kernel.serving {
            kernel
                .asked
                .is_some_and(|asked| now >= asked + scaled(KERNEL_STUCK))
        } else {
            now >= kernel.started + limit
        };
        if !late {
            return;
        }
        if process::is_traced(kernel.pid) {
            kernel.asked = Some(now);
            kernel.started = now;
            return;
        }
        if !kernel.succeeds && has_title(kernel.pid.as_raw(), TITLE, arguments) {
            // It has taken this keeper's place, and the copy of it that waits beside still holds
            // the line: `is_replaced` decides.
            kernel.silent_since = Some(now);
            return;
        }
        say(format_args!(
            "kernel {} does not answer; replacing it",
            kernel.pid
        ));
        // Its number cannot be reused: it is our child and not waited for.
        let _ = nix::sys::signal::kill(kernel.pid, Signal::SIGKILL);
        kernel.asked = Some(now);
        kernel.started = now;
        kernel.late = true;
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

const KERNEL_C_TITLE: &std::ffi::CStr = c"papa: kernel";

/// Variables meant for the launcher are not for what the kernel starts.
fn environment_for_kernel() -> Vec<CString> {
    let own = [
        "NOTIFY_SOCKET=",
        "LISTEN_FDS=",
        "LISTEN_PID=",
        "LISTEN_FDNAMES=",
    ];
    process::environment()
        .into_iter()
        .filter(|entry| {
            !own.iter()
                .any(|name| entry.as_bytes().starts_with(name.as_bytes()))
        })
        .collect()
}

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
