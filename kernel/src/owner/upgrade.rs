//! Changes the program of this process while everything stays as it is.
//!
//! A client or SIGUSR2 asks for it. The new program is tried (`change/dry_run.rs`), then all
//! connections are stopped (`stopping.rs`) and written down (`change/sessions.rs`), the keeper gets
//! the record, and this process execs. What comes up, the new program or the old one, finds the
//! record and goes on. To replace the keeper too, the kernel that came up takes its place, with the
//! same record.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use papa_protocol::json::reply::{encode_error, encode_ok};
use papa_protocol::json::request::{Id, KernelUpgrade};
use papa_protocol::json::status::{Program, Upgraded};
use papa_protocol::json::{ErrorCode, Failure};
use papa_protocol::text::{ByteString, escape_control};
use papa_test_hooks::failpoint;
use tracing::{error, info, warn};

use super::Owner;
use super::starting::Start;
use crate::VERSION;
use crate::change::changing::{Changing, Examined, Role, Stage};
use crate::change::dry_run::{self, Tried};
use crate::change::handover::{Change, HandOver};
use crate::change::program::{fault, open_program, own_file};
use crate::change::recover::Resumption;
use crate::change::sessions;
use crate::client::exchange::{Expect, SessionId};
use crate::client::server::Server;
use crate::keeper::program::path_of;
use crate::keeper::wire::{Key, Kind, Verdict};
use crate::sys::pidfd::Outcome;
use crate::verbs::claim::may_write;
use crate::verbs::{VerbError, fail};
use crate::world::reel::{Reel, ReelKind};

/// How long the keeper may go back to the program before, with time to spare.
const PROBATION: Duration = Duration::from_secs(30);

