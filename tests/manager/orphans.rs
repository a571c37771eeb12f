//! Keeper and kernel are both gone: nothing runs twice, nothing is hidden, nothing hangs, and `up`
//! leads out of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use papa_harness::{
    Failpoints, Scratch, binary, free_port, private_command, procfs, skipped, wait_for, wait_until,
};

/// What a verb may take that finds no kernel; the promise is two seconds, and this machine may be
/// busy. A hang is of five or more.
const SOON: Duration = Duration::from_secs(4);

/// An installation that `papactl up` started, with a kernel behind a socket of its own.
pub(crate) struct Site {
    pub(crate) scratch: Scratch,
}

impl Site {
    pub(crate) fn new(ini: &str) -> Self {
        let site = Self {
            scratch: Scratch::new(),
        };
        let directory = site.scratch.path("").trim_end_matches('/').to_owned();
        let text = format!("[circus]\npapa_endpoint = unix:{directory}/k.sock\n{ini}");
        fs::write(
            site.scratch.directory().join("site.ini"),
            text.replace("DIR", &directory),
        )
        .unwrap();
        site
    }

    pub(crate) fn papactl(&self, line: &str) -> Output {
        let mut command: Command = private_command(&binary("papactl"), self.scratch.directory());
        command
            .current_dir(self.scratch.directory())
            .args(line.split_whitespace())
            .output()
            .unwrap()
    }

    #[track_caller]
    pub(crate) fn done(&self, line: &str) -> String {
        let output = self.papactl(line);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(
            output.status.code(),
            Some(0),
            "papactl {line}: {printed}{said}"
        );
        printed
    }

    /// What it says; it fails, and does so soon.
    #[track_caller]
    pub(crate) fn fails_soon(&self, line: &str) -> String {
        let begun = Instant::now();
        let output = self.papactl(line);
        let took = begun.elapsed();
        let streams = [&output.stdout, &output.stderr];
        let said = streams.map(|bytes| String::from_utf8_lossy(bytes)).concat();
        assert_eq!(output.status.code(), Some(1), "papactl {line}: {said}");
        assert!(took < SOON, "papactl {line} took {took:?}");
        said
    }

