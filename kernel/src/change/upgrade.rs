//! Another program in this process, and nobody notices.
//!
//! Asked for by a client or by SIGUSR2: the new program is tried (`dry_run.rs`),
//! then all connections are stopped between two lines (`stopping.rs`) and
//! written down, the keeper gets the record, and this process execs. What comes up, the new
//! program or the old one, finds the record and goes on (`resume.rs`). To
//! replace the keeper too, the kernel that came up takes its place, with the
//! same record.
//!
//! Invariant: until the exec has succeeded everything can be taken back;
//! afterwards the keeper has the old program.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use bytes::BytesMut;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat};
use papa_protocol::json::reply::{encode_error, encode_ok};
use papa_protocol::json::request::{Id, KernelUpgrade};
use papa_protocol::json::status::{Program, UpgradeCheck, Upgraded};
use papa_protocol::json::{ErrorCode, Failure};
use papa_protocol::text::{ByteString, escape_control};
use papa_test_hooks::failpoint;
use tracing::{error, info, warn};

use crate::VERSION;
use crate::change::dry_run::{self, Tried};
use crate::change::handover::{Change, Delivered, HandOver, SessionRecord, SubRecord};
use crate::change::takeover;
use crate::client::connection::Frozen;
use crate::client::event::Sender;
use crate::client::exchange::{Expect, SessionId};
use crate::client::server::Listener;
use crate::keeper::PROGRAM_BEFORE;
use crate::keeper::program::path_of;
use crate::keeper::wire::{Key, Kind, ToKeeper};
use crate::owner::Owner;
use crate::owner::starting::Start;
use crate::sys::process;
use crate::sys::socket::local_port;
use crate::verbs::claim::may_write;
use crate::verbs::{VerbError, fail};
use crate::world::reel::{Reel, ReelKind};

/// What is known of changes of the program.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// The one that is under way.
    pub under_way: Option<Changing>,
    /// Where the task of a dry run sends what it found.
    pub examined: Option<Sender<Examined>>,
    /// The program this one has replaced, until the keeper is replaced too.
    pub before: Option<OwnedFd>,
}

/// A change of program under way.
#[derive(Debug)]
pub(crate) struct Changing {
    pub(crate) change: Change,
    pub(crate) dry_run: bool,
    pub(crate) force: bool,
    pub(crate) program: OwnedFd,
    /// Kinds of reels there were when the program was tried.
    pub(crate) tried_reels: BTreeSet<ReelKind>,
    pub(crate) stage: Stage,
}

/// What this process becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The kernel, of another program.
    Kernel,
    /// The keeper, of this program.
    Keeper,
    /// The same, the keeper being gone already.
    Orphan,
}

/// How far it is.
#[derive(Debug)]
pub(crate) enum Stage {
    /// The program is being tried.
    Trying,
    /// Connections are being stopped.
    Freezing {
        left: BTreeSet<SessionId>,
        frozen: BTreeMap<SessionId, Frozen>,
        until: Instant,
        role: Role,
    },
}

/// The dry run is over.
#[derive(Debug)]
pub(crate) struct Examined(pub(crate) Tried);

