//! One connection: turns bytes into requests and answers into bytes.
//!
//! Owns its buffers and nothing else. Every line becomes an event, and the next line is read when
//! that is answered. A caller that has closed its sending side still gets its answers. A first line
//! that is HTTP or holds control bytes ends the session before anything runs, since a web page can
//! post text to this machine. A connection can be stopped between two lines and written down, so
//! that another program goes on with it.

mod freeze;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};
use papa_protocol::classic;
use papa_protocol::codec::{LineDecoder, content};
use papa_protocol::json::reply::encode_error;
use papa_protocol::json::{ErrorCode, Failure, request};
use papa_protocol::limits::{MAX_LINE_BYTES, MAX_PENDING_DESCRIPTORS_PER_SESSION};
use tokio::task::yield_now;

use crate::client::budget::Budget;
use crate::client::event::{Events, Incoming};
use crate::client::exchange::{Expect, Order, Outgoing, SessionId, WatchWord};

pub use self::freeze::Frozen;
use super::inbox::{Inbox, Next};
use super::transport::Transport;

/// Bytes asked for per read: more than most requests have. An idle kernel holds that much memory.
const READ_BYTES: usize = 16 * 1024;

/// The buffer that reads go into before they are taken apart. All connections share one, so that a
/// silent connection holds none.
pub type Scratch = Rc<RefCell<Box<[u8]>>>;

/// A buffer for [`Connection::new`].
#[must_use]
pub fn scratch() -> Scratch {
    Rc::new(RefCell::new(vec![0; READ_BYTES].into_boxed_slice()))
}
/// Unread input kept while an answer is awaited; more waits in the socket.
const READ_AHEAD_BYTES: usize = 64 * 1024;
/// Smallest room made for input: several of most requests fit.
const USUAL_BUFFER_BYTES: usize = 256;
/// A buffer larger than this is freed when it is empty.
const KEPT_BUFFER_BYTES: usize = 4 * 1024;
/// Most lines and orders a connection handles before others get their turn.
const TURNS: u32 = 16;

/// What is left to write of one [`Outgoing`].
#[derive(Debug)]
struct Writing {
    pieces: VecDeque<Bytes>,
    descriptor: Option<OwnedFd>,
    next: Option<Expect>,
    batch: bool,
}

/// What a connection's task was waiting for.
enum Wake {
    /// The owner has sent an order.
    Order(Order),
    /// The connection is to end.
    End,
    /// The transport can be read or written.
    Ready,
}

/// Why a connection's task ends.
enum Ending {
    Over,
    Frozen,
}

/// What the connection does with the next line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Reads it as the owner expects it.
    Ready(Expect),
    /// Leaves it unread until the owner has answered.
    Waiting,
}

/// One connection's task.
#[derive(Debug)]
pub struct Connection {
    id: SessionId,
    transport: Transport,
    events: Events,
    budget: Rc<Budget>,
    scratch: Scratch,
    input: BytesMut,
    decoder: LineDecoder,
    /// Bytes received so far, and bytes of them taken as lines.
    received: u64,
    taken: u64,
    /// Descriptors, each with the count of bytes received when it had come: the system ends a read
    /// after the bytes that a descriptor came with.
    fds: VecDeque<(u64, OwnedFd)>,
    output: VecDeque<Writing>,
    output_bytes: usize,
    /// A byte was read or written since the last report to the budget.
    moved: bool,
    /// The size last reported to the budget.
    reported_bytes: usize,
    state: State,
    first_line: bool,
    end_of_input: bool,
    /// Lines and orders handled since it last waited.
    turns: u32,
}

impl Connection {
    /// A connection on `transport`.
    #[must_use]
    pub fn new(
        id: SessionId,
        transport: Transport,
        events: Events,
        budget: Rc<Budget>,
        scratch: Scratch,
    ) -> Self {
        Self {
            id,
            transport,
            events,
            budget,
            scratch,
            input: BytesMut::new(),
            decoder: LineDecoder::new(MAX_LINE_BYTES),
            received: 0,
            taken: 0,
            fds: VecDeque::new(),
            output: VecDeque::new(),
            output_bytes: 0,
            moved: false,
            reported_bytes: 0,
            state: State::Ready(Expect::Command),
            first_line: true,
            end_of_input: false,
            turns: 0,
        }
    }

