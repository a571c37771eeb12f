//! A worker's number is free when nothing of it is left: stubborn children, programs that go into
//! the background, processes that fork away from their end.

use std::collections::BTreeSet;
use std::fs;
use std::process::Output;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::stack::Stack;
use papa_harness::{binary, free_port, private_command, procfs, wait_for, wait_until};

/// The leader ends on TERM at once; its child ignores TERM, holds the port, and notes down whether
/// it got it.
const SERVICE: &str = r#"
import os, signal, socket, sys, time
directory, port, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
try:
    listener.bind(("127.0.0.1", port))
    listener.listen()
except OSError as error:
    with open(directory + "/refused", "a") as log:
        log.write(str(error) + "\n")
    sys.exit(1)
child = os.fork()
if child == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if kind == "setsid":
        os.setsid()
    with open(directory + "/children", "a") as log:
        log.write("%d\n" % os.getpid())
    while True:
        time.sleep(1000)
while True:
    signal.pause()
"#;

fn service(more: &str, kind: &str) -> (Stack, u16) {
    let port = free_port();
    let ini = format!(
        "[watcher:web]\ncmd = python3 DIR/service.py DIR {port} {kind}\ncopy_env = true\n{more}\n"
    );
    let stack = Stack::start_after(&ini, |kernel| {
        fs::write(kernel.path("service.py"), SERVICE).unwrap();
    });
    (stack, port)
}

fn read(stack: &Stack, name: &str) -> String {
    fs::read_to_string(stack.kernel.path(name)).unwrap_or_default()
}

fn pids_in(stack: &Stack, name: &str) -> Vec<i32> {
    let text = read(stack, name);
    let complete = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
    complete
        .lines()
        .filter_map(|line| line.trim().parse().ok())
        .collect()
}

fn wait_children(stack: &Stack, count: usize) -> Vec<i32> {
    wait_for("the child has its port", || {
        let children = pids_in(stack, "children");
        (children.len() >= count).then_some(children)
    })
}

/// Everybody alive that a worker of this watcher has started.
fn marked(watcher: &str) -> BTreeSet<i32> {
    let own = format!("PAPA_WATCHER={watcher}");
    let is_its = |pid: &i32| procfs::alive(*pid) && procfs::environment(*pid).contains(&own);
    procfs::pids().into_iter().filter(is_its).collect()
}

#[test]
fn a_restart_waits_for_the_child_that_holds_the_port() {
    let flapping = "graceful_timeout = 0.7\nflapping.attempts = 2\nflapping.window = 10\nflapping.max_retry = 0";
    for kind in ["session", "setsid"] {
        let (stack, _) = service(flapping, kind);
        wait_children(&stack, 1);
        for turn in 2..4 {
            let begun = Instant::now();
            let reply = stack.request("restart", "web");
            assert_eq!(reply["status"], "ok", "{kind}: {reply}");
            assert!(begun.elapsed() >= Duration::from_millis(700), "{kind}");
            wait_children(&stack, turn);
        }
        assert_eq!(read(&stack, "refused"), "", "{kind}: the port was in use");
        assert_eq!(stack.state("web"), "active");
        let children = wait_children(&stack, 3);
        let living: Vec<&i32> = children.iter().filter(|pid| procfs::alive(**pid)).collect();
        assert_eq!(living.len(), 1, "{kind}");
        // A stop is as whole.
        assert_eq!(stack.request("stop", "web")["status"], "ok");
        assert!(children.iter().all(|pid| !procfs::alive(*pid)), "{kind}");
    }
}

#[test]
fn a_reload_waits_for_the_child_that_holds_the_port() {
    let more = "graceful_timeout = 0.5\nmax_surge = 0\nflapping.attempts = 2\nflapping.window = 10\nflapping.max_retry = 0\n";
    let (stack, port) = service(more, "session");
    wait_children(&stack, 1);
    let changed = format!(
        "[watcher:web]\ncmd = python3 DIR/service.py DIR {port} session changed\ncopy_env = true\n{more}"
    );
    for (turn, verb) in (2..).zip(["reload", "reload --terminate", "reloadconfig"]) {
        if verb == "reloadconfig" {
            stack.rewrite(&changed);
        }
        let begun = Instant::now();
        let properties = json!({"name": "web", "waiting": true, "terminate": verb.contains("--")});
        let command = verb.split(' ').next().unwrap();
        let reply = stack.ask(command, &properties);
        assert_eq!(reply["status"], "ok", "{verb}: {reply}");
        assert!(begun.elapsed() >= Duration::from_millis(500), "{verb}");
        let children = wait_children(&stack, turn);
        assert_eq!(read(&stack, "refused"), "", "{verb}: the port was in use");
        let living: Vec<&i32> = children.iter().filter(|pid| procfs::alive(**pid)).collect();
        assert_eq!(living.len(), 1, "{verb}: {children:?}");
    }
    assert_eq!(stack.state("web"), "active");
}

