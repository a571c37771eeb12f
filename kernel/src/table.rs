//! What exists: values, sockets, processes, held descriptors, claims.
//!
//! A plain value changed in one way only: [`Table::apply`] with an [`Entry`].
//! The running kernel appends the entry to the journal and applies it;
//! recovery reads the journal and applies the same entries. Knows nothing of
//! descriptors, sessions or the clock.
//! Invariant: applying `image()` to an empty table gives this table.

use std::collections::BTreeMap;

use papa_protocol::json::request::{ProcessMake, SocketMake};
use papa_protocol::name::{Name, NamePattern};
use papa_protocol::process::{Exit, Ledger};
use papa_protocol::text::ByteString;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// One change, as the journal keeps it. New kinds may be added and fields may
/// be added with defaults; what is here keeps its meaning.
#[derive(Debug, Clone, Serialize, Deserialize)]
// Tag beside content: an inner tag would have serde keep the content in a form
// that raw JSON (a process's tag) cannot be read from.
#[serde(tag = "t", content = "v", rename_all = "snake_case")]
pub enum Entry {
    /// A kernel has started on this journal.
    Boot {
        /// Its incarnation.
        incarnation: u64,
        /// When the first of the line started, in microseconds.
        first_started_us: u64,
    },
    /// Numbers never to be given again, and the sums of what is forgotten.
    Counters {
        /// The next process's serial.
        next_serial: u64,
        /// The next id of a socket or held descriptor.
        next_id: u64,
        /// Output of processes no longer listed.
        #[serde(default)]
        forgotten: Ledger,
    },
    /// A value was set.
    Value {
        /// Its name.
        name: Name,
        /// Its content.
        value: ByteString,
    },
    /// A value was cleared.
    Unvalue {
        /// Its name.
        name: Name,
    },
    /// A socket was made.
    Socket(Box<SocketRow>),
    /// A socket was closed.
    Unsocket {
        /// Its id.
        id: u64,
    },
    /// A process is about to be started.
    Intent(Box<ProcessRow>),
    /// It was.
    Started {
        /// Which.
        serial: u64,
        /// Its number.
        pid: u32,
    },
    /// A process has ended.
    Exit {
        /// Which.
        serial: u64,
        /// How.
        exit: Exit,
    },
    /// Its consumer knows of a process's exit: the name is free, the rest
    /// stays until the output is read.
    ExitKnown {
        /// Which.
        serial: u64,
    },
    /// Nobody wants a process's output any more; when it has ended it is
    /// forgotten.
    Removing {
        /// Which.
        serial: u64,
    },
    /// A process is no longer listed.
    Forget {
        /// Which.
        serial: u64,
        /// Where its output went.
        #[serde(default)]
        ledger: Ledger,
    },
    /// A descriptor is held for a client.
    Hold {
        /// Its id with the keeper.
        id: u64,
        /// Its name.
        name: Name,
        /// What it is, for people.
        kind: String,
    },
    /// It is not any more.
    Unhold {
        /// Its name.
        name: Name,
    },
    /// A namespace was claimed.
    Claim {
        /// The namespace.
        namespace: Name,
        /// Who claimed it.
        holder: String,
        /// The how-manieth claim of it this is.
        epoch: u64,
    },
    /// A claim was given back; its epoch is remembered.
    Release {
        /// The namespace.
        namespace: Name,
    },
}

/// A record as compaction writes it.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Record<'a> {
    /// One of ours.
    Entry(Entry),
    /// One of a later version, as it was.
    Unknown(&'a RawValue),
}

/// What a journal record turned out to be.
#[derive(Debug)]
pub enum Read {
    /// A change.
    Entry(Entry),
    /// A kind of change only a later version knows.
    Unknown(Box<RawValue>),
    /// Nothing that can be read.
    Bad(serde_json::Error),
}

