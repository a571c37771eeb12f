//! Services in four languages are deployed, and everything that manages them is replaced and
//! killed, without a failed request: the example's own demonstration is the test, with a short
//! load.

use std::process::Command;

use papa_harness::{binary, skipped};

#[test]
fn the_zero_downtime_demonstration_succeeds() {
    let papactl = binary("papactl");
    let profile = binary("papa").parent().unwrap_or(&papactl).to_owned();
    let output = Command::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../examples/zero-downtime/demo.sh"
    ))
    .env("BIN", &profile)
    .env("VENV", profile.with_file_name("zero-downtime-venv"))
    .env("SECONDS_PER_STEP", "0.2")
    // Other tests want the processor, too.
    .env("WRK_BREATH_MS", "20")
    .output()
    .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}\n--- stdout\n{stdout}\n--- stderr\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    // What is not installed here, the script leaves out.
    for line in stdout.lines().filter(|line| line.starts_with("left out: ")) {
        skipped(line);
    }
}
