//! How output gets from pipes into reels, and out of them when it is acknowledged.
//!
//! The pipe reports the end of a stream, whoever still runs. A full reel makes its writer wait, or
//! loses its oldest output, as the process's overflow policy says.
//! Invariant: bytes leave a pipe only into the reel, unless the process's output is unwanted.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use papa_protocol::process::Overflow;
use papa_protocol::record::Stream;
use papa_test_hooks::failpoint;
use tracing::{error, info, warn};

use super::exits::forget_if_done;
use crate::keeper::wire::{Key, Kind};
use crate::readers::Readers;
use crate::sys::clock::now_us;
use crate::sys::memfd::splice_away;
use crate::sys::process::{file_size_limit, is_empty, set_pipe_size};
use crate::world::World;
use crate::world::deadline::Deadline;
use crate::world::live::{Source, Waits};
use crate::world::reel::{Capture, Reel};

/// How long to wait before output is stored again that the system had no memory for.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// A pipe found this full is made larger.
const LOUD_BYTES: usize = 64 * 1024;
/// Size of a loud stream's pipe.
const LARGE_PIPE_BYTES: i32 = 256 * 1024;
/// Bytes taken after an exit that are more than a pipe can have held.
const DRAIN_BYTES: usize = 1 << 20;
/// Bytes of unwanted output thrown away per report.
const DISCARD_BYTES: usize = 1 << 20;

/// Takes what a stream has to read, or notes its end.
pub(crate) fn on_output(
    world: &mut World,
    readers: &mut Readers,
    serial: u64,
    stream: Stream,
    now_us: u64,
) {
    let Some(row) = world.table.process(serial) else {
        return;
    };
    let (removing, ended, overflow) = (row.removing, row.exit.is_some(), row.make.overflow);
    let Some(live) = world.live.get_mut(&serial) else {
        return;
    };
    if live.paused || live.pipe(stream).is_none() {
        return;
    }
    if removing || live.reel.is_none() {
        discard(world, readers, serial, stream);
        return;
    }
    let mut taken = 0;
    let mut moved = false;
    loop {
        let Some(live) = world.live.get_mut(&serial) else {
            return;
        };
        let waits = live.waits_until(overflow, Instant::now()) != Waits::No;
        // A kernel that has just recovered looks at full reels too.
        if waits && live.reel.as_ref().is_some_and(Reel::is_full) {
            bound_reel(world, serial, overflow);
            return;
        }
        match live.capture(stream, waits, now_us) {
            Ok(Capture::Bytes(bytes)) => {
                taken += bytes;
                note_taken(world, readers, serial, stream, bytes);
                bound_reel(world, serial, overflow);
                let paused = world.live.get(&serial).is_none_or(|live| live.paused);
                if !ended || paused {
                    return;
                }
                // After the exit nothing reports that the pipe is empty, so it is read until it
                // says so. Others may go on writing; what has come by then holds everything the
                // process itself can have left.
                if taken >= DRAIN_BYTES {
                    if let Some(live) = world.live.get_mut(&serial) {
                        live.drained = true;
                    }
                    return;
                }
            }
            Ok(Capture::Empty) => {
                if ended {
                    note_drained(world, readers, serial);
                }
                return;
            }
            Ok(Capture::End) => {
                end_stream(world, readers, serial, stream);
                return;
            }
            Err(Errno::EFBIG) if !moved => {
                moved = true;
                if !move_to_ring(world, serial, waits) {
                    return cannot_store(world, serial, Errno::EFBIG);
                }
            }
            Err(errno) => return cannot_store(world, serial, errno),
        }
    }
}

/// Notes that `bytes` of output have been stored, and queues the process with its readers.
fn note_taken(world: &mut World, readers: &mut Readers, serial: u64, stream: Stream, bytes: usize) {
    if let Some(live) = world.live.get_mut(&serial) {
        live.trouble = None;
        if bytes >= LOUD_BYTES && !live.large_pipe {
            live.large_pipe = true;
            if let Some(pipe) = live.pipe(stream) {
                set_pipe_size(pipe, LARGE_PIPE_BYTES);
            }
        }
    }
    readers.mark(world, serial);
}

