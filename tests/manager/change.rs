//! `reloadconfig` as a transaction, and what is changed at run time.

use std::net::{TcpListener, TcpStream};

use serde_json::{Value, json};

use crate::journal::{count, journal, set_mode, site, visit, wait_up};
use crate::stack::Stack;
use papa_harness::{Failpoints, Kernel, Scratch, free_port, procfs, wait_for, wait_until};

const PLAIN: &str = "[watcher:keep]\ncmd = sleep 1000\n[watcher:gone]\ncmd = sleep 1000\n\
    [watcher:roll]\ncmd = sleep 1001\nnumprocesses = 2\n[watcher:single]\ncmd = sleep 1001\nsingleton = true\n\
    [watcher:place]\ncmd = sleep 1000\ngraceful_timeout = 5\n";
const OTHER: &str = "[watcher:keep]\ncmd = sleep 1000\n[watcher:new]\ncmd = sleep 1000\n\
    [watcher:roll]\ncmd = sleep 1002\nnumprocesses = 2\n[watcher:single]\ncmd = sleep 1002\nsingleton = true\n\
    [watcher:place]\ncmd = sleep 1000\ngraceful_timeout = 6\nnumprocesses = 2\n";
const OLD_NAMES: [&str; 5] = ["keep", "gone", "roll", "single", "place"];

/// Runs [`PLAIN`], and something more, all of it up.
#[track_caller]
fn plain(more: &str) -> Stack {
    let stack = Stack::start(&format!("{PLAIN}{more}"));
    for name in OLD_NAMES {
        stack.wait_pids(name, if name == "roll" { 2 } else { 1 });
        wait_up(&stack, name);
    }
    stack
}

#[track_caller]
fn ok(reply: &Value) {
    assert_eq!(reply["status"], "ok", "{reply}");
}

#[track_caller]
fn reason(reply: &Value) -> &str {
    assert_eq!(reply["status"], "error", "{reply}");
    reply["reason"].as_str().unwrap()
}

/// What and how, in the order of the plan.
fn steps(reply: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let plan = reply["plan"].as_array().cloned().unwrap_or_default();
    plan.iter()
        .map(|step| (text(&step["action"]), text(&step["what"])))
        .collect()
}

fn plan(stack: &Stack) -> Value {
    stack.ask("reloadconfig", &json!({"plan": true}))
}

fn option(stack: &Stack, name: &str, key: &str) -> Value {
    let reply = stack.ask("get", &json!({"name": name, "keys": [key]}));
    reply["options"][key].clone()
}

/// Pids and states of all watchers.
fn picture(stack: &Stack) -> Value {
    let mut status = stack.request_all("status");
    for watcher in status["watchers"].as_array_mut().unwrap() {
        watcher["message"].take();
    }
    status["watchers"].take()
}

fn has_command(pid: i32, word: &str) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0)
        .any(|piece| piece == word.as_bytes())
}

