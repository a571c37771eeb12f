//! Processes: made, listed, given up.
//!
//! [`make`] does everything that can fail before there is a child: it prepares the start, opens
//! pipes and reel, and records the intent in the journal. The owner then gives the keeper copies
//! and starts the child, which registers itself with the keeper before it executes. Whatever dies
//! when, a process that runs is known.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use papa_protocol::classic::{Error, process_line};
use papa_protocol::json::ErrorCode;
use papa_protocol::json::request::ProcessMake;
use papa_protocol::limits::{MAX_PROCESSES, REEL_BYTES};
use papa_protocol::name::NamePattern;
use papa_protocol::process::Process;
use papa_protocol::record::Serial;
use papa_test_hooks::failpoint;

use super::account::{Identity, resolve_account};
use super::claim::may_change;
use super::held::duplicate_failed;
use super::pipes::{Pipes, open_pipes};
use super::process_plan::{self, Prepared};
use super::room::Room;
use super::{VerbError, fail, limit, not_recorded, refused};
use crate::keeper::wire::{Key, Kind};
use crate::processes::exits::give_up;
use crate::readers::Readers;
use crate::sys::clock::now_us;
use crate::sys::process::file_size_limit;
use crate::world::World;
use crate::world::caller::Caller;
use crate::world::reel::{LINEAR_FILE_BYTES, MIN_FILE_BYTES, Reel};
use crate::world::table::{Entry, Matcher, ProcessRow, known};

/// Most descriptors that a start and its process take.
const DESCRIPTORS: u64 = 12;

/// What a request for a process leads to.
#[derive(Debug)]
pub(crate) enum Made {
    /// The process with this serial exists and is equal to what was asked for.
    Exists(u64),
    /// A process can be started.
    Ready(Box<Ready>),
}

/// A process whose start is recorded in the journal and can begin.
#[derive(Debug)]
pub(crate) struct Ready {
    /// Its serial.
    pub serial: u64,
    /// What the child does.
    pub prepared: Prepared,
    /// Both ends of its pipes.
    pub pipes: Pipes,
    /// Where its output is kept, if it is captured.
    pub reel: Option<Reel>,
}

impl Ready {
    /// What the keeper has to have a copy of before the child is started.
    pub(crate) fn copies(&self) -> Vec<(Key, BorrowedFd<'_>)> {
        [
            (Kind::OUT, self.pipes.out.as_ref().map(AsFd::as_fd)),
            (Kind::ERR, self.pipes.err.as_ref().map(AsFd::as_fd)),
            (Kind::REEL, self.reel.as_ref().map(Reel::as_fd)),
        ]
        .into_iter()
        .filter_map(|(kind, fd)| Some((Key::new(kind, self.serial), fd?)))
        .collect()
    }
}

/// Prepares a process, or finds the equal one that exists.
///
/// # Errors
/// Another process has that name, a parameter names nothing, a limit is reached, or the system
/// refuses pipes or reel. Nothing is left of the request then.
pub(crate) fn make(
    world: &mut World,
    caller: &Caller,
    room: Room,
    mut make: ProcessMake,
) -> Result<Made, VerbError> {
    may_change(world, caller, &make.name, make.force)?;
    make.force = false;
    let account = resolve_account(&mut make)?;
    if let Some(row) = world.table.process_named(&make.name) {
        return existing(world, row, make);
    }
    if world.live.len() >= MAX_PROCESSES {
        return Err(limit("processes", MAX_PROCESSES));
    }
    room.check(DESCRIPTORS)?;
    let prepared = process_plan::prepare(world, &make, &account)?;
    let reel_bytes = make.reel_bytes.map_or(REEL_BYTES, |size| size.0);
    let pipes = open_pipes(&make, reel_bytes, account.uid)
        .map_err(|errno| refused("open the pipes", errno))?;
    let captures = pipes.out.is_some() || pipes.err.is_some();
    let reel = captures
        .then(|| create_reel(world, reel_bytes))
        .transpose()
        .map_err(no_reel)?;
    let serial = record_intent(world, make, &account)?;
    failpoint::reach("spawn.intent");
    Ok(Made::Ready(Box::new(Ready {
        serial,
        prepared,
        pipes,
        reel,
    })))
}

/// What a request gets for a process whose name is taken by `row`.
fn existing(world: &World, row: &ProcessRow, make: ProcessMake) -> Result<Made, VerbError> {
    if !world.live.contains_key(&row.serial) {
        return Err(fail(
            ErrorCode::Exists,
            &format!(
                "{} is being started: a file system its program is on does not answer yet",
                make.name
            ),
        ));
    }
    let same = ProcessMake {
        tag: row.make.tag.clone(),
        ..make.clone()
    } == row.make;
    // A process that was removed and still runs will be forgotten, so it is not what anybody asks
    // for.
    if same && !row.removing {
        return Ok(Made::Exists(row.serial));
    }
    let line = world
        .describe(row.serial)
        .map_or(String::new(), |process| process_line(&process));
    Err(Error::ProcessExists {
        name: make.name,
        line,
    })
}

