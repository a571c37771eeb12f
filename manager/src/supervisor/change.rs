//! `reloadconfig`: from the file to what runs, as a transaction.
//!
//! Owns the steps of a change and their order: read, compare, sockets, watchers that are new or
//! different, and only when all of those serve, what is no longer in the file. Anything that fails
//! on the way leads back to the configuration before, by the same steps.
//! Leaves to others: what differs and how it is applied (`config::diff`), a reload (`watcher`).
//! Invariant: one change at a time; a file with a mistake changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::config::diff::{Apply, Plan, diff_watcher};
use crate::config::{Config, Readiness, SocketConfig, WatcherConfig, inspect, load};
use crate::control::message::{Command, Errno, PlanReply, Reply, Request, RequestError};
use crate::state::Kept;
use crate::supervisor::compare::{Next, Overrides};
use crate::supervisor::event::ReadFile;
use crate::supervisor::requests::not_connected;
use crate::supervisor::tickets::{Goal, answer, refuse};
use crate::supervisor::{Event, Supervisor, WatcherId, plan, tasks};

mod sockets;

/// Changes that wait for the one under way; nobody needs more.
const MAX_WAITING: usize = 64;

/// A change under way.
#[derive(Debug)]
pub(super) struct Change {
    /// Who asked, until answered.
    pub(super) asker: Option<(Request, oneshot::Sender<Reply>)>,
    /// Everything is restarted, different or not.
    pub(super) restart: bool,
    /// What to return to.
    pub(super) before: Arc<Config>,
    /// The kernel keeps the way back, for a successor.
    pub(super) kept: bool,
    /// A predecessor began it: how far it came is found out step by step.
    pub(super) resumed: bool,
    /// The kernel may keep sockets of before open until it is over.
    pub(super) has_aside: bool,
    /// Lower-case names of watchers a predecessor has begun to change: they are waited for, though
    /// nothing is left to begin.
    pub(super) begun: BTreeSet<String>,
    /// By lower-case name of a watcher that is reloaded: the generation before, for a successor.
    pub(super) rolls: BTreeMap<String, u64>,
    pub(super) reply: PlanReply,
    pub(super) stage: Stage,
    /// It is being taken back, for this reason.
    pub(super) undoing: Option<String>,
    /// Lower-case names of watchers that were given up and are tried again though the file says
    /// the same of them: their program or directory is another one now.
    pub(super) again: BTreeSet<String>,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// The file is being read.
    Reading,
    /// Sockets are being made.
    Sockets(Box<Next>),
    /// Watchers that come back under another name are being stopped: two of them cannot have what
    /// they bind.
    Vacating {
        leaving: Vec<WatcherId>,
        next: Box<Next>,
    },
    /// New and different watchers are on their way.
    Watchers {
        waiting: Vec<(WatcherId, Goal)>,
        /// Those before this one have got there; it is looked at first.
        open: usize,
        leaving: Vec<WatcherId>,
        sockets: Vec<SocketConfig>,
    },
    /// What is no longer named is being stopped.
    Leaving {
        leaving: Vec<WatcherId>,
        sockets: Vec<SocketConfig>,
    },
    /// Sockets that are no longer named are being closed.
    Closing,
}

impl Change {
    /// The file was read, and it is decided what to do.
    pub(super) fn is_read(&self) -> bool {
        !matches!(self.stage, Stage::Reading)
    }
}

