//! `papactl up --foreground` as process 1 of a container: everything in the container ends when
//! this process does.
//!
//! Owns the manager's process, the signals on their way to it, and every process that nobody else
//! waits for. Nothing is killed unasked: a manager that dies is started again, and one that was
//! quit leaves this process waiting while the kernel has workers.
//! Invariant: there is no other waiter in this process, and no second thread.
//! Source: `pid_namespaces(7)`, `waitid(2)`.

use std::os::unix::process::CommandExt;
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, getpid};

use crate::cli::Common;
use crate::cli::args::UpArgs;
use crate::commands::{CommandError, kernel, note, programs, quit};
use papa_config::Config;
use papa_control::client::ManagerError;
use papa_control::message::Command;
use papa_system::runtime_dir::RuntimeDir;
use papa_system::sys;

/// What is passed on to the manager.
const FORWARDED: [Signal; 6] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];
/// Between two starts of a manager that dies.
const START_AGAIN: Duration = Duration::from_secs(1);
/// Looks for a kernel that answers wrongly, and the pause between them.
const LOOKS: u32 = 10;
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Starts of a manager that dies while it stops everything.
const MAX_STOPS: u32 = 3;

/// Whether everything ends with us.
pub(super) fn is_first_process() -> bool {
    getpid() == Pid::from_raw(1)
}

/// Keeps signals until [`run`] looks for them: process 1 loses what it neither handles nor blocks.
pub(super) fn hold_signals() -> Result<(), CommandError> {
    held()
        .thread_block()
        .map_err(|errno| CommandError::Output(errno.into()))
}

fn held() -> SigSet {
    FORWARDED.into_iter().chain([Signal::SIGCHLD]).collect()
}

/// Runs the manager until everything is stopped.
pub(super) fn run(common: &Common, args: &UpArgs, config: &Config) -> Result<(), CommandError> {
    let mut init = Init {
        common,
        args,
        config,
        manager: None,
        started: Instant::now(),
        ending: None,
        stops: 0,
    };
    init.start()?;
    let signals = held();
    loop {
        let signal = signals
            .wait()
            .map_err(|errno| CommandError::Output(errno.into()))?;
        let over = match signal {
            Signal::SIGCHLD => init.reap()?,
            signal => init.pass_on(signal)?,
        };
        if over {
            return Ok(());
        }
    }
}

struct Init<'a> {
    common: &'a Common,
    args: &'a UpArgs,
    config: &'a Config,
    manager: Option<Child>,
    started: Instant,
    /// The signal to end that was passed on.
    ending: Option<Signal>,
    /// How often a manager was asked to end.
    stops: u32,
}

impl Init<'_> {
    fn start(&mut self) -> Result<(), CommandError> {
        let (program, mut command) = programs::foreground_manager(self.args, self.config)?;
        // Until it has its handlers, signals wait.
        sys::hold_signals(&mut command);
        // A Ctrl-C reaches this process alone, which passes it on: twice would mean haste.
        let child = command
            .process_group(0)
            .spawn()
            .map_err(|source| programs::ProgramError::Start { program, source })?;
        self.manager = Some(child);
        self.started = Instant::now();
        Ok(())
    }

    /// True when everything is over.
    fn pass_on(&mut self, signal: Signal) -> Result<bool, CommandError> {
        let ends = matches!(signal, Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT);
        if self.manager.is_none() {
            return if ends {
                self.stop_without_manager(signal)
            } else {
                Ok(false)
            };
        }
        if ends {
            self.ending = Some(signal);
        }
        self.send(signal);
        Ok(false)
    }

    fn send(&self, signal: Signal) {
        let Some(pid) = self
            .manager
            .as_ref()
            .and_then(|child| i32::try_from(child.id()).ok())
        else {
            return;
        };
        // It is our child and was not waited for, so the number is still its own. It may have
        // ended; then there is nobody to tell.
        let _ = kill(Pid::from_raw(pid), signal);
    }

    /// The manager was quit before: another one may run by now, else one is started that stops what
    /// is left.
    fn stop_without_manager(&mut self, signal: Signal) -> Result<bool, CommandError> {
        match quit::end_manager(self.common, Command::Shutdown) {
            Ok(_) => Ok(!self.kernel_has_work()),
            Err(CommandError::Manager(ManagerError::NotRunning { .. })) => {
                self.start()?;
                self.ending = Some(signal);
                self.send(signal);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Waits for every process that has ended: ours, and those of others whose parents are gone.
    /// True when everything is over.
    fn reap(&mut self) -> Result<bool, CommandError> {
        let mut ended = None;
        while let Some(pid) = next_ended() {
            match &mut self.manager {
                Some(child) if i32::try_from(child.id()) == Ok(pid.as_raw()) => {
                    ended = child.wait().ok();
                    self.manager = None;
                }
                _ => {
                    let _ = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
                }
            }
        }
        match ended {
            Some(status) => self.manager_ended(status),
            None => Ok(self.manager.is_none() && !self.kernel_has_work()),
        }
    }

    fn manager_ended(&mut self, status: ExitStatus) -> Result<bool, CommandError> {
        if self.ending.is_some() && (status.success() || self.args.keep_workers) {
            return Ok(true);
        }
        let has_work = self.kernel_has_work();
        if !has_work {
            return match status.success() {
                true => Ok(true),
                false => Err(failed(status)),
            };
        }
        if self.ending.is_some() {
            self.stops += 1;
            if self.stops >= MAX_STOPS {
                return Err(failed(status));
            }
            note(&format!(
                "papactl: the manager ended early ({status}); stopping what is left"
            ));
        } else if status.success() {
            note(
                "papactl: the manager has ended and the workers run on; `papactl up FILE` takes them over, TERM stops them",
            );
            return Ok(false);
        } else {
            note(&format!(
                "papactl: the manager ended ({status}); starting it again, the workers run on"
            ));
            thread::sleep(START_AGAIN.saturating_sub(self.started.elapsed()));
        }
        self.start()?;
        if let Some(signal) = self.ending {
            self.send(signal);
        }
        Ok(false)
    }

    /// Whether the kernel runs anything still.
    fn kernel_has_work(&self) -> bool {
        let endpoint = self.config.kernel.as_ref();
        let places = kernel::candidates(&RuntimeDir::locate(), endpoint);
        for _ in 0..LOOKS {
            match places.as_ref().map(|places| kernel::find(places)) {
                Ok(Ok(kernel)) => return kernel.is_some_and(|kernel| kernel.running > 0),
                // It may be on its way out.
                Ok(Err(_)) => thread::sleep(LOOK_AGAIN),
                Err(_) => break,
            }
        }
        // One that cannot be asked may have work.
        true
    }
}

fn failed(status: ExitStatus) -> CommandError {
    CommandError::Failed(format!("the manager ended: {status}"))
}

/// A child that has ended, which stays to be waited for.
fn next_ended() -> Option<Pid> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    loop {
        match waitid(Id::All, flags) {
            Ok(WaitStatus::StillAlive) => return None,
            Ok(status) => return status.pid(),
            Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
}
