//! What ends while the manager has no kernel is found in the list it asks for when it has one
//! again, whatever happens to the kernel, or to the output of the dead, while it does.

use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::stack::Stack;
use papa_harness::{procfs, wait_for, wait_until};

/// What it has written is taken by nobody, so that the list is followed by a look at it.
const TALKER: &str = "[watcher:talker]\ncmd = sh -c 'echo begun; exec sleep 1000'\ncopy_env = true\nbackoff_reset = 0\n";

/// The place where the manager has the list, and has read nothing of the output.
const LISTED: &str = "adopt.processes";

fn talker(stack: &Stack) -> Option<Value> {
    stack.kernel.json().process("circus.talker.1")
}

/// A manager that stops itself when it has listed for the n-th time.
fn stack_that_stops_at(time: u64) -> Stack {
    let mut stack = Stack::start(TALKER);
    stack.wait_pids("talker", 1);
    stack.kill_manager();
    stack.start_manager_to_stop_at(LISTED, time);
    stack
}

#[track_caller]
fn wait_stopped(stack: &Stack) {
    wait_for("the manager stands still", || {
        stack.failpoints().hit(LISTED)
    });
}

/// Somebody else takes everything the worker has written, as the log thread may.
fn take_all(stack: &Stack) {
    let process = talker(stack).expect("nobody has acknowledged its exit");
    let mut session = stack.kernel.json();
    let names = json!({"names": ["circus.talker.1"], "force": true});
    session.ok("output.consume", names);
    let acks = json!({process["serial"].to_string(): process["ledger"]["captured"]});
    session.ok("output.ack", json!({ "acks": acks }));
}

/// Has kernel and worker die while the manager stands still, and waits until the next kernel knows.
fn die_unseen(stack: &mut Stack, worker: i32) {
    let status = stack.kernel.status();
    let pid = |role: &str| i32::try_from(status[role].as_i64().unwrap()).unwrap();
    stack.signal_manager(Signal::SIGSTOP);
    // So that the end is recorded by a kernel to which the manager is not connected yet.
    procfs::signal(pid("keeper"), Signal::SIGSTOP);
    procfs::signal(pid("pid"), Signal::SIGKILL);
    procfs::signal(worker, Signal::SIGKILL);
    procfs::signal(pid("keeper"), Signal::SIGCONT);
    wait_until("the next kernel knows of the end", || {
        let now = stack.kernel.try_status();
        now.is_some_and(|now| now["pid"] != status["pid"])
            && talker(stack).is_some_and(|process| process["running"] == false)
    });
}

#[track_caller]
fn wait_replaced(stack: &Stack, before: i32) {
    wait_until("another worker runs", || {
        let now = stack.pids("talker");
        now.get(&1).is_some_and(|pid| *pid != before)
    });
}

#[test]
fn output_that_is_taken_before_it_is_read_held_up_the_list_for_ever() {
    let mut stack = stack_that_stops_at(2);
    stack.wait_attached();
    let before = stack.wait_pids("talker", 1)[&1];
    die_unseen(&mut stack, before);
    stack.signal_manager(Signal::SIGCONT);
    wait_stopped(&stack);
    take_all(&stack);
    stack.signal_manager(Signal::SIGCONT);
    wait_replaced(&stack, before);
}

#[test]
fn output_that_is_taken_before_it_is_read_held_up_a_new_manager_for_ever() {
    let mut stack = stack_that_stops_at(2);
    stack.kill_manager();
    let before = i32::try_from(talker(&stack).unwrap()["pid"].as_i64().unwrap()).unwrap();
    procfs::signal(before, Signal::SIGKILL);
    wait_until("the kernel knows of the end", || {
        talker(&stack).is_some_and(|process| process["running"] == false)
    });
    stack.start_manager_to_stop_at(LISTED, 1);
    wait_stopped(&stack);
    take_all(&stack);
    stack.signal_manager(Signal::SIGCONT);
    wait_replaced(&stack, before);
}

#[test]
fn a_keeper_that_dies_while_the_manager_lists_costs_no_end() {
    let mut stack = stack_that_stops_at(2);
    stack.wait_attached();
    let before = stack.wait_pids("talker", 1)[&1];
    die_unseen(&mut stack, before);
    stack.signal_manager(Signal::SIGCONT);
    wait_stopped(&stack);
    // Its connections are handed over to the next kernel.
    stack.kernel.kill_keeper();
    take_all(&stack);
    stack.signal_manager(Signal::SIGCONT);
    wait_replaced(&stack, before);
}

/// Workers whose output is written to a file, so that the log thread takes it at the same time.
const CROWD: &str = "
[watcher:crowd]
cmd = sh -c 'echo begun; exec sleep 1000'
copy_env = true
numprocesses = 3
backoff_reset = 0
stdout_stream.filename = DIR/logs/crowd.log
[socket:one]
host = 127.0.0.1
port = 0
[socket:two]
path = DIR/two.sock
";

/// How long after the kernel the keeper dies: from before the manager is connected again to after
/// it has listed.
const GAPS_MS: [u64; 10] = [0, 5, 10, 15, 20, 25, 30, 40, 60, 100];

#[test]
fn ends_between_the_death_of_a_kernel_and_that_of_its_keeper_are_noticed() {
    let mut stack = Stack::start(CROWD);
    for gap in GAPS_MS {
        let before = stack.wait_pids("crowd", 3);
        let status = stack.kernel.status();
        let kernel = i32::try_from(status["pid"].as_i64().unwrap()).unwrap();
        procfs::signal(kernel, Signal::SIGKILL);
        for wid in [1, 2] {
            procfs::signal(before[&wid], Signal::SIGKILL);
        }
        wait_until("another kernel serves", || {
            let now = stack.kernel.try_status();
            now.is_some_and(|now| now["pid"] != status["pid"])
        });
        // The length of the gap is the test's input.
        sleep(Duration::from_millis(gap));
        let begun = Instant::now();
        stack.kernel.kill_keeper();
        wait_until("both are replaced", || {
            let now = stack.pids("crowd");
            now.len() == 3 && [1, 2].iter().all(|wid| now[wid] != before[wid])
        });
        assert_eq!(stack.pids("crowd")[&3], before[&3], "{gap} ms: it lives on");
        println!("{gap} ms: {:?}", begun.elapsed());
    }
    let log = stack.log("crowd.log");
    let lines = String::from_utf8(log).unwrap();
    assert_eq!(lines, "begun\n".repeat(3 + 2 * GAPS_MS.len()));
}
