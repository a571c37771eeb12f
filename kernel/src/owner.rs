//! The event loop: owns the world and the sessions, and handles one event after the other.
//!
//! Connections, the poller and deadlines bring events (`shared.rs`); every handler is an ordinary
//! function that runs to completion. A request goes to `verbs::answer` and comes back as a reply or
//! as something the owner has to do first: start a process (`starting.rs`), change the program
//! (`upgrade.rs`, `stopping.rs`) or end. Output and exits go to `processes/`. What the keeper and
//! signals ask is in `signals.rs`.
//! Invariant: a change is in the journal before it is answered.

mod runtime_dir;
pub mod shared;
mod signals;
mod starting;
mod stopping;
mod upgrade;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signalfd::SignalFd;
use papa_protocol::limits;
use papa_test_hooks::failpoint;
use tracing::{error, warn};

use crate::change::changing::Changes;
use crate::change::recover::Findings;
use crate::change::takeover::Holdings;
use crate::client::budget::Budget;
use crate::client::event::Incoming;
use crate::client::exchange::{Expect, SessionId};
use crate::client::server::Server;
use crate::keeper::understudy::Understudy;
use crate::keeper::wire::{Key, Kind};
use crate::processes::{capture, exits};
use crate::readers::Readers;
use crate::readers::session::Session;
use crate::sys::alarm::Alarm;
use crate::sys::clock::now_us;
use crate::verbs::room::{Room, Usage};
use crate::verbs::{self, Answer, Reply, Request};
use crate::world::World;
use crate::world::deadline::Deadline;
use crate::world::live::Source;
use papa_test_hooks::patience::scaled;

/// How long the keeper may be silent before it counts as stuck: it asks every ten seconds.
const KEEPER_SILENCE: Duration = Duration::from_secs(40);
/// How long to wait when no descriptor is left for another caller.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Descriptors reserved for taking the keeper's place, which must not fail when all others are in
/// use.
const SPARE_DESCRIPTORS: usize = 8;

/// What is known of the keeper, beside the line to it.
#[derive(Debug)]
pub(crate) struct KeeperWatch {
    /// When it last said something.
    pub last_word: Instant,
    /// It was silent for a whole interval; it is ended if it stays so.
    pub suspected: bool,
    /// A copy of this process waits beside while there is no keeper.
    pub understudy: Option<Understudy>,
    /// Such a copy has been made, or this is one.
    pub doubled: bool,
    /// See [`SPARE_DESCRIPTORS`].
    pub spare: Vec<OwnedFd>,
}

/// Who has asked the kernel to end.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    /// The last signal that asked, and whether the keeper passed it on.
    pub last_term: Option<(Instant, bool)>,
    /// A client asked: until when sessions may read that.
    pub until: Option<Instant>,
    /// As process 1, asked to end by this signal.
    pub as_init: Option<i32>,
}

/// The state of the whole kernel; events are its methods.
#[derive(Debug)]
pub struct Owner {
    /// What exists.
    pub(crate) world: World,
    pub(crate) keeper: KeeperWatch,
    pub(crate) signals: SignalFd,
    /// The sessions, and what they read.
    pub(crate) readers: Readers,
    pub(crate) budget: Rc<Budget>,
    pub(crate) alarm: Alarm,
    /// Serves listeners made later.
    pub(crate) server: Option<Server>,
    /// Processes whose program does not run yet, by serial.
    pub(crate) starting: BTreeMap<u64, starting::Start>,
    /// The change of program that is under way, and the last one.
    pub(crate) change: Changes,
    pub(crate) ending: Ending,
    /// Why the private socket could not be made anew the last time.
    pub(crate) runtime_dir_trouble: Option<String>,
}

impl Owner {
    /// An owner of what was recovered. It touches nothing before `confirm`.
    ///
    /// # Errors
    /// The errno of the poller, or of watching a descriptor.
    pub fn new(world: World) -> Result<Self, Errno> {
        let signals = crate::sys::process::signal_descriptor(false)?;
        let alarm = Alarm::new()?;
        world.poller.add(world.link.as_fd(), Source::Keeper)?;
        world.poller.add(&signals, Source::Signal)?;
        world.poller.add(&alarm, Source::Alarm)?;
        let now = Instant::now();
        let spare = std::iter::repeat_with(|| world.fixed.null.try_clone().ok());
        let spare = spare.take(SPARE_DESCRIPTORS).flatten().collect();
        let keeper = KeeperWatch {
            last_word: now,
            suspected: false,
            understudy: None,
            doubled: false,
            spare,
        };
        let mut owner = Self {
            world,
            keeper,
            signals,
            readers: Readers::default(),
            budget: Rc::new(Budget::new(limits::SESSION_BUDGET_BYTES)),
            alarm,
            server: None,
            starting: BTreeMap::new(),
            change: Changes::default(),
            ending: Ending::default(),
            runtime_dir_trouble: None,
        };
        owner
            .world
            .agenda
            .at(now + scaled(KEEPER_SILENCE), Deadline::KeeperSilence);
        Ok(owner)
    }

