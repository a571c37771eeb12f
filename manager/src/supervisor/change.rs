//! `reloadconfig`: from the file to what runs, as a transaction.
//!
//! Owns the steps of a change and their order: read, compare, sockets, watchers that are new or different, and only when all of those
//! serve, what is no longer in the file. Anything that fails on the way leads back to the configuration before, by the same steps.
//! Leaves to others: what differs and how it is applied (`config::diff`), a reload (`watcher`).
//! Invariant: one change at a time; a file with a mistake changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::config::change::{Given, with_options};
use crate::config::diff::{Apply, KeyChange, Plan, WatcherChange, diff};
use crate::config::{Config, SocketConfig, Surroundings, WatcherConfig, load};
use crate::control::message::{Command, Errno, PlanReply, Reply, Request, RequestError};
use crate::state::Kept;
use crate::supervisor::requests::not_connected;
use crate::supervisor::tasks::Replacement;
use crate::supervisor::tickets::{Goal, answer, refuse};
use crate::supervisor::{Event, Supervisor, WatcherId, plan, tasks};
use crate::watcher::Watcher;

/// Changes that wait for the one under way; nobody needs more.
const MAX_WAITING: usize = 64;

/// A change under way.
#[derive(Debug)]
pub(super) struct Change {
    /// Who asked, until answered.
    asker: Option<(Request, oneshot::Sender<Reply>)>,
    /// Everything is restarted, different or not.
    restart: bool,
    /// What to return to.
    before: Arc<Config>,
    reply: PlanReply,
    stage: Stage,
    /// It is being taken back, for this reason.
    undoing: Option<String>,
}

