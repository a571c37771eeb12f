//! What the kernel is to keep for a successor, and which ended workers it may forget: one queue, in
//! order.
//!
//! Owns the order and the retries. The queue is a list of steps; a step is sent when the kernel has
//! answered everything of the step before it. Values that are queued in a row form one step, in
//! which the latest value of a name replaces an earlier one; removals are entries like any other.
//! Acknowledgements of exits form steps of their own, so that what follows from an exit is kept
//! before the kernel may forget it. Whoever must wait until something is kept holds a [`Pass`].
//! Leaves to others: talking to the kernel (`tasks::send`), what is worth keeping.
//! Invariants: one parcel is under way at a time; nothing leaves the queue before the kernel has
//! taken it or something newer; what the kernel refuses holds up the steps behind it for at most
//! [`HOLD`], and is then tried again beside them for as long as it takes.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use papa_test_hooks::failpoint;
use tokio::sync::{oneshot, watch};

/// First pause before something refused is sent again.
const AGAIN_MIN: Duration = Duration::from_millis(50);
/// Longest pause while other steps wait for it.
const AGAIN_MAX: Duration = Duration::from_secs(1);
/// How long something refused holds up what is behind it: workers start again and people are
/// answered even if the kernel keeps nothing.
pub(super) const HOLD: Duration = Duration::from_secs(2);
/// Pause between attempts at what holds nothing up any more.
const ASIDE_AGAIN: Duration = Duration::from_secs(5);
/// Steps that wait; more come together only while no kernel is connected. The last ones take what
/// comes then: no value is lost, only the order among the latest.
const MAX_STEPS: usize = 64;
/// Requests under way at a time; far fewer than the connection takes.
const MAX_PARCEL: usize = 256;

/// What an entry is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// A value of the kernel, by its whole name.
    Value(String),
    /// An ended process, by serial.
    Exit(u64),
}

/// What the kernel is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// To keep this text.
    Keep(String),
    /// To keep nothing under the name.
    Remove,
    /// To forget the process as soon as its output is taken; with `discard` at once.
    Acknowledge { discard: bool },
}

/// Requests that go to the kernel together, and how they are told apart.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Parcel {
    pub(super) entries: Vec<(Key, What)>,
}

/// What became of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// The kernel did it.
    Done,
    /// The connection was lost meanwhile; it is sent again on the next one.
    Lost,
    /// The kernel refused, or did not answer in time.
    Refused(String),
}

/// A number of steps after which it goes on; everything queued when it was made is done then.
#[derive(Debug)]
pub(super) struct Pass {
    until: u64,
    passed: watch::Receiver<u64>,
    over: oneshot::Receiver<()>,
}

impl Pass {
    /// Waits; true once everything is done, false if that takes longer than `patience` or the
    /// manager ends. Those that wait go on in the order in which their passes were made: workers
    /// start in the order of their priority.
    pub(super) async fn wait(self, patience: Duration) -> bool {
        self.is_over() || matches!(tokio::time::timeout(patience, self.over).await, Ok(Ok(())))
    }

    /// Whether everything is done.
    pub(super) fn is_over(&self) -> bool {
        *self.passed.borrow() >= self.until
    }

    /// Whether it waits for the step with this number.
    pub(super) fn needs(&self, step: u64) -> bool {
        self.until >= step
    }
}

#[derive(Debug)]
struct Step {
    number: u64,
    /// Acknowledgements; otherwise values.
    exits: bool,
    /// In the order in which they are sent.
    entries: BTreeMap<Key, What>,
}

/// Something the kernel has refused.
#[derive(Debug)]
struct Trouble {
    since: Instant,
    reason: String,
    /// It holds nothing up any more, and is tried again with this.
    aside: Option<What>,
}

/// What was put aside just now: what waits for its step cannot be told that it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PutAside {
    pub(super) step: u64,
    pub(super) reason: String,
}

/// The queue.
#[derive(Debug)]
pub(super) struct Saves {
    steps: VecDeque<Step>,
    last: u64,
    /// The next value begins a step.
    sealed: bool,
    /// What is under way; `true`: of the first step.
    under_way: Option<bool>,
    passed: watch::Sender<u64>,
    /// Whoever waits for a step, in order.
    waiting: VecDeque<(u64, oneshot::Sender<()>)>,
    /// The first step is not sent before this.
    again: Option<Instant>,
    pause: Duration,
    troubles: BTreeMap<Key, Trouble>,
    aside_again: Option<Instant>,
}

