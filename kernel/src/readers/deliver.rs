//! How output reaches readers: pushed, in batches, one under way a session.
//!
//! Whoever has something to send is queued; a session that has written its
//! last batch gets the next, as large as what has come meanwhile. Nothing is
//! kept for a reader but its position: the bytes stay in the reel.

use bytes::{Bytes, BytesMut};
use nix::errno::Errno;
use papa_protocol::classic;
use papa_protocol::json::push::{End, Event, EventType, Exited, OutputHeader, Push, encode_output};
use papa_protocol::json::request::Delivery;
use papa_protocol::limits::{MAX_BATCH_BYTES, MAX_BATCH_RECORDS};
use papa_protocol::record::{Record, Serial, Stream};

use crate::client::exchange::{Expect, SessionId};
use crate::owner::{Deadline, Owner};
use crate::readers::session::{Cursor, SubKind, Subscription, WatchBatch};
use crate::world::live::{Live, Reader};
use crate::world::reel::Reel;
use crate::world::table::ProcessRow;

/// Output of at least this many bytes is not copied together with other.
const OWN_PIECE_BYTES: usize = 16 * 1024;
/// What a session without a consumer is sent at once: those who only look may
/// be many and slow.
const FOLLOWER_BATCH_BYTES: usize = 256 * 1024;

impl Owner {
    /// Sends what is due to every session that can take it.
    pub(crate) fn deliver(&mut self) {
        if self.ready_sessions.is_empty() || self.is_freezing() {
            return;
        }
        for id in std::mem::take(&mut self.ready_sessions) {
            self.deliver_to(id);
        }
    }

    fn deliver_to(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if session.busy {
            return;
        }
        if let Some(until) = session.hold_until {
            if std::time::Instant::now() < until {
                self.deadlines.insert((until, Deadline::FirstBatch(id)));
                return;
            }
            session.hold_until = None;
        }
        let only_looks = session
            .subs
            .values()
            .all(|sub| matches!(sub.kind, SubKind::Follow { .. } | SubKind::Changes));
        let mut batch = Batch::new(if only_looks {
            FOLLOWER_BATCH_BYTES
        } else {
            MAX_BATCH_BYTES
        });
        let mut watched: Option<WatchBatch> = None;
        for (number, sub) in &mut session.subs {
            match sub.kind {
                SubKind::Changes => {}
                SubKind::Watch if session.watch_batch.is_some() => {}
                SubKind::Watch => {
                    let mut marks = WatchBatch::new();
                    batch.gather(sub, |batch, sub, serial| {
                        let (Some(row), Some(live)) = (
                            self.world.table.process(serial),
                            self.world.live.get_mut(&serial),
                        ) else {
                            return false;
                        };
                        let consumer = is_consumer(live, id, *number);
                        batch.frames(sub, row, live, consumer, &mut marks)
                    });
                    if !marks.is_empty() {
                        watched = Some(marks);
                    }
                }
                SubKind::Consume(_) | SubKind::Follow { .. } => {
                    batch.gather(sub, |batch, sub, serial| {
                        let (Some(row), Some(live)) = (
                            self.world.table.process(serial),
                            self.world.live.get_mut(&serial),
                        ) else {
                            return false;
                        };
                        let consumer = is_consumer(live, id, *number);
                        batch.messages(*number, sub, row, live, consumer)
                    });
                }
            }
        }
        if batch.broken {
            session.close();
            return;
        }
        if let Some(marks) = watched {
            batch
                .text
                .extend_from_slice(classic::WATCH_BATCH_END.as_bytes());
            session.watch_batch = Some(marks);
            session.send_batch(batch.finish(), Some(Expect::Acknowledgement));
        } else if !batch.is_empty() {
            session.send_batch(batch.finish(), None);
        }
    }

    /// Queues a process with everybody who reads it.
    pub(crate) fn mark_readers(&mut self, serial: u64) {
        let Some(live) = self.world.live.get(&serial) else {
            return;
        };
        for reader in &live.readers {
            if let Some(session) = self.sessions.get_mut(&reader.session)
                && let Some(sub) = session.subs.get_mut(&reader.sub)
            {
                sub.mark(serial);
                self.ready_sessions.insert(reader.session);
            }
        }
    }

    /// Has a subscription read a process from `position` on.
    pub(crate) fn attach(&mut self, reader: Reader, serial: u64, position: u64, consume: bool) {
        let Some(live) = self.world.live.get_mut(&serial) else {
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
            self.ready_sessions.insert(reader.session);
        }
    }

    /// A session, or one of its subscriptions, reads these no more.
    pub(crate) fn detach(&mut self, session: SessionId, serials: impl Iterator<Item = u64>) {
        for serial in serials {
            let Some(live) = self.world.live.get_mut(&serial) else {
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
                self.elect_consumer(serial);
            }
        }
    }