#[derive(Debug)]
enum Stage {
    /// The file is being read.
    Reading,
    /// Sockets are being made.
    Sockets(Box<Next>),
    /// New and different watchers are on their way.
    Watchers {
        waiting: Vec<(WatcherId, Goal)>,
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

/// Where a change leads.
#[derive(Debug)]
struct Next {
    /// As the file has it.
    config: Config,
    /// With what was set at run time.
    effective: Config,
    /// What of that is kept, by lower-case name.
    set: BTreeMap<String, Overrides>,
    plan: Plan,
}

/// What was set at run time.
#[derive(Debug, Clone, Default, PartialEq)]
struct Overrides {
    options: BTreeMap<String, String>,
    env: Option<BTreeMap<String, String>>,
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
            reply: PlanReply::default(),
            stage: Stage::Reading,
            undoing: None,
        });
        let (path, events) = (self.config.path.clone(), self.events.clone());
        tokio::task::spawn_blocking(move || {
            let read = Surroundings::current()
                .map_err(|error| format!("where we are is unknown: {error}"))
                .and_then(|around| load(&path, &around).map_err(|errors| errors.to_string()));
            let _ = events.blocking_send(Event::Read(Box::new(read)));
        });
    }

    /// The file was read.
    pub(super) fn read(&mut self, read: Result<Config, String>) {
        let Some(mut change) = self.change.take() else {
            return;
        };
        if let Err(error) = self.may_act() {
            return self.end_change(change, &Err(error));
        }
        let config = match read {
            Ok(config) => config,
            Err(mistakes) => {
                let reason = format!("nothing was changed:\n{mistakes}");
                return self.end_change(change, &Err(RequestError::new(Errno::Command, reason)));
            }
        };
        let next = self.compare(config);
        change.reply = PlanReply {
            plan: plan::steps(&next.plan, &self.drift()),
            warnings: next
                .config
                .warnings
                .iter()
                .map(ToString::to_string)
                .collect(),
        };
        let only_asking = change.asker.as_ref().is_some_and(|(request, _)| {
            matches!(request.command, Command::ReloadConfig { plan: true })
        });
        if only_asking {
            return self.end_change(change, &Ok(()));
        }
        if self.link.is_none() {
            return self.end_change(change, &Err(not_connected()));
        }
        tracing::info!(plan = %next.plan, "applying the configuration");
        if change
            .asker
            .as_ref()
            .is_some_and(|(request, _)| !request.waiting)
            && let Some((request, reply)) = change.asker.take()
        {
            answer(request, reply, Ok(&change.reply));
        }
        self.change_sockets(change, next);
    }

    /// The sockets of a change are there, or something is in the way.
    pub(super) fn sockets_changed(&mut self, result: Result<(), String>) {
        let Some(mut change) = self.change.take() else {
            return;
        };
        let next = match std::mem::replace(&mut change.stage, Stage::Reading) {
            Stage::Sockets(next) => next,
            Stage::Closing => return self.closed(change),
            other => {
                change.stage = other;
                self.change = Some(change);
                return;
            }
        };
        if let Err(error) = self.may_act() {
            return self.end_change(change, &Err(error));
        }
        match result {
            Ok(()) => self.change_watchers(change, *next),
            Err(reason) if change.undoing.is_some() => {
                tracing::error!(reason, "a socket cannot be put back");
                let why = change.undoing.take().unwrap_or_default();
                change.undoing = Some(format!("{why}; but {reason}"));
                self.change_watchers(change, *next);
            }
            Err(reason) => {
                let reason = format!("nothing was changed: {reason}");
                self.end_change(change, &Err(RequestError::new(Errno::Command, reason)));
            }
        }
    }

    /// Takes the next step of the change under way, if what it waits for has happened. True if so: then there may be more to do, of
    /// which no event tells.
    pub(super) fn advance_change(&mut self) -> bool {
        let Some(change) = &self.change else {
            return false;
        };
        match &change.stage {
            Stage::Reading | Stage::Sockets(_) | Stage::Closing => false,
            Stage::Watchers { waiting, .. } => {
                let mut failures = Vec::new();
                for (id, goal) in waiting {
                    // Somebody wants it stopped or removed by now, which is no failure of the change.
                    if self
                        .watchers
                        .get(id)
                        .is_none_or(|known| known.is_stopped_on_request())
                    {
                        continue;
                    }
                    match self.outcome(*goal, &[*id]) {
                        None => return false,
                        Some(Ok(())) => {}
                        Some(Err(reason)) => failures.push(reason),
                    }
                }
                self.watchers_changed(&failures);
                true
            }
            Stage::Leaving { leaving, .. } => {
                let gone = leaving.iter().all(|id| !self.watchers.contains_key(id));
                if gone {
                    self.left();
                }
                gone
            }
        }
    }

    fn watchers_changed(&mut self, failures: &[String]) {
        let Some(mut change) = self.change.take() else {
            return;
        };
        let Stage::Watchers {
            leaving, sockets, ..
        } = std::mem::replace(&mut change.stage, Stage::Reading)
        else {
            return;
        };
        if !failures.is_empty() {
            let reason = failures.join("; ");
            if change.undoing.is_none() {
                tracing::error!(reason, "the configuration is taken back");
                change.undoing = Some(reason);
                let next = self.compare(change.before.as_ref().clone());
                return self.change_sockets(change, next);
            }
            tracing::error!(reason, "something could not be put back");
        }
        for id in &leaving {
            if let Some(watcher) = self.watchers.get_mut(id) {
                watcher.remove();
            }
        }
        change.stage = Stage::Leaving { leaving, sockets };
        self.change = Some(change);
    }

    /// Every watcher that had to go is gone; so the sockets may, too.
    fn left(&mut self) {
        let Some(mut change) = self.change.take() else {
            return;
        };
        if let Stage::Leaving { sockets, .. } = std::mem::replace(&mut change.stage, Stage::Closing)
            && let Some(link) = &self.link
            && !sockets.is_empty()
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
    pub(super) fn give_up_change(&mut self) {
        let ending = RequestError::new(Errno::Command, "the manager is ending");
        let waiting = std::mem::take(&mut self.changes);
        let under_way = self
            .change
            .take()
            .and_then(|mut change| change.asker.take());
        for (request, reply) in under_way.into_iter().chain(waiting) {
            refuse(request, reply, &ending);
        }
    }

    fn end_change(&mut self, mut change: Change, result: &Result<(), RequestError>) {
        match (change.asker.take(), result) {
            (Some((request, reply)), Ok(())) => answer(request, reply, Ok(&change.reply)),
            (Some((request, reply)), Err(error)) => refuse(request, reply, error),
            (None, Ok(())) => tracing::info!("the configuration is applied"),
            (None, Err(error)) => tracing::error!(%error, "the configuration is not applied"),
        }
        if let Some((request, reply)) = self.changes.pop_front() {
            self.ask_for_change(request, reply);
        }
    }

    /// Compares what runs with a file.
    fn compare(&self, mut config: Config) -> Next {
        // These two hold for the life of the manager; the plan names them.
        let namespace = std::mem::replace(&mut config.namespace, self.config.namespace.clone());
        let mut effective = config.clone();
        let mut set = BTreeMap::new();
        for watcher in &mut effective.watchers {
            let overrides = self.overrides(&config, watcher);
            if overrides != Overrides::default() {
                let given = Given {
                    options: &overrides.options,
                    env: overrides.env.as_ref(),
                };
                match with_options(&config, &watcher.name, given) {
                    Ok(changed) => *watcher = changed,
                    Err(errors) => {
                        tracing::warn!(watcher = watcher.name, %errors, "what was set at run time does not fit the file and is dropped");
                        continue;
                    }
                }
                set.insert(watcher.key.clone(), overrides);
            }
        }
        let before = self.effective();
        let mut shown = effective.clone();
        shown.namespace = namespace;
        let mut plan = diff(&before, &shown);
        self.plan_outdated(&mut plan, &effective);
        Next {
            plan,
            config,
            effective,
            set,
        }
    }

    /// Workers a predecessor started with other settings are replaced too, although the file has not changed since we read it.
    fn plan_outdated(&self, plan: &mut Plan, next: &Config) {
        for config in &next.watchers {
            let known = self
                .keys
                .get(&config.key)
                .and_then(|id| self.watchers.get(id));
            let outdated = known.map_or(0, Watcher::outdated);
            if outdated == 0 {
                continue;
            }
            let apply = if config.singleton {
                Apply::Restart
            } else {
                Apply::Roll
            };
            let key = KeyChange {
                key: format!("{outdated} running with settings of an earlier file"),
                old: None,
                new: None,
            };
            let mut changed = plan.watchers.changed.iter_mut();
            match changed.find(|change| change.name.to_lowercase() == config.key) {
                Some(change) => {
                    change.apply = change.apply.max(apply);
                    change.keys.push(key);
                }
                None => plan.watchers.changed.push(WatcherChange {
                    name: config.name.clone(),
                    apply,
                    keys: vec![key],
                    sockets: Vec::new(),
                }),
            }
        }
    }

    /// The configuration that runs: the file's, with what was set since, and without what is leaving.
    fn effective(&self) -> Config {
        let mut config = self.config.as_ref().clone();
        config.watchers = self
            .start_order()
            .iter()
            .filter_map(|id| self.watchers.get(id))
            .filter(|watcher| !watcher.is_removed())
            .map(|watcher| watcher.config().as_ref().clone())
            .collect();
        config
    }

    /// What was set at run time and holds still: where the file says something else than it did, the file is right.
    fn overrides(&self, next: &Config, watcher: &WatcherConfig) -> Overrides {
        let known = self
            .keys
            .get(&watcher.key)
            .and_then(|id| self.watchers.get(id));
        let (Some(known), Some(before), Some(after)) = (
            known,
            self.config.watcher(&watcher.name),
            next.watcher(&watcher.name),
        ) else {
            return Overrides::default();
        };
        let same = |key: &String| before.options.get(key) == after.options.get(key);
        let kept = known.kept();
        Overrides {
            options: kept
                .set
                .iter()
                .filter(|(key, _)| same(key))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            env: kept.env.clone(),
        }
    }

    fn change_sockets(&mut self, mut change: Change, next: Next) {
        let find = |config: &Config, name: &String| {
            config
                .sockets
                .iter()
                .find(|socket| socket.name == *name)
                .cloned()
        };
        let added: Vec<SocketConfig> = next
            .plan
            .sockets
            .added
            .iter()
            .filter_map(|name| find(&next.config, name))
            .collect();
        let recreated: Vec<Replacement> = next
            .plan
            .sockets
            .changed
            .iter()
            .filter(|socket| socket.recreated)
            .filter_map(|socket| {
                Some(Replacement {
                    before: find(&self.config, &socket.name)?,
                    after: find(&next.config, &socket.name)?,
                    held_by: self.holders(&socket.name),
                })
            })
            .collect();
        let link = self.link.clone();
        match link {
            Some(link) if !(added.is_empty() && recreated.is_empty()) => {
                change.stage = Stage::Sockets(Box::new(next));
                self.change = Some(change);
                tasks::change_sockets(link, added, recreated, self.events.clone());
            }
            _ => self.change_watchers(change, next),
        }
    }

    /// Watchers that have workers with this socket.
    fn holders(&self, socket: &String) -> Vec<String> {
        let holds = |config: &WatcherConfig| {
            config.sockets.contains(socket) || config.stdin_socket.as_ref() == Some(socket)
        };
        self.watchers
            .values()
            .filter(|watcher| !watcher.workers().is_empty() && holds(watcher.config()))
            .map(|watcher| watcher.config().name.clone())
            .collect()
    }

    /// Sockets are being closed and opened again: nobody else may have them now.
    pub(super) fn is_changing_sockets(&self) -> bool {
        matches!(
            self.change,
            Some(Change {
                stage: Stage::Sockets(_),
                ..
            })
        )
    }

    fn change_watchers(&mut self, mut change: Change, next: Next) {
        let Next {
            config,
            effective,
            set,
            plan,
        } = next;
        let sockets = plan
            .sockets
            .removed
            .iter()
            .filter_map(|name| {
                self.config
                    .sockets
                    .iter()
                    .find(|socket| socket.name == *name)
            })
            .cloned()
            .collect();
        let leaving: Vec<WatcherId> = plan
            .watchers
            .removed
            .iter()
            .filter_map(|name| self.keys.get(&name.to_lowercase()).copied())
            .collect();
        self.config = Arc::new(config);
        let mut waiting = Vec::new();
        for watcher in effective.watchers {
            let overrides = set.get(&watcher.key).cloned().unwrap_or_default();
            let apply = plan.watcher(&watcher.key).map(|change| change.apply);
            let watcher = Arc::new(watcher);
            waiting.extend(self.change_watcher(watcher, overrides, apply, change.restart));
        }
        self.update_logs();
        change.stage = Stage::Watchers {
            waiting,
            leaving,
            sockets,
        };
        self.change = Some(change);
    }

    fn change_watcher(
        &mut self,
        config: Arc<WatcherConfig>,
        overrides: Overrides,
        apply: Option<Apply>,
        restart: bool,
    ) -> Option<(WatcherId, Goal)> {
        let Some(id) = self.keys.get(&config.key).copied() else {
            let autostart = config.autostart;
            let id = self.insert(config, Kept::default());
            self.queue.push_back(id);
            return autostart.then_some((id, Goal::Up));
        };
        let watcher = self.watchers.get_mut(&id)?;
        if watcher.is_removed() {
            // It was on its way out: it comes back when it is out.
            watcher.come_back(config);
            return Some((id, Goal::Up));
        }
        let running = watcher.is_wanted();
        let goal = match apply {
            _ if restart && watcher.config().autostart => {
                watcher.configure(config);
                watcher.restart();
                Some(Goal::Up)
            }
            None => return None,
            Some(Apply::Restart) if running => {
                watcher.configure(config);
                watcher.restart();
                Some(Goal::Up)
            }
            Some(Apply::Roll) if running => watcher.reload(config, false).then_some(Goal::Reloaded),
            Some(Apply::InPlace | Apply::Roll | Apply::Restart) => {
                watcher.configure(config);
                None
            }
        };
        watcher.set_options(overrides.options, overrides.env);
        goal.map(|goal| (id, goal))
    }
}
