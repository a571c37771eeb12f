//! Processes that hid from the worker that started them: named by `doctor` and ended by `down`,
//! unless they are an installation of their own.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::Value;

use papa_harness::{Site, binary, procfs, wait_for, wait_until};

/// Clears its environment but for its number, and leaves session and parent, so that only its limits
/// tell whose it is.
pub(crate) const CLEARS: &str = "
import os, resource, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve('/bin/sh', ['sh', '-c', 'echo $$ > %s/hidden; exec sleep 1000' % sys.argv[1]],
            {'PAPA_WID': '1'})
    os._exit(0)
time.sleep(1000)
";

/// Does that with other limits, so that nothing tells whose it is.
pub(crate) fn hides() -> String {
    let lowered =
        "if os.fork() == 0:\n    resource.setrlimit(resource.RLIMIT_RTTIME, (10**9, 10**9))\n";
    CLEARS.replacen("if os.fork() == 0:\n", lowered, 1)
}

fn hidden(site: &Site) -> i32 {
    wait_for("it hides", || {
        let pid = fs::read_to_string(site.scratch.path("hidden")).ok()?;
        pid.trim().parse().ok()
    })
}

#[test]
fn a_program_that_had_cleared_its_environment_survived_every_stop() {
    let site = Site::new(
        "[watcher:clears]\ncmd = python3 DIR/clears.py DIR\ncopy_env = true\nautostart = false\n\
         [watcher:stays]\ncmd = python3 DIR/clears.py DIR/other\ncopy_env = true\nautostart = false\n",
    );
    fs::create_dir(site.scratch.path("other")).unwrap();
    fs::write(site.scratch.path("clears.py"), CLEARS).unwrap();
    site.done("up site.ini");
    site.done("start stays");
    let other: i32 = wait_for("the other one hides", || {
        let pid = fs::read_to_string(site.scratch.path("other/hidden")).ok()?;
        pid.trim().parse().ok()
    });
    for verb in ["stop", "restart", "reload"] {
        site.done("start clears");
        let cleared = hidden(&site);
        fs::remove_file(site.scratch.path("hidden")).unwrap();
        site.done(&format!("{verb} clears"));
        assert!(!procfs::alive(cleared), "after {verb}");
    }
    assert!(procfs::alive(other), "it is another worker's");
    site.done("down");
    assert!(!procfs::alive(other));
}

#[test]
fn what_a_worker_had_hidden_ran_on_after_down_without_a_word() {
    let site = Site::new(
        "[watcher:hides]\ncmd = python3 DIR/hides.py DIR\ncopy_env = true\nautostart = false\n",
    );
    let directory = site.scratch.directory();
    fs::write(directory.join("hides.py"), hides()).unwrap();
    site.done("up site.ini");
    assert!(!site.done("doctor").contains("cannot be told"));
    site.done("start hides");
    let hidden = hidden(&site);
    site.done("stop hides");
    let status: Value = serde_json::from_str(&site.done("kernel status --json")).unwrap();
    let kernel = i32::try_from(status["kernel"]["pid"].as_i64().unwrap()).unwrap();
    // Below a kernel with control groups of its own it has ended.
    if procfs::alive(hidden) {
        let said = site.done("doctor").replace('\n', " ");
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains(&format!("{hidden} (sleep)")), "{said}");
        let printed = site.done("down");
        assert!(
            printed.contains("ended what workers had left running:"),
            "{printed}"
        );
        assert!(printed.contains(&hidden.to_string()), "{printed}");
    } else {
        site.done("down");
    }
    assert!(!procfs::alive(hidden));
    wait_until("the kernel has ended", || !procfs::alive(kernel));
}

#[test]
fn another_installation_that_a_worker_had_started_was_ended_by_down() {
    let site =
        Site::new("[watcher:nest]\ncmd = sh DIR/nest.sh\ncopy_env = true\nautostart = false\n");
    let directory = site.scratch.path("").trim_end_matches('/').to_owned();
    let script = format!(
        "mkdir {directory}/n\nenv -i XDG_RUNTIME_DIR={directory}/n {} --port 0 --daemonize \
         --pid-file {directory}/n/pid --log-file {directory}/n/log\nexec sleep 1000\n",
        binary("papa").display()
    );
    fs::write(site.scratch.path("nest.sh"), script).unwrap();
    site.done("up site.ini");
    site.done("start nest");
    let keeper: i32 = wait_for("the other one runs", || {
        let pid = fs::read_to_string(site.scratch.path("n/pid")).ok()?;
        pid.trim().parse().ok()
    });
    site.done("stop nest");
    let before = procfs::alive(keeper);
    let printed = site.done("down");
    let after = procfs::alive(keeper);
    // Standing still, neither can take the other's place.
    let mut others: Vec<i32> = procfs::children(keeper).into_iter().collect();
    others.push(keeper);
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        for pid in &others {
            procfs::signal(*pid, signal);
        }
    }
    assert!(before, "a stop has ended it");
    assert!(after, "{printed}");
    assert!(!printed.contains("had left running"), "{printed}");
}
