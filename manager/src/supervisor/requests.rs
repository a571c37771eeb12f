//! Requests from the control socket: what each does, and when it is answered.
//!
//! Owns the requests that act on watchers there are. Leaves to others: what only looks (`queries`),
//! what changes the configuration (`change`), the answer to who waits (`tickets`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::config::known::MAX_WORKERS;
use crate::control::events::EventKind;
use crate::control::message::{
    Command, Errno, NumProcessesReply, Reach, ReloadHow, Reply, Request, RequestError, Selection,
};
use crate::control::message::{Kill, Signal};
use crate::control::server::{Asked, now};
use crate::pidfd::Whom;
use crate::supervisor::tickets::{Body, Goal, Ticket, answer, done, refuse};
use crate::supervisor::{Supervisor, WatcherId, tasks};
use crate::watcher::Watcher;
use crate::worker::Running;

/// How long the kernel may be away before those are told who asked while it was there; after a
/// crash it is back sooner.
const LOST_PATIENCE: Duration = Duration::from_secs(3);

impl Supervisor {
    pub(super) fn asked(&mut self, asked: Asked) {
        let kernel_needed = acts(&asked.request.command)
            || (self.connection.lost_since().is_some() && needs_kernel(&asked.request.command));
        let unready = self.ending.is_attaching() || self.connection.lost_since().is_some();
        if unready && kernel_needed {
            // What the kernel keeps comes first: this is asked of what there was.
            let surplus = self.open_requests.wait_for_kernel(asked, Instant::now());
            if let Some(asked) = surplus {
                refuse(asked.request, asked.reply, &not_connected());
            }
            return;
        }
        let Asked { request, mut reply } = asked;
        if acts(&request.command) {
            reply = self.outbox.when_kept(reply);
        }
        let command = request.command.clone();
        match command {
            Command::Start(selection) => match self.choose(&selection, true) {
                Ok(chosen) => {
                    let all = self.with_dependencies(&chosen);
                    self.leave_deleted_releases(&all);
                    self.act(&all, Watcher::start);
                    self.wait(request, reply, chosen, Goal::Up);
                }
                Err(error) => refuse(request, reply, &error),
            },
            Command::Stop(selection) => match self.choose(&selection, false) {
                Ok(chosen) => {
                    self.act(&chosen, Watcher::stop);
                    self.wait(request, reply, chosen, Goal::Stopped);
                }
                Err(error) => refuse(request, reply, &error),
            },
            // Without a name everything begins anew, the file included, as in Circus.
            Command::Restart(Selection { name: None, .. }) => {
                self.ask_for_change(request, reply);
            }
            Command::Restart(selection) => match self.choose(&selection, true) {
                Ok(chosen) => {
                    self.leave_deleted_releases(&chosen);
                    self.act(&chosen, Watcher::restart);
                    self.wait(request, reply, chosen, Goal::Up);
                }
                Err(error) => refuse(request, reply, &error),
            },
            Command::Reload { selection, how } => self.reload(request, reply, &selection, how),
            Command::ReloadConfig { .. } => self.ask_for_change(request, reply),
            Command::Add(add) => self.add(request, reply, add),
            Command::Rm { name, nostop } => self.remove(request, reply, &name, nostop),
            Command::Incr { name, by } => {
                self.recount(request, reply, &name, |count| count.saturating_add(by));
            }
            Command::Decr { name, by } => {
                self.recount(request, reply, &name, |count| count.saturating_sub(by));
            }
            Command::Set { name, options } => self.set(request, reply, &name, options),
            Command::Signal(signal) => self.signal(request, reply, &signal),
            Command::Kill(kill) => self.kill(request, reply, &kill),
            Command::Quit => {
                // Answered first: the connection ends with us.
                done(request, reply);
                self.quit();
            }
            Command::Shutdown if self.connection.link().is_none() => {
                let reason = "the kernel is not connected, so its workers cannot be stopped; `quit` ends the manager";
                refuse(request, reply, &RequestError::new(Errno::Command, reason));
            }
            Command::Shutdown => self.shut_down(request, reply),
            Command::Upgrade => match self.may_act() {
                Ok(()) => self.ask_for_upgrade(Some((request, reply))),
                Err(error) => refuse(request, reply, &error),
            },
            Command::ReopenLogs => {
                self.output.reopen();
                done(request, reply);
            }
            Command::Listen(listen) => {
                let log = &mut self.announcements.log;
                log.fetch(&listen, &request, reply, now());
            }
            // What only looks.
            Command::Status { .. }
            | Command::List { .. }
            | Command::NumProcesses { .. }
            | Command::NumWatchers
            | Command::Get { .. }
            | Command::Options { .. }
            | Command::GlobalOptions { .. }
            | Command::Stats { .. }
            | Command::DStats
            | Command::ListSockets
            | Command::Logs { .. }
            | Command::Doctor => self.look(request, reply),
        }
    }

