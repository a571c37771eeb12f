//! Starts processes, and waits for slow starts without keeping other callers waiting.
//!
//! The kernel waits a moment for each start; nearly all are over by then. A start that takes
//! longer, because a file system does not answer, is checked at intervals and answered when its
//! result is known. One that takes too long is killed and refused.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use papa_test_hooks::failpoint;
use tracing::warn;

use super::Owner;
use crate::client::exchange::SessionId;
use crate::keeper::wire::{Key, Kind};
use crate::processes::exits::{give_up, undo_start};
use crate::processes::starts::{self, Streams};
use crate::sys::spawn::{self, Failure, Outcome, Started, Starting, Step};
use crate::verbs::process::Ready;
use crate::verbs::process_plan::Prepared;
use crate::verbs::{self, Asker, VerbError, refused};
use crate::world::deadline::Deadline;
use crate::world::reel::Reel;
use papa_test_hooks::patience::scaled;

/// How long a start is waited for before everything else goes on.
const PATIENCE: Duration = Duration::from_millis(50);
/// The same while another start hangs, probably for the same reason.
const SHORT_PATIENCE: Duration = Duration::from_millis(2);
/// Time between two checks of a start.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// How long a killed child is waited for.
const END_PATIENCE: Duration = Duration::from_millis(20);

/// One start.
#[derive(Debug)]
pub(crate) struct Start {
    asker: Asker,
    child: Starting,
    until: Instant,
    prepared: Prepared,
    streams: Streams,
}

impl Start {
    /// The child's number.
    pub(crate) fn pid(&self) -> i32 {
        self.child.pid
    }

    /// Where its output is to go.
    pub(crate) fn reel(&self) -> Option<&Reel> {
        self.streams.reel.as_ref()
    }

    /// What has to move if this process changes its role.
    pub(crate) fn descriptors(&self, serial: u64) -> impl Iterator<Item = (Key, &OwnedFd)> {
        let streams = &self.streams;
        [
            (Kind::PIDFD, self.child.pidfd()),
            (Kind::OUT, streams.out.as_ref()),
            (Kind::ERR, streams.err.as_ref()),
            (Kind::REEL, streams.reel.as_ref().map(Reel::file)),
        ]
        .into_iter()
        .filter_map(move |(kind, fd)| Some((Key::new(kind, serial), fd?)))
    }
}

impl Owner {
    /// Starts a process that a verb has prepared, and answers `asker` now or when the start is
    /// over.
    pub(super) fn start_process(&mut self, ready: Ready, asker: Asker) {
        let serial = ready.serial;
        let outcome = match self.keep(&ready.copies()) {
            Ok(()) => {
                failpoint::reach("spawn.kept");
                self.spawn(&ready)
                    .map_err(|failure| ready.prepared.explain(failure))
            }
            Err(errno) => Err(refused("tell the keeper", errno)),
        };
        let streams = Streams {
            out: ready.pipes.out,
            err: ready.pipes.err,
            reel: ready.reel,
        };
        let made = match outcome {
            Ok(Outcome::Started(child)) => {
                self.started(asker.session(), serial, child, streams);
                Ok((serial, true))
            }
            Ok(Outcome::Starting(child)) => {
                return self.start_later(serial, asker, child, ready.prepared, streams);
            }
            Err(error) => {
                undo_start(&mut self.world, serial);
                Err(error)
            }
        };
        self.answer_start(&asker, made);
    }

    /// Starts the child. A keeper that has died or is stuck is not the program's fault: then the
    /// child starts without being registered, since its pidfd goes along with everything else.
    fn spawn(&mut self, ready: &Ready) -> Result<Outcome, Failure> {
        let patience = if self.starting.is_empty() {
            PATIENCE
        } else {
            SHORT_PATIENCE
        };
        let Ready {
            serial,
            prepared,
            pipes,
            ..
        } = ready;
        let groups = self.world.cgroups.as_mut();
        let cgroup = groups.and_then(|groups| groups.group(*serial));
        let cgroup = cgroup.as_ref();
        let plan = prepared.plan(&self.world, *serial, pipes, cgroup);
        let failure = match spawn::start(plan, patience) {
            Err(failure) if failure.step == Step::Register && !self.world.link.is_lost() => failure,
            result => return result,
        };
        if !self.world.link.is_closed() && failure.errno != Errno::EAGAIN {
            return Err(failure);
        }
        self.lose_keeper("it cannot be reached");
        let plan = prepared.plan(&self.world, *serial, pipes, cgroup);
        spawn::start(plan, patience)
    }

    fn started(&mut self, session: SessionId, serial: u64, child: Started, streams: Streams) {
        starts::started(
            &mut self.world,
            &mut self.readers,
            session,
            serial,
            child,
            streams,
        );
    }

    /// Leaves a start that takes its time to be checked at intervals.
    fn start_later(
        &mut self,
        serial: u64,
        asker: Asker,
        child: Starting,
        prepared: Prepared,
        streams: Streams,
    ) {
        let now = Instant::now();
        let limit = child.deadline().saturating_duration_since(now);
        let start = Start {
            asker,
            until: now + scaled(limit),
            child,
            prepared,
            streams,
        };
        self.starting.insert(serial, start);
        self.look_again(serial, now);
    }

    fn look_again(&mut self, serial: u64, now: Instant) {
        let deadline = Deadline::Starting(serial);
        self.world.agenda.at(now + LOOK_INTERVAL, deadline);
    }

    /// Checks how far a start has come.
    pub(super) fn on_starting(&mut self, serial: u64, now: Instant) {
        let Some(mut start) = self.starting.remove(&serial) else {
            return;
        };
        match start.child.look() {
            None if now < start.until => {
                self.starting.insert(serial, start);
                self.look_again(serial, now);
            }
            None => self.give_up_start(serial, start),
            Some(result) => self.end_start(serial, start, result),
        }
    }

    fn end_start(&mut self, serial: u64, start: Start, result: Result<Started, Failure>) {
        let made = match result {
            Ok(started) => {
                self.started(start.asker.session(), serial, started, start.streams);
                Ok((serial, true))
            }
            Err(failure) => {
                undo_start(&mut self.world, serial);
                Err(start.prepared.explain(failure))
            }
        };
        self.answer_start(&start.asker, made);
    }

    /// Ends a start that takes too long.
    fn give_up_start(&mut self, serial: u64, mut start: Start) {
        let pid = start.child.pid;
        warn!(
            serial,
            pid, "program does not start in time; killing the process"
        );
        let late = start.prepared.explain(Failure {
            step: Step::Late,
            errno: Errno::ETIMEDOUT,
        });
        let pidfd = start.child.give_up();
        match (start.child.wait(END_PATIENCE), pidfd) {
            (Some(Err(_)), _) => undo_start(&mut self.world, serial),
            // It has started at the last moment, or the kill does not end it before the file system
            // answers. It is given up like a process that was removed.
            (_, Some(pidfd)) => {
                self.started(
                    start.asker.session(),
                    serial,
                    Started {
                        pid,
                        pidfd,
                        outside: None,
                    },
                    start.streams,
                );
                give_up(&mut self.world, &mut self.readers, serial);
            }
            (_, None) => undo_start(&mut self.world, serial),
        }
        self.answer_start(&start.asker, Err(late));
    }

    fn answer_start(&mut self, asker: &Asker, made: Result<(u64, bool), VerbError>) {
        // A session that has gone meanwhile watches nothing.
        if self.readers.sessions.contains_key(&asker.session()) {
            let reply = verbs::answer_made(&mut self.world, &mut self.readers, asker, made);
            self.reply(asker.session(), reply);
        }
    }
}