impl Entry {
    /// Reads a record's text.
    #[must_use]
    pub fn read(text: &[u8]) -> Read {
        #[derive(Deserialize)]
        struct Kind<'a> {
            t: &'a str,
        }
        match serde_json::from_slice(text) {
            Ok(entry) => Read::Entry(entry),
            Err(error) => match serde_json::from_slice::<Kind<'_>>(text) {
                Ok(kind) if !Self::KINDS.contains(&kind.t) => {
                    serde_json::from_slice(text).map_or_else(Read::Bad, Read::Unknown)
                }
                _ => Read::Bad(error),
            },
        }
    }

    /// Every kind of record this version writes.
    const KINDS: [&'static str; 16] = [
        "boot",
        "counters",
        "value",
        "unvalue",
        "socket",
        "unsocket",
        "intent",
        "started",
        "exit",
        "exit_known",
        "removing",
        "forget",
        "hold",
        "unhold",
        "claim",
        "release",
    ];
}

/// A socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SocketRow {
    /// Its id with the keeper.
    pub id: u64,
    /// What was asked for.
    pub make: SocketMake,
    /// The port bound; 0 for unix sockets.
    pub port: u16,
    /// The number processes find it at; none with `reuseport`.
    pub number: Option<u32>,
}

/// A process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProcessRow {
    /// Its serial.
    pub serial: u64,
    /// What was asked for.
    pub make: ProcessMake,
    /// The user it runs as, resolved.
    pub uid: Option<u32>,
    /// The group it runs as, resolved.
    pub gid: Option<u32>,
    /// When it was started, in microseconds.
    pub started_us: u64,
    /// Its number; 0 until it is known.
    #[serde(default)]
    pub pid: u32,
    /// How it ended.
    #[serde(default)]
    pub exit: Option<Exit>,
    /// Its consumer knows how it ended.
    #[serde(default)]
    pub exit_known: bool,
    /// Nobody wants its output.
    #[serde(default)]
    pub removing: bool,
}

impl ProcessRow {
    /// Whether clients see it: removed ones are gone once they have ended.
    #[must_use]
    pub fn is_listed(&self) -> bool {
        !(self.removing && self.exit.is_some())
    }

    /// Whether its name is taken by it.
    #[must_use]
    pub fn has_name(&self) -> bool {
        self.is_listed() && !self.exit_known
    }
}

/// A held descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldRow {
    /// Its id with the keeper.
    pub id: u64,
    /// What it is, for people.
    pub kind: String,
}

/// A namespace that is or was claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimRow {
    /// Who claimed it, if it has not been given back.
    pub holder: Option<String>,
    /// The last epoch given.
    pub epoch: u64,
}

/// Everything that exists.
#[derive(Debug, Default)]
pub struct Table {
    /// How many kernels have started on this journal.
    pub incarnation: u64,
    /// When the first did, in microseconds.
    pub first_started_us: u64,
    /// The next process's serial.
    pub next_serial: u64,
    /// The next id of a socket or held descriptor.
    pub next_id: u64,
    /// Output of processes no longer listed.
    pub forgotten: Ledger,
    /// Values by name.
    pub values: BTreeMap<Name, ByteString>,
    /// Bytes in all values.
    pub values_bytes: usize,
    /// Held descriptors by name.
    pub held: BTreeMap<Name, HeldRow>,
    /// Claims by namespace.
    pub claims: BTreeMap<Name, ClaimRow>,
    sockets: BTreeMap<u64, SocketRow>,
    socket_names: BTreeMap<Name, u64>,
    processes: BTreeMap<u64, ProcessRow>,
    process_names: BTreeMap<Name, u64>,
}