    /// Records what recovery found and gives up what it does not need, once this kernel serves.
    /// Called once; `handed` goes along if the keeper has died.
    pub(crate) fn confirm(&mut self, findings: Findings, handed: &[(Key, OwnedFd)]) {
        if let Err(error) = self.world.journal.settle() {
            error!(%error, "cannot truncate the journal after its last record");
        }
        self.world.unrecorded = findings.entries.into();
        self.world.record_findings();
        for reel in self
            .world
            .live
            .values_mut()
            .filter_map(|live| live.reel.as_mut())
        {
            reel.settle();
        }
        let told = self.world.link.drop_keys(&findings.gone);
        self.check_keeper_with(told, handed);
        failpoint::reach("recover.confirmed");
    }

    /// Serves from now on; `server` takes listeners made later.
    pub(crate) fn start(&mut self, server: Server) {
        self.server = Some(server);
        if let Some(groups) = &self.world.cgroups {
            groups.clear();
        }
        self.look_after_runtime_dir();
        let poller = Rc::clone(&self.world.poller);
        let key = Key::new(Kind::POLLER, 0);
        if let Err(errno) = self.keep(&[(key, poller.as_fd())]) {
            warn!(%errno, "cannot give the keeper a copy of the event poller; it will notice the end of this kernel later");
        }
    }

    /// Does what a verb leaves to be done at once: sends events to subscribers, and takes the place
    /// of a keeper that was found gone.
    pub(crate) fn follow_up(&mut self) {
        self.notice_keeper();
        for event in std::mem::take(&mut self.world.events) {
            self.readers.push_event(&event);
        }
        self.end_stuck_sessions();
    }

    /// What follows once an event was handled.
    fn end_turn(&mut self) {
        self.follow_up();
        self.deliver();
        self.world.tell_unkept();
        self.notice_keeper();
        self.change_when_frozen();
        if self.world.journal.wants_compaction() || self.world.table.has_renamed {
            self.world.compact();
        }
        self.exit_if_asked();
        self.set_alarm();
    }

    // ---- events --------------------------------------------------------

    fn on_incoming(&mut self, id: SessionId, event: Incoming) {
        match event {
            Incoming::Connected { peer, outbox } => {
                let session = Session::new(id, peer, outbox);
                if self.is_ending() {
                    session.close();
                }
                self.change.freeze_late(id, &session);
                self.readers.sessions.insert(id, session);
            }
            Incoming::CannotAccept => {
                self.world.agenda.after(ACCEPT_PAUSE, Deadline::Accept);
            }
            _ if !self.readers.sessions.contains_key(&id) => {}
            Incoming::Classic(request) => self.on_request(id, Request::Classic(request)),
            Incoming::Json(request, descriptor) => {
                self.on_request(id, Request::Json(request, descriptor));
            }
            Incoming::Acknowledge(word) => {
                let (world, readers) = (&mut self.world, &mut self.readers);
                if let Some(reply) = verbs::acknowledge_watch(world, readers, id, word) {
                    self.reply(id, reply);
                }
            }
            Incoming::Drained => {
                if let Some(session) = self.readers.sessions.get_mut(&id) {
                    session.busy = false;
                }
                self.readers.ready.insert(id);
            }
            Incoming::Pushed => {
                if let Some(session) = self.readers.sessions.get_mut(&id) {
                    session.queued = session.queued.saturating_sub(1);
                }
            }
            Incoming::Frozen(frozen) => self.on_frozen(id, *frozen),
            Incoming::Gone => self.on_gone(id),
        }
    }

    /// Does what a session requests. A request that comes when the kernel is about to end is
    /// dropped: the session has been told, and is being closed.
    fn on_request(&mut self, id: SessionId, request: Request) {
        if self.is_ending() {
            return;
        }
        let usage = self.usage();
        match verbs::answer(&mut self.world, &mut self.readers, usage, id, request) {
            Answer::Reply(reply) => self.reply(id, reply),
            Answer::End(reply) => {
                self.ask_exit(id);
                self.reply(id, reply);
            }
            Answer::Start(ready, asker) => self.start_process(*ready, asker),
            Answer::Upgrade(op, request) => {
                if let Err(error) = self.ask_upgrade(Some((id, request.clone())), op) {
                    self.reply(id, verbs::refusal(request.as_ref(), error));
                }
            }
        }
    }

    /// Answers a request, after what follows from it at once.
    pub(crate) fn reply(&mut self, id: SessionId, reply: Reply) {
        self.follow_up();
        let next = if self.is_ending() {
            Expect::Close
        } else {
            reply.next
        };
        if let Some(session) = self.readers.sessions.get(&id) {
            session.reply_with(reply.bytes, reply.descriptor, next);
            if !session.subs.is_empty() {
                self.readers.ready.insert(id);
            }
        }
    }

