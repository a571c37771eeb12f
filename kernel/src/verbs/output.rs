//! Who reads what: watches, consumers, followers, changes.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use papa_protocol::json::ErrorCode;
use papa_protocol::json::request::{Delivery, FollowFrom};
use papa_protocol::limits::MAX_SUBSCRIPTIONS_PER_SESSION;
use papa_protocol::name::NamePattern;
use papa_protocol::record::Serial;
use papa_test_hooks::failpoint;

use super::claim::{may_change, may_write};
use super::process::no_process;
use super::{VerbError, fail, limit, not_recorded, refused};
use crate::processes::capture;
use crate::processes::exits::{forget_if_done, wait_for};
use crate::readers::Readers;
use crate::readers::session::{FIRST_BATCH_DELAY, SubKind, Subscription};
use crate::sys::memfd::reopen_read_only;
use crate::world::World;
use crate::world::caller::Caller;
use crate::world::live::{Live, Reader};
use crate::world::table::{Entry, Matcher};

/// Adds a subscription to the caller's session.
///
/// # Errors
/// `limit` when the session has too many.
fn add_sub(
    readers: &mut Readers,
    caller: &Caller,
    kind: SubKind,
    patterns: Vec<NamePattern>,
) -> Result<u64, VerbError> {
    let Some(session) = readers.sessions.get_mut(&caller.session) else {
        return Err(fail(ErrorCode::Internal, "the session is gone"));
    };
    if session.subs.len() >= MAX_SUBSCRIPTIONS_PER_SESSION {
        return Err(limit(
            "subscriptions in this session",
            MAX_SUBSCRIPTIONS_PER_SESSION,
        ));
    }
    Ok(session.add_sub(Subscription::new(kind, patterns)))
}

/// Starts a classic watch of these processes. The watch is their consumer, unless they have one,
/// their namespace is claimed by someone else, or the transport is read-only: then it follows.
///
/// # Errors
/// The session has too many subscriptions.
pub(crate) fn watch(
    world: &mut World,
    readers: &mut Readers,
    caller: &Caller,
    serials: &[u64],
) -> Result<(), VerbError> {
    let sub = add_sub(readers, caller, SubKind::Watch, Vec::new())?;
    if let Some(session) = readers.sessions.get_mut(&caller.session) {
        session.hold_until = Some(Instant::now() + FIRST_BATCH_DELAY);
    }
    let reader = Reader {
        session: caller.session,
        sub,
    };
    for serial in serials {
        let start = world.live.get(serial).map_or(0, Live::start);
        let consume = watch_acknowledges(world, caller, *serial)
            && world
                .live
                .get(serial)
                .is_some_and(|live| live.consumer.is_none());
        readers.attach(world, reader, *serial, start, consume);
    }
    Ok(())
}

/// Whether a classic watcher's acknowledgement of this process counts.
pub(crate) fn watch_acknowledges(world: &World, caller: &Caller, serial: u64) -> bool {
    may_write(world, caller).is_ok()
        && world
            .table
            .process(serial)
            .is_some_and(|row| !world.is_claimed_by_other(caller, &row.make.name))
}

/// Makes the caller the consumer of processes that match, now and later.
///
/// # Errors
/// `claimed` when another session consumes one of them and `force` is not
/// given, or when the namespace is someone else's.
pub(crate) fn consume(
    world: &mut World,
    readers: &mut Readers,
    caller: &Caller,
    patterns: Vec<NamePattern>,
    bytes: Delivery,
    force: bool,
) -> Result<u64, VerbError> {
    may_write(world, caller)?;
    let serials = readable(world, &patterns);
    for serial in &serials {
        let Some(row) = world.table.process(*serial) else {
            continue;
        };
        may_change(world, caller, &row.make.name, force)?;
        let other = world
            .live
            .get(serial)
            .and_then(|live| live.consumer)
            .filter(|consumer| consumer.session != caller.session);
        if other.is_some() && !force {
            return Err(fail(
                ErrorCode::Claimed,
                &format!(
                    "the output of {} has a consumer; take over with force, or follow",
                    row.make.name
                ),
            ));
        }
    }
    let sub = add_sub(readers, caller, SubKind::Consume(bytes), patterns)?;
    let reader = Reader {
        session: caller.session,
        sub,
    };
    for serial in serials {
        let start = world.live.get(&serial).map_or(0, Live::start);
        readers.attach(world, reader, serial, start, true);
    }
    Ok(sub)
}

/// Makes the caller a follower of processes that match, now and later.
///
/// # Errors
/// The session has too many subscriptions.
pub(crate) fn follow(
    world: &mut World,
    readers: &mut Readers,
    caller: &Caller,
    patterns: Vec<NamePattern>,
    from: FollowFrom,
) -> Result<u64, VerbError> {
    let serials = readable(world, &patterns);
    let kind = SubKind::Follow {
        from_start: from == FollowFrom::Start,
    };
    let sub = add_sub(readers, caller, kind, patterns)?;
    let reader = Reader {
        session: caller.session,
        sub,
    };
    for serial in serials {
        let position = world.live.get(&serial).map_or(0, |live| match from {
            FollowFrom::Now => live.committed(),
            FollowFrom::Start => live.start(),
        });
        readers.attach(world, reader, serial, position, false);
    }
    Ok(sub)
}

/// Tells the caller from now on what is made, ends and is removed.
///
/// # Errors
/// The session has too many subscriptions.
pub(crate) fn subscribe(
    readers: &mut Readers,
    caller: &Caller,
    patterns: Vec<NamePattern>,
) -> Result<u64, VerbError> {
    add_sub(readers, caller, SubKind::Changes, patterns)
}

