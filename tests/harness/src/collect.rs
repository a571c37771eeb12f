//! A consumer that keeps what it was given and checks that nothing is missing or comes twice.
//!
//! Survives the kernel: what it has *acknowledged* it has kept, so after a reconnect it expects the
//! stream to go on exactly there.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::json::{Json, Push};
use super::{PATIENCE, wait_for};

/// What is known of one process.
#[derive(Debug, Default, Clone)]
pub struct Collected {
    /// Everything it wrote, in the order the kernel captured it.
    pub bytes: Vec<u8>,
    /// The position after the last byte seen: equal to `bytes.len()` unless there was a gap.
    pub position: u64,
    /// Bytes the kernel dropped before they reached us.
    pub dropped: u64,
    /// Streams that reached their end (1 = out, 2 = err).
    pub ended: Vec<u64>,
    /// The exit push, without its subscription.
    pub exit: Option<Value>,
    /// Positions of the records: (end, stream, stamp).
    pub records: Vec<(u64, u64, u64)>,
}

impl Collected {
    /// Keeps what is new of these bytes; what is known must be the same.
    #[track_caller]
    fn add(&mut self, start: u64, bytes: &[u8]) {
        let again = usize::try_from(self.position.saturating_sub(start)).unwrap_or(usize::MAX);
        let (known, new) = bytes.split_at(again.min(bytes.len()));
        if !known.is_empty() {
            // The store is shifted against positions by what was dropped.
            let from = usize::try_from(start.saturating_sub(self.dropped)).unwrap_or(usize::MAX);
            assert_eq!(
                self.bytes.get(from..from.saturating_add(known.len())),
                Some(known),
                "what comes again is the same"
            );
        }
        self.bytes.extend_from_slice(new);
    }

    /// The bytes of one stream only.
    pub fn stream(&self, wanted: u64) -> Vec<u8> {
        let mut start = 0;
        let mut found = Vec::new();
        for (end, stream, _) in &self.records {
            let end = usize::try_from(*end).unwrap_or(usize::MAX);
            if *stream == wanted {
                found.extend_from_slice(self.bytes.get(start..end).unwrap_or_default());
            }
            start = end;
        }
        found
    }
}

/// A consumer of everything that matches its patterns.
#[derive(Debug)]
pub struct Collector {
    path: PathBuf,
    patterns: Vec<String>,
    session: Option<Json>,
    /// Serials whose next output may begin before what we have: the first after a reconnect.
    resumed: HashSet<u64>,
    /// By serial.
    pub seen: HashMap<u64, Collected>,
    /// Whether bytes are kept or only counted.
    pub keep: bool,
    /// Connections it had to make.
    pub connections: usize,
}

impl Collector {
    /// A consumer of these patterns on the kernel behind this socket; it connects when first asked.
    pub fn new(path: &Path, patterns: &[&str]) -> Self {
        Self {
            path: path.to_owned(),
            patterns: patterns.iter().map(|text| (*text).to_owned()).collect(),
            session: None,
            resumed: HashSet::new(),
            seen: HashMap::new(),
            keep: true,
            connections: 0,
        }
    }

    /// Gives up the connection, as if this consumer had died.
    pub fn disconnect(&mut self) {
        self.session = None;
    }

    /// The session, connected and subscribed; waits while the kernel is away. None when it went at
    /// once again.
    fn session(&mut self) -> Option<&mut Json> {
        if self.session.is_none() {
            let path = self.path.clone();
            let patterns = self.patterns.clone();
            let session = wait_for("the kernel takes a consumer", || {
                let mut session = Json::unix(&path).ok()?;
                // Forced: a connection of ours the kernel has not yet seen die may still hold the
                // place.
                session
                    .call("output.consume", json!({"names": patterns, "force": true}))
                    .ok()?
                    .ok()?;
                Some(session)
            });
            self.session = Some(session);
            self.connections += 1;
            self.resumed = self.seen.keys().copied().collect();
            self.notice_forgotten();
        }
        self.session.as_mut()
    }

    /// A process whose exit we acknowledged and the kernel no longer lists was forgotten: it had
    /// come to its end, and only the news of that was lost with the connection.
    fn notice_forgotten(&mut self) {
        let Some(session) = self.session.as_mut() else {
            return;
        };
        let Ok(Ok(listed)) = session.call("process.list", json!({})) else {
            self.session = None;
            return;
        };
        let listed: Vec<u64> = listed["processes"]
            .as_array()
            .map(|list| {
                list.iter()
                    .filter_map(|process| process["serial"].as_u64())
                    .collect()
            })
            .unwrap_or_default();
        for (serial, seen) in &mut self.seen {
            if seen.exit.is_some() && !listed.contains(serial) {
                seen.ended = vec![1, 2];
            }
        }
    }

