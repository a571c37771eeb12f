//! Waits that run out or are interrupted: the work goes on, and the command says so.

use super::*;

/// A command that ignores TERM, and the file it makes once it does.
const DEAF: &str = "[watcher:deaf]\ncmd = sh -c 'trap \"\" TERM; echo up > DIR/up; while :; do sleep 0.2; done'\n\
    copy_env = true\ngraceful_timeout = 60\n";

#[test]
fn a_wait_that_is_too_long_says_what_is_missing() {
    let stack = Stack::start(DEAF);
    let path = stack.kernel.directory().join("up");
    wait_until("the worker ignores signals", || path.exists());
    let said = failed(&stack, "stop deaf --timeout 0.2", 1);
    assert!(
        said.contains("not done within 0.2 s: deaf stopping 1/1"),
        "{said}"
    );
    assert!(said.contains("goes on"), "{said}");
    assert_eq!(stack.state("deaf"), "stopping", "the work goes on");
    assert!(done(&stack, "stop deaf --no-wait").starts_with("deaf  stopping"));
    let output = run(&stack, "stop deaf --timeout 0.2 --json");
    let reply: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (output.status.code(), &reply["status"]),
        (Some(1), &json!("error"))
    );
}

#[test]
fn an_interrupted_wait_says_that_the_work_goes_on() {
    let stack = Stack::start(DEAF);
    let path = stack.kernel.directory().join("up");
    wait_until("the worker ignores signals", || path.exists());
    let child = papactl(&stack)
        .args(["stop", "deaf"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("the stop is under way", || {
        stack.state("deaf") == "stopping"
    });
    let pid = i32::try_from(child.id()).unwrap();
    procfs::signal(pid, nix::sys::signal::Signal::SIGINT);
    let output = child.wait_with_output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("interrupted") && said.contains("goes on"),
        "{said}"
    );
    assert_eq!(stack.state("deaf"), "stopping");
}
