//! The JSON dialect: typed requests to verbs, results to lines.

use std::os::fd::OwnedFd;

use bytes::BytesMut;
use papa_protocol::json::push::{Lost, Push};
use papa_protocol::json::reply::{self, encode_error, encode_ok};
use papa_protocol::json::request::{Claim, Id, Op, ProcessMake, Rejected, Request};
use papa_protocol::json::{ErrorCode, Failure};
use papa_protocol::record::Serial;
use serde::Serialize;

use crate::client::exchange::{Expect, SessionId};
use crate::owner::Owner;
use crate::owner::starting::Asker;
use crate::verbs::caller::Caller;
use crate::verbs::{VerbError, claim, fail, held, socket, value};
use crate::world::reel::START_AT;

impl Owner {
    /// Answers one JSON line.
    pub(crate) fn on_json(
        &mut self,
        id: SessionId,
        request: Result<Request, Rejected>,
        descriptor: Option<OwnedFd>,
    ) {
        if self.is_ending() {
            // The session has been told, and is being closed.
            return;
        }
        let mut out = BytesMut::new();
        let mut sent = None;
        match request {
            Err(rejected) => encode_error(rejected.id.as_ref(), &rejected.failure, &mut out),
            Ok(request) => {
                let mut answer = Answer {
                    id: request.id.as_ref(),
                    out: &mut out,
                    descriptor: None,
                };
                // Answered when it is done.
                if let Op::KernelUpgrade(op) = request.op {
                    let Err(error) = self.ask_upgrade(Some((id, request.id.clone())), op) else {
                        return;
                    };
                    encode_error(request.id.as_ref(), &Failure::from(error), &mut out);
                } else if let Op::ProcessMake(op) = request.op {
                    let asker = Asker::Json {
                        session: id,
                        request: request.id,
                    };
                    return self.make_process_json(id, *op, asker);
                } else if let Err(error) = self.run_json(id, request.op, descriptor, &mut answer) {
                    encode_error(request.id.as_ref(), &Failure::from(error), &mut out);
                } else {
                    sent = answer.descriptor;
                }
            }
        }
        self.follow_up();
        self.answer_json(id, out, sent);
    }

    fn make_process_json(&mut self, id: SessionId, make: ProcessMake, asker: Asker) {
        let request = match &asker {
            Asker::Json { request, .. } => request.clone(),
            Asker::Classic { .. } => None,
        };
        let made = match self.make_process(id, make, asker) {
            Ok(None) => return,
            Ok(Some(made)) => Ok(made),
            Err(error) => Err(error),
        };
        self.answer_made_json(id, request.as_ref(), made);
    }

    /// A process that a JSON line asked for has been made, or could not be.
    pub(crate) fn answer_made_json(
        &mut self,
        id: SessionId,
        request: Option<&Id>,
        made: Result<(u64, bool), VerbError>,
    ) {
        let mut out = BytesMut::new();
        let made = made.and_then(|(serial, created)| {
            let process = self.describe_process(serial).ok_or_else(vanished)?;
            Ok(reply::ProcessMade { process, created })
        });
        match made {
            Ok(made) => Answer {
                id: request,
                out: &mut out,
                descriptor: None,
            }
            .ok(&made),
            Err(error) => encode_error(request, &Failure::from(error), &mut out),
        }
        self.answer_json(id, out, None);
    }

    fn answer_json(&mut self, id: SessionId, out: BytesMut, sent: Option<OwnedFd>) {
        if let Some(session) = self.sessions.get(&id) {
            let next = if self.is_ending() {
                Expect::Close
            } else {
                Expect::Json
            };
            session.reply_with(out, sent, next);
            if !session.subs.is_empty() {
                self.ready_sessions.insert(id);
            }
        }
    }

