//! `down` leaves nothing, also where no manager or no kernel is there, and tells what was lost.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::stack::Stack;
use papa_harness::{Site, procfs, wait_until};

fn said(output: &Output) -> String {
    let streams = [&output.stdout, &output.stderr];
    streams
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .concat()
}

#[track_caller]
fn nothing_is_left(site: &Site) {
    let again = site.done("down");
    assert_eq!(again, "manager: not running\nkernel:  not running\n");
}

#[test]
fn output_that_cannot_be_written_is_named_and_nothing_stays() {
    let site = Site::new(
        "[watcher:web]\ncmd = sh -c 'echo lost; sleep 1000'\ncopy_env = true\n\
         stdout_stream.class = FileStream\nstdout_stream.filename = DIR/taken\n",
    );
    let taken = site.scratch.directory().join("taken");
    fs::create_dir(&taken).unwrap();
    site.done("up site.ini --no-wait");
    let pids = site.wait_pids("web", 1);
    let doctor = || said(&site.papactl("doctor"));
    wait_until("the log is in trouble", || doctor().contains("taken"));
    let begun = Instant::now();
    let output = site.papactl("down");
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let file = taken.display().to_string();
    assert!(
        text.contains("web: 5 bytes of output") && text.contains(&file) && text.contains("lost"),
        "{text}"
    );
    assert!(text.contains("kernel:  ended"), "{text}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{text}");
    assert!(pids.iter().all(|pid| !procfs::alive(*pid)));
    nothing_is_left(&site);
}

#[test]
fn what_a_manager_left_in_the_kernel_is_ended_without_another_manager() {
    let site = Site::new(
        "[watcher:web]\ncmd = sh -c 'sleep 1001 & echo $! > DIR/child; wait'\ncopy_env = true\nnumprocesses = 1\n\
         [watcher:deaf]\ncmd = sh -c 'trap \"\" TERM; echo up > DIR/up; while :; do sleep 0.1; done'\n\
         copy_env = true\ngraceful_timeout = 1\n[socket:s]\npath = DIR/s.sock\n",
    );
    site.done("up site.ini");
    let mut pids = site.wait_pids("web", 1);
    pids.extend(site.wait_pids("deaf", 1));
    let directory = site.scratch.directory().to_owned();
    wait_until("both are ready", || {
        directory.join("up").exists() && directory.join("child").exists()
    });
    let child = fs::read_to_string(directory.join("child")).unwrap();
    pids.insert(child.trim().parse().unwrap());
    site.done("quit");
    assert!(pids.iter().all(|pid| procfs::alive(*pid)), "they run on");
    let printed = site.done("down --config site.ini");
    assert!(printed.contains("worker 1 of web, pid "), "{printed}");
    assert!(printed.contains("kernel:  ended"), "{printed}");
    assert!(pids.iter().all(|pid| !procfs::alive(*pid)), "{printed}");
    nothing_is_left(&site);
}

#[test]
fn orphans_are_ended_without_a_kernel_with_and_without_a_manager() {
    for manager_lives in [true, false] {
        let site =
            Site::new("[watcher:web]\ncmd = sleep 1000\nnumprocesses = 2\ncopy_env = true\n");
        site.done("up site.ini");
        let pids = site.wait_pids("web", 2);
        let manager = site.manager();
        site.kill_kernels();
        if !manager_lives {
            procfs::signal(manager, nix::sys::signal::Signal::SIGKILL);
            wait_until("the manager is gone", || !procfs::alive(manager));
        }
        let printed = site.done("down --config site.ini");
        for pid in &pids {
            assert!(printed.contains(&format!("pid {pid} ")), "{printed}");
            assert!(!procfs::alive(*pid), "{printed}");
        }
        assert!(!procfs::alive(manager), "{printed}");
    }
}

#[test]
fn who_follows_logs_or_speaks_to_the_kernel_did_not_keep_it_from_ending() {
    let site =
        Site::new("[watcher:web]\ncmd = sh -c 'echo up; exec sleep 1000'\ncopy_env = true\n");
    site.done("up site.ini");
    let mut follower = site
        .command("papactl", "logs -f")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "up");
    // Half a line, as somebody types it who has gone for lunch.
    let mut person = UnixStream::connect(site.scratch.path("k.sock")).unwrap();
    person.write_all(b"process").unwrap();
    let status: Value = serde_json::from_str(&site.done("kernel status --json")).unwrap();
    let roles = ["keeper", "pid"].map(|role| status["kernel"][role].as_i64().unwrap());
    let begun = Instant::now();
    let printed = site.done("down");
    let took = begun.elapsed();
    assert!(printed.contains("kernel:  ended"), "{printed}");
    for pid in roles {
        assert!(!procfs::alive(i32::try_from(pid).unwrap()), "{printed}");
    }
    // It waits 60 s for what does not end.
    assert!(took < Duration::from_secs(20), "{took:?}: {printed}");
    nothing_is_left(&site);
    // What is started afterwards is followed too.
    site.done("up site.ini");
    assert_eq!(lines.next().unwrap().unwrap(), "up");
    follower.kill().unwrap();
    follower.wait().unwrap();
}