impl Owner {
    /// Begins a change of program; the answer comes later.
    ///
    /// # Errors
    /// `denied` while another is under way or over a read-only transport, `invalid` for a program
    /// that cannot be one.
    pub(super) fn ask_upgrade(
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
        let shown = escape_control(&path.to_string_lossy()).into_owned();
        let (program, to) = open_program(&path)
            .map_err(|reason| fail(ErrorCode::Invalid, &format!("{shown}: {reason}")))?;
        let change = Change {
            asked,
            before: self.program(),
            to,
            to_path: shown,
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
        self.start_dry_run(&program)?;
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

    /// Starts a dry run of `program`; its end is an event.
    fn start_dry_run(&self, program: &OwnedFd) -> Result<(), VerbError> {
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

    /// Goes on with a change after its dry run.
    pub(super) fn on_examined(&mut self, Examined(tried): Examined) {
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

    /// Kinds of reels there are, without the first, which every version reads.
    pub(super) fn reel_kinds(&self) -> BTreeSet<ReelKind> {
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

    // ---- after the exec ------------------------------------------------

    /// Takes what was handed over and goes on with it; returns the change that led to it. Called
    /// once, when the keeper knows that this program serves, and before any output is taken, so
    /// that all of it is told.
    pub(crate) fn resume_sessions(
        &mut self,
        server: &Server,
        handed: Resumption,
    ) -> Option<(Change, Option<Verdict>)> {
        self.server = Some(server.clone());
        if handed.kept.is_empty() {
            return None;
        }
        // Before anything is said or heard: a later program must not say it again.
        let keys: Vec<Key> = handed.kept.iter().map(|(key, _)| *key).collect();
        let told = self.world.link.drop_keys(&keys);
        self.check_keeper_with(told, &handed.kept);
        failpoint::reach("upgrade.taken");
        let (mut record, mut descriptors) = (None, HashMap::new());
        for (key, fd) in handed.kept {
            match key.kind {
                Kind::HANDOVER => record = Some(HandOver::read(fd)),
                Kind::BINARY => {
                    self.change.before = Some(fd);
                    self.world.older_may_return = Some(Instant::now() + PROBATION);
                }
                _ => {
                    descriptors.insert(key.id, fd);
                }
            }
        }
        let record = record?
            .inspect_err(|errno| {
                error!(%errno, "cannot read the handed-over sessions; closing them");
            })
            .ok()?;
        if record.left_out > 0 {
            let sessions = record.left_out;
            warn!(
                sessions,
                "cannot be understood by this version; they are closed"
            );
        }
        sessions::resume(
            &mut self.world,
            &mut self.readers,
            server,
            &record.processes,
            record.sessions,
            descriptors,
        );
        Some((record.change, handed.verdict))
    }

    /// Ends a change whose program has been executed, or was not: answers it, or goes on to the
    /// keeper.
    pub(crate) fn go_on_changing(&mut self, change: &Change, verdict: Option<Verdict>) {
        if *change == Change::default() {
            // The keeper died, and nobody had asked for anything.
            self.change.before = None;
            return;
        }
        let before = self.world.link.keeper().as_raw() == change.keeper_before;
        if let Some(reason) = failure(change, verdict, before) {
            return self.answer_change(change, Err(reason));
        }
        if let Some(path) = &change.path {
            self.remember_program(path);
        }
        if change.keeper && before {
            if let Err(reason) = self.begin_with_keeper(change.clone()) {
                self.answer_change(change, Err(reason));
            }
            return;
        }
        self.answer_change(change, Ok(false));
    }

    /// Begins to replace the keeper, after the kernel has become the new program.
    ///
    /// # Errors
    /// Why it cannot, in words for whoever asked.
    fn begin_with_keeper(&mut self, mut change: Change) -> Result<(), String> {
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
        self.change.under_way = Some(Changing::of_role(change, program));
        self.freeze(Role::Keeper);
        Ok(())
    }

    /// Notes the path of the program this one has changed to: what is at that path later is the
    /// next program.
    fn remember_program(&mut self, path: &ByteString) {
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

    // ---- answering -----------------------------------------------------

    /// Ends a change that has not begun; `Ok(true)` for a dry run that found nothing.
    fn end_change(&mut self, result: Result<bool, String>) {
        if let Some(changing) = self.change.under_way.take() {
            self.answer_change(&changing.change, result);
        }
    }

    /// Answers whoever asked for a change: `Ok` says whether it was a dry run.
    pub(super) fn answer_change(&mut self, change: &Change, result: Result<bool, String>) {
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
            Ok(dry_run) if id.is_some() => {
                encode_ok(id.as_ref(), &self.upgraded(change, dry_run), &mut out);
            }
            Ok(_) => {}
            Err(reason) => {
                let failure = Failure::new(ErrorCode::Denied, &reason);
                encode_error(id.as_ref(), &failure, &mut out);
            }
        }
        if let Some(session) = self.readers.sessions.get(session) {
            session.reply(out, Expect::Json);
        }
    }

    fn upgraded(&self, change: &Change, dry_run: bool) -> Upgraded {
        let after = if dry_run {
            Program {
                version: change.check.as_ref().map(|check| check.version.clone()),
                path: change.to_path.clone(),
            }
        } else {
            self.program()
        };
        Upgraded {
            before: change.before.clone(),
            after,
            pid: std::process::id(),
            keeper: self.world.link.keeper().as_raw().unsigned_abs(),
            incarnation: self.world.table.incarnation,
            dry_run,
            check: change.check.clone(),
        }
    }
}

/// Why a change has failed whose program was executed, in words for whoever asked; `same_keeper` if
/// the keeper is the one from before the change.
fn failure(change: &Change, verdict: Option<Verdict>, same_keeper: bool) -> Option<String> {
    let reason = match verdict {
        Some(Verdict::Late) => "did not serve in time".to_owned(),
        Some(Verdict::Ended(Outcome::Code(code))) => {
            format!("exited with code {code} before it served")
        }
        Some(Verdict::Ended(Outcome::Signal { number, .. })) => {
            format!("was ended by signal {number} before it served")
        }
        // A keeper of an earlier version does not say why.
        None if own_file() != Some(change.to) || (change.succession && same_keeper) => {
            "did not serve".to_owned()
        }
        None => return None,
    };
    let path = &change.to_path;
    Some(if change.succession {
        format!(
            "the kernel has changed to {path}, but what was to take the keeper's place {reason}; the keeper before goes on, and the log says more"
        )
    } else {
        format!("{path} {reason}; the program before goes on, and the log says more")
    })
}
