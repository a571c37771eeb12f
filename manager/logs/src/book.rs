//! How far one process is: what of each stream was taken in, what of it is written.
//!
//! Owns the way of a chunk to its file: assembled to lines, prefixed, appended. Leaves to others:
//! which processes and files there are (`writer`), the write itself (`file`).
//! Invariant: a stale stream takes nothing in; everything below `seen` was taken in or reported as
//! a gap.

use std::borrow::Cow;
use std::collections::HashMap;

use papa_system::civil;
use regex_lite::Regex;

use crate::file::Suspended;
use crate::format::{Author, Format, Part};
use crate::layout::{Cut, Delta, Kind, Source};
use crate::lines::{Assembler, Piece, whole_characters};
use crate::route::Route;
use crate::schedule::Now;
use crate::sink::Sink;
use crate::store::Store;

/// The files, and the record of what is written to them.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) store: Store,
    pub(super) sinks: Vec<Sink>,
    /// Buffer in which a line is formatted.
    pub(super) scratch: Vec<u8>,
    /// Files that end within a line, with the owner of that line and what ends it.
    pub(super) open_lines: HashMap<usize, OpenLine>,
}

/// An unfinished last line of a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct OpenLine {
    source: Source,
    /// Position of the cut.
    position: u64,
    ending: &'static [u8],
}

/// What is known about the rest of an unfinished line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// The rest comes.
    Open,
    /// There is no rest: the stream ended.
    Closed,
    /// The rest is lost.
    Broken,
}

/// Progress of one process's output.
#[derive(Debug)]
pub(super) struct Book {
    pub(super) name: String,
    pub(super) author: Author,
    pub(super) streams: [Stream; 2],
    /// Output below was taken in, or is reported as a gap.
    pub(super) seen: u64,
    /// Position handed out by `flush`, or the oldest the kernel had when the book was opened.
    pub(super) acknowledged: u64,
    /// Bytes dropped while nobody listened.
    pub(super) unreported: u64,
    /// Dropped bytes that gap lines have reported, or that were written before they were dropped.
    pub(super) reported: u64,
    pub(super) touched: bool,
    /// The kernel sent again what it had been told to forget: the acknowledgement was lost with a
    /// connection.
    pub(super) acknowledge_again: bool,
    /// Bytes of an unfinished line that its share of the reel has room for.
    pub(super) tail_limit: usize,
    /// A line that matches makes the process ready; none once it is.
    pub(super) ready: Option<Regex>,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) source: Source,
    pub(super) lines: Assembler,
    pub(super) limit: usize,
    /// Parts written of a line that was cut; 0 at the beginning of a line.
    pub(super) parts: u32,
    pub(super) target: Option<Destination>,
    /// Its file was suspended; nothing is taken in until the kernel sends everything again.
    pub(super) stale: bool,
    /// The route that takes over once its file has finished the stuck write.
    pub(super) next_route: Option<Option<Route>>,
}

#[derive(Debug)]
pub(super) struct Destination {
    pub(super) sink: usize,
    pub(super) format: Format,
}

