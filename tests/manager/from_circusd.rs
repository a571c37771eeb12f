//! Moving over: what circusd 0.17.2 has started on our kernel is taken over by the manager with the
//! same file, while it runs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;

use crate::stack::Stack;
use papa_harness::{Kernel, Venv, private_command, wait_until, wait_until_for};

/// circusd is a slow starter.
const CIRCUS_PATIENCE: Duration = Duration::from_secs(30);

const INI: &str = "\
[circus]
endpoint = ipc://DIR/ctl
pubsub_endpoint = ipc://DIR/pub
multicast_endpoint =
check_delay = 0.5

[watcher:Chatty]
cmd = /bin/sh -c 'i=0; while :; do i=$((i+1)); echo line $i; sleep 0.02; done'
copy_env = true
use_papa = true
numprocesses = 2
graceful_timeout = 5
stdout_stream.class = FileStream
stdout_stream.filename = DIR/chatty.log
stdout_stream.time_format = %Y-%m-%d %H:%M:%S
";

/// Pids the kernel runs for the watcher, by worker number.
fn running(kernel: &Kernel) -> BTreeMap<u64, i32> {
    let listed = kernel
        .json()
        .ok("process.list", json!({"names": ["circus.chatty.*"]}));
    let processes = listed["processes"].as_array().unwrap();
    processes
        .iter()
        .filter(|process| process["running"] == true)
        .map(|process| {
            let name = process["name"].as_str().unwrap();
            let wid = name.rsplit('.').next().unwrap().parse().unwrap();
            (
                wid,
                i32::try_from(process["pid"].as_i64().unwrap()).unwrap(),
            )
        })
        .collect()
}

/// Numbers each process has logged, in the order of the file.
fn logged(kernel: &Kernel) -> BTreeMap<i32, Vec<u64>> {
    let text = fs::read_to_string(kernel.directory().join("chatty.log")).unwrap_or_default();
    let mut numbers: BTreeMap<i32, Vec<u64>> = BTreeMap::new();
    for line in text.lines() {
        let (head, number) = line
            .split_once("] | line ")
            .expect("a prefix, then the line");
        let pid = head.rsplit('[').next().unwrap().parse().unwrap();
        numbers
            .entry(pid)
            .or_default()
            .push(number.parse().unwrap());
    }
    numbers
}

#[test]
fn workers_of_circusd_go_on_under_the_manager() {
    let Some(venv) = Venv::get() else { return };
    let wrapper = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/python/circusd_on_port.py");
    let mut before = BTreeMap::new();
    let stack = Stack::start_after(INI, |kernel| {
        let mut command = private_command(&venv.python(), kernel.directory());
        // Its client cannot send a variable without a value, and cargo sets some.
        for (key, value) in std::env::vars_os() {
            if value.is_empty() {
                command.env_remove(key);
            }
        }
        let mut circusd = command
            .arg("-B")
            .arg(wrapper)
            .arg(kernel.port().to_string())
            .arg(kernel.directory().join("stack.ini"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_until_for(
            "circusd runs and logs both workers",
            CIRCUS_PATIENCE,
            || {
                let logged = logged(kernel);
                logged.len() == 2 && logged.values().all(|numbers| numbers.len() > 20)
            },
        );
        before = running(kernel);
        circusd.kill().unwrap();
        circusd.wait().unwrap();
    });
    assert_eq!(before.len(), 2);
    wait_until("the manager has both", || stack.pids("chatty") == before);
    let seen = |stack: &Stack| logged(&stack.kernel).values().map(Vec::len).sum::<usize>();
    let so_far = seen(&stack);
    wait_until("it logs them", || seen(&stack) > so_far + 50);
    assert_eq!(running(&stack.kernel), before, "nobody was replaced");
    for (pid, numbers) in logged(&stack.kernel) {
        assert!(
            before.values().any(|known| *known == pid),
            "{pid} is a stranger"
        );
        let mut highest = 0;
        for number in numbers {
            // circusd acknowledges what it has written when it asks for more, so that some lines
            // may come twice. None is missing.
            assert!(
                number <= highest + 1,
                "line {} of {pid} is missing",
                highest + 1
            );
            highest = highest.max(number);
        }
    }
    assert_eq!(stack.request("reload", "Chatty")["status"], "ok");
    let after = stack.pids("chatty");
    assert_eq!(after.len(), 2);
    assert!(
        after
            .values()
            .all(|pid| !before.values().any(|old| old == pid))
    );
}
