//! Start, stop, restart, quit, adoption, shutdown.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::stack::Stack;
use papa_harness::{procfs, wait_until};

const TWO: &str =
    "[watcher:one]\ncmd = sleep 1000\nnumprocesses = 2\n[watcher:other]\ncmd = sleep 1000\n";

#[test]
fn workers_are_started_stopped_and_started_again() {
    let stack = Stack::start(TWO);
    let first = stack.wait_pids("one", 2);
    assert_eq!(first.keys().copied().collect::<Vec<_>>(), [1, 2]);
    assert_eq!(stack.request("stop", "one")["status"], "ok");
    assert_eq!(stack.state("one"), "stopped");
    assert_eq!(
        stack.state("other"),
        "active",
        "the other watcher is left alone"
    );
    for pid in first.values() {
        assert!(!procfs::alive(*pid), "{pid} lives after stop");
    }
    assert_eq!(
        stack.request("start", "ONE")["status"],
        "ok",
        "names ignore case"
    );
    let second = stack.wait_pids("one", 2);
    assert!(
        second
            .values()
            .all(|pid| !first.values().any(|old| old == pid))
    );
    assert_eq!(stack.request("restart", "one")["status"], "ok");
    let third = stack.wait_pids("one", 2);
    assert!(
        third
            .values()
            .all(|pid| !second.values().any(|old| old == pid))
    );
    assert_eq!(stack.request("stop", "nope")["errno"], 3);
}

#[test]
fn a_dead_worker_is_replaced_under_its_number() {
    let stack = Stack::start(TWO);
    let before = stack.wait_pids("one", 2);
    procfs::signal(before[&2], Signal::SIGKILL);
    wait_until("worker 2 runs again", || {
        let now = stack.pids("one");
        now.len() == 2 && now[&1] == before[&1] && now[&2] != before[&2]
    });
}

#[test]
fn quit_and_signals_leave_the_workers_but_those_that_ask_to_go() {
    let ini = format!("{TWO}[watcher:mine]\ncmd = sleep 1000\nuse_papa = false\n");
    for signal in [None, Some(Signal::SIGTERM), Some(Signal::SIGINT)] {
        let mut stack = Stack::start(&ini);
        let pids = stack.wait_pids("one", 2);
        let mine = stack.wait_pids("mine", 1)[&1];
        match signal {
            None => drop(stack.request_all("quit")),
            Some(signal) => stack.signal_manager(signal),
        }
        assert!(stack.wait_manager_end().success());
        assert!(!procfs::alive(mine), "the worker of use_papa = false lives");
        stack.start_manager();
        assert_eq!(stack.wait_pids("one", 2), pids);
        assert_ne!(stack.wait_pids("mine", 1)[&1], mine);
    }
}

#[test]
fn what_the_operator_stopped_stays_stopped_across_managers() {
    let mut stack = Stack::start(TWO);
    let other = stack.wait_pids("other", 1);
    stack.wait_pids("one", 2);
    stack.request("stop", "one");
    stack.kill_manager();
    stack.start_manager();
    assert_eq!(stack.wait_pids("other", 1), other);
    // The successor looks first whether anything of it is left.
    wait_until("it is stopped", || stack.state("one") == "stopped");
    assert!(stack.pids("one").is_empty());
    stack.request("start", "one");
    stack.kill_manager();
    stack.start_manager();
    stack.wait_pids("one", 2);
}

#[test]
fn a_slow_stop_ends_in_a_kill_of_the_tree_and_delays_nobody() {
    let stack = Stack::start(
        "[watcher:deaf]\ncmd = sh -c 'trap \"\" TERM; sleep 1000 & echo $! > DIR/child; wait; wait; sleep 1000'\n\
         copy_env = true\ngraceful_timeout = 2\n[watcher:quick]\ncmd = sleep 1000\n",
    );
    let deaf = stack.wait_pids("deaf", 1)[&1];
    let path = stack.kernel.directory().join("child");
    let mut child = 0;
    wait_until("the worker has a child", || {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        child = text.trim().parse().unwrap_or(0);
        child > 0
    });
    std::thread::scope(|scope| {
        let begun = Instant::now();
        let slow = scope.spawn(|| stack.request("stop", "deaf"));
        wait_until("the stop is under way", || {
            stack.state("deaf") == "stopping"
        });
        assert_eq!(stack.request("restart", "quick")["status"], "ok");
        assert!(
            !slow.is_finished(),
            "the quick restart waited for the slow stop"
        );
        assert_eq!(slow.join().unwrap()["status"], "ok");
        assert!(
            begun.elapsed() >= Duration::from_secs(2),
            "killed before its time"
        );
    });
    assert!(!procfs::alive(deaf));
    wait_until("the child is killed too", || !procfs::alive(child));
}

