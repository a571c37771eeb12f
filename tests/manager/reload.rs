//! The rolling reload, as whoever connects meanwhile sees it, and its way back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::journal::{
    count, events_until, extremes, journal, open_gate, port, set_mode, site, visit, wait_up, worker,
};
use crate::stack::Stack;
use papa_harness::{procfs, wait_for, wait_until};

fn http() -> String {
    site(
        "http",
        "http://unix:DIR/http.$(circus.wid).sock:/",
        "http",
        "",
    )
}

fn notify(more: &str) -> String {
    site("web", "notify", "notify", more)
}

#[track_caller]
fn assert_all_new(before: &BTreeMap<u64, i32>, after: &BTreeMap<u64, i32>) {
    let kept = after
        .values()
        .any(|pid| before.values().any(|old| old == pid));
    assert!(!kept, "before {before:?}, after {after:?}");
}

#[track_caller]
fn reason(reply: &Value) -> &str {
    assert_eq!(reply["status"], "error", "{reply}");
    reply["reason"].as_str().unwrap()
}

#[test]
fn however_readiness_is_told_nobody_is_turned_away() {
    let names = ["notify", "fd", "http", "log", "delay"];
    let ini = [
        site("notify", "notify", "notify", ""),
        site("fd", "fd:7", "fd", ""),
        http(),
        site("log", "log:^ready to", "log", ""),
        site("delay", "delay:0.4", "none", ""),
    ];
    let stack = Stack::start(&ini.concat());
    for name in names {
        wait_up(&stack, name);
    }
    let before = names.map(|name| stack.wait_pids(name, 2));
    let ports = names.map(|name| port(&stack, name));
    let over = AtomicBool::new(false);
    let visits = std::thread::scope(|scope| {
        let visits = scope.spawn(|| {
            let mut visits = 0_u32;
            while !over.load(Ordering::Relaxed) {
                for (name, port) in names.iter().zip(ports) {
                    visit(port).unwrap_or_else(|error| panic!("{name}: {error}"));
                    visits += 1;
                }
            }
            visits
        });
        let reply = stack.request("reload", "*");
        over.store(true, Ordering::Relaxed);
        assert_eq!(reply["status"], "ok", "{reply}");
        visits.join().unwrap()
    });
    assert!(visits > 0);
    for (name, before) in names.iter().zip(&before) {
        // Answered when the old ones have gone, not only asked to.
        let after = stack.pids(name);
        assert_eq!(after.len(), 2, "{name}");
        assert_all_new(before, &after);
        // What a worker writes down has nothing to do with its delay, which is a guess of the
        // author of the file.
        if *name != "delay" {
            let seen = (extremes(&stack, name, 2), count(&stack, name, "start"));
            assert_eq!(
                seen,
                ((2, 3), 4),
                "{name}: least serving, most there, starts"
            );
        }
    }
    // The third worker is the first newcomer.
    let events = events_until(&stack, "watcher.delay.kill");
    let time = |event: &Value| event["time"].as_f64().unwrap();
    let newcomer = events
        .iter()
        .filter(|event| event["topic"] == "watcher.delay.spawn")
        .nth(2);
    let waited = time(events.last().unwrap()) - time(newcomer.unwrap());
    assert!(waited >= 0.4, "{waited}");
}

#[test]
fn as_many_come_at_once_as_the_file_allows() {
    let stack =
        Stack::start(&notify("numprocesses = 3\nmax_surge = 2").replace("numprocesses = 2\n", ""));
    wait_up(&stack, "web");
    let before = stack.wait_pids("web", 3);
    set_mode(&stack, "web", "gate");
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| stack.request("reload", "web"));
        stack.wait_pids("web", 5);
        wait_until("both newcomers run", || count(&stack, "web", "start") == 5);
        assert_eq!(
            count(&stack, "web", "down"),
            0,
            "nobody goes before somebody serves"
        );
        assert!(!reload.is_finished());
        open_gate(&stack, "web");
        let reply = reload.join().unwrap();
        assert_eq!(reply["status"], "ok", "{reply}");
        assert_eq!(reply["info"]["kept"], json!([]), "{reply}");
    });
    assert_all_new(&before, &stack.pids("web"));
    assert_eq!(extremes(&stack, "web", 3), (3, 5));
}

