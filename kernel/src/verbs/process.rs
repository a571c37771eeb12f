//! Processes: started, listed, given up.
//!
//! Starting goes: intent into the journal, pipes and reel to the keeper,
//! vfork. The child registers itself with the keeper; whatever dies when, a
//! process that runs is known. Source: design "Spawn".

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use papa_protocol::classic::{Error, process_line};
use papa_protocol::json::ErrorCode;
use papa_protocol::json::push::EventType;
use papa_protocol::json::request::ProcessMake;
use papa_protocol::limits::{MAX_PROCESSES, REEL_BYTES};
use papa_protocol::name::NamePattern;
use papa_protocol::process::Process;
use papa_protocol::record::Serial;
use papa_test_hooks::failpoint;

use super::pipes::{Pipes, open_pipes};
use super::process_plan::{self, Prepared};
use super::room::Room;
use super::{VerbError, fail, limit, not_recorded, refused, words};
use crate::client::exchange::SessionId;
use crate::keeper::wire::{Key, Kind};
use crate::owner::Owner;
use crate::owner::starting::{Asker, Streams};
use crate::sys::clock::now_us;
use crate::sys::process::{file_size_limit, move_up};
use crate::sys::spawn::{self, Failure, Outcome, Started, Step};
use crate::world::live::{Live, Source};
use crate::world::reel::{LINEAR_FILE_BYTES, MIN_FILE_BYTES, Reel};
use crate::world::table::{Entry, Matcher, ProcessRow, known};

