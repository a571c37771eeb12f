//! Who reads what: sessions, their subscriptions, and how far each has come.
//!
//! [`Readers`] owns the sessions; it knows processes by number and finds them in the `World` it is
//! given. When output is sent is in `deliver.rs`, in which form in `batch.rs`.
//! Invariant: a subscription has a cursor of a process if and only if the process lists it among
//! its readers.

mod batch;
mod deliver;
pub mod session;

use std::collections::{BTreeMap, BTreeSet};

use bytes::BytesMut;
use papa_protocol::json::push::{Event, EventType, Push};
use papa_protocol::record::Serial;
use tracing::warn;

use self::batch::tell_ends;
use self::session::{Cursor, Session, SubKind};
use crate::client::exchange::{Peer, SessionId};
use crate::world::World;
use crate::world::caller::{Caller, are_of_one_process};
use crate::world::live::Reader;

/// The sessions of all clients.
#[derive(Debug, Default)]
pub struct Readers {
    /// The sessions by number.
    pub sessions: BTreeMap<SessionId, Session>,
    /// Sessions that may have something to send.
    pub ready: BTreeSet<SessionId>,
    /// Sessions that do not read what they are sent. They are closed, and the owner removes them.
    pub stuck: Vec<SessionId>,
}

impl Readers {
    // ---- sessions as callers -------------------------------------------

    /// The session with this number as the caller of a verb.
    pub(crate) fn caller(&self, session: SessionId) -> Caller {
        let found = self.sessions.get(&session);
        Caller {
            session,
            peer: found.map(|session| session.peer),
            lost: found
                .map(|session| session.lost.clone())
                .unwrap_or_default(),
        }
    }

    /// Whether two sessions belong to one process, as far as the system tells.
    pub(crate) fn is_same_process(&self, one: SessionId, other: SessionId) -> bool {
        are_of_one_process((one, self.peer(one)), (other, self.peer(other)))
    }

    fn peer(&self, session: SessionId) -> Option<Peer> {
        self.sessions.get(&session).map(|session| session.peer)
    }

    // ---- what is pushed ------------------------------------------------

