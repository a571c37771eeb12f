//! What exists: values, sockets, processes, held descriptors, claims.
//!
//! A plain value that only [`Table::apply`] changes, with an [`Entry`]. The running kernel appends
//! the entry to the journal and applies it; recovery reads the journal and applies the same
//! entries. The table knows nothing of descriptors, sessions or the clock.
//! Invariant: applying `image()` to an empty table gives this table.

mod entry;
mod find;

use std::collections::BTreeMap;

use papa_protocol::json::request::{ProcessMake, SocketMake};
use papa_protocol::name::{Name, NamePattern};
use papa_protocol::process::{Exit, Ledger};
use papa_protocol::text::ByteString;
use serde::{Deserialize, Serialize};

pub use self::entry::{Entry, Read, Record};
use self::find::find;
pub use self::find::{Matcher, known};

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
    /// When it was started, in microseconds since the epoch.
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
    /// Its output was given up.
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
    /// When the first of them started, in microseconds since the epoch.
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
    /// A socket has another name than the journal gave it first. Earlier versions take such a journal
    /// to say that it has both, so it is to be compacted.
    pub(crate) has_renamed: bool,
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
                // One that is here already has another name now.
                let before = self.sockets.get(&row.id);
                self.has_renamed |= before.is_some_and(|old| old.make.name != row.make.name);
                self.release_socket_name(row.id);
                self.socket_names.insert(row.make.name.clone(), row.id);
                self.sockets.insert(row.id, *row);
            }
            Entry::Unsocket { id } => {
                self.release_socket_name(id);
                self.sockets.remove(&id);
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

    fn release_socket_name(&mut self, id: u64) {
        if let Some(row) = self.sockets.get(&id)
            && self.socket_names.get(&row.make.name) == Some(&id)
        {
            self.socket_names.remove(&row.make.name);
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
    pub fn image(&self) -> impl Iterator<Item = Entry> + Clone {
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

/// Adds one ledger to another.
pub fn add(sum: &mut Ledger, other: &Ledger) {
    sum.captured = sum.captured.saturating_add(other.captured);
    sum.delivered = sum.delivered.saturating_add(other.delivered);
    sum.acknowledged = sum.acknowledged.saturating_add(other.acknowledged);
    sum.dropped = sum.dropped.saturating_add(other.dropped);
}

#[cfg(test)]
mod tests;
