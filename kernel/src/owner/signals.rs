//! What the keeper and signals ask of the kernel, and how it ends.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use papa_protocol::json::push::{Push, Shutdown};
use papa_protocol::json::request::KernelUpgrade;
use papa_test_hooks::failpoint;
use tracing::{error, info, warn};

use super::{KEEPER_SILENCE, Owner};
use crate::change::takeover;
use crate::client::exchange::SessionId;
use crate::keeper::link::is_gone;
use crate::keeper::understudy::{self, Side};
use crate::keeper::wire::{Key, ToKeeper, ToKernel};
use crate::processes::exits::on_exit_told;
use crate::sys::clock::now_us;
use crate::sys::pidfd::{pidfd_open, pidfd_send_signal};
use crate::world::deadline::Deadline;
use papa_test_hooks::patience::scaled;

/// How long a keeper that was silent for an interval gets before it is replaced.
const KEEPER_GRACE: Duration = Duration::from_secs(15);
/// A signal that comes from both sides within this time is one request: the keeper passes signals
/// on, and `pkill papa` hits both processes.
const SAME_REQUEST: Duration = Duration::from_millis(500);
/// How long sessions may take to read that the kernel ends.
const FAREWELL_LIMIT: Duration = Duration::from_secs(1);
/// A second TERM within this ends the kernel though processes are left.
const SHUTDOWN_WINDOW: Duration = Duration::from_secs(5);

impl Owner {
    pub(super) fn on_keeper(&mut self) {
        loop {
            match self.world.link.try_receive() {
                Ok(Some(message)) => {
                    self.keeper.last_word = Instant::now();
                    self.keeper.suspected = false;
                    self.on_told(&message);
                }
                Err(Errno::EAGAIN) => return,
                Ok(None) | Err(_) => return self.lose_keeper("it has died"),
            }
        }
    }

    /// Handles a message of the keeper, or of one that was replaced.
    fn on_told(&mut self, message: &ToKernel) {
        match message {
            ToKernel::Ping => {
                let told = self.world.link.tell(&ToKeeper::Pong);
                self.check_keeper(told);
            }
            ToKernel::Exit { serial, status } => {
                let (world, readers) = (&mut self.world, &mut self.readers);
                on_exit_told(world, readers, *serial, *status, now_us());
                self.notice_keeper();
            }
            ToKernel::Signal(number) => self.on_signal(i32::from(*number), true),
            ToKernel::Entries(_)
            | ToKernel::Fetched(_)
            | ToKernel::Dismissed
            | ToKernel::Able(_) => {}
        }
    }

    pub(super) fn on_keeper_silence(&mut self, now: Instant) {
        let pid = self.world.link.keeper();
        let due = self.keeper.last_word + scaled(KEEPER_SILENCE);
        if self.world.link.is_lost() {
            return;
        }
        let next = if now < due {
            due
        } else if crate::sys::process::is_traced(pid) {
            self.keeper.last_word = now;
            now + scaled(KEEPER_SILENCE)
        } else if self.keeper.suspected {
            return self.lose_keeper("it does not answer");
        } else {
            // It gets another interval, since the whole machine may have stood still.
            self.keeper.suspected = true;
            now + scaled(KEEPER_GRACE)
        };
        self.world.agenda.at(next, Deadline::KeeperSilence);
    }

    /// Takes the place of a keeper that the world could not reach.
    pub(crate) fn notice_keeper(&mut self) {
        if self.world.take_keeper_gone() {
            self.lose_keeper("it cannot be reached");
        }
    }

    /// Takes the keeper's place if a message was not delivered, which means that it is gone or
    /// stuck.
    pub(crate) fn check_keeper(&mut self, told: Result<(), Errno>) {
        if is_gone(told) {
            self.lose_keeper("it cannot be reached");
        }
    }

