//! What one session is sent at once: output and ends, in the form of its dialect.

use bytes::{Bytes, BytesMut};
use nix::errno::Errno;
use papa_protocol::classic;
use papa_protocol::json::push::{End, Exited, OutputHeader, Push, encode_output};
use papa_protocol::json::request::Delivery;
use papa_protocol::limits::MAX_BATCH_RECORDS;
use papa_protocol::record::{Record, Serial, Stream};

use super::session::{Cursor, SubKind, Subscription, WatchBatch};
use crate::world::live::Live;
use crate::world::reel::Reel;
use crate::world::table::ProcessRow;

/// Output of at least this many bytes gets a piece of its own instead of being copied behind other
/// output.
const OWN_PIECE_BYTES: usize = 16 * 1024;

/// What one session is sent at once.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pieces: Vec<Bytes>,
    pub text: BytesMut,
    limit_bytes: usize,
    /// Bytes in pieces of their own.
    bytes: usize,
    records: usize,
    /// Output could not be read, so the batch must not be sent.
    pub broken: bool,
}

impl Batch {
    pub(super) fn new(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            ..Self::default()
        }
    }

    pub(super) fn is_empty(&self) -> bool {
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

    pub(super) fn finish(mut self) -> Vec<Bytes> {
        self.pieces.push(self.text.freeze());
        self.pieces
    }

    /// Goes through the processes with something to send; `take` says whether
    /// one has more than fitted.
    pub(super) fn gather(
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
    pub(super) fn frames(
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
    pub(super) fn messages(
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
pub(super) fn tell_ends(
    number: u64,
    row: &ProcessRow,
    live: &Live,
    cursor: &mut Cursor,
    text: &mut BytesMut,
) {
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