    /// Its session's number.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Sends the greeting first.
    pub fn greet(&mut self) {
        self.queue(Outgoing {
            pieces: vec![Bytes::from_static(classic::BANNER.as_bytes())],
            descriptor: None,
            next: None,
            batch: false,
        });
    }

    /// Serves a connection the owner knows until it ends or is stopped.
    pub async fn go_on(mut self, inbox: Rc<Inbox>) {
        // When the transport fails there is nobody left to tell.
        let ending = self.serve(&inbox).await.unwrap_or(Ending::Over);
        let (id, events) = (self.id, self.events.clone());
        self.budget.close(id);
        let last = match ending {
            Ending::Over => Incoming::Gone,
            Ending::Frozen => Incoming::Frozen(Box::new(Frozen {
                connection: self,
                inbox,
            })),
        };
        events.send((id, last));
    }

    async fn serve(&mut self, inbox: &Inbox) -> io::Result<Ending> {
        // Whether to stop, and whether also while an answer is awaited.
        let mut freeze = None;
        loop {
            while freeze.is_none() && self.take_line() {}
            self.report();
            // Before the end of the input is handled, since lines before it may be left.
            if freeze.is_some_and(|unanswered| unanswered || self.state != State::Waiting) {
                return Ok(Ending::Frozen);
            }
            if self.is_over() || self.is_stuck() {
                return Ok(Ending::Over);
            }
            match self.next(inbox).await? {
                Wake::Order(Order::Write(outgoing)) => {
                    self.queue(outgoing);
                    self.write()?;
                }
                Wake::Order(Order::Freeze { unanswered }) => freeze = Some(unanswered),
                Wake::End => return Ok(Ending::Over),
                Wake::Ready => {
                    self.write()?;
                    if self.wants_input() {
                        self.read()?;
                    }
                }
            }
        }
    }

    /// Reports to the budget how much is held. Holding nothing is reported once, so that requests
    /// that are answered at once do not read the clock.
    fn report(&mut self) {
        let held = self.input.len() + self.output_bytes;
        if held == 0 && self.reported_bytes == 0 {
            return;
        }
        let moved = std::mem::take(&mut self.moved);
        self.budget.report(self.id, held, moved, Instant::now());
        self.reported_bytes = held;
    }

    /// Waits for an order, or until the transport can be read or written, where that is wanted.
    async fn next(&mut self, inbox: &Inbox) -> io::Result<Wake> {
        if self.turns == TURNS {
            self.turns = 0;
            yield_now().await;
        }
        self.turns += 1;
        let (reads, writes) = (self.wants_input(), !self.output.is_empty());
        poll_fn(|context| match inbox.next() {
            Next::Order(order) => Poll::Ready(Ok(Wake::Order(order))),
            Next::End => Poll::Ready(Ok(Wake::End)),
            Next::Nothing => {
                let ready = self.transport.poll_ready(reads, writes, context);
                if ready.is_pending() {
                    self.turns = 0;
                    inbox.wait(context);
                }
                ready.map_ok(|()| Wake::Ready)
            }
        })
        .await
    }

    /// Whether the session is over.
    fn is_over(&self) -> bool {
        let drained = self.output.is_empty();
        match self.state {
            State::Ready(Expect::Close) => drained,
            // All lines that came have been taken, and no more will come.
            State::Ready(_) => drained && self.end_of_input,
            State::Waiting => false,
        }
    }

    /// Whether the session cannot go on: there is no room for more descriptors, and no line takes
    /// one. Input that is not read any more does not show its end either.
    fn is_stuck(&self) -> bool {
        self.fds.len() >= MAX_PENDING_DESCRIPTORS_PER_SESSION
            && self.output.is_empty()
            && matches!(self.state, State::Ready(_))
    }