#[test]
fn one_after_another_all_at_once_and_never_two() {
    let single = notify("singleton = true\nnumprocesses = 1").replace("numprocesses = 2\n", "");
    let ini = [
        site("step", "notify", "notify", ""),
        site("all", "notify", "notify", ""),
        site("none", "notify", "notify", "max_surge = 0"),
        single,
    ];
    let stack = Stack::start(&ini.concat());
    for name in ["step", "all", "none", "web"] {
        wait_up(&stack, name);
    }
    for (name, properties, wanted, expected) in [
        ("step", json!({"sequential": true}), 2, (1, 2)),
        ("all", json!({"graceful": false}), 2, (0, 2)),
        ("none", json!({}), 2, (1, 2)),
        ("web", json!({}), 1, (0, 1)),
    ] {
        let before = stack.wait_pids(name, wanted);
        let mut properties = properties;
        properties["name"] = name.into();
        properties["waiting"] = true.into();
        let reply = stack.ask("reload", &properties);
        assert_eq!(reply["status"], "ok", "{name}: {reply}");
        let after = stack.pids(name);
        assert_eq!(after.len(), wanted, "{name}");
        assert_all_new(&before, &after);
        assert_eq!(
            extremes(&stack, name, wanted),
            expected,
            "{name}: least serving, most there"
        );
    }
}

#[test]
fn hangup_reloads_what_runs_and_send_hup_passes_it_on() {
    let ini = [
        notify(""),
        site("hup", "notify", "notify", "send_hup = true"),
        "[watcher:off]\ncmd = sleep 1000\nautostart = false\n".to_owned(),
    ];
    let stack = Stack::start(&ini.concat());
    wait_up(&stack, "web");
    wait_up(&stack, "hup");
    let (web, hup) = (stack.wait_pids("web", 2), stack.wait_pids("hup", 2));
    assert_eq!(stack.request("reload", "hup")["status"], "ok");
    wait_until("both are told", || count(&stack, "hup", "hup") == 2);
    assert_eq!(stack.pids("hup"), hup);
    assert_eq!(stack.pids("web"), web, "the other one was not meant");

    stack.signal_manager(Signal::SIGHUP);
    wait_until("both are told again", || count(&stack, "hup", "hup") == 4);
    wait_until("the others are replaced", || {
        count(&stack, "web", "down") == 2
    });
    assert_all_new(&web, &stack.wait_pids("web", 2));
    assert_eq!(stack.pids("hup"), hup);
    assert_eq!(count(&stack, "hup", "start"), 2);
    assert_eq!(
        stack.state("off"),
        "stopped",
        "what does not run is not reloaded"
    );
    assert_eq!(extremes(&stack, "web", 2), (2, 3));
}

#[test]
fn a_reload_that_fails_changes_nothing_and_says_why() {
    // Long enough for a Python to start on a machine that has much else to do.
    let stack = Stack::start(&notify("ready_timeout = 4"));
    wait_up(&stack, "web");
    let before = stack.wait_pids("web", 2);
    for (mode, why) in [("exit", "exited with 3"), ("never", "not ready within 4 s")] {
        set_mode(&stack, "web", mode);
        let reply = stack.request("reload", "web");
        let reason = reason(&reply);
        assert!(
            reason.contains("rolled back") && reason.contains(why),
            "{reason}"
        );
        assert_eq!(reply["errno"], 6, "{reply}");
        wait_until("the newcomer is gone", || stack.pids("web") == before);
        assert_eq!(stack.state("web"), "active");
        let message = stack.request("status", "web")["watchers"][0]["message"].clone();
        assert!(message.as_str().unwrap().contains(why), "{message}");
    }
    set_mode(&stack, "web", "");
    // A command that does not exist, and one that ends: the option is as it was, too.
    for (command, why) in [
        ("/no/such/program", "/no/such/program"),
        ("false", "exited with 1"),
    ] {
        let set = json!({"name": "web", "waiting": true, "options": {"cmd": command}});
        let reply = stack.ask("set", &set);
        assert!(reason(&reply).contains(why), "{reply}");
        let options = stack.ask("get", &json!({"name": "web", "keys": ["cmd"]}));
        let now = options["options"]["cmd"].as_str().unwrap();
        assert!(now.starts_with("python3"), "{now}");
        wait_until("the newcomer is gone", || stack.pids("web") == before);
    }
    let downs: Vec<i32> = journal(&stack, "web")
        .iter()
        .filter(|entry| entry.word == "down")
        .map(|entry| entry.pid)
        .collect();
    assert!(
        !downs
            .iter()
            .any(|pid| before.values().any(|old| old == pid))
    );
    assert_eq!(stack.request("reload", "web")["status"], "ok");
    assert_all_new(&before, &stack.pids("web"));
    let message = stack.request("status", "web")["watchers"][0]["message"].clone();
    assert!(message.is_null(), "all is well: {message}");
}

