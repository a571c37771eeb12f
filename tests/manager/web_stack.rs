//! The example with nginx and uwsgi keeps its promise: its own demonstration is the test.

use std::process::Command;

use papa_harness::{binary, skipped};

#[test]
fn the_web_stack_demonstration_succeeds() {
    for program in ["nginx", "uwsgi", "curl", "python3"] {
        let found = Command::new("sh")
            .args(["-c", &format!("command -v {program}")])
            .output();
        if !found.is_ok_and(|output| output.status.success()) {
            return skipped(&format!("{program} is not installed"));
        }
    }
    let papactl = binary("papactl");
    let output = Command::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../examples/web-stack/demo.sh"
    ))
    .env("BIN", binary("papa").parent().unwrap_or(&papactl))
    .env("SECONDS_PER_STEP", "0.2")
    .output()
    .unwrap();
    assert!(
        output.status.success(),
        "{}\n--- stdout\n{}\n--- stderr\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
