//! Where the kernel has a subtree of control groups of its own, nothing a worker starts gets away
//! from it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::stack::Stack;
use crate::strays::hides;
use papa_harness::{Kernel, KernelBuilder, procfs, skipped, wait_for, wait_until};

/// Leaves its worker, and replaces itself as fast as it can.
const RUNS_AWAY: &str = "
import os, sys, time
if os.fork() == 0:
    os.setsid()
    open(sys.argv[1] + '/runs', 'w').close()
    while os.fork() == 0:
        pass
    os._exit(0)
time.sleep(1000)
";

/// A kernel in a delegated group of this name. None where the system has no such thing; the kernel
/// says so too, then.
fn delegated(name: &str) -> Option<KernelBuilder> {
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/python/delegated_cgroup.py"
    );
    let tried = Command::new("python3")
        .args([script, &format!("{name}-tried"), "cat", "/proc/self/cgroup"])
        .output()
        .unwrap();
    if !tried.status.success() {
        let why = String::from_utf8_lossy(&tried.stderr).into_owned();
        assert_eq!(
            Kernel::start().json().hello["cgroups"],
            serde_json::Value::Null
        );
        skipped(&format!("no control group can be delegated here: {why}"));
        return None;
    }
    Some(Kernel::builder().wrapper(&["python3", script, name]))
}

/// Removes the groups a test has made, when everybody in them has ended.
struct Clean(PathBuf);

impl Drop for Clean {
    fn drop(&mut self) {
        let subtree = self.0.parent().unwrap();
        let tried = PathBuf::from(format!("{}-tried", subtree.display()));
        for path in [&self.0, subtree, &tried] {
            let _ = fs::remove_dir(path);
        }
    }
}

#[test]
fn a_process_that_hid_from_its_worker_outlived_the_stop() {
    let Some(kernel) = delegated(&format!("papa-test-hides-{}", std::process::id())) else {
        return;
    };
    let ini = "[watcher:hides]\ncmd = python3 DIR/hides.py DIR\ncopy_env = true\ngraceful_timeout = 1\n\
        [watcher:away]\ncmd = python3 DIR/away.py DIR\ncopy_env = true\ngraceful_timeout = 1\nautostart = false\n";
    let mut stack = Stack::start_on(kernel, ini);
    let directory = stack.kernel.directory().to_owned();
    let groups = PathBuf::from(stack.kernel.json().hello["cgroups"].as_str().unwrap());
    let clean = Clean(groups.clone());
    fs::write(directory.join("hides.py"), hides()).unwrap();
    fs::write(directory.join("away.py"), RUNS_AWAY).unwrap();
    let hidden = || -> i32 {
        wait_for("it hides", || {
            let pid = fs::read_to_string(directory.join("hidden")).ok()?;
            pid.trim().parse().ok().filter(|pid| procfs::alive(*pid))
        })
    };
    stack.request("start", "hides");
    let first = hidden();
    // Another kernel finds the same groups.
    stack.kernel.kill_kernel();
    stack.wait_attached();
    assert_eq!(
        stack.kernel.json().hello["cgroups"].as_str(),
        groups.to_str()
    );
    assert!(procfs::alive(first));
    assert_eq!(stack.request("stop", "hides")["status"], "ok");
    assert!(!procfs::alive(first), "it is hidden from the stop");
    // What a worker leaves that dies by itself.
    fs::remove_file(directory.join("hidden")).unwrap();
    stack.request("start", "hides");
    let second = hidden();
    let worker = *stack.pids("hides").values().next().unwrap();
    procfs::signal(worker, Signal::SIGKILL);
    wait_until("what it hid is ended too", || !procfs::alive(second));
    assert_eq!(stack.request("stop", "hides")["status"], "ok");
    stack.request("start", "away");
    let running = directory.join("runs");
    wait_until("it runs away", || running.exists());
    let away = *stack.pids("away").values().next().unwrap();
    let serial = wait_for("its group is known", || {
        let listed = fs::read_dir(&groups).ok()?.flatten();
        listed.map(|entry| entry.path()).find(|group| {
            let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            procs.lines().any(|line| line == away.to_string())
        })
    });
    assert_eq!(stack.request("stop", "away")["status"], "ok");
    let left = fs::read_to_string(serial.join("cgroup.procs")).unwrap_or_default();
    assert_eq!(left, "", "it has run away from the stop");
    // Nothing stays of groups nobody is in.
    wait_until("the groups of forgotten workers are removed", || {
        let listed = fs::read_dir(&groups).unwrap().flatten();
        listed.filter(|entry| entry.path().is_dir()).count() == 0
    });
    drop(stack);
    drop(clean);
}
