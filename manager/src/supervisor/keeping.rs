//! What the supervisor does with the queue of saves: fills it, sends it, and answers requests when
//! what they change is kept.
//!
//! Leaves to others: order and retries (`saves`), talking to the kernel (`tasks`).
//! Invariant: whoever is told that something is done may kill this manager at once: the next one
//! knows it. Where that cannot be said in time, the answer is an error that says so.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use crate::control::message::{Errno, Reply, RequestError};
use crate::kernel_link::KernelLink;
use crate::state;
use crate::supervisor::saves::{Fate, Key, Pass};
use crate::supervisor::{Event, Look, Supervisor, tasks};

/// How long an answer waits until what was asked for is kept: somewhat more than something refused
/// holds others up.
const ANSWER_PATIENCE: Duration = Duration::from_millis(2500);

/// An answer that goes out when everything asked for is kept.
#[derive(Debug)]
pub(super) enum Answer {
    /// Nothing is decided yet.
    Open {
        inner: oneshot::Receiver<Reply>,
        outer: oneshot::Sender<Reply>,
    },
    /// It is known, and what it tells of is on its way to the kernel.
    Known {
        reply: Reply,
        outer: oneshot::Sender<Reply>,
        kept: Pass,
        by: Instant,
    },
}

impl Supervisor {
    /// Has the kernel keep `value` for this manager's successors under `name`, the value's whole
    /// name (see [`state`]); with none, nothing is kept there any more.
    ///
    /// It is queued: what is kept under other names just before or after may reach the kernel in
    /// another order, unless [`Self::keep_then`] is called in between. The latest value of a name
    /// wins, and it is sent again until the kernel has taken it. An exit is acknowledged, and a
    /// worker started, only after everything that was queued before.
    pub(super) fn keep(&mut self, name: String, value: Option<String>) {
        if !self.is_cleaning_up() {
            self.saves.keep(name, value);
        }
    }

    /// What is kept from here on is sent to the kernel after it has taken everything before.
    pub(super) fn keep_then(&mut self) {
        self.saves.then();
    }

    /// Nothing is to be known of a watcher any more.
    pub(super) fn forget_kept(&mut self, key: &str) {
        // The others say nothing without the last, which says that there is such a watcher; they
        // are sent in order of name.
        let namespace = self.config.namespace.clone();
        self.keep(state::ends_value(&namespace, key), None);
        self.keep(state::added_value(&namespace, key), None);
        self.keep(state::watcher_value(&namespace, key), None);
    }

    /// Queues what is new about the watchers.
    pub(super) fn save(&mut self) {
        if self.is_cleaning_up() {
            return;
        }
        for id in self.watchers.take(Look::Save) {
            let Some(watcher) = self.watchers.get(&id) else {
                continue;
            };
            let kept = watcher.kept();
            if self.saved.get(&id) != Some(kept) {
                self.saved.insert(id, kept.clone());
                let name = state::watcher_value(&self.config.namespace, &watcher.config().key);
                self.saves.keep(name, Some(kept.to_value()));
            }
            self.save_ends(id);
        }
    }

    /// Sends what is queued, unless something is on its way.
    pub(super) fn send_saves(&mut self, link: &KernelLink, now: Instant) {
        // A kernel that is back has to know first that the namespace is ours.
        if !self.connected() || self.listing {
            return;
        }
        let Some(parcel) = self.saves.next(now) else {
            return;
        };
        let reload = parcel.entries.iter().any(|(key, _)| {
            let Key::Value(name) = key else {
                return false;
            };
            let key = state::key_of_watcher_value(&self.config.namespace, name);
            let watcher = key
                .and_then(|key| self.keys.get(key))
                .and_then(|id| self.watchers.get(id));
            watcher.is_some_and(|watcher| watcher.kept().roll.is_some())
        });
        tasks::send_saves(link.clone(), parcel, reload, self.events.clone());
    }

    /// What became of what was sent.
    pub(super) fn saves_told(&mut self, fates: Vec<(Key, Fate)>) {
        let Some(aside) = self.saves.sent(fates, Instant::now()) else {
            return;
        };
        for answer in &mut self.answers {
            if let Answer::Known { reply, kept, .. } = answer
                && kept.needs(aside.step)
            {
                not_kept(reply, &aside.reason);
            }
        }
    }

    /// What takes the answer to a request that changes something; the answer goes on when that is
    /// kept.
    pub(super) fn when_kept(&mut self, outer: oneshot::Sender<Reply>) -> oneshot::Sender<Reply> {
        let (reply, inner) = oneshot::channel();
        self.answers.push(Answer::Open { inner, outer });
        reply
    }

    /// Passes on the answers whose time has come.
    pub(super) fn pass_answers(&mut self, now: Instant) {
        for answer in std::mem::take(&mut self.answers) {
            let answer = match answer {
                Answer::Open { mut inner, outer } => match inner.try_recv() {
                    Ok(reply) => Answer::Known {
                        reply,
                        outer,
                        kept: self.saves.pass(),
                        by: now + ANSWER_PATIENCE,
                    },
                    // Whoever asked has gone, or nobody will answer.
                    Err(TryRecvError::Closed) => continue,
                    Err(TryRecvError::Empty) if outer.is_closed() => continue,
                    Err(TryRecvError::Empty) => Answer::Open { inner, outer },
                },
                known @ Answer::Known { .. } => known,
            };
            match answer {
                Answer::Known {
                    mut reply,
                    outer,
                    kept,
                    by,
                } if kept.is_over() || now >= by || reply.result.is_err() => {
                    if !kept.is_over() {
                        let trouble = self.saves.trouble(now);
                        let reason = trouble
                            .unwrap_or_else(|| "the kernel has not answered in time".to_owned());
                        not_kept(&mut reply, &reason);
                    }
                    // Whoever asked may be gone; then nobody wants the answer.
                    let _ = outer.send(reply);
                }
                answer => self.answers.push(answer),
            }
        }
    }

    /// When an answer does not wait any longer.
    pub(super) fn answers_deadline(&self) -> Option<Instant> {
        let deadlines = self.answers.iter().filter_map(|answer| match answer {
            Answer::Open { .. } => None,
            Answer::Known { by, .. } => Some(*by),
        });
        deadlines.min()
    }

    /// The manager ends: what is queued is still sent, for at most `patience`.
    pub(super) async fn flush_saves(&mut self, link: &KernelLink, patience: Duration) {
        let until = tokio::time::Instant::now() + patience;
        while !self.saves.is_empty() {
            self.send_saves(link, Instant::now());
            let again = self.saves.deadline().map_or(until, Into::into);
            tokio::select! {
                event = self.receiver.recv() => match event {
                    Some(Event::Saved(fates)) => self.saves_told(fates),
                    Some(_) => {}
                    None => return,
                },
                () = tokio::time::sleep_until(again.min(until)) => {
                    if tokio::time::Instant::now() >= until {
                        let trouble = self.saves.trouble(Instant::now());
                        tracing::warn!(trouble, "the kernel has not saved all state of the manager yet");
                        return;
                    }
                }
            }
        }
    }
}

/// What was done is done, and may be unknown to a successor.
fn not_kept(reply: &mut Reply, reason: &str) {
    if reply.result.is_ok() {
        reply.result = Err(RequestError::new(
            Errno::Asynchronous,
            format!("done, but a manager started after this one may not know it: {reason}"),
        ));
    }
}
