//! The classic dialect: typed requests to verbs, results to text.

use bytes::BytesMut;
use papa_protocol::classic::{self, Error, Kind, Request};
use papa_protocol::name::NamePattern;
use papa_protocol::text::ByteString;

use crate::client::exchange::{Expect, SessionId, WatchWord};
use crate::owner::Owner;
use crate::owner::starting::Asker;
use crate::verbs::caller::Caller;
use crate::verbs::{socket, value};

impl Owner {
    /// Answers one classic line.
    pub(crate) fn on_classic(&mut self, id: SessionId, request: Result<Request, Error>) {
        if self.is_ending() {
            return;
        }
        let answer = request.and_then(|request| self.run_classic(id, request));
        self.follow_up();
        self.answer_classic(id, answer);
    }

    fn answer_classic(&mut self, id: SessionId, answer: Result<Answer, Error>) {
        let mut out = BytesMut::new();
        let mut next = Expect::Command;
        match answer {
            Ok(Answer::Later) => return,
            Ok(Answer::Text(text)) => classic::finish(&text, &mut out),
            Ok(Answer::Raw(text, then)) => {
                out.extend_from_slice(text.as_bytes());
                next = then;
            }
            Ok(Answer::Json) => {
                papa_protocol::json::reply::encode_ok(None, &self.hello(), &mut out);
                next = Expect::Json;
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.json = true;
                }
            }
            Err(error) => classic::finish_error(&error.to_string(), &mut out),
        }
        if let Some(session) = self.sessions.get(&id) {
            session.reply(out, next);
            // Only a watch has something to send.
            if !session.subs.is_empty() {
                self.ready_sessions.insert(id);
            }
        }
    }

    /// A process that a classic line asked for has been made, or could not be.
    pub(crate) fn answer_made_classic(
        &mut self,
        id: SessionId,
        made: Result<u64, Error>,
        watch: bool,
    ) {
        if self.sessions.contains_key(&id) {
            let answer = made.and_then(|serial| self.made_classic(id, serial, watch));
            self.answer_classic(id, answer);
        }
    }

    fn made_classic(&mut self, id: SessionId, serial: u64, watch: bool) -> Result<Answer, Error> {
        let line = self
            .describe_process(serial)
            .map_or(String::new(), |process| classic::process_line(&process));
        if watch {
            self.watch(id, &[serial])?;
            return Ok(Answer::Raw(line + "\n", Expect::Batch));
        }
        Ok(Answer::Text(line))
    }

    fn run_classic(&mut self, id: SessionId, request: Request) -> Result<Answer, Error> {
        let text = match request {
            Request::List(Kind::Processes, names) => lines(
                self.list_processes(&names, &[])
                    .iter()
                    .map(classic::process_line),
            ),
            Request::List(Kind::Sockets, names) => lines(
                socket::list(&self.world, &names)
                    .iter()
                    .map(classic::socket_line),
            ),
            Request::List(Kind::Values, names) => lines(
                value::find(&self.world, &names)
                    .map(|(name, value)| classic::value_line(name, value.as_bytes())),
            ),
            Request::Remove(Kind::Processes, names) => {
                self.remove_processes(id, &names, &[], false)?;
                String::new()
            }
            Request::Remove(Kind::Sockets, names) => {
                socket::remove(
                    &mut self.world,
                    &Caller::of(&self.sessions, id),
                    &names,
                    false,
                )?;
                String::new()
            }
            Request::Remove(Kind::Values, names) => {
                value::remove(&mut self.world, &Caller::of(&self.sessions, id), &names)?;
                String::new()
            }
            Request::Watch(names) => {
                let serials = self
                    .world
                    .table
                    .find_processes(&names)
                    .map_err(|pattern: &NamePattern| Error::NotFound(pattern.clone()))?;
                if serials.is_empty() {
                    return Err(Error::NothingToWatch);
                }
                self.watch(id, &serials)?;
                let mut head = BytesMut::new();
                classic::watching(serials.len(), &mut head);
                let head = String::from_utf8_lossy(&head).into_owned();
                return Ok(Answer::Raw(head, Expect::Batch));
            }
            Request::MakeSocket(make) => {
                let room = self.room();
                let (socket, _) =
                    socket::make(&mut self.world, &Caller::of(&self.sessions, id), room, make)?;
                socket::describe_with_path(&self.world, socket)
                    .map_or(String::new(), |socket| classic::socket_line(&socket))
            }
            Request::MakeProcess { make, watch } => {
                let asker = Asker::Classic { session: id, watch };
                return match self.make_process(id, *make, asker)? {
                    Some((serial, _)) => self.made_classic(id, serial, watch),
                    None => Ok(Answer::Later),
                };
            }
            Request::Set(name, value) => {
                let value = value.map(|value| ByteString::from(value.into_bytes()));
                value::set(
                    &mut self.world,
                    &Caller::of(&self.sessions, id),
                    name,
                    value,
                )?;
                String::new()
            }
            Request::Get(name) => self
                .world
                .table
                .values
                .get(&name)
                .map_or(String::new(), |value| classic::value_text(value.as_bytes())),
            Request::Help(text) => text.into_owned(),
            Request::Quit => {
                return Ok(Answer::Raw(classic::QUIT_REPLY.to_owned(), Expect::Close));
            }
            Request::ExitIfIdle => {
                self.may_write(id)?;
                if self.is_idle() {
                    self.ask_exit(id);
                    return Ok(Answer::Raw(classic::EXITING.to_owned(), Expect::Close));
                }
                classic::NOT_IDLE.to_owned()
            }
            Request::Json => return Ok(Answer::Json),
        };
        Ok(Answer::Text(text))
    }

    /// A batch of watched output was answered: it may go, and exits in it are
    /// known. In a claimed namespace it was only looked at.
    pub(crate) fn on_watch_acknowledged(&mut self, id: SessionId, word: WatchWord) {
        let Some(batch) = self
            .sessions
            .get_mut(&id)
            .and_then(|session| session.watch_batch.take())
        else {
            return;
        };
        for (serial, position, closed) in batch {
            let counts = self.watch_acknowledges(id, serial);
            if counts {
                self.acknowledge(serial, position);
            }
            if closed {
                self.end_watch_of(id, serial);
                if counts {
                    self.forget_watched(serial);
                }
            }
        }
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        // A session has at most one watch: it takes no command meanwhile.
        let nothing_left = session.subs.values().all(|sub| sub.cursors.is_empty());
        let mut out = BytesMut::new();
        let next = if word == WatchWord::Leave {
            out.extend_from_slice(classic::QUIT_REPLY.as_bytes());
            Expect::Close
        } else if nothing_left {
            classic::finish(classic::NOTHING_LEFT, &mut out);
            Expect::Command
        } else if word == WatchWord::Stop {
            classic::finish(classic::STOPPED, &mut out);
            Expect::Command
        } else {
            Expect::Batch
        };
        session.reply(out, next);
        if next != Expect::Batch {
            let subs = std::mem::take(&mut session.subs);
            for sub in subs.into_values() {
                self.detach(id, sub.cursors.into_keys());
            }
        }
        self.ready_sessions.insert(id);
    }

    fn end_watch_of(&mut self, id: SessionId, serial: u64) {
        if let Some(session) = self.sessions.get_mut(&id) {
            for sub in session.subs.values_mut() {
                sub.cursors.remove(&serial);
            }
        }
        self.detach(id, std::iter::once(serial));
    }

    /// The end of a process is known and its output read: it is forgotten.
    /// Late writers are read on, so that they do not die of a broken pipe.
    fn forget_watched(&mut self, serial: u64) {
        if self
            .world
            .live
            .get(&serial)
            .is_some_and(crate::world::live::Live::streams_ended)
        {
            self.forget(serial);
        } else {
            self.remove_process(serial);
        }
    }
}

/// How a classic request is answered.
enum Answer {
    /// Text and a prompt.
    Text(String),
    /// Text as it is.
    Raw(String, Expect),
    /// The switch to JSON.
    Json,
    /// It is given when what was asked for is done.
    Later,
}

fn lines(lines: impl Iterator<Item = String>) -> String {
    let mut text = String::new();
    for line in lines {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&line);
    }
    text
}
