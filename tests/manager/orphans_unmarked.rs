//! Orphans that cleared their environment and so have no mark: known by pid and start time, to the
//! manager that started them, to the next one, and to a `down` without either.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use serde_json::Value;

use papa_harness::{Site, procfs, wait_for, wait_until};

/// Its first watcher clears its environment at once, its second only that of a child.
const BARE: &str = "[watcher:bare]\ncmd = env -i /bin/sleep 1000\n\
    [watcher:parent]\ncmd = sh -c 'env -i /bin/sleep 1000 & echo $! > DIR/child; wait'\ncopy_env = true\n\
    [watcher:waits]\ncmd = env -i /bin/sleep 1000\norphans = wait\n";

fn number_in(site: &Site, file: &str) -> i32 {
    wait_for("it has told its number", || {
        let text = fs::read_to_string(site.scratch.path(file)).ok()?;
        text.trim().parse().ok()
    })
}

#[test]
fn workers_without_a_mark_ran_on_beside_their_successors() {
    let site = Site::new(BARE);
    site.done("up site.ini");
    let bare = site.wait_pid("bare");
    let waited = site.wait_pid("waits");
    let child = number_in(&site, "child");
    wait_until("its environment is empty", || {
        [bare, waited, child]
            .iter()
            .all(|pid| procfs::environment(*pid).is_empty())
    });
    site.kill_kernels();
    site.done("up site.ini --no-wait");
    let after = site.wait_pid("bare");
    site.wait_pids("parent", 1);
    assert!(!procfs::alive(bare), "{bare} runs beside {after}");
    assert!(!procfs::alive(child), "{child} outlived its worker");
    let status = site.status();
    let watchers = status["watchers"].as_array().unwrap();
    let waits = watchers.iter().find(|one| one["name"] == "waits").unwrap();
    assert_eq!(waits["orphans"][0]["pid"], waited, "{waits}");
    assert_eq!(waits["workers"], Value::Array(Vec::new()), "{waits}");
    let said = String::from_utf8(site.papactl("doctor").stdout).unwrap();
    assert!(
        said.contains("orphan waits.1") && said.contains(&waited.to_string()),
        "{said}"
    );
    assert!(procfs::alive(waited), "orphans = wait");
    procfs::signal(waited, Signal::SIGKILL);
    site.wait_pids("waits", 1);
}

#[test]
fn workers_without_a_mark_ran_on_after_a_down_without_a_kernel() {
    let site = Site::new(BARE);
    site.done("up site.ini");
    let mut all = vec![number_in(&site, "child")];
    for name in ["bare", "parent", "waits"] {
        all.extend(site.wait_pids(name, 1));
    }
    site.kill_kernels();
    let printed = site.done("down");
    for pid in &all {
        assert!(!procfs::alive(*pid), "{pid} runs on: {printed}");
    }
    assert!(printed.contains("orphan of bare, worker 1"), "{printed}");
}

/// Waits until the manager has noted these processes for the next one.
#[track_caller]
fn wait_noted(site: &Site, pids: &[i32]) {
    let path = notes(site);
    wait_until("the workers are noted", || {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let noted: Value = serde_json::from_str(&text).unwrap_or_default();
        let noted = noted["processes"].as_array().cloned().unwrap_or_default();
        pids.iter()
            .all(|pid| noted.iter().any(|one| one["pid"] == *pid))
    });
}

/// The file with the workers that a manager knows.
fn notes(site: &Site) -> PathBuf {
    site.scratch.directory().join("papa/circus.workers.json")
}

#[test]
fn workers_without_a_mark_ran_on_when_the_manager_was_lost_as_well() {
    let site = Site::new(BARE);
    site.done("up site.ini");
    let bare = site.wait_pid("bare");
    let waited = site.wait_pid("waits");
    let child = number_in(&site, "child");
    wait_noted(&site, &[bare, waited]);
    site.kill_all();
    site.done("up site.ini --no-wait");
    let after = site.wait_pid("bare");
    assert!(!procfs::alive(bare), "{bare} runs beside {after}");
    site.wait_pids("parent", 1);
    assert!(!procfs::alive(child), "{child} outlived its worker");
    assert_waits(&site, waited);

    // What was found is known to whoever comes after: killed, or started anew in its place.
    site.kill_manager();
    site.done("up site.ini --no-wait");
    assert_waits(&site, waited);
    site.done("upgrade");
    assert_waits(&site, waited);

    let printed = site.done("down --timeout 20");
    assert!(!procfs::alive(waited), "{waited} runs on: {printed}");
    assert!(!notes(&site).exists(), "the file outlived its workers");
}

/// The watcher waits for its orphan and starts nothing.
#[track_caller]
fn assert_waits(site: &Site, orphan: i32) {
    let waits = wait_for("the orphan is shown", || {
        let status = site.status();
        let watchers = status["watchers"].as_array()?;
        let waits = watchers.iter().find(|one| one["name"] == "waits")?.clone();
        Some(waits).filter(|waits| waits["orphans"][0]["pid"] == orphan)
    });
    assert_eq!(waits["workers"], Value::Array(Vec::new()), "{waits}");
    assert!(procfs::alive(orphan), "orphans = wait");
}

#[test]
fn workers_without_a_mark_ran_on_after_a_down_with_nobody_left() {
    let site = Site::new(BARE);
    site.done("up site.ini");
    let mut all = vec![number_in(&site, "child")];
    for name in ["bare", "parent", "waits"] {
        all.extend(site.wait_pids(name, 1));
    }
    wait_noted(&site, &all[1..]);
    site.kill_all();
    let printed = site.done("down --config site.ini");
    for pid in &all {
        assert!(!procfs::alive(*pid), "{pid} runs on: {printed}");
    }
    assert!(printed.contains("orphan of bare, worker 1"), "{printed}");
    assert!(!notes(&site).exists(), "the file outlived its workers");
}