#[test]
fn a_failure_after_the_first_replacement_brings_the_old_settings_back() {
    // A newcomer finds how many came before it: the second one too many.
    let command = worker("DIR/web $(circus.wid) none");
    let ini = format!(
        "[watcher:web]\ncmd = sh -c '[ -z \"$NEW\" ] || {{ echo >> DIR/new; [ $(wc -l < DIR/new) -lt 2 ]; }} && exec {command}'\n\
         copy_env = true\nnumprocesses = 2\n[env:web]\nGIVEN = old\n"
    );
    let stack = Stack::start(&ini);
    let before = stack.wait_pids("web", 2);
    wait_until("both serve", || count(&stack, "web", "up") == 2);
    let set =
        json!({"name": "web", "waiting": true, "options": {"env": {"GIVEN": "new", "NEW": "yes"}}});
    let reply = stack.ask("set", &set);
    assert!(reason(&reply).contains("rolled back"), "{reply}");
    let given = |pid: i32, what: &str| procfs::environment(pid).contains(&what.to_owned());
    let after = wait_for("two old ones run", || {
        let now = stack.pids("web");
        (now.len() == 2 && now.values().all(|pid| given(*pid, "GIVEN=old"))).then_some(now)
    });
    assert!(
        after
            .values()
            .any(|pid| before.values().any(|old| old == pid)),
        "one was never replaced"
    );
    assert!(
        count(&stack, "web", "down") >= 1,
        "the test had one replaced"
    );
    assert_eq!(extremes(&stack, "web", 2).0, 2);
}

#[test]
fn a_reload_goes_on_without_manager_and_kernel() {
    let mut stack = Stack::start(&notify(""));
    wait_up(&stack, "web");
    let before = stack.wait_pids("web", 2);
    set_mode(&stack, "web", "gate");
    stack.request_now("reload", "web");
    stack.wait_pids("web", 3);
    wait_until("the newcomer runs", || count(&stack, "web", "start") == 3);
    stack.kill_manager();
    stack.kernel.kill_kernel();
    stack.start_manager();
    stack.kernel.kill_kernel();
    assert_eq!(count(&stack, "web", "down"), 0);
    open_gate(&stack, "web");
    wait_until("the reload is complete", || {
        let now = stack.pids("web");
        now.len() == 2
            && !now
                .values()
                .any(|pid| before.values().any(|old| old == pid))
    });
    assert_eq!(extremes(&stack, "web", 2), (2, 3));
    assert_eq!(count(&stack, "web", "start"), 4);
}

#[test]
fn a_reload_that_fails_under_a_successor_keeps_the_old_ones() {
    let mut stack = Stack::start(&notify("ready_timeout = 2"));
    wait_up(&stack, "web");
    let before = stack.wait_pids("web", 2);
    set_mode(&stack, "web", "never");
    stack.request_now("reload", "web");
    stack.wait_pids("web", 3);
    stack.kill_manager();
    stack.start_manager();
    wait_until("it is given up", || {
        let status = stack.request("status", "web");
        status["watchers"][0]["message"]
            .as_str()
            .is_some_and(|text| text.contains("rolled back"))
    });
    wait_until("the newcomer is gone", || stack.pids("web") == before);
}

#[test]
fn a_stop_ends_a_reload_and_another_reload_takes_its_place() {
    let stack = Stack::start(&notify(""));
    wait_up(&stack, "web");
    let before = stack.wait_pids("web", 2);
    set_mode(&stack, "web", "gate");
    std::thread::scope(|scope| {
        let first = scope.spawn(|| stack.request("reload", "web"));
        let with_first = stack.wait_pids("web", 3);
        let second = scope.spawn(|| stack.request("reload", "web"));
        wait_until("the second has its own newcomer", || {
            let now = stack.pids("web");
            !now.is_empty()
                && now
                    .values()
                    .any(|pid| !with_first.values().any(|old| old == pid))
        });
        open_gate(&stack, "web");
        assert_eq!(second.join().unwrap()["status"], "ok");
        assert_eq!(first.join().unwrap()["status"], "ok");
    });
    let second = stack.wait_pids("web", 2);
    assert_all_new(&before, &second);
    assert_eq!(extremes(&stack, "web", 2).0, 2);

    std::fs::remove_file(stack.kernel.directory().join("web.go")).unwrap();
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| stack.request("reload", "web"));
        let all = stack.wait_pids("web", 3);
        assert_eq!(stack.request("stop", "web")["status"], "ok");
        assert!(all.values().all(|pid| !procfs::alive(*pid)), "{all:?}");
        assert!(reason(&reload.join().unwrap()).contains("later request"));
    });
    assert_eq!(stack.state("web"), "stopped");
    assert!(stack.pids("web").is_empty());
}
