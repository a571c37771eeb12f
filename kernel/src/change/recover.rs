//! Descriptors and journal to a running kernel: the one way it starts.
//!
//! A first start recovers nothing; after a crash, a kill or an exec this
//! takes the same path. What the keeper has and the journal does not know is
//! closed: nobody was ever told of it. A process meant but never registered
//! never ran.
//!
//! Invariant: nothing is written, taken or given up here. What follows from
//! what was found is done when the kernel has confirmed that it serves
//! ([`Findings`]), so that a program that is only tried leaves no trace.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use papa_protocol::limits::REEL_BYTES;
use papa_protocol::process::{Ledger, Stderr, Stdout};
use papa_test_hooks::failpoint;
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
}

/// Puts together what was fetched from the keeper, which told the `verdict`.
///
/// # Errors
/// The journal, the system or what was fetched is not as it must be; the
/// keeper then tries again.
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
    let config_file = fetched
        .take(Kind::CONFIG, 0)
        .ok_or(RecoverError::Missing("settings"))?;
    let config =
        Config::read(&config_file).map_err(|errno| RecoverError::System("settings", errno))?;
    crate::logging::start(&config);
    let binary = fetched
        .take(Kind::BINARY, 0)
        .ok_or(RecoverError::Missing("program"))?;
    let file = fetched
        .take(Kind::JOURNAL, 0)
        .ok_or(RecoverError::Missing("journal"))?;

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
    let skipped_records = replay.skipped;
    let journal = replay.finish();
    let mut findings = Findings::default();
    let mut record = |table: &mut Table, entry: Entry| {
        findings.entries.push(entry.clone());
        table.apply(entry);
    };
    let now = now_us();
    let first_started_us = match table.first_started_us {
        0 => now,
        first => first,
    };
    let boot = Entry::Boot {
        incarnation: table.incarnation + 1,
        first_started_us,
    };
    record(&mut table, boot);
    failpoint::reach("recover.replayed");

    let mut live = HashMap::new();
    let rows: Vec<ProcessRow> = table.processes().cloned().collect();
    for row in rows {
        match recover_process(&row, &mut fetched, now) {
            Some((found, pid)) => {
                live.insert(row.serial, found);
                if row.pid == 0 {
                    let serial = row.serial;
                    record(&mut table, Entry::Started { serial, pid });
                }
            }
            None => record(
                &mut table,
                Entry::Forget {
                    serial: row.serial,
                    ledger: Ledger::default(),
                },
            ),
        }
    }
    let mut socket_fds = HashMap::new();
    let rows: Vec<(u64, bool)> = table
        .sockets()
        .map(|row| (row.id, row.number.is_some()))
        .collect();
    for (id, held) in rows {
        if let Some(fd) = fetched.take(Kind::SOCKET, id) {
            socket_fds.insert(id, fd);
        } else if held {
            tracing::error!(id, "the descriptor of a socket is missing");
            record(&mut table, Entry::Unsocket { id });
        }
    }
    let mut held_fds = HashMap::new();
    let rows: Vec<_> = table
        .held
        .iter()
        .map(|(name, row)| (name.clone(), row.id))
        .collect();
    for (name, id) in rows {
        match fetched.take(Kind::HELD, id) {
            Some(fd) => {
                held_fds.insert(id, fd);
            }
            None => record(&mut table, Entry::Unhold { name }),
        }
    }
    let mut controls = Vec::new();
    let mut strangers = Vec::new();
    let mut resumption = Resumption {
        verdict,
        ..Resumption::default()
    };
    for (key, fd) in fetched.0 {
        match key.kind {
            Kind::CONTROL => controls.push((key.id, fd)),
            // The one before's; our own takes its place at the keeper.
            Kind::POLLER => drop(fd),
            Kind::HANDOVER | Kind::SESSION | Kind::BINARY => resumption.kept.push((key, fd)),
            _ => strangers.push((key, fd)),
        }
    }
    controls.sort_by_key(|(id, _)| *id);
    // What may belong to records that could not be read stays, here and with
    // the keeper: nobody dies of a broken pipe, and a version that can read
    // the record finds it. So does what only a later version knows.
    let all_read = skipped_records == 0 && unknown.is_empty();
    let (gone, strangers): (Vec<_>, Vec<_>) = strangers
        .into_iter()
        .partition(|(key, _): &(Key, OwnedFd)| all_read && key.kind.is_known());
    findings.gone = gone.into_iter().map(|(key, _)| key).collect();
    if !strangers.is_empty() {
        tracing::error!(
            skipped_records,
            unknown = unknown.len(),
            strangers = strangers.len(),
            "descriptors that may belong to records left out are held on"
        );
    }
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(|error| {
            let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
            RecoverError::System("open /dev/null", errno)
        })?;
    tracing::info!(
        incarnation = table.incarnation,
        processes = live.len(),
        sockets = socket_fds.len(),
        strangers = findings.gone.len() + strangers.len(),
        "recovered"
    );
    let fixed = Fixed {
        config: config_file,
        binary,
        controls,
        null: null.into(),
    };
    let mut world = World::new(config, fixed, link, journal, table)
        .map_err(|errno| RecoverError::System("make an event poller", errno))?;
    world.skipped_records = skipped_records;
    world.unknown_records = unknown;
    world.live = live;
    world.socket_fds = socket_fds;
    world.held_fds = held_fds;
    world.strangers = strangers;
    Ok(Parts {
        world,
        findings,
        resumption,
    })
}

/// What the keeper has of one process, with its number. `None` for one that
/// never ran.
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

/// The number behind a handle. Source: `pidfd_open(2)`, fdinfo.
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
