//! How processes end and are forgotten.
//!
//! The pidfd reports an exit, whoever still holds the pipes. A child of this process is looked at
//! first and waited for later, so that its number stays taken until its exit was acknowledged. The
//! keeper reports the exits of processes that it has adopted.
//! Invariant: what a process wrote before it ended is taken before its exit is announced to readers
//! of its output.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use papa_protocol::json::push::EventType;
use papa_protocol::process::{Exit, Ledger, Rusage};
use papa_protocol::record::Stream;
use papa_test_hooks::failpoint;
use tracing::{info, warn};

use super::capture::{look_for_stall, note_drained, on_output, resume};
use crate::keeper::wire::{Key, Kind, ToKeeper};
use crate::readers::Readers;
use crate::sys::cgroup::Cgroups;
use crate::sys::clock::now_us;
use crate::sys::pidfd::{Outcome, Target, WaitStatus, exit_info, wait_id};
use crate::sys::process::parent_of;
use crate::world::World;
use crate::world::deadline::Deadline;
use crate::world::live::Source;
use crate::world::table::Entry;

/// Time between two checks whether a control group is empty.
const LOOK_AT_CGROUPS: Duration = Duration::from_secs(1);
/// Most ended processes whose numbers are kept from being reused; the oldest is waited for when
/// there are more.
const MAX_ZOMBIES: usize = 1024;
/// How long the keeper gets to report how an adopted process ended, before the system is asked,
/// which knows less.
const KEEPER_TELLS: Duration = Duration::from_millis(500);
/// Time between two attempts to find out how a process ended.
const LOOKUP_INTERVAL: Duration = Duration::from_millis(50);
/// After this time the exit is recorded as unknown.
const LOOKUP_LIMIT: Duration = Duration::from_secs(5);

/// Handles a pidfd that reports the end of its process.
pub(crate) fn on_exit_seen(world: &mut World, readers: &mut Readers, serial: u64, now_us: u64) {
    let Some(live) = world.live.get_mut(&serial) else {
        return;
    };
    let Some(pidfd) = &live.pidfd else {
        return;
    };
    if live.own_child {
        match wait_id(Target::Pidfd(pidfd.as_fd()), true) {
            Ok(Some((_, status))) => {
                failpoint::reach("exit.seen");
                live.zombie = true;
                world.zombies.push_back(serial);
                record_exit(world, readers, serial, Some(status), now_us);
                bound_zombies(world);
                return;
            }
            Ok(None) => return,
            Err(_) => live.own_child = false,
        }
    }
    let now = Instant::now();
    live.lookup_since = Some(now);
    let wait = if live.adopted {
        KEEPER_TELLS
    } else {
        Duration::ZERO
    };
    world.poller.remove(pidfd);
    world.agenda.at(now + wait, Deadline::ExitLookup(serial));
}

/// Handles the keeper's report of how a process ended, and confirms it.
pub(crate) fn on_exit_told(
    world: &mut World,
    readers: &mut Readers,
    serial: u64,
    status: WaitStatus,
    now_us: u64,
) {
    failpoint::reach("exit.told");
    if world
        .table
        .process(serial)
        .is_some_and(|row| row.exit.is_none())
    {
        record_exit(world, readers, serial, Some(status), now_us);
    }
    failpoint::reach("exit.confirm");
    world.tell_keeper(&ToKeeper::Confirm(serial));
}

/// Asks the system how a process ended that nobody has reported.
pub(crate) fn on_exit_lookup(world: &mut World, readers: &mut Readers, serial: u64, now: Instant) {
    if world
        .table
        .process(serial)
        .is_none_or(|row| row.exit.is_some())
    {
        return;
    }
    let Some(live) = world.live.get(&serial) else {
        return;
    };
    let found = live
        .pidfd
        .as_ref()
        .and_then(|pidfd| exit_info(pidfd).ok().flatten());
    let since = live.lookup_since.unwrap_or(now);
    let hopeless = !world.has_exit_info && !live.adopted;
    if found.is_some() || hopeless || now.duration_since(since) > LOOKUP_LIMIT {
        if found.is_none() {
            warn!(serial, "exit status of the process is unknown");
        }
        record_exit(world, readers, serial, found, now_us());
    } else {
        world
            .agenda
            .at(now + LOOKUP_INTERVAL, Deadline::ExitLookup(serial));
    }
}

