//! Recovery in unkind surroundings: every option in use, few descriptors, a log nobody reads, a
//! keeper that stands still, signals in the middle of a change of roles.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use papa_harness::{Classic, Collector, Kernel, is_root, procfs, wait_until, wait_until_for};

/// For what takes the daemon's own patience with itself: a keeper may be silent for half a minute.
const LONG: Duration = Duration::from_secs(120);

fn pid(process: &Value) -> i32 {
    i32::try_from(process["pid"].as_i64().expect("a pid")).expect("a pid fits")
}

fn serial(process: &Value) -> u64 {
    process["serial"].as_u64().expect("a serial")
}

/// Pids by name of everything that is listed as running, each of them alive.
#[track_caller]
fn running(kernel: &Kernel) -> BTreeMap<String, i32> {
    let listed = kernel.json().ok("process.list", json!({}))["processes"].clone();
    let running: BTreeMap<String, i32> = listed
        .as_array()
        .expect("a list")
        .iter()
        .filter(|process| process["running"] == true)
        .map(|process| {
            (
                process["name"].as_str().expect("a name").to_owned(),
                pid(process),
            )
        })
        .collect();
    for (name, pid) in &running {
        assert!(
            procfs::alive(*pid),
            "{name}, pid {pid}, is listed as running"
        );
    }
    running
}

#[test]
fn a_process_with_every_option_is_the_same_after_every_change_of_roles() {
    let mut kernel = Kernel::start();
    let mut session = kernel.json();
    for (name, reuseport) in [("web", false), ("other", true)] {
        session.ok("socket.make", json!({"name": name, "reuseport": reuseport}));
    }
    for name in ["note", "input", "errors"] {
        fs::write(kernel.path(name), "x\n").unwrap();
        let file = File::options()
            .read(true)
            .write(true)
            .open(kernel.path(name))
            .unwrap();
        let held = session.call_with("hold", json!({"name": name}), file.as_fd());
        held.unwrap().unwrap();
    }
    let mut options = json!({
        "name": "w.all",
        "argv": ["exec sleep $1", "$(socket.web.port)", "1000"],
        "env": {"PATH": "/usr/bin:/bin", "EMPTY": "", "ODD": "a=b\nc\u{e9} $(x)"},
        "env_inherit": true,
        "working_dir": "/usr",
        "shell": true,
        "umask": "027",
        "nice": 5,
        "oom_score_adj": 300,
        "rlimits": {"nofile": 64, "core": 0, "cpu": [600, 1200]},
        "sockets": ["other"],
        "listen_fds": ["web"],
        "descriptors": {"9": "note"},
        "stdin": {"held": "input"},
        "stdout": "pipe",
        "stderr": {"held": "errors"},
        "overflow": "block",
        "reel_bytes": "128k",
        "verbatim": true,
        "tag": {"wid": 1, "generation": [2, {"deep": null}], "text": "a \"quoted\"\nline"},
    });
    if is_root() {
        options["uid"] = json!("nobody");
        options["gid"] = json!(65_534);
        options["groups"] = json!([65_534, 12]);
    }
    let before = session.ok("process.make", options.clone())["process"].clone();
    let list = |kernel: &Kernel| kernel.json().ok("process.list", json!({}))["processes"].clone();
    let listed = list(&kernel);
    assert_eq!(listed[0]["tag"], options["tag"]);
    let held = kernel.json().ok("hold.list", json!({}));
    // While it is loaded it has its libraries open.
    wait_until("its program runs", || {
        let line = fs::read(format!("/proc/{}/cmdline", pid(&before))).unwrap_or_default();
        let asleep = procfs::stat(pid(&before)).is_some_and(|stat| stat.state == 'S');
        line.starts_with(b"sleep") && asleep
    });
    let descriptors = procfs::descriptors(pid(&before));
    drop(session);
    for turn in 0..3 {
        match turn {
            0 => kernel.kill_kernel(),
            1 => kernel.kill_keeper(),
            _ => kernel.upgrade(),
        }
        assert_eq!(list(&kernel), listed, "after change {turn}");
        assert_eq!(kernel.json().ok("hold.list", json!({})), held);
        assert_eq!(procfs::descriptors(pid(&before)), descriptors);
        // What is not listed is compared by the kernel itself.
        let again = kernel.json().ok("process.make", options.clone());
        assert_eq!(again["created"], false, "{again}");
        for (key, other) in [
            ("umask", json!("022")),
            ("nice", json!(6)),
            (
                "rlimits",
                json!({"nofile": 65, "core": 0, "cpu": [600, 1200]}),
            ),
            ("descriptors", json!({"10": "note"})),
            ("listen_fds", json!([])),
        ] {
            let mut changed = options.clone();
            changed[key] = other;
            let code = kernel.json().error("process.make", changed);
            assert_eq!(code, "exists", "with another {key}");
        }
    }
}

