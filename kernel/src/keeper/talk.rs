//! The keeper's side of the messages with its kernel: what it receives, does and sends.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{MsgFlags, Shutdown, setsockopt, shutdown, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::Pid;
use papa_test_hooks::failpoint;

use super::wire::{
    ABLE_TO_INHERIT, ABLE_TO_LEAVE, Key, Kind, MAX_KEYS, MAX_MESSAGE, ToKeeper, ToKernel, Verdict,
};
use super::{KERNEL_TITLE, Keeper, Kernel, PING_INTERVAL, PROGRAM, TITLE, how, notify, say};
use crate::keeper::understudy;
use crate::sys::pidfd::{Outcome, Target, wait_id};
use crate::sys::{message, process};
use papa_test_hooks::patience::scaled;

/// How long a kernel's line may be closed before its end is known. Both come together, unless the
/// kernel lives on in another role.
pub(super) const REPLACED_AFTER: Duration = Duration::from_secs(1);
/// How long the last messages may wait for room.
const LEAVE_LIMIT: Duration = Duration::from_secs(1);
/// How long to wait after a message the system had no room for.
const SEND_PAUSE: Duration = Duration::from_millis(100);

impl Keeper {
    pub(super) fn listen_to_kernel(&mut self) {
        while let Some(kernel) = &self.kernel {
            match receive(kernel.socket.as_fd()) {
                Heard::Message(message, descriptors) => self.obey(message, descriptors, true),
                Heard::Nothing => return,
                Heard::End => {
                    if let Some(kernel) = &mut self.kernel {
                        kernel.silent_since.get_or_insert_with(Instant::now);
                    }
                    return;
                }
            }
        }
    }

    /// Whether the kernel has taken this keeper's place because it thought the keeper dead. Two
    /// keepers would start two kernels on one journal, so this one ends.
    ///
    /// A closed line alone proves nothing. A kernel that closed it and lives on as anything but a
    /// keeper is killed.
    pub(super) fn is_replaced(&mut self) -> bool {
        let Some(kernel) = &mut self.kernel else {
            return false;
        };
        if kernel
            .silent_since
            .is_none_or(|since| since.elapsed() < REPLACED_AFTER)
        {
            return false;
        }
        // Its number cannot have been reused: it is a child that was not waited for.
        let pid = kernel.pid.as_raw();
        if !matches!(wait_id(Target::Pid(pid), true), Ok(None)) {
            // It has ended, which SIGCHLD reports.
            return false;
        }
        if has_title(pid, TITLE, &self.arguments) {
            self.successor = Some(pid);
            return true;
        }
        if !kernel.late {
            kernel.late = true;
            say(format_args!(
                "kernel {pid} has closed its line and does not end; replacing it"
            ));
            let _ = kill(kernel.pid, Signal::SIGKILL);
        }
        false
    }