    fn end_stuck_sessions(&mut self) {
        for id in std::mem::take(&mut self.readers.stuck) {
            self.on_gone(id);
        }
    }

    fn on_gone(&mut self, id: SessionId) {
        self.change.forget(id);
        let Some(session) = self.readers.sessions.remove(&id) else {
            return;
        };
        self.readers.ready.remove(&id);
        let claims = self.world.claims.len();
        self.world.claims.retain(|_, holder| holder.session != id);
        if self.world.claims.len() < claims {
            self.end_processes_as_init();
        }
        for sub in session.subs.into_values() {
            self.readers
                .detach(&mut self.world, id, sub.cursors.into_keys());
        }
    }

    /// Handles what the poller reports; true if the alarm rings too.
    fn on_ready(&mut self) -> bool {
        let Ok(sources) = self.world.poller.ready() else {
            return false;
        };
        let mut rings = false;
        let now_us = now_us();
        for source in sources {
            let (world, readers) = (&mut self.world, &mut self.readers);
            match source {
                Source::Pidfd(serial) => exits::on_exit_seen(world, readers, serial, now_us),
                Source::Pipe(serial, stream) => {
                    capture::on_output(world, readers, serial, stream, now_us);
                }
                Source::Keeper => self.on_keeper(),
                Source::Signal => self.on_signals(),
                Source::Alarm => rings = true,
            }
        }
        rings
    }

    /// Has the poller report when the earliest deadline has come.
    fn set_alarm(&mut self) {
        if let Some(at) = self.world.agenda.next()
            && let Err(errno) = self.alarm.ring_by(at)
        {
            error!(%errno, "cannot set the timer of the event loop");
        }
    }

    fn on_alarm(&mut self) {
        self.alarm.stop();
        let now = Instant::now();
        while let Some(what) = self.world.agenda.take_due(now) {
            let (world, readers) = (&mut self.world, &mut self.readers);
            match what {
                Deadline::Stall(serial) => capture::on_stall_deadline(world, readers, serial, now),
                Deadline::ExitLookup(serial) => exits::on_exit_lookup(world, readers, serial, now),
                Deadline::Retry(serial) => capture::resume(world, readers, serial),
                Deadline::FirstBatch(session) => {
                    readers.ready.insert(session);
                }
                Deadline::Cgroups => exits::on_cgroups(world, now),
                Deadline::RuntimeDir => self.on_runtime_dir(now),
                Deadline::KeeperSilence => self.on_keeper_silence(now),
                Deadline::Freeze => self.on_freeze_limit(now),
                Deadline::Accept => {
                    if let Some(server) = &self.server {
                        server.accept_again();
                    }
                }
                Deadline::Starting(serial) => self.on_starting(serial, now),
                // Handled when the turn ends.
                Deadline::Exit => {}
            }
        }
    }

    // ---- small things shared by the handlers ---------------------------

    /// As [`World::keep`]; the place of a keeper that is gone is taken at once.
    ///
    /// # Errors
    /// It lives, and could not be sent a descriptor.
    pub(crate) fn keep(&mut self, entries: &[(Key, BorrowedFd<'_>)]) -> Result<(), Errno> {
        let told = self.world.keep(entries);
        self.notice_keeper();
        told
    }

    /// The descriptors that would have to move if this process changed role.
    fn all_descriptors(&self) -> Vec<(Key, &OwnedFd)> {
        let mut all = self.world.descriptors();
        for (serial, start) in &self.starting {
            all.extend(start.descriptors(*serial));
        }
        all
    }

    /// What goes along when this process changes its program or role.
    pub(crate) fn holdings(&self) -> Holdings<'_> {
        let running = self
            .world
            .table
            .processes()
            .filter(|row| row.exit.is_none() && row.pid != 0)
            .map(|row| (row.serial, row.pid.cast_signed()));
        let starting = self
            .starting
            .iter()
            .map(|(serial, start)| (*serial, start.pid()));
        Holdings {
            config: &self.world.config,
            binary: &self.world.fixed.binary,
            journal: self.world.journal.as_fd(),
            link: &self.world.link,
            understudy: self.keeper.understudy.as_ref(),
            descriptors: self.all_descriptors(),
            workers: running.chain(starting).collect(),
        }
    }

    /// Sends what is due to the sessions, unless they are stopped.
    pub(crate) fn deliver(&mut self) {
        if !self.readers.ready.is_empty() && !self.change.is_freezing() {
            self.readers.deliver(&mut self.world);
        }
    }

    /// What the kernel uses beside what the world and the readers count. The descriptors are
    /// estimated.
    fn usage(&self) -> Usage {
        let processes = (self.world.live.len() + self.starting.len()) * 4;
        let others =
            self.world.socket_fds.len() + self.world.held_fds.len() + self.readers.sessions.len();
        Usage {
            room: Room {
                in_use: (processes + others + 32) as u64,
            },
            session_bytes: self.budget.used(),
        }
    }
}