    /// HUP: every watcher that runs is reloaded; the file is not read again, as in Circus.
    pub(super) fn reload_all(&mut self) {
        match self.choose(&Selection::all(), false) {
            Ok(chosen) => {
                for id in self.running_ones(chosen) {
                    self.reload_one(id, ReloadHow::Graceful);
                }
            }
            Err(error) => tracing::warn!(%error, "nothing reloaded"),
        }
    }

    /// Whether anything may be asked of watchers still.
    pub(super) fn may_act(&self) -> Result<(), RequestError> {
        self.ending.may_act()
    }

    /// The watchers meant. Without a name, starting leaves out those that are not started by
    /// themselves.
    pub(super) fn choose(
        &self,
        selection: &Selection,
        starting: bool,
    ) -> Result<Vec<WatcherId>, RequestError> {
        self.may_act()?;
        let matcher = selection.matcher();
        let matching = self.watchers.iter().filter(|(_, watcher)| {
            let config = watcher.config();
            !watcher.is_removed()
                && matcher.matches(&config.key)
                && (selection.name.is_some() || !starting || config.autostart)
        });
        let chosen: Vec<WatcherId> = matching.map(|(id, _)| *id).collect();
        match &selection.name {
            Some(name) if chosen.is_empty() => Err(RequestError::unknown_watcher(name)),
            _ => Ok(chosen),
        }
    }

    /// The one watcher of that name, if anything may be asked of it.
    pub(super) fn chosen(&self, name: &str) -> Result<WatcherId, RequestError> {
        self.may_act()?;
        self.keys
            .get(&name.to_lowercase())
            .copied()
            .filter(|id| {
                self.watchers
                    .get(id)
                    .is_some_and(|known| !known.is_removed())
            })
            .ok_or_else(|| RequestError::unknown_watcher(name))
    }

    /// A person asks for workers of watchers whose release was deleted: those start where the links
    /// lead now, whatever came of it before.
    fn leave_deleted_releases(&mut self, chosen: &[WatcherId]) {
        for id in chosen {
            if let Some(watcher) = self.watchers.get_mut(id)
                && let Some(deleted) = watcher.config().deleted_release()
            {
                let config = watcher.config().followed();
                let deleted = deleted.display();
                let watcher_name = &config.name;
                tracing::warn!(watcher = watcher_name, %deleted, to = %config.resolved_dir.display(), "the release was deleted; taking the one the link leads to");
                watcher.configure(Arc::new(config));
            }
        }
    }

    fn act(&mut self, chosen: &[WatcherId], act: fn(&mut Watcher)) {
        for id in chosen {
            if let Some(watcher) = self.watchers.get_mut(id) {
                act(watcher);
            }
        }
    }

    /// Answers when the watchers have got there, if that is wanted, else at once.
    pub(super) fn wait(
        &mut self,
        request: Request,
        reply: oneshot::Sender<Reply>,
        watchers: Vec<WatcherId>,
        goal: Goal,
    ) {
        if !request.waiting {
            return done(request, reply);
        }
        let one = watchers.len() == 1 && goal != Goal::Stopped;
        let body = if one {
            Body::Info(self.pids(&watchers))
        } else {
            Body::Nothing
        };
        self.open_requests.wait(Ticket {
            request,
            reply,
            watchers,
            goal,
            open: 0,
            body,
        });
    }

    fn reload(
        &mut self,
        request: Request,
        reply: oneshot::Sender<Reply>,
        selection: &Selection,
        how: ReloadHow,
    ) {
        let chosen = match self.choose(selection, false) {
            Ok(chosen) => chosen,
            Err(error) => return refuse(request, reply, &error),
        };
        // One that is named is started if it is stopped; "all" means all that run.
        let chosen = match selection.name {
            Some(_) => chosen,
            None => self.running_ones(chosen),
        };
        let before = self.pids(&chosen);
        for id in &chosen {
            self.reload_one(*id, how);
        }
        if !request.waiting {
            return done(request, reply);
        }
        self.open_requests.wait(Ticket {
            body: if chosen.len() == 1 {
                Body::Info(before)
            } else {
                Body::Nothing
            },
            request,
            reply,
            watchers: chosen,
            goal: Goal::Reloaded,
            open: 0,
        });
    }

