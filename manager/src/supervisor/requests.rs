//! Requests from the control socket: what each does, and when it is answered.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::json;
use tokio::sync::oneshot;

use crate::control::message::{
    Command, Errno, ListReply, ManagerStatus, NumProcessesReply, OptionsReply, Reply, Request,
    RequestError, Selection, StatusReply, WatcherState, log_files,
};
use crate::control::server::{Asked, now};
use crate::supervisor::{Goal, Phase, Supervisor, Ticket};
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
            Command::Status { name } => {
                let status = self.status(name.as_deref());
                answer(request, reply, status.as_ref());
            }
            Command::List { name } => {
                let list = self.list(name.as_deref());
                answer(request, reply, list.as_ref());
            }
            Command::NumProcesses { name } => {
                let count = self.count(name.as_deref());
                answer(request, reply, count.as_ref());
            }
            Command::NumWatchers => {
                let count = json!({ "numwatchers": self.watchers.len() });
                answer(request, reply, Ok(&count));
            }
            Command::Options { name } => {
                let options = self.named(name).map(|watcher| OptionsReply {
                    options: watcher.config().options.clone(),
                });
                answer(request, reply, options.as_ref());
            }
            Command::Logs { name } => {
                let logs = match name {
                    Some(name) => self
                        .named(name)
                        .map(|watcher| log_files(std::iter::once(watcher.config().as_ref()))),
                    None => Ok(log_files(self.config.watchers.iter())),
                };
                answer(request, reply, logs.as_ref());
            }
        }
    }

    /// The watchers meant. Without a name, starting leaves out those that are not started by themselves.
    fn choose(&self, selection: &Selection, starting: bool) -> Result<Vec<usize>, RequestError> {
        if matches!(
            self.phase,
            Phase::Quitting | Phase::ShuttingDown { .. } | Phase::Done
        ) {
            return Err(RequestError::new(Errno::Command, "the manager is ending"));
        }
        let matching = self.watchers.iter().enumerate().filter(|(_, watcher)| {
            let config = watcher.config();
            selection.matches(&config.key)
                && (selection.name.is_some() || !starting || config.autostart)
        });
        let chosen: Vec<usize> = matching.map(|(index, _)| index).collect();
        match &selection.name {
            Some(name) if chosen.is_empty() => Err(RequestError::unknown_watcher(name)),
            _ => Ok(chosen),
        }
    }

    fn change(
        &mut self,
        request: Request,
        reply: oneshot::Sender<Reply>,
        chosen: Result<Vec<usize>, RequestError>,
        goal: Goal,
        act: fn(&mut Watcher),
    ) {
        let watchers = match chosen {
            Ok(watchers) => watchers,
            Err(error) => return answer::<()>(request, reply, Err(&error)),
        };
        for index in &watchers {
            if let Some(watcher) = self.watchers.get_mut(*index) {
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
            .filter_map(|index| self.watchers.get(*index))
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

    fn named(&self, name: &str) -> Result<&Watcher, RequestError> {
        let key = name.to_lowercase();
        self.watchers
            .iter()
            .find(|watcher| watcher.config().key == key)
            .ok_or_else(|| RequestError::unknown_watcher(name))
    }

    fn status(&self, name: Option<&str>) -> Result<StatusReply, RequestError> {
        let shown: Vec<&Watcher> = match name {
            Some(name) => vec![self.named(name)?],
            None => self.watchers.iter().collect(),
        };
        let mut watchers: Vec<_> = shown.iter().map(|watcher| watcher.status()).collect();
        for status in &mut watchers {
            if self.link.is_none() && status.state != WatcherState::Stopped {
                status.state = WatcherState::Starting;
            }
            if status.message.is_none() {
                status.message = self.trouble_of(&status.name);
            }
        }
        watchers.sort_by(|a, b| a.name.cmp(&b.name));
        let statuses: BTreeMap<String, WatcherState> = watchers
            .iter()
            .map(|status| (status.name.clone(), status.state))
            .collect();
        Ok(StatusReply {
            status: name.and_then(|_| {
                watchers
                    .first()
                    .map(|status| status.state.as_str().to_owned())
            }),
            statuses,
            watchers,
            manager: Some(self.manager_status()),
        })
    }

    /// What hinders a watcher besides its own workers: the kernel, or one of its log files.
    fn trouble_of(&self, name: &str) -> Option<String> {
        if self.kernel_trouble.is_some() {
            return self.kernel_trouble.clone();
        }
        let config = self.config.watcher(name)?;
        let files: Vec<String> = [&config.stdout, &config.stderr]
            .iter()
            .filter_map(|stream| Some(stream.file()?.filename.display().to_string()))
            .collect();
        let concerns = |trouble: &&String| {
            // One that names no file concerns all that are logged.
            let general = trouble.starts_with("logs: ") && !files.is_empty();
            general || files.iter().any(|file| trouble.starts_with(file.as_str()))
        };
        self.log_troubles.iter().find(concerns).cloned()
    }

    fn manager_status(&self) -> ManagerStatus {
        let hello = self.link.as_ref().map(|link| link.client().hello());
        let connected = hello.filter(|_| self.kernel_trouble.is_none());
        ManagerStatus {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            config: self.config.path.display().to_string(),
            namespace: self.config.namespace.clone(),
            kernel: self
                .addresses
                .first()
                .map(ToString::to_string)
                .unwrap_or_default(),
            kernel_pid: connected.map(|hello| hello.pid),
            started: self.started,
        }
    }

    fn list(&self, name: Option<&str>) -> Result<ListReply, RequestError> {
        let Some(name) = name else {
            let mut watchers: Vec<String> = self
                .watchers
                .iter()
                .map(|watcher| watcher.config().key.clone())
                .collect();
            watchers.sort_unstable();
            return Ok(ListReply::Watchers { watchers });
        };
        let pids = self
            .named(name)?
            .status()
            .workers
            .iter()
            .map(|worker| worker.pid)
            .collect();
        Ok(ListReply::Pids { pids })
    }

    fn count(&self, name: Option<&str>) -> Result<NumProcessesReply, RequestError> {
        let of = |watcher: &Watcher| u64::from(watcher.config().numprocesses);
        Ok(match name {
            Some(name) => {
                let watcher = self.named(name)?;
                NumProcessesReply {
                    numprocesses: of(watcher),
                    watcher_name: Some(watcher.config().name.clone()),
                }
            }
            None => NumProcessesReply {
                numprocesses: self.watchers.iter().map(of).sum(),
                watcher_name: None,
            },
        })
    }
}

fn answer<T: Serialize>(
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
