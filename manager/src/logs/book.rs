//! How far one process is: what of each stream was taken in, what of it is written.
//!
//! Owns the way of a chunk to its file: assembled to lines, prefixed, appended. Leaves to others: which processes and files there
//! are (`writer`), the write itself (`file`).
//! Invariant: a stale stream takes nothing in; everything below `seen` was taken in or reported as a gap.

use std::borrow::Cow;

use regex_lite::Regex;

use crate::civil;
use crate::logs::file::Suspended;
use crate::logs::format::{Author, Format};
use crate::logs::layout::{Delta, Kind, Source};
use crate::logs::lines::{Assembler, Piece};
use crate::logs::schedule::Now;
use crate::logs::sink::Sink;
use crate::logs::store::Store;
use crate::logs::writer::Route;

/// The files, and the record of what is written to them.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) store: Store,
    pub(super) sinks: Vec<Sink>,
    /// Memory for a line being made.
    pub(super) scratch: Vec<u8>,
}

/// How far one process is.
#[derive(Debug)]
pub(super) struct Book {
    pub(super) name: String,
    pub(super) author: Author,
    pub(super) streams: [Stream; 2],
    /// Everything below was taken in, or is reported as a gap.
    pub(super) seen: u64,
    /// Position handed out by `flush`, or the oldest the kernel had when the book was opened.
    pub(super) acknowledged: u64,
    /// Bytes dropped while nobody listened.
    pub(super) unreported: u64,
    /// Bytes the kernel dropped that gap lines have told of so far, or that were written before.
    pub(super) reported: u64,
    pub(super) touched: bool,
    /// The kernel sent again what it had been told to forget: the acknowledgement was lost with a connection.
    pub(super) acknowledge_again: bool,
    /// Bytes of an unfinished line that its share of the reel has room for.
    pub(super) tail_limit: usize,
    /// What a line must match for the process to be ready; none once one did.
    pub(super) ready: Option<Regex>,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) source: Source,
    pub(super) lines: Assembler,
    pub(super) limit: usize,
    pub(super) target: Option<Target>,
    /// Its file was suspended: nothing is taken in until the kernel is asked again.
    pub(super) stale: bool,
    /// Where it is to go once its file has finished the write it is stuck in.
    pub(super) next_route: Option<Option<Route>>,
}

#[derive(Debug)]
pub(super) struct Target {
    pub(super) sink: usize,
    pub(super) format: Format,
}

impl Book {
    /// Everything below is in its file.
    pub(super) fn position(&self, desk: &Desk) -> u64 {
        let store = &desk.store;
        let behind = |target: &Target| desk.sinks.get(target.sink).is_some_and(Sink::is_behind);
        let watched = self.ready.is_some();
        self.streams
            .iter()
            .filter(|stream| stream.target.is_some() || watched)
            .filter_map(|stream| {
                if stream.stale || stream.target.as_ref().is_some_and(behind) {
                    Some(store.done(stream.source))
                } else {
                    stream.lines.tail_start()
                }
            })
            .fold(self.seen, u64::min)
    }

    /// The file resumed: what its streams have not written is taken in once more.
    pub(super) fn resume(&mut self, store: &Store, sink: usize) {
        for stream in &mut self.streams {
            if stream.stale
                && stream
                    .target
                    .as_ref()
                    .is_some_and(|target| target.sink == sink)
            {
                stream.stale = false;
                stream.lines = Assembler::new(store.done(stream.source), stream.limit);
                self.seen = self.seen.min(self.acknowledged);
            }
        }
    }

    /// The stream in that place goes elsewhere from here on; an unfinished line goes with it, whole.
    pub(super) fn turn(
        &mut self,
        store: &Store,
        place: usize,
        target: Option<Target>,
        limit: usize,
    ) {
        let Some(stream) = self.streams.get_mut(place) else {
            return;
        };
        if stream.stale {
            stream.stale = false;
            stream.lines = Assembler::new(store.done(stream.source), stream.limit);
            self.seen = self.seen.min(self.acknowledged);
        }
        stream.limit = limit;
        stream.lines.set_limit(limit);
        stream.target = target;
    }

    /// Takes in what one stream wrote from `position` on.
    pub(super) fn take(
        &mut self,
        desk: &mut Desk,
        kind: Kind,
        position: u64,
        bytes: &[u8],
        stamp_us: i64,
        now: Now,
    ) {
        let author = &self.author;
        let ready = &mut self.ready;
        let Some(stream) = self.streams.iter_mut().find(|s| s.source.kind == kind) else {
            return;
        };
        if stream.stale || (stream.target.is_none() && ready.is_none()) {
            return;
        }
        let Stream {
            source,
            lines,
            target,
            ..
        } = stream;
        // A suspended file makes the stream stale at the next flush; until then nothing more of it is tried.
        let _ = lines.feed(position, bytes, stamp_us, |piece| {
            look_for(ready, &piece);
            match target {
                Some(target) => target.deliver(desk, *source, author, piece, now),
                None => Ok(()),
            }
        });
    }

    /// An unfinished line that has fallen far behind the other stream is written as far as it goes, as one that is too long is:
    /// nothing behind it would be acknowledged, and its process would wait for room in the kernel.
    pub(super) fn cut_far_tails(&mut self, desk: &mut Desk, now: Now) {
        let furthest = self.seen.saturating_sub(self.tail_limit as u64);
        for kind in [Kind::Out, Kind::Err] {
            let is_far = self.streams.iter().any(|stream| {
                let start = stream.lines.tail_start();
                stream.source.kind == kind && start.is_some_and(|start| start < furthest)
            });
            if is_far {
                self.end(desk, kind, false, now);
            }
        }
    }

