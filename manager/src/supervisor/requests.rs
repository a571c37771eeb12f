//! Requests from the control socket: what each does, and when it is answered.

use serde::Serialize;
use serde_json::json;
use tokio::sync::oneshot;

use crate::control::message::{Command, Errno, Reply, Request, RequestError, Selection};
use crate::control::server::{Asked, now};
use crate::supervisor::{Goal, Phase, Supervisor, Ticket, WatcherId};
use crate::watcher::Watcher;

impl Supervisor {
    pub(super) fn asked(&mut self, asked: Asked) {
        let Asked { request, reply } = asked;
        match &request.command {
            Command::Start(selection) => {
                let chosen = self.choose(selection, true);
                self.change(request, reply, chosen, Goal::Up, Watcher::start);
            }
            Command::Stop(selection) => {
                let chosen = self.choose(selection, false);
                self.change(request, reply, chosen, Goal::Stopped, Watcher::stop);
            }
            Command::Restart(selection) => {
                let chosen = self.choose(selection, true);
                self.change(request, reply, chosen, Goal::Up, Watcher::restart);
            }
            Command::Quit => {
                // Answered first: the connection ends with us.
                answer(request, reply, Ok(&json!({})));
                self.quit();
            }
            Command::Shutdown if self.link.is_none() => {
                let reason = "the kernel is not connected, so its workers cannot be stopped; `quit` ends the manager";
                answer::<()>(
                    request,
                    reply,
                    Err(&RequestError::new(Errno::Command, reason)),
                );
            }
            Command::Shutdown => self.shut_down(request, reply),
            // To be carried out by the core; each of these arms is its own.
            Command::Reload { .. }
            | Command::ReloadConfig { .. }
            | Command::Add(_)
            | Command::Rm { .. }
            | Command::Incr { .. }
            | Command::Decr { .. }
            | Command::Set { .. }
            | Command::Signal(_)
            | Command::Kill(_)
            | Command::Upgrade => not_yet(request, reply),
            Command::ReopenLogs => {
                if let Some(logs) = &self.logs {
                    logs.reopen();
                }
                answer(request, reply, Ok(&json!({})));
            }
            Command::Listen(listen) => self.events_log.fetch(listen, &request, reply, now()),
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

    /// The watchers meant. Without a name, starting leaves out those that are not started by themselves.
    fn choose(
        &self,
        selection: &Selection,
        starting: bool,
    ) -> Result<Vec<WatcherId>, RequestError> {
        if matches!(
            self.phase,
            Phase::Quitting | Phase::ShuttingDown { .. } | Phase::Done
        ) {
            return Err(RequestError::new(Errno::Command, "the manager is ending"));
        }
        let matcher = selection.matcher();
        let matching = self.watchers.iter().filter(|(_, watcher)| {
            let config = watcher.config();
            matcher.matches(&config.key)
                && (selection.name.is_some() || !starting || config.autostart)
        });
        let chosen: Vec<WatcherId> = matching.map(|(id, _)| *id).collect();
        match &selection.name {
            Some(name) if chosen.is_empty() => Err(RequestError::unknown_watcher(name)),
            _ => Ok(chosen),
        }
    }

    fn change(
        &mut self,
        request: Request,
        reply: oneshot::Sender<Reply>,
        chosen: Result<Vec<WatcherId>, RequestError>,
        goal: Goal,
        act: fn(&mut Watcher),
    ) {
        let watchers = match chosen {
            Ok(watchers) => watchers,
            Err(error) => return answer::<()>(request, reply, Err(&error)),
        };
        for id in &watchers {
            if let Some(watcher) = self.watchers.get_mut(id) {
                tracing::info!(watcher = watcher.config().name, command = ?goal, "asked");
                act(watcher);
            }
        }
        if request.waiting {
            self.tickets.push(Ticket {
                request,
                reply,
                watchers,
                goal,
            });
        } else {
            answer(request, reply, Ok(&json!({})));
        }
    }

    /// Answers those whose watchers have got where they should.
    pub(super) fn settle_tickets(&mut self) {
        for ticket in std::mem::take(&mut self.tickets) {
            if ticket.reply.is_closed() {
                continue;
            }
            match self.outcome(&ticket) {
                None => self.tickets.push(ticket),
                Some(Ok(())) => answer(ticket.request, ticket.reply, Ok(&json!({}))),
                Some(Err(reason)) => {
                    let error = RequestError::new(Errno::Asynchronous, reason);
                    answer::<()>(ticket.request, ticket.reply, Err(&error));
                }
            }
        }
    }

    fn outcome(&self, ticket: &Ticket) -> Option<Result<(), String>> {
        let mut failures = Vec::new();
        for watcher in ticket
            .watchers
            .iter()
            .filter_map(|id| self.watchers.get(id))
        {
            let outcome = match ticket.goal {
                Goal::Up => watcher.start_outcome()?,
                Goal::Stopped if watcher.is_stopped() => Ok(()),
                Goal::Stopped if watcher.is_stopping() => return None,
                Goal::Stopped => Err("it was started by a later request".to_owned()),
            };
            if let Err(reason) = outcome {
                failures.push(format!("{}: {reason}", watcher.config().name));
            }
        }
        Some(if failures.is_empty() {
            Ok(())
        } else {
            Err(failures.join("; "))
        })
    }
}

pub(super) fn answer<T: Serialize>(
    request: Request,
    reply: oneshot::Sender<Reply>,
    result: Result<&T, &RequestError>,
) {
    let line = match result {
        Ok(body) => Reply::ok(request.id, now(), body),
        Err(error) => Reply::error(request.id, now(), error.clone()),
    };
    // Whoever asked may be gone; then nobody wants the answer.
    let _ = reply.send(line);
}

fn not_yet(request: Request, reply: oneshot::Sender<Reply>) {
    let reason = format!("{} is not available yet", request.command.word());
    answer::<()>(
        request,
        reply,
        Err(&RequestError::new(Errno::Command, reason)),
    );
}
