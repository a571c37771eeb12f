//! Whoever waits for watchers to get somewhere, and the answer when they have.
//!
//! Owns no decision: what a watcher has reached is asked of it. Invariant: a ticket whose asker has
//! gone is dropped.

use std::collections::BTreeSet;
use std::time::Instant;

use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;

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
    /// Those before this one have got there; it is looked at first.
    pub(super) open: usize,
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

impl Supervisor {
    /// Answers those whose watchers have got where they should.
    pub(super) fn settle_tickets(&mut self) {
        for mut ticket in self.open_requests.take_tickets() {
            if ticket.reply.is_closed() {
                continue;
            }
            // One that is open keeps the whole ticket open: the others are looked at when that one
            // has got there.
            if let Some(open) = self.first_open(ticket.goal, &ticket.watchers, ticket.open) {
                ticket.open = open;
                self.open_requests.wait(ticket);
                continue;
            }
            match self.outcome(ticket.goal, &ticket.watchers) {
                None => {
                    // A later request has moved one that had got there.
                    let open = self.first_open(ticket.goal, &ticket.watchers, 0);
                    ticket.open = open.unwrap_or(0);
                    self.open_requests.wait(ticket);
                }
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
    pub(super) fn outcome(
        &mut self,
        goal: Goal,
        watchers: &[WatcherId],
    ) -> Option<Result<(), String>> {
        let mut failures = Vec::new();
        for id in watchers {
            if let Err(reason) = self.outcome_of(goal, *id)? {
                failures.push(reason);
            }
        }
        Some(if failures.is_empty() {
            Ok(())
        } else {
            Err(failures.join("; "))
        })
    }

    /// Index of the first watcher at or behind `from` that has not got there yet.
    fn first_open(&mut self, goal: Goal, watchers: &[WatcherId], from: usize) -> Option<usize> {
        let mut watchers = watchers.iter().enumerate().skip(from);
        watchers.find_map(|(at, id)| self.outcome_of(goal, *id).is_none().then_some(at))
    }

    /// The same of one watcher.
    fn outcome_of(&mut self, goal: Goal, id: WatcherId) -> Option<Result<(), String>> {
        let now = self.open_requests.judged_at();
        if goal == Goal::Reloaded {
            self.signals.settle(id);
        }
        let Some(watcher) = self.watchers.get(&id) else {
            return Some(match goal {
                Goal::Gone => Ok(()),
                _ => Err("a watcher was removed by a later request".to_owned()),
            });
        };
        let started = || match self.start_hindrance(watcher) {
            Some(hindrance) => Some(Err(hindrance)),
            None => watcher.start_outcome(now),
        };
        let outcome = match goal {
            Goal::Up => started()?,
            Goal::Reloaded => {
                let outcome = watcher.reload_outcome(now)?;
                // Whoever hears that it is over may rely on every worker of before having been
                // asked to end.
                if outcome.is_ok() && self.signals.are_stopping(id) {
                    return None;
                }
                outcome.and(self.signals.hangup_outcome(id)?)
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
        Some(outcome.map_err(|reason| format!("{}: {reason}", watcher.config().name)))
    }

    /// When a watcher somebody waits for will have shown that it stays, if nothing happens before.
    /// Counted from the moment at which that was last judged: one that has shown it since has to be
    /// looked at again.
    pub(super) fn proof_deadline(&self) -> Option<Instant> {
        let now = self.open_requests.judged_at();
        let asked = self.open_requests.awaited();
        let watchers = asked.chain(self.change_waits_for());
        watchers
            .filter_map(|id| self.watchers.get(&id)?.proves_at(now))
            .min()
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::control::request::Command;
    use crate::control::selection::Selection;
    use crate::supervisor::testing;
    use crate::watcher::Moment;
    use crate::worker::Running;

    #[test]
    fn who_has_shown_that_it_stays_since_it_was_judged_is_looked_at_again() {
        let mut supervisor = testing::supervisor("[watcher:w]\ncmd = true\n");
        let id = supervisor.keys["w"];
        // Long ago: everything is shown by now, and nothing of it was judged.
        let begun = Instant::now()
            .checked_sub(Duration::from_secs(3600))
            .unwrap();
        let at = Moment {
            now: begun,
            epoch_ms: 1,
            jitter: 0,
        };
        let watcher = supervisor.watchers.get_mut(&id).unwrap();
        watcher.release();
        watcher.step(&at);
        let process = Running {
            serial: 1,
            pid: 100,
            started_us: 1,
            started: begun,
        };
        watcher.started(1, process, None, &at);
        let (reply, _asker) = oneshot::channel();
        supervisor.open_requests.wait(Ticket {
            request: Request::accepted(Command::Start(Selection::default())),
            reply,
            watchers: vec![id],
            goal: Goal::Up,
            body: Body::Nothing,
            open: 0,
        });
        supervisor.open_requests.judge_at(begun);
        supervisor.settle_tickets();
        assert!(
            supervisor.open_requests.has_tickets(),
            "it is judged by what was true then"
        );
        let due = supervisor.proof_deadline().unwrap();
        assert!(due > begun && due < Instant::now());
        supervisor.open_requests.judge_at(Instant::now());
        supervisor.settle_tickets();
        assert!(!supervisor.open_requests.has_tickets(), "it is answered");
    }
}
