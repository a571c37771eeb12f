//! The JSON dialect: typed requests to verbs, results to lines.

use std::os::fd::OwnedFd;

use bytes::BytesMut;
use papa_protocol::json::push::{Lost, Push};
use papa_protocol::json::reply::{self, encode_error, encode_ok};
use papa_protocol::json::request::{self, Id, Op, Rejected, Request};
use papa_protocol::json::{ErrorCode, Failure};
use serde::Serialize;
use tracing::info;

use super::claim::may_write;
use super::process::Made;
use super::room::Usage;
use super::{
    Answer, Asker, Reply, VerbError, claim, fail, held, meta, output, process, socket, value,
};
use crate::client::exchange::Expect;
use crate::readers::Readers;
use crate::world::World;
use crate::world::caller::Caller;
use crate::world::reel::START_AT;

/// Answers one JSON line.
pub(super) fn answer(
    world: &mut World,
    readers: &mut Readers,
    usage: Usage,
    caller: &Caller,
    request: Result<Request, Rejected>,
    descriptor: Option<OwnedFd>,
) -> Answer {
    let request = match request {
        Ok(request) => request,
        Err(rejected) => {
            return Answer::Reply(failure(rejected.id.as_ref(), &rejected.failure));
        }
    };
    let id = request.id.as_ref();
    run(world, readers, usage, caller, id, request.op, descriptor)
        .unwrap_or_else(|error| Answer::Reply(refusal(id, error)))
}

/// The reply to whoever asked for a process.
pub(super) fn answer_made(
    world: &World,
    id: Option<&Id>,
    made: Result<(u64, bool), VerbError>,
) -> Reply {
    let made = made.and_then(|(serial, created)| {
        let process = world.describe(serial).ok_or_else(vanished)?;
        Ok(reply::ProcessMade { process, created })
    });
    match made {
        Ok(made) => success(id, &made),
        Err(error) => refusal(id, error),
    }
}

/// The reply to a request that a verb has refused.
pub(crate) fn refusal(id: Option<&Id>, error: VerbError) -> Reply {
    failure(id, &Failure::from(error))
}

/// One arm for each verb.
fn run(
    world: &mut World,
    readers: &mut Readers,
    usage: Usage,
    caller: &Caller,
    id: Option<&Id>,
    op: Op,
    descriptor: Option<OwnedFd>,
) -> Result<Answer, VerbError> {
    let done = reply::Done {};
    let reply = match op {
        Op::Hello(op) => {
            greet(readers, caller, op.client);
            success(id, &meta::hello(world))
        }
        Op::Status(_) => success(id, &meta::status(world, readers, usage)),
        Op::ValueSet(op) => {
            value::set(world, caller, op.name, Some(op.value))?;
            success(id, &done)
        }
        Op::ValueGet(op) => {
            let value = world.table.values.get(&op.name).cloned();
            success(id, &reply::ValueReply { value })
        }
        Op::ValueList(op) => {
            let found = value::find(world, &op.names);
            let values = found
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            success(id, &reply::Values { values })
        }
        Op::ValueRemove(op) => removed(id, value::remove(world, caller, &op.names)?),
        Op::SocketMake(op) => {
            let (socket, created) = socket::make(world, caller, usage.room, op)?;
            let socket = socket::describe_with_path(world, socket).ok_or_else(vanished)?;
            success(id, &reply::SocketMade { socket, created })
        }
        Op::SocketList(op) => {
            let sockets = socket::list(world, &op.names);
            success(id, &reply::SocketsReply { sockets })
        }
        Op::SocketRemove(op) => removed(id, socket::remove(world, caller, &op.names, op.force)?),
        Op::SocketFetch(op) => with(caller, id, &done, socket::fetch(world, caller, &op.name)?)?,
        Op::ProcessMake(op) => match process::make(world, caller, usage.room, *op)? {
            Made::Exists(serial) => answer_made(world, id, Ok((serial, false))),
            Made::Ready(ready) => {
                let (session, request) = (caller.session, id.cloned());
                return Ok(Answer::Start(ready, Asker::Json { session, request }));
            }
        },
        Op::ProcessList(op) => {
            let processes = process::list(world, &op.names, &op.serials);
            success(id, &reply::Processes { processes })
        }
        Op::ProcessRemove(op) => removed(
            id,
            process::remove(world, readers, caller, &op.names, &op.serials, op.force)?,
        ),
        Op::ProcessPidfd(op) => with(caller, id, &done, process::pidfd(world, caller, op.serial)?)?,
        Op::OutputConsume(op) => {
            let sub = output::consume(world, readers, caller, op.names, op.bytes, op.force)?;
            success(id, &reply::Subscribed { sub })
        }
        Op::OutputFollow(op) => {
            let sub = output::follow(world, readers, caller, op.names, op.from)?;
            success(id, &reply::Subscribed { sub })
        }
        Op::OutputStop(op) => {
            output::stop(world, readers, caller, op.sub)?;
            success(id, &done)
        }
        Op::OutputReel(op) => {
            let (fd, data_offset) = output::reel(world, caller, op.serial)?;
            let start_offset = Some(START_AT);
            let reel = reply::Reel {
                data_offset,
                start_offset,
            };
            with(caller, id, &reel, fd)?
        }
        Op::OutputAck(op) => {
            output::acknowledge(world, readers, caller, op.acks)?;
            success(id, &done)
        }
        Op::ExitAck(op) => {
            output::acknowledge_exits(world, readers, caller, op.serials)?;
            success(id, &done)
        }
        Op::Hold(op) => {
            let fd = descriptor.ok_or_else(no_descriptor)?;
            held::hold(world, caller, usage.room, op.name, fd)?;
            success(id, &done)
        }
        Op::Fetch(op) => with(caller, id, &done, held::fetch(world, caller, &op.name)?)?,
        Op::HoldList(op) => {
            let held = held::list(world, &op.names);
            success(id, &reply::HeldReply { held })
        }
        Op::HoldDrop(op) => removed(id, held::drop_matching(world, caller, &op.names)?),
        Op::Claim(op) => {
            let epoch = take_claim(world, readers, caller, &op)?;
            success(id, &reply::Claimed { epoch })
        }
        Op::ClaimRelease(op) => {
            claim::release(world, caller, &op.namespace)?;
            success(id, &done)
        }
        Op::ClaimList(_) => {
            let claims = claim::list(world);
            success(id, &reply::Claims { claims })
        }
        Op::Subscribe(op) => {
            let sub = output::subscribe(readers, caller, op.names)?;
            success(id, &reply::Subscribed { sub })
        }
        Op::KernelUpgrade(op) => return Ok(Answer::Upgrade(op, id.cloned())),
        Op::KernelExit(_) => {
            may_write(world, caller)?;
            if !world.is_idle() {
                return Err(not_idle());
            }
            let reply = success(id, &done);
            return Ok(Answer::End(Reply {
                next: Expect::Close,
                ..reply
            }));
        }
    };
    Ok(Answer::Reply(reply))
}

