//! How processes end and how their output gets into reels.
//!
//! An exit is seen through the pidfd, whoever still holds the pipes; the end
//! of a stream is seen on the pipe, whoever still runs. A child of ours is
//! looked at first and waited for later: its number stays taken until its
//! exit was acknowledged. One the keeper adopted is told of by the keeper.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use papa_protocol::json::push::EventType;
use papa_protocol::process::{Exit, Overflow, Rusage};
use papa_protocol::record::Stream;
use papa_test_hooks::failpoint;
use tracing::{info, warn};

use super::{Deadline, Owner};
use crate::keeper::wire::{Key, Kind, ToKeeper};
use crate::sys::cgroup::Cgroups;
use crate::sys::clock::now_us;
use crate::sys::memfd::splice_away;
use crate::sys::pidfd::{Outcome, Target, WaitStatus, exit_info, wait_id};
use crate::sys::process::{file_size_limit, parent_of, set_pipe_size};
use crate::world::live::{Source, Waits};
use crate::world::reel::{Capture, Reel};
use crate::world::table::Entry;

/// From one look whether everybody has left a control group to the next.
const LOOK_AT_CGROUPS: Duration = Duration::from_secs(1);
/// Ended processes whose numbers are kept from being reused; the oldest is
/// let go when there are more.
const MAX_ZOMBIES: usize = 1024;
/// How long the keeper gets to tell how an adopted process ended, before the
/// system is asked, which knows less.
const KEEPER_TELLS: Duration = Duration::from_millis(500);
/// Between two attempts to find out how a process ended.
const LOOKUP_INTERVAL: Duration = Duration::from_millis(50);
/// After this the exit is recorded as unknown.
const LOOKUP_LIMIT: Duration = Duration::from_secs(5);
/// How long to wait when the system had no memory for output.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// A pipe found this full is made larger.
const LOUD_BYTES: usize = 64 * 1024;
/// Size of a loud stream's pipe.
const LARGE_PIPE_BYTES: i32 = 256 * 1024;
/// Bytes taken after an exit that are more than a pipe can have held.
const DRAIN_BYTES: usize = 1 << 20;
/// Bytes of unwanted output thrown away per report.
const DISCARD_BYTES: usize = 1 << 20;

impl Owner {
    // ---- exits ---------------------------------------------------------