impl Owner {
    /// Begins a change of program; the answer comes later.
    ///
    /// # Errors
    /// `denied` while another is under way or over a read-only transport,
    /// `not_found` or `invalid` for a program that cannot be one.
    pub(crate) fn ask_upgrade(
        &mut self,
        asked: Option<(SessionId, Option<Id>)>,
        op: KernelUpgrade,
    ) -> Result<(), VerbError> {
        if let Some((session, _)) = &asked {
            may_write(&self.world, &self.readers.caller(*session))?;
        }
        if self.change.under_way.is_some() {
            return Err(fail(
                ErrorCode::Denied,
                "the program is being changed already; wait until that is done",
            ));
        }
        let path = match op.binary.as_ref().or(self.world.config.program.as_ref()) {
            Some(path) => path.as_path().to_owned(),
            None => path_of(&self.world.fixed.binary)
                .ok_or_else(|| fail(ErrorCode::Internal, "our own program's path is not known"))?,
        };
        let (program, to) = open_program(&path).map_err(|reason| {
            let path = escape_control(&path.to_string_lossy()).into_owned();
            fail(ErrorCode::Invalid, &format!("{path}: {reason}"))
        })?;
        let change = Change {
            asked,
            before: self.program(),
            to,
            to_path: escape_control(&path.to_string_lossy()).into_owned(),
            path: op.binary,
            keeper: op.keeper,
            keeper_before: self.world.link.keeper().as_raw(),
            succession: false,
            check: None,
        };
        info!(
            path = change.to_path,
            dry_run = op.dry_run,
            "a program is being tried"
        );
        let examined = self.change.examined.clone();
        let starting = self
            .starting
            .iter()
            .filter_map(|(serial, start)| Some((*serial, start.reel()?)));
        let run = dry_run::start(&self.world, starting, program.as_fd())
            .map_err(|error| fail(ErrorCode::Internal, &format!("the dry run: {error}")))?;
        tokio::task::spawn_local(async move {
            let found = Examined(run.end().await);
            if let Some(examined) = examined {
                examined.send(found);
            }
        });
        self.change.under_way = Some(Changing {
            change,
            dry_run: op.dry_run,
            force: op.force,
            program,
            tried_reels: self.reel_kinds(),
            stage: Stage::Trying,
        });
        Ok(())
    }

    /// The program that runs.
    fn program(&self) -> Program {
        Program {
            version: Some(VERSION.to_owned()),
            path: path_of(&self.world.fixed.binary).map_or_else(String::new, |path| {
                escape_control(&path.to_string_lossy()).into_owned()
            }),
        }
    }

    pub(crate) fn on_examined(&mut self, Examined(tried): Examined) {
        let Some(changing) = &mut self.change.under_way else {
            return;
        };
        if !matches!(changing.stage, Stage::Trying) {
            // The keeper has died since, and the answer was given.
            return;
        }
        // An older program would take such a reel for one of its own kind and write over it.
        let harms = matches!(&tried, Tried::Found(check) if check.unreadable_reels > 0);
        let problem = match tried {
            Tried::Found(check) => {
                let problem = fault(&check, self.world.unknown_records.len() as u64);
                changing.change.check = Some(check);
                problem
            }
            Tried::Failed(reason) => Some(reason),
        };
        match problem {
            Some(reason) if harms => {
                let advice = "nothing was changed, and the change cannot be forced: that program could write over the output; change to it when those processes have ended";
                self.end_change(Err(format!("{reason}; {advice}")));
            }
            Some(reason) if !changing.force => {
                let advice = "nothing was changed; if the change is forced, what the program cannot read stays with the keeper until one that can is back";
                self.end_change(Err(format!("{reason}; {advice}")));
            }
            problem => {
                if let Some(reason) = problem {
                    warn!(
                        reason,
                        "changing to the new program although its dry run failed: the change was forced"
                    );
                }
                if changing.dry_run {
                    self.end_change(Ok(true));
                } else {
                    failpoint::reach("upgrade.examined");
                    self.freeze(Role::Kernel);
                }
            }
        }
    }

    /// The kernel is the new program; now the keeper's turn.
    ///
    /// # Errors
    /// Says why not.
    pub(crate) fn begin_with_keeper(&mut self, mut change: Change) -> Result<(), String> {
        if self.world.link.is_lost() {
            // Its place is being taken already.
            return Err("the kernel has changed, and the keeper has died meanwhile".to_owned());
        }
        change.succession = true;
        let program = self
            .world
            .fixed
            .binary
            .try_clone()
            .map_err(|error| format!("the kernel has changed, the keeper has not: {error}"))?;
        self.change.under_way = Some(Changing {
            change,
            dry_run: false,
            force: false,
            program,
            tried_reels: BTreeSet::new(),
            stage: Stage::Trying,
        });
        self.freeze(Role::Keeper);
        Ok(())
    }

