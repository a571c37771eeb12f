//! Keeper and kernel are both gone: no worker runs twice, every verb says so at once, and `up` starts
//! everything again.

use std::fs;
use std::process::Stdio;

use nix::sys::signal::Signal;

use papa_harness::{Failpoints, Site, free_port, procfs, skipped, wait_for, wait_until};

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
        if manager_lives {
            site.kill_kernels();
        } else {
            site.kill_all();
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
    site.kill_manager();
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
    let old = site.wait_pid("deaf");
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
    let new = site.wait_pid("deaf");
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
        let old = site.wait_pid("alone");
        wait_until("it ignores TERM", || {
            fs::remove_file(site.scratch.path("up")).is_ok()
        });
        site.kill_all();
        failpoints.arm(&place, 1, "manager");
        let mut up = failpoints
            .put_into(&mut site.command("papactl", "up site.ini"))
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
    let waited = site.wait_pid("waits");
    let left = site.wait_pid("leaves");
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
    let orphan = site.wait_pid("web");
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
        let old = site.wait_pid("web");
        let mut follower = site
            .command("papactl", "logs -f")
            .stdout(fs::File::create(site.scratch.path("followed")).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let followed = || fs::read_to_string(site.scratch.path("followed")).unwrap();
        wait_until("it follows", || followed().ends_with('\n'));
        if manager_lives {
            site.kill_kernels();
        } else {
            site.kill_all();
        }
        site.done("up site.ini");
        let new = site.wait_pid("web");
        wait_until("the next worker is followed", || {
            followed().contains(&format!("worker {new}\n"))
        });
        assert_eq!(followed(), format!("worker {old}\nworker {new}\n"));
        assert!(follower.try_wait().unwrap().is_none());
        follower.kill().unwrap();
        follower.wait().unwrap();
    }
}