impl Book {
    /// Output below is in its file.
    pub(super) fn position(&self, desk: &Desk) -> u64 {
        let store = &desk.store;
        let behind =
            |target: &Destination| desk.sinks.get(target.sink).is_some_and(Sink::is_behind);
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

    /// Accepts output of its streams again after the file resumed, from what is not written.
    pub(super) fn resume(&mut self, desk: &mut Desk, sink: usize) {
        for stream in &mut self.streams {
            if stream.stale
                && stream
                    .target
                    .as_ref()
                    .is_some_and(|target| target.sink == sink)
            {
                stream.stale = false;
                stream.begin(desk);
                self.seen = self.seen.min(self.acknowledged);
            }
        }
    }

    /// The stream in that place goes elsewhere from here on; an unfinished line goes with it,
    /// whole.
    pub(super) fn turn(
        &mut self,
        desk: &mut Desk,
        place: usize,
        target: Option<Destination>,
        limit: usize,
        now: Now,
    ) {
        let Some(stream) = self.streams.get_mut(place) else {
            return;
        };
        if stream.stale {
            stream.stale = false;
            stream.begin(desk);
            self.seen = self.seen.min(self.acknowledged);
        }
        let looks = |target: &Destination| (target.sink, target.format.ending());
        let before = stream.target.as_ref().map(looks);
        if let Some((sink, _)) = before.filter(|before| Some(*before) != target.as_ref().map(looks))
        {
            // The line it began there is not continued.
            let _ = desk.end_open_line(sink, |line| line.source == stream.source, now);
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
            parts,
            ..
        } = stream;
        // A suspended file makes the stream stale at the next flush; until then nothing more of it
        // is tried.
        let _ = lines.feed(position, bytes, stamp_us, |piece| {
            look_for(ready, &piece);
            match target {
                Some(target) => {
                    let ending = Ending::Open;
                    target.deliver(desk, *source, author, piece, ending, parts, now)
                }
                None => Ok(()),
            }
        });
    }

    /// Writes an unfinished line that has fallen far behind the other stream in part, like a line
    /// that is too long. Otherwise nothing behind it could be acknowledged, and the process would
    /// wait for room in the kernel.
    pub(super) fn cut_far_tails(&mut self, desk: &mut Desk, now: Now) {
        let furthest = self.seen.saturating_sub(self.tail_limit as u64);
        for kind in [Kind::Out, Kind::Err] {
            let is_far = self.streams.iter().any(|stream| {
                let start = stream.lines.tail_start();
                stream.source.kind == kind && start.is_some_and(|start| start < furthest)
            });
            if is_far {
                self.let_go(desk, kind, Ending::Open, now);
            }
        }
    }

    /// Ends a stream: its unfinished line is complete.
    pub(super) fn end(&mut self, desk: &mut Desk, kind: Kind, now: Now) {
        self.let_go(desk, kind, Ending::Closed, now);
    }

    /// Writes a stream's unfinished line.
    fn let_go(&mut self, desk: &mut Desk, kind: Kind, ending: Ending, now: Now) {
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
            parts,
            ..
        } = stream;
        // A line that was cut is ended even if nothing follows.
        let is_owed = *parts > 0 && ending != Ending::Open;
        let _ = lines.finish(is_owed, |piece| {
            look_for(ready, &piece);
            let Some(target) = target else {
                return Ok(());
            };
            if ending == Ending::Broken && target.format.is_raw() {
                let whole = [piece.head, b"\n"].concat();
                let delta = Delta {
                    source: *source,
                    position: piece.done(),
                };
                let sink = desk.sinks.get_mut(target.sink).ok_or(Suspended)?;
                return sink.append(&mut desk.store, &whole, delta, now);
            }
            target.deliver(desk, *source, author, piece, ending, parts, now)
        });
    }

    /// Writes a line that says how much output is missing.
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
            self.let_go(desk, kind, Ending::Broken, now);
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
        let line = Line {
            text: text.as_bytes(),
            delta,
            stamp_us,
            part: Part::WHOLE,
        };
        let _ = target.line(desk, &line, &self.author, now);
    }
}

/// Whether one of the lines matches.
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

impl Stream {
    /// Continues the line where its written part ends.
    pub(super) fn begin(&mut self, desk: &mut Desk) {
        self.lines = Assembler::new(desk.store.done(self.source), self.limit);
        self.parts = desk.store.parts(self.source);
        if let Some(target) = &self.target
            && let Some(ending) = target.format.ending()
            && (1..Cut::MAX_PARTS).contains(&self.parts)
        {
            let line = OpenLine {
                source: self.source,
                position: desk.store.done(self.source),
                ending,
            };
            desk.open_lines.insert(target.sink, line);
        }
    }
}

impl Desk {
    /// Ends an unfinished line at the end of the file, because another stream's line follows.
    fn end_open_line(
        &mut self,
        sink: usize,
        is_such: impl FnOnce(&OpenLine) -> bool,
        now: Now,
    ) -> Result<(), Suspended> {
        let Some(line) = self.open_lines.get(&sink).copied().filter(is_such) else {
            return Ok(());
        };
        self.open_lines.remove(&sink);
        // The position of the cut stays; the count says that the line does not continue there.
        let ended = Cut {
            position: line.position,
            parts: Cut::MAX_PARTS,
        };
        let delta = Delta {
            source: line.source.cuts(),
            position: ended.to_word().unwrap_or(0),
        };
        let file = self.sinks.get_mut(sink).ok_or(Suspended)?;
        file.append(&mut self.store, line.ending, delta, now)
    }
}

/// A line, or a part of one, on its way.
#[derive(Debug)]
struct Line<'a> {
    text: &'a [u8],
    delta: Delta,
    stamp_us: i64,
    part: Part,
}

