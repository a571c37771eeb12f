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

/// Waits until `holds` answers true, for at most ten seconds, and answers whether it did.
///
/// For unit tests of what happens when the last copy of a descriptor is closed: a child that another
/// test starts at that moment has a copy of every descriptor from its fork to its exec.
#[doc(hidden)]
pub fn eventually(mut holds: impl FnMut() -> bool) -> bool {
    let until = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        if holds() {
            return true;
        }
        if std::time::Instant::now() >= until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