#[test]
fn a_plan_says_all_and_does_nothing_then_exactly_that_is_done() {
    let stack = plain("");
    let before = OLD_NAMES.map(|name| stack.wait_pids(name, if name == "roll" { 2 } else { 1 }));
    let picture_before = picture(&stack);
    assert_eq!(steps(&plan(&stack)), [], "nothing has changed");
    stack.rewrite(OTHER);
    let planned = plan(&stack);
    let expected = [
        ("change", "watcher:place"),
        ("roll", "watcher:roll"),
        ("restart", "watcher:single"),
        ("add", "watcher:new"),
        ("remove", "watcher:gone"),
    ]
    .map(|(action, what)| (action.to_owned(), what.to_owned()));
    let mut found = steps(&planned);
    for step in &expected {
        assert!(found.contains(step), "{step:?} in {planned}");
    }
    found.retain(|step| !expected.contains(step));
    assert_eq!(found, [], "nothing else");
    let why = planned["plan"].to_string();
    for reason in ["graceful_timeout", "sleep 1001", "sleep 1002"] {
        assert!(why.contains(reason), "{reason} in {why}");
    }
    assert_eq!(picture(&stack), picture_before, "a plan does nothing");

    let reply = stack.ask("reloadconfig", &json!({"waiting": true}));
    ok(&reply);
    assert_eq!(reply["plan"], planned["plan"], "what was planned was done");
    let [keep, _, roll, single, place] = &before;
    assert_eq!(&stack.pids("keep"), keep);
    assert_eq!(stack.pids("new").len(), 1);
    assert_eq!(stack.request("status", "gone")["status"], "error");
    let now = stack.pids("place");
    assert_eq!(now.len(), 2);
    assert_eq!(now[&1], place[&1], "in place");
    for (name, old, amount) in [("roll", roll, 2), ("single", single, 1)] {
        let now = stack.pids(name);
        assert_eq!(now.len(), amount, "{name}");
        assert!(now.values().all(|pid| has_command(*pid, "1002")), "{name}");
        assert!(old.values().all(|pid| !procfs::alive(*pid)), "{name}");
    }
    assert!(!procfs::alive(before[1][&1]), "the removed one has ended");
    assert_eq!(steps(&plan(&stack)), [], "nothing is left to do");
}

#[test]
fn a_bad_file_changes_nothing_and_says_every_mistake() {
    let stack = plain("");
    let before = picture(&stack);
    stack.rewrite(&format!(
        "{OTHER}[watcher:bad]\nnumprocesses = many\nstop_signal = FOO\ncmd = x\n[watcher:worse]\npriority = 1\n"
    ));
    for properties in [json!({"plan": true}), json!({"waiting": true}), json!({})] {
        let reply = stack.ask("reloadconfig", &properties);
        let reason = reason(&reply);
        for part in [
            "nothing was changed",
            "numprocesses \"many\"",
            "FOO",
            "worse",
            "stack.ini:",
        ] {
            assert!(reason.contains(part), "{part} in {reason}");
        }
    }
    assert_eq!(picture(&stack), before);
    std::fs::remove_file(stack.kernel.directory().join("stack.ini")).unwrap();
    let reply = stack.ask("reloadconfig", &json!({"waiting": true}));
    assert!(reason(&reply).contains("stack.ini"), "{reply}");
    assert_eq!(picture(&stack), before);
    // A file that is good again is taken.
    stack.rewrite(PLAIN);
    ok(&stack.ask("reloadconfig", &json!({"waiting": true})));
    assert_eq!(picture(&stack), before);
}

#[test]
fn one_failing_roll_puts_everything_back() {
    let two = |more: &str| {
        [
            site("bad", "notify", "notify", more),
            site("good", "notify", "notify", more),
        ]
        .concat()
    };
    let stack = Stack::start(&format!(
        "{}[watcher:leaves]\ncmd = sleep 1000\n",
        two("ready_timeout = 10")
    ));
    wait_up(&stack, "bad");
    wait_up(&stack, "good");
    let (bad, leaves) = (stack.wait_pids("bad", 2), stack.wait_pids("leaves", 1));
    stack.rewrite(&format!(
        "{}[watcher:comes]\ncmd = sleep 1000\n[env:*]\nNEW = yes\n[socket:late]\nhost = 127.0.0.1\nport = 0\n",
        two("ready_timeout = 9\ngraceful_timeout = 3")
    ));
    set_mode(&stack, "bad", "exit");
    let reply = stack.ask("reloadconfig", &json!({"waiting": true}));
    let text = reason(&reply);
    assert!(
        text.contains("bad") && text.contains("exited with 3"),
        "{text}"
    );
    assert_eq!(stack.pids("bad"), bad, "never touched");
    assert_eq!(stack.pids("leaves"), leaves, "never stopped");
    assert_eq!(
        stack.request("status", "comes")["status"],
        "error",
        "gone again"
    );
    let sockets = stack.ask("listsockets", &json!({}))["sockets"].clone();
    assert!(!sockets.to_string().contains("late"), "{sockets}");
    for name in ["bad", "good"] {
        assert_eq!(
            option(&stack, name, "ready_timeout")
                .to_string()
                .trim_matches('"'),
            "10",
            "{name}"
        );
        let now = stack.wait_pids(name, 2);
        for pid in now.values() {
            let environment = procfs::environment(*pid);
            assert!(
                !environment.contains(&"NEW=yes".to_owned()),
                "{name} {environment:?}"
            );
        }
    }
    assert_eq!(
        crate::journal::extremes(&stack, "good", 2).0,
        2,
        "served meanwhile"
    );
    // Once the reason is gone, the same file is taken.
    set_mode(&stack, "bad", "");
    ok(&stack.ask("reloadconfig", &json!({"waiting": true})));
    assert!(
        stack
            .pids("bad")
            .values()
            .all(|pid| !bad.values().any(|old| old == pid))
    );
    assert_eq!(stack.pids("comes").len(), 1);
    assert_eq!(stack.request("status", "leaves")["status"], "error");
}