    // ---- changing ------------------------------------------------------

    /// All connections have stopped, or need not be waited for.
    pub(crate) fn change_now(&mut self) {
        let Some(mut changing) = self.change.under_way.take() else {
            return;
        };
        let Stage::Freezing { frozen, role, .. } = &mut changing.stage else {
            return;
        };
        for stopped in frozen.values_mut() {
            stopped.connection.catch_up(&stopped.inbox);
        }
        let role = *role;
        failpoint::reach("upgrade.frozen");
        if role == Role::Kernel && !self.reel_kinds().is_subset(&changing.tried_reels) {
            let reason = format!(
                "a process was started while {} was tried, and it is not known whether that program can read its output; \
                 ask again",
                changing.change.to_path
            );
            return self.take_back(changing, &reason);
        }
        let errno = self.hand_over(&changing, role);
        // Only a failure comes back.
        let reason = format!(
            "{} could not be started: {}",
            changing.change.to_path,
            errno.desc()
        );
        self.take_back(changing, &reason);
    }

    /// Everything goes on as before, and whoever asked is told why.
    pub(crate) fn take_back(&mut self, changing: Changing, reason: &str) {
        if let (Stage::Freezing { frozen, .. }, Some(server)) =
            (changing.stage, self.server.clone())
        {
            for (_, stopped) in frozen {
                server.thaw(stopped);
            }
        }
        self.listen_again();
        let reason = format!("{reason}; the program before goes on");
        self.answer_change(&changing.change, Err(reason));
        // What came meanwhile was held back.
        self.deliver();
    }

    /// Gives everything to the keeper and becomes the program.
    fn hand_over(&mut self, changing: &Changing, role: Role) -> Errno {
        let mut handed = Vec::new();
        let record = self.record(changing, &mut handed);
        let file = match record.and_then(|record| record.write()) {
            Ok(file) => file,
            Err(errno) if role == Role::Orphan => {
                error!(%errno, "cannot hand sessions over; closing them");
                self.take_keepers_place("it is gone", &[]);
            }
            Err(errno) => return errno,
        };
        // The next keeper has to know what to go back to.
        let before = match role {
            Role::Kernel if changing.change.keeper => Some(&self.world.fixed.binary),
            Role::Keeper => self.change.before.as_ref(),
            Role::Kernel | Role::Orphan => None,
        };
        handed.extend(
            before
                .and_then(|program| program.try_clone().ok())
                .map(|program| (PROGRAM_BEFORE, program)),
        );
        // Last, so that it names only what is there.
        handed.push((Key::new(Kind::HANDOVER, 0), file));
        let entries: Vec<_> = handed.iter().map(|(key, fd)| (*key, fd.as_fd())).collect();
        let told = self.world.link.put(&entries);
        failpoint::reach("upgrade.recorded");
        let errno = match (told, role) {
            (Err(errno), _) => errno,
            // Of an earlier version: it would start a kernel beside ours.
            (Ok(()), Role::Keeper) if !self.world.link.keeper_leaves() => {
                self.take_keepers_place("as asked", &handed)
            }
            (Ok(()), Role::Orphan) => self.take_keepers_place("it is gone", &handed),
            (Ok(()), Role::Keeper) => match self.world.link.tell(&ToKeeper::Succeed) {
                Ok(()) => {
                    failpoint::reach("succession.told");
                    info!(
                        keeper = self.world.link.keeper().as_raw(),
                        "taking the keeper's place, as asked"
                    );
                    let errno = takeover::become_next_keeper(&self.holdings(), &handed);
                    let told = self.world.link.tell(&ToKeeper::Untried);
                    self.check_keeper_with(told, &handed);
                    errno
                }
                Err(errno) => errno,
            },
            (Ok(()), Role::Kernel) => match self.world.link.try_program(changing.program.as_fd()) {
                Ok(()) => {
                    failpoint::reach("upgrade.tried");
                    info!(
                        path = changing.change.to_path,
                        "changing to the new program"
                    );
                    let errno = takeover::become_program(
                        &self.holdings(),
                        changing.program.as_fd(),
                        &handed,
                    );
                    let told = self.world.link.tell(&ToKeeper::Untried);
                    self.check_keeper_with(told, &handed);
                    errno
                }
                Err(errno) => errno,
            },
        };
        // A keeper that died meanwhile takes no session with it.
        let keys: Vec<Key> = handed.iter().map(|(key, _)| *key).collect();
        let told = self.world.link.drop_keys(&keys);
        self.check_keeper_with(told, &handed);
        errno
    }

