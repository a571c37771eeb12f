//! What is on its way to the kernel to be kept, and the answers that wait until it is.
//!
//! Owns the queue of saves, what the kernel was last told of each watcher, and the requests whose
//! answers wait. Leaves to others: order and retries (`saves`), what is worth keeping (`keeping`).
//! Invariants: whoever is told that something is done may kill this manager at once, and the next
//! one knows it; where that cannot be said in time, the answer is an error that says so. Once
//! everything was given back nothing is kept any more, because it would stay for ever.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use crate::control::message::{Errno, Reply, RequestError};
use crate::state::Kept;
use crate::supervisor::WatcherId;
use crate::supervisor::saves::{Fate, Key, Parcel, Pass, Saves};

/// How long an answer waits until what was asked for is kept: somewhat more than something refused
/// holds others up.
const ANSWER_PATIENCE: Duration = Duration::from_millis(2500);

/// An answer that goes out when everything asked for is kept.
#[derive(Debug)]
enum Answer {
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

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    saves: Saves,
    answers: Vec<Answer>,
    /// Everything was given back.
    closed: bool,
    /// What the kernel was last given to keep of each watcher.
    told: HashMap<WatcherId, Kept>,
    /// Serial of the newest end of each watcher that the kernel was given to keep.
    told_ends: HashMap<WatcherId, u64>,
}

impl Outbox {
    /// Has the kernel keep `value` under `name`; with none, nothing is kept there any more.
    pub(super) fn keep(&mut self, name: String, value: Option<String>) {
        if !self.closed {
            self.saves.keep(name, value);
        }
    }

    /// What is kept from here on is sent after the kernel has taken everything before.
    pub(super) fn then(&mut self) {
        self.saves.then();
    }

    /// Has the kernel forget an ended process, once everything queued before is kept.
    pub(super) fn acknowledge(&mut self, serial: u64, discard: bool) {
        self.saves.acknowledge(serial, discard);
    }

    /// For whoever waits until everything queued so far is kept.
    pub(super) fn pass(&mut self) -> Pass {
        self.saves.pass()
    }

    /// Another kernel has none of the processes that were known.
    pub(super) fn forget_exits(&mut self) {
        self.saves.forget_exits();
    }

    /// Nothing is kept from here on. Answers false if something is on its way: it would be there
    /// again after everything was given back, so that this has to be asked again.
    pub(super) fn close(&mut self) -> bool {
        self.saves.clear();
        self.closed = !self.saves.is_sending();
        self.closed
    }

    /// Everything is given back, or was.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Nothing is queued and nothing under way.
    pub(super) fn is_empty(&self) -> bool {
        self.saves.is_empty()
    }

    /// What is to be sent now.
    pub(super) fn next(&mut self, now: Instant) -> Option<Parcel> {
        self.saves.next(now)
    }

    /// What became of what was sent.
    pub(super) fn sent(&mut self, fates: Vec<(Key, Fate)>, now: Instant) {
        let Some(aside) = self.saves.sent(fates, now) else {
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

    /// When there is something to send again without news from the kernel.
    pub(super) fn sends_at(&self) -> Option<Instant> {
        self.saves.deadline()
    }

    /// What the kernel has not taken for long, for people.
    pub(super) fn trouble(&self, now: Instant) -> Option<String> {
        self.saves.trouble(now)
    }

    /// Notes what the kernel is given to keep of a watcher. Answers whether that is new.
    pub(super) fn tell(&mut self, id: WatcherId, kept: &Kept) -> bool {
        if self.told.get(&id) == Some(kept) {
            return false;
        }
        self.told.insert(id, kept.clone());
        true
    }

    /// What the kernel was last given to keep of a watcher.
    #[cfg(debug_assertions)]
    pub(super) fn told_of(&self, id: WatcherId) -> Option<&Kept> {
        self.told.get(&id)
    }

    /// The same for the newest end of its workers.
    pub(super) fn tell_end(&mut self, id: WatcherId, newest: u64) -> bool {
        self.told_ends.insert(id, newest) != Some(newest)
    }

    /// The kernel is told nothing of a watcher any more.
    pub(super) fn forget_watcher(&mut self, id: WatcherId) {
        self.told.remove(&id);
        self.told_ends.remove(&id);
    }

    /// The kernel may be another one: it is told everything anew.
    pub(super) fn tell_all_again(&mut self) {
        self.told.clear();
        self.told_ends.clear();
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
    pub(super) fn answers_at(&self) -> Option<Instant> {
        let deadlines = self.answers.iter().filter_map(|answer| match answer {
            Answer::Open { .. } => None,
            Answer::Known { by, .. } => Some(*by),
        });
        deadlines.min()
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reply() -> Reply {
        Reply::ok(serde_json::Value::Null, 0.0, &json!({}))
    }

    /// An answer that is known and waits, and who waits for it.
    fn waiting(outbox: &mut Outbox, now: Instant) -> oneshot::Receiver<Reply> {
        let (outer, asker) = oneshot::channel();
        let inner = outbox.when_kept(outer);
        outbox.keep("a".to_owned(), Some("1".to_owned()));
        inner.send(reply()).unwrap();
        outbox.pass_answers(now);
        asker
    }

    #[test]
    fn an_answer_waits_until_what_it_tells_of_is_kept() {
        let now = Instant::now();
        let mut outbox = Outbox::default();
        let mut asker = waiting(&mut outbox, now);
        assert!(asker.try_recv().is_err());
        let parcel = outbox.next(now).unwrap();
        let fates = parcel.entries.into_iter().map(|(key, _)| (key, Fate::Done));
        outbox.sent(fates.collect(), now);
        outbox.pass_answers(now);
        assert!(asker.try_recv().unwrap().result.is_ok());
        assert_eq!(outbox.answers_at(), None);
    }

    #[test]
    fn an_answer_that_waits_too_long_says_that_a_successor_may_not_know() {
        let now = Instant::now();
        let mut outbox = Outbox::default();
        let mut asker = waiting(&mut outbox, now);
        assert_eq!(outbox.answers_at(), Some(now + ANSWER_PATIENCE));
        outbox.pass_answers(now + ANSWER_PATIENCE);
        let error = asker.try_recv().unwrap().result.unwrap_err();
        assert!(error.to_string().contains("may not know it"), "{error}");
    }

    #[test]
    fn nothing_is_kept_once_everything_is_given_back() {
        let now = Instant::now();
        let mut outbox = Outbox::default();
        outbox.keep("a".to_owned(), None);
        assert!(outbox.next(now).is_some());
        assert!(!outbox.close(), "something is on its way");
        outbox.sent(Vec::new(), now);
        assert!(outbox.close() && outbox.is_closed());
        outbox.keep("b".to_owned(), None);
        assert!(outbox.is_empty());
    }

    #[test]
    fn a_watcher_is_told_of_when_something_is_new_or_the_kernel_is() {
        let mut outbox = Outbox::default();
        let kept = Kept::default();
        assert!(outbox.tell(WatcherId(1), &kept));
        assert!(!outbox.tell(WatcherId(1), &kept));
        assert!(outbox.tell_end(WatcherId(1), 5));
        assert!(!outbox.tell_end(WatcherId(1), 5));
        outbox.tell_all_again();
        assert!(outbox.tell(WatcherId(1), &kept) && outbox.tell_end(WatcherId(1), 5));
    }
}
