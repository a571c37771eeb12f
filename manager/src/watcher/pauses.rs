//! When each worker of a watcher may be started again.
//!
//! Owns one back-off record per worker number and its form in what the kernel keeps. Pure.
//! Invariant: a pause that has passed is no deadline: `expire` comes before `next_end` is asked.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::config::BackoffConfig;
use crate::state::KeptBackoff;
use crate::watcher::Moment;

#[derive(Debug, Clone, Default)]
pub(super) struct Pauses(BTreeMap<u32, Pause>);

#[derive(Debug, Clone, Copy, Default)]
struct Pause {
    record: Backoff,
    until: Option<Instant>,
    /// The same for what is kept.
    until_ms: u64,
}

impl Pauses {
    pub(super) fn from_kept(
        kept: &BTreeMap<u32, KeptBackoff>,
        config: &BackoffConfig,
        at: &Moment,
    ) -> Self {
        let pause = |kept: &KeptBackoff| {
            let left =
                Duration::from_millis(kept.until_ms.saturating_sub(at.epoch_ms)).min(config.max);
            Pause {
                record: kept.record,
                until: (!left.is_zero()).then(|| at.now + left),
                until_ms: kept.until_ms,
            }
        };
        Self(kept.iter().map(|(wid, kept)| (*wid, pause(kept))).collect())
    }

    pub(super) fn to_kept(&self) -> BTreeMap<u32, KeptBackoff> {
        let failing = self
            .0
            .iter()
            .filter(|(_, pause)| pause.record.failures() > 0);
        failing
            .map(|(wid, pause)| {
                let kept = KeptBackoff {
                    record: pause.record,
                    until_ms: pause.until_ms,
                };
                (*wid, kept)
            })
            .collect()
    }

    /// The worker ended by itself after `ran`. Answers the pause, and how often it ended soon.
    pub(super) fn ended(
        &mut self,
        wid: u32,
        ran: Duration,
        config: &BackoffConfig,
        at: &Moment,
    ) -> (Duration, u32) {
        let pause = self.0.entry(wid).or_default();
        let delay = pause.record.ended(ran, config, at.jitter);
        pause.last(delay, at);
        (delay, pause.record.failures())
    }

    /// The worker could not be started.
    pub(super) fn failed(&mut self, wid: u32, config: &BackoffConfig, at: &Moment) -> Duration {
        let pause = self.0.entry(wid).or_default();
        let delay = pause.record.failed(config, at.jitter);
        pause.last(delay, at);
        delay
    }

    /// A pause that is nobody's fault and not kept.
    pub(super) fn postpone(&mut self, wid: u32, until: Instant) {
        self.0.entry(wid).or_default().until = Some(until);
    }

    pub(super) fn forget(&mut self, wid: u32) {
        self.0.remove(&wid);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Clears what has passed.
    pub(super) fn expire(&mut self, now: Instant) {
        for pause in self.0.values_mut() {
            pause.until = pause.until.filter(|until| now < *until);
        }
    }

    pub(super) fn is_paused(&self, wid: u32) -> bool {
        self.0.get(&wid).is_some_and(|pause| pause.until.is_some())
    }

    pub(super) fn any_paused(&self) -> bool {
        self.0.values().any(|pause| pause.until.is_some())
    }

    pub(super) fn next_end(&self) -> Option<Instant> {
        self.0.values().filter_map(|pause| pause.until).min()
    }

    /// By number of a worker: its quick ends in a row.
    pub(super) fn failures(&self) -> impl Iterator<Item = (u32, u32)> {
        let records = self.0.iter();
        records.map(|(wid, pause)| (*wid, pause.record.failures()))
    }

    /// Most quick ends in a row of any worker.
    pub(super) fn worst(&self) -> u32 {
        self.0
            .values()
            .map(|pause| pause.record.failures())
            .max()
            .unwrap_or(0)
    }
}

impl Pause {
    fn last(&mut self, delay: Duration, at: &Moment) {
        if delay.is_zero() {
            self.until = None;
            self.until_ms = 0;
            return;
        }
        self.until = Some(at.now + delay);
        let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.until_ms = at.epoch_ms.saturating_add(delay_ms);
    }
}