    /// Writes down all sessions; `handed` gets copies of their descriptors.
    fn record(
        &self,
        changing: &Changing,
        handed: &mut Vec<(Key, OwnedFd)>,
    ) -> Result<HandOver, Errno> {
        let Stage::Freezing { frozen, .. } = &changing.stage else {
            return Err(Errno::EINVAL);
        };
        let mut keep = |fd: BorrowedFd<'_>| {
            let number = handed.len() as u64;
            let copy = fd.try_clone_to_owned().map_err(|_| Errno::EMFILE)?;
            handed.push((Key::new(Kind::SESSION, number), copy));
            Ok(number)
        };
        let mut sessions = Vec::new();
        for (id, stopped) in frozen {
            let Some(session) = self.readers.sessions.get(id) else {
                continue;
            };
            let claims = self
                .world
                .claims
                .iter()
                .filter(|(_, holder)| holder.session == *id);
            sessions.push(SessionRecord {
                id: *id,
                peer: session.peer,
                connection: stopped.connection.record(&mut keep)?,
                client: session.client.clone(),
                json: session.json,
                busy: session.busy,
                queued: session.queued,
                subs: session
                    .subs
                    .iter()
                    .map(|(number, sub)| {
                        let record = SubRecord {
                            kind: sub.kind,
                            patterns: sub.patterns.clone(),
                            cursors: sub.cursors.clone(),
                            seq: sub.seq,
                        };
                        (*number, record)
                    })
                    .collect(),
                next_sub: session.next_sub,
                held_back: session.hold_until.is_some(),
                watch_batch: session.watch_batch.clone(),
                lost: session.lost.iter().cloned().collect(),
                claims: claims.map(|(namespace, _)| namespace.clone()).collect(),
            });
        }
        let processes = self
            .world
            .live
            .iter()
            .filter(|(_, live)| live.reel.is_some())
            .map(|(serial, live)| Delivered {
                serial: *serial,
                to: live.delivered_to,
                bytes: live.delivered,
                consumer: live.consumer.map(|reader| (reader.session, reader.sub)),
            })
            .collect();
        Ok(HandOver {
            change: changing.change.clone(),
            processes,
            sessions,
            left_out: 0,
        })
    }

    /// Accepts callers again.
    pub(crate) fn listen_again(&self) {
        let Some(server) = &self.server else {
            return;
        };
        for (_, fd) in &self.world.fixed.controls {
            let tcp = local_port(fd).is_ok_and(|port| port != 0);
            let listener = fd.try_clone().and_then(|copy| Listener::new(copy, tcp));
            match listener {
                Ok(listener) => server.serve(listener),
                Err(error) => error!(%error, "cannot serve a listener again"),
            }
        }
    }

    /// The program has changed to one that was named: what is at that path
    /// later is the next one.
    pub(crate) fn remember_program(&mut self, path: &ByteString) {
        self.world.config.program = Some(path.clone());
        let key = Key::new(Kind::CONFIG, 0);
        let kept = self.world.config.write().and_then(|file| {
            self.keep(&[(key, file.as_fd())])?;
            self.world.fixed.config = file;
            Ok(())
        });
        // Without it the path before is the default once more.
        if let Err(errno) = kept {
            warn!(%errno, "cannot record the path of the next program");
        }
    }

    /// Kinds of reels there are, without the first, which every version reads.
    fn reel_kinds(&self) -> BTreeSet<ReelKind> {
        let live = self
            .world
            .live
            .values()
            .filter_map(|live| live.reel.as_ref());
        let starting = self.starting.values().filter_map(Start::reel);
        live.chain(starting)
            .map(Reel::kind)
            .filter(|kind| *kind != ReelKind::First)
            .collect()
    }

    // ---- answering -----------------------------------------------------

    /// Ends a change that has not begun; `Ok(true)` for a dry run that found
    /// nothing.
    fn end_change(&mut self, result: Result<bool, String>) {
        if let Some(changing) = self.change.under_way.take() {
            self.answer_change(&changing.change, result);
        }
    }

    /// Answers whoever asked.
    pub(crate) fn answer_change(&mut self, change: &Change, result: Result<bool, String>) {
        failpoint::reach("upgrade.answering");
        self.change.before = None;
        match &result {
            Ok(dry_run) => info!(path = change.to_path, dry_run, "new program accepted"),
            Err(reason) => error!(path = change.to_path, reason, "program not changed"),
        }
        let Some((session, id)) = &change.asked else {
            return;
        };
        let mut out = BytesMut::new();
        match result {
            Ok(dry_run) => {
                let after = if dry_run {
                    Program {
                        version: change.check.as_ref().map(|check| check.version.clone()),
                        path: change.to_path.clone(),
                    }
                } else {
                    self.program()
                };
                let upgraded = Upgraded {
                    before: change.before.clone(),
                    after,
                    pid: std::process::id(),
                    keeper: self.world.link.keeper().as_raw().unsigned_abs(),
                    incarnation: self.world.table.incarnation,
                    dry_run,
                    check: change.check.clone(),
                };
                if id.is_some() {
                    encode_ok(id.as_ref(), &upgraded, &mut out);
                }
            }
            Err(reason) => {
                let failure = Failure::new(ErrorCode::Denied, &reason);
                encode_error(id.as_ref(), &failure, &mut out);
            }
        }
        if let Some(session) = self.readers.sessions.get(session) {
            session.reply(out, Expect::Json);
        }
    }
}