#[test]
fn three_hundred_processes_fit_below_a_soft_limit_of_1024_descriptors() {
    let mut kernel = Kernel::builder()
        .wrapper(&["bash", "-c", "ulimit -Sn 1024; exec \"$@\"", "bash"])
        .start();
    let mut session = kernel.json();
    for number in 0..300 {
        session.make_process(
            &format!("w.{number}"),
            &["/bin/sleep", "1000"],
            json!({"rlimits": {"nofile": 64}}),
        );
    }
    session.make_process("plain", &["/bin/sleep", "1000"], json!({}));
    let before = running(&kernel);
    assert_eq!(before.len(), 301);
    let limit = |name: &str| {
        let limits = fs::read_to_string(format!("/proc/{}/limits", before[name])).unwrap();
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max open files"));
        let words: Vec<&str> = line.unwrap().split_whitespace().collect();
        (words[3].to_owned(), words[4].to_owned())
    };
    assert_eq!(limit("w.0"), ("64".to_owned(), "64".to_owned()));
    assert_eq!(limit("w.299"), ("64".to_owned(), "64".to_owned()));
    // What the daemon raised for itself is not passed on.
    assert_eq!(limit("plain").0, "1024");
    kernel.kill_kernel();
    assert_eq!(running(&kernel), before);
    kernel.kill_keeper();
    assert_eq!(running(&kernel), before);
    kernel.upgrade();
    assert_eq!(running(&kernel), before);
    let after = kernel
        .json()
        .make_process("after", &["/bin/sleep", "1000"], json!({}));
    let path = format!("/proc/{}/limits", pid(&after));
    let limits = fs::read_to_string(path).unwrap();
    assert!(
        limits
            .lines()
            .any(|line| line.starts_with("Max open files") && line.contains(" 1024 ")),
        "the soft limit of old, after three changes of roles: {limits}"
    );
}

/// Kills, changes of roles and enough requests to fill any pipe with log lines; `redirection` says
/// where these go.
fn works_with_its_log(redirection: &str) {
    let mut kernel = Kernel::builder()
        .wrapper(&["bash", "-c", &format!("exec \"$@\" {redirection}"), "bash"])
        .start();
    let stays = kernel
        .json()
        .make_process("stays", &["/bin/sleep", "1000"], json!({}));
    for turn in 0..3 {
        let mut session = kernel.json();
        for number in 0..300 {
            let name = format!("w.{turn}.{number}");
            session.make_process(&name, &["/bin/true"], json!({}));
            session.ok("process.remove", json!({"names": [name]}));
        }
        match turn {
            0 => kernel.kill_kernel(),
            1 => kernel.kill_keeper(),
            _ => kernel.upgrade(),
        }
        assert_eq!(running(&kernel).get("stays"), Some(&pid(&stays)));
    }
    assert_eq!(kernel.log(), "", "its lines went elsewhere");
}