    /// Takes what comes within `limit`, acknowledges it; false when nothing came.
    ///
    /// # Panics
    /// When something comes twice or out of order.
    #[track_caller]
    pub fn step(&mut self, limit: Duration) -> bool {
        let Some(session) = self.session() else {
            return false;
        };
        let pushed = session.push_within(limit);
        match pushed {
            Ok(Some(push)) => {
                self.take(&push);
                true
            }
            Ok(None) => false,
            Err(_) => {
                self.session = None;
                false
            }
        }
    }

    #[track_caller]
    fn take(&mut self, push: &Push) {
        if let Some(output) = push.body("output") {
            let serial = output["serial"].as_u64().expect("output has a serial");
            let start = output["start"].as_u64().expect("output has a start");
            let length = output["length"].as_u64().expect("output has a length");
            let keep = self.keep;
            let resumed = self.resumed.remove(&serial);
            let seen = self.seen.entry(serial).or_default();
            // What comes again is what a lost connection took the acknowledgement of.
            assert!(
                start >= seen.position || resumed,
                "serial {serial}: output at {start} comes again within a connection, {} was acknowledged",
                seen.position
            );
            seen.dropped += start.saturating_sub(seen.position);
            if keep {
                seen.add(start, &push.bytes);
                let mut previous = start;
                for record in output["records"].as_array().expect("output has records") {
                    let numbers: Vec<u64> = record
                        .as_array()
                        .expect("a record is an array")
                        .iter()
                        .filter_map(Value::as_u64)
                        .collect();
                    let [end, stream, stamp] = numbers[..] else {
                        panic!("a record is three numbers: {record}");
                    };
                    assert!(end > previous, "records rise: {output}");
                    previous = end;
                    if end > seen.position {
                        seen.records.push((end, stream, stamp));
                    }
                }
                assert_eq!(
                    previous,
                    start + length,
                    "records cover the batch: {output}"
                );
            }
            seen.position = seen.position.max(start + length);
            let position = seen.position;
            self.acknowledge(
                "output.ack",
                json!({"acks": {serial.to_string(): position}}),
            );
        } else if let Some(end) = push.body("end") {
            let serial = end["serial"].as_u64().expect("an end has a serial");
            let stream = end["stream"].as_u64().expect("an end has a stream");
            let seen = self.seen.entry(serial).or_default();
            if !seen.ended.contains(&stream) {
                seen.ended.push(stream);
            }
        } else if let Some(exit) = push.body("exit") {
            let serial = exit["serial"].as_u64().expect("an exit has a serial");
            let mut exit = exit.clone();
            exit["sub"].take();
            self.seen.entry(serial).or_default().exit = Some(exit);
            self.acknowledge("exit.ack", json!({"serials": [serial]}));
        }
    }

    /// A failure shows at the next read, after everything the kernel still managed to send.
    fn acknowledge(&mut self, op: &str, fields: Value) {
        if let Some(session) = self.session.as_mut() {
            let _ = session.send(op, fields);
        }
    }

    /// Goes on until `done` holds.
    ///
    /// # Panics
    /// When it does not within `patience`.
    #[track_caller]
    pub fn run_until(
        &mut self,
        what: &str,
        patience: Duration,
        mut done: impl FnMut(&Self) -> bool,
    ) {
        let deadline = Instant::now() + patience;
        while !done(self) {
            assert!(
                Instant::now() < deadline,
                "consumed {patience:?} in vain until {what}; saw {}",
                self.summary()
            );
            self.step(Duration::from_millis(50));
        }
    }

    /// Goes on until this process has exited and both its streams have ended.
    ///
    /// # Panics
    /// When that does not happen in time.
    #[track_caller]
    pub fn finish(&mut self, serial: u64) -> Collected {
        self.run_until("the process is finished", PATIENCE, |collector| {
            collector.finished(serial)
        });
        self.seen.get(&serial).cloned().unwrap_or_default()
    }

    /// Exited, with both streams at their end.
    pub fn finished(&self, serial: u64) -> bool {
        self.seen
            .get(&serial)
            .is_some_and(|seen| seen.exit.is_some() && seen.ended.len() == 2)
    }

    fn summary(&self) -> String {
        let exits = self.seen.values().filter(|seen| seen.exit.is_some());
        format!(
            "{} processes, {} exits, {} bytes, {} dropped, {} connections",
            self.seen.len(),
            exits.count(),
            self.seen.values().map(|seen| seen.position).sum::<u64>(),
            self.seen.values().map(|seen| seen.dropped).sum::<u64>(),
            self.connections
        )
    }
}
