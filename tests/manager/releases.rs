//! Release directories behind a link that moves: which release workers start in, when the link has
//! moved, when a reload to it was rolled back, and when the release they had was deleted.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::configuration::{ok, refused, reload, write};
use crate::journal::wait_up;
use crate::stack::Stack;
use papa_harness::{procfs, wait_for, wait_until};

/// Makes `DIR/NAME` a release whose program writes its name and sleeps, or ends at once.
fn release(stack: &Path, name: &str, ends: bool) {
    let what = if ends { "exit 1" } else { "exec sleep 1000" };
    let program = stack.join(name).join("run");
    write(&program, &format!("#!/bin/sh\n{what}\n"));
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&program, mode).unwrap();
}

fn point(directory: &Path, name: &str) {
    let new = directory.join("new-link");
    symlink(directory.join(name), &new).unwrap();
    fs::rename(new, directory.join("current")).unwrap();
}

fn place(pid: i32) -> String {
    let link = fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
    link.file_name().unwrap().to_string_lossy().into_owned()
}

#[test]
fn a_release_link_that_moved_is_a_difference_and_a_rolled_back_one_is_not_taken() {
    let ini = "[watcher:a]\ncmd = ./run\nworking_dir = DIR/current\nbackoff_first = 0.05\n\
        [watcher:b]\ncmd = DIR/current/run\n";
    let stack = Stack::start_after(ini, |kernel| {
        let directory = kernel.directory();
        release(directory, "r1", false);
        release(directory, "r2", true);
        release(directory, "r3", false);
        point(directory, "r1");
    });
    let directory = stack.kernel.directory().to_owned();
    wait_up(&stack, "a");
    wait_up(&stack, "b");
    let first = stack.wait_pids("a", 1)[&1];
    assert_eq!(place(first), "r1");

    point(&directory, "r2");
    let plan = stack.ask("reloadconfig", &json!({"plan": true}));
    let text = plan["plan"].to_string();
    for part in ["watcher:a", "watcher:b", "working_dir", "r1", "r2"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let reply = reload(&stack);
    assert!(
        refused(&reply).contains("everything was put back"),
        "{reply}"
    );
    // Who is replaced now is of the release that served.
    for name in ["a", "b"] {
        let old = wait_for("it runs", || stack.pids(name).values().next().copied());
        procfs_kill(old);
        let new = wait_for("another runs", || {
            let pids = stack.pids(name);
            pids.values().find(|pid| **pid != old).copied()
        });
        wait_until("it is what served", || {
            fs::read(format!("/proc/{new}/cmdline")).is_ok_and(|line| line.starts_with(b"sleep"))
        });
    }
    point(&directory, "r3");
    ok(&reload(&stack));
    let pid = wait_for("the new release runs", || {
        stack.pids("a").values().next().copied()
    });
    assert_eq!(place(pid), "r3");
    // A release that is gone is no reason not to run.
    point(&directory, "r1");
    fs::remove_dir_all(directory.join("r3")).unwrap();
    procfs_kill(pid);
    let new = wait_for("another runs", || {
        let pids = stack.pids("a");
        pids.values().find(|other| **other != pid).copied()
    });
    wait_until("it runs where the link leads", || {
        procfs::alive(new) && place(new) == "r1"
    });
}

fn procfs_kill(pid: i32) {
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
}

/// Two workers of a, which serve from r1 while the link leads to r2, which `ends` at once or not.
fn served_by_r1(ends: bool) -> (Stack, PathBuf) {
    let ini = "[watcher:a]\ncmd = ./run\nworking_dir = DIR/current\nnumprocesses = 2\n";
    let stack = Stack::start_after(ini, |kernel| {
        let directory = kernel.directory();
        release(directory, "r1", false);
        release(directory, "r2", ends);
        point(directory, "r1");
    });
    let directory = stack.kernel.directory().to_owned();
    wait_up(&stack, "a");
    stack.wait_pids("a", 2);
    point(&directory, "r2");
    (stack, directory)
}

/// Kills worker 1 and answers with its successor's pid.
fn replaced(stack: &Stack) -> i32 {
    let old = stack.wait_pids("a", 2)[&1];
    procfs_kill(old);
    let new = wait_for("another runs", || {
        stack.pids("a").get(&1).copied().filter(|pid| *pid != old)
    });
    wait_until("it runs its program", || {
        fs::read(format!("/proc/{new}/cmdline")).is_ok_and(|line| line.starts_with(b"sleep"))
    });
    new
}

fn wait_message(stack: &Stack, part: &str) -> String {
    wait_for("the message", || {
        let text = stack.ask("doctor", &json!({})).to_string();
        text.contains(part).then_some(text)
    })
}

#[test]
fn a_deleted_release_is_replaced_by_the_current_one_and_that_is_said() {
    let (mut stack, directory) = served_by_r1(false);
    fs::remove_dir_all(directory.join("r1")).unwrap();
    assert_eq!(place(replaced(&stack)), "r2");
    let said = wait_message(&stack, "was deleted");
    for part in ["r1 was deleted", "run from", "r2", "papactl reload a"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    // A successor knows it too.
    stack.kill_manager();
    stack.start_manager();
    wait_message(&stack, "r1 was deleted");
    ok(&stack.ask("reload", &json!({"name": "a", "waiting": true})));
    wait_until("all run from the current release", || {
        let pids = stack.pids("a");
        pids.len() == 2 && pids.values().all(|pid| place(*pid) == "r2")
    });
    let said = stack.ask("doctor", &json!({})).to_string();
    assert!(!said.contains("was deleted"), "{said}");
    let plan = stack.ask("reloadconfig", &json!({"plan": true}));
    assert!(!plan["plan"].to_string().contains("r1"), "{plan}");
}

#[test]
fn a_release_whose_reload_was_rolled_back_does_not_replace_a_deleted_one() {
    let (mut stack, directory) = served_by_r1(true);
    refused(&reload(&stack));
    let kept = directory.join("r1");
    let aside = directory.join("aside");
    fs::rename(&kept, &aside).unwrap();
    let before = stack.wait_pids("a", 2);
    procfs_kill(before[&1]);
    let said = wait_message(&stack, "rolled back; put the deleted one back");
    for part in ["r1 was deleted", "r2", "papactl reload a"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    // Not of a successor either; and the other worker serves on.
    stack.kill_manager();
    stack.start_manager();
    wait_message(&stack, "rolled back; put the deleted one back");
    assert_eq!(stack.pids("a").get(&2), before.get(&2));
    assert!(procfs::alive(before[&2]));
    // Nor by way of something else that is asked.
    ok(&stack.ask(
        "set",
        &json!({"name": "a", "options": {"graceful_timeout": 4}}),
    ));
    assert!(procfs::alive(before[&2]));
    wait_message(&stack, "rolled back; put the deleted one back");
    fs::rename(&aside, &kept).unwrap();
    stack.wait_pids("a", 2);
    wait_until("nothing is said any more", || {
        !stack
            .ask("doctor", &json!({}))
            .to_string()
            .contains("was deleted")
    });
    // It is deleted for good, and a release that works comes.
    fs::rename(&kept, &aside).unwrap();
    release(&directory, "r3", false);
    point(&directory, "r3");
    assert_eq!(place(replaced(&stack)), "r3");
}

#[test]
fn a_successor_starts_workers_in_the_release_that_served() {
    let (mut stack, directory) = served_by_r1(true);
    refused(&reload(&stack));
    stack.kill_manager();
    stack.start_manager();
    wait_up(&stack, "a");
    assert_eq!(place(replaced(&stack)), "r1");
    // What is set at run time changes nothing about that.
    ok(&stack.ask(
        "set",
        &json!({"name": "a", "options": {"graceful_timeout": 4}, "waiting": true}),
    ));
    assert_eq!(place(replaced(&stack)), "r1");
    release(&directory, "r2", false);
    let plan = stack.ask("reloadconfig", &json!({"plan": true}));
    assert!(plan["plan"].to_string().contains("r2"), "{plan}");
    ok(&reload(&stack));
    wait_until("all run from the current release", || {
        let pids = stack.pids("a");
        pids.len() == 2 && pids.values().all(|pid| place(*pid) == "r2")
    });
}