#[test]
fn a_reload_is_over_only_when_the_last_old_worker_was_asked_to_end() {
    let mut stack = Stack::start("[watcher:web]\ncmd = sleep 1000\nnumprocesses = 4\n");
    let mut before = stack.wait_pids("web", 4);
    for _ in 0..3 {
        let reply: Value = stack.ask("reload", &json!({"name": "web", "waiting": true}));
        assert_eq!(reply["status"], "ok", "{reply}");
        // Nobody is there any more who could ask them.
        stack.kill_manager();
        wait_until("they have ended", || {
            before.values().all(|pid| !procfs::alive(*pid))
        });
        stack.start_manager();
        before = stack.wait_pids("web", 4);
    }
}

#[test]
fn a_hangup_or_a_signal_was_said_to_be_sent_before_it_was() {
    let site = Site::new(
        "[watcher:web]\ncmd = sh -c 'trap \"echo >> DIR/heard\" HUP; echo > DIR/up; while :; do sleep 0.05; done'\n\
         copy_env = true\nsend_hup = true\n",
    );
    site.done("up site.ini");
    let worker = site.wait_pids("web", 1);
    let heard = || fs::read_to_string(site.scratch.path("heard")).map_or(0, |text| text.len());
    let up = site.scratch.directory().join("up");
    wait_until("it listens", || up.exists());
    let status: Value = serde_json::from_str(&site.done("kernel status --json")).unwrap();
    let kernel = i32::try_from(status["kernel"]["pid"].as_i64().unwrap()).unwrap();
    for (count, verb) in [(1, "reload"), (2, "signal")] {
        // Without it nobody can be signalled.
        procfs::signal(kernel, Signal::SIGSTOP);
        let words = if verb == "signal" { "HUP" } else { "" };
        let mut asked = site
            .command("papactl", &format!("{verb} web {words}"))
            .spawn()
            .unwrap();
        let until = Instant::now() + Duration::from_millis(700);
        let mut early = None;
        while early.is_none() && Instant::now() < until {
            early = asked.try_wait().unwrap();
            thread::sleep(Duration::from_millis(20));
        }
        procfs::signal(kernel, Signal::SIGCONT);
        let ended = asked.wait().unwrap();
        assert!(early.is_none(), "{verb} was answered before: {early:?}");
        assert!(ended.success(), "{verb}: {ended:?}");
        wait_until("the worker has heard it", || heard() == count);
    }
    assert_eq!(site.pids("web"), worker);
}

/// Holds a process so that it survives SIGKILL, as one does that waits for a broken device.
const HOLD: &str = "
import ctypes, sys, time
libc = ctypes.CDLL(None)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
seize, stop_at_exit = 0x4206, 0x40
assert libc.ptrace(seize, int(sys.argv[1]), None, ctypes.c_void_p(stop_at_exit)) == 0
print('held', flush=True)
time.sleep(1000)
";

fn hold(pid: i32) -> Child {
    let mut holder = Command::new("python3")
        .args(["-c", HOLD, &pid.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let output = holder.stdout.take().unwrap();
    BufReader::new(output).read_line(&mut line).unwrap();
    assert_eq!(line, "held\n");
    holder
}

#[test]
fn down_waited_for_ever_for_what_survives_a_kill() {
    for kernel_lives in [true, false] {
        let site = Site::new(
            "[watcher:stuck]\ncmd = sleep 1000\ncopy_env = true\ngraceful_timeout = 0.2\n\
             [watcher:web]\ncmd = sleep 1000\ncopy_env = true\n",
        );
        site.done("up site.ini");
        let stuck = *site.wait_pids("stuck", 1).first().unwrap();
        let web = *site.wait_pids("web", 1).first().unwrap();
        let mut holder = hold(stuck);
        if kernel_lives {
            site.done("quit");
        } else {
            site.kill_kernels();
        }
        let begun = Instant::now();
        let output = site.papactl("down --config site.ini --timeout 6");
        let took = begun.elapsed();
        let text = said(&output);
        let lived = procfs::alive(stuck);
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert!(lived, "it could be killed after all: {text}");
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(took < Duration::from_secs(12), "{took:?}: {text}");
        assert!(
            text.contains(&format!("not ended: pid {stuck} (sleep), state t")),
            "{text}"
        );
        assert!(!text.contains(&format!("{stuck}: ended")), "{text}");
        assert!(!procfs::alive(web), "{text}");
        site.done("down --config site.ini");
        nothing_is_left(&site);
    }
}