/// Leaves output in the pipe that there is no room for, and tries again later.
fn cannot_store(world: &mut World, serial: u64, errno: Errno) {
    // Once, not at each try.
    if let Some(live) = world.live.get_mut(&serial)
        && live.trouble.replace(errno) != Some(errno)
    {
        warn!(serial, %errno, "cannot store output; it stays in the pipe and its writer waits");
    }
    pause(world, serial);
    world
        .agenda
        .at(Instant::now() + RETRY_INTERVAL, Deadline::Retry(serial));
}

/// Moves the output of a reel whose offsets have reached the largest a file may have
/// (`RLIMIT_FSIZE`) into a ring, which needs no larger ones. False if it cannot be moved, or not
/// yet.
fn move_to_ring(world: &mut World, serial: u64, waits: bool) -> bool {
    let Some(largest) = file_size_limit() else {
        return false;
    };
    // While there is no keeper, a copy of this process may go on in its place, with the reels that
    // existed when the copy was made.
    if world.older_is_expected() || world.has_lost_keeper() {
        return false;
    }
    let Some(live) = world.live.get_mut(&serial) else {
        return false;
    };
    let Some(reel) = &mut live.reel else {
        return false;
    };
    if !waits {
        let dropped = reel.drop_for_ring(largest);
        if let Some(errno) = live.note_release(dropped) {
            warn!(serial, %errno, "cannot drop the oldest output");
        }
    }
    let Some(Ok(ring)) = live.reel.as_ref().map(|reel| reel.to_ring(largest)) else {
        return false;
    };
    // Neither reel takes anything before the keeper has the new one.
    failpoint::reach("reel.copied");
    let key = Key::new(Kind::REEL, serial);
    if let Err(errno) = world.keep(&[(key, ring.as_fd())]) {
        warn!(serial, %errno, "cannot move a reel that has reached the file size limit");
        return false;
    }
    if world.has_lost_keeper() {
        return false;
    }
    failpoint::reach("reel.moved");
    info!(
        serial,
        largest,
        bytes = ring.limit(),
        "the limit on file size (ulimit -f) is reached; the output goes to a reel that stays below it"
    );
    if let Some(live) = world.live.get_mut(&serial) {
        live.reel = Some(ring);
    }
    true
}

/// Keeps a reel within its limits by the process's policy.
fn bound_reel(world: &mut World, serial: u64, overflow: Overflow) {
    let now = Instant::now();
    let Some(live) = world.live.get_mut(&serial) else {
        return;
    };
    let waits = live.waits_until(overflow, now);
    let Some(reel) = &mut live.reel else {
        return;
    };
    match waits {
        Waits::No if reel.is_over() => {
            let dropped = reel.drop_oldest();
            if let Some(errno) = live.note_release(dropped) {
                warn!(serial, %errno, "cannot drop the oldest output");
            }
        }
        Waits::ForEver if reel.is_full() => pause(world, serial),
        Waits::Until(deadline) if reel.is_full() => {
            live.full_since = Some(now);
            pause(world, serial);
            look_for_stall(world, serial, Some(deadline));
        }
        Waits::No | Waits::ForEver | Waits::Until(_) => {}
    }
}

/// Sets when the consumer of a full reel is checked, or with none that it need not be any more.
/// Each process has at most one such deadline.
pub(crate) fn look_for_stall(world: &mut World, serial: u64, at: Option<Instant>) {
    let Some(live) = world.live.get_mut(&serial) else {
        return;
    };
    if let Some(before) = std::mem::replace(&mut live.stall_at, at) {
        world.agenda.cancel(before, Deadline::Stall(serial));
    }
    if let Some(at) = at {
        world.agenda.at(at, Deadline::Stall(serial));
    }
}

/// Ends the wait of a full reel's writer, unless the consumer has acknowledged meanwhile.
pub(crate) fn on_stall_deadline(
    world: &mut World,
    readers: &mut Readers,
    serial: u64,
    now: Instant,
) {
    let overflow = world.table.process(serial).map(|row| row.make.overflow);
    let (Some(overflow), Some(live)) = (overflow, world.live.get_mut(&serial)) else {
        return;
    };
    if live.full_since.is_none() {
        return;
    }
    if let Waits::Until(deadline) = live.waits_until(overflow, now) {
        look_for_stall(world, serial, Some(deadline));
        return;
    }
    live.stalled = live.consumer.is_some();
    warn!(
        serial,
        consumer = live.stalled,
        "nobody acknowledges; the oldest output goes"
    );
    if let Some(reel) = &mut live.reel {
        let _ = reel.drop_oldest();
    }
    resume(world, readers, serial);
}