/// Notes what the client calls itself.
fn greet(readers: &mut Readers, caller: &Caller, client: Option<String>) {
    if let Some(session) = readers.sessions.get_mut(&caller.session) {
        info!(session = caller.session, client = ?client, "hello");
        session.client = client;
    }
}

/// Claims a namespace, and tells whoever had it before.
fn take_claim(
    world: &mut World,
    readers: &mut Readers,
    caller: &Caller,
    op: &request::Claim,
) -> Result<u64, VerbError> {
    let holder = op.holder.clone();
    let (epoch, old) = claim::claim(world, caller, &op.namespace, holder, op.force)?;
    if let Some(session) = readers.sessions.get_mut(&caller.session) {
        session.lost.remove(&op.namespace);
    }
    if let Some(old) = old {
        if let Some(session) = readers.sessions.get_mut(&old) {
            session.lost.insert(op.namespace.clone());
        }
        let mut line = BytesMut::new();
        Push::Lost(Lost {
            namespace: op.namespace.clone(),
            by: op.holder.clone(),
        })
        .encode(&mut line);
        readers.push(old, line);
    }
    Ok(epoch)
}

/// A success is answered only to a request with an id.
fn success<T: Serialize>(id: Option<&Id>, result: &T) -> Reply {
    let mut out = BytesMut::new();
    if id.is_some() {
        encode_ok(id, result, &mut out);
    }
    Reply::new(out, Expect::Json)
}

fn removed(id: Option<&Id>, removed: u64) -> Reply {
    success(id, &reply::Removed { removed })
}

/// A success with a descriptor.
///
/// # Errors
/// `unsupported` over TCP, `invalid` for a request without an id.
fn with<T: Serialize>(
    caller: &Caller,
    id: Option<&Id>,
    result: &T,
    descriptor: OwnedFd,
) -> Result<Reply, VerbError> {
    if caller.peer.is_some_and(|peer| peer.tcp) {
        return Err(fail(
            ErrorCode::Unsupported,
            "descriptors cannot be sent over TCP; use the unix socket",
        ));
    }
    if id.is_none() {
        return Err(fail(
            ErrorCode::Invalid,
            "a request for a descriptor needs an id, so that its answer can carry it",
        ));
    }
    Ok(Reply {
        descriptor: Some(descriptor),
        ..success(id, result)
    })
}

fn failure(id: Option<&Id>, failure: &Failure) -> Reply {
    let mut out = BytesMut::new();
    encode_error(id, failure, &mut out);
    Reply::new(out, Expect::Json)
}

fn vanished() -> VerbError {
    fail(ErrorCode::Internal, "it has vanished meanwhile")
}

fn no_descriptor() -> VerbError {
    fail(
        ErrorCode::NoDescriptor,
        "hold: no descriptor came along; send one with the line (SCM_RIGHTS) on the unix socket",
    )
}

fn not_idle() -> VerbError {
    fail(
        ErrorCode::Denied,
        "not idle: there are processes, sockets, values or held descriptors",
    )
}