    fn running_ones(&self, mut chosen: Vec<WatcherId>) -> Vec<WatcherId> {
        chosen.retain(|id| self.watchers.get(id).is_some_and(Watcher::is_wanted));
        chosen
    }

    pub(super) fn reload_one(&mut self, id: WatcherId, how: ReloadHow) {
        let Some(watcher) = self.watchers.get_mut(&id) else {
            return;
        };
        let config = match watcher.config().deleted_release() {
            Some(_) => Arc::new(watcher.config().followed()),
            None => watcher.config().clone(),
        };
        self.signals.forget_hangups(id);
        tracing::info!(watcher = config.name, ?how, "asked to reload");
        if !watcher.is_wanted() {
            watcher.configure(config);
            return watcher.start();
        }
        match how {
            ReloadHow::Terminate => {
                watcher.configure(config);
                watcher.restart();
            }
            ReloadHow::Graceful if config.send_hup => {
                let running: Vec<Running> = watcher
                    .workers()
                    .values()
                    .filter(|worker| worker.is_wanted())
                    .filter_map(|worker| worker.process().copied())
                    .collect();
                watcher.refreshed();
                let mut sent = Vec::new();
                if let Some(link) = self.connection.link() {
                    for process in running {
                        sent.push(tasks::signal(
                            link.clone(),
                            process,
                            nix::libc::SIGHUP,
                            Whom::Worker,
                            self.events.clone(),
                        ));
                    }
                }
                self.signals.hang_up(id, sent);
            }
            ReloadHow::Graceful | ReloadHow::Sequential => {
                watcher.reload(config, how == ReloadHow::Sequential);
            }
        }
    }

    fn recount(
        &mut self,
        request: Request,
        reply: oneshot::Sender<Reply>,
        name: &str,
        change: impl FnOnce(u32) -> u32,
    ) {
        let id = match self.chosen(name) {
            Ok(id) => id,
            Err(error) => return refuse(request, reply, &error),
        };
        let Some(watcher) = self.watchers.get_mut(&id) else {
            return;
        };
        let singleton = watcher.config().singleton;
        if !singleton {
            watcher.set_count(change(watcher.count()).min(MAX_WORKERS));
        }
        if request.waiting && !singleton && watcher.is_wanted() {
            self.open_requests.wait(Ticket {
                request,
                reply,
                watchers: vec![id],
                goal: Goal::Settled,
                open: 0,
                body: Body::Count,
            });
            return;
        }
        let body = NumProcessesReply {
            numprocesses: u64::from(watcher.count()),
            watcher_name: None,
            singleton,
        };
        answer(request, reply, Ok(&body));
    }

    fn signal(&mut self, request: Request, reply: oneshot::Sender<Reply>, signal: &Signal) {
        let id = match self.chosen(&signal.name) {
            Ok(id) => id,
            Err(error) => return refuse(request, reply, &error),
        };
        let Some(link) = self.connection.link().cloned() else {
            return refuse(request, reply, &not_connected());
        };
        let meant = self.processes(id, signal.pid);
        if meant.is_empty() {
            let reason = match signal.pid {
                Some(pid) => format!("{} has no worker with pid {pid}", signal.name),
                None => format!("{} has no workers", signal.name),
            };
            return refuse(request, reply, &RequestError::new(Errno::Message, reason));
        }
        let whom = match signal.reach {
            Reach::Worker => Whom::Worker,
            Reach::Children => Whom::Children,
            Reach::Tree => Whom::Tree,
            Reach::Child(pid) => Whom::Child(i32::try_from(pid).unwrap_or(0)),
        };
        let mut sent = Vec::new();
        for process in meant {
            tracing::info!(pid = process.pid, signal = %signal.signal, "signalling on request");
            let (number, events) = (signal.signal.number(), self.events.clone());
            sent.push(tasks::signal(link.clone(), process, number, whom, events));
        }
        tokio::spawn(async move {
            let mut failures = Vec::new();
            for one in sent {
                let told = one.await;
                let told = told.unwrap_or_else(|_| Err("the manager is ending".to_owned()));
                failures.extend(told.err());
            }
            if failures.is_empty() {
                return done(request, reply);
            }
            let error = RequestError::new(Errno::Asynchronous, failures.join("; "));
            refuse(request, reply, &error);
        });
    }