    /// The same at once, with what is `handed` over: for when connections have stopped already or
    /// none is served yet.
    pub(crate) fn check_keeper_with(&mut self, told: Result<(), Errno>, handed: &[(Key, OwnedFd)]) {
        if is_gone(told) {
            self.take_keepers_place("it cannot be reached", handed);
        }
    }

    /// Begins to take the place of a keeper that is gone, or is stuck and killed now. Connections
    /// are stopped first, so that they can go along. The wait is short, since this process alone
    /// holds everything meanwhile.
    pub(crate) fn lose_keeper(&mut self, why: &str) {
        if self.world.link.is_lost() {
            return;
        }
        // The copy comes first: from then on two processes hold everything.
        if self.double() {
            self.take_keepers_place("the process that was to has died as well", &[]);
        }
        warn!(
            keeper = self.world.link.keeper().as_raw(),
            why, "losing the keeper"
        );
        self.world.link.end_keeper();
        self.world.link.lose();
        self.hear_last_words();
        self.world.poller.remove(self.world.link.as_fd());
        self.freeze_orphaned();
    }

    /// Makes a copy of this process that waits while there is no keeper. Returns true in the copy,
    /// when the original has died.
    fn double(&mut self) -> bool {
        if std::mem::replace(&mut self.keeper.doubled, true) {
            return false;
        }
        match understudy::prepare() {
            Ok(Side::Original(understudy)) => {
                self.keeper.understudy = Some(understudy);
                failpoint::reach("understudy.waits");
                false
            }
            Ok(Side::Copy) => true,
            Err(errno) => {
                error!(%errno, "cannot start the stand-in process; nothing else holds the descriptors until there is a keeper");
                false
            }
        }
    }

    /// Handles the keeper's last messages: it alone may know of an exit.
    fn hear_last_words(&mut self) {
        while let Ok(Some(message)) = self.world.link.try_receive() {
            match message {
                ToKernel::Exit { .. } | ToKernel::Signal(_) => self.on_told(&message),
                _ => {}
            }
        }
    }

