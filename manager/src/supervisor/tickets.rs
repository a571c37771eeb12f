//! Whoever waits for watchers to get somewhere, and the answer when they have.
//!
//! Owns no decision: what a watcher has reached is asked of it. Invariant: a ticket whose asker has gone is dropped.

use std::collections::BTreeSet;
use std::time::Instant;

use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use crate::control::message::{
    ChangeInfo, Errno, InfoReply, NumProcessesReply, Reply, Request, RequestError, StartedReply,
};
use crate::control::server::now;
use crate::supervisor::{Supervisor, WatcherId};

/// Somebody waits for watchers to get somewhere.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) request: Request,
    pub(super) reply: oneshot::Sender<Reply>,
    pub(super) watchers: Vec<WatcherId>,
    pub(super) goal: Goal,
    pub(super) body: Body,
}

/// Where watchers are to get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// All wanted workers serve, and have shown that they stay.
    Up,
    /// No workers are left.
    Stopped,
    /// The reload is over.
    Reloaded,
    /// The number of workers is the one wanted, and they have shown that they stay.
    Settled,
    /// Forgotten.
    Gone,
}

/// What the answer says besides that it is done.
#[derive(Debug)]
pub(super) enum Body {
    Nothing,
    /// What became of the workers of one watcher that had these pids before.
    Info(BTreeSet<u32>),
    /// The same for `add`.
    Started,
    /// How many workers there are to be.
    Count,
}

/// Signals that tell workers to read their settings again.
#[derive(Debug, Default)]
pub(super) struct Hangups {
    /// Those on their way.
    open: Vec<oneshot::Receiver<Result<(), String>>>,
    /// Why some were not sent, for people.
    failures: Vec<String>,
}

impl Hangups {
    pub(super) fn send(&mut self, sent: oneshot::Receiver<Result<(), String>>) {
        self.open.push(sent);
    }

    fn settle(&mut self) {
        let failures = &mut self.failures;
        self.open.retain_mut(|one| match one.try_recv() {
            Err(TryRecvError::Empty) => true,
            Ok(Ok(())) | Err(TryRecvError::Closed) => false,
            Ok(Err(failure)) => {
                failures.push(failure);
                false
            }
        });
    }

    /// Whether all were sent; none while that is open.
    fn outcome(&self) -> Option<Result<(), String>> {
        match (self.open.is_empty(), self.failures.is_empty()) {
            (false, _) => None,
            (true, true) => Some(Ok(())),
            (true, false) => Some(Err(self.failures.join("; "))),
        }
    }
}

impl Supervisor {
    /// Answers those whose watchers have got where they should.
    pub(super) fn settle_tickets(&mut self) {
        for signals in self.signals.values_mut() {
            signals.retain_mut(|signal| signal.try_recv() == Err(TryRecvError::Empty));
        }
        for hangups in self.hangups.values_mut() {
            hangups.settle();
        }
        for ticket in std::mem::take(&mut self.tickets) {
            if ticket.reply.is_closed() {
                continue;
            }
            match self.outcome(ticket.goal, &ticket.watchers) {
                None => self.tickets.push(ticket),
                Some(Ok(())) => {
                    let body = self.body(&ticket);
                    answer(ticket.request, ticket.reply, Ok(&body));
                }
                Some(Err(reason)) => refuse(
                    ticket.request,
                    ticket.reply,
                    &RequestError::new(Errno::Asynchronous, reason),
                ),
            }
        }
    }

    /// Whether the watchers have got there, or never will; `None` while that is open.
    pub(super) fn outcome(&self, goal: Goal, watchers: &[WatcherId]) -> Option<Result<(), String>> {
        let now = Instant::now();
        let mut failures = Vec::new();
        for id in watchers {
            let Some(watcher) = self.watchers.get(id) else {
                if goal != Goal::Gone {
                    failures.push("a watcher was removed by a later request".to_owned());
                }
                continue;
            };
            let started = || match self.start_hindrance(watcher) {
                Some(hindrance) => Some(Err(hindrance)),
                None => watcher.start_outcome(now),
            };
            let outcome = match goal {
                Goal::Up => started()?,
                Goal::Reloaded => {
                    let outcome = watcher.reload_outcome(now)?;
                    // Whoever hears that it is over may rely on every worker of before having been asked to end.
                    let signals = self.signals.get(id);
                    if outcome.is_ok() && signals.is_some_and(|signals| !signals.is_empty()) {
                        return None;
                    }
                    let hangups = self.hangups.get(id).map(Hangups::outcome);
                    outcome.and(hangups.unwrap_or(Some(Ok(())))?)
                }
                Goal::Settled if watcher.is_settled() && !watcher.is_wanted() => Ok(()),
                Goal::Settled if watcher.is_settled() => started()?,
                Goal::Settled => match started()? {
                    // Up, while some are still on their way out.
                    Ok(()) => return None,
                    error => error,
                },
                Goal::Gone => return None,
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

    /// When somebody's watchers will have shown that they stay, if nothing happens before.
    pub(super) fn proof_deadline(&self, now: Instant) -> Option<Instant> {
        if self.tickets.is_empty() && self.change.is_none() {
            return None;
        }
        let watchers = self.watchers.values();
        watchers.filter_map(|watcher| watcher.proves_at(now)).min()
    }

    fn body(&self, ticket: &Ticket) -> Value {
        let watcher = ticket.watchers.first().and_then(|id| self.watchers.get(id));
        let Some(watcher) = watcher else {
            return json!({});
        };
        let after: BTreeSet<u32> = self.pids(&ticket.watchers);
        let body = match &ticket.body {
            Body::Nothing => Ok(json!({})),
            Body::Info(before) => serde_json::to_value(InfoReply {
                info: Some(ChangeInfo {
                    stopped: before.difference(&after).copied().collect(),
                    started: after.difference(before).copied().collect(),
                    kept: before.intersection(&after).copied().collect(),
                }),
            }),
            Body::Started => serde_json::to_value(StartedReply {
                started: after.into_iter().collect(),
                kept: Vec::new(),
            }),
            Body::Count => serde_json::to_value(NumProcessesReply {
                numprocesses: u64::from(watcher.count()),
                watcher_name: None,
                singleton: false,
            }),
        };
        body.unwrap_or_else(|_| json!({}))
    }

    /// Process ids of the watchers' workers.
    pub(super) fn pids(&self, watchers: &[WatcherId]) -> BTreeSet<u32> {
        watchers
            .iter()
            .filter_map(|id| self.watchers.get(id))
            .flat_map(|watcher| watcher.workers().values())
            .filter_map(|worker| Some(worker.process()?.pid.unsigned_abs()))
            .collect()
    }
}

/// Answers a request.
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

/// Answers a request with no.
pub(super) fn refuse(request: Request, reply: oneshot::Sender<Reply>, error: &RequestError) {
    answer::<()>(request, reply, Err(error));
}

/// Answers a request with yes and nothing else.
pub(super) fn done(request: Request, reply: oneshot::Sender<Reply>) {
    answer(request, reply, Ok(&json!({})));
}