/// The keeper gives its copy of a listener up a moment after the kernel.
#[track_caller]
fn wait_closed(port: u16) {
    wait_until("nobody listens there", || {
        TcpStream::connect(("127.0.0.1", port)).is_err()
    });
}

#[test]
fn sockets_come_move_and_go() {
    let (first, second) = (free_port(), free_port());
    let web = |port: u16| {
        site("web", "notify", "notify", "").replace("port = 0", &format!("port = {port}"))
    };
    let stack = Stack::start(&web(first));
    wait_up(&stack, "web");
    visit(first).unwrap();
    let before = stack.wait_pids("web", 2);

    // Somebody else has the port: nothing changes.
    let taken = TcpListener::bind(("127.0.0.1", second)).unwrap();
    stack.rewrite(&format!("{}[watcher:new]\ncmd = sleep 1000\n", web(second)));
    let reply = stack.ask(
        "reloadconfig",
        &json!({"waiting": true, "accept_removal": true}),
    );
    let text = reason(&reply);
    assert!(
        text.contains("nothing was changed") && text.contains(&second.to_string()),
        "{text}"
    );
    visit(first).unwrap();
    assert_eq!(stack.pids("web"), before);
    assert_eq!(stack.request("status", "new")["status"], "error");
    drop(taken);

    ok(&stack.ask(
        "reloadconfig",
        &json!({"waiting": true, "accept_removal": true}),
    ));
    let pid = visit(second).unwrap();
    let after = stack.pids("web");
    assert!(after.values().any(|now| *now == pid), "{pid} {after:?}");
    wait_closed(first);
    assert_eq!(stack.pids("new").len(), 1);

    // One is added, another removed.
    stack.rewrite(&format!(
        "{}[socket:path]\npath = DIR/more.sock\n",
        "[watcher:new]\ncmd = sleep 1000\n"
    ));
    let new = stack.pids("new");
    ok(&stack.ask(
        "reloadconfig",
        &json!({"waiting": true, "accept_removal": true}),
    ));
    wait_closed(second);
    let path = stack.kernel.directory().join("more.sock");
    std::os::unix::net::UnixStream::connect(&path).unwrap();
    assert_eq!(stack.pids("new"), new, "it uses no sockets");
    stack.rewrite("[watcher:new]\ncmd = sleep 1000\n");
    ok(&stack.ask(
        "reloadconfig",
        &json!({"waiting": true, "accept_removal": true}),
    ));
    assert!(!path.exists());
    assert_eq!(stack.ask("listsockets", &json!({}))["sockets"], json!([]));
}

