//! The life of a watcher: when it starts and after whom, what replaces its workers, what they are
//! given, and how all of it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::journal::{count, journal, open_gate, port, set_mode, site, visit, wait_up, worker};
use crate::stack::Stack;
use papa_harness::{free_port, procfs, wait_for, wait_until};

/// When the first worker of a watcher was started, in microseconds since the epoch.
#[track_caller]
fn started_us(stack: &Stack, name: &str) -> u64 {
    let status = stack.request("status", name);
    status["watchers"][0]["workers"][0]["started_us"]
        .as_u64()
        .unwrap()
}

fn message(stack: &Stack, name: &str) -> String {
    let status = stack.request("status", name);
    status["watchers"][0]["message"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

fn file(stack: &Stack, name: &str) -> String {
    fs::read_to_string(stack.kernel.directory().join(name)).unwrap_or_default()
}

fn lines(stack: &Stack, name: &str) -> usize {
    file(stack, name).lines().count()
}

#[test]
fn the_start_goes_by_priority_with_a_pause_after_each() {
    let stack = Stack::start(
        "[circus]\nwarmup_delay = 0.2\n[watcher:last]\ncmd = sleep 1000\n[watcher:slow]\ncmd = sleep 1000\npriority = 5\nready = delay:1000\n\
         [watcher:first]\ncmd = sleep 1000\npriority = 9\nnumprocesses = 3\nwarmup_delay = 0.1\n",
    );
    let pids = stack.wait_pids("first", 3);
    for name in ["slow", "last"] {
        stack.wait_pids(name, 1);
    }
    let times = ["first", "slow", "last"].map(|name| started_us(&stack, name));
    // The pause is the manager's, the times are the kernel's: a little less is no mistake.
    for pair in times.windows(2) {
        assert!(pair[1] >= pair[0] + 150_000, "{times:?}");
    }
    let status = stack.request("status", "first");
    let workers = status["watchers"][0]["workers"].as_array().unwrap().clone();
    let starts: Vec<u64> = workers
        .iter()
        .map(|one| one["started_us"].as_u64().unwrap())
        .collect();
    assert!(
        starts.windows(2).all(|pair| pair[1] >= pair[0] + 75_000),
        "{starts:?}"
    );
    assert_eq!(pids.keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(stack.state("slow"), "starting", "which hindered nobody");
}

#[test]
fn the_first_connection_starts_its_watcher_and_no_other() {
    let demand = |name: &str| site(name, "notify", "notify", "on_demand = true");
    let stack = Stack::start(&[demand("one"), demand("two")].concat());
    let ports = ["one", "two"].map(|name| port(&stack, name));
    wait_until("both wait", || {
        ["one", "two"]
            .iter()
            .all(|name| message(&stack, name).contains("first connection"))
    });
    for name in ["one", "two"] {
        assert_eq!(stack.state(name), "stopped");
        assert_eq!(count(&stack, name, "start"), 0, "nobody has come to {name}");
    }
    // Who comes first is answered, though nobody ran.
    let pid = visit(ports[1]).unwrap();
    wait_up(&stack, "two");
    let two = stack.wait_pids("two", 2);
    assert!(two.values().any(|one| *one == pid));
    assert_eq!(stack.state("one"), "stopped");
    assert_eq!(count(&stack, "one", "start"), 0);
    // A stop is a stop: the next connection does not start it.
    stack.request("stop", "two");
    assert!(stack.pids("two").is_empty());
    assert!(!message(&stack, "two").contains("first connection"));
    visit(ports[0]).unwrap();
    wait_up(&stack, "one");
}

#[test]
fn who_depends_starts_later_and_stops_sooner() {
    let waits = |name: &str, on: &str| {
        format!(
            "[watcher:{name}]\ncmd = {}\ncopy_env = true\ndepends_on = {on}\nready = notify\npriority = 9\n",
            worker(&format!("DIR/{name} 1 notify"))
        )
    };
    let stack = Stack::start(&format!(
        "{}{}{}",
        waits("app", "cache db"),
        waits("cache", "db"),
        waits("db", "").replace("depends_on = \n", "")
    ));
    let order = |word: &str| {
        let mut all: Vec<(u64, &str)> = ["db", "cache", "app"]
            .iter()
            .flat_map(|name| {
                let entries = journal(&stack, name)
                    .into_iter()
                    .filter(|entry| entry.word == word);
                entries.map(|entry| (entry.at, *name)).collect::<Vec<_>>()
            })
            .collect();
        all.sort_unstable();
        all
    };
    let names = |all: &[(u64, &'static str)]| all.iter().map(|(_, name)| *name).collect::<Vec<_>>();
    wait_up(&stack, "app");
    let (starts, ups) = (order("start"), order("up"));
    assert_eq!(names(&starts), ["db", "cache", "app"]);
    for (up, next) in ups.iter().zip(&starts[1..]) {
        assert!(up.0 <= next.0, "{next:?} started before {up:?} served");
    }
    assert_eq!(stack.request_all("stop")["status"], "ok");
    assert_eq!(names(&order("down")), ["app", "cache", "db"]);
    // Starting one starts what it needs.
    assert_eq!(stack.request("start", "app")["status"], "ok");
    assert_eq!(names(&order("start")[3..]), ["db", "cache", "app"]);
    let before = stack.wait_pids("app", 1);
    assert_eq!(stack.request("restart", "*")["status"], "ok");
    assert_eq!(names(&order("down")[3..]), ["app", "cache", "db"]);
    assert_eq!(names(&order("start")[6..]), ["db", "cache", "app"]);
    assert_ne!(stack.wait_pids("app", 1), before);
    // One alone takes nobody with it.
    let app = stack.pids("app");
    assert_eq!(stack.request("restart", "db")["status"], "ok");
    assert_eq!(stack.pids("app"), app);
    // What it needs cannot be started: that is said, not waited for.
    stack.request_all("stop");
    set_mode(&stack, "db", "exit");
    let reply = stack.request("start", "app");
    assert_eq!(reply["status"], "error", "{reply}");
    assert!(reply["reason"].as_str().unwrap().contains("db"), "{reply}");
    assert_eq!(
        order("start")
            .iter()
            .filter(|(_, name)| *name == "app")
            .count(),
        3
    );
}

#[test]
fn the_old_the_ill_and_the_hopeless_are_dealt_with() {
    let ini = [
        site("old", "notify", "notify", "max_age = 1\nmax_age_variance = 0"),
        "[watcher:ill]\n".to_owned()
            + &format!("cmd = {}\ncopy_env = true\n", worker("DIR/ill $(circus.wid) http"))
            + "ready = http://unix:DIR/ill.$(circus.wid).sock:/\nhealth = http://unix:DIR/ill.$(circus.wid).sock:/\n\
               health_interval = 0.2\nhealth_timeout = 0.3\nhealth_retries = 2\n",
        "[watcher:flaps]\ncmd = sh -c 'echo . >> DIR/flaps.log; exit 1'\ncopy_env = true\nflapping.attempts = 2\nflapping.window = 20\n\
         flapping.retry_in = 0.2\nflapping.max_retry = 2\nbackoff_first = 0.01\nbackoff_max = 0.01\n"
            .to_owned(),
        "[watcher:absent]\ncmd = /no/such/program\nmax_retry = 2\nbackoff_first = 0.01\n".to_owned(),
        "[watcher:calm]\ncmd = sleep 1000\n".to_owned(),
    ];
    let stack = Stack::start(&ini.concat());
    let calm = stack.wait_pids("calm", 1);

    wait_until("the flapping watcher is given up", || {
        stack.state("flaps") == "stopped"
    });
    assert_eq!(
        lines(&stack, "flaps.log"),
        6,
        "two pauses between three times two ends"
    );
    assert!(
        message(&stack, "flaps").contains("given up"),
        "{}",
        message(&stack, "flaps")
    );
    wait_until("the absent one is given up", || {
        stack.state("absent") == "stopped"
    });
    assert!(
        message(&stack, "absent").contains("3 attempts"),
        "{}",
        message(&stack, "absent")
    );

    wait_until("an old pair is replaced", || {
        count(&stack, "old", "down") >= 2
    });
    assert_eq!(
        crate::journal::extremes(&stack, "old", 2).0,
        2,
        "a new one first"
    );

    wait_up(&stack, "ill");
    let ill = stack.wait_pids("ill", 1)[&1];
    assert_eq!(
        count(&stack, "ill", "down"),
        0,
        "as long as it answers, it stays"
    );
    set_mode(&stack, "ill", "hang");
    wait_until("it is told to end", || count(&stack, "ill", "down") == 1);
    set_mode(&stack, "ill", "");
    let next = wait_for("another serves", || {
        let pids = stack.pids("ill");
        (count(&stack, "ill", "up") >= 2 && pids.len() == 1 && stack.state("ill") == "active")
            .then(|| pids.into_values().next())?
            .filter(|pid| *pid != ill)
    });
    assert!(!procfs::alive(ill) && procfs::alive(next));
    assert_eq!(stack.pids("calm"), calm);
    // By hand it is tried again.
    assert_eq!(lines(&stack, "flaps.log"), 6, "not before");
    stack.request_now("start", "flaps");
    wait_until("it runs again", || lines(&stack, "flaps.log") > 6);
}

#[test]
fn what_is_not_to_run_does_not_and_numbers_count_from_none() {
    let mut stack = Stack::start(
        "[watcher:none]\ncmd = sleep 1000\nnumprocesses = 0\n[watcher:off]\ncmd = sleep 1000\nautostart = false\n\
         [watcher:job]\ncmd = sh -c 'echo $PAPA_WID >> DIR/job.log'\ncopy_env = true\nrespawn = false\nnumprocesses = 3\n\
         [watcher:mine]\ncmd = sleep 1000\nuse_papa = false\n[watcher:ours]\ncmd = sleep 1000\n",
    );
    wait_until("the jobs are done", || stack.state("job") == "stopped");
    let mut numbers: Vec<String> = file(&stack, "job.log").lines().map(str::to_owned).collect();
    numbers.sort();
    assert_eq!(numbers, ["1", "2", "3"], "each once");
    wait_up(&stack, "none");
    assert!(stack.pids("none").is_empty());
    let reply = stack.ask("incr", &json!({"name": "none", "nb": 2, "waiting": true}));
    assert_eq!(
        (&reply["status"], &reply["numprocesses"]),
        (&json!("ok"), &json!(2)),
        "{reply}"
    );
    assert_eq!(stack.pids("none").len(), 2);
    let reply = stack.ask("decr", &json!({"name": "none", "nb": 5, "waiting": true}));
    assert_eq!(reply["numprocesses"], 0, "{reply}");
    assert!(stack.pids("none").is_empty());
    // All means all that are to start by themselves.
    assert_eq!(stack.request_all("start")["status"], "ok");
    assert_eq!(stack.state("off"), "stopped");
    assert_eq!(stack.request("start", "off")["status"], "ok");
    assert_eq!(stack.pids("off").len(), 1);

    let (mine, ours) = (
        stack.wait_pids("mine", 1)[&1],
        stack.wait_pids("ours", 1)[&1],
    );
    stack.request_all("quit");
    assert!(stack.wait_manager_end().success());
    assert!(!procfs::alive(mine) && procfs::alive(ours));
}

/// A worker that ignores TERM, with a child that does too in a session of its own, and a grandchild
/// there.
const TREE: &str = "sh -c 'trap \"\" TERM; setsid sh -c \"trap : TERM; sleep 1000 & echo \\$\\$ \\$! > DIR/NAME.tmp; mv DIR/NAME.tmp DIR/NAME.tree; while :; do sleep 1; done\" & while :; do sleep 1; done'";

#[test]
fn a_stop_reaches_the_whole_tree() {
    let tree = |name: &str, more: &str| {
        format!(
            "[watcher:{name}]\ncmd = {}\ncopy_env = true\n{more}\n",
            TREE.replace("NAME", name)
        )
    };
    let kind = "sh -c 'sleep 1000 & echo $! > DIR/kind.tmp; mv DIR/kind.tmp DIR/kind.tree; trap \"wait; exit 0\" TERM; wait; wait'";
    let light = "sh -c 'sh -c \"trap : TERM; echo \\$\\$ > DIR/light.tmp; mv DIR/light.tmp DIR/light.tree; while :; do sleep 1; done\" & exec sleep 1000'";
    // The worker ends at once; its child, in a session of its own, does not want to.
    let escaped = light
        .replace("light", "escaped")
        .replace("'sh -c \"trap", "'setsid sh -c \"trap");
    let stack = Stack::start(&format!(
        "{}[watcher:escaped]\ncmd = {escaped}\ncopy_env = true\ngraceful_timeout = 0.5\n[watcher:light]\ncmd = {light}\ncopy_env = true\ngraceful_timeout = 0.5\n\
         [watcher:kind]\ncmd = {kind}\ncopy_env = true\nstop_children = true\ngraceful_timeout = 60\n",
        tree("deaf", "graceful_timeout = 0.5"),
    ));
    let mut all: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    for (name, amount) in [("deaf", 2), ("light", 1), ("escaped", 1), ("kind", 1)] {
        let below = wait_for("the tree has grown", || {
            let text = file(&stack, &format!("{name}.tree"));
            let pids: Vec<i32> = text
                .split_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect();
            (pids.len() == amount).then_some(pids)
        });
        let worker = stack.wait_pids(name, 1)[&1];
        all.insert(name, below.into_iter().chain([worker]).collect());
    }
    let begun = Instant::now();
    for name in ["kind", "deaf", "escaped", "light"] {
        let reply = stack.request("stop", name);
        assert_eq!(reply["status"], "ok", "{name}: {reply}");
    }
    wait_until("all of it is gone", || {
        all.values().flatten().all(|pid| !procfs::alive(*pid))
    });
    assert!(
        begun.elapsed() < Duration::from_secs(40),
        "no grace period of a minute was waited out"
    );
}

#[test]
fn sockets_arrive_as_standard_input_and_as_many_on_one_port() {
    let shared = free_port();
    let stack = Stack::start(&format!(
        "[watcher:inetd]\ncmd = {}\ncopy_env = true\nstdin_socket = in\nready = notify\n[socket:in]\nhost = 127.0.0.1\nport = 0\nblocking = no\n\
         [watcher:many]\ncmd = {}\ncopy_env = true\nuse_sockets = true\nnumprocesses = 2\nready = notify\n\
         [socket:many]\nhost = 127.0.0.1\nport = {shared}\nso_reuseport = yes\nblocking = no\n",
        worker("DIR/inetd 1 notify 0"),
        worker("DIR/many $(circus.wid) notify $(circus.sockets.many)"),
    ));
    wait_up(&stack, "inetd");
    wait_up(&stack, "many");
    let inetd = stack.wait_pids("inetd", 1)[&1];
    assert_eq!(visit(port(&stack, "in")).unwrap(), inetd);
    // One is the same for both, the other its own: that of `so_reuseport`.
    let many = stack.wait_pids("many", 2);
    let sockets = || -> Vec<BTreeSet<String>> {
        let sockets_of = |pid: &i32| {
            let all = procfs::descriptors(*pid).into_iter();
            all.filter(|(_, target)| target.starts_with("socket:"))
                .map(|(_, target)| target)
                .collect()
        };
        many.values().map(sockets_of).collect()
    };
    // A worker that has just told that it is ready has one more for a moment.
    wait_until("each worker has the two sockets alone", || {
        sockets().iter().all(|own| own.len() == 2)
    });
    let sockets = sockets();
    assert_eq!(
        sockets[0].intersection(&sockets[1]).count(),
        1,
        "{sockets:?}"
    );
    let pid = visit(shared).unwrap();
    assert!(many.values().any(|one| *one == pid), "{pid} {many:?}");
}

#[test]
fn an_environment_arrives_as_it_was_written() {
    let venv = "lib/python3.11/site-packages";
    let ini = "[env]\nEMPTY =\nLINES = one\n  two\nDOLLAR = a$b${C}\n[env:bare]\nPAPA_WID = 99\n\
        [watcher:bare]\ncmd = sleep 1000\nnumprocesses = 2\n\
        [watcher:full]\ncmd = sleep 1000\ncopy_env = true\nautostart = false\n[env:full]\nHOME = /elsewhere\n";
    let stack = Stack::start(ini);
    let bare = stack.wait_pids("bare", 2);
    for (wid, pid) in &bare {
        let expected = [
            "DOLLAR=a$b${C}".to_owned(),
            "EMPTY=".to_owned(),
            "LINES=one\ntwo".to_owned(),
            format!("PAPA_WID={wid}"),
        ];
        wait_until("the worker has been executed", || {
            let environment = procfs::environment(*pid);
            let (mark, written): (Vec<_>, Vec<_>) = environment.into_iter().partition(|entry| {
                ["PAPA_NAMESPACE=circus", "PAPA_WATCHER=bare"].contains(&entry.as_str())
                    || entry.starts_with("PAPA_LINEAGE=")
            });
            mark.len() == 3 && written == expected
        });
    }
    stack.request("start", "full");
    let pid = stack.wait_pids("full", 1)[&1];
    let environment = procfs::environment(pid);
    for expected in [
        "HOME=/elsewhere".to_owned(),
        "PAPA_WID=1".to_owned(),
        format!("PATH={}", std::env::var("PATH").unwrap()),
    ] {
        assert!(
            environment.contains(&expected),
            "{expected} in {environment:?}"
        );
    }
    // A virtualenv that appears later, by way of the file.
    fs::create_dir_all(stack.kernel.directory().join("venv").join(venv)).unwrap();
    fs::create_dir(stack.kernel.directory().join("venv/bin")).unwrap();
    stack.rewrite(&ini.replace(
        "autostart = false\n",
        "autostart = false\nvirtualenv = DIR/venv\n",
    ));
    let reply = stack.ask("reloadconfig", &json!({"waiting": true}));
    assert_eq!(reply["status"], "ok", "{reply}");
    assert_eq!(stack.pids("bare"), bare);
    let environment = procfs::environment(*stack.wait_pids("full", 1).values().next().unwrap());
    let root = stack.kernel.path("venv");
    let value = |name: &str| {
        let found = environment
            .iter()
            .find_map(|line| line.strip_prefix(&format!("{name}=")));
        found.unwrap_or_default().to_owned()
    };
    assert!(
        value("PATH").starts_with(&format!("{root}/bin:")),
        "{environment:?}"
    );
    assert!(
        value("PYTHONPATH").ends_with(&format!("{root}/{venv}")),
        "{environment:?}"
    );
}

#[test]
fn a_stop_or_quit_during_the_start_cancels_it() {
    let gated = |name: &str, more: &str| {
        format!(
            "[watcher:{name}]\ncmd = {}\ncopy_env = true\nready = notify\nready_timeout = 600\n{more}\n",
            worker(&format!("DIR/{name} 1 notify"))
        )
    };
    let ini = format!(
        "[circus]\nwarmup_delay = 600\n{}{}[watcher:later]\ncmd = sleep 1000\ndepends_on = slow\npriority = 9\n[watcher:never]\ncmd = sleep 1000\npriority = -1\n",
        gated("slow", "priority = 9"),
        gated("other", "priority = 8"),
    );
    let mut stack = Stack::start(
        &ini.replace("warmup_delay = 600", "warmup_delay = 0")
            .replace("notify\n", "notify\nautostart = false\n"),
    );
    // By hand: the start waits, and the stop ends it at once.
    set_mode(&stack, "slow", "gate");
    std::thread::scope(|scope| {
        let start = scope.spawn(|| stack.request("start", "slow"));
        wait_until("it is starting", || count(&stack, "slow", "start") == 1);
        assert_eq!(stack.state("slow"), "starting");
        assert_eq!(stack.request("stop", "slow")["status"], "ok");
        let reply: Value = start.join().unwrap();
        assert_eq!(reply["status"], "error", "{reply}");
        assert!(
            reply["reason"].as_str().unwrap().contains("later request"),
            "{reply}"
        );
    });
    assert_eq!(
        (stack.state("slow").as_str(), count(&stack, "slow", "up")),
        ("stopped", 1),
        "its gate opened by the signal"
    );
    assert!(stack.pids("later").is_empty());

    // The manager's own start, in the middle of which it is told to stop one, and to quit.
    stack.request_all("shutdown");
    stack.wait_manager_end();
    stack.rewrite(&ini);
    stack.start_manager();
    wait_until("the first is starting", || {
        count(&stack, "slow", "start") == 2
    });
    assert_eq!(stack.request("stop", "slow")["status"], "ok");
    assert_eq!(stack.state("slow"), "stopped");
    assert_eq!(stack.request_all("quit")["status"], "ok");
    assert!(stack.wait_manager_end().success());
    open_gate(&stack, "slow");
    for name in ["other", "never"] {
        assert_eq!(count(&stack, name, "start"), 0, "{name}");
    }
    stack.start_manager();
    assert_eq!(stack.state("slow"), "stopped", "as it was told");
    for name in ["later", "never"] {
        assert!(stack.pids(name).is_empty(), "{name}");
    }
}