impl Supervisor {
    /// Begins a change, or has it wait for the one under way.
    pub(super) fn ask_for_change(&mut self, request: Request, reply: oneshot::Sender<Reply>) {
        if let Err(error) = self.may_act() {
            return refuse(request, reply, &error);
        }
        if self.change.is_some() {
            if self.changes.len() < MAX_WAITING {
                self.changes.push_back((request, reply));
            } else {
                let reason = "too many changes of the configuration wait already";
                refuse(request, reply, &RequestError::new(Errno::Command, reason));
            }
            return;
        }
        let restart = matches!(request.command, Command::Restart(_));
        self.change = Some(Change {
            asker: Some((request, reply)),
            restart,
            before: self.config.clone(),
            kept: false,
            resumed: false,
            has_aside: false,
            begun: BTreeSet::new(),
            rolls: BTreeMap::new(),
            reply: PlanReply::default(),
            stage: Stage::Reading,
            undoing: None,
            again: BTreeSet::new(),
        });
        let (path, events) = (self.config.path.clone(), self.events.clone());
        let around = self.config.base.around.clone();
        tokio::task::spawn_blocking(move || {
            let read = load(&path, &around.again())
                .map(|config| {
                    let watchers = config.watchers.iter();
                    let changed_ms = watchers.map(|watcher| {
                        let changed_ms = inspect::changed_ms(watcher, &config.namespace);
                        (watcher.key.clone(), changed_ms)
                    });
                    ReadFile {
                        changed_ms: changed_ms.collect(),
                        config,
                    }
                })
                .map_err(|errors| errors.listed());
            let _ = events.blocking_send(Event::Read(Box::new(read)));
        });
    }

    /// The file was read.
    pub(super) fn read(&mut self, read: Result<ReadFile, String>) {
        let Some(mut change) = self.change.take() else {
            return;
        };
        if let Err(error) = self.may_act() {
            return self.end_change(change, &Err(error));
        }
        let ReadFile { config, changed_ms } = match read {
            Ok(read) => read,
            Err(mistakes) => {
                let reason = format!("nothing was changed:\n{mistakes}");
                return self.end_change(change, &Err(RequestError::new(Errno::Command, reason)));
            }
        };
        let next = self.compare(config);
        let mut rest = self.given_up(&next, &changed_ms, &mut change.again);
        rest.extend(self.drift(&next));
        change.reply = PlanReply {
            plan: plan::steps(&next.plan, &rest),
            needs_acceptance: self.needs_acceptance(&next),
            warnings: self.new_warnings(&next.config),
        };
        let only_asking = change.asker.as_ref().is_some_and(|(request, _)| {
            matches!(request.command, Command::ReloadConfig { plan: true, .. })
        });
        if only_asking {
            return self.end_change(change, &Ok(()));
        }
        let accepted = change.asker.as_ref().is_some_and(|(request, _)| {
            matches!(
                request.command,
                Command::ReloadConfig {
                    accept_removal: true,
                    ..
                }
            )
        });
        if let Some(why) = change.reply.needs_acceptance.clone().filter(|_| !accepted) {
            let reason = format!("nothing was changed: {why}");
            return self.end_change(change, &Err(RequestError::new(Errno::Command, reason)));
        }
        if self.connection.link().is_none() {
            return self.end_change(change, &Err(not_connected()));
        }
        tracing::info!(
            plan = plan::in_one_line(&next.plan),
            "applying the configuration"
        );
        if change
            .asker
            .as_ref()
            .is_some_and(|(request, _)| !request.waiting)
            && let Some((request, reply)) = change.asker.take()
        {
            answer(request, reply, Ok(&change.reply));
        }
        change.rolls = self.rolls(&next.plan);
        self.keep_change(&mut change);
        self.change_sockets(change, next);
    }

    /// Warnings that the file did not give when it was read last; the others have been said.
    fn new_warnings(&self, next: &Config) -> Vec<String> {
        let known = |message: &str| {
            let mut said = self.config.warnings.iter();
            said.any(|warning| warning.message == message)
        };
        let new = next.warnings.iter();
        new.filter(|warning| !known(&warning.message))
            .map(|warning| warning.labelled("warning"))
            .collect()
    }

    /// Of watchers whose workers are to be replaced one by one, which they have now.
    fn rolls(&self, plan: &Plan) -> BTreeMap<String, u64> {
        let rolled = plan.watchers.changed.iter();
        rolled
            .filter(|change| change.apply == Apply::Roll)
            .filter_map(|change| {
                let key = change.name.to_lowercase();
                let watcher = self.watchers.get(self.keys.get(&key)?)?;
                Some((key, watcher.kept().generation))
            })
            .collect()
    }