impl Default for Saves {
    fn default() -> Self {
        Self {
            steps: VecDeque::new(),
            last: 0,
            sealed: false,
            under_way: None,
            passed: watch::Sender::new(0),
            waiting: VecDeque::new(),
            again: None,
            pause: AGAIN_MIN,
            troubles: BTreeMap::new(),
            aside_again: None,
        }
    }
}

impl Saves {
    /// Queues a value; none: nothing is to be kept under the name.
    pub(super) fn keep(&mut self, name: String, value: Option<String>) {
        let what = value.map_or(What::Remove, What::Keep);
        self.push(Key::Value(name), what, false);
    }

    /// Queues the acknowledgement of an exit, behind every value queued before.
    pub(super) fn acknowledge(&mut self, serial: u64, discard: bool) {
        self.push(Key::Exit(serial), What::Acknowledge { discard }, true);
    }

    /// What is queued from here on is sent when everything queued so far is done.
    pub(super) fn then(&mut self) {
        self.sealed = true;
    }

    fn push(&mut self, key: Key, what: What, exits: bool) {
        // What is older is not tried again.
        if let Some(trouble) = self.troubles.get_mut(&key) {
            trouble.aside = None;
        }
        let full = self.steps.len() >= MAX_STEPS;
        let sealed = std::mem::take(&mut self.sealed);
        // The first step does not change while it is under way.
        let fixed = usize::from(self.under_way == Some(true));
        let open = if full && !exits {
            // In front of acknowledgements: sooner than asked for does no harm.
            let mut all = self.steps.iter().enumerate().skip(fixed);
            all.rfind(|(_, step)| !step.exits).map(|(at, _)| at)
        } else {
            let at = self.steps.len().checked_sub(1);
            at.filter(|at| *at >= fixed && (full || !sealed))
                .filter(|at| self.steps.get(*at).is_some_and(|step| step.exits == exits))
        };
        if let Some(step) = open.and_then(|at| self.steps.get_mut(at)) {
            step.entries.insert(key, what);
            return;
        }
        self.last += 1;
        self.steps.push_back(Step {
            number: self.last,
            exits,
            entries: BTreeMap::from([(key, what)]),
        });
    }

    /// For whoever waits until everything queued so far is done.
    pub(super) fn pass(&mut self) -> Pass {
        let (sender, over) = oneshot::channel();
        // One that is over already needs nobody to tell it.
        if *self.passed.borrow() < self.last {
            self.waiting.push_back((self.last, sender));
        }
        Pass {
            over,
            until: self.last,
            passed: self.passed.subscribe(),
        }
    }