impl Table {
    /// Makes one change. Entries about what does not exist change nothing.
    pub fn apply(&mut self, entry: Entry) {
        match entry {
            Entry::Boot {
                incarnation,
                first_started_us,
            } => {
                self.incarnation = incarnation;
                self.first_started_us = first_started_us;
            }
            Entry::Counters {
                next_serial,
                next_id,
                forgotten,
            } => {
                self.next_serial = self.next_serial.max(next_serial);
                self.next_id = self.next_id.max(next_id);
                self.forgotten = forgotten;
            }
            Entry::Value { name, value } => {
                self.values_bytes += name.len() + value.len();
                if let Some(old) = self.values.insert(name.clone(), value) {
                    self.values_bytes -= name.len() + old.len();
                }
            }
            Entry::Unvalue { name } => {
                if let Some(old) = self.values.remove(&name) {
                    self.values_bytes -= name.len() + old.len();
                }
            }
            Entry::Socket(row) => {
                self.next_id = self.next_id.max(row.id.saturating_add(1));
                self.socket_names.insert(row.make.name.clone(), row.id);
                self.sockets.insert(row.id, *row);
            }
            Entry::Unsocket { id } => {
                if let Some(row) = self.sockets.remove(&id)
                    && self.socket_names.get(&row.make.name) == Some(&id)
                {
                    self.socket_names.remove(&row.make.name);
                }
            }
            Entry::Intent(row) => {
                self.next_serial = self.next_serial.max(row.serial.saturating_add(1));
                if row.has_name() {
                    self.process_names.insert(row.make.name.clone(), row.serial);
                }
                self.processes.insert(row.serial, *row);
            }
            Entry::Started { serial, pid } => {
                if let Some(row) = self.processes.get_mut(&serial) {
                    row.pid = pid;
                }
            }
            Entry::Exit { serial, exit } => {
                if let Some(row) = self.processes.get_mut(&serial) {
                    row.exit = Some(exit);
                }
                self.release_name(serial);
            }
            Entry::ExitKnown { serial } => {
                if let Some(row) = self.processes.get_mut(&serial) {
                    row.exit_known = true;
                }
                self.release_name(serial);
            }
            Entry::Removing { serial } => {
                if let Some(row) = self.processes.get_mut(&serial) {
                    row.removing = true;
                }
                self.release_name(serial);
            }
            Entry::Forget { serial, ledger } => {
                if let Some(row) = self.processes.get_mut(&serial) {
                    row.removing = true;
                    row.exit.get_or_insert(Exit {
                        code: None,
                        signal: None,
                        core: false,
                        stamp_us: 0,
                        rusage: None,
                    });
                    self.release_name(serial);
                    self.processes.remove(&serial);
                    add(&mut self.forgotten, &ledger);
                }
            }
            Entry::Hold { id, name, kind } => {
                self.next_id = self.next_id.max(id.saturating_add(1));
                self.held.insert(name, HeldRow { id, kind });
            }
            Entry::Unhold { name } => {
                self.held.remove(&name);
            }
            Entry::Claim {
                namespace,
                holder,
                epoch,
            } => {
                let holder = Some(holder);
                self.claims.insert(namespace, ClaimRow { holder, epoch });
            }
            Entry::Release { namespace } => {
                if let Some(row) = self.claims.get_mut(&namespace) {
                    row.holder = None;
                }
            }
        }
    }

    /// A name is free again once its process has ended and nobody needs it by
    /// name.
    fn release_name(&mut self, serial: u64) {
        if let Some(row) = self.processes.get(&serial)
            && !row.has_name()
            && self.process_names.get(&row.make.name) == Some(&serial)
        {
            self.process_names.remove(&row.make.name);
        }
    }

    /// The entries that make this table out of an empty one.
    pub fn image(&self) -> impl Iterator<Item = Entry> {
        let head = [
            Entry::Boot {
                incarnation: self.incarnation,
                first_started_us: self.first_started_us,
            },
            Entry::Counters {
                next_serial: self.next_serial,
                next_id: self.next_id,
                forgotten: self.forgotten,
            },
        ];
        let values = self.values.iter().map(|(name, value)| Entry::Value {
            name: name.clone(),
            value: value.clone(),
        });
        let sockets = self
            .sockets
            .values()
            .map(|row| Entry::Socket(Box::new(row.clone())));
        let processes = self
            .processes
            .values()
            .map(|row| Entry::Intent(Box::new(row.clone())));
        let held = self.held.iter().map(|(name, row)| Entry::Hold {
            id: row.id,
            name: name.clone(),
            kind: row.kind.clone(),
        });
        let claims = self.claims.iter().flat_map(|(namespace, row)| {
            let claim = Entry::Claim {
                namespace: namespace.clone(),
                holder: row.holder.clone().unwrap_or_default(),
                epoch: row.epoch,
            };
            let release = row.holder.is_none().then(|| Entry::Release {
                namespace: namespace.clone(),
            });
            std::iter::once(claim).chain(release)
        });
        head.into_iter()
            .chain(values)
            .chain(sockets)
            .chain(processes)
            .chain(held)
            .chain(claims)
    }

