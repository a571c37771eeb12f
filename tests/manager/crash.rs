//! Kills under load: the workers stay who they are, and every line is in the log once and in order.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::stack::Stack;
use papa_harness::{wait_until, wait_until_for};

/// Lines of each worker: enough that it is still writing at the last kill.
const LINES: u64 = 40_000;
const WORKERS: usize = 3;
/// How long the writers may take in a debug build on a busy machine.
const WRITING: Duration = Duration::from_secs(90);
const ROUNDS: usize = 8;

/// Writers that number their lines on both streams, with one of the two rotated.
fn loaded() -> Stack {
    Stack::start(&format!(
        r#"
[watcher:load]
cmd = sh -c 'i=0; while [ $i -lt {LINES} ]; do echo "out-$$ $i abcdefghijklmnopqrstuvwxyz"; echo "err-$$ $i" >&2; i=$((i+1)); done; exec sleep 1000'
numprocesses = {WORKERS}
copy_env = true
stdout_stream.class = FileStream
stdout_stream.filename = DIR/logs/load.log
stdout_stream.max_bytes = 500000
stdout_stream.backup_count = 1000
stderr_stream.class = FileStream
stderr_stream.filename = DIR/logs/load.err
stderr_stream.time_format = %H:%M:%S
"#
    ))
}

/// The next number expected of every source; fails on the first line that is lost, repeated, torn
/// or out of order.
#[track_caller]
fn count(log: &[u8]) -> BTreeMap<String, u64> {
    let text = std::str::from_utf8(log).expect("the log is what was written");
    let mut next: BTreeMap<String, u64> = BTreeMap::new();
    for line in text.lines() {
        let line = line.rsplit("| ").next().unwrap_or(line);
        let mut words = line.split(' ');
        let source = words.next().unwrap_or_default().to_owned();
        let number = words.next().and_then(|word| word.parse().ok());
        let expected = next.entry(source).or_default();
        assert_eq!(number, Some(*expected), "in the line {line:?}");
        *expected += 1;
    }
    next
}

#[track_caller]
fn assert_complete(stack: &Stack) {
    let total = LINES * WORKERS as u64;
    for name in ["load.log", "load.err"] {
        wait_until_for("the log is complete", WRITING, || {
            let lines = stack
                .log(name)
                .iter()
                .filter(|byte| **byte == b'\n')
                .count();
            lines as u64 >= total
        });
        let counts = count(&stack.log(name));
        assert_eq!(counts.len(), WORKERS, "{name}: {counts:?}");
        assert!(
            counts.values().all(|lines| *lines == LINES),
            "{name}: {counts:?}"
        );
    }
}

#[test]
fn killing_the_manager_costs_no_worker_and_no_line() {
    let mut stack = loaded();
    let pids = stack.wait_pids("load", WORKERS);
    for _ in 0..ROUNDS {
        stack.kill_manager();
        stack.start_manager();
        assert_eq!(stack.wait_pids("load", WORKERS), pids);
    }
    assert_complete(&stack);
}

#[test]
fn killing_the_kernel_costs_no_worker_and_no_line() {
    let mut stack = loaded();
    let pids = stack.wait_pids("load", WORKERS);
    for _ in 0..ROUNDS {
        stack.kernel.kill_kernel();
        assert_eq!(stack.wait_pids("load", WORKERS), pids);
    }
    assert_complete(&stack);
}

#[test]
fn killing_manager_kernel_and_keeper_in_turns_costs_no_worker_and_no_line() {
    let mut stack = loaded();
    let pids = stack.wait_pids("load", WORKERS);
    for _ in 0..ROUNDS / 2 {
        stack.kill_manager();
        stack.start_manager();
        stack.kernel.kill_kernel();
        stack.kernel.kill_keeper();
        assert_eq!(stack.wait_pids("load", WORKERS), pids);
    }
    assert_complete(&stack);
}

#[test]
fn an_exit_while_the_manager_is_away_is_noticed_when_it_is_back() {
    let mut stack = Stack::start("[watcher:sleeper]\ncmd = sleep 1000\n");
    let before = stack.wait_pids("sleeper", 1);
    stack.kill_manager();
    papa_harness::procfs::signal(before[&1], nix::sys::signal::Signal::SIGKILL);
    stack.start_manager();
    wait_until("another worker runs", || {
        let now = stack.pids("sleeper");
        now.len() == 1 && now != before
    });
}