    /// Nothing is queued and nothing under way; what was put aside does not count.
    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.under_way.is_none()
    }

    /// Something is on its way to the kernel.
    pub(super) fn is_sending(&self) -> bool {
        self.under_way.is_some()
    }

    /// What is to be sent now, if anything is; its fate is told with [`Self::sent`].
    pub(super) fn next(&mut self, now: Instant) -> Option<Parcel> {
        if self.under_way.is_some() {
            return None;
        }
        let due = |at: Option<Instant>| at.is_none_or(|at| now >= at);
        if let Some(step) = self.steps.front().filter(|_| due(self.again)) {
            let entries = step.entries.iter().take(MAX_PARCEL);
            let entries = entries.map(|(key, what)| (key.clone(), what.clone()));
            let entries: Vec<_> = entries.collect();
            self.under_way = Some(true);
            self.again = None;
            if entries
                .iter()
                .any(|(key, _)| self.troubles.contains_key(key))
            {
                failpoint::reach("save.again");
            }
            return Some(Parcel { entries });
        }
        if self.aside_again.is_none() || !due(self.aside_again) {
            return None;
        }
        self.aside_again = None;
        let aside = self.troubles.iter().filter_map(|(key, trouble)| {
            let what = trouble.aside.clone()?;
            Some((key.clone(), what))
        });
        let entries: Vec<_> = aside.take(MAX_PARCEL).collect();
        if entries.is_empty() {
            return None;
        }
        self.under_way = Some(false);
        Some(Parcel { entries })
    }

    /// What became of the parcel under way. Answers what is not waited for any more, if there is
    /// something.
    pub(super) fn sent(&mut self, fates: Vec<(Key, Fate)>, now: Instant) -> Option<PutAside> {
        let of_step = self.under_way.take()?;
        let mut put_aside = None;
        let mut refused = false;
        for (key, fate) in fates {
            let reason = match fate {
                Fate::Done => {
                    self.done(&key, of_step);
                    continue;
                }
                Fate::Lost => continue,
                Fate::Refused(reason) => reason,
            };
            refused = true;
            let trouble = self.troubles.entry(key.clone()).or_insert_with(|| {
                tracing::warn!(what = %about(&key), reason, "the kernel refused to save state; trying again");
                Trouble {
                    since: now,
                    reason: String::new(),
                    aside: None,
                }
            });
            trouble.reason = reason;
            if !of_step || now.saturating_duration_since(trouble.since) < HOLD {
                continue;
            }
            let Some(step) = self.steps.front_mut() else {
                continue;
            };
            trouble.aside = step.entries.remove(&key);
            put_aside = Some(PutAside {
                step: step.number,
                reason: format!(
                    "the kernel does not keep {}: {}",
                    about(&key),
                    trouble.reason
                ),
            });
        }
        if refused {
            failpoint::reach("save.refused");
        }
        if of_step && refused {
            self.again = Some(now + self.pause);
            self.pause = (self.pause * 2).min(AGAIN_MAX);
        } else if of_step {
            self.pause = AGAIN_MIN;
        }
        if self
            .troubles
            .values()
            .any(|trouble| trouble.aside.is_some())
        {
            self.aside_again.get_or_insert(now + ASIDE_AGAIN);
        }
        self.pass_on();
        put_aside
    }

    fn done(&mut self, key: &Key, of_step: bool) {
        if self.troubles.contains_key(key) {
            failpoint::reach("save.taken");
        }
        if of_step && let Some(step) = self.steps.front_mut() {
            step.entries.remove(key);
        }
        if self.troubles.remove(key).is_some() {
            tracing::info!(what = %about(key), "saved in the kernel after earlier failures");
        }
    }

    /// Steps of which nothing is left are over.
    fn pass_on(&mut self) {
        while let Some(step) = self.steps.front()
            && step.entries.is_empty()
            && self.under_way != Some(true)
        {
            let number = step.number;
            self.steps.pop_front();
            self.again = None;
            self.pause = AGAIN_MIN;
            self.passed.send_replace(number);
        }
        if self.steps.is_empty() {
            self.passed.send_replace(self.last);
        }
        let passed = *self.passed.borrow();
        while self
            .waiting
            .front()
            .is_some_and(|(until, _)| *until <= passed)
        {
            let Some((_, sender)) = self.waiting.pop_front() else {
                break;
            };
            // Whoever waited may have lost patience.
            let _ = sender.send(());
        }
    }

    /// Another kernel has none of the processes that were known.
    pub(super) fn forget_exits(&mut self) {
        for step in &mut self.steps {
            step.entries.retain(|key, _| !matches!(key, Key::Exit(_)));
        }
        self.troubles.retain(|key, _| !matches!(key, Key::Exit(_)));
        self.pass_on();
    }

    /// Nothing is to be kept any more, whatever was asked for. What is under way is on its way: see
    /// [`Self::is_sending`].
    pub(super) fn clear(&mut self) {
        for step in &mut self.steps {
            step.entries.clear();
        }
        self.troubles.clear();
        self.aside_again = None;
        self.pass_on();
    }

    /// When there is something to do again without news from the kernel.
    pub(super) fn deadline(&self) -> Option<Instant> {
        if self.under_way.is_some() {
            return None;
        }
        let again = self.again.filter(|_| !self.steps.is_empty());
        again.into_iter().chain(self.aside_again).min()
    }

    /// What the kernel has not taken for longer than something new would be held up, for people.
    pub(super) fn trouble(&self, now: Instant) -> Option<String> {
        let mut lasting = self
            .troubles
            .iter()
            .filter(|(_, trouble)| now.saturating_duration_since(trouble.since) >= HOLD);
        let (key, trouble) = lasting.next()?;
        let seconds = now.saturating_duration_since(trouble.since).as_secs();
        let more = match lasting.count() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Some(format!(
            "the kernel has not kept {}{more} for {seconds} s: {}; a manager that is started now would not know it",
            about(key),
            trouble.reason
        ))
    }
}

fn about(key: &Key) -> String {
    match key {
        Key::Value(name) => name.clone(),
        Key::Exit(serial) => format!("that process {serial} is dealt with"),
    }
}

#[cfg(test)]
mod tests;