    /// A stream's unfinished line is all there will be of it. `broken` when more was to come but is lost.
    pub(super) fn end(&mut self, desk: &mut Desk, kind: Kind, broken: bool, now: Now) {
        let author = &self.author;
        let ready = &mut self.ready;
        let Some(stream) = self.streams.iter_mut().find(|s| s.source.kind == kind) else {
            return;
        };
        if stream.stale {
            return;
        }
        let Stream {
            source,
            lines,
            target,
            ..
        } = stream;
        let _ = lines.finish(|piece| {
            look_for(ready, &piece);
            let Some(target) = target else {
                return Ok(());
            };
            if broken && target.format.is_raw() {
                let whole = [piece.head, b"\n"].concat();
                let delta = Delta {
                    source: *source,
                    position: piece.done(),
                };
                let sink = desk.sinks.get_mut(target.sink).ok_or(Suspended)?;
                return sink.append(&mut desk.store, &whole, delta, now);
            }
            target.deliver(desk, *source, author, piece, now)
        });
    }

    /// Says in the log that output is missing.
    pub(super) fn report_gap(
        &mut self,
        desk: &mut Desk,
        bytes: u64,
        position: u64,
        stamp_us: i64,
        now: Now,
    ) {
        for kind in [Kind::Out, Kind::Err] {
            // The line is broken: what follows belongs to another one.
            self.end(desk, kind, true, now);
        }
        self.unreported = 0;
        self.seen = position;
        let source = Source {
            serial: self.streams[0].source.serial,
            kind: Kind::Dropped,
        };
        let Some(target) = self
            .streams
            .iter_mut()
            .filter(|stream| !stream.stale)
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
            "papa: {bytes} bytes of output of {} were dropped here, before {}",
            self.name,
            moment(stamp_us)
        );
        self.reported += bytes;
        let delta = Delta {
            source,
            position: self.reported,
        };
        let _ = target.line(desk, delta, &self.author, stamp_us, text.as_bytes(), now);
    }
}

/// Does one of the lines match what is waited for?
fn look_for(ready: &mut Option<Regex>, piece: &Piece<'_>) {
    let Some(regex) = ready else {
        return;
    };
    let mut rest = piece.body;
    let mut found = false;
    if !piece.head.is_empty() {
        let length = rest
            .iter()
            .position(|byte| *byte == b'\n')
            .map_or(rest.len(), |at| at + 1);
        let (first, more) = rest.split_at(length);
        found = regex.is_match(&text(&[piece.head, first].concat()));
        rest = more;
    }
    found = found
        || rest
            .split_inclusive(|byte| *byte == b'\n')
            .any(|line| regex.is_match(&text(line)));
    if found {
        *ready = None;
    }
}

/// A line without its end, as far as it is text.
fn text(line: &[u8]) -> Cow<'_, str> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line))
}

/// A stamp as people write it, local time.
fn moment(stamp_us: i64) -> String {
    civil::local(stamp_us)
        .format("%Y-%m-%d %H:%M:%S%.3f")
        .to_string()
}

impl Target {
    fn deliver(
        &mut self,
        desk: &mut Desk,
        source: Source,
        author: &Author,
        piece: Piece<'_>,
        now: Now,
    ) -> Result<(), Suspended> {
        if self.format.is_raw() {
            let sink = desk.sinks.get_mut(self.sink).ok_or(Suspended)?;
            let store = &mut desk.store;
            return sink.append_raw(store, piece.head, piece.body, source, piece.body_start, now);
        }
        let limit = self.format.max_line_bytes();
        let mut position = piece.body_start;
        let mut stamp_us = piece.head_stamp_us;
        let mut lines = piece.body.split_inclusive(|byte| *byte == b'\n');
        if !piece.head.is_empty() {
            // A line with a head but no body still is one. The assembler keeps it within the limit; only one that was begun under
            // another format may be cut here, and its position holds with its last part.
            let rest = lines.next().unwrap_or(&[]);
            position += rest.len() as u64;
            let whole = [piece.head, rest].concat();
            let mut parts = parts(&whole, limit).peekable();
            while let Some(part) = parts.next() {
                let done = if parts.peek().is_none() { position } else { 0 };
                let delta = Delta {
                    source,
                    position: done,
                };
                self.line(desk, delta, author, stamp_us, part, now)?;
            }
            stamp_us = piece.body_stamp_us;
        }
        for line in lines {
            for part in parts(line, limit) {
                position += part.len() as u64;
                let delta = Delta { source, position };
                self.line(desk, delta, author, stamp_us, part, now)?;
            }
            stamp_us = piece.body_stamp_us;
        }
        Ok(())
    }

    /// Writes one line as it is to look.
    fn line(
        &mut self,
        desk: &mut Desk,
        delta: Delta,
        author: &Author,
        stamp_us: i64,
        text: &[u8],
        now: Now,
    ) -> Result<(), Suspended> {
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        desk.scratch.clear();
        let kind = delta.source.kind;
        self.format
            .line(&mut desk.scratch, author, kind, stamp_us, text);
        let sink = desk.sinks.get_mut(self.sink).ok_or(Suspended)?;
        sink.append(&mut desk.store, &desk.scratch, delta, now)
    }
}

/// Cuts a line into parts of at most `limit` bytes, its newline not counted; an empty line is one empty part.
fn parts(line: &[u8], limit: usize) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(line);
    std::iter::from_fn(move || {
        let line = rest.take()?;
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        if text.len() <= limit {
            return Some(line);
        }
        let (part, more) = line.split_at(limit);
        rest = Some(more);
        Some(part)
    })
}