/// Opens a program to be executed, and tells which file it is.
fn open_program(path: &std::path::Path) -> Result<(OwnedFd, (u64, u64)), String> {
    let words = |errno: Errno| errno.desc().to_owned();
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let file = open(path, flags, Mode::empty()).map_err(words)?;
    let stat = fstat(&file).map_err(words)?;
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Err("not a regular file; expected a program".to_owned());
    }
    if stat.st_mode & 0o111 == 0 {
        return Err("not executable; expected a program".to_owned());
    }
    Ok((file, (stat.st_dev, stat.st_ino)))
}

/// What speaks against a program that has looked at everything.
fn fault(check: &UpgradeCheck, unknown_already: u64) -> Option<String> {
    let version = escape_control(&check.version);
    let unknown = check.unknown_records.saturating_sub(unknown_already);
    if check.unreadable_records > 0 {
        let count = check.unreadable_records;
        return Some(format!(
            "version {version} cannot read {count} journal records"
        ));
    }
    if check.unreadable_reels > 0 {
        let count = check.unreadable_reels;
        return Some(format!(
            "version {version} cannot read the output of {count} processes"
        ));
    }
    if unknown > 0 {
        return Some(format!(
            "version {version} does not know {unknown} journal records"
        ));
    }
    None
}

/// Which file this process's program is.
pub(crate) fn own_file() -> Option<(u64, u64)> {
    let stat = process::own_binary().and_then(fstat).ok()?;
    Some((stat.st_dev, stat.st_ino))
}