    /// All processes, listed or not, by serial.
    pub fn processes(&self) -> impl Iterator<Item = &ProcessRow> {
        self.processes.values()
    }

    /// The process with this serial, listed or not.
    #[must_use]
    pub fn process(&self, serial: u64) -> Option<&ProcessRow> {
        self.processes.get(&serial)
    }

    /// The process that has this name.
    #[must_use]
    pub fn process_named(&self, name: &str) -> Option<&ProcessRow> {
        self.processes.get(self.process_names.get(name)?)
    }

    /// All sockets by id.
    pub fn sockets(&self) -> impl Iterator<Item = &SocketRow> {
        self.sockets.values()
    }

    /// The socket with this id.
    #[must_use]
    pub fn socket(&self, id: u64) -> Option<&SocketRow> {
        self.sockets.get(&id)
    }

    /// The socket of this name.
    #[must_use]
    pub fn socket_named(&self, name: &str) -> Option<&SocketRow> {
        self.sockets.get(self.socket_names.get(name)?)
    }

    /// The lowest number from `first` on that no socket has.
    #[must_use]
    pub fn free_socket_number(&self, first: u32) -> u32 {
        let taken: std::collections::BTreeSet<u32> =
            self.sockets.values().filter_map(|row| row.number).collect();
        (first..)
            .find(|number| !taken.contains(number))
            .unwrap_or(first)
    }

    /// Serials of listed processes that match, sorted by name. No pattern
    /// means all. A number names a process by pid if no name fits it.
    ///
    /// # Errors
    /// The first plain pattern that names nothing.
    pub fn find_processes<'a>(
        &self,
        patterns: &'a [NamePattern],
    ) -> Result<Vec<u64>, &'a NamePattern> {
        find(&self.process_names, patterns, |number| {
            self.processes
                .values()
                .find(|row| row.pid == number && number != 0 && row.is_listed())
                .map(|row| (row.make.name.clone(), row.serial))
        })
    }

    /// Ids of sockets that match, sorted by name; a number names one by file
    /// number if no name fits it.
    ///
    /// # Errors
    /// The first plain pattern that names nothing.
    pub fn find_sockets<'a>(
        &self,
        patterns: &'a [NamePattern],
    ) -> Result<Vec<u64>, &'a NamePattern> {
        find(&self.socket_names, patterns, |number| {
            self.sockets
                .values()
                .find(|row| row.number == Some(number))
                .map(|row| (row.make.name.clone(), row.id))
        })
    }
}

/// Many patterns as one question: a look-up for the name and one for each of
/// its beginnings, however many patterns there are.
#[derive(Debug)]
pub struct Matcher<'a> {
    everything: bool,
    exact: std::collections::HashSet<&'a str>,
    prefixes: std::collections::HashSet<&'a str>,
}

impl<'a> Matcher<'a> {
    /// No pattern means all.
    #[must_use]
    pub fn new(patterns: &'a [NamePattern]) -> Self {
        let mut matcher = Self {
            everything: patterns.is_empty(),
            exact: std::collections::HashSet::new(),
            prefixes: std::collections::HashSet::new(),
        };
        for pattern in patterns {
            match pattern {
                NamePattern::Exact(text) => matcher.exact.insert(text),
                NamePattern::Prefix(text) => matcher.prefixes.insert(text),
            };
        }
        matcher
    }

    /// Whether any of the patterns fits `name`.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        self.everything
            || self.exact.contains(name)
            || (!self.prefixes.is_empty()
                && (0..=name.len())
                    .filter_map(|end| name.get(..end))
                    .any(|beginning| self.prefixes.contains(beginning)))
    }
}