    /// The handle says that the process has ended.
    pub(super) fn on_exit_seen(&mut self, serial: u64, now_us: u64) {
        let Some(live) = self.world.live.get_mut(&serial) else {
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
                    self.world.zombies.push_back(serial);
                    self.record_exit(serial, Some(status), now_us);
                    self.bound_zombies();
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
        self.world.poller.remove(pidfd);
        self.deadlines
            .insert((now + wait, Deadline::ExitLookup(serial)));
    }

    /// The keeper says how a process ended.
    pub(super) fn on_exit_told(&mut self, serial: u64, status: WaitStatus, now_us: u64) {
        failpoint::reach("exit.told");
        if self
            .world
            .table
            .process(serial)
            .is_some_and(|row| row.exit.is_none())
        {
            self.record_exit(serial, Some(status), now_us);
        }
        failpoint::reach("exit.confirm");
        let told = self.world.link.tell(&ToKeeper::Confirm(serial));
        self.check_keeper(told);
    }

    /// Nobody has said how a process ended; the system may know.
    pub(super) fn on_exit_lookup(&mut self, serial: u64, now: Instant) {
        if self
            .world
            .table
            .process(serial)
            .is_none_or(|row| row.exit.is_some())
        {
            return;
        }
        let Some(live) = self.world.live.get(&serial) else {
            return;
        };
        let found = live
            .pidfd
            .as_ref()
            .and_then(|pidfd| exit_info(pidfd).ok().flatten());
        let since = live.lookup_since.unwrap_or(now);
        let hopeless = !self.world.has_exit_info && !live.adopted;
        if found.is_some() || hopeless || now.duration_since(since) > LOOKUP_LIMIT {
            if found.is_none() {
                warn!(serial, "exit status of the process is unknown");
            }
            self.record_exit(serial, found, now_us());
        } else {
            self.deadlines
                .insert((now + LOOKUP_INTERVAL, Deadline::ExitLookup(serial)));
        }
    }

    fn record_exit(&mut self, serial: u64, status: Option<WaitStatus>, now_us: u64) {
        let exit = exit_of(status, now_us);
        if let Some(row) = self.world.table.process(serial) {
            info!(serial, pid = row.pid, name = %row.make.name, code = exit.classic_code(), "ended");
        }
        self.world.commit_fact(Entry::Exit { serial, exit });
        failpoint::reach("exit.recorded");
        self.announce(serial, EventType::Exited);
        if let Some(live) = self.world.live.get(&serial)
            && let Some(pidfd) = &live.pidfd
        {
            self.world.poller.remove(pidfd);
        }
        // What it wrote before it ended is in the pipes: take it first, so
        // that no reader sees the end before the last words.
        for stream in [Stream::Out, Stream::Err] {
            self.on_output(serial, stream, now_us);
        }
        self.note_drained(serial);
        self.mark_readers(serial);
        self.forget_if_done(serial);
    }

    fn bound_zombies(&mut self) {
        while self.world.zombies.len() > MAX_ZOMBIES {
            if let Some(serial) = self.world.zombies.pop_front() {
                self.wait_for(serial);
            }
        }
    }

    /// Waits for an ended child, which frees its number.
    pub(crate) fn wait_for(&mut self, serial: u64) {
        if let Some(live) = self.world.live.get_mut(&serial)
            && live.zombie
        {
            live.zombie = false;
            if let Some(pidfd) = &live.pidfd {
                let _ = wait_id(Target::Pidfd(pidfd.as_fd()), false);
            }
        }
    }

    /// Forgets a process that has ended if nobody needs anything of it.
    pub(crate) fn forget_if_done(&mut self, serial: u64) {
        let (Some(row), Some(live)) = (
            self.world.table.process(serial),
            self.world.live.get(&serial),
        ) else {
            return;
        };
        if row.exit.is_none() || !live.streams_ended() {
            return;
        }
        if row.removing || (row.exit_known && live.start() == live.committed()) {
            self.forget(serial);
        }
    }

    /// Takes a process off the list and closes all it had.
    pub(crate) fn forget(&mut self, serial: u64) {
        self.tell_last(serial);
        self.announce(serial, EventType::Removed);
        self.look_for_stall(serial, None);
        let Some(mut live) = self.world.live.remove(&serial) else {
            return;
        };
        if live.zombie {
            self.world.zombies.retain(|other| *other != serial);
            if let Some(pidfd) = &live.pidfd {
                let _ = wait_id(Target::Pidfd(pidfd.as_fd()), false);
            }
        }
        for fd in [&live.pidfd, &live.out, &live.err].into_iter().flatten() {
            self.world.unwatch(fd);
        }
        for reader in std::mem::take(&mut live.readers) {
            self.drop_cursor(reader, serial);
        }
        live.close_reel();
        let ledger = live.closed;
        drop(live);
        self.world.commit_fact(Entry::Forget { serial, ledger });
        self.remove_cgroup(serial);
        failpoint::reach("exit.forgotten");
        self.world.unkeep(&[
            Key::new(Kind::PIDFD, serial),
            Key::new(Kind::OUT, serial),
            Key::new(Kind::ERR, serial),
            Key::new(Kind::REEL, serial),
        ]);
    }

    /// Removes the control group of a process that is forgotten, now or when everybody has left it.
    pub(crate) fn remove_cgroup(&mut self, serial: u64) {
        if self
            .world
            .cgroups
            .as_mut()
            .is_some_and(|groups| groups.remove(serial))
        {
            self.deadlines
                .insert((Instant::now() + LOOK_AT_CGROUPS, Deadline::Cgroups));
        }
    }

    pub(super) fn on_cgroups(&mut self, now: Instant) {
        if self.world.cgroups.as_mut().is_some_and(Cgroups::try_again) {
            self.deadlines
                .insert((now + LOOK_AT_CGROUPS, Deadline::Cgroups));
        }
    }

    /// Gives up a process's output; it runs on, its pipes are read and what
    /// comes is thrown away, so that nobody dies of a broken pipe.
    pub(crate) fn remove_process(&mut self, serial: u64) {
        if self
            .world
            .table
            .process(serial)
            .is_none_or(|row| row.removing)
        {
            return;
        }
        self.world.commit_fact(Entry::Removing { serial });
        if let Some(live) = self.world.live.get_mut(&serial) {
            live.close_reel();
            for reader in std::mem::take(&mut live.readers) {
                self.drop_cursor(reader, serial);
            }
        }
        self.world.unkeep(&[Key::new(Kind::REEL, serial)]);
        self.resume(serial);
        if self
            .world
            .table
            .process(serial)
            .is_some_and(|row| row.exit.is_some())
        {
            self.wait_for(serial);
            self.world.zombies.retain(|other| *other != serial);
            for stream in [Stream::Out, Stream::Err] {
                self.on_output(serial, stream, now_us());
            }
        }
        self.forget_if_done(serial);
    }

    /// Starts watching everything recovery found.
    pub(crate) fn watch_recovered(&mut self) {
        let now = now_us();
        let serials: Vec<u64> = self.world.live.keys().copied().collect();
        let own = std::process::id().cast_signed();
        for serial in serials {
            let (Some(row), Some(live)) = (
                self.world.table.process(serial),
                self.world.live.get_mut(&serial),
            ) else {
                continue;
            };
            let ended = row.exit.is_some();
            let parent = parent_of(row.pid.cast_signed());
            live.own_child = parent == Some(own);
            live.adopted = !live.own_child;
            if ended && live.own_child {
                live.zombie = true;
                self.world.zombies.push_back(serial);
            }
            if let (false, Some(pidfd)) = (ended, &live.pidfd) {
                let _ = self.world.poller.add(pidfd, Source::Pidfd(serial));
            }
            // Its consumer, if it had one, may be on its way back.
            live.last_ack = Some(Instant::now());
            live.paused = true;
            self.resume(serial);
            if ended {
                for stream in [Stream::Out, Stream::Err] {
                    self.on_output(serial, stream, now);
                }
                self.note_drained(serial);
                self.forget_if_done(serial);
            } else if self
                .world
                .live
                .get(&serial)
                .is_some_and(|live| live.pidfd.is_none())
            {
                self.record_exit(serial, None, now);
            }
        }
    }

    // ---- output --------------------------------------------------------

    /// A stream has something, or is at its end.
    pub(super) fn on_output(&mut self, serial: u64, stream: Stream, now_us: u64) {
        let Some(row) = self.world.table.process(serial) else {
            return;
        };
        let (removing, ended, overflow) = (row.removing, row.exit.is_some(), row.make.overflow);
        let Some(live) = self.world.live.get_mut(&serial) else {
            return;
        };
        if live.paused || live.pipe(stream).is_none() {
            return;
        }
        if removing || live.reel.is_none() {
            self.discard(serial, stream);
            return;
        }
        let mut taken = 0;
        let mut moved = false;
        loop {
            let Some(live) = self.world.live.get_mut(&serial) else {
                return;
            };
            let waits = live.waits_until(overflow, Instant::now()) != Waits::No;
            // A kernel that has just recovered looks at full reels too.
            if waits && live.reel.as_ref().is_some_and(Reel::is_full) {
                self.bound_reel(serial, overflow);
                return;
            }
            match live.capture(stream, waits, now_us) {
                Ok(Capture::Bytes(bytes)) => {
                    live.trouble = None;
                    if bytes >= LOUD_BYTES && !live.large_pipe {
                        live.large_pipe = true;
                        if let Some(pipe) = live.pipe(stream) {
                            set_pipe_size(pipe, LARGE_PIPE_BYTES);
                        }
                    }
                    taken += bytes;
                    self.mark_readers(serial);
                    self.bound_reel(serial, overflow);
                    let paused = self.world.live.get(&serial).is_none_or(|live| live.paused);
                    // After the exit nothing reports the pipe to be empty, so
                    // it is asked until it says so. Somebody else may go on
                    // writing; what has come by then holds all the process
                    // itself can have left.
                    if ended && !paused && taken >= DRAIN_BYTES {
                        if let Some(live) = self.world.live.get_mut(&serial) {
                            live.drained = true;
                        }
                        return;
                    }
                    if !ended || paused {
                        return;
                    }
                }
                Ok(Capture::Empty) => {
                    if ended {
                        self.note_drained(serial);
                    }
                    return;
                }
                Ok(Capture::End) => {
                    self.end_stream(serial, stream);
                    return;
                }
                Err(Errno::EFBIG) if !moved => {
                    moved = true;
                    if !self.move_to_ring(serial, waits) {
                        return self.cannot_store(serial, Errno::EFBIG);
                    }
                }
                Err(errno) => return self.cannot_store(serial, errno),
            }
        }
    }

    /// What there is no room for stays in the pipe until it is tried again.
    fn cannot_store(&mut self, serial: u64, errno: Errno) {
        // Once, not at each try.
        if let Some(live) = self.world.live.get_mut(&serial)
            && live.trouble.replace(errno) != Some(errno)
        {
            warn!(serial, %errno, "cannot store output; it stays in the pipe and its writer waits");
        }
        self.pause(serial);
        self.deadlines
            .insert((Instant::now() + RETRY_INTERVAL, Deadline::Retry(serial)));
    }

    /// The offsets in a reel have come to the largest a file may have (`RLIMIT_FSIZE`): from now on
    /// its output is kept in a file that needs no larger ones. False if it cannot be moved, or not
    /// yet.
    fn move_to_ring(&mut self, serial: u64, waits: bool) -> bool {
        let Some(largest) = file_size_limit() else {
            return false;
        };
        // Without a keeper a copy of this process may go on in its place, with the reels there were
        // when it was made.
        if self.older_is_expected() || self.world.link.is_lost() {
            return false;
        }
        let Some(live) = self.world.live.get_mut(&serial) else {
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
        // Nothing is taken into either before the keeper has the new one.
        failpoint::reach("reel.copied");
        let key = Key::new(Kind::REEL, serial);
        if let Err(errno) = self.keep(&[(key, ring.as_fd())]) {
            warn!(serial, %errno, "cannot move a reel that has reached the file size limit");
            return false;
        }
        if self.world.link.is_lost() {
            return false;
        }
        failpoint::reach("reel.moved");
        info!(
            serial,
            largest,
            bytes = ring.limit(),
            "the limit on file size (ulimit -f) is reached; the output goes to a reel that stays below it"
        );
        if let Some(live) = self.world.live.get_mut(&serial) {
            live.reel = Some(ring);
        }
        true
    }

    /// Keeps a reel within its limits by the process's policy.
    fn bound_reel(&mut self, serial: u64, overflow: Overflow) {
        let now = Instant::now();
        let Some(live) = self.world.live.get_mut(&serial) else {
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
            Waits::ForEver if reel.is_full() => self.pause(serial),
            Waits::Until(deadline) if reel.is_full() => {
                live.full_since = Some(now);
                self.pause(serial);
                self.look_for_stall(serial, Some(deadline));
            }
            Waits::No | Waits::ForEver | Waits::Until(_) => {}
        }
    }

    /// Sets when a full reel's consumer is looked after, or that it need not
    /// be any more: there is one such deadline a process.
    pub(super) fn look_for_stall(&mut self, serial: u64, at: Option<Instant>) {
        let Some(live) = self.world.live.get_mut(&serial) else {
            return;
        };
        if let Some(before) = std::mem::replace(&mut live.stall_at, at) {
            self.deadlines.remove(&(before, Deadline::Stall(serial)));
        }
        if let Some(at) = at {
            self.deadlines.insert((at, Deadline::Stall(serial)));
        }
    }

    /// A full reel's writer has waited as long as it should, unless its
    /// consumer has moved.
    pub(super) fn on_stall_deadline(&mut self, serial: u64, now: Instant) {
        let overflow = self
            .world
            .table
            .process(serial)
            .map(|row| row.make.overflow);
        let (Some(overflow), Some(live)) = (overflow, self.world.live.get_mut(&serial)) else {
            return;
        };
        if live.full_since.is_none() {
            return;
        }
        if let Waits::Until(deadline) = live.waits_until(overflow, now) {
            self.look_for_stall(serial, Some(deadline));
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
        self.resume(serial);
    }

    /// Throws away what an unwanted stream has.
    fn discard(&mut self, serial: u64, stream: Stream) {
        let Some(live) = self.world.live.get(&serial) else {
            return;
        };
        let Some(pipe) = live.pipe(stream) else {
            return;
        };
        match splice_away(pipe, &self.world.fixed.null, DISCARD_BYTES) {
            Ok(0) => self.end_stream(serial, stream),
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => {
                warn!(serial, %errno, "cannot read output nobody wants");
                self.end_stream(serial, stream);
            }
        }
    }

    fn end_stream(&mut self, serial: u64, stream: Stream) {
        let Some(live) = self.world.live.get_mut(&serial) else {
            return;
        };
        let position = live.committed();
        let (slot, end, kind) = match stream {
            Stream::Out => (&mut live.out, &mut live.ends.out, Kind::OUT),
            Stream::Err => (&mut live.err, &mut live.ends.err, Kind::ERR),
        };
        *end = Some(position);
        if let Some(pipe) = slot.take() {
            self.world.poller.remove(&pipe);
        }
        failpoint::reach("capture.ended");
        self.world.unkeep(&[Key::new(kind, serial)]);
        self.note_drained(serial);
        self.mark_readers(serial);
        self.forget_if_done(serial);
    }

    /// A process that ended while its pipes were unread: takes what they hold,
    /// since an empty pipe that others keep open reports nothing.
    pub(crate) fn drain_if_ended(&mut self, serial: u64) {
        if self
            .world
            .table
            .process(serial)
            .is_some_and(|row| row.exit.is_some())
        {
            for stream in Stream::ALL {
                self.on_output(serial, stream, now_us());
            }
            self.note_drained(serial);
        }
    }

    /// Notes that what the process itself wrote has all been taken.
    fn note_drained(&mut self, serial: u64) {
        let ended = self
            .world
            .table
            .process(serial)
            .is_some_and(|row| row.exit.is_some());
        let Some(live) = self.world.live.get_mut(&serial) else {
            return;
        };
        if !ended || live.drained || live.paused {
            return;
        }
        // Every open pipe is known to be empty only if it says so itself.
        let empty = [Stream::Out, Stream::Err].into_iter().all(|stream| {
            live.pipe(stream)
                .is_none_or(|pipe| crate::sys::process::is_empty(pipe))
        });
        if empty {
            live.drained = true;
            self.mark_readers(serial);
        }
    }

    /// A consumer says that output before `position` may go.
    pub(crate) fn acknowledge(&mut self, serial: u64, position: u64) {
        let Some(live) = self.world.live.get_mut(&serial) else {
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
            self.resume(serial);
        }
        self.forget_if_done(serial);
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
