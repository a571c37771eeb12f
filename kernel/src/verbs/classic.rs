//! The classic dialect: typed requests to verbs, results to text.

use bytes::BytesMut;
use papa_protocol::classic::{self, Error, Kind, Request};
use papa_protocol::json::reply::encode_ok;
use papa_protocol::name::{Name, NamePattern};
use papa_protocol::text::ByteString;

use super::claim::may_write;
use super::process::Made;
use super::room::Usage;
use super::{Answer, Asker, Reply, VerbError, meta, output, process, socket, value};
use crate::client::exchange::{Expect, SessionId, WatchWord};
use crate::processes::capture;
use crate::processes::exits::{forget, give_up};
use crate::readers::Readers;
use crate::world::World;
use crate::world::caller::Caller;
use crate::world::live::Live;

/// Answers one classic line.
pub(super) fn answer(
    world: &mut World,
    readers: &mut Readers,
    usage: Usage,
    caller: &Caller,
    request: Result<Request, Error>,
) -> Answer {
    request
        .and_then(|request| run(world, readers, usage, caller, request))
        .unwrap_or_else(|error| Answer::Reply(refusal(&error)))
}

/// The reply to whoever asked for a process.
pub(super) fn answer_made(
    world: &mut World,
    readers: &mut Readers,
    caller: &Caller,
    made: Result<u64, VerbError>,
    watch: bool,
) -> Reply {
    made.and_then(|serial| describe_made(world, readers, caller, serial, watch))
        .unwrap_or_else(|error| refusal(&error))
}

fn run(
    world: &mut World,
    readers: &mut Readers,
    usage: Usage,
    caller: &Caller,
    request: Request,
) -> Result<Answer, VerbError> {
    let reply = match request {
        Request::List(kind, names) => text(&list(world, kind, &names)),
        Request::Remove(kind, names) => {
            remove(world, readers, caller, kind, &names)?;
            text("")
        }
        Request::Watch(names) => watch(world, readers, caller, &names)?,
        Request::MakeSocket(make) => {
            let (socket, _) = socket::make(world, caller, usage.room, make)?;
            let socket = socket::describe_with_path(world, socket);
            text(&socket.map_or(String::new(), |socket| classic::socket_line(&socket)))
        }
        Request::MakeProcess { make, watch } => {
            match process::make(world, caller, usage.room, *make)? {
                Made::Exists(serial) => describe_made(world, readers, caller, serial, watch)?,
                Made::Ready(ready) => {
                    let session = caller.session;
                    return Ok(Answer::Start(ready, Asker::Classic { session, watch }));
                }
            }
        }
        Request::Set(name, value) => {
            let value = value.map(|value| ByteString::from(value.into_bytes()));
            value::set(world, caller, name, value)?;
            text("")
        }
        Request::Get(name) => text(&get(world, &name)),
        Request::Help(help) => text(&help),
        Request::Quit => raw(classic::QUIT_REPLY, Expect::Close),
        Request::ExitIfIdle => {
            may_write(world, caller)?;
            if world.is_idle() {
                return Ok(Answer::End(raw(classic::EXITING, Expect::Close)));
            }
            text(classic::NOT_IDLE)
        }
        Request::Json => to_json(world, readers, caller.session),
    };
    Ok(Answer::Reply(reply))
}

fn list(world: &World, kind: Kind, names: &[NamePattern]) -> String {
    match kind {
        Kind::Processes => lines(
            process::list(world, names, &[])
                .iter()
                .map(classic::process_line),
        ),
        Kind::Sockets => lines(socket::list(world, names).iter().map(classic::socket_line)),
        Kind::Values => lines(
            value::find(world, names)
                .map(|(name, value)| classic::value_line(name, value.as_bytes())),
        ),
    }
}

fn remove(
    world: &mut World,
    readers: &mut Readers,
    caller: &Caller,
    kind: Kind,
    names: &[NamePattern],
) -> Result<u64, VerbError> {
    match kind {
        Kind::Processes => process::remove(world, readers, caller, names, &[], false),
        Kind::Sockets => socket::remove(world, caller, names, false),
        Kind::Values => value::remove(world, caller, names),
    }
}

