//! A disk so slow that one write takes longer than the kernel waits for an acknowledgement: while
//! the manager lives, not a line is lost, and nobody waits for the files of others.
//!
//! Slow disks are made by `logs::pulse`, which makes every step take that long in builds with debug
//! assertions only.

use std::fs;
use std::time::Duration;

use crate::stack::Stack;
use papa_harness::{wait_until, wait_until_for};

/// More than the kernel keeps of a process, so that the writer waits.
const NUMBERS: u32 = 240_000;
/// For what a slow disk takes.
const LONG: Duration = Duration::from_secs(180);

/// Writes the numbers once the file `go` is there.
const CMD: &str = "sh -c 'until [ -e DIR/go ]; do sleep 0.05; done; seq 1 240000; exec sleep 1000'";

fn expected() -> String {
    (1..=NUMBERS).map(|number| format!("{number}\n")).collect()
}

fn go(stack: &Stack) {
    fs::write(stack.kernel.path("go"), "").unwrap();
}

/// What the ledgers of all processes that are named alike say of one thing, summed up.
fn ledgers(stack: &Stack, names: &str, key: &str) -> u64 {
    let listed = stack
        .kernel
        .json()
        .ok("process.list", serde_json::json!({ "names": [names] }));
    let processes = listed["processes"].as_array().unwrap();
    let of = |process: &serde_json::Value| process["ledger"][key].as_u64().unwrap();
    processes.iter().map(of).sum()
}

/// Waits until everything is in the files, and compares.
#[track_caller]
fn check(stack: &Stack, logs: &[&str]) {
    let expected = expected();
    let wanted = (expected.len() * logs.len()) as u64;
    wait_until_for("everything is acknowledged", LONG, || {
        assert_eq!(
            ledgers(stack, "circus.*", "dropped"),
            0,
            "nothing is dropped"
        );
        ledgers(stack, "circus.*", "acknowledged") == wanted
    });
    for log in logs {
        let found = String::from_utf8(stack.log(log)).unwrap();
        assert!(found == expected, "{log} has {} bytes", found.len());
    }
}

#[test]
fn writes_that_take_seconds_cost_no_line() {
    let watcher = |name: &str| {
        format!(
            "[watcher:{name}]\ncmd = {CMD}\ncopy_env = true\nstdout_stream.filename = DIR/logs/{name}.log\n"
        )
    };
    let ini = [watcher("one"), watcher("two")].concat();
    // More than the two seconds the kernel waits for an acknowledgement.
    let stack = Stack::start_with(&ini, ("PAPA_TEST_SLOW_DISK_MS", "2600"));
    go(&stack);
    check(&stack, &["one.log", "two.log"]);
}

#[test]
fn a_rotation_that_takes_seconds_costs_no_line() {
    let ini = format!(
        "[watcher:one]\ncmd = {CMD}\ncopy_env = true\nstdout_stream.filename = DIR/logs/one.log\n\
         stdout_stream.max_bytes = 900000\nstdout_stream.backup_count = 40\n"
    );
    let stack = Stack::start_with(&ini, ("PAPA_TEST_SLOW_DISK_MS", "120"));
    for number in 1..=30 {
        fs::write(stack.kernel.path(&format!("logs/one.log.{number}")), "").unwrap();
    }
    go(&stack);
    check(&stack, &["one.log"]);
}

#[test]
fn a_rotation_that_a_successor_finishes_slowly_costs_no_line() {
    let ini = format!(
        "[watcher:one]\ncmd = {CMD}\ncopy_env = true\nstdout_stream.filename = DIR/logs/one.log\n\
         stdout_stream.max_bytes = 300000\nstdout_stream.backup_count = 40\n"
    );
    let mut stack = Stack::start(&ini);
    stack.wait_pids("one", 1);
    stack.kill_manager();
    for number in 1..=30 {
        fs::write(stack.kernel.path(&format!("logs/one.log.{number}")), "").unwrap();
    }
    // In the middle of the first rotation, before most of it.
    stack.start_manager_to_stop_at("log.rotating", 3);
    go(&stack);
    wait_until("it is there", || {
        stack.failpoints().hit("log.rotating").is_some()
    });
    stack.kill_manager();
    stack.start_manager_with(("PAPA_TEST_SLOW_DISK_MS", "120"));
    check(&stack, &["one.log"]);
}
