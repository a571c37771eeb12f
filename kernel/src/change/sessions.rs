//! Sessions are written down for the next program, and gone on with in it.
//!
//! [`write_down`] and [`resume`] are each other's inverse; `handover.rs` has the form in between.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use tracing::{info, warn};

use super::handover::{Change, Delivered, HandOver, SessionRecord, SubRecord};
use crate::client::connection::Frozen;
use crate::client::exchange::SessionId;
use crate::client::server::Server;
use crate::keeper::wire::{Key, Kind};
use crate::readers::Readers;
use crate::readers::session::{FIRST_BATCH_DELAY, Session, Subscription};
use crate::world::live::Reader;
use crate::world::{Holder, World};

/// Writes all sessions down whose connections are `frozen`; `handed` gets copies of their
/// descriptors.
///
/// # Errors
/// `EMFILE` if a descriptor cannot be copied.
pub(crate) fn write_down(
    world: &World,
    readers: &Readers,
    change: &Change,
    frozen: &BTreeMap<SessionId, Frozen>,
    handed: &mut Vec<(Key, OwnedFd)>,
) -> Result<HandOver, Errno> {
    let mut keep = |fd: BorrowedFd<'_>| {
        let number = handed.len() as u64;
        let copy = fd.try_clone_to_owned().map_err(|_| Errno::EMFILE)?;
        handed.push((Key::new(Kind::SESSION, number), copy));
        Ok(number)
    };
    let mut sessions = Vec::new();
    for (id, stopped) in frozen {
        if let Some(session) = readers.sessions.get(id) {
            sessions.push(write_session(world, session, stopped, &mut keep)?);
        }
    }
    let processes = world
        .live
        .iter()
        .filter(|(_, live)| live.reel.is_some())
        .map(|(serial, live)| Delivered {
            serial: *serial,
            to: live.delivered_to,
            bytes: live.delivered,
            consumer: live.consumer.map(|reader| (reader.session, reader.sub)),
        })
        .collect();
    Ok(HandOver {
        change: change.clone(),
        processes,
        sessions,
        left_out: 0,
    })
}

fn write_session(
    world: &World,
    session: &Session,
    stopped: &Frozen,
    keep: &mut impl FnMut(BorrowedFd<'_>) -> Result<u64, Errno>,
) -> Result<SessionRecord, Errno> {
    let claims = world
        .claims
        .iter()
        .filter(|(_, holder)| holder.session == session.id);
    Ok(SessionRecord {
        id: session.id,
        peer: session.peer,
        connection: stopped.connection.record(keep)?,
        client: session.client.clone(),
        json: session.json,
        busy: session.busy,
        queued: session.queued,
        subs: session
            .subs
            .iter()
            .map(|(number, sub)| (*number, write_sub(sub)))
            .collect(),
        next_sub: session.next_sub,
        held_back: session.hold_until.is_some(),
        watch_batch: session.watch_batch.clone(),
        lost: session.lost.iter().cloned().collect(),
        claims: claims.map(|(namespace, _)| namespace.clone()).collect(),
    })
}

fn write_sub(sub: &Subscription) -> SubRecord {
    SubRecord {
        kind: sub.kind,
        patterns: sub.patterns.clone(),
        cursors: sub.cursors.clone(),
        seq: sub.seq,
    }
}

/// Goes on with the sessions that a program before wrote down. Called once, before any output is
/// taken, so that all of it is told.
pub(crate) fn resume(
    world: &mut World,
    readers: &mut Readers,
    server: &Server,
    processes: &[Delivered],
    sessions: Vec<SessionRecord>,
    mut descriptors: HashMap<u64, OwnedFd>,
) {
    for delivered in processes {
        if let Some(live) = world.live.get_mut(&delivered.serial) {
            live.delivered_to = live.delivered_to.max(delivered.to.min(live.committed()));
            live.delivered = live.delivered.max(delivered.bytes);
        }
    }
    let count = sessions.len();
    for record in sessions {
        resume_session(world, readers, server, record, &mut descriptors);
    }
    for delivered in processes {
        let consumer = delivered
            .consumer
            .map(|(session, sub)| Reader { session, sub });
        if let Some(live) = world.live.get_mut(&delivered.serial)
            && let Some(reader) = consumer
            && live.readers.contains(&reader)
        {
            live.consumer = Some(reader);
        }
    }
    info!(sessions = count, "sessions go on");
}

fn resume_session(
    world: &mut World,
    readers: &mut Readers,
    server: &Server,
    record: SessionRecord,
    descriptors: &mut HashMap<u64, OwnedFd>,
) {
    let (id, peer) = (record.id, record.peer);
    let Some(socket) = descriptors.remove(&record.connection.socket) else {
        warn!(
            session = id,
            "socket of a session is missing; closing the session"
        );
        return;
    };
    let take = |number| descriptors.remove(&number);
    let outbox = match server.resume(id, socket, peer.tcp, record.connection, take) {
        Ok(outbox) => outbox,
        Err(error) => {
            warn!(session = id, %error, "cannot resume a session after the change of program; closing it");
            return;
        }
    };
    let mut session = Session::new(id, peer, outbox);
    session.client = record.client;
    session.json = record.json;
    session.busy = record.busy;
    session.queued = record.queued;
    session.next_sub = record.next_sub.max(1);
    session.hold_until = record.held_back.then(|| Instant::now() + FIRST_BATCH_DELAY);
    session.watch_batch = record.watch_batch;
    session.lost = record.lost.into_iter().collect();
    for namespace in record.claims {
        world.claims.insert(namespace, Holder { session: id, peer });
    }
    session.subs = record
        .subs
        .into_iter()
        .map(|(number, sub)| (number, resume_sub(world, id, number, sub)))
        .collect();
    session.end_watch_of_nothing();
    readers.sessions.insert(id, session);
    readers.ready.insert(id);
}

fn resume_sub(
    world: &mut World,
    session: SessionId,
    number: u64,
    record: SubRecord,
) -> Subscription {
    let mut sub = Subscription::new(record.kind, record.patterns);
    sub.seq = record.seq;
    for (serial, cursor) in record.cursors {
        let Some(live) = world.live.get_mut(&serial) else {
            continue;
        };
        live.readers.push(Reader {
            session,
            sub: number,
        });
        sub.cursors.insert(serial, cursor);
        sub.mark(serial);
    }
    sub
}
