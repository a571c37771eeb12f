//! What requests do, in both dialects.
//!
//! [`answer`] takes a request in and gives back its reply, or what the owner has to do before it
//! can be answered. `classic.rs` and `json.rs` pick the verb and put its result into words; each
//! verb is a function of the world, the readers where it concerns them, and the caller. There is
//! one file per kind of thing.
//! Invariant: a verb that fails has changed nothing, unless its documentation says so.

mod account;
pub(crate) mod claim;
mod classic;
mod held;
mod json;
mod layout;
mod meta;
mod output;
mod pipes;
pub(crate) mod process;
pub(crate) mod process_plan;
pub(crate) mod room;
mod socket;
mod value;

use std::os::fd::OwnedFd;

use bytes::BytesMut;
use nix::errno::Errno;
use papa_protocol::classic::{Error, Request as ClassicRequest};
use papa_protocol::json::request::{Id, KernelUpgrade, Rejected, Request as JsonRequest};
use papa_protocol::json::{ErrorCode, Failure};

pub(crate) use self::classic::acknowledge_watch;
pub(crate) use self::json::refusal;
use self::process::Ready;
use self::room::Usage;
use crate::client::exchange::{Expect, SessionId};
use crate::readers::Readers;
use crate::sys::errno::words;
use crate::world::World;
use crate::world::journal::JournalError;

/// Why a verb failed. The texts of the classic dialect serve both.
pub(crate) type VerbError = Error;

/// A request as a connection has read it.
#[derive(Debug)]
pub(crate) enum Request {
    /// A classic line.
    Classic(Result<ClassicRequest, Error>),
    /// A JSON line, and the descriptor that came along with it.
    Json(Result<JsonRequest, Rejected>, Option<OwnedFd>),
}

/// The bytes that answer a request.
#[derive(Debug)]
pub(crate) struct Reply {
    pub bytes: BytesMut,
    /// Goes with the first byte.
    pub descriptor: Option<OwnedFd>,
    /// What the session's next line is taken for.
    pub next: Expect,
}

impl Reply {
    /// A reply without a descriptor.
    fn new(bytes: BytesMut, next: Expect) -> Self {
        Self {
            bytes,
            descriptor: None,
            next,
        }
    }
}

/// What a request leads to.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It is done, and this is its reply.
    Reply(Reply),
    /// The kernel is to end; the reply comes first.
    End(Reply),
    /// The process is to be started; [`answer_made`] gives the reply when that is over.
    Start(Box<Ready>, Asker),
    /// The program is to be changed; the change answers the request of this id itself.
    Upgrade(KernelUpgrade, Option<Id>),
}

/// Who gets the answer when a process has been started.
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

impl Asker {
    /// The session that asked.
    pub(crate) fn session(&self) -> SessionId {
        match self {
            Self::Classic { session, .. } | Self::Json { session, .. } => *session,
        }
    }
}

/// Does what `session` requests.
pub(crate) fn answer(
    world: &mut World,
    readers: &mut Readers,
    usage: Usage,
    session: SessionId,
    request: Request,
) -> Answer {
    let caller = readers.caller(session);
    match request {
        Request::Classic(request) => classic::answer(world, readers, usage, &caller, request),
        Request::Json(request, descriptor) => {
            json::answer(world, readers, usage, &caller, request, descriptor)
        }
    }
}

/// The reply to whoever asked for a process: it was made (with its serial, and whether it is new)
/// or could not be.
pub(crate) fn answer_made(
    world: &mut World,
    readers: &mut Readers,
    asker: &Asker,
    made: Result<(u64, bool), VerbError>,
) -> Reply {
    match asker {
        Asker::Classic { session, watch } => {
            let caller = readers.caller(*session);
            let made = made.map(|(serial, _)| serial);
            classic::answer_made(world, readers, &caller, made, *watch)
        }
        Asker::Json { request, .. } => json::answer_made(world, request.as_ref(), made),
    }
}

/// A failure of `code` with these words.
#[must_use]
pub(crate) fn fail(code: ErrorCode, message: &str) -> VerbError {
    Failure::new(code, message).into()
}

/// A limit of the wire or the system that is reached.
#[must_use]
pub(crate) fn limit(what: &str, limit: usize) -> VerbError {
    fail(
        ErrorCode::Limit,
        &format!("there are {limit} {what}, which is the limit; remove some first"),
    )
}

/// The journal could not record a change, so it was not made.
pub(crate) fn not_recorded(error: &JournalError) -> VerbError {
    fail(
        ErrorCode::Internal,
        &format!("the change could not be recorded, so it was not made: {error}"),
    )
}

/// The system refused a descriptor or memory.
pub(crate) fn refused(operation: &str, errno: Errno) -> VerbError {
    let code = match errno {
        Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOSPC => ErrorCode::Limit,
        _ => ErrorCode::Internal,
    };
    fail(code, &format!("{operation}: {}", words(errno)))
}

#[cfg(test)]
mod tests;
