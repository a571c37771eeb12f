//! How long others are waited for before they are taken to be stuck.
//!
//! The limits themselves stand where they are used; this shortens them for tests, all by one
//! measure, so that their order stays. In a build with debug assertions `PAPA_TEST_PATIENCE_MS`
//! says what ten seconds become; in a release build nothing of this exists.

use std::time::Duration;

/// The limit to go by.
#[cfg(not(debug_assertions))]
#[must_use]
pub fn scaled(limit: Duration) -> Duration {
    limit
}

/// The limit to go by.
#[cfg(debug_assertions)]
#[must_use]
pub fn scaled(limit: Duration) -> Duration {
    use std::sync::OnceLock;

    /// What ten seconds are to be, in milliseconds.
    static TEN_SECONDS_MS: OnceLock<Option<u32>> = OnceLock::new();
    let measure =
        TEN_SECONDS_MS.get_or_init(|| std::env::var("PAPA_TEST_PATIENCE_MS").ok()?.parse().ok());
    measure.map_or(limit, |milliseconds| limit * milliseconds / 10_000)
}