#[test]
fn what_was_set_is_drift_and_survives_the_manager() {
    let mut stack = plain("");
    let keep = stack.wait_pids("keep", 1);
    ok(&stack.ask("incr", &json!({"name": "keep", "nb": 2, "waiting": true})));
    ok(&stack.ask("decr", &json!({"name": "roll", "waiting": true})));
    let set = json!({"name": "place", "waiting": true, "options": {"graceful_timeout": 7}});
    ok(&stack.ask("set", &set));
    let add = json!({"name": "extra", "cmd": "sleep 1000", "start": true, "waiting": true, "options": {"numprocesses": 2}});
    ok(&stack.ask("add", &add));
    ok(&stack.ask(
        "add",
        &json!({"name": "brief", "cmd": "sleep 1000", "start": true}),
    ));
    ok(&stack.ask("rm", &json!({"name": "brief", "waiting": true})));
    let before = picture(&stack);

    for round in ["before", "after"] {
        let counts = ["keep", "roll", "extra"].map(|name| stack.pids(name).len());
        assert_eq!(counts, [3, 1, 2], "{round}");
        assert_eq!(stack.pids("keep")[&1], keep[&1], "{round}");
        assert_eq!(
            option(&stack, "place", "graceful_timeout")
                .to_string()
                .trim_matches('"'),
            "7",
            "{round}"
        );
        let reply = plan(&stack);
        let drift = reply["plan"].to_string().replace('\\', "");
        for part in [
            "3 at run time, 1 in the file",
            "1 at run time, 2 in the file",
            "graceful_timeout: \"7\" at run time, \"5\" in the file",
        ] {
            assert!(drift.contains(part), "{round}: {part} in {drift}");
        }
        stack.kill_manager();
        stack.start_manager();
        wait_until("everything is found again", || picture(&stack) == before);
    }
    // The file says something else now: that holds, for these keys only.
    stack.rewrite(&PLAIN.replace("graceful_timeout = 5", "graceful_timeout = 8"));
    ok(&stack.ask(
        "reloadconfig",
        &json!({"waiting": true, "accept_removal": true}),
    ));
    assert_eq!(
        option(&stack, "place", "graceful_timeout")
            .to_string()
            .trim_matches('"'),
        "8"
    );
    assert_eq!(
        stack.pids("keep").len(),
        3,
        "nothing new about it in the file"
    );
    assert_eq!(
        stack.request("status", "extra")["status"],
        "error",
        "it is in no file"
    );
    // One that is in the file comes back with it.
    ok(&stack.ask("rm", &json!({"name": "gone", "waiting": true})));
    assert_eq!(stack.request("status", "gone")["status"], "error");
    ok(&stack.ask(
        "reloadconfig",
        &json!({"waiting": true, "accept_removal": true}),
    ));
    assert_eq!(stack.pids("gone").len(), 1);
}

#[test]
fn what_cannot_be_set_is_refused_in_the_words_of_the_file() {
    let stack = plain("");
    let before = picture(&stack);
    for (name, options, expected) in [
        (
            "place",
            json!({"numprocesses": "many"}),
            "\"many\", expected",
        ),
        (
            "place",
            json!({"stop_signal": "FOO"}),
            "stop_signal \"FOO\"",
        ),
        (
            "place",
            json!({"graceful_timeout": 9, "uid": "nobody-here"}),
            "uid \"nobody-here\"",
        ),
        ("place", json!({"cmd": "echo 'open"}), "cmd"),
        ("single", json!({"numprocesses": 2}), "singleton"),
        ("place", json!({"depends_on": "nobody"}), "nobody"),
    ] {
        let reply = stack.ask(
            "set",
            &json!({"name": name, "waiting": true, "options": options}),
        );
        let text = reason(&reply);
        assert!(text.contains(expected), "{options}: {text}");
    }
    assert_eq!(
        option(&stack, "place", "graceful_timeout")
            .to_string()
            .trim_matches('"'),
        "5",
        "all or nothing"
    );
    assert_eq!(picture(&stack), before);
    for (command, properties) in [
        (
            "add",
            json!({"name": "x", "cmd": "sleep 1", "options": {"numprocesses": -1}}),
        ),
        ("add", json!({"name": "keep", "cmd": "sleep 1"})),
        ("add", json!({"name": "x"})),
        ("rm", json!({"name": "nope"})),
        ("incr", json!({"name": "keep", "nb": -1})),
    ] {
        reason(&stack.ask(command, &properties));
    }
    assert_eq!(picture(&stack), before);
}