    fn run_json(
        &mut self,
        id: SessionId,
        op: Op,
        descriptor: Option<OwnedFd>,
        answer: &mut Answer<'_>,
    ) -> Result<(), VerbError> {
        let done = reply::Done {};
        match op {
            Op::Hello(op) => {
                let hello = self.hello();
                if let Some(session) = self.sessions.get_mut(&id) {
                    tracing::info!(session = id, client = ?op.client, "hello");
                    session.client = op.client;
                }
                answer.ok(&hello);
            }
            Op::Status(_) => answer.ok(&self.status()),
            Op::ValueSet(op) => {
                value::set(
                    &mut self.world,
                    &Caller::of(&self.sessions, id),
                    op.name,
                    Some(op.value),
                )?;
                answer.ok(&done);
            }
            Op::ValueGet(op) => {
                let value = self.world.table.values.get(&op.name).cloned();
                answer.ok(&reply::ValueReply { value });
            }
            Op::ValueList(op) => {
                let values = value::find(&self.world, &op.names)
                    .map(|(name, value)| (name.clone(), value.clone()))
                    .collect();
                answer.ok(&reply::Values { values });
            }
            Op::ValueRemove(op) => {
                let removed =
                    value::remove(&mut self.world, &Caller::of(&self.sessions, id), &op.names)?;
                answer.ok(&reply::Removed { removed });
            }
            Op::SocketMake(op) => {
                let room = self.room();
                let (socket, created) =
                    socket::make(&mut self.world, &Caller::of(&self.sessions, id), room, op)?;
                let socket =
                    socket::describe_with_path(&self.world, socket).ok_or_else(vanished)?;
                answer.ok(&reply::SocketMade { socket, created });
            }
            Op::SocketList(op) => answer.ok(&reply::SocketsReply {
                sockets: socket::list(&self.world, &op.names),
            }),
            Op::SocketRemove(op) => {
                let removed = socket::remove(
                    &mut self.world,
                    &Caller::of(&self.sessions, id),
                    &op.names,
                    op.force,
                )?;
                answer.ok(&reply::Removed { removed });
            }
            Op::SocketFetch(op) => {
                let fd = socket::fetch(&self.world, &Caller::of(&self.sessions, id), &op.name)?;
                self.answer_with(id, answer, &done, fd)?;
            }
            Op::ProcessList(op) => answer.ok(&reply::Processes {
                processes: self.list_processes(&op.names, &op.serials),
            }),
            Op::ProcessRemove(op) => {
                let removed = self.remove_processes(id, &op.names, &op.serials, op.force)?;
                answer.ok(&reply::Removed { removed });
            }
            Op::ProcessPidfd(op) => {
                self.may_change_serial(id, op.serial)?;
                let fd = self.pidfd_descriptor(op.serial)?;
                self.answer_with(id, answer, &done, fd)?;
            }
            Op::OutputConsume(op) => {
                let sub = self.consume(id, op.names, op.bytes, op.force)?;
                answer.ok(&reply::Subscribed { sub });
            }
            Op::OutputFollow(op) => {
                let sub = self.follow(id, op.names, op.from)?;
                answer.ok(&reply::Subscribed { sub });
            }
            Op::OutputStop(op) => {
                self.stop_subscription(id, op.sub)?;
                answer.ok(&done);
            }
            Op::OutputReel(op) => {
                let (fd, data_offset) = self.reel_descriptor(id, op.serial)?;
                let reel = reply::Reel {
                    data_offset,
                    start_offset: Some(START_AT),
                };
                self.answer_with(id, answer, &reel, fd)?;
            }
            Op::OutputAck(op) => {
                self.acknowledge_all(id, op.acks)?;
                answer.ok(&done);
            }
            Op::ExitAck(op) => {
                self.acknowledge_exits(id, op.serials)?;
                answer.ok(&done);
            }
            Op::Hold(op) => {
                let fd = descriptor.ok_or_else(|| {
                    fail(
                        ErrorCode::NoDescriptor,
                        "hold: no descriptor came along; send one with the line (SCM_RIGHTS) on the unix socket",
                    )
                })?;
                let room = self.room();
                held::hold(
                    &mut self.world,
                    &Caller::of(&self.sessions, id),
                    room,
                    op.name,
                    fd,
                )?;
                answer.ok(&done);
            }
            Op::Fetch(op) => {
                let fd = held::fetch(&self.world, &Caller::of(&self.sessions, id), &op.name)?;
                self.answer_with(id, answer, &done, fd)?;
            }
            Op::HoldList(op) => answer.ok(&reply::HeldReply {
                held: held::list(&self.world, &op.names),
            }),
            Op::HoldDrop(op) => {
                let removed = held::drop_matching(
                    &mut self.world,
                    &Caller::of(&self.sessions, id),
                    &op.names,
                )?;
                answer.ok(&reply::Removed { removed });
            }
            Op::Claim(op) => {
                let epoch = self.claim(id, &op)?;
                answer.ok(&reply::Claimed { epoch });
            }
            Op::ClaimRelease(op) => {
                claim::release(
                    &mut self.world,
                    &Caller::of(&self.sessions, id),
                    &op.namespace,
                )?;
                answer.ok(&done);
            }
            Op::ClaimList(_) => answer.ok(&reply::Claims {
                claims: claim::list(&self.world),
            }),
            Op::Subscribe(op) => {
                let sub = self.subscribe_changes(id, op.names)?;
                answer.ok(&reply::Subscribed { sub });
            }
            // Answered when they are done.
            Op::KernelUpgrade(_) | Op::ProcessMake(_) => return Err(vanished()),
            Op::KernelExit(_) => {
                self.may_write(id)?;
                if !self.is_idle() {
                    return Err(fail(
                        ErrorCode::Denied,
                        "not idle: there are processes, sockets, values or held descriptors",
                    ));
                }
                self.ask_exit(id);
                answer.ok(&done);
            }
        }
        Ok(())
    }

