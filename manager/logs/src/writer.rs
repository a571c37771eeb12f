//! Turns pushed output into lines in files, and says which positions may be acknowledged.
//!
//! Owns the log files, by path, and for every process how far each of its streams is. Leaves to
//! others: the connection to the kernel (`session`), whole lines (`lines`), the exactly-once write
//! (`file`, `store`).
//! Invariant: a position handed out by `flush` has everything below it in the files, and the store
//! says so; what was offered while a file was suspended is not kept here but read from the kernel
//! again.

mod routing;
mod spare;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use papa_protocol::record::Record;

use crate::book::{Book, Desk, Destination, Stream};
use crate::file::LogFile;
use crate::format::Author;
use crate::gzip::Compressor;
use crate::layout::{Delta, Kind, Source, Unfinished};
use crate::lines::{Assembler, MAX_LINE_BYTES};
use crate::rotate::next_plain;
use crate::route::Routes;
use crate::schedule::Now;
use crate::sink::{Address, Sink};
use crate::store::Store;

/// An unfinished line may keep one half of its reel unacknowledged; the other half is for later
/// output. That is more than the kernel takes of the other stream at once (a pipe of 256 KiB; a
/// reel has 1 MiB), since the end of the line may still wait in its own pipe.
const TAIL_SHARE_OF_REEL: u64 = 2;

/// What is known of a process when its output begins to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// The kernel's number for it.
    pub serial: u64,
    /// Its name in the kernel, for gap lines.
    pub name: String,
    /// The watcher's, for people.
    pub watcher: String,
    /// Number of the worker.
    pub wid: u32,
    /// Of the process.
    pub pid: i32,
    /// Bytes the kernel keeps.
    pub reel_bytes: u64,
    /// Bytes acknowledged so far.
    pub acknowledged: u64,
    /// Bytes dropped so far.
    pub dropped: u64,
}

/// All log files of the manager.
#[derive(Debug)]
pub struct LogWriter {
    desk: Desk,
    by_address: HashMap<Address, usize>,
    compressor: Compressor,
    books: HashMap<u64, Book>,
    /// Processes that had output since the last flush.
    touched: Vec<u64>,
    /// Processes that wrote the line that makes them ready, not yet reported.
    matched: Vec<u64>,
    /// Processes with a gap whose ledger has not been read since.
    unsettled: Vec<u64>,
    /// For each file or daemon in trouble: bytes that waited in the kernel at the last attempt.
    waiting: HashMap<usize, u64>,
    /// The log has a line that there are more files than descriptors.
    spares: bool,
}

impl LogWriter {
    /// Takes a state and finishes what a predecessor had begun.
    #[must_use]
    pub fn open(mut store: Store, unfinished: Vec<Unfinished>, now: Now) -> Self {
        let mut sinks = Vec::new();
        let mut by_address = HashMap::new();
        for work in unfinished {
            by_address.insert(Address::File(work.path.clone()), sinks.len());
            let file = LogFile::recover(&mut store, work, now);
            sinks.push(Sink::File(Box::new(file)));
        }
        Self {
            desk: Desk {
                store,
                sinks,
                scratch: Vec::new(),
                open_lines: HashMap::new(),
            },
            by_address,
            compressor: Compressor::default(),
            books: HashMap::new(),
            touched: Vec::new(),
            matched: Vec::new(),
            unsettled: Vec::new(),
            waiting: HashMap::new(),
            spares: false,
        }
    }

