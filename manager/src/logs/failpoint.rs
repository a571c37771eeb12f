//! Where a test may have the manager killed: between two system calls of its choice.
//!
//! In a build with debug assertions the variable `PAPA_TEST_KILL_AT=STEP:N` makes the process send itself SIGKILL when the step is
//! reached for the N-th time; in a release build nothing of this exists.

/// A place in the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A write is recorded, and not a byte of it in the file.
    BeforeWrite,
    /// Part of a write is in the file.
    InWrite,
    /// All of a write is in the file, and the record still says that it is not.
    AfterWrite,
    /// A rotation is recorded, and some of its renames are done.
    Rotating,
    /// A rotation is done, and the record still says that it is not.
    Rotated,
    /// Compressed, but one of the two names is still to go.
    Compressed,
    /// Written, recorded, and not yet acknowledged.
    BeforeAcknowledge,
}

#[cfg(not(debug_assertions))]
pub(super) fn reach(_: Step) {}

#[cfg(not(debug_assertions))]
pub(super) fn reach_in_write() -> bool {
    false
}

#[cfg(debug_assertions)]
pub(super) use armed::{reach, reach_in_write};

#[cfg(debug_assertions)]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::Step;

    const VARIABLE: &str = "PAPA_TEST_KILL_AT";

    static CHOSEN: OnceLock<Option<(Step, u64)>> = OnceLock::new();
    static REACHED: AtomicU64 = AtomicU64::new(0);

    fn chosen() -> Option<(Step, u64)> {
        *CHOSEN.get_or_init(|| {
            let text = std::env::var(VARIABLE).ok()?;
            let (step, count) = text.split_once(':')?;
            let step = match step {
                "before_write" => Step::BeforeWrite,
                "in_write" => Step::InWrite,
                "after_write" => Step::AfterWrite,
                "rotating" => Step::Rotating,
                "rotated" => Step::Rotated,
                "compressed" => Step::Compressed,
                "before_acknowledge" => Step::BeforeAcknowledge,
                _ => return None,
            };
            Some((step, count.parse().ok()?))
        })
    }

    pub(in crate::logs) fn reach(step: Step) {
        if let Some((chosen, count)) = chosen()
            && chosen == step
            && REACHED.fetch_add(1, Ordering::Relaxed) + 1 == count
        {
            let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
        }
    }

    /// Whether a write is to be cut in two, so that there is a middle of it.
    pub(in crate::logs) fn reach_in_write() -> bool {
        chosen().is_some_and(|(step, _)| step == Step::InWrite)
    }
}