fn record_exit(
    world: &mut World,
    readers: &mut Readers,
    serial: u64,
    status: Option<WaitStatus>,
    now_us: u64,
) {
    let exit = exit_of(status, now_us);
    if let Some(row) = world.table.process(serial) {
        info!(serial, pid = row.pid, name = %row.make.name, code = exit.classic_code(), "ended");
    }
    world.commit_fact(Entry::Exit { serial, exit });
    failpoint::reach("exit.recorded");
    readers.announce(world, serial, EventType::Exited);
    if let Some(live) = world.live.get(&serial)
        && let Some(pidfd) = &live.pidfd
    {
        world.poller.remove(pidfd);
    }
    // What it wrote before it ended is in the pipes. It is taken first, so that no reader sees the
    // end before the last output.
    for stream in [Stream::Out, Stream::Err] {
        on_output(world, readers, serial, stream, now_us);
    }
    note_drained(world, readers, serial);
    readers.mark(world, serial);
    forget_if_done(world, readers, serial);
}

fn bound_zombies(world: &mut World) {
    while world.zombies.len() > MAX_ZOMBIES {
        if let Some(serial) = world.zombies.pop_front() {
            wait_for(world, serial);
        }
    }
}

/// Waits for an ended child, which frees its number.
pub(crate) fn wait_for(world: &mut World, serial: u64) {
    if let Some(live) = world.live.get_mut(&serial)
        && live.zombie
    {
        live.zombie = false;
        if let Some(pidfd) = &live.pidfd {
            let _ = wait_id(Target::Pidfd(pidfd.as_fd()), false);
        }
    }
}

/// Forgets a process that has ended, if its output and its exit are acknowledged or given up.
pub(crate) fn forget_if_done(world: &mut World, readers: &mut Readers, serial: u64) {
    let (Some(row), Some(live)) = (world.table.process(serial), world.live.get(&serial)) else {
        return;
    };
    if row.exit.is_none() || !live.streams_ended() {
        return;
    }
    if row.removing || (row.exit_known && live.start() == live.committed()) {
        forget(world, readers, serial);
    }
}

/// Takes a process off the list and closes its descriptors.
pub(crate) fn forget(world: &mut World, readers: &mut Readers, serial: u64) {
    readers.tell_last(world, serial);
    readers.announce(world, serial, EventType::Removed);
    look_for_stall(world, serial, None);
    let Some(mut live) = world.live.remove(&serial) else {
        return;
    };
    if live.zombie {
        world.zombies.retain(|other| *other != serial);
        if let Some(pidfd) = &live.pidfd {
            let _ = wait_id(Target::Pidfd(pidfd.as_fd()), false);
        }
    }
    for fd in [&live.pidfd, &live.out, &live.err].into_iter().flatten() {
        world.unwatch(fd);
    }
    for reader in std::mem::take(&mut live.readers) {
        readers.drop_cursor(reader, serial);
    }
    live.close_reel();
    let ledger = live.closed;
    drop(live);
    world.commit_fact(Entry::Forget { serial, ledger });
    remove_cgroup(world, serial);
    failpoint::reach("exit.forgotten");
    unkeep_process(world, serial);
}

/// Lets the keeper's copies of all that belongs to a process go.
fn unkeep_process(world: &mut World, serial: u64) {
    let kinds = [Kind::PIDFD, Kind::OUT, Kind::ERR, Kind::REEL];
    world.unkeep(&kinds.map(|kind| Key::new(kind, serial)));
}