#[test]
fn a_removed_watcher_ends_under_a_successor() {
    let deaf = "[watcher:deaf]\ncmd = sh -c 'trap \"\" TERM; echo up > DIR/up; while :; do sleep 1; done'\n\
        copy_env = true\ngraceful_timeout = 2\n";
    let mut stack = plain(deaf);
    let pid = stack.wait_pids("deaf", 1)[&1];
    let up = stack.kernel.directory().join("up");
    wait_until("it ignores signals", || up.exists());
    stack.rewrite(PLAIN);
    ok(&stack.ask("reloadconfig", &json!({"accept_removal": true})));
    wait_until("it is on its way out", || {
        stack
            .manager_log()
            .contains(&format!("stopping worker watcher=\"deaf\" pid={pid}"))
    });
    // Killed before, it leaves a worker that nobody has begun to stop.
    let kept = "circus.manager.watcher.deaf";
    wait_until("that is kept", || {
        let listed = stack
            .kernel
            .json()
            .ok("value.list", json!({"names": [kept]}));
        listed["values"][kept]
            .as_str()
            .is_some_and(|text| text.contains("removing"))
    });
    stack.kill_manager();
    stack.start_manager();
    wait_until("it has ended", || !procfs::alive(pid));
    wait_until("and is forgotten", || {
        stack.request("status", "deaf")["status"] == "error"
    });
    assert_eq!(stack.pids("keep").len(), 1);
    assert!(!stack.manager_log().contains("panicked"));
}

#[test]
fn a_manager_killed_in_the_middle_of_a_change_leaves_what_serves() {
    let mut stack = Stack::start(&site("web", "notify", "notify", ""));
    wait_up(&stack, "web");
    let before = stack.wait_pids("web", 2);
    set_mode(&stack, "web", "gate");
    stack.rewrite(&format!(
        "{}[env:web]\nNEW = yes\n[watcher:more]\ncmd = sleep 1000\n",
        site("web", "notify", "notify", "")
    ));
    ok(&stack.ask("reloadconfig", &json!({"accept_removal": true})));
    stack.wait_pids("web", 3);
    stack.kill_manager();
    stack.start_manager();
    assert!(before.values().all(|pid| procfs::alive(*pid)));
    crate::journal::open_gate(&stack, "web");
    wait_until("the roll is complete", || {
        let now = stack.pids("web");
        now.len() == 2
            && !now
                .values()
                .any(|pid| before.values().any(|old| old == pid))
    });
    for pid in stack.pids("web").values() {
        assert!(procfs::environment(*pid).contains(&"NEW=yes".to_owned()));
    }
    assert_eq!(stack.wait_pids("more", 1).len(), 1);
    assert_eq!(steps(&plan(&stack)), []);
    let downs = journal(&stack, "web")
        .iter()
        .filter(|entry| entry.word == "down")
        .count();
    assert_eq!((downs, count(&stack, "web", "start")), (2, 4));
}

/// A watcher `web` at `port` that says its pid to visitors, and another whose program is `other`.
fn moved(port: u16, other: &str) -> String {
    let web = site("web", "notify", "notify", "").replace("port = 0", &format!("port = {port}"));
    format!("{web}[watcher:other]\ncmd = {other}\nmax_retry = 0\n")
}

/// Names of sockets in the kernel.
fn sockets(stack: &Stack) -> Vec<String> {
    let listed = stack.kernel.json().ok("socket.list", json!({}));
    let listed = listed["sockets"].as_array().unwrap().iter();
    listed
        .map(|socket| socket["name"].as_str().unwrap().to_owned())
        .collect()
}

