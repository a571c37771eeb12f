//! `doctor` is short where all is well, and tells what it can where no manager runs.

use std::process::Output;

use papa_harness::{Site, procfs};

const TWO: &str = "[watcher:web]\ncmd = sh -c 'echo a line; exec sleep 1000'\nnumprocesses = 2\ncopy_env = true\n";

/// Its text without the line breaks of a narrow terminal.
fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_ledger_for_each_of_many_workers_hid_everything_else() {
    let site = Site::new(TWO);
    site.done("up site.ini");
    let short = site.done("doctor");
    assert!(!short.contains("circus.web.1:"), "{short}");
    assert!(short.contains("adds up for all 2 processes"), "{short}");
    let ledgers = short.lines().filter(|line| line.contains("ledger"));
    assert_eq!(ledgers.count(), 1, "{short}");
    for flag in ["-v", "--verbose"] {
        let long = site.done(&format!("doctor {flag}"));
        assert!(long.contains("circus.web.1:"), "{long}");
        assert!(long.contains("circus.web.2:"), "{long}");
    }
    assert!(site.done("doctor --json").contains("circus.web.1:"));
    site.done("down");
}

#[test]
fn without_a_manager_doctor_said_nothing_of_what_runs_on() {
    let site = Site::new(TWO);
    site.done("up site.ini");
    let pids = site.wait_pids("web", 2);
    site.done("quit");
    let output = site.papactl("doctor --config site.ini");
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("problem manager no manager runs"), "{text}");
    assert!(text.contains("2 processes run"), "{text}");
    assert!(
        text.contains("run on without a manager: circus.web.1"),
        "{text}"
    );
    assert!(text.contains("papactl up FILE"), "{text}");
    assert!(text.contains("adds up for all 2 processes"), "{text}");
    assert!(pids.iter().all(|pid| procfs::alive(*pid)));
    site.done("up site.ini");
    site.done("down");
    let output = site.papactl("doctor --config site.ini");
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("kernel none answers"), "{text}");
}
