//! A slow disk, without privileges over the block device.
//!
//! In a build with debug assertions `PAPA_TEST_SLOW_DISK_MS` says how long every step with a log
//! file takes; in a release build nothing of this exists.

/// Nothing, in this build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn pause() {}

/// Waits as long as a slow disk takes for one step.
#[cfg(debug_assertions)]
pub fn pause() {
    use std::sync::OnceLock;
    use std::time::Duration;

    static PAUSE: OnceLock<Option<Duration>> = OnceLock::new();
    let pause = PAUSE.get_or_init(|| {
        let text = std::env::var("PAPA_TEST_SLOW_DISK_MS").ok()?;
        Some(Duration::from_millis(text.parse().ok()?))
    });
    if let Some(pause) = pause {
        std::thread::sleep(*pause);
    }
}