fn kill(pid: i32) {
    procfs::signal(pid, nix::sys::signal::Signal::SIGKILL);
}

#[test]
fn after_a_port_change_that_was_rolled_back_no_new_worker_got_the_port_of_before() {
    let (first, second) = (free_port(), free_port());
    let stack = Stack::start(&moved(first, "sleep 1000"));
    wait_up(&stack, "web");
    stack.wait_pids("other", 1);
    let old = stack.wait_pids("web", 2);
    stack.rewrite(&moved(second, "/no/such/program"));
    let reply = stack.ask("reloadconfig", &json!({"waiting": true}));
    let text = reason(&reply);
    assert!(text.contains("everything was put back"), "{text}");
    assert_eq!(
        stack.request("listsockets", "")["sockets"][0]["port"],
        first
    );
    assert_eq!(sockets(&stack), ["circus.web"], "nothing is left aside");
    wait_closed(second);
    // At once, while one of the first workers may still have the port.
    let now = stack.wait_pids("web", 2);
    let some = now.values().chain(old.values()).copied();
    kill(some.into_iter().find(|pid| procfs::alive(*pid)).unwrap());
    wait_up(&stack, "web");
    let served = visit(first).unwrap();
    for pid in stack.wait_pids("web", 2).values().copied() {
        kill(pid);
    }
    wait_until("a new worker answers at the port of before", || {
        visit(first).is_ok_and(|pid| pid != served)
    });
    stack.rewrite(&moved(second, "sleep 1000"));
    ok(&stack.ask("reloadconfig", &json!({"waiting": true})));
    visit(second).unwrap();
    wait_closed(first);
    assert_eq!(sockets(&stack), ["circus.web"]);
}

#[test]
fn a_quit_in_a_port_change_closed_the_port_of_before() {
    let (first, second) = (free_port(), free_port());
    let mut stack = Stack::start(&moved(first, "sleep 1000"));
    wait_up(&stack, "web");
    let before = stack.wait_pids("web", 2);
    set_mode(&stack, "web", "gate");
    stack.rewrite(&moved(second, "sleep 1001"));
    ok(&stack.ask("reloadconfig", &json!({})));
    stack.wait_pids("web", 3);
    stack.signal_manager(nix::sys::signal::Signal::SIGTERM);
    assert!(stack.wait_manager_end().success());
    let mut kept = sockets(&stack);
    kept.sort();
    assert_eq!(kept, ["circus.BEFORE.web", "circus.web"]);
    let served = visit(first).unwrap();
    assert!(
        before.values().any(|pid| *pid == served),
        "{served} {before:?}"
    );
    stack.start_manager();
    crate::journal::open_gate(&stack, "web");
    wait_until("the change is complete", || {
        visit(second).is_ok() && sockets(&stack) == ["circus.web"]
    });
    wait_closed(first);
}

#[test]
fn a_port_could_not_pass_from_one_socket_to_another_in_one_change() {
    let [one, two, three] = [(); 3].map(|()| free_port());
    let ini = |web: u16, api: u16| {
        let socket = |name: &str, port: u16| {
            format!(
                "[socket:{name}]\nhost = 127.0.0.1\nport = {port}\n[watcher:{name}]\ncmd = sleep 1000\nautostart = no\nuse_sockets = yes\n"
            )
        };
        format!("{}{}", socket("api", api), socket("web", web))
    };
    let stack = Stack::start(&ini(one, two));
    // In both orders of the file, and in a ring.
    for (web, api) in [(three, one), (one, two), (two, one)] {
        stack.rewrite(&ini(web, api));
        ok(&stack.ask("reloadconfig", &json!({"waiting": true})));
        let mut listed = sockets(&stack);
        listed.sort();
        assert_eq!(listed, ["circus.api", "circus.web"]);
        for port in [web, api] {
            TcpStream::connect(("127.0.0.1", port)).unwrap();
        }
    }
}