/// Keeps only the patterns that [`Table::find_processes`] and its like find,
/// for verbs to which an unknown name is no error.
pub fn known<'a>(
    patterns: &'a [NamePattern],
    find_one: impl Fn(&'a [NamePattern]) -> Result<Vec<u64>, &'a NamePattern>,
) -> Vec<u64> {
    if patterns.is_empty() {
        return find_one(patterns).unwrap_or_default();
    }
    let mut found = Vec::new();
    for pattern in patterns {
        if let Ok(some) = find_one(std::slice::from_ref(pattern)) {
            found.extend(some);
        }
    }
    found
}

fn find<'a>(
    names: &BTreeMap<Name, u64>,
    patterns: &'a [NamePattern],
    by_number: impl Fn(u32) -> Option<(Name, u64)>,
) -> Result<Vec<u64>, &'a NamePattern> {
    if patterns.is_empty() {
        return Ok(names.values().copied().collect());
    }
    let mut found: BTreeMap<Name, u64> = BTreeMap::new();
    for pattern in patterns {
        match pattern {
            NamePattern::Prefix(prefix) => {
                let range = names.range::<str, _>((
                    std::ops::Bound::Included(prefix.as_str()),
                    std::ops::Bound::Unbounded,
                ));
                found.extend(
                    range
                        .take_while(|(name, _)| name.starts_with(prefix.as_str()))
                        .map(|(name, id)| (name.clone(), *id)),
                );
            }
            NamePattern::Exact(exact) => {
                let named = names.get_key_value(exact.as_str());
                let hit = named
                    .map(|(name, id)| (name.clone(), *id))
                    .or_else(|| pattern.number().and_then(&by_number));
                let (name, id) = hit.ok_or(pattern)?;
                found.insert(name, id);
            }
        }
    }
    Ok(found.into_values().collect())
}