    /// Claims a namespace, and tells whoever had it before.
    fn claim(&mut self, id: SessionId, op: &Claim) -> Result<u64, VerbError> {
        let caller = Caller::of(&self.sessions, id);
        let holder = op.holder.clone();
        let (epoch, old) = claim::claim(&mut self.world, &caller, &op.namespace, holder, op.force)?;
        if let Some(session) = self.sessions.get_mut(&id) {
            session.lost.remove(&op.namespace);
        }
        if let Some(old) = old {
            if let Some(session) = self.sessions.get_mut(&old) {
                session.lost.insert(op.namespace.clone());
            }
            let mut line = BytesMut::new();
            Push::Lost(Lost {
                namespace: op.namespace.clone(),
                by: op.holder.clone(),
            })
            .encode(&mut line);
            self.push(old, line);
        }
        Ok(epoch)
    }

    /// A handle to a process lets its holder signal it.
    fn may_change_serial(&self, id: SessionId, Serial(serial): Serial) -> Result<(), VerbError> {
        match self.world.table.process(serial) {
            Some(row) => self.may_change(id, &row.make.name, false),
            None => Err(crate::verbs::output::no_process(serial)),
        }
    }

    fn answer_with<T: Serialize>(
        &self,
        id: SessionId,
        answer: &mut Answer<'_>,
        ok: &T,
        fd: OwnedFd,
    ) -> Result<(), VerbError> {
        if self
            .sessions
            .get(&id)
            .is_some_and(|session| session.peer.tcp)
        {
            return Err(fail(
                ErrorCode::Unsupported,
                "descriptors cannot be sent over TCP; use the unix socket",
            ));
        }
        if answer.id.is_none() {
            return Err(fail(
                ErrorCode::Invalid,
                "a request for a descriptor needs an id, so that its answer can carry it",
            ));
        }
        answer.ok(ok);
        answer.descriptor = Some(fd);
        Ok(())
    }
}

/// Where an answer goes.
struct Answer<'a> {
    id: Option<&'a Id>,
    out: &'a mut BytesMut,
    descriptor: Option<OwnedFd>,
}

impl Answer<'_> {
    /// A success is answered only to a request with an id.
    fn ok<T: Serialize>(&mut self, ok: &T) {
        if self.id.is_some() {
            encode_ok(self.id, ok, self.out);
        }
    }
}

fn vanished() -> VerbError {
    fail(ErrorCode::Internal, "it has vanished meanwhile")
}