/// Removes what a start that failed has left.
pub(crate) fn undo_start(world: &mut World, serial: u64) {
    world.commit_fact(Entry::Forget {
        serial,
        ledger: Ledger::default(),
    });
    unkeep_process(world, serial);
    remove_cgroup(world, serial);
}

/// Removes the control group of a process that is forgotten, now or when everybody has left it.
pub(crate) fn remove_cgroup(world: &mut World, serial: u64) {
    if world
        .cgroups
        .as_mut()
        .is_some_and(|groups| groups.remove(serial))
    {
        world
            .agenda
            .at(Instant::now() + LOOK_AT_CGROUPS, Deadline::Cgroups);
    }
}

pub(crate) fn on_cgroups(world: &mut World, now: Instant) {
    if world.cgroups.as_mut().is_some_and(Cgroups::try_again) {
        world.agenda.at(now + LOOK_AT_CGROUPS, Deadline::Cgroups);
    }
}

/// Gives up a process's output. The process runs on; its pipes are read and what comes is thrown
/// away, so that no writer dies of a broken pipe.
pub(crate) fn give_up(world: &mut World, readers: &mut Readers, serial: u64) {
    if world.table.process(serial).is_none_or(|row| row.removing) {
        return;
    }
    world.commit_fact(Entry::Removing { serial });
    if let Some(live) = world.live.get_mut(&serial) {
        live.close_reel();
        for reader in std::mem::take(&mut live.readers) {
            readers.drop_cursor(reader, serial);
        }
    }
    world.unkeep(&[Key::new(Kind::REEL, serial)]);
    resume(world, readers, serial);
    if world
        .table
        .process(serial)
        .is_some_and(|row| row.exit.is_some())
    {
        wait_for(world, serial);
        world.zombies.retain(|other| *other != serial);
        for stream in [Stream::Out, Stream::Err] {
            on_output(world, readers, serial, stream, now_us());
        }
    }
    forget_if_done(world, readers, serial);
}

/// Starts watching everything recovery found.
pub(crate) fn watch_recovered(world: &mut World, readers: &mut Readers) {
    let now = now_us();
    let serials: Vec<u64> = world.live.keys().copied().collect();
    let own = std::process::id().cast_signed();
    for serial in serials {
        let (Some(row), Some(live)) = (world.table.process(serial), world.live.get_mut(&serial))
        else {
            continue;
        };
        let ended = row.exit.is_some();
        let parent = parent_of(row.pid.cast_signed());
        live.own_child = parent == Some(own);
        live.adopted = !live.own_child;
        if ended && live.own_child {
            live.zombie = true;
            world.zombies.push_back(serial);
        }
        if let (false, Some(pidfd)) = (ended, &live.pidfd) {
            let _ = world.poller.add(pidfd, Source::Pidfd(serial));
        }
        // Its consumer, if it had one, may be on its way back.
        live.last_ack = Some(Instant::now());
        live.paused = true;
        resume(world, readers, serial);
        if ended {
            for stream in [Stream::Out, Stream::Err] {
                on_output(world, readers, serial, stream, now);
            }
            note_drained(world, readers, serial);
            forget_if_done(world, readers, serial);
        } else if world
            .live
            .get(&serial)
            .is_some_and(|live| live.pidfd.is_none())
        {
            record_exit(world, readers, serial, None, now);
        }
    }
}

fn exit_of(status: Option<WaitStatus>, stamp_us: u64) -> Exit {
    let (code, signal, core) = match status.map(|status| status.outcome) {
        Some(Outcome::Code(code)) => (Some(code), None, false),
        Some(Outcome::Signal { number, core }) => (None, Some(number), core),
        None => (None, None, false),
    };
    Exit {
        code,
        signal,
        core,
        stamp_us,
        rusage: status.and_then(|status| status.usage).map(|usage| Rusage {
            user_us: usage.user_us,
            system_us: usage.system_us,
            max_rss_kib: usage.max_rss_kib,
        }),
    }
}