    pub(crate) fn status(&self) -> Value {
        let output = self.papactl("status --json");
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    pub(crate) fn pids(&self, name: &str) -> BTreeSet<i32> {
        let status = self.status();
        let watchers = status["watchers"].as_array().cloned().unwrap_or_default();
        watchers
            .iter()
            .filter(|watcher| watcher["name"] == name)
            .flat_map(|watcher| watcher["workers"].as_array().cloned().unwrap_or_default())
            .filter_map(|worker| i32::try_from(worker["pid"].as_i64()?).ok())
            .collect()
    }

    #[track_caller]
    pub(crate) fn wait_pids(&self, name: &str, count: usize) -> BTreeSet<i32> {
        wait_for("the workers run", || {
            Some(self.pids(name)).filter(|pids| pids.len() == count)
        })
    }

    pub(crate) fn manager(&self) -> i32 {
        i32::try_from(self.status()["manager"]["pid"].as_i64().unwrap()).unwrap()
    }

    /// Ends keeper and kernel in the same instant.
    pub(crate) fn kill_kernels(&self) {
        let status: Value = serde_json::from_str(&self.done("kernel status --json")).unwrap();
        let kernel = &status["kernel"];
        for role in ["keeper", "pid"] {
            let pid = i32::try_from(kernel[role].as_i64().unwrap()).unwrap();
            procfs::signal(pid, Signal::SIGSTOP);
        }
        for role in ["keeper", "pid"] {
            let pid = i32::try_from(kernel[role].as_i64().unwrap()).unwrap();
            procfs::signal(pid, Signal::SIGKILL);
            wait_until("it is gone", || !procfs::alive(pid));
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.papactl("down --timeout 10");
    }
}

const TWO: &str = "[watcher:web]\ncmd = sleep 1000\nnumprocesses = 2\ncopy_env = true\n\
    [watcher:one]\ncmd = sleep 1000\nsingleton = true\ncopy_env = true\n";

#[test]
fn workers_of_a_lost_kernel_are_ended_before_others_start_in_their_place() {
    for manager_lives in [true, false] {
        let site = Site::new(TWO);
        site.done("up site.ini");
        let mut before = site.wait_pids("web", 2);
        before.extend(site.wait_pids("one", 1));
        let manager = site.manager();
        site.kill_kernels();
        if !manager_lives {
            procfs::signal(manager, Signal::SIGKILL);
            wait_until("the manager is gone", || !procfs::alive(manager));
        }
        assert!(
            before.iter().all(|pid| procfs::alive(*pid)),
            "orphans run on"
        );
        let printed = site.done("up site.ini");
        assert!(printed.contains("kernel:  started"), "{printed}");
        let mut after = site.wait_pids("web", 2);
        after.extend(site.wait_pids("one", 1));
        assert!(before.is_disjoint(&after), "{before:?} {after:?}");
        for pid in &before {
            assert!(!procfs::alive(*pid), "{pid} runs beside its successor");
        }
        assert_eq!(site.manager() == manager, manager_lives);
        site.done("down");
    }
}

#[test]
fn without_a_kernel_nothing_lies_and_nothing_hangs() {
    let site = Site::new(TWO);
    site.done("up site.ini");
    let before = site.wait_pids("web", 2);
    site.kill_kernels();
    let verbs = [
        "status",
        "stop web",
        "start web",
        "restart web",
        "reload web",
        "reloadconfig",
        "signal web HUP",
        "kill web",
        "incr web",
        "decr web",
        "set web max_age 5",
        "add other sleep 1000",
        "rm web",
        "doctor",
    ];
    for line in verbs {
        let said = site.fails_soon(line);
        assert!(said.contains("papactl up"), "papactl {line}: {said}");
    }
    // What the processes take is no secret of the kernel's.
    let stats = site.done("stats web");
    assert!(
        before.iter().all(|pid| stats.contains(&pid.to_string())),
        "{stats}"
    );
    let printed = String::from_utf8(site.papactl("status").stdout).unwrap();
    assert!(!printed.contains("active"), "{printed}");
    assert!(
        before.iter().all(|pid| procfs::alive(*pid)),
        "nothing was done"
    );
    let manager = site.manager();
    procfs::signal(manager, Signal::SIGKILL);
    wait_until("the manager is gone", || !procfs::alive(manager));
    for line in verbs.into_iter().chain(["stats"]) {
        let said = site.fails_soon(line);
        assert!(said.contains("papactl up"), "papactl {line}: {said}");
    }
    assert!(
        before.iter().all(|pid| procfs::alive(*pid)),
        "nothing was done"
    );
    site.done("up site.ini");
    assert!(site.wait_pids("web", 2).is_disjoint(&before));
    assert!(site.done("status").contains("active"));
}

#[test]
fn an_orphan_that_ignores_the_stop_signal_is_shown_then_killed() {
    let deaf = "[watcher:deaf]\ncmd = sh -c 'trap \"\" TERM; echo up > DIR/up; while :; do sleep 0.2; done'\n\
        copy_env = true\ngraceful_timeout = 3\n";
    let site = Site::new(deaf);
    site.done("up site.ini");
    let old = *site.wait_pids("deaf", 1).first().unwrap();
    let ready = site.scratch.directory().join("up");
    wait_until("it ignores TERM", || ready.exists());
    site.kill_kernels();
    site.done("up site.ini --no-wait");
    let shown = wait_for("status shows the orphan", || {
        let status = site.status();
        let orphan = status["watchers"][0]["orphans"][0].clone();
        (orphan["pid"] == old).then_some(orphan)
    });
    assert_eq!(shown["wid"], 1);
    let said = String::from_utf8(site.papactl("doctor").stdout).unwrap();
    assert!(
        said.contains("orphan deaf.1") && said.contains(&old.to_string()),
        "{said}"
    );
    let new = *site.wait_pids("deaf", 1).first().unwrap();
    assert!(!procfs::alive(old) && old != new);
}

/// Ignores TERM, and notes down when it runs beside another.
const ALONE: &str = "
exec 9>DIR/lock
flock -n 9 || echo $$ >> DIR/twice
trap '' TERM
echo up > DIR/up
while :; do sleep 0.1 9>&-; done
";

#[test]
fn a_manager_killed_while_it_ended_orphans_left_them_to_run_beside_their_successors() {
    if !cfg!(debug_assertions) {
        return skipped("a release build has no places to stop at");
    }
    let site = Site::new(
        "[watcher:alone]\ncmd = sh DIR/alone.sh\ncopy_env = true\ngraceful_timeout = 0.5\n",
    );
    let directory = site.scratch.path("").trim_end_matches('/').to_owned();
    let script = ALONE.replace("DIR", &directory);
    fs::write(site.scratch.path("alone.sh"), script).unwrap();
    let failpoints = Failpoints::at(&site.scratch.directory().join("failpoints"));
    site.done("up site.ini");
    for place in ["found", "asked", "frozen", "killed"] {
        let place = format!("orphan.{place}");
        let old = *site.wait_pids("alone", 1).first().unwrap();
        wait_until("it ignores TERM", || {
            fs::remove_file(site.scratch.path("up")).is_ok()
        });
        let manager = site.manager();
        site.kill_kernels();
        procfs::signal(manager, Signal::SIGKILL);
        wait_until("the manager is gone", || !procfs::alive(manager));
        failpoints.arm(&place, 1, "manager");
        let mut up = private_command(&binary("papactl"), site.scratch.directory());
        let mut up = failpoints
            .put_into(&mut up)
            .current_dir(site.scratch.directory())
            .args(["up", "site.ini"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let hit = wait_for(&place, || failpoints.hit(&place));
        procfs::signal(hit.pid, Signal::SIGKILL);
        wait_until("the manager is gone", || !procfs::alive(hit.pid));
        up.kill().unwrap();
        up.wait().unwrap();
        failpoints.clear();
        site.done("up site.ini");
        let new = site.wait_pids("alone", 1);
        assert!(!procfs::alive(old) && !new.contains(&old), "{place}");
        let twice = fs::read_to_string(site.scratch.path("twice"));
        assert!(twice.is_err(), "{place}: {twice:?} ran beside another");
    }
}

#[test]
fn orphans_are_waited_for_or_left_where_the_file_says_so() {
    let site = Site::new(
        "[watcher:waits]\ncmd = sleep 1000\ncopy_env = true\norphans = wait\n\
         [watcher:leaves]\ncmd = sleep 1000\ncopy_env = true\norphans = leave\n",
    );
    site.done("up site.ini");
    let waited = *site.wait_pids("waits", 1).first().unwrap();
    let left = *site.wait_pids("leaves", 1).first().unwrap();
    site.kill_kernels();
    site.done("up site.ini --no-wait");
    site.wait_pids("leaves", 1);
    wait_until("status says what is waited for", || {
        let printed = String::from_utf8(site.papactl("status").stdout).unwrap();
        printed.contains("orphans = wait")
    });
    assert!(procfs::alive(waited) && procfs::alive(left));
    assert_eq!(site.pids("waits").len(), 0);
    procfs::signal(waited, Signal::SIGKILL);
    site.wait_pids("waits", 1);
    assert!(procfs::alive(left), "it was to be left");
    site.done("down");
    assert!(
        !procfs::alive(left),
        "down ends orphans whatever the file says"
    );
}

#[test]
fn a_port_that_an_orphan_holds_named_nobody() {
    let port = free_port();
    let site = Site::new(&format!(
        "[watcher:web]\ncmd = sleep 1000\ncopy_env = true\nuse_sockets = yes\norphans = leave\n\
         [socket:api]\nhost = 127.0.0.1\nport = {port}\n"
    ));
    site.done("up site.ini");
    let orphan = *site.wait_pids("web", 1).first().unwrap();
    site.kill_kernels();
    site.done("up site.ini --no-wait");
    let holder = format!("127.0.0.1:{port} is taken by sleep 1000 (pid {orphan})");
    for line in ["status", "listsockets", "doctor"] {
        wait_until(&format!("{line} names the orphan"), || {
            let printed = site.papactl(line).stdout;
            let printed = String::from_utf8_lossy(&printed).into_owned();
            let words: Vec<&str> = printed.split_whitespace().collect();
            words.join(" ").contains(&holder)
        });
    }
    let listed = site.done("listsockets");
    assert!(!listed.contains("not connected"), "{listed}");
    procfs::signal(orphan, Signal::SIGKILL);
    let next = site.wait_pids("web", 1);
    assert!(!next.contains(&orphan));
    let listed = site.done("listsockets");
    assert!(
        !listed.contains("not connected") && !listed.contains("not there"),
        "{listed}"
    );
}

#[test]
fn a_follower_of_logs_showed_nothing_of_a_fresh_kernel() {
    for manager_lives in [true, false] {
        let site = Site::new(
            "[watcher:web]\ncmd = sh -c 'echo worker $$; exec sleep 1000'\ncopy_env = true\n",
        );
        site.done("up site.ini");
        let old = *site.wait_pids("web", 1).first().unwrap();
        let mut follower = private_command(&binary("papactl"), site.scratch.directory())
            .current_dir(site.scratch.directory())
            .args(["logs", "-f"])
            .stdout(fs::File::create(site.scratch.path("followed")).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let followed = || fs::read_to_string(site.scratch.path("followed")).unwrap();
        wait_until("it follows", || followed().ends_with('\n'));
        let manager = site.manager();
        site.kill_kernels();
        if !manager_lives {
            procfs::signal(manager, Signal::SIGKILL);
            wait_until("the manager is gone", || !procfs::alive(manager));
        }
        site.done("up site.ini");
        let new = *site.wait_pids("web", 1).first().unwrap();
        wait_until("the next worker is followed", || {
            followed().contains(&format!("worker {new}\n"))
        });
        assert_eq!(followed(), format!("worker {old}\nworker {new}\n"));
        assert!(follower.try_wait().unwrap().is_none());
        follower.kill().unwrap();
        follower.wait().unwrap();
    }
}

/// Clears its environment and leaves session and parent, so that nothing tells whose it is.
pub(crate) const HIDES: &str = "
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve('/bin/sh', ['sh', '-c', 'echo $$ > %s/hidden; exec sleep 1000' % sys.argv[1]], {})
    os._exit(0)
time.sleep(1000)
";

#[test]
fn what_a_worker_had_hidden_ran_on_after_down_without_a_word() {
    let site = Site::new(
        "[watcher:hides]\ncmd = python3 DIR/hides.py DIR\ncopy_env = true\nautostart = false\n",
    );
    let directory = site.scratch.directory();
    fs::write(directory.join("hides.py"), HIDES).unwrap();
    site.done("up site.ini");
    assert!(!site.done("doctor").contains("cannot be told"));
    site.done("start hides");
    let hidden: i32 = wait_for("it hides", || {
        let pid = fs::read_to_string(directory.join("hidden")).ok()?;
        pid.trim().parse().ok()
    });
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
    let bare = *site.wait_pids("bare", 1).first().unwrap();
    let waited = *site.wait_pids("waits", 1).first().unwrap();
    let child = number_in(&site, "child");
    wait_until("its environment is empty", || {
        [bare, waited, child]
            .iter()
            .all(|pid| procfs::environment(*pid).is_empty())
    });
    site.kill_kernels();
    site.done("up site.ini --no-wait");
    let after = *site.wait_pids("bare", 1).first().unwrap();
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
    let bare = *site.wait_pids("bare", 1).first().unwrap();
    let waited = *site.wait_pids("waits", 1).first().unwrap();
    let child = number_in(&site, "child");
    wait_noted(&site, &[bare, waited]);
    let manager = site.manager();
    site.kill_kernels();
    procfs::signal(manager, Signal::SIGKILL);
    wait_until("the manager is gone", || !procfs::alive(manager));
    site.done("up site.ini --no-wait");
    let after = *site.wait_pids("bare", 1).first().unwrap();
    assert!(!procfs::alive(bare), "{bare} runs beside {after}");
    site.wait_pids("parent", 1);
    assert!(!procfs::alive(child), "{child} outlived its worker");
    assert_waits(&site, waited);

    // What was found is known to whoever comes after: killed, or started anew in its place.
    let manager = site.manager();
    procfs::signal(manager, Signal::SIGKILL);
    wait_until("the manager is gone", || !procfs::alive(manager));
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
    let manager = site.manager();
    site.kill_kernels();
    procfs::signal(manager, Signal::SIGKILL);
    wait_until("the manager is gone", || !procfs::alive(manager));
    let printed = site.done("down --config site.ini");
    for pid in &all {
        assert!(!procfs::alive(*pid), "{pid} runs on: {printed}");
    }
    assert!(printed.contains("orphan of bare, worker 1"), "{printed}");
    assert!(!notes(&site).exists(), "the file outlived its workers");
}
