//! The time of day.

use std::time::{SystemTime, UNIX_EPOCH};

/// The time of day in microseconds since the epoch.
#[must_use]
pub fn now_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
        })
}