    fn kill(&mut self, request: Request, reply: oneshot::Sender<Reply>, kill: &Kill) {
        let id = match self.chosen(&kill.name) {
            Ok(id) => id,
            Err(error) => return refuse(request, reply, &error),
        };
        let Some(link) = self.connection.link().cloned() else {
            return refuse(request, reply, &not_connected());
        };
        let at = self.moment();
        let Some(watcher) = self.watchers.get_mut(&id) else {
            return;
        };
        let config = watcher.config().clone();
        let grace: Duration = kill.graceful_timeout.unwrap_or(config.graceful_timeout);
        let pid = kill.pid.and_then(|pid| i32::try_from(pid).ok());
        let asked = watcher.end_workers(pid, kill.signal, grace, &at);
        if asked.is_empty() && kill.pid.is_some() {
            let reason = format!("{} has no worker with that pid to end", config.name);
            return refuse(request, reply, &RequestError::new(Errno::Message, reason));
        }
        let signal = kill.signal.unwrap_or(config.stop_signal).number();
        let reach = tasks::stop_reach(config.stop_children);
        for process in asked {
            let pid = process.pid.unsigned_abs();
            self.publish(id, &EventKind::Kill { pid, signal });
            self.send_stop(id, process, signal, reach, &link);
        }
        self.wait(request, reply, vec![id], Goal::Settled);
    }

    /// The processes of a watcher's workers, or the one with that pid.
    fn processes(&self, id: WatcherId, pid: Option<u32>) -> Vec<Running> {
        let workers = self
            .watchers
            .get(&id)
            .map(|watcher| watcher.workers().values());
        workers
            .into_iter()
            .flatten()
            .filter_map(|worker| worker.process().copied())
            .filter(|process| pid.is_none_or(|pid| pid == process.pid.unsigned_abs()))
            .collect()
    }
}

impl Supervisor {
    /// Does what was asked while there was no kernel.
    pub(super) fn ask_early(&mut self) {
        for asked in self.open_requests.take_early() {
            self.asked(asked);
        }
    }

    /// Refuses what has waited for the kernel for long enough; nothing of it was begun.
    pub(super) fn refuse_late(&mut self, now: Instant) {
        for asked in self.open_requests.take_late(now) {
            refuse(asked.request, asked.reply, &not_connected());
        }
        if self.lost_for_good().is_some_and(|at| now >= at) {
            for (request, reply) in self.take_askers() {
                refuse(request, reply, &lost());
            }
        }
    }

    /// When whoever asked before the kernel was lost is told that it is; none while it is there.
    fn lost_for_good(&self) -> Option<Instant> {
        Some(self.connection.lost_since()? + LOST_PATIENCE)
    }

    /// Everybody who waits for something that cannot be done without the kernel.
    fn take_askers(&mut self) -> Vec<(Request, oneshot::Sender<Reply>)> {
        let tickets = self.open_requests.take_tickets().into_iter();
        let mut askers: Vec<_> = tickets
            .map(|ticket| (ticket.request, ticket.reply))
            .collect();
        askers.extend(self.ending.take_askers());
        // While the file is read the asker says what is to come of it, and the kernel is not
        // needed.
        let change = self.change.as_mut().filter(|change| change.is_read());
        askers.extend(change.and_then(|change| change.asker.take()));
        askers
    }

    fn has_askers(&self) -> bool {
        let stopping = self.ending.has_askers();
        let change = self.change.as_ref().filter(|change| change.is_read());
        stopping
            || self.open_requests.has_tickets()
            || change.is_some_and(|change| change.asker.is_some())
    }

    pub(super) fn late_deadline(&self) -> Option<Instant> {
        let early = self.open_requests.late_at();
        let lost = self.lost_for_good().filter(|_| self.has_askers());
        early.into_iter().chain(lost).min()
    }
}

/// Whether a command cannot be done without the kernel, besides those that act on watchers.
fn needs_kernel(command: &Command) -> bool {
    matches!(
        command,
        Command::Signal(_) | Command::Kill(_) | Command::Shutdown
    )
}

/// Whether a command is about watchers and what they are to do.
fn acts(command: &Command) -> bool {
    matches!(
        command,
        Command::Start(_)
            | Command::Stop(_)
            | Command::Restart(_)
            | Command::Reload { .. }
            | Command::ReloadConfig { plan: false, .. }
            | Command::Add(_)
            | Command::Rm { .. }
            | Command::Incr { .. }
            | Command::Decr { .. }
            | Command::Set { .. }
    )
}

/// For those whose request was taken up before.
fn lost() -> RequestError {
    RequestError::new(
        Errno::Command,
        "the kernel is gone, so it is not known whether this was done; `papactl up FILE` starts one, `papactl quit` ends the manager",
    )
}

pub(super) fn not_connected() -> RequestError {
    RequestError::new(
        Errno::Command,
        "no kernel is connected, so nothing was done; `papactl up FILE` starts one, `papactl quit` ends the manager",
    )
}