impl Destination {
    /// Writes lines. The last of them has an end if it ends in a newline, or by `ending`; `parts`
    /// counts those of a line that has none.
    #[allow(clippy::too_many_arguments, reason = "where from, what, and where to")]
    fn deliver(
        &mut self,
        desk: &mut Desk,
        source: Source,
        author: &Author,
        piece: Piece<'_>,
        ending: Ending,
        parts: &mut u32,
        now: Now,
    ) -> Result<(), Suspended> {
        if self.format.is_raw() {
            *parts = 0;
            desk.end_open_line(self.sink, |_| true, now)?;
            let sink = desk.sinks.get_mut(self.sink).ok_or(Suspended)?;
            let store = &mut desk.store;
            return sink.append_raw(store, piece.head, piece.body, source, piece.body_start, now);
        }
        let mut stamp_us = piece.head_stamp_us;
        let mut lines = piece.body.split_inclusive(|byte| *byte == b'\n');
        // Written bytes of head and body.
        let mut written = 0;
        let is_owed = piece.body.is_empty() && *parts > 0;
        if !piece.head.is_empty() || is_owed {
            // A line with a head but no body still is one.
            let whole = [piece.head, lines.next().unwrap_or(&[])].concat();
            self.cut(
                desk,
                source,
                author,
                (&whole, 0, stamp_us),
                &piece,
                ending,
                parts,
                now,
            )?;
            written = whole.len();
            stamp_us = piece.body_stamp_us;
        }
        for line in lines {
            self.cut(
                desk,
                source,
                author,
                (line, written, stamp_us),
                &piece,
                ending,
                parts,
                now,
            )?;
            written += line.len();
            stamp_us = piece.body_stamp_us;
        }
        Ok(())
    }

    /// Writes a line in as many parts as it needs; it begins that many bytes into the piece.
    #[allow(clippy::too_many_arguments, reason = "where from, what, and where to")]
    fn cut(
        &mut self,
        desk: &mut Desk,
        source: Source,
        author: &Author,
        (line, mut at, stamp_us): (&[u8], usize, i64),
        piece: &Piece<'_>,
        ending: Ending,
        parts: &mut u32,
        now: Now,
    ) -> Result<(), Suspended> {
        let is_open = !line.ends_with(b"\n") && ending == Ending::Open;
        let mut rest = Some(line);
        while let Some(line) = rest.take() {
            let limit = self.format.max_line_bytes_of(line);
            let (text, more) = split_line(line, limit);
            at += text.len();
            let number = parts.saturating_add(1).min(Cut::MAX_PARTS - 1);
            let open = desk.open_lines.get(&self.sink);
            let part = Part {
                number,
                more: more.is_some() || is_open,
                joined: *parts > 0 && open.is_some_and(|line| line.source == source),
            };
            let delta = Delta {
                source,
                position: piece.position_after(at),
            };
            let line = Line {
                text,
                delta,
                stamp_us,
                part,
            };
            self.line(desk, &line, author, now)?;
            *parts = if part.more { number } else { 0 };
            rest = more;
        }
        Ok(())
    }

    /// Formats and writes one line or a part of one.
    fn line(
        &mut self,
        desk: &mut Desk,
        line: &Line<'_>,
        author: &Author,
        now: Now,
    ) -> Result<(), Suspended> {
        let source = line.delta.source;
        if !line.part.joined {
            desk.end_open_line(self.sink, |_| true, now)?;
        }
        let text = line.text.strip_suffix(b"\n").unwrap_or(line.text);
        desk.scratch.clear();
        self.format.line(
            &mut desk.scratch,
            author,
            source.kind,
            line.stamp_us,
            text,
            line.part,
        );
        let cut = Cut {
            position: line.delta.position,
            parts: line.part.number,
        };
        let sink = desk.sinks.get_mut(self.sink).ok_or(Suspended)?;
        sink.append(&mut desk.store, &desk.scratch, line.delta, now)?;
        desk.open_lines.remove(&self.sink);
        if !line.part.more {
            return Ok(());
        }
        if let Some(position) = cut.to_word() {
            sink.note(Delta {
                source: source.cuts(),
                position,
            });
            if let Some(ending) = self.format.ending() {
                let line = OpenLine {
                    source,
                    position: line.delta.position,
                    ending,
                };
                desk.open_lines.insert(self.sink, line);
            }
        }
        Ok(())
    }
}

/// Splits a line into at most `limit` bytes, not counting its newline, and the rest. No character
/// is cut.
fn split_line(line: &[u8], limit: usize) -> (&[u8], Option<&[u8]>) {
    let text = line.strip_suffix(b"\n").unwrap_or(line);
    if text.len() <= limit {
        return (line, None);
    }
    let (part, more) = line.split_at(whole_characters(line, limit));
    (part, Some(more))
}