/// A reel that the program which may be back soon can read as well.
fn create_reel(world: &World, reel_bytes: u64) -> Result<Reel, Errno> {
    let largest = file_size_limit();
    if largest.is_none_or(|bytes| bytes >= LINEAR_FILE_BYTES) && world.older_is_expected() {
        Reel::create_for_older(reel_bytes)
    } else {
        Reel::create(reel_bytes, largest)
    }
}

/// Records that a process is about to be started, and gives it its serial.
fn record_intent(
    world: &mut World,
    make: ProcessMake,
    account: &Identity,
) -> Result<u64, VerbError> {
    let serial = world.table.next_serial.max(1);
    let row = ProcessRow {
        serial,
        make,
        uid: account.uid,
        gid: account.gid,
        started_us: now_us(),
        pid: 0,
        exit: None,
        exit_known: false,
        removing: false,
    };
    world
        .commit(Entry::Intent(Box::new(row)))
        .map_err(|error| not_recorded(&error))?;
    Ok(serial)
}

/// Processes that match by name or serial, sorted by name; unknown names
/// are left out, nothing at all means all.
pub(crate) fn list(world: &World, patterns: &[NamePattern], serials: &[Serial]) -> Vec<Process> {
    let mut found = if patterns.is_empty() && !serials.is_empty() {
        Vec::new()
    } else {
        known(patterns, |patterns| world.table.find_processes(patterns))
    };
    found.extend(serials.iter().map(|serial| serial.0));
    // Also processes that have ended and given up their name, but not yet all of their output.
    if serials.is_empty() {
        let matcher = Matcher::new(patterns);
        found.extend(
            world
                .table
                .processes()
                .filter(|row| row.is_listed() && !row.has_name())
                .filter(|row| matcher.matches(&row.make.name))
                .map(|row| row.serial),
        );
    }
    found.sort_unstable();
    found.dedup();
    let mut listed: Vec<Process> = found
        .into_iter()
        .filter_map(|serial| world.describe(serial))
        .collect();
    listed.sort_by(|one, other| one.name.cmp(&other.name));
    listed
}

/// Gives up the output of processes; they run on.
///
/// # Errors
/// A plain name or serial names nothing; then nothing is removed.
pub(crate) fn remove(
    world: &mut World,
    readers: &mut Readers,
    caller: &Caller,
    patterns: &[NamePattern],
    serials: &[Serial],
    force: bool,
) -> Result<u64, VerbError> {
    let mut found = if patterns.is_empty() && !serials.is_empty() {
        Vec::new()
    } else {
        world
            .table
            .find_processes(patterns)
            .map_err(|pattern| Error::NotFound(pattern.clone()))?
    };
    for Serial(serial) in serials {
        if world.table.process(*serial).is_none() {
            return Err(no_process(*serial));
        }
        found.push(*serial);
    }
    for serial in &found {
        if let Some(row) = world.table.process(*serial) {
            may_change(world, caller, &row.make.name, force)?;
        }
    }
    for serial in &found {
        give_up(world, readers, *serial);
    }
    Ok(found.len() as u64)
}

/// A copy of a process's pidfd, which lets its holder signal the process.
///
/// # Errors
/// `not_found`, or the namespace is claimed by someone else.
pub(crate) fn pidfd(
    world: &World,
    caller: &Caller,
    Serial(serial): Serial,
) -> Result<OwnedFd, VerbError> {
    let row = world
        .table
        .process(serial)
        .ok_or_else(|| no_process(serial))?;
    may_change(world, caller, &row.make.name, false)?;
    world
        .live
        .get(&serial)
        .and_then(|live| live.pidfd.as_ref())
        .ok_or_else(|| no_process(serial))?
        .try_clone()
        .map_err(|error| duplicate_failed(&error))
}

pub(super) fn no_process(serial: u64) -> VerbError {
    fail(
        ErrorCode::NotFound,
        &format!("there is no process with serial {serial}"),
    )
}

fn no_reel(errno: Errno) -> VerbError {
    if errno != Errno::EFBIG {
        return refused("make the reel", errno);
    }
    fail(
        ErrorCode::Limit,
        &format!(
            "make the reel: files may have {} bytes at most (ulimit -f), and output takes {MIN_FILE_BYTES}; start papa \
             with ulimit -f unlimited",
            file_size_limit().unwrap_or_default()
        ),
    )
}
