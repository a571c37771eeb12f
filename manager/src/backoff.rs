//! When a worker that ended is started again.
//!
//! Owns the growth of the delay. Pure: the caller says how long the worker ran and supplies the
//! jitter.
//! Invariant: a worker that ran for `reset` is started again at once; a delay is never longer than
//! `max`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::BackoffConfig;

/// Enough doublings to reach any sensible maximum; counting further would only overflow.
const MAX_DOUBLINGS: u32 = 30;

/// How one worker's restarts have gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The worker ended after `ran`: how long to wait before the next start. `jitter` is any
    /// number; it takes up to a quarter off, so that many workers that failed together do not
    /// return together.
    pub fn ended(&mut self, ran: Duration, config: &BackoffConfig, jitter: u64) -> Duration {
        if ran >= config.reset {
            self.failures = 0;
            return Duration::ZERO;
        }
        self.failures = self.failures.saturating_add(1);
        let Some(doublings) = self.failures.checked_sub(2) else {
            return Duration::ZERO;
        };
        let factor = 1 << doublings.min(MAX_DOUBLINGS);
        let delay = config.first.saturating_mul(factor).min(config.max);
        delay - (delay / 4).mul_f64((jitter % 1024) as f64 / 1024.0)
    }

    /// The worker could not be started at all: there is no free attempt.
    pub fn failed(&mut self, config: &BackoffConfig, jitter: u64) -> Duration {
        self.failures = self.failures.max(1);
        // Whatever `reset` is: it did not run at all.
        let config = BackoffConfig {
            reset: Duration::MAX,
            ..*config
        };
        self.ended(Duration::ZERO, &config, jitter)
    }

    /// Quick ends in a row.
    #[must_use]
    pub fn failures(self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST_DELAY: Duration = Duration::from_millis(100);
    const MAX_DELAY: Duration = Duration::from_secs(30);
    const LONG_ENOUGH: Duration = Duration::from_secs(10);
    const CONFIG: BackoffConfig = BackoffConfig {
        first: FIRST_DELAY,
        max: MAX_DELAY,
        reset: LONG_ENOUGH,
    };

    #[test]
    fn the_first_quick_end_is_free_and_then_delays_double_up_to_the_limit() {
        let mut backoff = Backoff::default();
        let delays: Vec<u128> = (0..12)
            .map(|_| backoff.ended(Duration::ZERO, &CONFIG, 0).as_millis())
            .collect();
        assert_eq!(delays[..5], [0, 100, 200, 400, 800]);
        assert_eq!(delays[10..], [30_000, 30_000]);
    }

    #[test]
    fn a_long_run_clears_the_record() {
        let mut backoff = Backoff::default();
        for _ in 0..5 {
            backoff.ended(Duration::ZERO, &CONFIG, 0);
        }
        assert_eq!(backoff.ended(LONG_ENOUGH, &CONFIG, 0), Duration::ZERO);
        assert_eq!(backoff.failures(), 0);
    }

    #[test]
    fn jitter_takes_at_most_a_quarter_off() {
        for jitter in [0, 1, 1023, u64::MAX] {
            let mut backoff = Backoff { failures: 4 };
            let delay = backoff.ended(Duration::ZERO, &CONFIG, jitter);
            assert!(
                delay <= Duration::from_millis(800) && delay >= Duration::from_millis(600),
                "{delay:?}"
            );
        }
    }

    #[test]
    fn a_failed_start_always_waits() {
        assert_eq!(Backoff::default().failed(&CONFIG, 0), FIRST_DELAY);
        let mut many = Backoff { failures: u32::MAX };
        assert_eq!(many.failed(&CONFIG, 0), MAX_DELAY);
    }
}
