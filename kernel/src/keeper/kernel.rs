//! The kernel as the keeper sees it: how it is started, watched and replaced.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{ForkResult, Pid};
use papa_test_hooks::failpoint;

use super::talk::{REPLACED_AFTER, has_title};
use super::wire::Key;
use super::{
    FIRST_START_TRIES, Keeper, PING_INTERVAL, PROGRAM, RESTART_DELAY, TITLE, how, manifest,
    program, say,
};
use crate::sys::pidfd::{Outcome, WaitStatus};
use crate::sys::{message, process};
use papa_test_hooks::patience::scaled;

/// How long a serving kernel may leave a question unanswered.
const KERNEL_STUCK: Duration = Duration::from_secs(20);
/// How long the next kernel waits for the last words of a dead one: a child of it may still be
/// between vfork and exec.
const LAST_WORDS: Duration = Duration::from_secs(2);

const KERNEL_C_TITLE: &CStr = c"papa: kernel";

/// A running kernel, as the keeper sees it.
pub(super) struct Kernel {
    pub pid: Pid,
    pub socket: OwnedFd,
    pub started: Instant,
    pub serving: bool,
    /// Since when it serves, if it does.
    pub serving_since: Instant,
    /// When the oldest unanswered question was asked.
    pub asked: Option<Instant>,
    pub next_ping: Instant,
    /// Answer to a fetch that the socket had no room for yet.
    pub fetch: Option<Option<Key>>,
    pub ping_due: bool,
    /// Since when its line is closed although it has not ended.
    pub silent_since: Option<Instant>,
    /// It was killed because it took too long.
    pub late: bool,
    /// It becomes the next keeper, with a kernel of its own.
    pub succeeds: bool,
}

impl Kernel {
    /// A kernel that was started now.
    fn new(pid: Pid, socket: OwnedFd, now: Instant) -> Self {
        Self {
            pid,
            socket,
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
        }
    }

    /// Gives it the time again that a kernel has until it serves.
    pub(super) fn begins_anew(&mut self) {
        self.serving = false;
        self.started = Instant::now();
        self.asked = None;
    }

    /// Whether it has not answered, or not come to serve, for longer than it may.
    fn is_late(&self, now: Instant, recovery_limit: Duration) -> bool {
        if self.serving {
            let asked = self.asked;
            asked.is_some_and(|asked| now >= asked + scaled(KERNEL_STUCK))
        } else {
            now >= self.started + recovery_limit
        }
    }

    /// When it has to be looked at next; `recovery_limit` is how long it may take until it serves.
    /// None once it is killed and has closed its line: SIGCHLD reports its end.
    pub(super) fn deadline(&self, recovery_limit: Duration) -> Option<Instant> {
        if let Some(since) = self.silent_since {
            return (!self.late).then_some(since + REPLACED_AFTER);
        }
        Some(if self.serving {
            let stuck = self.asked.map(|asked| asked + scaled(KERNEL_STUCK));
            stuck.map_or(self.next_ping, |stuck| stuck.min(self.next_ping))
        } else {
            self.started + recovery_limit
        })
    }
}

impl Keeper {
    /// Starts a kernel, or sets when that is tried again.
    pub(super) fn start_kernel(&mut self) {
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
                self.kernel = Some(Kernel::new(child, ours, now));
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
    pub(super) fn check_on_kernel(&mut self) {
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
        if !kernel.is_late(now, limit) {
            return;
        }
        if process::is_traced(kernel.pid) {
            kernel.asked = Some(now);
            kernel.started = now;
            return;
        }
        let pid = kernel.pid.as_raw();
        // A child that has not come to its exec shows this keeper's own title.
        if !kernel.succeeds && process::has_executed(pid) && has_title(pid, TITLE, arguments) {
            // It has taken this keeper's place, and its stand-in still holds the line: `is_replaced`
            // decides.
            kernel.silent_since = Some(now);
            return;
        }
        say(format_args!(
            "kernel {} does not answer; replacing it",
            kernel.pid
        ));
        // Its number cannot be reused: it is our child and not waited for.
        let _ = kill(kernel.pid, Signal::SIGKILL);
        kernel.asked = Some(now);
        kernel.started = now;
        kernel.late = true;
    }

    /// Deals with the end of the kernel, which has been waited for.
    pub(super) fn kernel_ended(&mut self, status: WaitStatus) {
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
        let goes_on = if kernel.serving {
            self.serving_kernel_ended(kernel.serving_since, status.outcome)
        } else {
            self.failed_to_serve(kernel.late, status.outcome)
        };
        if !goes_on {
            return;
        }
        say(format_args!(
            "kernel {} {how}; starting another",
            kernel.pid
        ));
        self.say_if_holding();
    }

    /// Decides when a kernel that has served gets a successor. False if the program before is gone
    /// back to, which has been said.
    fn serving_kernel_ended(&mut self, since: Instant, outcome: Outcome) -> bool {
        let now = Instant::now();
        self.failures = 0;
        let served = now.saturating_duration_since(since);
        let before = self.program.after_end(outcome, served);
        self.start_at = if before.is_none() && self.program.quick_ends > 0 {
            now + self.restart_delay()
        } else {
            now
        };
        let Some(before) = before else { return true };
        say(format_args!(
            "the new program {} soon after it served; going back to the one before",
            how(outcome)
        ));
        self.kept.insert(PROGRAM, before);
        false
    }

    /// Counts a kernel that has never served, and decides when it gets a successor. False if a
    /// daemon that holds nothing gives up.
    fn failed_to_serve(&mut self, was_late: bool, outcome: Outcome) -> bool {
        let how = how(outcome);
        self.failures += 1;
        self.program.last_failure.clone_from(&how);
        self.program.last_killed = !was_late
            && matches!(outcome, Outcome::Signal { number, .. } if number == Signal::SIGKILL as i32);
        self.start_at = Instant::now() + self.restart_delay();
        if !self.served && !self.holds() && self.failures >= FIRST_START_TRIES {
            self.say_ready(&format!("the kernel {how} before it could serve"));
            self.exit_code = Some(1);
            return false;
        }
        true
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    const RECOVERY: Duration = Duration::from_secs(20);

    #[test]
    fn a_killed_kernel_that_did_not_end_kept_its_keeper_awake() {
        let now = Instant::now();
        let (ours, _theirs) = message::seqpacket_pair().unwrap();
        let mut kernel = Kernel::new(Pid::from_raw(1), ours, now);
        assert_eq!(kernel.deadline(RECOVERY), Some(now + RECOVERY));
        // Its line is closed: nothing else counts.
        kernel.silent_since = Some(now);
        assert_eq!(kernel.deadline(RECOVERY), Some(now + REPLACED_AFTER));
        kernel.late = true;
        assert_eq!(kernel.deadline(RECOVERY), None);
    }
}