    /// Execs into the keeper's role with every descriptor and what is `handed` over.
    pub(crate) fn take_keepers_place(&mut self, why: &str, handed: &[(Key, OwnedFd)]) -> ! {
        // The copy does the same as the original.
        let _ = self.double();
        warn!(
            keeper = self.world.link.keeper().as_raw(),
            why, "taking the keeper's place"
        );
        self.world.link.end_keeper();
        self.keeper.spare.clear();
        failpoint::reach("takeover.alone");
        let errno = takeover::become_keeper(&self.holdings(), handed);
        error!(%errno, "cannot take the keeper's place");
        // Going on without a keeper would break the promise at the next
        // fault without anybody knowing; but ending would break it now.
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let errno = takeover::become_keeper(&self.holdings(), handed);
            error!(%errno, "cannot take the keeper's place");
        }
    }

    pub(super) fn on_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            self.on_signal(info.ssi_signo.cast_signed(), false);
        }
    }

    /// Deals with a signal sent to this process or passed on by the keeper.
    fn on_signal(&mut self, number: i32, passed_on: bool) {
        match Signal::try_from(number) {
            Ok(signal @ (Signal::SIGTERM | Signal::SIGINT)) => {
                self.on_terminate(signal, passed_on);
            }
            Ok(Signal::SIGUSR1) => {
                crate::logging::reopen();
                info!("log reopened on request");
            }
            Ok(Signal::SIGUSR2) => {
                if let Err(error) = self.ask_upgrade(None, KernelUpgrade::default()) {
                    error!(%error, "not changing the program");
                }
            }
            _ => {}
        }
    }

    fn on_terminate(&mut self, signal: Signal, passed_on: bool) {
        let now = Instant::now();
        if self.ending.last_term.is_some_and(|(last, other)| {
            other != passed_on && now.duration_since(last) < SAME_REQUEST
        }) {
            return;
        }
        let again = self
            .ending
            .last_term
            .is_some_and(|(last, _)| now.duration_since(last) < SHUTDOWN_WINDOW);
        self.ending.last_term = Some((now, passed_on));
        let running = self
            .world
            .table
            .processes()
            .filter(|row| row.exit.is_none())
            .count();
        let holders: BTreeSet<SessionId> = self
            .world
            .claims
            .values()
            .map(|holder| holder.session)
            .collect();
        let managed = self.world.config.init && !holders.is_empty();
        if again || (running == 0 && !managed) {
            info!(running, "ending");
            self.exit(0);
        }
        if self.world.config.init {
            return self.end_as_init(signal, &holders);
        }
        warn!(
            running,
            "processes are left, so the kernel stays; the same signal again within 5 s ends it and leaves them"
        );
        self.push_shutdown(signal, &holders);
    }

    fn push_shutdown(&mut self, signal: Signal, holders: &BTreeSet<SessionId>) {
        for id in holders {
            let mut line = bytes::BytesMut::new();
            Push::Shutdown(Shutdown {
                signal: signal as i32,
                ends: false,
            })
            .encode(&mut line);
            self.readers.push(*id, line);
        }
    }

    /// Begins the end of process 1, which ends every process. Claim holders are told, by a push and
    /// by the signal, and end their processes in their order, however long that takes. Processes
    /// that are left when the last holder has gone are asked to end; without a holder that is at
    /// once.
    fn end_as_init(&mut self, signal: Signal, holders: &BTreeSet<SessionId>) {
        self.ending.as_init = Some(signal as i32);
        info!(
            managers = holders.len(),
            "ending as process 1: managers are asked first, then every process; the same signal again within 5 s ends at once"
        );
        self.push_shutdown(signal, holders);
        for id in holders {
            let pid = self
                .readers
                .sessions
                .get(id)
                .and_then(|session| session.peer.pid);
            // The process is connected, so its number cannot have been reused.
            if let Some(pidfd) = pid.and_then(|pid| pidfd_open(pid).ok()) {
                let _ = pidfd_send_signal(&pidfd, signal as i32);
            }
        }
        self.end_processes_as_init();
    }

    /// Asks every process to end, if this is process 1 that was asked to end and no claim is held.
    pub(super) fn end_processes_as_init(&mut self) {
        let Some(signal) = self.ending.as_init.filter(|_| self.world.claims.is_empty()) else {
            return;
        };
        for live in self.world.live.values() {
            if let Some(pidfd) = &live.pidfd {
                let _ = pidfd_send_signal(pidfd, signal);
            }
        }
    }

    // ---- ending --------------------------------------------------------

    /// Begins the end of an idle kernel, which the session `asker` has asked for. No new caller is
    /// served; the other sessions are told and closed. A request in between does not cancel the
    /// end.
    pub(crate) fn ask_exit(&mut self, asker: SessionId) {
        let until = Instant::now() + FAREWELL_LIMIT;
        self.ending.until = Some(until);
        self.world.agenda.at(until, Deadline::Exit);
        if let Some(server) = &self.server {
            server.pause();
        }
        for (id, session) in &mut self.readers.sessions {
            if *id != asker {
                session.say_farewell();
            }
        }
    }

    /// Whether the kernel is about to end because a client asked for it.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.until.is_some()
    }

    pub(super) fn exit_if_asked(&mut self) {
        if let Some(until) = self.ending.until
            && (self.readers.sessions.is_empty() || Instant::now() >= until)
        {
            info!("nothing left to hold; ending as requested");
            self.exit(0);
        }
        if self.ending.as_init.is_some()
            && self.world.claims.is_empty()
            && self.world.table.processes().all(|row| row.exit.is_some())
        {
            info!("managers and processes have ended; ending as requested");
            self.exit(0);
        }
    }

    fn exit(&mut self, code: u8) -> ! {
        let _ = self.world.link.tell(&ToKeeper::Exiting(code));
        self.world.config.remove_files();
        if let Some(groups) = &self.world.cgroups {
            groups.clear();
        }
        std::process::exit(i32::from(code));
    }
}