#[test]
fn a_log_whose_reader_has_gone_is_no_trouble() {
    works_with_its_log("2> >(exec true)");
}

#[test]
fn a_log_that_nobody_reads_is_no_trouble() {
    works_with_its_log("2> >(exec sleep 1000)");
}

#[test]
fn a_log_on_a_full_disk_is_no_trouble() {
    works_with_its_log("2> /dev/full");
}

#[test]
fn a_keeper_that_wakes_up_after_it_was_replaced_does_nothing() {
    let mut kernel = Kernel::start();
    let worker = kernel
        .json()
        .make_process("w", &["/bin/sleep", "1000"], json!({}));
    let old = kernel.keeper();
    procfs::signal(old, Signal::SIGSTOP);
    // Each registers with the keeper; when its queue is full, it counts as lost.
    let mut made = 0;
    let start = Instant::now();
    while kernel.keeper() == old {
        assert!(start.elapsed() < LONG, "the keeper was not replaced");
        made += 1;
        let request = json!({"name": format!("n.{made}"), "argv": ["/bin/sleep", "1000"]});
        // The one under way when roles change is not answered.
        let _ = kernel.json().call("process.make", request);
    }
    procfs::signal(old, Signal::SIGCONT);
    wait_until("the old keeper is gone", || !procfs::alive(old));
    let (keeper, now) = (kernel.keeper(), kernel.pid());
    let listed = running(&kernel);
    assert_eq!(listed["w"], pid(&worker));
    let mut wanted: Vec<i32> = listed.values().copied().chain([keeper, now]).collect();
    wanted.sort_unstable();
    wait_until("one keeper, one kernel and what is listed live", || {
        let mut found: Vec<i32> = kernel
            .processes()
            .into_iter()
            .filter(|pid| procfs::alive(*pid))
            .collect();
        found.sort_unstable();
        found == wanted
    });
}

#[test]
fn a_keeper_that_stands_still_for_a_moment_stays() {
    let mut kernel = Kernel::start();
    let quick = kernel
        .json()
        .make_process("w", &["/bin/sleep", "1000"], json!({}));
    let (keeper, before) = (kernel.keeper(), kernel.pid());
    procfs::signal(keeper, Signal::SIGSTOP);
    // The kernel dies beside it, and so does a worker: both wait for it.
    procfs::signal(before, Signal::SIGKILL);
    procfs::signal(pid(&quick), Signal::SIGKILL);
    wait_until("both are dead", || {
        !procfs::alive(before) && !procfs::alive(pid(&quick))
    });
    procfs::signal(keeper, Signal::SIGCONT);
    assert_eq!(kernel.keeper(), keeper);
    let seen = Collector::new(&kernel.socket_path(), &["w"]).finish(serial(&quick));
    assert_eq!(seen.exit.unwrap()["signal"], 9);
}

/// Signals that end nothing by themselves while processes are left (one request to end is announced
/// and passes), sent at the same moment as what makes roles change.
#[test]
fn signals_in_the_middle_of_a_change_of_roles_cost_nothing() {
    let mut kernel = Kernel::start();
    let worker = kernel
        .json()
        .make_process("w", &["/bin/sleep", "1000"], json!({}));
    for turn in 0..8 {
        let status = kernel.status();
        let (keeper, before) = (
            i32::try_from(status["keeper"].as_i64().unwrap()).unwrap(),
            i32::try_from(status["pid"].as_i64().unwrap()).unwrap(),
        );
        let incarnation = status["incarnation"].as_u64().unwrap();
        let (victim, number) = match turn % 4 {
            0 => (before, Signal::SIGKILL),
            1 => (keeper, Signal::SIGKILL),
            2 => (before, Signal::SIGUSR2),
            _ => (keeper, Signal::SIGUSR2),
        };
        let others = [Signal::SIGHUP, Signal::SIGUSR2, Signal::SIGCHLD];
        for other in others {
            procfs::signal(before, other);
        }
        procfs::signal(victim, number);
        for other in others {
            procfs::signal(if victim == keeper { before } else { keeper }, other);
        }
        wait_until_for("a later kernel serves", LONG, || {
            let now = kernel.try_status();
            now.is_some_and(|now| now["incarnation"].as_u64() > Some(incarnation))
        });
        assert_eq!(running(&kernel)["w"], pid(&worker), "turn {turn}");
    }
    let after = kernel
        .json()
        .make_process("after", &["/bin/sleep", "1000"], json!({}));
    assert_eq!(running(&kernel)["after"], pid(&after));
}