    /// Of several classic watchers one counts as the consumer; when it goes,
    /// the next does.
    fn elect_consumer(&mut self, serial: u64) {
        let Some(live) = self.world.live.get(&serial) else {
            return;
        };
        let next =
            live.readers.iter().copied().find(|reader| {
                let session = self.sessions.get(&reader.session);
                session
                    .and_then(|session| session.subs.get(&reader.sub))
                    .is_some_and(|sub| sub.kind == SubKind::Watch)
                    && self.world.table.process(serial).is_some_and(|row| {
                        !self.is_claimed_by_other(reader.session, &row.make.name)
                    })
            });
        if let Some(live) = self.world.live.get_mut(&serial) {
            live.consumer = next;
        }
    }

    /// Tells whoever reads a process that is about to be forgotten what they have
    /// come to. The last end may come when all output is acknowledged and the
    /// exit is known, which leaves no later turn to tell it in.
    pub(crate) fn tell_last(&mut self, serial: u64) {
        let (Some(row), Some(live)) = (
            self.world.table.process(serial),
            self.world.live.get(&serial),
        ) else {
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

    /// A process is gone: no subscription reads it any more.
    pub(crate) fn drop_cursor(&mut self, reader: Reader, serial: u64) {
        if let Some(session) = self.sessions.get_mut(&reader.session)
            && let Some(sub) = session.subs.get_mut(&reader.sub)
        {
            sub.cursors.remove(&serial);
            session.end_watch_of_nothing();
        }
    }

    /// Lets live subscriptions know of a new process.
    pub(crate) fn include_new(&mut self, serial: u64) {
        let Some(row) = self.world.table.process(serial) else {
            return;
        };
        let name = row.make.name.clone();
        let holder = self.world.claim_holder(&name);
        let mut readers = Vec::new();
        let mut consumer = None;
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
                // A consumer whose claim was taken over, or who is outside
                // it, is not asked any more; of several the claim's holder
                // is preferred, then the latest.
                if consumes && self.may_change(*id, &name, false).is_err() {
                    continue;
                }
                let before: Option<Reader> = consumer;
                if consumes
                    && before.is_none_or(|before| {
                        holder.is_none_or(|holder| !self.is_same_process(before.session, holder))
                            || holder.is_some_and(|holder| self.is_same_process(*id, holder))
                    })
                {
                    consumer = Some(reader);
                }
                readers.push(reader);
            }
        }
        for reader in readers {
            self.attach(reader, serial, 0, consumer == Some(reader));
        }
    }

    /// Tells those who asked for changes.
    pub(crate) fn announce(&mut self, serial: u64, kind: EventType) {
        let Some(row) = self.world.table.process(serial) else {
            return;
        };
        let name = row.make.name.clone();
        if !self.anybody_wants_changes() {
            return;
        }
        let process = self.describe_process(serial);
        self.push_event(&Event {
            sub: 0,
            seq: 0,
            kind,
            name,
            serial: Some(Serial(serial)),
            process,
            socket: None,
        });
    }

    fn anybody_wants_changes(&self) -> bool {
        self.sessions.values().any(|session| {
            session
                .subs
                .values()
                .any(|sub| sub.kind == SubKind::Changes)
        })
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
}

fn is_consumer(live: &Live, session: SessionId, sub: u64) -> bool {
    live.consumer == Some(Reader { session, sub })
}

/// What one session is sent at once.
#[derive(Debug, Default)]
struct Batch {
    pieces: Vec<Bytes>,
    text: BytesMut,
    limit_bytes: usize,
    /// Bytes in pieces of their own.
    bytes: usize,
    records: usize,
    broken: bool,
}

impl Batch {
    fn new(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            ..Self::default()
        }
    }

    fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.text.is_empty()
    }

    fn room(&self) -> usize {
        self.limit_bytes
            .saturating_sub(self.bytes)
            .saturating_sub(self.text.len())
    }

    fn is_full(&self) -> bool {
        self.room() == 0 || self.records >= MAX_BATCH_RECORDS
    }

    fn finish(mut self) -> Vec<Bytes> {
        self.pieces.push(self.text.freeze());
        self.pieces
    }

    /// Goes through the processes with something to send; `take` says whether
    /// one has more than fitted.
    fn gather(
        &mut self,
        sub: &mut Subscription,
        mut take: impl FnMut(&mut Self, &mut Subscription, u64) -> bool,
    ) {
        while !self.is_full()
            && let Some(serial) = sub.next_pending()
        {
            if take(self, sub, serial) {
                sub.mark(serial);
            }
        }
    }

    /// Appends output: little by copying it behind the text, much as a piece of
    /// its own.
    fn append(&mut self, reel: &Reel, position: u64, length: usize) -> Result<(), Errno> {
        if length < OWN_PIECE_BYTES {
            return reel.read(&mut self.text, position, length);
        }
        let mut piece = BytesMut::with_capacity(length);
        reel.read(&mut piece, position, length)?;
        if !self.text.is_empty() {
            self.bytes += self.text.len();
            self.pieces.push(self.text.split().freeze());
        }
        self.bytes += length;
        self.pieces.push(piece.freeze());
        Ok(())
    }

    /// A header is in the batch and its bytes cannot be had: the batch must not
    /// be sent, and the session cannot be told anything else either.
    fn fail(&mut self, serial: u64, errno: Errno) {
        tracing::error!(serial, %errno, "cannot read a reel; closing its reader");
        self.broken = true;
    }

    /// Frames of the classic dialect. True if there is more.
    fn frames(
        &mut self,
        sub: &mut Subscription,
        row: &ProcessRow,
        live: &mut Live,
        consumer: bool,
        marks: &mut WatchBatch,
    ) -> bool {
        let Some(cursor) = sub.cursors.get_mut(&row.serial) else {
            return false;
        };
        let mut sent = false;
        let first = cursor.position.max(live.start());
        let mut position = first;
        if let Some(reel) = &live.reel {
            let (_, records) = clip(reel.records_from(first), first, self.room());
            for record in records {
                let length = usize::try_from(record.end - position).unwrap_or(0);
                classic::watch_output(
                    record.stream,
                    &row.make.name,
                    record.stamp_us,
                    length,
                    &mut self.text,
                );
                if let Err(errno) = self.append(reel, position, length) {
                    self.fail(row.serial, errno);
                    return false;
                }
                self.text.extend_from_slice(b"\n");
                position = record.end;
                self.records += 1;
                sent = true;
            }
        }
        cursor.position = position;
        let all = position >= live.committed();
        if consumer {
            live.count_delivered(first, position);
        }
        let closed = match &row.exit {
            Some(exit) if all && live.drained && !cursor.exit_sent => {
                classic::watch_closed(
                    &row.make.name,
                    exit.stamp_us,
                    exit.classic_code(),
                    &mut self.text,
                );
                cursor.exit_sent = true;
                true
            }
            _ => false,
        };
        if sent || closed {
            marks.push((row.serial, position, closed));
        }
        !all
    }

    /// Messages of the JSON dialect. True if there is more.
    fn messages(
        &mut self,
        number: u64,
        sub: &mut Subscription,
        row: &ProcessRow,
        live: &mut Live,
        consumer: bool,
    ) -> bool {
        let delivery = match sub.kind {
            SubKind::Consume(delivery) => delivery,
            _ => Delivery::Inline,
        };
        let Some(cursor) = sub.cursors.get_mut(&row.serial) else {
            return false;
        };
        let serial = Serial(row.serial);
        let start = cursor.position.max(live.start());
        // What is gone is not waited for: a reader that lags may find everything
        // acknowledged by the consumer, and has nothing left to read then.
        cursor.position = start;
        if let Some(reel) = &live.reel {
            let inline = match delivery {
                Delivery::Inline => true,
                Delivery::Reel => false,
                // What is worth a piece of its own is worth no copy at all, where the reader can do
                // without.
                Delivery::Auto => {
                    reel.data_offset().is_none()
                        || reel.committed() - start < OWN_PIECE_BYTES as u64
                }
            };
            let room = if inline { self.room() } else { usize::MAX };
            let (end, records) = clip(reel.records_from(start), start, room);
            if end > start {
                self.records += records.len();
                let length = end - start;
                encode_output(
                    &OutputHeader {
                        sub: number,
                        serial,
                        start,
                        length,
                        inline,
                        records,
                    },
                    &mut self.text,
                );
                if inline {
                    let bytes = usize::try_from(length).unwrap_or(0);
                    if let Err(errno) = self.append(reel, start, bytes) {
                        self.fail(row.serial, errno);
                        return false;
                    }
                }
                if consumer {
                    live.count_delivered(start, end);
                }
                cursor.position = end;
            }
        }
        let all = cursor.position >= live.committed();
        tell_ends(number, row, live, cursor, &mut self.text);
        !all
    }
}

/// Says what a reader has come to: the ends of the streams it has read, and
/// the exit, each once.
fn tell_ends(number: u64, row: &ProcessRow, live: &Live, cursor: &mut Cursor, text: &mut BytesMut) {
    let serial = Serial(row.serial);
    for (index, stream) in Stream::ALL.into_iter().enumerate() {
        let ended = match stream {
            Stream::Out => live.ends.out,
            Stream::Err => live.ends.err,
        };
        if let Some(position) = ended
            && !cursor.ends_sent[index]
            && cursor.position >= position
        {
            cursor.ends_sent[index] = true;
            Push::End(End {
                sub: number,
                serial,
                stream,
                position,
            })
            .encode(text);
        }
    }
    if let Some(exit) = &row.exit
        && !cursor.exit_sent
        && (live.drained || live.paused)
    {
        cursor.exit_sent = true;
        Push::Exit(Exited {
            sub: number,
            serial,
            exit: exit.clone(),
        })
        .encode(text);
    }
}

/// The records from `start` on, cut to `room` bytes and the batch's number of
/// records; with the position where they end.
fn clip<'a>(
    records: impl Iterator<Item = &'a Record>,
    start: u64,
    room: usize,
) -> (u64, Vec<Record>) {
    let limit = start.saturating_add(room as u64);
    let mut end = start;
    let mut kept = Vec::new();
    for record in records {
        if end >= limit || kept.len() >= MAX_BATCH_RECORDS {
            break;
        }
        end = record.end.min(limit);
        kept.push(Record { end, ..*record });
    }
    (end, kept)
}
