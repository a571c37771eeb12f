//! How far one process is: what of each stream was taken in, what of it is written.
//!
//! Owns the way of a chunk to its file: assembled to lines, prefixed, appended. Leaves to others: which processes and files there
//! are (`writer`), the write itself (`file`).
//! Invariant: a stale stream takes nothing in; everything below `seen` was taken in or reported as a gap.

use std::time::Instant;

use crate::logs::file::{LogFile, Suspended};
use crate::logs::layout::{Delta, Kind, Source};
use crate::logs::lines::{Assembler, MAX_LINE_BYTES, Piece};
use crate::logs::prefix::Prefix;
use crate::logs::store::Store;

/// How far one process is.
#[derive(Debug)]
pub(super) struct Book {
    pub(super) name: String,
    pub(super) pid: i32,
    pub(super) streams: [Stream; 2],
    /// Everything below was taken in, or is reported as a gap.
    pub(super) seen: u64,
    /// Position handed out by `flush`, or the oldest the kernel had when the book was opened.
    pub(super) acknowledged: u64,
    /// Bytes dropped while nobody listened.
    pub(super) unreported: u64,
    pub(super) touched: bool,
    /// The kernel sent again what it had been told to forget: the acknowledgement was lost with a connection.
    pub(super) acknowledge_again: bool,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) source: Source,
    pub(super) lines: Assembler,
    pub(super) limit: usize,
    pub(super) target: Option<Target>,
    /// Its file was suspended: nothing is taken in until the kernel is asked again.
    pub(super) stale: bool,
}

#[derive(Debug)]
pub(super) struct Target {
    pub(super) file: usize,
    pub(super) prefix: Option<Prefix>,
}

impl Book {
    /// Everything below is in its file.
    pub(super) fn position(&self, store: &Store) -> u64 {
        self.streams
            .iter()
            .filter(|stream| stream.target.is_some())
            .filter_map(|stream| {
                if stream.stale {
                    Some(store.done(stream.source))
                } else {
                    stream.lines.tail_start()
                }
            })
            .fold(self.seen, u64::min)
    }

    /// The file resumed: what its streams have not written is taken in once more.
    pub(super) fn resume(&mut self, store: &Store, file: usize) {
        for stream in &mut self.streams {
            if stream.stale
                && stream
                    .target
                    .as_ref()
                    .is_some_and(|target| target.file == file)
            {
                stream.stale = false;
                stream.lines = Assembler::new(store.done(stream.source), stream.limit);
                self.seen = self.seen.min(self.acknowledged);
            }
        }
    }

    /// Says in the log that output is missing.
    pub(super) fn report_gap(
        &mut self,
        files: &mut [LogFile],
        store: &mut Store,
        bytes: u64,
        position: u64,
        stamp_us: i64,
        now: Instant,
    ) {
        for stream in &mut self.streams {
            // The line is broken: what follows belongs to another one.
            stream.end(files, store, self.pid, true, now);
        }
        let source = Source {
            serial: self.streams[0].source.serial,
            kind: Kind::Gap,
        };
        let Some(target) = self
            .streams
            .iter_mut()
            .find_map(|stream| stream.target.as_mut())
        else {
            return;
        };
        tracing::warn!(
            process = self.name,
            bytes,
            "output was dropped by the kernel"
        );
        let text = format!(
            "papa: {bytes} bytes of output of {} were dropped here\n",
            self.name
        );
        let prefix = target
            .prefix
            .as_mut()
            .map_or(&[][..], |prefix| prefix.at(stamp_us, self.pid));
        if let Some(file) = files.get_mut(target.file) {
            let _ = file.append(
                store,
                &[prefix, text.as_bytes()],
                Delta { source, position },
                now,
            );
        }
        self.unreported = 0;
        self.seen = position;
    }
}

impl Stream {
    #[expect(
        clippy::too_many_arguments,
        reason = "one call site; the parts are borrowed from different owners"
    )]
    pub(super) fn take(
        &mut self,
        files: &mut [LogFile],
        store: &mut Store,
        pid: i32,
        position: u64,
        bytes: &[u8],
        stamp_us: i64,
        now: Instant,
    ) {
        let Some(target) = self.target.as_mut().filter(|_| !self.stale) else {
            return;
        };
        let Some(file) = files.get_mut(target.file) else {
            return;
        };
        let source = self.source;
        // A suspended file makes the stream stale at the next flush; until then nothing more of it is tried.
        let _ = self.lines.feed(position, bytes, stamp_us, |piece| {
            target.deliver(file, store, source, pid, piece, now)
        });
    }

    /// The unfinished line is all there will be of it. `broken` when more was to come but is lost.
    pub(super) fn end(
        &mut self,
        files: &mut [LogFile],
        store: &mut Store,
        pid: i32,
        broken: bool,
        now: Instant,
    ) {
        let Some(target) = self.target.as_mut().filter(|_| !self.stale) else {
            return;
        };
        let Some(file) = files.get_mut(target.file) else {
            return;
        };
        let source = self.source;
        let _ = self.lines.finish(|piece| {
            if broken && target.prefix.is_none() {
                let delta = Delta {
                    source,
                    position: piece.done(),
                };
                return file.append(store, &[piece.head, b"\n"], delta, now);
            }
            target.deliver(file, store, source, pid, piece, now)
        });
    }
}

impl Target {
    pub(super) fn deliver(
        &mut self,
        file: &mut LogFile,
        store: &mut Store,
        source: Source,
        pid: i32,
        piece: Piece<'_>,
        now: Instant,
    ) -> Result<(), Suspended> {
        let Some(prefix) = &mut self.prefix else {
            if piece.head.is_empty() {
                return file.append_lines(store, piece.body, source, piece.body_start, now);
            }
            let delta = Delta {
                source,
                position: piece.done(),
            };
            return file.append(store, &[piece.head, piece.body], delta, now);
        };
        let mut position = piece.body_start;
        let mut head = piece.head;
        let mut stamp_us = piece.head_stamp_us;
        let mut lines = piece.body.split_inclusive(|byte| *byte == b'\n');
        // A line with a head but no body still is one: the loop runs once for it.
        let mut line = lines.next().unwrap_or(&[]);
        loop {
            for part in parts(line) {
                position += part.len() as u64;
                let newline: &[u8] = if part.ends_with(b"\n") { b"" } else { b"\n" };
                let parts = [prefix.at(stamp_us, pid), head, part, newline];
                file.append(store, &parts, Delta { source, position }, now)?;
                head = &[];
            }
            stamp_us = piece.body_stamp_us;
            match lines.next() {
                Some(next) => line = next,
                None => return Ok(()),
            }
        }
    }
}

/// Cuts a line into parts of at most `MAX_LINE_BYTES`, its newline not counted; an empty line is one empty part.
fn parts(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(line);
    std::iter::from_fn(move || {
        let line = rest.take()?;
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        if text.len() <= MAX_LINE_BYTES {
            return Some(line);
        }
        let (part, more) = line.split_at(MAX_LINE_BYTES);
        rest = Some(more);
        Some(part)
    })
}