#[test]
fn a_keeper_killed_while_the_kernel_starts_anew_is_replaced() {
    let mut kernel = Kernel::start();
    let worker = kernel.json().make_process(
        "w",
        &["/bin/sh", "-c", "echo out; exec sleep 1000"],
        json!({}),
    );
    for turn in 0..12_u64 {
        let (keeper, before) = (kernel.keeper(), kernel.pid());
        let incarnation = kernel.status()["incarnation"].as_u64();
        procfs::signal(before, Signal::SIGUSR2);
        // Somewhere between the exec and the end of recovery.
        let moment = Instant::now() + Duration::from_millis(turn);
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        procfs::signal(keeper, Signal::SIGKILL);
        wait_until_for("another keeper and a later kernel serve", LONG, || {
            let now = kernel.try_status();
            now.is_some_and(|now| {
                now["incarnation"].as_u64() > incarnation && now["keeper"] != keeper
            })
        });
        assert_eq!(running(&kernel)["w"], pid(&worker), "turn {turn}");
    }
    procfs::signal(pid(&worker), Signal::SIGKILL);
    let seen = Collector::new(&kernel.socket_path(), &["w"]).finish(serial(&worker));
    assert_eq!(seen.bytes, b"out\n");
    assert_eq!(seen.exit.unwrap()["signal"], 9);
}

#[test]
fn a_request_to_end_in_the_middle_of_a_change_of_roles_is_one_request() {
    for victim_is_kernel in [true, false] {
        let mut kernel = Kernel::start();
        let worker = kernel
            .json()
            .make_process("w", &["/bin/sleep", "1000"], json!({}));
        let (keeper, before) = (kernel.keeper(), kernel.pid());
        let (victim, other) = if victim_is_kernel {
            (before, keeper)
        } else {
            (keeper, before)
        };
        procfs::signal(victim, Signal::SIGKILL);
        procfs::signal(other, Signal::SIGTERM);
        wait_until_for("the roles are filled again", LONG, || {
            let now = kernel.try_status();
            now.is_some_and(|now| now["pid"] != before && now["keeper"] != 0)
        });
        assert_eq!(running(&kernel)["w"], pid(&worker));
    }
}

#[test]
fn a_caller_who_comes_when_no_descriptor_is_left_is_served_once_there_is_one() {
    let mut kernel = Kernel::start();
    kernel.classic().ask("list processes");
    let pid = kernel.pid().to_string();
    let limit = |descriptors: u32| {
        let set = Command::new("prlimit")
            .args(["--pid", &pid, &format!("--nofile={descriptors}:")])
            .status();
        assert!(set.expect("prlimit can be run").success());
    };
    limit(4);
    let start = Instant::now();
    let mut caller = Classic::tcp_silent(kernel.port());
    // It says so at each try, and does not spin meanwhile.
    let tries = || {
        let log = kernel.log();
        log.matches("out of descriptors; not accepting further callers for now")
            .count()
    };
    wait_until("it has tried some times", || tries() >= 4);
    let least = Duration::from_millis(100) * 3;
    assert!(start.elapsed() >= least, "{:?}", start.elapsed());
    limit(1024);
    assert!(caller.read_to("> ").starts_with("Papa is home."));
    assert_eq!(caller.ask("list processes"), "");
}
