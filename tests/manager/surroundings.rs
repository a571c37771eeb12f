//! What a manager meets on a machine that is not kept for it: a reader that goes, a directory that is cleaned up, many callers,
//! signals that whoever started it had ignored.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use crate::harness::{binary, private_command, procfs, wait_until};
use crate::stack::Stack;

const ONE: &str = "[watcher:web]\ncmd = sleep 1000\n";

/// Bit of a signal in the masks of `/proc/PID/status`.
fn has_signal(pid: i32, mask: &str, signal: nix::sys::signal::Signal) -> bool {
    let mask = procfs::status_line(pid, mask).unwrap();
    let mask = u64::from_str_radix(&mask, 16).unwrap();
    mask & (1 << (signal as i32 - 1)) != 0
}

fn manager_pid(stack: &Stack) -> i32 {
    let status = stack.request("status", "web");
    i32::try_from(status["manager"]["pid"].as_i64().unwrap()).unwrap()
}

#[test]
fn a_line_of_its_own_log_that_could_not_be_written_ended_the_manager() {
    let mut stack = Stack::start(ONE);
    let before = stack.wait_pids("web", 1);
    stack.kill_manager();
    // Its log goes to a pipe whose reader has gone, and which says so with every line.
    let mut command = private_command(&binary("papa-manager"), stack.kernel.directory());
    let mut manager = command
        .current_dir(stack.kernel.directory())
        .args(["--debug", "--kernel"])
        .arg(stack.kernel.socket_path())
        .arg("stack.ini")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(manager.stderr.take());
    stack.wait_attached();
    for _ in 0..3 {
        stack.request("restart", "web");
    }
    assert_ne!(stack.wait_pids("web", 1), before);
    assert!(manager.try_wait().unwrap().is_none(), "the manager lives");
    manager.kill().unwrap();
    manager.wait().unwrap();
}

#[test]
fn a_manager_whose_runtime_directory_was_removed_could_not_be_reached() {
    let stack = Stack::start(ONE);
    let pid = manager_pid(&stack);
    fs::remove_dir_all(stack.kernel.runtime_dir()).unwrap();
    wait_until("the manager answers again", || {
        UnixStream::connect(stack.kernel.runtime_dir().join("circus.manager.sock")).is_ok()
    });
    assert_eq!(manager_pid(&stack), pid);
    let lock = stack.kernel.runtime_dir().join("circus.manager.lock");
    assert_eq!(fs::read_to_string(lock).unwrap(), pid.to_string());
}

#[test]
fn idle_connections_and_listeners_locked_a_manager_out() {
    let stack = Stack::start(ONE);
    let socket = stack.kernel.runtime_dir().join("circus.manager.sock");
    let idle: Vec<UnixStream> = (0..200)
        .map(|_| UnixStream::connect(&socket).unwrap())
        .collect();
    stack.wait_pids("web", 1);
    assert_eq!(stack.state("web"), "active");
    let listeners: Vec<BufReader<UnixStream>> = (0..128)
        .map(|_| {
            let mut stream = UnixStream::connect(&socket).unwrap();
            writeln!(stream, r#"{{"id": 1, "command": "listen"}}"#).unwrap();
            let mut reader = BufReader::new(stream);
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            assert!(line.contains("\"ok\""), "{line}");
            reader
        })
        .collect();
    assert_eq!(stack.state("web"), "active");
    // Whoever listens is told what happens, however many others there are.
    stack.request("restart", "web");
    for mut listener in listeners {
        let mut line = String::new();
        listener.read_line(&mut line).unwrap();
        assert!(line.contains("watcher.web."), "{line}");
    }
    drop(idle);
}

#[test]
fn ignored_children_and_blocked_signals_of_whoever_typed_up_were_inherited() {
    let mut stack = Stack::start(ONE);
    stack.kill_manager();
    let mut up = Command::new("/bin/sh");
    let papactl = private_command(&binary("papactl"), stack.kernel.directory());
    for (name, value) in papactl.get_envs() {
        match value {
            Some(value) => up.env(name, value),
            None => up.env_remove(name),
        };
    }
    let endpoint = format!("ipc:{}", stack.kernel.socket_path().display());
    stack.rewrite(&format!(
        "[circus]\npapa_endpoint = {endpoint}\n{ONE}health = command:true\nhealth_interval = 0.1\nhealth_retries = 1\n"
    ));
    let output = up
        .current_dir(stack.kernel.directory())
        .args(["-c", "trap '' CHLD; exec \"$@\"", "sh"])
        .arg(binary("papactl"))
        .args(["up", "stack.ini"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let pid = manager_pid(&stack);
    assert!(!has_signal(
        pid,
        "SigIgn",
        nix::sys::signal::Signal::SIGCHLD
    ));
    assert_eq!(
        procfs::status_line(pid, "SigBlk").unwrap(),
        "0000000000000000"
    );
    let worker = stack.wait_pids("web", 1);
    // A check that is well says so: with ignored children none could.
    wait_until("some checks were made", || {
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
            // Time of children that were waited for: cutime or cstime moves, or many faults of theirs are counted.
            let fields: Vec<&str> = stat
                .rsplit(')')
                .next()
                .unwrap()
                .split_whitespace()
                .collect();
            fields[8].parse::<u64>().is_ok_and(|faults| faults > 100)
        })
    });
    assert_eq!(stack.wait_pids("web", 1), worker, "a healthy worker stays");
    procfs::signal(pid, nix::sys::signal::Signal::SIGKILL);
}