#[test]
fn a_change_that_was_gone_on_with_closed_sockets_it_does_not_concern() {
    let (first, second, side) = (free_port(), free_port(), free_port());
    let ini = |port: u16, backlog: u32| {
        let side = format!("[socket:side]\nhost = 127.0.0.1\nport = {side}\nbacklog = {backlog}\n");
        format!("{}{side}", moved(port, "sleep 1000"))
    };
    let mut stack = Stack::start(&ini(first, 5));
    wait_up(&stack, "web");
    stack.kill_manager();
    // The kernel keeps the socket as it is.
    stack.rewrite(&ini(first, 7));
    stack.start_manager_to_stop_at("change.sockets", 1);
    stack.wait_attached();
    wait_up(&stack, "web");
    let failpoints = stack.failpoints();
    let serial = |stack: &Stack| {
        let listed = stack.kernel.json().ok("socket.list", json!({}));
        let mut listed = listed["sockets"].as_array().unwrap().iter();
        let side = listed.find(|one| one["name"] == "circus.side").unwrap();
        side["serial"].as_u64().unwrap()
    };
    let before = serial(&stack);
    failpoints.arm("change.sockets", 1, "manager");
    stack.rewrite(&ini(second, 7));
    ok(&stack.ask("reloadconfig", &json!({})));
    wait_for("the sockets have changed", || {
        failpoints.hit("change.sockets")
    });
    stack.kill_manager();
    stack.start_manager();
    wait_until("the change is complete", || {
        visit(second).is_ok() && sockets(&stack).len() == 2
    });
    assert_eq!(serial(&stack), before);
}

#[test]
fn whoever_is_killed_while_a_port_changes_leaves_the_old_or_the_new_one_whole() {
    for (place, role) in [
        ("change.sockets", "manager"),
        ("change.closed", "manager"),
        ("socket.aside", "kernel"),
    ] {
        for works in [true, false] {
            let case = format!("killed at {place}; the change works: {works}");
            let (first, second) = (free_port(), free_port());
            let scratch = Scratch::new();
            let failpoints = Failpoints::at(scratch.directory());
            let watched = scratch.directory().to_str().unwrap();
            let kernel = Kernel::builder().environment(Failpoints::VARIABLE, watched);
            let mut stack = Stack::start_on(kernel, &moved(first, "sleep 1000"));
            let failpoints = match role {
                "kernel" => failpoints,
                _ => {
                    stack.kill_manager();
                    stack.start_manager_to_stop_at(place, 1);
                    stack.wait_attached();
                    stack.failpoints()
                }
            };
            wait_up(&stack, "web");
            stack.wait_pids("other", 1);
            let before = stack.wait_pids("web", 2);
            failpoints.arm(place, 1, role);
            let other = if works {
                "sleep 1001"
            } else {
                "/no/such/program"
            };
            stack.rewrite(&moved(second, other));
            ok(&stack.ask("reloadconfig", &json!({})));
            let hit = wait_for(&case, || failpoints.hit(place));
            if place != "change.closed" {
                visit(first).unwrap_or_else(|error| panic!("{case}: {error}"));
                assert!(before.values().all(|pid| procfs::alive(*pid)), "{case}");
            }
            kill(hit.pid);
            failpoints.clear();
            if role == "manager" {
                stack.kill_manager();
                stack.start_manager();
            }
            let (served, closed) = if works {
                (second, first)
            } else {
                (first, second)
            };
            wait_until(&case, || {
                visit(served).is_ok() && sockets(&stack) == ["circus.web"]
            });
            wait_closed(closed);
            let now = stack.wait_pids("web", 2);
            for pid in now.values().copied() {
                kill(pid);
            }
            wait_until(&format!("{case}; a new worker answers"), || {
                visit(served).is_ok_and(|pid| !now.values().any(|old| *old == pid))
            });
        }
    }
}
