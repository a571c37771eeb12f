//! Where lines go, and that changing while they come.
//!
//! Owns the way from a route to an open sink, one for each address however it is spelt, and the
//! turn of a running process's streams to other ones. Leaves to others: what the routes are
//! (`routes`), the lines (`book`).
//! Invariant: a line goes whole to one place; a stream with half a write in a file turns away only
//! after that is finished.

use std::collections::HashSet;
use std::time::Duration;

use papa_system::walk;

use crate::book::Destination;
use crate::format::Format;
use crate::layout::{Kind, Source};
use crate::own_output::OWN_STDOUT;
use crate::route::{Route, Routes};
use crate::schedule::Now;
use crate::sink::{Address, Sink};
use crate::writer::{LogWriter, limit};

impl LogWriter {
    /// The routes that come now replace what was said before of each file.
    pub fn begin_update(&mut self) {
        for file in self.desk.sinks.iter_mut().filter_map(Sink::file_mut) {
            file.renew_limits();
        }
    }

    /// All routes were told: files without one are closed.
    pub fn end_update(&mut self) {
        let mut used: HashSet<usize> = HashSet::new();
        for stream in self.books.values().flat_map(|book| &book.streams) {
            used.extend(stream.target.as_ref().map(|target| target.sink));
        }
        for (index, sink) in self.desk.sinks.iter_mut().enumerate() {
            if let (false, Some(file)) = (used.contains(&index), sink.file_mut()) {
                file.reopen();
            }
        }
    }

    /// Sends the further lines of a process elsewhere. True when the kernel must be asked for
    /// everything unacknowledged once more.
    pub fn reroute(&mut self, serial: u64, routes: &Routes, now: Now) -> bool {
        // What was taken in goes where it was to go; positions then say what is left.
        self.flush_files(0, Duration::MAX, now);
        let mut again = false;
        for (place, route) in [&routes.out, &routes.err].into_iter().enumerate() {
            let watcher = self
                .books
                .get(&serial)
                .map(|book| book.author.watcher.clone());
            let watcher = watcher.unwrap_or_default();
            let fresh = route.as_ref().map(|route| self.target(route, &watcher));
            let Some(book) = self.books.get_mut(&serial) else {
                return false;
            };
            let Some(stream) = book.streams.get_mut(place) else {
                return false;
            };
            let stuck = stream.target.as_ref().is_some_and(|target| {
                let sink = self.desk.sinks.get(target.sink);
                sink.is_some_and(Sink::is_stuck)
            });
            if stuck {
                // Part of its lines stand in that file already, and the rest of them must follow.
                stream.next_route = Some(route.clone());
                continue;
            }
            stream.next_route = None;
            let stays = fresh.as_ref().map(|target| target.sink);
            let left = stream.target.as_ref().map(|target| target.sink);
            let left = left.filter(|sink| stays != Some(*sink));
            if let Some(sink) = left.and_then(|sink| self.desk.sinks.get_mut(sink)) {
                // It goes where the rest of the stream goes, which then is as one whose file was
                // suspended.
                stream.stale |= sink.withdraw(stream.source);
            }
            again |= stream.stale;
            let limit = limit(book.tail_limit, fresh.as_ref());
            book.turn(&mut self.desk, place, fresh, limit, now);
        }
        if let Some(book) = self.books.get_mut(&serial) {
            let matched = Source {
                serial,
                kind: Kind::Matched,
            };
            let before = self.desk.store.done(matched) > 0;
            if before && routes.ready.is_some() {
                self.matched.push(serial);
            }
            book.ready = routes.ready.clone().filter(|_| !before);
        }
        again
    }

    pub(super) fn target(&mut self, route: &Route, watcher: &str) -> Destination {
        let address = settled(&route.to);
        let known = self.by_address.get(&address).copied().or_else(|| {
            // One whose directory did not exist when it was first named, by another spelling.
            let sinks = &self.desk.sinks;
            sinks
                .iter()
                .position(|sink| settled(&sink.address()) == address)
        });
        let sink = known.unwrap_or_else(|| {
            self.desk.sinks.push(Sink::new(&address));
            self.desk.sinks.len() - 1
        });
        self.by_address.insert(address, sink);
        if let Some(file) = self.desk.sinks.get_mut(sink).and_then(Sink::file_mut) {
            file.set_limits(route.limits);
        }
        Destination {
            sink,
            format: Format::new(&route.style, watcher),
        }
    }
}

/// The path with its directory resolved: two spellings of one file must not get two writers.
fn settled(address: &Address) -> Address {
    let Address::File(path) = address else {
        return address.clone();
    };
    // Left as it is where a stranger's link is on the way: opening it says so.
    let parent = path.parent().and_then(|parent| walk::resolved(parent).ok());
    match (parent, path.file_name()) {
        (Some(parent), Some(name)) if path.as_os_str() != OWN_STDOUT => {
            Address::File(parent.join(name))
        }
        _ => address.clone(),
    }
}
