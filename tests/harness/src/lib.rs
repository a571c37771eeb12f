//! What every black-box suite starts from: a kernel of its own, clients that speak raw bytes, and a
//! clean-up.
//!
//! Owns the processes of one test: a kernel in a private runtime directory, and everything below
//! it, killed when the value is dropped. Knows the wire only as far as a test must (`classic`,
//! `json`); it deliberately does not use `papa-protocol`, so that a mistake shared by client and
//! kernel still shows.
//!
//! Programs are found beside the test's own executable, where cargo puts those of every package.
//!
//! Invariant: nothing waits by sleeping until it probably works; every wait is [`wait_until`] with
//! a deadline.

mod classic;
mod collect;
mod failpoints;
mod json;
mod kernel;
pub mod procfs;
mod python;
pub mod revision;
mod scratch;
mod site;
pub mod skips;
pub mod whole;

use std::io::Write;
use std::time::{Duration, Instant};

pub use classic::Classic;
pub use collect::Collector;
pub use failpoints::{Failpoints, Hit};
pub use json::{Json, Push};
pub use kernel::{Kernel, KernelBuilder, below_file_limit, binary, free_port, private_command};
pub use python::Venv;
pub use scratch::Scratch;
pub use site::Site;

/// How long a condition may take before the test fails: far above what any of them needs on a busy
/// machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Pause between two looks at a condition that has no event to wait for.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Waits until `condition` holds, and fails the test naming `what` after [`PATIENCE`].
///
/// # Panics
/// When the condition does not hold in time.
#[track_caller]
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    wait_until_for(what, PATIENCE, condition);
}

/// [`wait_until`] with a time limit of its own.
///
/// # Panics
/// When the condition does not hold in time.
#[track_caller]
pub fn wait_until_for(what: &str, patience: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "waited {patience:?} in vain until {what}"
        );
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Waits until `get` gives a value, and fails the test naming `what` after [`PATIENCE`].
///
/// # Panics
/// When there is no value in time.
#[track_caller]
pub fn wait_for<T>(what: &str, mut get: impl FnMut() -> Option<T>) -> T {
    let mut found = None;
    wait_until(what, || {
        found = get();
        found.is_some()
    });
    found.expect("the wait ended with a value")
}

/// Copies a program that is to be executed. By another process, since a child that a test beside
/// this one forks meanwhile would have our descriptor open for writing, and a file that is open for
/// writing is not executed.
///
/// # Panics
/// When it cannot be copied.
#[track_caller]
pub fn copy_program(from: &std::path::Path, to: &std::path::Path) {
    let status = std::process::Command::new("cp").arg(from).arg(to).status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "{} cannot be copied",
        from.display()
    );
}

/// Says that this test cannot run here, past the test runner's capture, and again at the end of the
/// run ([`skips`]); in CI it is a failure.
///
/// # Panics
/// When the environment says `CI=true`.
pub fn skipped(why: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    // `println!` would be captured, and shown of failed tests only.
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {why}");
    if let Err(error) = skips::add(test, why) {
        let _ = writeln!(
            std::io::stderr(),
            "not noted for the end of the run: {error}"
        );
    }
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "skipped in CI: {why}"
    );
}

/// True for root: some things (another uid, a network namespace) can only be tried with privileges.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Compares two texts and prints both as blocks when they differ.
///
/// # Panics
/// When they differ.
#[track_caller]
pub fn assert_same(what: &str, expected: &str, got: &str) {
    assert!(
        expected == got,
        "{what} differs\n--- expected\n{expected}\n--- got\n{got}\n---"
    );
}

/// The same for bytes that may be long: says where they first differ.
///
/// # Panics
/// When they differ.
#[track_caller]
pub fn assert_same_bytes(what: &str, expected: &[u8], got: &[u8]) {
    if expected == got {
        return;
    }
    let at = expected
        .iter()
        .zip(got)
        .position(|(expected, got)| expected != got)
        .unwrap_or(expected.len().min(got.len()));
    let around = |bytes: &[u8]| {
        let from = at.saturating_sub(40);
        let to = (at + 40).min(bytes.len());
        String::from_utf8_lossy(bytes.get(from..to).unwrap_or_default()).into_owned()
    };
    panic!(
        "{what}: expected {} bytes, got {}; they differ at {at}\n--- expected\n{}\n--- got\n{}\n---",
        expected.len(),
        got.len(),
        around(expected),
        around(got)
    );
}