    /// Receives the last messages of dead kernels, until end of file or deadline.
    pub(super) fn hear_last_words(&mut self) {
        let now = Instant::now();
        let mut open = Vec::new();
        for (socket, until) in std::mem::take(&mut self.ended) {
            let end = loop {
                match receive(socket.as_fd()) {
                    Heard::Message(message, descriptors) => self.obey(message, descriptors, false),
                    Heard::Nothing => break false,
                    Heard::End => break true,
                }
            };
            if end {
                continue;
            }
            if now < until {
                open.push((socket, until));
                continue;
            }
            // After the deadline the line is closed: a child that has not registered by now cannot
            // register any more, and never execs.
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Read);
            while let Heard::Message(message, descriptors) = receive(socket.as_fd()) {
                self.obey(message, descriptors, false);
            }
        }
        self.ended.extend(open);
    }

    /// Decides who is the keeper after the process that was to take this keeper's place has ended.
    /// Its kernel learns that by the answer or by the end of the line: without a dismissal this
    /// keeper stays.
    pub(super) fn successor_ended(&mut self, successor: Kernel, outcome: Outcome) {
        let Kernel { socket, late, .. } = successor;
        // A dismissal that is sent from now on does not arrive.
        let _ = shutdown(socket.as_raw_fd(), Shutdown::Read);
        let mut dismissed = false;
        while let Heard::Message(message, descriptors) = receive(socket.as_fd()) {
            dismissed |= message == ToKeeper::Dismiss;
            self.obey(message, descriptors, false);
        }
        if dismissed {
            self.dismissed = Some((socket, None));
            return;
        }
        say(format_args!(
            "the process that was to take this keeper's place {}; staying",
            how(outcome)
        ));
        // Its kernel, which is a child of this process now, ends when it reads that. One that
        // stands still would keep copies of everything unnoticed, so it is killed.
        for pid in process::children() {
            if has_title(pid, KERNEL_TITLE, &self.arguments) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        self.program.verdict = Some(if late {
            Verdict::Late
        } else {
            Verdict::Ended(outcome)
        });
        self.start_at = Instant::now();
    }

    /// Whether the next keeper's kernel has dismissed this one. If so, that kernel has been told
    /// everything only this keeper knew, and the service manager which process to watch instead.
    pub(super) fn takes_leave(&mut self) -> bool {
        let Some((line, next)) = self.dismissed.take() else {
            return false;
        };
        // What has ended by now is waited for here: its exit would be lost otherwise.
        self.reap();
        self.successor = next.map(Pid::as_raw);
        if let Some(next) = self.successor {
            notify::tell(self.notify_socket.as_deref(), "", next);
        }
        let wait = TimeVal::milliseconds(LEAVE_LIMIT.as_millis().try_into().unwrap_or(i64::MAX));
        let _ = setsockopt(&line, sockopt::SendTimeout, &wait);
        let exits = self
            .exits
            .iter()
            .map(|(serial, (status, _))| ToKernel::Exit {
                serial: *serial,
                status: *status,
            });
        let signals = self.signals.iter().map(|number| ToKernel::Signal(*number));
        for message in exits.chain(signals).chain([ToKernel::Dismissed]) {
            // A kernel that is gone finds out from the system what it can.
            if message::send(&line, &message.encode(), &[], MsgFlags::empty()).is_err() {
                break;
            }
        }
        true
    }

    /// Does what a message says; `live` if it comes from the kernel that runs, not from one that
    /// has died since.
    fn obey(&mut self, message: ToKeeper, descriptors: Vec<OwnedFd>, live: bool) {
        let kernel = self.kernel.as_mut().filter(|_| live);
        match message {
            ToKeeper::Put(keys) => self.kept.extend(keys.into_iter().zip(descriptors)),
            ToKeeper::Drop(keys) => keys.into_iter().for_each(|key| self.drop_copy(key)),
            ToKeeper::Register { serial, pid } => {
                if let Some(pidfd) = descriptors.into_iter().next() {
                    self.kept.insert(Key::new(Kind::PIDFD, serial), pidfd);
                    self.pids.insert(serial, pid);
                    self.serials.insert(pid, serial);
                }
            }
            ToKeeper::Confirm(serial) => {
                self.exits.remove(&serial);
            }
            ToKeeper::Fetch(after) if live => self.on_fetch(after),
            ToKeeper::Serving if live => self.on_serving(),
            ToKeeper::Pong => {
                if let Some(kernel) = kernel {
                    kernel.asked = None;
                }
            }
            // A program that has not served decides nothing.
            ToKeeper::Exiting(code) => {
                if !self.program.is_tried() {
                    self.exit_code = Some(code);
                }
            }
            // From here on the kernel has only so long until it serves.
            ToKeeper::Try => {
                if let (Some(kernel), Some(program)) = (kernel, descriptors.into_iter().next()) {
                    kernel.begins_anew();
                    self.program.try_now(program);
                }
            }
            ToKeeper::Untried => {
                if let Some(kernel) = kernel {
                    kernel.serving = true;
                    kernel.succeeds = false;
                }
                self.program.untried();
            }
            // From here on the kernel has only so long until this keeper may go.
            ToKeeper::Succeed => {
                if let Some(kernel) = kernel {
                    kernel.succeeds = true;
                    kernel.begins_anew();
                    self.program.verdict = None;
                }
            }
            ToKeeper::Dismiss => {
                if let Some(kernel) = self.kernel.take_if(|kernel| live && kernel.succeeds) {
                    self.dismissed = Some((kernel.socket, Some(kernel.pid)));
                }
            }
            ToKeeper::Exit { serial, status } => {
                self.exits.insert(serial, (status, false));
            }
            ToKeeper::Signal(number) => self.signals.push(number),
            ToKeeper::Able(bits) if live && bits & ABLE_TO_INHERIT != 0 => {
                let program = self.program.tried().or(self.kept.get(&PROGRAM));
                self.able = program.and_then(|program| program.try_clone().ok());
            }
            // From a kernel that has died since these come too late.
            ToKeeper::Fetch(_) | ToKeeper::Serving | ToKeeper::Able(_) => {}
        }
    }

    /// Lets a copy go, and with a pidfd all that is known of its process.
    fn drop_copy(&mut self, key: Key) {
        self.kept.remove(&key);
        if key.kind == Kind::PIDFD {
            self.exits.remove(&key.id);
            if let Some(pid) = self.pids.remove(&key.id)
                && self.serials.get(&pid) == Some(&key.id)
            {
                self.serials.remove(&pid);
            }
        }
    }

    /// A kernel wants what follows `after`, or everything.
    fn on_fetch(&mut self, after: Option<Key>) {
        let Some(kernel) = &mut self.kernel else {
            return;
        };
        kernel.fetch = Some(after);
        if after.is_some() {
            return;
        }
        // What was told to an earlier program in that process is told again.
        for (_, sent) in self.exits.values_mut() {
            *sent = false;
        }
        // A kernel that fetches again and again does not get more time.
        if kernel.serving {
            kernel.started = Instant::now();
        }
        kernel.serving = false;
        kernel.asked = None;
    }

    /// The kernel serves: it is told what has come meanwhile, and its program is the one to start.
    fn on_serving(&mut self) {
        let Some(kernel) = &mut self.kernel else {
            return;
        };
        let now = Instant::now();
        kernel.serving = true;
        kernel.serving_since = now;
        kernel.next_ping = now + scaled(PING_INTERVAL);
        // What came while nobody could hear it is one request, however often it was made: two mean
        // something else.
        let mut heard = std::collections::BTreeSet::new();
        self.signals.retain(|number| heard.insert(*number));
        self.failures = 0;
        self.served = true;
        // Nobody goes on in this keeper's place any more, not even where the kernel's program knows
        // nothing of that.
        understudy::may_go_on(&mut self.kept);
        self.understudy = None;
        if let Some(program) = self.program.serves() {
            let before = self.kept.remove(&PROGRAM);
            self.program.keep_for_probation(before, &program);
            self.kept.insert(PROGRAM, program);
        }
        if !self.announced {
            self.announced = true;
            self.say_ready("ready");
            let own = std::process::id().cast_signed();
            notify::tell(self.notify_socket.as_deref(), "READY=1\n", own);
        }
    }

    pub(super) fn has_outgoing(&self, kernel: &Kernel) -> bool {
        if self.mute_until.is_some_and(|until| Instant::now() < until) {
            return false;
        }
        kernel.fetch.is_some()
            || kernel.ping_due
            || (kernel.serving
                && (!self.signals.is_empty() || self.exits.values().any(|(_, sent)| !sent)))
    }

    /// Sends what is due, as far as the socket has room.
    pub(super) fn speak(&mut self) {
        let Some(kernel) = &mut self.kernel else {
            return;
        };
        let socket = kernel.socket.as_fd();
        if let Some(after) = kernel.fetch {
            let range = match after {
                None => self.kept.range(..),
                Some(key) => self
                    .kept
                    .range((std::ops::Bound::Excluded(key), std::ops::Bound::Unbounded)),
            };
            let (keys, fds): (Vec<Key>, Vec<BorrowedFd<'_>>) = range
                .take(MAX_KEYS)
                .map(|(key, fd)| (*key, fd.as_fd()))
                .unzip();
            let sent = if keys.is_empty() {
                // An earlier version passes over what it does not know.
                send(socket, &ToKernel::Able(ABLE_TO_LEAVE), &[])
                    .and_then(|()| send(socket, &ToKernel::Fetched(self.program.verdict), &[]))
            } else {
                send(socket, &ToKernel::Entries(keys), &fds)
            };
            match sent {
                Ok(()) => kernel.fetch = None,
                Err(Errno::EAGAIN) => return,
                Err(_) => {
                    self.mute_until = Some(Instant::now() + SEND_PAUSE);
                    return;
                }
            }
        }
        if kernel.ping_due && send(socket, &ToKernel::Ping, &[]).is_ok() {
            kernel.ping_due = false;
            kernel.asked = Some(Instant::now());
        }
        if !kernel.serving {
            return;
        }
        for (serial, (status, sent)) in self.exits.iter_mut().filter(|(_, (_, sent))| !sent) {
            let message = ToKernel::Exit {
                serial: *serial,
                status: *status,
            };
            if send(socket, &message, &[]).is_err() {
                return;
            }
            *sent = true;
            failpoint::reach("exit.passed_on");
        }
        while let Some(number) = self.signals.first() {
            if send(socket, &ToKernel::Signal(*number), &[]).is_err() {
                return;
            }
            self.signals.remove(0);
        }
    }

    /// Tells the process that waits for the daemon that it serves, or why it does not.
    pub(super) fn say_ready(&mut self, text: &str) {
        if let Some(ready) = self.ready.take() {
            // That process may have gone, which does not matter.
            let _ = nix::unistd::write(&ready, text.as_bytes());
        }
    }
}

/// Whether a process is in the role that shows this title, of the daemon with these arguments:
/// another daemon may run among this one's workers.
pub(super) fn has_title(pid: i32, title: &str, arguments: &[CString]) -> bool {
    let mut expected = title.as_bytes().to_vec();
    expected.push(0);
    for argument in arguments {
        expected.extend(argument.as_bytes_with_nul());
    }
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == expected)
}

enum Heard {
    Message(ToKeeper, Vec<OwnedFd>),
    Nothing,
    End,
}

fn receive(socket: BorrowedFd<'_>) -> Heard {
    let mut buffer = [0u8; MAX_MESSAGE];
    loop {
        match message::receive(socket, &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(got) if got.length == 0 => return Heard::End,
            Ok(got) => {
                if let Some(message) = ToKeeper::decode(&buffer[..got.length]) {
                    return Heard::Message(message, got.descriptors);
                }
            }
            Err(Errno::EAGAIN) => return Heard::Nothing,
            Err(_) => return Heard::End,
        }
    }
}

fn send(
    socket: BorrowedFd<'_>,
    message: &ToKernel,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    message::send(
        socket,
        &message.encode(),
        descriptors,
        MsgFlags::MSG_DONTWAIT,
    )
    .map(drop)
}