    fn wants_input(&self) -> bool {
        if self.end_of_input || self.fds.len() >= MAX_PENDING_DESCRIPTORS_PER_SESSION {
            return false;
        }
        match self.state {
            State::Ready(Expect::Close) => false,
            State::Ready(Expect::Command | Expect::Acknowledgement | Expect::Json) => {
                // Nothing is read from a caller that does not read its answers.
                self.output.is_empty() || self.input.len() < READ_AHEAD_BYTES
            }
            // Reading goes on, to notice a caller that has gone.
            State::Ready(Expect::Batch) | State::Waiting => self.input.len() < READ_AHEAD_BYTES,
        }
    }

    fn read(&mut self) -> io::Result<()> {
        let mut scratch = self.scratch.borrow_mut();
        let mut fds = Vec::new();
        match self.transport.read(&mut scratch, &mut fds) {
            Ok(0) => self.end_of_input = true,
            Ok(length) => {
                self.moved = true;
                if self.input.is_empty() {
                    self.input.reserve(length.max(USUAL_BUFFER_BYTES));
                }
                self.input.extend_from_slice(&scratch[..length]);
                self.received += length as u64;
                self.fds
                    .extend(fds.into_iter().map(|fd| (self.received, fd)));
                // A client that follows the protocol never sends more.
                self.fds.truncate(MAX_PENDING_DESCRIPTORS_PER_SESSION);
                // What people and clients type begins with a letter.
                let strange = |byte: &u8| *byte < b' ' && !b"\r\n\t".contains(byte);
                if self.first_line && self.input.first().is_some_and(strange) {
                    self.state = State::Ready(Expect::Close);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Takes one line, if one is there and wanted; true if another may be.
    fn take_line(&mut self) -> bool {
        let State::Ready(expect) = self.state else {
            return false;
        };
        // Answers are written before the next request is taken, so that what
        // a caller does not read stays in its own socket. Batches may be
        // under way: they are acknowledged while they arrive.
        let unanswered = self.output.iter().any(|writing| writing.next.is_some());
        if unanswered || matches!(expect, Expect::Batch | Expect::Close) {
            return false;
        }
        let length = match self.decoder.find(&self.input) {
            Ok(Some(length)) => length,
            Ok(None) => {
                // Its capacity is what is left of the buffer behind the last line.
                if self.input.is_empty() && self.input.try_reclaim(KEPT_BUFFER_BYTES + 1) {
                    self.input = BytesMut::new();
                }
                return false;
            }
            Err(error) => {
                self.refuse(expect, &error.to_string());
                return false;
            }
        };
        let line = content(&self.input[..length]);
        if std::mem::take(&mut self.first_line) {
            if is_not_for_us(line) {
                tracing::warn!(
                    session = self.id,
                    "not a papa client (HTTP or control bytes); closed"
                );
                self.state = State::Ready(Expect::Close);
                return false;
            }
            self.budget.has_spoken(self.id);
        }
        let mut event = understand(expect, line);
        self.input.advance(length);
        self.taken += length as u64;
        // A descriptor that came with a line that takes none is not for the next line.
        let came = self.descriptor_of_line();
        match &mut event {
            None if expect == Expect::Command => {
                self.answer(Bytes::from_static(classic::PROMPT.as_bytes()), expect);
            }
            None if expect == Expect::Acknowledgement => {
                self.answer(Bytes::from_static(classic::WATCH_HINT.as_bytes()), expect);
            }
            Some(Incoming::Json(Ok(request), descriptor)) => {
                *descriptor = came.filter(|_| request.op.takes_descriptor());
            }
            _ => {}
        }
        let Some(event) = event else {
            return true;
        };
        self.state = State::Waiting;
        self.events.send((self.id, event));
        false
    }

    /// The descriptor that came with the line just taken. Others that came with it or before it are
    /// closed.
    fn descriptor_of_line(&mut self) -> Option<OwnedFd> {
        let mut found = None;
        while self.fds.front().is_some_and(|(at, _)| *at <= self.taken)
            && let Some((_, fd)) = self.fds.pop_front()
        {
            found = Some(fd);
        }
        found
    }

    /// Ends the session with the reason why its input cannot be read on.
    fn refuse(&mut self, expect: Expect, message: &str) {
        let mut text = BytesMut::new();
        if expect == Expect::Json {
            encode_error(None, &Failure::new(ErrorCode::Limit, message), &mut text);
        } else {
            classic::finish_error(message, &mut text);
        }
        self.answer(text.freeze(), Expect::Close);
        self.input.clear();
    }

    fn answer(&mut self, bytes: Bytes, next: Expect) {
        self.queue(Outgoing {
            pieces: vec![bytes],
            descriptor: None,
            next: Some(next),
            batch: false,
        });
    }

    fn queue(&mut self, outgoing: Outgoing) {
        if let Some(next) = outgoing.next {
            self.state = State::Ready(next);
            if self.end_of_input && next == Expect::Batch {
                // Nobody will acknowledge what would come.
                self.state = State::Ready(Expect::Close);
            }
        }
        let mut pieces = VecDeque::from(outgoing.pieces);
        pieces.retain(|piece| !piece.is_empty());
        self.output_bytes += pieces.iter().map(Bytes::len).sum::<usize>();
        self.output.push_back(Writing {
            pieces,
            descriptor: outgoing.descriptor,
            next: outgoing.next,
            batch: outgoing.batch,
        });
    }

    /// Writes what the socket takes.
    fn write(&mut self) -> io::Result<()> {
        while let Some(writing) = self.output.front_mut() {
            while !writing.pieces.is_empty() {
                let descriptor = writing.descriptor.as_ref();
                let mut written = match self.transport.write(&writing.pieces, descriptor) {
                    Ok(written) => written,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                    Err(error) => return Err(error),
                };
                // It goes with the first byte, once.
                writing.descriptor = None;
                self.moved |= written > 0;
                self.output_bytes -= written;
                while written > 0 {
                    let Some(piece) = writing.pieces.front_mut() else {
                        break;
                    };
                    let part = written.min(piece.len());
                    piece.advance(part);
                    written -= part;
                    if piece.is_empty() {
                        writing.pieces.pop_front();
                    }
                }
            }
            let Some(done) = self.output.pop_front() else {
                break;
            };
            let report = match (done.batch, done.next) {
                (true, _) => Some(Incoming::Drained),
                (false, None) => Some(Incoming::Pushed),
                (false, Some(_)) => None,
            };
            if let Some(report) = report {
                self.events.send((self.id, report));
            }
        }
        Ok(())
    }
}

/// The event that a line means; none if the line is blank, or answers a batch with a word that is
/// no answer.
fn understand(expect: Expect, line: &[u8]) -> Option<Incoming> {
    match expect {
        Expect::Command => classic::parse_bytes(line)
            .transpose()
            .map(Incoming::Classic),
        Expect::Acknowledgement => WatchWord::read(line).map(Incoming::Acknowledge),
        Expect::Json => request::Request::parse(line)
            .transpose()
            .map(|request| Incoming::Json(request, None)),
        // Nothing is read then.
        Expect::Batch | Expect::Close => None,
    }
}

/// Whether a first line is a browser's request, or is not text.
fn is_not_for_us(line: &[u8]) -> bool {
    let control = line
        .iter()
        .any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f);
    let http = line.trim_ascii_end().len() >= 9 && {
        let tail = &line.trim_ascii_end()[line.trim_ascii_end().len() - 9..];
        tail.starts_with(b" HTTP/")
            && tail[6].is_ascii_digit()
            && tail[7] == b'.'
            && tail[8].is_ascii_digit()
    };
    control || http
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_and_tls_are_not_for_us_and_telnet_is() {
        for line in [
            "POST / HTTP/1.1",
            "GET /x HTTP/2.0\r",
            "a\x01b",
            "\x16\x03\x01",
        ] {
            assert!(is_not_for_us(line.as_bytes()), "{line:?}");
        }
        for line in [
            "",
            "list processes",
            "set x HTTP/1.1x",
            "get HTTP",
            "help\t",
        ] {
            assert!(!is_not_for_us(line.as_bytes()), "{line:?}");
        }
    }
}
