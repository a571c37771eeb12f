//! A manager that stands still is ended by whoever comes to take its place; workers and lines do
//! not notice. One that lost its namespace while it stood still wakes up, does nothing and ends.

use std::fs;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::stack::Stack;
use papa_harness::{binary, private_command, procfs, wait_until};

/// What ten seconds of patience are here; see `papa_test_hooks::patience`.
const PATIENCE: (&str, &str) = ("PAPA_TEST_PATIENCE_MS", "1000");

/// Numbered lines until the file `enough` is there, and how many they were.
const INI: &str = "[watcher:one]\n\
    cmd = sh -c 'i=0; until [ -e DIR/enough ]; do i=$((i+1)); echo $i; sleep 0.01; done; echo $i > DIR/count; exec sleep 1000'\n\
    copy_env = true\nstdout_stream.filename = DIR/logs/one.log\n";

fn manager_pid(stack: &Stack) -> i32 {
    let status = stack.ask("status", &json!({}));
    i32::try_from(status["manager"]["pid"].as_i64().unwrap()).unwrap()
}

/// Every line is in the log once.
#[track_caller]
fn check_lines(stack: &Stack) {
    fs::write(stack.kernel.path("enough"), "").unwrap();
    let path = stack.kernel.path("count");
    wait_until("the worker has counted", || {
        fs::read_to_string(&path).is_ok_and(|text| text.ends_with('\n'))
    });
    let count: u32 = fs::read_to_string(&path).unwrap().trim().parse().unwrap();
    let expected: String = (1..=count).map(|number| format!("{number}\n")).collect();
    wait_until("every line is in the log, once", || {
        String::from_utf8(stack.log("one.log")).unwrap() == expected
    });
}

#[test]
fn a_manager_that_stands_still_is_replaced_by_the_next() {
    let mut stack = Stack::start(INI);
    let workers = stack.wait_pids("one", 1);
    let old = manager_pid(&stack);
    stack.signal_manager(Signal::SIGSTOP);
    stack.start_manager_with(PATIENCE);
    assert!(!procfs::alive(old), "the one that stood still is gone");
    assert_ne!(manager_pid(&stack), old);
    assert_eq!(stack.wait_pids("one", 1), workers);
    let log = stack.manager_log();
    assert!(
        log.contains("ended an earlier manager that did not answer"),
        "{log}"
    );
    check_lines(&stack);
}

#[test]
fn papactl_up_replaces_a_manager_that_stands_still() {
    let stack = Stack::start(INI);
    let workers = stack.wait_pids("one", 1);
    let old = manager_pid(&stack);
    stack.signal_manager(Signal::SIGSTOP);
    let socket = stack.kernel.socket_path();
    stack.rewrite(&format!(
        "[circus]\npapa_endpoint = unix:{}\n{INI}",
        socket.display()
    ));
    let mut command: Command = private_command(&binary("papactl"), stack.kernel.directory());
    let output = command
        .current_dir(stack.kernel.directory())
        .env(PATIENCE.0, PATIENCE.1)
        .args(["up", "stack.ini"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    assert!(
        said.contains(&format!("manager: pid {old} did not answer and was ended")),
        "{said}"
    );
    assert!(!procfs::alive(old));
    assert_eq!(stack.wait_pids("one", 1), workers);
    check_lines(&stack);
}

#[test]
fn a_manager_that_answers_is_left_alone() {
    let stack = Stack::start(INI);
    let old = manager_pid(&stack);
    let mut command: Command = private_command(&binary("papa-manager"), stack.kernel.directory());
    let output = command
        .current_dir(stack.kernel.directory())
        .env(PATIENCE.0, PATIENCE.1)
        .arg("--kernel")
        .arg(stack.kernel.socket_path())
        .arg("stack.ini")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains(&format!("already runs for namespace \"circus\", pid {old}")),
        "{said}"
    );
    assert_eq!(manager_pid(&stack), old);
}

#[test]
fn one_whose_namespace_was_taken_while_it_stood_still_does_nothing_and_ends() {
    let mut stack = Stack::start(INI);
    let workers = stack.wait_pids("one", 1);
    stack.signal_manager(Signal::SIGSTOP);
    let mut session = stack.kernel.json();
    session.ok(
        "claim",
        json!({"namespace": "circus", "holder": "a test", "force": true}),
    );
    // Its worker ends: it must not start another one when it wakes up.
    for pid in workers.values() {
        procfs::signal(*pid, Signal::SIGKILL);
    }
    wait_until("its worker has ended", || {
        session
            .process("circus.one.1")
            .is_none_or(|process| process["running"] == false)
    });
    stack.signal_manager(Signal::SIGCONT);
    assert_eq!(stack.wait_manager_end().code(), Some(1));
    let log = stack.manager_log();
    assert!(log.contains("was taken over by a test"), "{log}");
    let listed = session.ok("process.list", json!({}))["processes"].clone();
    let running = listed
        .as_array()
        .unwrap()
        .iter()
        .filter(|process| process["running"] == true)
        .count();
    assert_eq!(running, 0, "{listed}");
}
