//! papa's own client test module, unmodified, against our kernel: all 29 tests, each on a kernel of
//! its own.

use std::path::Path;
use std::process::Command;

use papa_harness::{Venv, binary};

/// How many tests the module of papa 1.0.6 has.
const TESTS: &str = "passed 29 of 29";

#[test]
fn the_original_client_tests_pass() {
    let Some(venv) = Venv::get() else { return };
    let runner = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/python/run_client_tests.py");
    let output = Command::new(venv.python())
        .arg("-B")
        .arg(runner)
        .arg(venv.root().join("client"))
        .arg(binary("papa"))
        .output()
        .expect("the interpreter of the environment runs");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(
        output.status.success() && text.lines().last() == Some(TESTS),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
