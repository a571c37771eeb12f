//! How far one process is: what of each stream was taken in, what of it is written.
//!
//! Owns the way of a chunk to its file: assembled to lines, prefixed, appended. Leaves to others: which processes and files there
//! are (`writer`), the write itself (`file`).
//! Invariant: a stale stream takes nothing in; everything below `seen` was taken in or reported as a gap.

use std::borrow::Cow;
use std::time::Instant;

use regex_lite::Regex;

use crate::logs::file::{LogFile, Suspended};
use crate::logs::layout::{Delta, Kind, Source};
use crate::logs::lines::{Assembler, MAX_LINE_BYTES, Piece};
use crate::logs::prefix::Prefix;
use crate::logs::store::Store;
use crate::logs::writer::Route;

/// The files, and the record of what is written to them.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) store: Store,
    pub(super) files: Vec<LogFile>,
}

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
    /// Bytes gap lines have told of so far.
    pub(super) reported: u64,
    pub(super) touched: bool,
    /// The kernel sent again what it had been told to forget: the acknowledgement was lost with a connection.
    pub(super) acknowledge_again: bool,
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
    pub(super) file: usize,
    pub(super) prefix: Option<Prefix>,
}

impl Desk {
    fn append(
        &mut self,
        file: usize,
        parts: &[&[u8]],
        delta: Delta,
        now: Instant,
    ) -> Result<(), Suspended> {
        let file = self.files.get_mut(file).ok_or(Suspended)?;
        file.append(&mut self.store, parts, delta, now)
    }

    fn append_lines(
        &mut self,
        file: usize,
        lines: &[u8],
        source: Source,
        position: u64,
        now: Instant,
    ) -> Result<(), Suspended> {
        let file = self.files.get_mut(file).ok_or(Suspended)?;
        file.append_lines(&mut self.store, lines, source, position, now)
    }
}

impl Book {
    /// Everything below is in its file.
    pub(super) fn position(&self, store: &Store) -> u64 {
        let watched = self.ready.is_some();
        self.streams
            .iter()
            .filter(|stream| stream.target.is_some() || watched)
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

    /// The stream in that place goes elsewhere from here on; an unfinished line goes with it, whole.
    pub(super) fn turn(&mut self, store: &Store, place: usize, target: Option<Target>) {
        let Some(stream) = self.streams.get_mut(place) else {
            return;
        };
        if stream.stale {
            stream.stale = false;
            stream.lines = Assembler::new(store.done(stream.source), stream.limit);
            self.seen = self.seen.min(self.acknowledged);
        }
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
        now: Instant,
    ) {
        let pid = self.pid;
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
                Some(target) => target.deliver(desk, *source, pid, piece, now),
                None => Ok(()),
            }
        });
    }

    /// A stream's unfinished line is all there will be of it. `broken` when more was to come but is lost.
    pub(super) fn end(&mut self, desk: &mut Desk, kind: Kind, broken: bool, now: Instant) {
        let pid = self.pid;
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
            if broken && target.prefix.is_none() {
                let delta = Delta {
                    source: *source,
                    position: piece.done(),
                };
                return desk.append(target.file, &[piece.head, b"\n"], delta, now);
            }
            target.deliver(desk, *source, pid, piece, now)
        });
    }

    /// Says in the log that output is missing.
    pub(super) fn report_gap(
        &mut self,
        desk: &mut Desk,
        bytes: u64,
        position: u64,
        stamp_us: i64,
        now: Instant,
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
            "papa: {bytes} bytes of output of {} were dropped here, before {}\n",
            self.name,
            moment(stamp_us)
        );
        let prefix = target
            .prefix
            .as_mut()
            .map_or(&[][..], |prefix| prefix.at(stamp_us, self.pid));
        self.reported += bytes;
        let delta = Delta {
            source,
            position: self.reported,
        };
        let _ = desk.append(target.file, &[prefix, text.as_bytes()], delta, now);
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
    chrono::DateTime::from_timestamp_micros(stamp_us).map_or_else(
        || "now".to_owned(),
        |at| {
            at.with_timezone(&chrono::Local)
                .format("%Y-%m-%d %H:%M:%S%.3f")
                .to_string()
        },
    )
}

impl Target {
    pub(super) fn deliver(
        &mut self,
        desk: &mut Desk,
        source: Source,
        pid: i32,
        piece: Piece<'_>,
        now: Instant,
    ) -> Result<(), Suspended> {
        let Some(prefix) = &mut self.prefix else {
            if piece.head.is_empty() {
                return desk.append_lines(self.file, piece.body, source, piece.body_start, now);
            }
            let delta = Delta {
                source,
                position: piece.done(),
            };
            return desk.append(self.file, &[piece.head, piece.body], delta, now);
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
                desk.append(self.file, &parts, Delta { source, position }, now)?;
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