impl Owner {
    /// Starts a process, or answers the equal one there is (then `false`). None
    /// if what the system does for it takes its time: then `asker` is answered
    /// when that is over.
    ///
    /// # Errors
    /// One of that name is different, a parameter names nothing, or the
    /// start failed; nothing is left of it then.
    pub(crate) fn make_process(
        &mut self,
        session: SessionId,
        mut make: ProcessMake,
        asker: Asker,
    ) -> Result<Option<(u64, bool)>, VerbError> {
        self.may_change(session, &make.name, make.force)?;
        make.force = false;
        let account = process_plan::resolve_account(&mut make)?;
        if let Some(row) = self.world.table.process_named(&make.name) {
            let same = ProcessMake {
                tag: row.make.tag.clone(),
                ..make.clone()
            } == row.make;
            // One that was removed and still runs will be forgotten: it is not
            // what anybody asks for.
            if self.starting.contains_key(&row.serial) {
                return Err(fail(
                    ErrorCode::Exists,
                    &format!(
                        "{} is being started: a file system its program is on does not answer yet",
                        make.name
                    ),
                ));
            }
            if same && !row.removing {
                return Ok(Some((row.serial, false)));
            }
            let line = self
                .describe_process(row.serial)
                .map_or(String::new(), |process| process_line(&process));
            return Err(Error::ProcessExists {
                name: make.name,
                line,
            });
        }
        if self.world.live.len() >= MAX_PROCESSES {
            return Err(limit("processes", MAX_PROCESSES));
        }
        self.room().check(12)?;
        let prepared = process_plan::prepare(&self.world, &make, &account)?;
        let reel_bytes = make.reel_bytes.map_or(REEL_BYTES, |size| size.0);
        let pipes = open_pipes(&make, reel_bytes, account.uid)
            .map_err(|errno| refused("open the pipes", errno))?;
        let captures = pipes.out.is_some() || pipes.err.is_some();
        let largest = file_size_limit();
        let of_first_kind =
            largest.is_none_or(|bytes| bytes >= LINEAR_FILE_BYTES) && self.older_is_expected();
        let reel = captures
            .then(|| {
                if of_first_kind {
                    Reel::create_for_older(reel_bytes)
                } else {
                    Reel::create(reel_bytes, largest)
                }
            })
            .transpose()
            .map_err(no_reel)?;

        let serial = self.world.table.next_serial.max(1);
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
        self.world
            .commit(Entry::Intent(Box::new(row)))
            .map_err(|error| not_recorded(&error))?;
        failpoint::reach("spawn.intent");
        let mut copies: Vec<(Key, BorrowedFd<'_>)> = Vec::with_capacity(3);
        for (kind, fd) in [(Kind::OUT, &pipes.out), (Kind::ERR, &pipes.err)] {
            if let Some(fd) = fd {
                copies.push((Key::new(kind, serial), fd.as_fd()));
            }
        }
        if let Some(reel) = &reel {
            copies.push((Key::new(Kind::REEL, serial), reel.as_fd()));
        }
        let outcome = match self.keep(&copies) {
            Ok(()) => {
                failpoint::reach("spawn.kept");
                self.spawn(&prepared, serial, &pipes)
                    .map_err(|failure| prepared.explain(failure))
            }
            Err(errno) => Err(refused("tell the keeper", errno)),
        };
        let streams = Streams {
            out: pipes.out,
            err: pipes.err,
            reel,
        };
        match outcome {
            Ok(Outcome::Started(started)) => {
                self.started(session, serial, started, streams);
                Ok(Some((serial, true)))
            }
            Ok(Outcome::Starting(starting)) => {
                self.start_later(serial, asker, session, starting, prepared, streams);
                Ok(None)
            }
            Err(error) => {
                self.undo_start(serial);
                Err(error)
            }
        }
    }

    /// A process runs: it is recorded, watched and told of.
    pub(crate) fn started(
        &mut self,
        session: SessionId,
        serial: u64,
        started: Started,
        streams: Streams,
    ) {
        let pid = started.pid.unsigned_abs();
        failpoint::reach("spawn.executed");
        if let (Some(errno), Some(groups)) = (started.outside, &mut self.world.cgroups) {
            groups.note_failure(errno);
        }
        self.world.commit_fact(Entry::Started { serial, pid });
        let Some(row) = self.world.table.process(serial) else {
            return;
        };
        tracing::info!(session, serial, pid, name = %row.make.name, "process made");
        let Streams { out, err, reel } = streams;
        let reel = reel.filter(|_| !row.removing);
        let live = Live::new(Some(move_up(started.pidfd)), out, err, reel);
        self.watch_process(serial, &live);
        self.world.live.insert(serial, live);
        self.include_new(serial);
        self.announce(serial, EventType::Made);
        failpoint::reach("spawn.started");
    }

    /// Nothing is left of a start that failed.
    pub(crate) fn undo_start(&mut self, serial: u64) {
        self.world.commit_fact(Entry::Forget {
            serial,
            ledger: papa_protocol::process::Ledger::default(),
        });
        self.world.unkeep(&[
            Key::new(Kind::PIDFD, serial),
            Key::new(Kind::OUT, serial),
            Key::new(Kind::ERR, serial),
            Key::new(Kind::REEL, serial),
        ]);
        self.remove_cgroup(serial);
    }

    /// Starts what was prepared. A keeper that has died or is stuck is not the
    /// program's fault: then it starts without being registered, since its
    /// pidfd goes along with everything else.
    fn spawn(
        &mut self,
        prepared: &Prepared,
        serial: u64,
        pipes: &Pipes,
    ) -> Result<Outcome, Failure> {
        let patience = self.start_patience();
        let cgroup = self
            .world
            .cgroups
            .as_mut()
            .and_then(|groups| groups.group(serial));
        let cgroup = cgroup.as_ref();
        let plan = prepared.plan(&self.world, serial, pipes, cgroup);
        let failure = match spawn::start(plan, patience) {
            Err(failure) if failure.step == Step::Register && !self.world.link.is_lost() => failure,
            result => return result,
        };
        if !self.world.link.is_closed() && failure.errno != Errno::EAGAIN {
            return Err(failure);
        }
        self.lose_keeper("it cannot be reached");
        spawn::start(prepared.plan(&self.world, serial, pipes, cgroup), patience)
    }

    fn watch_process(&self, serial: u64, live: &Live) {
        let poller = &self.world.poller;
        let mut result = Ok(());
        if let Some(pidfd) = &live.pidfd {
            result = result.and(poller.add(pidfd, Source::Pidfd(serial)));
        }
        for stream in papa_protocol::record::Stream::ALL {
            if let Some(pipe) = live.pipe(stream) {
                result = result.and(poller.add(pipe, Source::Pipe(serial, stream)));
            }
        }
        if let Err(errno) = result {
            tracing::error!(serial, %errno, "cannot watch a process for its end");
        }
    }

    /// A process as listed.
    pub(crate) fn describe_process(&self, serial: u64) -> Option<Process> {
        let row = self.world.table.process(serial)?;
        let live = self.world.live.get(&serial);
        Some(Process {
            serial: Serial(serial),
            name: row.make.name.clone(),
            pid: row.pid,
            running: row.exit.is_none(),
            started_us: row.started_us,
            argv: row.make.argv.clone(),
            shell: row.make.shell,
            uid: row.uid,
            gid: row.gid,
            working_dir: row.make.working_dir.clone(),
            tag: row.make.tag.clone(),
            exit: row.exit.clone(),
            ends: live.map(|live| live.ends).unwrap_or_default(),
            ledger: live.map(Live::ledger).unwrap_or_default(),
            overflow: row.make.overflow,
            reel_bytes: live.and_then(|live| live.reel.as_ref()).map_or(
                row.make.reel_bytes.map_or(REEL_BYTES, |size| size.0),
                Reel::limit,
            ),
            consumer: live.is_some_and(|live| live.consumer.is_some()),
            trouble: live
                .and_then(|live| live.trouble)
                .map(|errno| format!("its output cannot be stored: {}", words(errno))),
        })
    }

    /// Processes that match by name or serial, sorted by name; unknown names
    /// are left out, nothing at all means all.
    pub(crate) fn list_processes(
        &self,
        patterns: &[NamePattern],
        serials: &[Serial],
    ) -> Vec<Process> {
        let mut found = if patterns.is_empty() && !serials.is_empty() {
            Vec::new()
        } else {
            known(patterns, |patterns| {
                self.world.table.find_processes(patterns)
            })
        };
        found.extend(serials.iter().map(|serial| serial.0));
        // Those that have ended and given up their name, but not all of their
        // output yet.
        if serials.is_empty() {
            let matcher = Matcher::new(patterns);
            found.extend(
                self.world
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
            .filter_map(|serial| self.describe_process(serial))
            .collect();
        listed.sort_by(|one, other| one.name.cmp(&other.name));
        listed
    }

    /// Gives up the output of processes; they run on.
    ///
    /// # Errors
    /// A plain name or serial names nothing; then nothing is removed.
    pub(crate) fn remove_processes(
        &mut self,
        session: SessionId,
        patterns: &[NamePattern],
        serials: &[Serial],
        force: bool,
    ) -> Result<u64, VerbError> {
        let mut found = if patterns.is_empty() && !serials.is_empty() {
            Vec::new()
        } else {
            self.world
                .table
                .find_processes(patterns)
                .map_err(|pattern| Error::NotFound(pattern.clone()))?
        };
        for Serial(serial) in serials {
            if self.world.table.process(*serial).is_none() {
                return Err(super::output::no_process(*serial));
            }
            found.push(*serial);
        }
        for serial in &found {
            if let Some(row) = self.world.table.process(*serial) {
                self.may_change(session, &row.make.name, force)?;
            }
        }
        for serial in &found {
            self.remove_process(*serial);
        }
        Ok(found.len() as u64)
    }

    /// How many descriptors are in use, for refusing what would exhaust them.
    pub(crate) fn room(&self) -> Room {
        Room {
            in_use: self.descriptors_in_use(),
        }
    }
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
