//! What the manager has the kernel keep arrives in order, also when the kernel refuses it or dies
//! meanwhile.

use nix::sys::signal::Signal;
use serde_json::json;

use crate::stack::Stack;
use papa_harness::{procfs, wait_for, wait_until};

const TWO: &str =
    "[watcher:one]\ncmd = sleep 600\n[watcher:two]\ncmd = sleep 600\nnumprocesses = 1\n";

/// Leaves the kernel no room for values.
#[track_caller]
fn fill(stack: &Stack) {
    let mut kernel = stack.kernel.json();
    let mut bytes = 1 << 20;
    for number in 0.. {
        let value = json!({"name": format!("filler.{number}"), "value": "x".repeat(bytes)});
        if kernel.call("value.set", value).unwrap().is_err() {
            bytes /= 2;
        }
        if bytes == 0 {
            return;
        }
    }
}

#[test]
fn a_save_the_kernel_refuses_is_told_and_tried_again_until_it_is_kept() {
    let mut stack = Stack::start(TWO);
    stack.wait_pids("one", 1);
    fill(&stack);
    let reply = stack.request("stop", "one");
    assert_eq!(reply["status"], "error", "{reply}");
    let reason = reply["reason"].as_str().unwrap();
    assert!(
        reason.starts_with("done, but a manager started after this one may not know it")
            && reason.contains("circus.manager.watcher.one"),
        "{reason}"
    );
    assert_eq!(stack.state("one"), "stopped", "it is done all the same");
    let trouble = || {
        let doctor = stack.ask("doctor", &json!({}));
        let findings = doctor["findings"].as_array().unwrap();
        let state = findings.iter().find(|finding| finding["about"] == "state");
        state.map(|finding| (finding["level"].clone(), finding["text"].to_string()))
    };
    let (level, text) = wait_for("doctor tells", trouble);
    assert_eq!(level, "problem");
    assert!(text.contains("circus.manager.watcher.one"), "{text}");
    // Workers of another watcher come and go meanwhile.
    let before = stack.wait_pids("two", 1);
    stack.request("restart", "two");
    assert_ne!(stack.wait_pids("two", 1), before);
    let names = json!({"names": ["filler.*"]});
    stack.kernel.json().ok("value.remove", names);
    wait_until("it is kept without another request", || {
        stack.kept("one")["stopped"] == true
    });
    wait_until("doctor has nothing to tell", || trouble().is_none());
    stack.kill_manager();
    stack.start_manager();
    stack.wait_pids("two", 1);
    assert_eq!(stack.state("one"), "stopped", "the next manager knows it");
}

#[test]
fn what_was_answered_is_known_to_the_next_manager_whenever_this_one_is_killed() {
    let mut stack = Stack::start(TWO);
    stack.wait_pids("two", 1);
    for count in 2..5 {
        let reply = stack.ask("incr", &json!({"name": "two", "nb": 1}));
        assert_eq!(reply["status"], "ok", "{reply}");
        stack.kill_manager();
        stack.start_manager();
        stack.wait_pids("two", count);
    }
}

#[test]
fn a_save_under_way_when_the_kernel_dies_reaches_the_next_kernel() {
    let mut stack = Stack::start(TWO);
    stack.wait_pids("one", 1);
    let kernel = stack.kernel.pid();
    procfs::signal(kernel, Signal::SIGSTOP);
    let asked = stack.request_now("stop", "one");
    // Nobody has heard that it is kept, and nobody is kept waiting.
    assert_eq!(asked["status"], "error", "{asked}");
    let reason = asked["reason"].as_str().unwrap();
    assert!(reason.contains("has not answered in time"), "{reason}");
    procfs::signal(kernel, Signal::SIGKILL);
    wait_until("another kernel keeps it", || {
        let status = stack.kernel.try_status();
        status.is_some_and(|status| status["pid"] != kernel) && stack.kept("one")["stopped"] == true
    });
}