    /// Takes the next step of the change under way, if what it waits for has happened. True if so:
    /// then there may be more to do, of which no event tells.
    pub(super) fn advance_change(&mut self) -> bool {
        let Some(change) = &self.change else {
            return false;
        };
        match &change.stage {
            Stage::Reading | Stage::Sockets(_) | Stage::Closing => false,
            Stage::Vacating { leaving, .. } => {
                let gone = leaving.iter().all(|id| !self.watchers.contains_key(id));
                if gone && let Some(mut change) = self.change.take() {
                    match std::mem::replace(&mut change.stage, Stage::Reading) {
                        Stage::Vacating { next, .. } => self.change_all_watchers(change, *next),
                        stage => {
                            change.stage = stage;
                            self.change = Some(change);
                        }
                    }
                }
                gone
            }
            Stage::Watchers { .. } => self.advance_watchers(),
            Stage::Leaving { leaving, .. } => {
                let gone = leaving.iter().all(|id| !self.watchers.contains_key(id));
                if gone {
                    self.left();
                }
                gone
            }
        }
    }

    /// Goes on once all watchers that are new or different have got where they should, or failed.
    fn advance_watchers(&mut self) -> bool {
        let Some(mut change) = self.change.take() else {
            return false;
        };
        let mut failures: Option<Vec<String>> = None;
        if let Stage::Watchers { waiting, open, .. } = &mut change.stage {
            // One that is open keeps all waiting: the others are looked at when that one has got
            // there.
            let mut rest = waiting.iter().enumerate().skip(*open);
            let first = rest.find(|(_, one)| self.change_outcome(**one).is_none());
            if let Some((at, _)) = first {
                *open = at;
            } else {
                // Some may have been moved by a later request.
                let mut failed = Vec::new();
                let again = waiting
                    .iter()
                    .position(|one| match self.change_outcome(*one) {
                        None => true,
                        Some(outcome) => {
                            failed.extend(outcome.err());
                            false
                        }
                    });
                *open = again.unwrap_or(0);
                failures = again.is_none().then_some(failed);
            }
        }
        self.change = Some(change);
        let Some(failures) = failures else {
            return false;
        };
        self.watchers_changed(&failures);
        true
    }

    /// Whether one watcher of a change has got where it should; `None` while that is open.
    fn change_outcome(&mut self, (id, goal): (WatcherId, Goal)) -> Option<Result<(), String>> {
        // Somebody wants it stopped or removed by now, which is no failure of the change.
        if self
            .watchers
            .get(&id)
            .is_none_or(|known| known.is_stopped_on_request())
        {
            return Some(Ok(()));
        }
        self.outcome(goal, &[id])
    }

    /// The watcher that the change under way waits for.
    pub(super) fn change_waits_for(&self) -> Option<WatcherId> {
        match &self.change.as_ref()?.stage {
            Stage::Watchers { waiting, open, .. } => waiting.get(*open).map(|(id, _)| *id),
            _ => None,
        }
    }

    fn watchers_changed(&mut self, failures: &[String]) {
        let Some(mut change) = self.change.take() else {
            return;
        };
        let Stage::Watchers {
            mut leaving,
            sockets,
            ..
        } = std::mem::replace(&mut change.stage, Stage::Reading)
        else {
            return;
        };
        if !failures.is_empty() {
            let mut reason = failures.join("; ");
            let staying: Vec<&str> = leaving
                .iter()
                .filter_map(|id| self.watchers.get(id))
                .map(|watcher| watcher.config().name.as_str())
                .collect();
            if change.undoing.is_none() && !staying.is_empty() {
                let names = staying.join(", ");
                reason.push_str(&format!(
                    "; {names} would have been stopped only after that: if an address of theirs is in the way, `papactl stop` them first"
                ));
            }
            if change.undoing.is_none() {
                return self.take_back(change, reason);
            }
            tracing::error!(reason, "cannot restore part of the previous configuration");
        }
        // Those a predecessor has begun to stop have the sockets still.
        let removed = self.watchers.iter().filter(|(_, known)| known.is_removed());
        leaving.extend(removed.map(|(id, _)| *id));
        for id in &leaving {
            if let Some(watcher) = self.watchers.get_mut(id) {
                watcher.remove();
            }
        }
        change.stage = Stage::Leaving { leaving, sockets };
        self.change = Some(change);
    }

