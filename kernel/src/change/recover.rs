//! Puts a running kernel together from descriptors and the journal: the one way it starts.
//!
//! A first start takes the same path as one after a crash, a kill or an exec; it only finds nothing
//! to recover. What the keeper has and the journal does not know is closed: nobody was ever told of
//! it. A process that was meant to start but never registered has never run.
//!
//! Invariant: nothing is written, taken or given up here. What follows from what was found is done
//! when the kernel has confirmed that it serves ([`Findings`]), so that a program that is only
//! tried leaves no trace.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use papa_protocol::limits::REEL_BYTES;
use papa_protocol::process::{Ledger, Stderr, Stdout};
use papa_test_hooks::failpoint;
use serde_json::value::RawValue;
use thiserror::Error;

use crate::config::Config;
use crate::keeper::link::KeeperLink;
use crate::keeper::wire::{Kept, Key, Kind, Verdict};
use crate::sys::clock::now_us;
use crate::sys::process;
use crate::world::journal::{Journal, JournalError};
use crate::world::live::Live;
use crate::world::reel::Reel;
use crate::world::table::{Entry, ProcessRow, Read, Table};
use crate::world::{Fixed, World};

/// A kernel that cannot start.
#[derive(Debug, Error)]
pub enum RecoverError {
    /// The keeper lacks something every kernel needs.
    #[error("the keeper has no {0}")]
    Missing(&'static str),
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The system refused.
    #[error("{0}: {1}")]
    System(&'static str, Errno),
}

/// What is to be done about what was found, once this kernel serves.
#[derive(Debug, Default)]
pub struct Findings {
    /// Changes that are in the table and not in the journal.
    pub entries: Vec<Entry>,
    /// What the keeper need not hold.
    pub gone: Vec<Key>,
}

/// What the keeper has of a change of program.
#[derive(Debug, Default)]
pub struct Resumption {
    /// The record, and the descriptors it names.
    pub kept: Vec<(Key, OwnedFd)>,
    /// What became of a program that was tried.
    pub verdict: Option<Verdict>,
}

/// What recovery puts together.
#[derive(Debug)]
pub struct Parts {
    /// What exists.
    pub world: World,
    /// What is to be done once this kernel serves.
    pub findings: Findings,
    /// The sessions of the program before.
    pub resumption: Resumption,
}

/// Descriptors from the keeper, by kind and id.
struct Fetched(Kept);

impl Fetched {
    fn take(&mut self, kind: Kind, id: u64) -> Option<OwnedFd> {
        self.0.remove(&Key::new(kind, id))
    }

    /// Takes something that every kernel needs.
    fn need(&mut self, kind: Kind, what: &'static str) -> Result<OwnedFd, RecoverError> {
        self.take(kind, 0).ok_or(RecoverError::Missing(what))
    }
}

/// Puts together what was fetched from the keeper, which told the `verdict`.
///
/// # Errors
/// The journal, the system or what was fetched is not as it must be; the keeper then tries again.
pub fn recover(
    link: KeeperLink,
    kept: Kept,
    verdict: Option<Verdict>,
) -> Result<Parts, RecoverError> {
    let mut fetched = Fetched(
        kept.into_iter()
            .map(|(key, fd)| match key.kind {
                Kind::PIDFD | Kind::OUT | Kind::ERR | Kind::REEL => (key, process::move_up(fd)),
                _ => (key, fd),
            })
            .collect(),
    );
    let config_file = fetched.need(Kind::CONFIG, "settings")?;
    let config =
        Config::read(&config_file).map_err(|errno| RecoverError::System("settings", errno))?;
    crate::logging::start(&config);
    let binary = fetched.need(Kind::BINARY, "program")?;
    let replayed = Replayed::read(fetched.need(Kind::JOURNAL, "journal")?)?;
    let mut found = Recovery {
        table: replayed.table,
        fetched,
        entries: Vec::new(),
    };
    let now = now_us();
    found.boot(now);
    failpoint::reach("recover.replayed");
    let live = found.processes(now);
    let socket_fds = found.sockets();
    let held_fds = found.held();
    let Recovery {
        table,
        fetched,
        entries,
    } = found;
    let Rest {
        controls,
        kept,
        unclaimed,
    } = Rest::of(fetched);
    // What may belong to records that could not be read stays, here and with the keeper: no writer
    // dies of a broken pipe, and a version that can read the record finds it. So does what only a
    // later version knows.
    let all_read = replayed.skipped == 0 && replayed.unknown.is_empty();
    let (gone, strangers): (Vec<_>, Vec<_>) = unclaimed
        .into_iter()
        .partition(|(key, _): &(Key, OwnedFd)| all_read && key.kind.is_known());
    if !strangers.is_empty() {
        tracing::error!(
            skipped_records = replayed.skipped,
            unknown = replayed.unknown.len(),
            strangers = strangers.len(),
            "keeping descriptors that may belong to journal records that were left out"
        );
    }
    tracing::info!(
        incarnation = table.incarnation,
        processes = live.len(),
        sockets = socket_fds.len(),
        strangers = gone.len() + strangers.len(),
        "recovered"
    );
    let fixed = Fixed {
        config: config_file,
        binary,
        controls,
        null: open_null()?,
    };
    let mut world = World::new(config, fixed, link, replayed.journal, table)
        .map_err(|errno| RecoverError::System("make an event poller", errno))?;
    world.skipped_records = replayed.skipped;
    world.unknown_records = replayed.unknown;
    world.live = live;
    world.socket_fds = socket_fds;
    world.held_fds = held_fds;
    world.strangers = strangers;
    let findings = Findings {
        entries,
        gone: gone.into_iter().map(|(key, _)| key).collect(),
    };
    Ok(Parts {
        world,
        findings,
        resumption: Resumption { kept, verdict },
    })
}

fn open_null() -> Result<OwnedFd, RecoverError> {
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(|error| {
            let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
            RecoverError::System("open /dev/null", errno)
        })?;
    Ok(null.into())
}

/// The journal, read to its end.
struct Replayed {
    journal: Journal,
    table: Table,
    /// Records of later versions, kept as they are.
    unknown: Vec<Box<RawValue>>,
    /// Records left out because they cannot be read.
    skipped: u64,
}

impl Replayed {
    fn read(file: OwnedFd) -> Result<Self, RecoverError> {
        let mut table = Table::default();
        let mut unknown = Vec::new();
        let mut replay = Journal::replay(file)?;
        while let Some(text) = replay.next_record()? {
            failpoint::reach("recover.replaying");
            match Entry::read(&text) {
                Read::Entry(entry) => table.apply(entry),
                Read::Unknown(record) => unknown.push(record),
                Read::Bad(error) => {
                    replay.skipped += 1;
                    tracing::error!(%error, "skipping a journal record this version cannot read");
                }
            }
        }
        Ok(Self {
            skipped: replay.skipped,
            journal: replay.finish(),
            table,
            unknown,
        })
    }
}

/// The table as it is brought in line with the descriptors there are.
struct Recovery {
    table: Table,
    /// Descriptors that no row has claimed yet.
    fetched: Fetched,
    /// Changes that are in the table and not in the journal.
    entries: Vec<Entry>,
}

impl Recovery {
    /// Makes a change in the table alone.
    fn note(&mut self, entry: Entry) {
        self.entries.push(entry.clone());
        self.table.apply(entry);
    }

    /// Counts this start.
    fn boot(&mut self, now: u64) {
        let first_started_us = match self.table.first_started_us {
            0 => now,
            first => first,
        };
        self.note(Entry::Boot {
            incarnation: self.table.incarnation + 1,
            first_started_us,
        });
    }

    /// Claims the descriptors of processes, and forgets processes that never ran.
    fn processes(&mut self, now: u64) -> HashMap<u64, Live> {
        let mut live = HashMap::new();
        let rows: Vec<ProcessRow> = self.table.processes().cloned().collect();
        for row in rows {
            let serial = row.serial;
            match recover_process(&row, &mut self.fetched, now) {
                Some((found, pid)) => {
                    live.insert(serial, found);
                    if row.pid == 0 {
                        self.note(Entry::Started { serial, pid });
                    }
                }
                None => self.note(Entry::Forget {
                    serial,
                    ledger: Ledger::default(),
                }),
            }
        }
        live
    }

    /// Claims the descriptors of sockets, and forgets sockets whose descriptor is missing.
    fn sockets(&mut self) -> HashMap<u64, OwnedFd> {
        let mut fds = HashMap::new();
        let rows: Vec<(u64, bool)> = self
            .table
            .sockets()
            .map(|row| (row.id, row.number.is_some()))
            .collect();
        for (id, is_held) in rows {
            if let Some(fd) = self.fetched.take(Kind::SOCKET, id) {
                fds.insert(id, fd);
            } else if is_held {
                tracing::error!(id, "the descriptor of a socket is missing");
                self.note(Entry::Unsocket { id });
            }
        }
        fds
    }

    /// Claims held descriptors, and forgets names whose descriptor is missing.
    fn held(&mut self) -> HashMap<u64, OwnedFd> {
        let mut fds = HashMap::new();
        let rows: Vec<_> = self
            .table
            .held
            .iter()
            .map(|(name, row)| (name.clone(), row.id))
            .collect();
        for (name, id) in rows {
            match self.fetched.take(Kind::HELD, id) {
                Some(fd) => {
                    fds.insert(id, fd);
                }
                None => self.note(Entry::Unhold { name }),
            }
        }
        fds
    }
}

/// Descriptors that belong to no row of the table.
#[derive(Default)]
struct Rest {
    /// The kernel's own listeners by id.
    controls: Vec<(u64, OwnedFd)>,
    /// What was handed over by the program before.
    kept: Vec<(Key, OwnedFd)>,
    /// What nobody has claimed.
    unclaimed: Vec<(Key, OwnedFd)>,
}

impl Rest {
    fn of(fetched: Fetched) -> Self {
        let mut rest = Self::default();
        for (key, fd) in fetched.0 {
            match key.kind {
                Kind::CONTROL => rest.controls.push((key.id, fd)),
                // That of the kernel before; this one's own takes its place at the keeper.
                Kind::POLLER => drop(fd),
                Kind::HANDOVER | Kind::SESSION | Kind::BINARY => rest.kept.push((key, fd)),
                _ => rest.unclaimed.push((key, fd)),
            }
        }
        rest.controls.sort_by_key(|(id, _)| *id);
        rest
    }
}

/// What the keeper has of one process, with its number. None for a process that never ran.
fn recover_process(row: &ProcessRow, fetched: &mut Fetched, now: u64) -> Option<(Live, u32)> {
    let serial = row.serial;
    let pidfd = fetched.take(Kind::PIDFD, serial);
    if pidfd.is_none() && row.exit.is_none() && row.pid == 0 {
        // Its pipes and reel are left among the strangers, so that the keeper
        // lets its copies go too.
        return None;
    }
    let pid = match (row.pid, &pidfd) {
        (0, Some(pidfd)) => pid_of(pidfd).unwrap_or(0),
        (pid, _) => pid,
    };
    let limit = row.make.reel_bytes.map_or(REEL_BYTES, |size| size.0);
    let out = fetched.take(Kind::OUT, serial);
    let err = fetched.take(Kind::ERR, serial);
    // One that was given up is a stranger, should the keeper still have it:
    // whoever gave it up may have been killed before it said so.
    let reel = if row.removing {
        None
    } else {
        fetched.take(Kind::REEL, serial).and_then(|file| {
            Reel::recover(file, limit, now)
                .inspect_err(|errno| tracing::error!(serial, %errno, "a reel cannot be read"))
                .ok()
        })
    };
    let mut live = Live::new(pidfd, out, err, reel);
    // A stream that was captured and has no pipe any more is at its end.
    let captured = limit > 0;
    let position = live.committed();
    if captured && row.make.stdout == Stdout::Pipe && live.out.is_none() {
        live.ends.out = Some(position);
    }
    if captured && row.make.stderr == Stderr::Pipe && live.err.is_none() {
        live.ends.err = Some(position);
    }
    Some((live, pid))
}

/// The number behind a handle.
/// Source: `pidfd_open(2)`, fdinfo.
fn pid_of(pidfd: &OwnedFd) -> Option<u32> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_fd().as_raw_fd());
    let text = std::fs::read_to_string(path).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("Pid:"))?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use papa_protocol::json::request::ProcessMake;
    use papa_protocol::name::Name;

    use super::*;

    #[test]
    fn a_reel_that_was_given_up_is_left_among_the_strangers() {
        let mut row = ProcessRow {
            serial: 7,
            make: ProcessMake::new(Name::new("p").unwrap(), vec!["/bin/true".into()]),
            uid: None,
            gid: None,
            started_us: 1,
            pid: 1,
            exit: None,
            exit_known: false,
            removing: false,
        };
        let key = Key::new(Kind::REEL, row.serial);
        for removing in [false, true] {
            row.removing = removing;
            let reel = Reel::create(1000, None).unwrap();
            let file = reel.file().try_clone().unwrap();
            let mut fetched = Fetched(Kept::from([(key, file)]));
            let (live, _) = recover_process(&row, &mut fetched, 1).unwrap();
            assert_eq!(live.reel.is_none(), removing);
            assert_eq!(fetched.0.contains_key(&key), removing);
        }
    }
}