/// Throws away what an unwanted stream has to read.
fn discard(world: &mut World, readers: &mut Readers, serial: u64, stream: Stream) {
    let Some(live) = world.live.get(&serial) else {
        return;
    };
    let Some(pipe) = live.pipe(stream) else {
        return;
    };
    match splice_away(pipe, &world.fixed.null, DISCARD_BYTES) {
        Ok(0) => end_stream(world, readers, serial, stream),
        Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
        Err(errno) => {
            warn!(serial, %errno, "cannot read output nobody wants");
            end_stream(world, readers, serial, stream);
        }
    }
}

fn end_stream(world: &mut World, readers: &mut Readers, serial: u64, stream: Stream) {
    let Some(live) = world.live.get_mut(&serial) else {
        return;
    };
    let position = live.committed();
    let (slot, end, kind) = match stream {
        Stream::Out => (&mut live.out, &mut live.ends.out, Kind::OUT),
        Stream::Err => (&mut live.err, &mut live.ends.err, Kind::ERR),
    };
    *end = Some(position);
    if let Some(pipe) = slot.take() {
        world.poller.remove(&pipe);
    }
    failpoint::reach("capture.ended");
    world.unkeep(&[Key::new(kind, serial)]);
    note_drained(world, readers, serial);
    readers.mark(world, serial);
    forget_if_done(world, readers, serial);
}

/// Takes what the pipes of a process hold that ended while they were not watched: an empty pipe
/// that others keep open reports nothing.
pub(crate) fn drain_if_ended(world: &mut World, readers: &mut Readers, serial: u64) {
    if world
        .table
        .process(serial)
        .is_some_and(|row| row.exit.is_some())
    {
        for stream in Stream::ALL {
            on_output(world, readers, serial, stream, now_us());
        }
        note_drained(world, readers, serial);
    }
}

/// Notes, if it is so, that everything the process itself wrote has been taken.
pub(crate) fn note_drained(world: &mut World, readers: &mut Readers, serial: u64) {
    let ended = world
        .table
        .process(serial)
        .is_some_and(|row| row.exit.is_some());
    let Some(live) = world.live.get_mut(&serial) else {
        return;
    };
    if !ended || live.drained || live.paused {
        return;
    }
    // Only asking each open pipe shows whether it is empty.
    let empty = [Stream::Out, Stream::Err]
        .into_iter()
        .all(|stream| live.pipe(stream).is_none_or(|pipe| is_empty(pipe)));
    if empty {
        live.drained = true;
        readers.mark(world, serial);
    }
}

/// Lets output before `position` go, which a consumer has acknowledged.
pub(crate) fn acknowledge(world: &mut World, readers: &mut Readers, serial: u64, position: u64) {
    let Some(live) = world.live.get_mut(&serial) else {
        return;
    };
    live.last_ack = Some(Instant::now());
    live.stalled = false;
    let Some(reel) = &mut live.reel else {
        return;
    };
    let acknowledged = reel.acknowledge(position);
    let is_full = reel.is_full();
    if let Some(errno) = live.note_release(acknowledged) {
        warn!(serial, %errno, "cannot record an acknowledgement");
    }
    if live.paused && !is_full {
        resume(world, readers, serial);
    }
    forget_if_done(world, readers, serial);
}

/// Watches the streams of a process again.
pub(crate) fn resume(world: &mut World, readers: &mut Readers, serial: u64) {
    let Some(live) = world.live.get_mut(&serial) else {
        return;
    };
    if !live.paused {
        return;
    }
    live.paused = false;
    live.full_since = None;
    look_for_stall(world, serial, None);
    let Some(live) = world.live.get(&serial) else {
        return;
    };
    for stream in [Stream::Out, Stream::Err] {
        if let Some(pipe) = live.pipe(stream)
            && let Err(errno) = world.poller.add(pipe, Source::Pipe(serial, stream))
        {
            error!(serial, %errno, "cannot watch an output stream");
        }
    }
    drain_if_ended(world, readers, serial);
}

/// Stops watching the streams of a process, so that its writers wait once the pipes are full.
pub(crate) fn pause(world: &mut World, serial: u64) {
    let Some(live) = world.live.get_mut(&serial) else {
        return;
    };
    live.paused = true;
    for stream in [Stream::Out, Stream::Err] {
        if let Some(pipe) = live.pipe(stream) {
            world.poller.remove(pipe);
        }
    }
}