#[test]
fn workers_start_in_the_order_of_their_priority() {
    let stack = Stack::start(
        "[watcher:a]\ncmd = sleep 1000\npriority = 1\n[watcher:b]\ncmd = sleep 1000\npriority = 10\n[watcher:c]\ncmd = sleep 1000\n",
    );
    for name in ["a", "b", "c"] {
        stack.wait_pids(name, 1);
    }
    let status = stack.request_all("status");
    let mut started: Vec<(u64, String)> = status["watchers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|watcher| {
            let serial = watcher["workers"][0]["serial"].as_u64().unwrap();
            (serial, watcher["name"].as_str().unwrap().to_owned())
        })
        .collect();
    started.sort();
    let names: Vec<&str> = started.iter().map(|(_, name)| name.as_str()).collect();
    assert_eq!(names, ["b", "a", "c"]);
}

#[test]
fn a_worker_that_cannot_start_is_given_up_and_hinders_nobody() {
    let stack = Stack::start(
        "[watcher:bad]\ncmd = /no/such/program\npriority = 9\nmax_retry = 1\n[watcher:good]\ncmd = sleep 1000\n",
    );
    stack.wait_pids("good", 1);
    wait_until("the watcher is given up", || {
        stack.state("bad") == "stopped"
    });
    let status = stack.request("status", "bad");
    let message = status["watchers"][0]["message"].as_str().unwrap();
    assert!(message.contains("/no/such/program"), "{message}");
    let reply = stack.request("start", "bad");
    assert_eq!(reply["status"], "error", "{reply}");
}

#[test]
fn a_job_that_is_done_stays_done() {
    let mut stack = Stack::start(
        "[watcher:job]\ncmd = sh -c 'echo run >> DIR/runs'\ncopy_env = true\nrespawn = false\n",
    );
    wait_until("the job is done", || stack.state("job") == "stopped");
    stack.kill_manager();
    stack.start_manager();
    assert_eq!(stack.state("job"), "stopped");
    let runs = std::fs::read_to_string(stack.kernel.directory().join("runs")).unwrap();
    assert_eq!(runs, "run\n");
}

#[test]
fn workers_inherit_the_socket_they_name_across_everything() {
    let mut stack = Stack::start(
        "[watcher:web]\ncmd = sh -c 'readlink /proc/self/fd/$(circus.sockets.web) > DIR/fd; exec sleep 1000'\n\
         copy_env = true\nuse_sockets = true\n[socket:web]\npath = DIR/web.sock\n",
    );
    let pids = stack.wait_pids("web", 1);
    let path = stack.kernel.directory().join("fd");
    wait_until("the worker has looked at its socket", || {
        std::fs::read_to_string(&path).is_ok_and(|text| text.starts_with("socket:"))
    });
    let socket = stack.kernel.directory().join("web.sock");
    stack.kill_manager();
    stack.kernel.kill_kernel();
    std::os::unix::net::UnixStream::connect(&socket).expect("the listener never closes");
    stack.start_manager();
    assert_eq!(stack.wait_pids("web", 1), pids);
}

#[test]
fn shutdown_leaves_nothing_behind() {
    let mut stack = Stack::start(
        "[watcher:w]\ncmd = sh -c 'sleep 1000 & echo up; wait'\ncopy_env = true\nuse_sockets = true\n\
         stdout_stream.class = FileStream\nstdout_stream.filename = DIR/logs/w.log\n[socket:s]\npath = DIR/s.sock\n",
    );
    wait_until("the worker has written", || stack.log("w.log") == b"up\n");
    assert_eq!(stack.request_all("shutdown")["status"], "ok");
    assert!(stack.wait_manager_end().success());
    let counts = stack.kernel.status()["counts"].clone();
    for kind in ["processes", "sockets", "values", "held"] {
        assert_eq!(counts[kind], 0, "{counts}");
    }
    assert!(!stack.kernel.directory().join("s.sock").exists());
}

#[test]
fn a_second_manager_says_who_runs() {
    let stack = Stack::start(TWO);
    let output = papa_harness::private_command(
        &papa_harness::binary("papa-manager"),
        stack.kernel.directory(),
    )
    .current_dir(stack.kernel.directory())
    .arg("--kernel")
    .arg(stack.kernel.socket_path())
    .arg("stack.ini")
    .output()
    .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        text.contains("already runs") && text.contains("circus"),
        "{text}"
    );
    assert_eq!(stack.request_all("numwatchers")["numwatchers"], json!(2));
}