/// Ends a subscription.
///
/// # Errors
/// `not_found` when the session has none of that number.
pub(crate) fn stop(
    world: &mut World,
    readers: &mut Readers,
    caller: &Caller,
    number: u64,
) -> Result<(), VerbError> {
    let sub = readers
        .sessions
        .get_mut(&caller.session)
        .and_then(|session| session.subs.remove(&number));
    let Some(sub) = sub else {
        return Err(fail(
            ErrorCode::NotFound,
            &format!("there is no subscription {number} in this session"),
        ));
    };
    readers.detach(world, caller.session, sub.cursors.into_keys());
    Ok(())
}

/// Acknowledges output as a consumer; a request without positions says that the consumer is at
/// work.
///
/// # Errors
/// `not_found` for an unknown serial, `denied` for one that this session
/// does not consume; the acknowledgements before it count.
pub(crate) fn acknowledge(
    world: &mut World,
    readers: &mut Readers,
    caller: &Caller,
    acks: BTreeMap<Serial, u64>,
) -> Result<(), VerbError> {
    if acks.is_empty() {
        hear_of(world, readers, caller);
    }
    let mut missed = None;
    for (Serial(serial), position) in acks {
        let Some(live) = world.live.get(&serial) else {
            // Forgotten meanwhile, with its output, so nothing is lost.
            continue;
        };
        if live
            .consumer
            .is_some_and(|consumer| consumer.session == caller.session)
        {
            capture::acknowledge(world, readers, serial, position);
        } else {
            missed = Some(serial);
        }
    }
    missed.map_or(Ok(()), |serial| {
        Err(fail(
            ErrorCode::Denied,
            &format!("process {serial}: only its consumer may acknowledge"),
        ))
    })
}

/// Notes that a consumer is at work though it has nothing to acknowledge yet, so that writers wait
/// for it. It speaks for all sessions of its process, since the work may hold up the others. It
/// also speaks for output without a consumer in a namespace that its process has claimed, since it
/// is about to consume that.
fn hear_of(world: &mut World, readers: &Readers, caller: &Caller) {
    let now = Instant::now();
    let heard: Vec<u64> = world
        .live
        .iter()
        .filter(|(serial, live)| match live.consumer {
            Some(consumer) => readers.is_same_process(consumer.session, caller.session),
            None => world
                .table
                .process(**serial)
                .and_then(|row| world.claim_holder(&row.make.name))
                .is_some_and(|holder| readers.is_same_process(holder, caller.session)),
        })
        .map(|(serial, _)| *serial)
        .collect();
    for serial in heard {
        if let Some(live) = world.live.get_mut(&serial) {
            live.last_ack = Some(now);
            live.stalled = false;
        }
    }
}

/// Acknowledges exits as a consumer; unknown serials are done already.
///
/// # Errors
/// `denied` for a process another client consumes or that still runs.
pub(crate) fn acknowledge_exits(
    world: &mut World,
    readers: &mut Readers,
    caller: &Caller,
    serials: Vec<Serial>,
) -> Result<(), VerbError> {
    for Serial(serial) in serials {
        let Some(row) = world.table.process(serial) else {
            continue;
        };
        if row.exit.is_none() {
            return Err(fail(
                ErrorCode::Denied,
                &format!("process {serial} has not ended"),
            ));
        }
        may_change(world, caller, &row.make.name, false)?;
        let other = world
            .live
            .get(&serial)
            .and_then(|live| live.consumer)
            .is_some_and(|consumer| !readers.is_same_process(consumer.session, caller.session));
        if other {
            return Err(fail(
                ErrorCode::Denied,
                &format!("process {serial}: only its consumer may acknowledge"),
            ));
        }
        wait_for(world, serial);
        world.zombies.retain(|zombie| *zombie != serial);
        failpoint::reach("exit.waited");
        world
            .commit(Entry::ExitKnown { serial })
            .map_err(|error| not_recorded(&error))?;
        forget_if_done(world, readers, serial);
    }
    Ok(())
}

/// A read-only copy of a reel's descriptor.
///
/// # Errors
/// `not_found`, or `unsupported` when nothing is captured.
pub(crate) fn reel(
    world: &World,
    caller: &Caller,
    Serial(serial): Serial,
) -> Result<(OwnedFd, u64), VerbError> {
    let live = world.live.get(&serial).ok_or_else(|| no_process(serial))?;
    let Some(reel) = &live.reel else {
        return Err(fail(
            ErrorCode::Unsupported,
            &format!("process {serial}: its output is not captured"),
        ));
    };
    if live
        .consumer
        .is_none_or(|consumer| consumer.session != caller.session)
    {
        return Err(fail(
            ErrorCode::Denied,
            &format!("process {serial}: only its consumer may have its reel"),
        ));
    }
    let Some(data_offset) = reel.data_offset() else {
        return Err(fail(
            ErrorCode::Unsupported,
            &format!(
                "process {serial}: the size of files is limited here (ulimit -f), its output is only sent"
            ),
        ));
    };
    let file = reopen_read_only(reel.as_fd().as_fd())
        .map_err(|errno| refused("open the reel for reading", errno))?;
    Ok((file, data_offset))
}

/// Serials of the processes that match and whose output was not given up.
fn readable(world: &World, patterns: &[NamePattern]) -> Vec<u64> {
    let matcher = Matcher::new(patterns);
    world
        .table
        .processes()
        .filter(|row| !row.removing && matcher.matches(&row.make.name))
        .map(|row| row.serial)
        .collect()
}