#[test]
fn the_status_names_what_a_stop_waits_for() {
    let (stack, _) = service("graceful_timeout = 60", "session");
    let child = wait_children(&stack, 1)[0];
    stack.request_now("stop", "web");
    let waits = format!("waiting for what it left: {child} (python3");
    wait_until("the child is named", || {
        stack.message("web").contains(&waits)
    });
    assert_eq!(stack.state("web"), "stopping");
    procfs::signal(child, Signal::SIGKILL);
    wait_until("the watcher has stopped", || {
        stack.state("web") == "stopped"
    });
}

#[test]
fn what_a_killed_worker_left_is_ended_before_its_successor_starts() {
    let (stack, _) = service("graceful_timeout = 0.5", "setsid");
    for turn in 1..3 {
        wait_children(&stack, turn);
        procfs::signal(stack.wait_pids("web", 1)[&1], Signal::SIGKILL);
    }
    let children = wait_children(&stack, 3);
    assert_eq!(read(&stack, "refused"), "", "the port was in use");
    let living: Vec<i32> = children
        .into_iter()
        .filter(|pid| procfs::alive(*pid))
        .collect();
    assert_eq!(living.len(), 1);
}

#[test]
fn a_manager_killed_in_a_stop_has_a_successor_that_ends_it() {
    let (mut stack, _) = service("graceful_timeout = 3\nautostart = yes", "setsid");
    let child = wait_children(&stack, 1)[0];
    stack.request_now("stop", "web");
    wait_until("the child is waited for", || {
        stack.message("web").contains("waiting for")
    });
    stack.kill_manager();
    stack.start_manager();
    wait_until("the child is ended", || !procfs::alive(child));
    wait_until("the watcher has stopped", || {
        stack.state("web") == "stopped"
    });
}

#[test]
fn with_leave_children_what_a_worker_left_runs_on() {
    let ini = "[watcher:jobs]\ncmd = sh -c 'sleep 1000 & echo $! >> DIR/children; exec sleep 1000'\ncopy_env = true\nleave_children = yes\n";
    let stack = Stack::start(ini);
    let child = wait_children(&stack, 1)[0];
    procfs::signal(stack.wait_pids("jobs", 1)[&1], Signal::SIGKILL);
    wait_children(&stack, 2);
    assert!(procfs::alive(child), "the job was ended");
    for pid in pids_in(&stack, "children") {
        procfs::signal(pid, Signal::SIGKILL);
    }
}

#[test]
fn with_leave_children_a_job_was_killed_with_the_next_worker_of_the_number() {
    let ini = "[watcher:jobs]\ncmd = sh DIR/jobs.sh\ncopy_env = true\nleave_children = yes\n\
        graceful_timeout = 0.3\nautostart = no\n";
    let stack = Stack::start(ini);
    let directory = stack.kernel.directory().display().to_string();
    let script = format!(
        "cd {directory}\nif [ -e children ]; then trap '' TERM; : > deaf; while :; do sleep 1; done; fi\n\
         env -i setsid sh -c 'sleep 1000 & echo $! > new; mv new children'\n"
    );
    fs::write(stack.kernel.directory().join("jobs.sh"), script).unwrap();
    stack.request("start", "jobs");
    let child = wait_children(&stack, 1)[0];
    wait_until("the next worker is deaf", || {
        stack.kernel.directory().join("deaf").exists()
    });
    stack.request("stop", "jobs");
    let alive = procfs::alive(child);
    procfs::signal(child, Signal::SIGKILL);
    assert!(alive, "the job was ended");
}

fn papactl(stack: &Stack, words: &[&str]) -> Output {
    private_command(&binary("papactl"), stack.kernel.directory())
        .args(words)
        .output()
        .unwrap()
}

#[test]
fn a_program_that_goes_into_the_background_is_reported_and_not_multiplied() {
    for launch in [
        "setsid sleep 1000 &",
        "(setsid sleep 1000 &) &",
        "nohup sleep 1000 &",
    ] {
        let ini = format!(
            "[watcher:daemon]\ncmd = sh -c '{launch} echo started >> DIR/starts; exit 0'\ncopy_env = true\n"
        );
        let mut stack = Stack::start(&ini);
        wait_until("it is reported", || {
            stack.message("daemon").contains("went into the background")
        });
        let message = stack.message("daemon");
        assert!(message.contains("run it in the foreground"), "{message}");
        let doctor = papactl(&stack, &["doctor"]);
        assert_eq!(doctor.status.code(), Some(1), "{doctor:?}");
        let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
        assert!(said.contains("problem  watcher:daemon"), "{said}");
        let checked = papactl(&stack, &["status", "--check"]);
        assert_eq!(checked.status.code(), Some(3), "{checked:?}");
        let started = stack.request("start", "daemon");
        assert_eq!(started["status"], "error", "{started}");
        let daemon = marked("daemon");
        assert_eq!(daemon.len(), 1, "{launch}");
        // Not by a successor either.
        stack.kill_manager();
        stack.start_manager();
        wait_until("the successor reports it", || {
            stack.message("daemon").contains("went into the background")
        });
        assert_eq!(marked("daemon"), daemon, "{launch}");
        assert_eq!(read(&stack, "starts"), "started\n", "{launch}");
        assert_eq!(stack.request("stop", "daemon")["status"], "ok");
        assert_eq!(marked("daemon"), BTreeSet::new(), "{launch}");
    }
}