    /// Sends a push. A session that has let too many pile up is closed and counts as stuck.
    pub(crate) fn push(&mut self, id: SessionId, line: BytesMut) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if !self.stuck.contains(&id) && !session.push(line) {
            warn!(
                session = id,
                "client does not read what it is sent; closing its session"
            );
            session.close();
            self.stuck.push(id);
        }
    }

    /// Tells those who subscribe to changes what happened to a process.
    pub(crate) fn announce(&mut self, world: &World, serial: u64, kind: EventType) {
        let Some(row) = world.table.process(serial) else {
            return;
        };
        let is_wanted = self
            .sessions
            .values()
            .flat_map(|session| session.subs.values())
            .any(|sub| sub.kind == SubKind::Changes);
        if !is_wanted {
            return;
        }
        self.push_event(&Event {
            sub: 0,
            seq: 0,
            kind,
            name: row.make.name.clone(),
            serial: Some(Serial(serial)),
            process: world.describe(serial),
            socket: None,
        });
    }

    /// Sends an event to every subscription that wants its name.
    pub(crate) fn push_event(&mut self, event: &Event) {
        let mut lines = Vec::new();
        for (id, session) in &mut self.sessions {
            for (number, sub) in &mut session.subs {
                if sub.kind == SubKind::Changes && sub.wants(&event.name) {
                    sub.seq += 1;
                    let mut line = BytesMut::new();
                    Push::Event(Box::new(Event {
                        sub: *number,
                        seq: sub.seq,
                        ..event.clone()
                    }))
                    .encode(&mut line);
                    lines.push((*id, line));
                }
            }
        }
        for (id, line) in lines {
            self.push(id, line);
        }
    }

    /// Tells the readers of a process that is about to be forgotten about the ends they have
    /// reached. The last end may come when all output is acknowledged and the exit is known, which
    /// leaves no later turn to tell it in.
    pub(crate) fn tell_last(&mut self, world: &World, serial: u64) {
        let (Some(row), Some(live)) = (world.table.process(serial), world.live.get(&serial)) else {
            return;
        };
        let mut lines = Vec::new();
        for reader in &live.readers {
            if let Some(session) = self.sessions.get_mut(&reader.session)
                && let Some(sub) = session.subs.get_mut(&reader.sub)
                && matches!(sub.kind, SubKind::Consume(_) | SubKind::Follow { .. })
                && let Some(cursor) = sub.cursors.get_mut(&serial)
            {
                let mut line = BytesMut::new();
                tell_ends(reader.sub, row, live, cursor, &mut line);
                if !line.is_empty() {
                    lines.push((reader.session, line));
                }
            }
        }
        for (session, line) in lines {
            self.push(session, line);
        }
    }

    // ---- who reads a process -------------------------------------------

    /// Queues a process with everybody who reads it.
    pub(crate) fn mark(&mut self, world: &World, serial: u64) {
        let Some(live) = world.live.get(&serial) else {
            return;
        };
        for reader in &live.readers {
            if let Some(session) = self.sessions.get_mut(&reader.session)
                && let Some(sub) = session.subs.get_mut(&reader.sub)
            {
                sub.mark(serial);
                self.ready.insert(reader.session);
            }
        }
    }

    /// Has a subscription read a process from `position` on.
    pub(crate) fn attach(
        &mut self,
        world: &mut World,
        reader: Reader,
        serial: u64,
        position: u64,
        consume: bool,
    ) {
        let Some(live) = world.live.get_mut(&serial) else {
            return;
        };
        if !live.readers.contains(&reader) {
            live.readers.push(reader);
        }
        if consume {
            live.consumer = Some(reader);
            live.last_ack = Some(std::time::Instant::now());
            live.stalled = false;
        }
        if let Some(session) = self.sessions.get_mut(&reader.session)
            && let Some(sub) = session.subs.get_mut(&reader.sub)
        {
            let cursor = Cursor {
                position,
                ..Cursor::default()
            };
            sub.cursors.insert(serial, cursor);
            sub.mark(serial);
            self.ready.insert(reader.session);
        }
    }

    /// Updates processes that a session, or one of its subscriptions, does not read any more.
    pub(crate) fn detach(
        &self,
        world: &mut World,
        session: SessionId,
        serials: impl Iterator<Item = u64>,
    ) {
        for serial in serials {
            let Some(live) = world.live.get_mut(&serial) else {
                continue;
            };
            let subs = self.sessions.get(&session).map(|session| &session.subs);
            live.readers.retain(|reader| {
                reader.session != session
                    || subs.is_some_and(|subs| {
                        subs.get(&reader.sub)
                            .is_some_and(|sub| sub.cursors.contains_key(&serial))
                    })
            });
            if live
                .consumer
                .is_some_and(|consumer| !live.readers.contains(&consumer))
            {
                live.consumer = None;
                self.elect_consumer(world, serial);
            }
        }
    }

    /// Of several classic watchers one counts as the consumer; when it goes, the next does.
    fn elect_consumer(&self, world: &mut World, serial: u64) {
        let (Some(row), Some(live)) = (world.table.process(serial), world.live.get(&serial)) else {
            return;
        };
        let next = live.readers.iter().copied().find(|reader| {
            self.sessions
                .get(&reader.session)
                .and_then(|session| session.subs.get(&reader.sub))
                .is_some_and(|sub| sub.kind == SubKind::Watch)
                && !world.is_claimed_by_other(&self.caller(reader.session), &row.make.name)
        });
        if let Some(live) = world.live.get_mut(&serial) {
            live.consumer = next;
        }
    }

    /// Removes the cursor of a subscription whose process is gone.
    pub(crate) fn drop_cursor(&mut self, reader: Reader, serial: u64) {
        if let Some(session) = self.sessions.get_mut(&reader.session)
            && let Some(sub) = session.subs.get_mut(&reader.sub)
        {
            sub.cursors.remove(&serial);
            session.end_watch_of_nothing();
        }
    }

    /// Attaches a new process to the subscriptions that want its name.
    pub(crate) fn include_new(&mut self, world: &mut World, serial: u64) {
        let Some(row) = world.table.process(serial) else {
            return;
        };
        let name = row.make.name.clone();
        let holder = world.claim_holder(&name);
        let is_holder =
            |session| holder.is_some_and(|holder| self.is_same_process(session, holder));
        let mut readers = Vec::new();
        let mut consumer: Option<Reader> = None;
        for (id, session) in &self.sessions {
            for (number, sub) in &session.subs {
                let consumes = matches!(sub.kind, SubKind::Consume(_));
                if !(consumes || matches!(sub.kind, SubKind::Follow { .. })) || !sub.wants(&name) {
                    continue;
                }
                let reader = Reader {
                    session: *id,
                    sub: *number,
                };
                if consumes {
                    // A consumer whose claim was taken over, or who is outside of it, is passed
                    // over.
                    let caller = self.caller(*id);
                    if world.is_read_only_for(&caller) || world.is_claimed_by_other(&caller, &name)
                    {
                        continue;
                    }
                    // Of several the claim's holder is preferred, then the latest.
                    if consumer.is_none_or(|before| !is_holder(before.session)) || is_holder(*id) {
                        consumer = Some(reader);
                    }
                }
                readers.push(reader);
            }
        }
        for reader in readers {
            self.attach(world, reader, serial, 0, consumer == Some(reader));
        }
    }
}