    /// The state, to leave its descriptor with the kernel.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.desk.store
    }

    /// Whether the process is known.
    #[must_use]
    pub fn knows(&self, serial: u64) -> bool {
        self.books.contains_key(&serial)
    }

    /// Every known process.
    pub fn serials(&self) -> impl Iterator<Item = u64> {
        self.desk.store.serials().chain(self.books.keys().copied())
    }

    /// Every process whose output is taken in, and its name.
    pub fn names(&self) -> impl Iterator<Item = (u64, &str)> {
        self.books
            .iter()
            .map(|(serial, book)| (*serial, book.name.as_str()))
    }

    /// Name of a process whose output is taken in.
    #[must_use]
    pub fn name(&self, serial: u64) -> Option<&str> {
        self.books.get(&serial).map(|book| book.name.as_str())
    }

    /// Starts a new process, or one whose output a predecessor wrote.
    pub fn add(&mut self, process: &Process, routes: &Routes) {
        let serial = process.serial;
        let done = |kind| self.desk.store.done(Source { serial, kind });
        let oldest = process.acknowledged + process.dropped;
        // What a predecessor had written, or told of by position as earlier versions did, is not
        // missing: the kernel may have dropped it on its way there.
        let written = [Kind::Out, Kind::Err, Kind::Gap].map(done);
        let written = written.into_iter().fold(0, u64::max);
        let unreported = process
            .dropped
            .saturating_sub(done(Kind::Dropped))
            .min(oldest.saturating_sub(written));
        let reported = process.dropped - unreported;
        let matched = done(Kind::Matched) > 0;
        if matched && routes.ready.is_some() {
            // A new manager reports it once more.
            self.matched.push(serial);
        }
        let tail_limit =
            usize::try_from(process.reel_bytes / TAIL_SHARE_OF_REEL).unwrap_or(usize::MAX);
        let author = Author {
            watcher: process.watcher.clone(),
            wid: process.wid,
            pid: process.pid,
        };
        let streams = [(Kind::Out, &routes.out), (Kind::Err, &routes.err)].map(|(kind, route)| {
            let source = Source { serial, kind };
            let target = route
                .as_ref()
                .map(|route| self.target(route, &author.watcher));
            let limit = limit(tail_limit, target.as_ref());
            let mut stream = Stream {
                source,
                lines: Assembler::new(0, limit),
                limit,
                parts: 0,
                target,
                stale: false,
                next_route: None,
            };
            stream.begin(&mut self.desk);
            stream
        });
        self.books.insert(
            serial,
            Book {
                name: process.name.clone(),
                author,
                streams,
                tail_limit,
                seen: oldest,
                acknowledged: oldest,
                unreported,
                reported,
                touched: false,
                acknowledge_again: false,
                ready: routes.ready.clone().filter(|_| !matched),
            },
        );
    }

    /// Takes in pushed output. `payload` holds the bytes from `start` to the last record's end;
    /// output of an unknown process and records that do not fit the payload are ignored, and so
    /// never acknowledged.
    pub fn output(
        &mut self,
        serial: u64,
        start: u64,
        records: impl IntoIterator<Item = Record>,
        payload: &[u8],
        now: Now,
    ) {
        self.spare_descriptors(now);
        let Some(book) = self.books.get_mut(&serial) else {
            return;
        };
        touch(book, &mut self.touched, serial);
        book.acknowledge_again |= start < book.acknowledged;
        let waits = book.ready.is_some();
        let mut position = start;
        for (index, record) in records.into_iter().enumerate() {
            let stamp_us = i64::try_from(record.stamp_us).unwrap_or(i64::MAX);
            if index == 0 {
                let gap = start.saturating_sub(book.seen) + book.unreported;
                if gap > 0 {
                    book.report_gap(&mut self.desk, gap, start, stamp_us, now);
                    self.unsettled.push(serial);
                }
            }
            let range = usize::try_from(position.wrapping_sub(start))
                .ok()
                .zip(usize::try_from(record.end.wrapping_sub(start)).ok());
            let Some(bytes) = range.and_then(|(from, to)| payload.get(from..to)) else {
                tracing::warn!(
                    serial,
                    "the kernel sent records that do not fit their bytes"
                );
                break;
            };
            let desk = &mut self.desk;
            book.take(desk, record.stream.into(), position, bytes, stamp_us, now);
            position = record.end;
            book.seen = book.seen.max(position);
        }
        book.cut_far_tails(&mut self.desk, now);
        if waits && book.ready.is_none() {
            self.note_match(serial);
        }
    }

    /// A stream reached its end: its unfinished line will not be continued.
    pub fn end(&mut self, serial: u64, kind: Kind, now: Now) {
        let Some(book) = self.books.get_mut(&serial) else {
            return;
        };
        touch(book, &mut self.touched, serial);
        let waits = book.ready.is_some();
        book.end(&mut self.desk, kind, now);
        if waits && book.ready.is_none() {
            self.note_match(serial);
        }
    }

    /// The match is recorded before the line is acknowledged, because a successor does not see the
    /// line again.
    fn note_match(&mut self, serial: u64) {
        let source = Source {
            serial,
            kind: Kind::Matched,
        };
        if let Err(error) = self.desk.store.set_done(Delta {
            source,
            position: 1,
        }) {
            tracing::warn!(%error, serial, "cannot record in the log state that a process is ready");
        }
        self.matched.push(serial);
    }

    /// Takes the processes that had a gap since the last call; their ledgers have to be read.
    pub fn take_unsettled(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.unsettled)
    }

    /// Brings what was told of a process's gaps in line with the kernel's ledger of now. The kernel
    /// counts as dropped what was not acknowledged, though it may have been on its way here, and be
    /// written: a successor, who has nothing but the ledger, would report that.
    pub fn settle_gap(&mut self, serial: u64, acknowledged: u64, dropped: u64) {
        let Some(book) = self.books.get_mut(&serial) else {
            return;
        };
        // Bytes dropped beyond what was taken in become a gap later.
        let to_come = acknowledged
            .saturating_add(dropped)
            .saturating_sub(book.seen);
        let settled = dropped.saturating_sub(to_come);
        if settled == book.reported {
            return;
        }
        let delta = Delta {
            source: Source {
                serial,
                kind: Kind::Dropped,
            },
            position: settled,
        };
        match self.desk.store.set_done(delta) {
            Ok(()) => book.reported = settled,
            Err(error) => tracing::warn!(%error, serial, "cannot record a gap in the log state"),
        }
    }

    /// Takes the processes that wrote the line that makes them ready since the last call.
    pub fn take_matched(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.matched)
    }

    /// Writes everything that is complete; answers the positions that may now be acknowledged, per
    /// process.
    pub fn flush(&mut self, now: Now) -> Vec<(u64, u64)> {
        self.flush_some(0, Duration::MAX, now).0
    }

    /// Writes what is complete, file by file from the `first` on, until `patience` is over; answers
    /// the positions that may now be acknowledged, per process, and the file to go on with.
    pub fn flush_some(
        &mut self,
        first: usize,
        patience: Duration,
        now: Now,
    ) -> (Vec<(u64, u64)>, Option<usize>) {
        let rest = self.flush_files(first, patience, now);
        let mut positions = Vec::with_capacity(self.touched.len());
        for serial in &self.touched {
            if let Some(book) = self.books.get_mut(serial) {
                let position = book.position(&self.desk);
                let again = rest.is_none() && std::mem::take(&mut book.acknowledge_again);
                if position > book.acknowledged || again {
                    book.acknowledged = book.acknowledged.max(position);
                    positions.push((*serial, book.acknowledged));
                }
                book.touched &= rest.is_some();
            }
        }
        if rest.is_none() {
            self.touched.clear();
        }
        (positions, rest)
    }

    fn flush_files(&mut self, first: usize, patience: Duration, now: Now) -> Option<usize> {
        let begun = Instant::now();
        let Desk { store, sinks, .. } = &mut self.desk;
        for (index, sink) in sinks.iter_mut().enumerate().skip(first) {
            if sink.flush(store, now).is_err() {
                for stream in self.books.values_mut().flat_map(|book| &mut book.streams) {
                    stream.stale |= stream
                        .target
                        .as_ref()
                        .is_some_and(|target| target.sink == index);
                }
            }
            if begun.elapsed() >= patience {
                return Some(index + 1);
            }
        }
        None
    }

    /// Tries suspended files again. True when one resumed: the kernel must be asked for everything
    /// unacknowledged once more.
    pub fn retry(&mut self, now: Now) -> bool {
        let mut resumed = Vec::new();
        let Desk { store, sinks, .. } = &mut self.desk;
        for (index, sink) in sinks.iter_mut().enumerate() {
            let behind = sink.is_behind();
            if sink.retry(store, now) {
                resumed.push(index);
            }
            if behind {
                // More is written, so more may be acknowledged.
                for (serial, book) in &mut self.books {
                    let uses =
                        |stream: &Stream| stream.target.as_ref().is_some_and(|t| t.sink == index);
                    if book.streams.iter().any(uses) {
                        touch(book, &mut self.touched, *serial);
                    }
                }
            }
        }
        for index in &resumed {
            // The state says how the file ends.
            self.desk.open_lines.remove(index);
        }
        self.count_waiting();
        self.compress(now.at);
        let mut turns = Vec::new();
        for (serial, book) in &mut self.books {
            for index in &resumed {
                book.resume(&mut self.desk, *index);
            }
            for (place, stream) in book.streams.iter_mut().enumerate() {
                if !stream.stale
                    && let Some(route) = stream.next_route.take()
                {
                    turns.push((*serial, place, route));
                }
            }
        }
        for (serial, place, route) in turns {
            let watcher = self
                .books
                .get(&serial)
                .map(|book| book.author.watcher.clone());
            let watcher = watcher.unwrap_or_default();
            let target = route.as_ref().map(|route| self.target(route, &watcher));
            if let Some(book) = self.books.get_mut(&serial) {
                let limit = limit(book.tail_limit, target.as_ref());
                book.turn(&mut self.desk, place, target, limit, now);
            }
        }
        !resumed.is_empty()
    }

    /// Starts the compression of rotated files, one at a time.
    fn compress(&mut self, now: Instant) {
        if self.compressor.next_look().is_some_and(|at| at <= now) {
            self.compressor.look(now);
        }
        while self.compressor.is_idle(now) {
            let mut files = self.desk.sinks.iter_mut().filter_map(Sink::file_mut);
            let Some(file) = files.find(|file| file.wants_compression()) else {
                return;
            };
            match next_plain(file.path()) {
                Ok(Some(plain)) => self.compressor.begin(file.path(), &plain, now),
                Ok(None) => file.compressed_all(),
                Err(error) => {
                    // Usually the directory does not exist yet.
                    tracing::debug!(path = %file.path().display(), %error, "no rotated files");
                    file.compressed_all();
                }
            }
        }
    }

    /// The earliest moment at which `retry` has something to do.
    #[must_use]
    pub fn next_retry(&self, now: Now) -> Option<Instant> {
        let wants = |sink: &Sink| sink.file().is_some_and(LogFile::wants_compression);
        let compress = match self.compressor.next_look() {
            Some(at) => Some(at),
            None if self.desk.sinks.iter().any(wants) => {
                Some(self.compressor.paused_until().unwrap_or(now.at))
            }
            None => None,
        };
        let sinks = self.desk.sinks.iter();
        let sinks = sinks.filter_map(|sink| sink.next_retry(now));
        sinks.chain(compress).min()
    }

    /// Describes for people which files are in trouble and why.
    #[must_use]
    pub fn troubles(&self) -> Vec<String> {
        self.desk
            .sinks
            .iter()
            .enumerate()
            .filter_map(|(index, sink)| {
                let (reason, _) = sink.trouble()?;
                let waiting = match self.waiting.get(&index) {
                    None | Some(0) => String::new(),
                    Some(bytes) => format!(" ({} KiB)", bytes.div_ceil(1024)),
                };
                let remedy = sink.file().and_then(LogFile::remedy);
                let remedy = remedy.map_or(String::new(), |remedy| format!("; {remedy}"));
                Some(format!(
                    "{reason}; lines wait in the kernel{waiting}{remedy}"
                ))
            })
            .collect()
    }

    /// Counts the bytes that wait for files in trouble. Not at each push, since each new count is
    /// reported.
    fn count_waiting(&mut self) {
        self.waiting.clear();
        if self.desk.sinks.iter().all(|sink| sink.trouble().is_none()) {
            return;
        }
        for book in self.books.values() {
            let mut sinks: Vec<usize> = book
                .streams
                .iter()
                .filter_map(|stream| stream.target.as_ref().map(|target| target.sink))
                .collect();
            sinks.dedup();
            for sink in sinks {
                // What is beyond a reel has been dropped meanwhile.
                let reel_bytes = (book.tail_limit as u64).saturating_mul(TAIL_SHARE_OF_REEL);
                let behind = book.seen.saturating_sub(book.acknowledged);
                *self.waiting.entry(sink).or_default() += behind.min(reel_bytes);
            }
        }
    }

    /// Stops taking in output of the process; its entry in the state stays.
    pub fn drop_book(&mut self, serial: u64) {
        self.books.remove(&serial);
    }

    /// Forgets a process that the kernel has forgotten.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub fn forget(&mut self, serial: u64) -> std::io::Result<()> {
        self.books.remove(&serial);
        self.desk.store.retain(|known| known != serial)
    }

    /// Forgets every process but those for which `keep` says yes.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub fn retain(&mut self, mut keep: impl FnMut(u64) -> bool) -> std::io::Result<()> {
        self.books.retain(|serial, _| keep(*serial));
        self.desk.store.retain(keep)
    }

    /// Closes all files, because they were moved; the next line opens each by its path.
    pub fn reopen(&mut self) {
        for file in self.desk.sinks.iter_mut().filter_map(Sink::file_mut) {
            file.reopen();
        }
    }
}

fn touch(book: &mut Book, touched: &mut Vec<u64>, serial: u64) {
    if !book.touched {
        book.touched = true;
        touched.push(serial);
    }
}

/// Longest line of a stream.
fn limit(tail_limit: usize, target: Option<&Destination>) -> usize {
    let format = target.map_or(MAX_LINE_BYTES, |target| target.format.max_line_bytes());
    tail_limit.min(format)
}