    /// Begins to restore the configuration before the change.
    fn take_back(&mut self, mut change: Change, reason: String) {
        tracing::error!(reason, "restoring the previous configuration");
        change.undoing = Some(reason);
        change.begun.clear();
        // Before that is kept: a successor must not take a reload that failed for one that takes
        // back.
        self.save();
        let next = self.compare(change.before.as_ref().clone());
        change.rolls = self.rolls(&next.plan);
        self.keep_change(&mut change);
        tracing::info!(
            plan = plan::in_one_line(&next.plan),
            "steps to restore the previous configuration"
        );
        self.change_sockets(change, next);
    }

    /// Every watcher that had to go is gone; so the sockets may, too.
    fn left(&mut self) {
        let Some(mut change) = self.change.take() else {
            return;
        };
        if let Stage::Leaving { sockets, .. } = std::mem::replace(&mut change.stage, Stage::Closing)
            && let Some(link) = self.connection.link()
            && (change.has_aside || !sockets.is_empty())
        {
            tasks::remove_sockets(link.clone(), sockets, self.events.clone());
            self.change = Some(change);
            return;
        }
        self.closed(change);
    }

    /// Everything that had to go is gone.
    fn closed(&mut self, mut change: Change) {
        let result = match change.undoing.take() {
            None => Ok(()),
            Some(reason) => Err(RequestError::new(
                Errno::Asynchronous,
                format!("everything was put back as it was: {reason}"),
            )),
        };
        self.end_change(change, &result);
    }

    /// The manager ends: what is under way is left as it is.
    pub(super) fn give_up_change(&mut self, why: &str) {
        let ending = RequestError::new(Errno::Command, why);
        let waiting = std::mem::take(&mut self.changes);
        let under_way = self
            .change
            .take()
            .and_then(|mut change| change.asker.take());
        if let Some((request, reply)) = under_way {
            refuse(request, reply, &ending);
        }
        let unheard = RequestError::new(Errno::Command, "the manager ends before it came to this");
        for (request, reply) in waiting {
            refuse(request, reply, &unheard);
        }
    }

    fn end_change(&mut self, mut change: Change, result: &Result<(), RequestError>) {
        // Before it is forgotten: what a reload returns to is in the change.
        self.save();
        self.forget_change(&change);
        match (change.asker.take(), result) {
            (Some((request, reply)), Ok(())) => answer(request, reply, Ok(&change.reply)),
            (Some((request, reply)), Err(error)) => refuse(request, reply, error),
            (None, Ok(())) => tracing::info!("configuration applied"),
            (None, Err(error)) => tracing::error!(%error, "configuration not applied"),
        }
        if let Some((request, reply)) = self.changes.pop_front() {
            self.ask_for_change(request, reply);
        }
    }

    /// Stops what only changes its name, then goes on with the watchers.
    fn change_watchers(&mut self, mut change: Change, next: Next) {
        let vacating = self.renamed(&next);
        if vacating.is_empty() {
            return self.change_all_watchers(change, next);
        }
        for id in &vacating {
            if let Some(watcher) = self.watchers.get_mut(id) {
                tracing::info!(
                    watcher = watcher.config().name,
                    "has another name now and is stopped first"
                );
                watcher.remove();
            }
        }
        change.stage = Stage::Vacating {
            leaving: vacating,
            next: Box::new(next),
        };
        self.change = Some(change);
    }

    /// Watchers that are to go while another with their very command comes that could not serve
    /// beside them.
    fn renamed(&self, next: &Next) -> Vec<WatcherId> {
        let added: Vec<&WatcherConfig> = next
            .plan
            .watchers
            .added
            .iter()
            .filter_map(|name| next.effective.watcher(name))
            .collect();
        let removed = next.plan.watchers.removed.iter();
        removed
            .filter_map(|name| self.keys.get(&name.to_lowercase()).copied())
            .filter(|id| {
                self.watchers.get(id).is_some_and(|watcher| {
                    let old = watcher.config();
                    !watcher.is_removed() && added.iter().any(|new| is_successor(old, new))
                })
            })
            .collect()
    }