fn watch(
    world: &mut World,
    readers: &mut Readers,
    caller: &Caller,
    names: &[NamePattern],
) -> Result<Reply, VerbError> {
    let serials = world
        .table
        .find_processes(names)
        .map_err(|pattern| Error::NotFound(pattern.clone()))?;
    if serials.is_empty() {
        return Err(Error::NothingToWatch);
    }
    output::watch(world, readers, caller, &serials)?;
    let mut head = BytesMut::new();
    classic::watching(serials.len(), &mut head);
    Ok(Reply::new(head, Expect::Batch))
}

fn get(world: &World, name: &Name) -> String {
    let value = world.table.values.get(name);
    value.map_or(String::new(), |value| classic::value_text(value.as_bytes()))
}

/// Changes a session to JSON, which `hello` answers.
fn to_json(world: &World, readers: &mut Readers, session: SessionId) -> Reply {
    if let Some(session) = readers.sessions.get_mut(&session) {
        session.json = true;
    }
    let mut out = BytesMut::new();
    encode_ok(None, &meta::hello(world), &mut out);
    Reply::new(out, Expect::Json)
}

/// A process that was made, or existed; a watch of it begins with the reply.
fn describe_made(
    world: &mut World,
    readers: &mut Readers,
    caller: &Caller,
    serial: u64,
    watch: bool,
) -> Result<Reply, VerbError> {
    let line = world
        .describe(serial)
        .map_or(String::new(), |process| classic::process_line(&process));
    if watch {
        output::watch(world, readers, caller, &[serial])?;
        return Ok(raw(&(line + "\n"), Expect::Batch));
    }
    Ok(text(&line))
}

/// Handles the line that answers a batch of watched output: the output may go, and exits in the
/// batch are known. In a namespace that another client has claimed neither counts. None if no batch
/// awaits an answer.
pub(crate) fn acknowledge_watch(
    world: &mut World,
    readers: &mut Readers,
    id: SessionId,
    word: WatchWord,
) -> Option<Reply> {
    let session = readers.sessions.get_mut(&id)?;
    let batch = session.watch_batch.take()?;
    let caller = readers.caller(id);
    for (serial, position, closed) in batch {
        let counts = output::watch_acknowledges(world, &caller, serial);
        if counts {
            capture::acknowledge(world, readers, serial, position);
        }
        if closed {
            end_watch_of(world, readers, id, serial);
            if counts {
                forget_watched(world, readers, serial);
            }
        }
    }
    let session = readers.sessions.get_mut(&id)?;
    // A session has at most one watch: it takes no command meanwhile.
    let nothing_left = session.subs.values().all(|sub| sub.cursors.is_empty());
    let reply = match word {
        WatchWord::Leave => raw(classic::QUIT_REPLY, Expect::Close),
        _ if nothing_left => text(classic::NOTHING_LEFT),
        WatchWord::Stop => text(classic::STOPPED),
        WatchWord::More => raw("", Expect::Batch),
    };
    if reply.next != Expect::Batch {
        for sub in std::mem::take(&mut session.subs).into_values() {
            readers.detach(world, id, sub.cursors.into_keys());
        }
    }
    Some(reply)
}

fn end_watch_of(world: &mut World, readers: &mut Readers, id: SessionId, serial: u64) {
    if let Some(session) = readers.sessions.get_mut(&id) {
        for sub in session.subs.values_mut() {
            sub.cursors.remove(&serial);
        }
    }
    readers.detach(world, id, std::iter::once(serial));
}

/// Forgets a process whose end is known and whose output is read. Late writers are read on, so that
/// they do not die of a broken pipe.
fn forget_watched(world: &mut World, readers: &mut Readers, serial: u64) {
    if world.live.get(&serial).is_some_and(Live::streams_ended) {
        forget(world, readers, serial);
    } else {
        give_up(world, readers, serial);
    }
}

/// Text and a prompt.
fn text(text: &str) -> Reply {
    let mut out = BytesMut::new();
    classic::finish(text, &mut out);
    Reply::new(out, Expect::Command)
}

/// Text as it is.
fn raw(text: &str, next: Expect) -> Reply {
    Reply::new(BytesMut::from(text), next)
}

fn refusal(error: &VerbError) -> Reply {
    let mut out = BytesMut::new();
    classic::finish_error(&error.to_string(), &mut out);
    Reply::new(out, Expect::Command)
}

fn lines(lines: impl Iterator<Item = String>) -> String {
    let lines: Vec<String> = lines.collect();
    lines.join("\n")
}
