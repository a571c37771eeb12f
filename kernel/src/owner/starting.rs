//! Processes whose start takes its time: a file system that does not answer
//! must not keep everybody else waiting.
//!
//! The kernel waits a moment for each start, as nearly all are over by then. One
//! that is not is looked after at intervals, and whoever asked for it gets the
//! answer when it is known. One that takes too long is killed and refused.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use papa_protocol::json::request::Id;
use tracing::warn;

use super::{Deadline, Owner};
use crate::client::exchange::SessionId;
use crate::keeper::wire::{Key, Kind};
use crate::sys::spawn::{Failure, Started, Starting, Step};
use crate::verbs::VerbError;
use crate::verbs::process_plan::Prepared;
use crate::world::reel::Reel;
use papa_test_hooks::patience::scaled;

/// How long a start is waited for before everything else goes on.
const PATIENCE: Duration = Duration::from_millis(50);
/// The same while another one hangs already: probably for the same reason.
const SHORT_PATIENCE: Duration = Duration::from_millis(2);
/// Between two looks at a start.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// How long a killed child may take to be gone before it is left to itself.
const END_PATIENCE: Duration = Duration::from_millis(20);

/// Who gets the answer.
#[derive(Debug)]
pub(crate) enum Asker {
    /// A classic session, and whether it watches the process from then on.
    Classic { session: SessionId, watch: bool },
    /// A JSON session, and its request.
    Json {
        session: SessionId,
        request: Option<Id>,
    },
}

/// The kernel's ends of a process's output.
#[derive(Debug)]
pub(crate) struct Streams {
    pub out: Option<OwnedFd>,
    pub err: Option<OwnedFd>,
    pub reel: Option<Reel>,
}

/// One start.
#[derive(Debug)]
pub(crate) struct Start {
    asker: Asker,
    session: SessionId,
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
    /// How long the next start is waited for.
    pub(crate) fn start_patience(&self) -> Duration {
        if self.starting.is_empty() {
            PATIENCE
        } else {
            SHORT_PATIENCE
        }
    }

    /// Leaves a start to be looked after.
    pub(crate) fn start_later(
        &mut self,
        serial: u64,
        asker: Asker,
        session: SessionId,
        child: Starting,
        prepared: Prepared,
        streams: Streams,
    ) {
        let now = Instant::now();
        let limit = child.deadline().saturating_duration_since(now);
        let start = Start {
            asker,
            session,
            until: now + scaled(limit),
            child,
            prepared,
            streams,
        };
        self.starting.insert(serial, start);
        self.deadlines
            .insert((now + LOOK_INTERVAL, Deadline::Starting(serial)));
    }

    /// Looks what has come of a start.
    pub(super) fn on_starting(&mut self, serial: u64, now: Instant) {
        let Some(mut start) = self.starting.remove(&serial) else {
            return;
        };
        match start.child.look() {
            None if now < start.until => {
                self.starting.insert(serial, start);
                self.deadlines
                    .insert((now + LOOK_INTERVAL, Deadline::Starting(serial)));
            }
            None => self.give_up_start(serial, start),
            Some(result) => self.end_start(serial, start, result),
        }
    }

    fn end_start(&mut self, serial: u64, start: Start, result: Result<Started, Failure>) {
        let made = match result {
            Ok(started) => {
                self.started(start.session, serial, started, start.streams);
                Ok(serial)
            }
            Err(failure) => {
                self.undo_start(serial);
                Err(start.prepared.explain(failure))
            }
        };
        self.answer_start(start.asker, made);
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
            errno: nix::errno::Errno::ETIMEDOUT,
        });
        let pidfd = start.child.give_up();
        match (start.child.wait(END_PATIENCE), pidfd) {
            (Some(Err(_)), _) => self.undo_start(serial),
            // It has come through in the very last moment, or not even the
            // kill ends it before the file system answers. It is given up like
            // any process that was removed.
            (_, Some(pidfd)) => {
                self.started(
                    start.session,
                    serial,
                    Started {
                        pid,
                        pidfd,
                        outside: None,
                    },
                    start.streams,
                );
                self.remove_process(serial);
            }
            (_, None) => self.undo_start(serial),
        }
        self.answer_start(start.asker, Err(late));
    }

    fn answer_start(&mut self, asker: Asker, made: Result<u64, VerbError>) {
        match asker {
            Asker::Classic { session, watch } => self.answer_made_classic(session, made, watch),
            Asker::Json { session, request } => {
                let made = made.map(|serial| (serial, true));
                self.answer_made_json(session, request.as_ref(), made);
            }
        }
    }
}