    fn change_all_watchers(&mut self, mut change: Change, next: Next) {
        let Next {
            from,
            config,
            effective,
            set,
            plan,
        } = next;
        let sockets = plan
            .sockets
            .removed
            .iter()
            .filter_map(|name| from.sockets.iter().find(|socket| socket.name == *name))
            .cloned()
            .collect();
        let leaving: Vec<WatcherId> = plan
            .watchers
            .removed
            .iter()
            .filter_map(|name| self.keys.get(&name.to_lowercase()).copied())
            .collect();
        let failed = std::mem::replace(&mut self.config, Arc::new(config));
        self.retry_sockets();
        if change.undoing.is_some() {
            self.note_failed_releases(&failed, &effective);
        }
        let mut waiting = Vec::new();
        for watcher in effective.watchers {
            let overrides = set.get(&watcher.key).cloned().unwrap_or_default();
            let apply = plan.watcher(&watcher.key).map(|change| change.apply);
            let watcher = Arc::new(watcher);
            waiting.extend(self.change_watcher(watcher, overrides, apply, &change));
        }
        self.output.outdate();
        change.stage = Stage::Watchers {
            waiting,
            open: 0,
            leaving,
            sockets,
        };
        self.change = Some(change);
    }

    /// What a change that is taken back led to is not what a deleted release is replaced by.
    fn note_failed_releases(&mut self, failed: &Config, before: &Config) {
        for watcher in &before.watchers {
            let release = failed
                .watcher(&watcher.name)
                .and_then(WatcherConfig::release);
            let known = self.keys.get(&watcher.key);
            if let Some(known) = known.and_then(|id| self.watchers.get_mut(id))
                && let Some(release) =
                    release.filter(|release| watcher.release().as_ref() != Some(release))
            {
                known.note_failed_release(release);
            }
        }
    }

    fn change_watcher(
        &mut self,
        config: Arc<WatcherConfig>,
        overrides: Overrides,
        apply: Option<Apply>,
        change: &Change,
    ) -> Option<(WatcherId, Goal)> {
        let Some(id) = self.keys.get(&config.key).copied() else {
            let autostart = config.autostart;
            let id = self.insert(config, Kept::default());
            self.start_order.push(id);
            return autostart.then_some((id, Goal::Up));
        };
        let watcher = self.watchers.get_mut(&id)?;
        if watcher.is_removed() {
            // It was on its way out: it comes back when it is out.
            watcher.come_back(config);
            return Some((id, Goal::Up));
        }
        let running = watcher.is_wanted();
        let mended = apply.is_some() || change.again.contains(&config.key);
        if watcher.has_given_up() && mended && change.undoing.is_none() {
            // The trouble may have been mended. It is not waited for: others are not to suffer if
            // it was not.
            tracing::info!(
                watcher = config.name,
                "was given up; tries again, because its settings, program or directory changed"
            );
            watcher.configure(config);
            watcher.set_options(overrides.options, overrides.env);
            watcher.start();
            return None;
        }
        let goal = match apply {
            _ if change.restart && watcher.config().autostart => {
                watcher.configure(config);
                watcher.restart();
                Some(Goal::Up)
            }
            None if running && change.begun.contains(&config.key) => {
                let goal = if watcher.is_rolling() {
                    Goal::Reloaded
                } else {
                    Goal::Up
                };
                return Some((id, goal));
            }
            None => return None,
            Some(Apply::Restart) if running => {
                watcher.configure(config);
                watcher.restart();
                Some(Goal::Up)
            }
            Some(Apply::Roll) if running => {
                let takes_back =
                    change.undoing.is_some() && diff_watcher(watcher.config(), &config).is_some();
                let begun = watcher.reload(config, false);
                if takes_back {
                    watcher.note_taking_back();
                }
                begun.then_some(Goal::Reloaded)
            }
            Some(Apply::InPlace | Apply::Roll | Apply::Restart) => {
                watcher.configure(config);
                None
            }
        };
        watcher.set_options(overrides.options, overrides.env);
        goal.map(|goal| (id, goal))
    }
}

/// Its command and the address it is known to serve by are the same, and that address is no socket
/// of ours that both could have.
fn is_successor(old: &WatcherConfig, new: &WatcherConfig) -> bool {
    let by_address = matches!(new.ready, Some(Readiness::Tcp(_) | Readiness::Http(_)));
    by_address
        && new.sockets.is_empty()
        && new.stdin_socket.is_none()
        && new.ready == old.ready
        && new.argv_template == old.argv_template
}