#[test]
fn a_background_program_that_ends_is_started_again() {
    let ini = "[watcher:daemon]\ncmd = sh -c 'setsid sleep 1000 & echo $! >> DIR/children; exit 0'\ncopy_env = true\n";
    let stack = Stack::start(ini);
    wait_children(&stack, 1);
    wait_until("it is reported", || {
        stack.message("daemon").contains("went into the background")
    });
    for pid in marked("daemon") {
        procfs::signal(pid, Signal::SIGKILL);
    }
    wait_children(&stack, 2);
}

#[test]
fn a_process_that_replaces_itself_without_end_is_ended() {
    let sessions = "use POSIX; while (1) { POSIX::setsid(); if (fork) { POSIX::_exit(0) } }";
    let one_session = "use POSIX; while (1) { if (fork) { POSIX::_exit(0) } }";
    for script in [one_session, sessions] {
        let ini = "[watcher:hare]\ncmd = sh -c 'perl DIR/hare.pl & exec sleep 1000'\ncopy_env = true\ngraceful_timeout = 0.2\n";
        let stack = Stack::start_after(ini, |kernel| {
            // It shall not outlive a test that fails.
            let beat = kernel.path("beat");
            fs::write(&beat, "").unwrap();
            let limited = script.replace(
                "while (1) {",
                &format!(
                    "my $end = time + 60; while (time < $end) {{ utime(undef, undef, \"{beat}\");"
                ),
            );
            fs::write(kernel.path("hare.pl"), limited).unwrap();
        });
        let beat = || {
            fs::metadata(stack.kernel.path("beat"))
                .unwrap()
                .modified()
                .unwrap()
        };
        stack.wait_pids("hare", 1);
        let first = beat();
        wait_until("it runs", || beat() > first);
        let reply = stack.request("stop", "hare");
        assert_eq!(reply["status"], "ok", "{reply}");
        assert_eq!(stack.message("hare"), "", "nothing is left");
        let last = beat();
        // It would have gone on within a millisecond.
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(beat(), last, "it runs still");
    }
}

#[test]
fn a_fork_bomb_within_its_limit_is_ended_by_stop_and_down() {
    if !nix::unistd::geteuid().is_root() {
        // A bomb of our own user would hit whoever else runs as it.
        assert!(std::env::var_os("CI").is_none(), "needs root");
        eprintln!("skipped: a bomb needs another user, and that needs root");
        return;
    }
    let ini = "[watcher:bomb]\ncmd = perl DIR/bomb.pl\nuid = nobody\ngid = nogroup\nrlimit_nproc = 60\ncopy_env = true\ngraceful_timeout = 0.2\nworking_dir = /\n";
    let mut stack = Stack::start_after(ini, |kernel| {
        let path = kernel.path("bomb.pl");
        // Everybody forks, ignores TERM, and ends now and then to make room.
        fs::write(
            &path,
            "$SIG{TERM} = 'IGNORE'; $SIG{CHLD} = 'IGNORE'; my $end = time + 60; while (time < $end) { fork; exit if rand() < 0.02 && getppid() != 1 && $$ % 7; }",
        )
        .unwrap();
        let mut command = std::process::Command::new("chmod");
        command.args(["-R", "a+rX"]).arg(kernel.directory());
        assert!(command.status().unwrap().success());
    });
    for verb in ["stop", "down"] {
        wait_until("it has multiplied", || marked("bomb").len() > 20);
        if verb == "stop" {
            let reply = stack.request("stop", "bomb");
            assert_eq!(reply["status"], "ok", "{reply}");
            assert_eq!(marked("bomb"), BTreeSet::new());
            // What replaces itself goes into the background, which is no success.
            stack.request_now("start", "bomb");
        } else {
            let reply = stack.ask("shutdown", &json!({}));
            assert_eq!(reply["status"], "ok", "{reply}");
            stack.wait_manager_end();
            assert_eq!(marked("bomb"), BTreeSet::new());
        }
    }
}

#[test]
fn a_stop_of_many_with_nothing_left_stays_fast() {
    let stack = Stack::start("[watcher:many]\ncmd = sleep 1000\nnumprocesses = 100\n");
    stack.wait_pids("many", 100);
    let begun = Instant::now();
    assert_eq!(stack.request("stop", "many")["status"], "ok");
    let took = begun.elapsed();
    eprintln!("100 workers stopped in {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
}