/// Adds one ledger to another.
pub fn add(sum: &mut Ledger, other: &Ledger) {
    sum.captured = sum.captured.saturating_add(other.captured);
    sum.delivered = sum.delivered.saturating_add(other.delivered);
    sum.acknowledged = sum.acknowledged.saturating_add(other.acknowledged);
    sum.dropped = sum.dropped.saturating_add(other.dropped);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(serial: u64, name: &str) -> Entry {
        Entry::Intent(Box::new(ProcessRow {
            serial,
            make: ProcessMake::new(Name::new(name).unwrap(), vec!["/bin/true".into()]),
            uid: None,
            gid: None,
            started_us: 1,
            pid: 0,
            exit: None,
            exit_known: false,
            removing: false,
        }))
    }

    fn exit() -> Exit {
        Exit {
            code: Some(0),
            signal: None,
            core: false,
            stamp_us: 5,
            rusage: None,
        }
    }

    #[test]
    fn the_image_makes_the_same_table() {
        let mut table = Table::default();
        let name = |text: &str| Name::new(text).unwrap();
        for entry in [
            Entry::Boot {
                incarnation: 3,
                first_started_us: 9,
            },
            Entry::Value {
                name: name("v"),
                value: "x".into(),
            },
            process(7, "a"),
            process(8, "b"),
            Entry::Started { serial: 7, pid: 44 },
            Entry::Exit {
                serial: 8,
                exit: exit(),
            },
            process(9, "gone"),
            Entry::Forget {
                serial: 9,
                ledger: Ledger {
                    captured: 4,
                    ..Ledger::default()
                },
            },
            Entry::Claim {
                namespace: name("circus"),
                holder: "me".into(),
                epoch: 4,
            },
            Entry::Release {
                namespace: name("circus"),
            },
        ] {
            table.apply(entry);
        }
        let text = |table: &Table| {
            table
                .image()
                .map(|entry| serde_json::to_string(&entry).unwrap())
                .collect::<Vec<_>>()
        };
        let mut again = Table::default();
        for line in text(&table) {
            again.apply(serde_json::from_str(&line).unwrap());
        }
        assert_eq!(text(&again), text(&table));
        assert_eq!(again.next_serial, 10);
        assert_eq!(again.forgotten.captured, 4);
    }

    #[test]
    fn a_removed_process_is_listed_until_it_ends_and_then_frees_its_name() {
        let mut table = Table::default();
        table.apply(process(1, "a"));
        table.apply(Entry::Removing { serial: 1 });
        assert!(table.process_named("a").is_some());
        table.apply(Entry::Exit {
            serial: 1,
            exit: exit(),
        });
        assert!(table.process_named("a").is_none());
        table.apply(process(2, "a"));
        table.apply(Entry::Forget {
            serial: 1,
            ledger: Ledger::default(),
        });
        assert_eq!(table.process_named("a").unwrap().serial, 2);
    }

    #[test]
    fn a_matcher_says_what_the_patterns_say() {
        let patterns = ["a.*", "b", "ä*"].map(NamePattern::new);
        let matcher = Matcher::new(&patterns);
        for name in ["a.", "a.x", "a", "b", "bb", "äö", "x"] {
            let expected = patterns.iter().any(|pattern| pattern.matches(name));
            assert_eq!(matcher.matches(name), expected, "{name}");
        }
        assert!(Matcher::new(&[]).matches("anything"));
    }

    #[test]
    fn the_largest_numbers_do_no_harm() {
        let mut table = Table::default();
        table.apply(process(u64::MAX, "a"));
        table.apply(Entry::Hold {
            id: u64::MAX,
            name: Name::new("h").unwrap(),
            kind: "file".into(),
        });
        let ledger = Ledger {
            captured: u64::MAX,
            ..Ledger::default()
        };
        for serial in [1, 2] {
            table.apply(process(serial, "b"));
            table.apply(Entry::Forget { serial, ledger });
        }
        assert_eq!((table.next_serial, table.next_id), (u64::MAX, u64::MAX));
        assert_eq!(table.forgotten.captured, u64::MAX);
    }

    #[test]
    fn exact_names_win_over_numbers() {
        let mut table = Table::default();
        table.apply(process(1, "44"));
        table.apply(process(2, "b"));
        table.apply(Entry::Started { serial: 2, pid: 44 });
        table.apply(Entry::Started { serial: 1, pid: 45 });
        let find = |word: &str| table.find_processes(&[NamePattern::new(word)]).ok();
        assert_eq!(find("44"), Some(vec![1]));
        assert_eq!(find("45"), Some(vec![1]));
        assert_eq!(find("*"), Some(vec![1, 2]));
        assert_eq!(find("nope"), None);
    }

    #[test]
    fn records_of_later_versions_load() {
        let later = Entry::read(br#"{"t":"quantum","v":{"x":1}}"#);
        assert!(matches!(later, Read::Unknown(_)));
        let more = Entry::read(br#"{"t":"started","v":{"serial":1,"pid":2,"colour":"red"}}"#);
        assert!(matches!(more, Read::Entry(Entry::Started { .. })));
        let bad = Entry::read(br#"{"t":"started","v":{"serial":"x"}}"#);
        assert!(matches!(bad, Read::Bad(_)));
    }

    #[test]
    fn a_process_with_everything_reads_back() {
        let line = r#"{"id":1,"op":"process.make","name":"a.b","argv":["x",[255,1]],"env":{"A":[1]},"tag":{"x":[1,{"y":null}]},"rlimits":{"nofile":[1,"infinity"]},"descriptors":{"5":"h"},"stdin":{"socket":"s"},"uid":0,"umask":"022","sockets":"all","listen_fds":["s"]}"#;
        let request = papa_protocol::json::Request::parse(line.as_bytes())
            .unwrap()
            .unwrap();
        let papa_protocol::json::Op::ProcessMake(make) = request.op else {
            panic!("another op");
        };
        let Entry::Intent(mut row) = process(3, "a.b") else {
            panic!("another entry");
        };
        row.make = *make;
        row.exit = Some(exit());
        let text = serde_json::to_vec(&Entry::Intent(row.clone())).unwrap();
        let Read::Entry(Entry::Intent(again)) = Entry::read(&text) else {
            panic!("{}", String::from_utf8_lossy(&text));
        };
        assert_eq!(again.make, row.make);
    }
}
