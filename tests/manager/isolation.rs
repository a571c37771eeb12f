//! One watcher in trouble delays no other: the example with four of them is started, and the fifth
//! is used meanwhile.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::stack::Stack;
use papa_harness::{wait_until, wait_until_for};

/// What `stubborn` is given to end, in the example; everything else must be done long before.
const STUBBORN_GRACE: Duration = Duration::from_secs(60);
/// How long one command for the fifth may take in a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(15);

#[track_caller]
fn timed(stack: &Stack, command: &str, name: &str) -> Duration {
    let start = Instant::now();
    let reply = stack.request(command, name);
    assert_eq!(reply["status"], "ok", "{command} {name}: {reply}");
    let took = start.elapsed();
    assert!(took < PATIENCE, "{command} {name} took {took:?}");
    took
}

#[test]
fn four_watchers_in_trouble_delay_no_fifth() {
    let ini = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../examples/isolation/isolation.ini"
    );
    let stack = Stack::start(&fs::read_to_string(ini).unwrap());
    let first = stack.wait_pids("well", 2);
    timed(&stack, "start", "stubborn");
    stack.wait_pids("stubborn", 1);
    for name in ["flood", "full", "absent"] {
        stack.request_now("start", name);
    }
    stack.wait_pids("flood", 1);
    stack.wait_pids("full", 1);
    wait_until("the absent program is reported", || {
        stack.request("status", "absent")["watchers"][0]["message"].is_string()
    });
    wait_until("the full disk is reported", || {
        stack.request("status", "full")["watchers"][0]["message"].is_string()
    });
    stack.request_now("stop", "stubborn");
    let stopping = Instant::now();
    wait_until("stubborn is stopping", || {
        stack.state("stubborn") == "stopping"
    });

    let mut total = Duration::ZERO;
    for _ in 0..3 {
        for command in ["stop", "start", "reload"] {
            total += timed(&stack, command, "well");
        }
    }
    let last = stack.wait_pids("well", 2);
    assert!(
        last.values()
            .all(|pid| !first.values().any(|old| old == pid)),
        "{first:?} {last:?}"
    );
    assert_eq!(stack.request_all("numwatchers")["numwatchers"], json!(5));
    if stopping.elapsed() < STUBBORN_GRACE {
        assert_eq!(stack.state("stubborn"), "stopping");
        assert_eq!(stack.pids("stubborn").len(), 1);
    }
    println!("nine commands for the fifth took {total:?}");

    // The others go on as well: the flood still flows.
    let flood = stack.kernel.directory().join("flood.log");
    let length = || fs::metadata(&flood).map_or(0, |data| data.len());
    let before = length();
    wait_until_for("the flood flows", PATIENCE, || length() != before);
}
