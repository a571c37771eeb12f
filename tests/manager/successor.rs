//! What was under way goes on where it stood when another manager takes over, killed or upgraded.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::journal::{count, extremes, open_gate, set_mode, site, wait_up};
use crate::stack::{SUCCESSIONS, Stack, Succession};
use papa_harness::{procfs, wait_for, wait_until};

/// Ignores the signal that asks it to end; says when it does.
const DEAF: &str = "[watcher:deaf]\ncmd = sh -c 'trap \"\" TERM; echo up > DIR/up; while :; do sleep 0.1; done'\ncopy_env = true\n";
/// Writes down that it was started, and ends.
const ENDS: &str = "[watcher:ends]\ncmd = sh -c 'echo run >> DIR/runs; exit 1'\ncopy_env = true\n";

#[track_caller]
fn ok(reply: &Value) {
    assert_eq!(reply["status"], "ok", "{reply}");
}

fn exists(stack: &Stack, name: &str) -> bool {
    stack.kernel.directory().join(name).exists()
}

fn runs(stack: &Stack) -> usize {
    let text = fs::read_to_string(stack.kernel.directory().join("runs")).unwrap_or_default();
    text.lines().count()
}

fn web(more: &str) -> String {
    site("web", "notify", "notify", more)
}

#[test]
fn a_rolling_reload_goes_on() {
    for how in SUCCESSIONS {
        for sequential in [false, true] {
            let mut stack = Stack::start(&web(""));
            wait_up(&stack, "web");
            let before = stack.wait_pids("web", 2);
            set_mode(&stack, "web", "gate");
            ok(&stack.ask("reload", &json!({"name": "web", "sequential": sequential})));
            wait_until("a newcomer runs", || count(&stack, "web", "start") == 3);
            stack.replace_manager(how);
            open_gate(&stack, "web");
            wait_until("the reload is complete", || {
                let now = stack.pids("web");
                now.len() == 2
                    && count(&stack, "web", "up") == 4
                    && !now
                        .values()
                        .any(|pid| before.values().any(|old| old == pid))
            });
            let expected = if sequential { (1, 2) } else { (2, 3) };
            let found = extremes(&stack, "web", 2);
            assert_eq!(found, expected, "{how:?}: least serving, most there");
            assert_eq!(count(&stack, "web", "start"), 4, "{how:?}: none in vain");
            wait_until("nothing of it is kept", || {
                stack.kept("web")["roll"].is_null()
            });
        }
    }
}

#[test]
fn a_reload_that_fails_later_finds_the_settings_before_it() {
    for how in SUCCESSIONS {
        let mut stack = Stack::start(&web("ready_timeout = 3"));
        wait_up(&stack, "web");
        let before = stack.wait_pids("web", 2);
        set_mode(&stack, "web", "never");
        let set = json!({"name": "web", "options": {"env": {"NEW": "yes"}, "graceful_timeout": 7}});
        ok(&stack.ask("set", &set));
        stack.wait_pids("web", 3);
        stack.replace_manager(how);
        wait_until("it is rolled back", || {
            stack.message("web").contains("rolled back")
        });
        assert!(!stack.message("web").contains("not known"), "{how:?}");
        wait_until("the newcomer is gone", || stack.pids("web") == before);
        set_mode(&stack, "web", "");
        procfs::signal(before[&1], Signal::SIGKILL);
        let now = wait_for("another is there", || {
            let now = stack.pids("web");
            (now.len() == 2 && now != before).then_some(now)
        });
        for pid in now.values() {
            let environment = procfs::environment(*pid);
            assert!(!environment.contains(&"NEW=yes".to_owned()), "{how:?}");
        }
        let kept = stack.kept("web");
        assert!(kept["set"].is_null() && kept["env"].is_null(), "{kept}");
    }
}

#[test]
fn what_no_file_has_is_rolled_back_too() {
    for how in SUCCESSIONS {
        let mut stack = Stack::start("[circus]\n");
        let command = "sh -c 'test -n \"$NEW\" || echo >&3; exec sleep 1000'";
        let options = json!({"ready": "fd:3", "ready_timeout": 3});
        let add = json!({"name": "added", "cmd": command, "start": true, "options": options});
        ok(&stack.ask("add", &add));
        let before = stack.wait_pids("added", 1);
        wait_until("it serves", || stack.state("added") == "active");
        let set = json!({"name": "added", "options": {"env": {"NEW": "yes"}}});
        ok(&stack.ask("set", &set));
        stack.wait_pids("added", 2);
        stack.replace_manager(how);
        wait_until("it is rolled back", || {
            stack.message("added").contains("rolled back")
        });
        assert!(!stack.message("added").contains("not known"), "{how:?}");
        wait_until("the newcomer is gone", || stack.pids("added") == before);
        procfs::signal(before[&1], Signal::SIGKILL);
        let now = wait_for("another is there", || {
            let now = stack.pids("added");
            (now.len() == 1 && now != before).then_some(now)
        });
        for pid in now.values() {
            let environment = procfs::environment(*pid);
            assert!(!environment.contains(&"NEW=yes".to_owned()), "{how:?}");
        }
    }
}

#[test]
fn what_the_kernel_did_not_hear_before_its_death_it_is_told_again() {
    let mut stack = Stack::start("[circus]\n");
    let add = |name: &str| json!({"name": name, "cmd": "sleep 1000", "start": true});
    ok(&stack.ask("add", &add("goes")));
    let left = stack.wait_pids("goes", 1)[&1];
    wait_until("it is kept", || stack.kept_value("added.goes").is_object());
    let kernel = stack.kernel.pid();
    procfs::signal(kernel, Signal::SIGSTOP);
    // Said to one that will hear nothing any more.
    for reply in [
        stack.ask("add", &add("comes")),
        stack.ask("rm", &json!({"name": "goes", "nostop": true})),
    ] {
        let reason = reply["reason"].as_str().unwrap_or_default();
        assert!(reason.starts_with("done, but a manager"), "{reply}");
    }
    procfs::signal(kernel, Signal::SIGKILL);
    let came = stack.wait_pids("comes", 1);
    wait_until("both are known to the next", || {
        stack.kept_value("added.comes").is_object() && stack.kept_value("added.goes").is_null()
    });
    stack.replace_manager(Succession::Killed);
    assert_eq!(stack.wait_pids("comes", 1), came);
    assert_eq!(stack.request("status", "goes")["status"], "error");
    assert!(procfs::alive(left), "its worker was to run on");
}

#[test]
fn a_stop_and_a_restart_keep_their_grace_period() {
    for how in SUCCESSIONS {
        let ini = format!("{DEAF}graceful_timeout = 4\n");
        let mut stack = Stack::start(&ini);
        let pid = stack.wait_pids("deaf", 1)[&1];
        wait_until("it ignores signals", || exists(&stack, "up"));
        stack.request_now("restart", "deaf");
        let stopping = wait_for("the deadline is kept", || {
            let kept = stack.kept("deaf")["stopping"].clone();
            kept.is_object().then_some(kept)
        });
        stack.replace_manager(how);
        fs::remove_file(stack.kernel.directory().join("up")).unwrap();
        if procfs::alive(pid) {
            let kept = stack.kept("deaf");
            assert!(
                kept["stopping"] == stopping || !procfs::alive(pid),
                "{how:?}: {stopping}, then {kept}"
            );
        }
        wait_until("it was killed", || !procfs::alive(pid));
        wait_until("another runs", || {
            stack.pids("deaf").get(&1).is_some_and(|now| *now != pid)
        });
        wait_until("it ignores signals, too", || exists(&stack, "up"));

        stack.request_now("stop", "deaf");
        wait_until("the stop is kept", || {
            stack.kept("deaf")["stopping"].is_object()
        });
        stack.replace_manager(how);
        wait_until("it is stopped", || stack.state("deaf") == "stopped");
        assert!(stack.pids("deaf").is_empty());
    }
}

#[test]
fn a_stop_with_a_signal_of_its_own_is_none_with_the_configured_one() {
    for how in SUCCESSIONS {
        let mut stack = Stack::start(
            "[watcher:w]\ncmd = sh -c 'trap \"echo > DIR/term; exit\" TERM; trap \"\" QUIT; echo > DIR/up; while :; do sleep 0.1; done'\n\
             copy_env = true\ngraceful_timeout = 1\n",
        );
        let pid = stack.wait_pids("w", 1)[&1];
        wait_until("it ignores one", || exists(&stack, "up"));
        let kill = json!({"name": "w", "signum": "QUIT", "graceful_timeout": 3});
        ok(&stack.ask("kill", &kill));
        wait_until("the signal is kept", || {
            stack.kept("w")["signals"].is_object()
        });
        stack.replace_manager(how);
        wait_until("it was killed", || !procfs::alive(pid));
        assert!(!exists(&stack, "term"), "{how:?}");
        wait_until("nothing of it is kept", || {
            stack.kept("w")["signals"].is_null()
        });
    }
}

#[test]
fn pauses_go_on() {
    for how in SUCCESSIONS {
        let mut stack = Stack::start(&format!(
            "{ENDS}backoff_first = 300\nbackoff_max = 600\n[watcher:flaps]\ncmd = sleep 1000\nbackoff_reset = 0\n\
             flapping.attempts = 3\nflapping.window = 600\nflapping.retry_in = 600\nflapping.max_retry = 5\n"
        ));
        wait_until("it ended twice and waits", || {
            runs(&stack) == 2 && stack.kept("ends")["backoff"]["1"]["until_ms"].is_u64()
        });
        let end = |stack: &Stack| {
            let pid = stack.wait_pids("flaps", 1)[&1];
            procfs::signal(pid, Signal::SIGKILL);
            wait_until("its end is seen", || {
                stack.pids("flaps").values().all(|now| *now != pid)
            });
        };
        end(&stack);
        end(&stack);
        let before = stack.kept("ends");
        stack.replace_manager(how);
        // Two before, one now.
        end(&stack);
        wait_until("that is one too many", || {
            stack.message("flaps").contains("; 3 ends")
        });
        let pause = stack.kept("flaps")["flapping"]["until_ms"].clone();
        assert!(pause.is_u64());
        stack.replace_manager(how);
        assert_eq!(stack.kept("flaps")["flapping"]["until_ms"], pause);
        assert!(stack.message("flaps").contains("; 3 ends"));
        assert!(stack.pids("flaps").is_empty(), "{how:?}");
        assert_eq!(stack.kept("ends")["backoff"], before["backoff"]);
        assert_eq!(stack.message("ends"), before["message"].as_str().unwrap());
        assert_eq!(runs(&stack), 2, "{how:?}: not started meanwhile");
    }
}

#[test]
fn what_was_given_up_stays_given_up_until_somebody_asks() {
    for how in SUCCESSIONS {
        let mut stack = Stack::start(&format!(
            "{ENDS}flapping.attempts = 1\nflapping.window = 600\nflapping.retry_in = 0.1\nflapping.max_retry = 1\n"
        ));
        wait_until("it is given up, and that is kept", || {
            stack.state("ends") == "stopped" && stack.kept("ends")["gave_up"] == true
        });
        let (message, before) = (stack.message("ends"), runs(&stack));
        assert!(message.contains("given up"), "{message}");
        stack.replace_manager(how);
        assert_eq!(stack.message("ends"), message);
        assert_eq!(stack.state("ends"), "stopped");
        assert_eq!(runs(&stack), before, "{how:?}");
        stack.request_now("start", "ends");
        wait_until("it is given up once more, and that is kept", || {
            runs(&stack) > before && stack.kept("ends")["gave_up"] == true
        });
        // A person who ends the manager asks for another one, too.
        let before = runs(&stack);
        ok(&stack.request_all("quit"));
        assert!(stack.wait_manager_end().success());
        stack.start_manager();
        wait_until("it is started again", || runs(&stack) > before);
    }
}

#[test]
fn failed_health_checks_are_not_forgotten() {
    for how in SUCCESSIONS {
        let mut stack = Stack::start(
            "[watcher:ill]\ncmd = sleep 1000\nhealth = command:false\nhealth_interval = 0.2\nhealth_retries = 1000\n",
        );
        let pids = stack.wait_pids("ill", 1);
        let failures = |stack: &Stack| {
            let kept = stack.kept("ill")["failures"].clone();
            let counts = kept.as_object()?.values().next()?.as_u64();
            counts.filter(|count| *count >= 3)
        };
        let before = wait_for("three checks have failed", || failures(&stack));
        stack.replace_manager(how);
        let after = wait_for("another has failed", || {
            let kept = stack.kept("ill")["failures"].clone();
            let count = kept.as_object()?.values().next()?.as_u64()?;
            (count != before).then_some(count)
        });
        assert!(after > before, "{how:?}: {before}, then {after}");
        assert_eq!(stack.pids("ill"), pids);
    }
}

#[test]
fn what_an_ended_worker_left_behind_is_killed() {
    for how in SUCCESSIONS {
        let mut stack = Stack::start(
            "[watcher:w]\ncmd = sh -c '(trap \"\" TERM; while :; do sleep 0.1; done) & echo $! > DIR/child; wait'\n\
             copy_env = true\ngraceful_timeout = 3\n",
        );
        stack.wait_pids("w", 1);
        let child: i32 = wait_for("the worker has a child", || {
            let text = fs::read_to_string(stack.kernel.directory().join("child")).ok()?;
            text.trim().parse().ok()
        });
        stack.request_now("stop", "w");
        wait_until("what it left is kept", || {
            let left = stack.kept("w")["left"].clone();
            left.as_object()
                .is_some_and(|left| left.values().any(|one| one["members"][0][0] == child))
        });
        assert!(procfs::alive(child));
        stack.replace_manager(how);
        wait_until("its child is killed", || !procfs::alive(child));
        wait_until("that is forgotten", || stack.kept("w")["left"].is_null());
    }
}

/// A file, and the one it is changed to: one watcher changes, one goes with its socket, one comes.
fn change(more: &str) -> [String; 2] {
    let old = format!(
        "{}{DEAF}graceful_timeout = 3\n[socket:goes]\npath = DIR/goes.sock\n",
        web(more)
    );
    let new = format!(
        "{}[env:web]\nNEW = yes\n[watcher:comes]\ncmd = sh -c 'trap \"\" TERM; while :; do sleep 0.1; done'\n\
         copy_env = true\ngraceful_timeout = 3\n[socket:comes]\npath = DIR/comes.sock\n",
        web(more)
    );
    [old, new]
}

#[test]
fn a_change_of_the_configuration_is_finished() {
    for how in SUCCESSIONS {
        let [old, new] = change("");
        let mut stack = Stack::start(&old);
        wait_up(&stack, "web");
        wait_until("all run", || exists(&stack, "up"));
        let (before, deaf) = (stack.wait_pids("web", 2), stack.wait_pids("deaf", 1)[&1]);
        let add = |name: &str| json!({"name": name, "cmd": "sleep 1000", "start": true});
        ok(&stack.ask("add", &add("earlier")));
        stack.wait_pids("earlier", 1);
        set_mode(&stack, "web", "gate");
        stack.rewrite(&new);
        ok(&stack.ask("reloadconfig", &json!({"accept_removal": true})));
        wait_until("a newcomer runs", || count(&stack, "web", "start") == 3);
        ok(&stack.ask("add", &add("later")));
        let later = stack.wait_pids("later", 1);
        stack.replace_manager(how);
        assert_eq!(stack.pids("deaf")[&1], deaf, "{how:?}: it is not its turn");
        assert!(exists(&stack, "goes.sock") && exists(&stack, "comes.sock"));
        open_gate(&stack, "web");
        wait_until("the one that goes is on its way", || {
            stack.kept("deaf")["removing"].is_object()
        });
        // Once more, in the next step.
        stack.replace_manager(how);
        wait_until("it has gone, and its socket", || {
            !procfs::alive(deaf) && !exists(&stack, "goes.sock")
        });
        let now = stack.wait_pids("web", 2);
        assert!(
            !now.values()
                .any(|pid| before.values().any(|old| old == pid))
        );
        for pid in now.values() {
            assert!(procfs::environment(*pid).contains(&"NEW=yes".to_owned()));
        }
        assert_eq!(count(&stack, "web", "start"), 4, "{how:?}: none in vain");
        assert_eq!(stack.wait_pids("comes", 1).len(), 1);
        wait_until("it is over", || stack.kept_value("change").is_null());
        for gone in ["deaf", "earlier"] {
            assert_eq!(stack.request("status", gone)["status"], "error");
        }
        assert_eq!(stack.pids("later"), later, "{how:?}");
        ok(&stack.ask("rm", &json!({"name": "later", "waiting": true})));
        let plan = stack.ask("reloadconfig", &json!({"plan": true}));
        assert_eq!(plan["plan"], json!([]), "{plan}");
    }
}

#[test]
fn what_a_change_has_stopped_is_not_started_again() {
    for how in SUCCESSIONS {
        let quick = "[watcher:quick]\ncmd = sh -c 'echo run >> DIR/runs; exec sleep 1000'\ncopy_env = true\n";
        let stays = "[watcher:stays]\ncmd = sleep 1000\n";
        let old = format!("{stays}{quick}{DEAF}graceful_timeout = 4\n");
        let mut stack = Stack::start(&old);
        let quick = stack.wait_pids("quick", 1)[&1];
        wait_until("all run", || exists(&stack, "up") && runs(&stack) == 1);
        stack.rewrite(stays);
        ok(&stack.ask("reloadconfig", &json!({"accept_removal": true})));
        wait_until("one has gone, the other not", || {
            !procfs::alive(quick)
                && stack.request("status", "quick")["status"] == "error"
                && stack.kept("quick").is_null()
        });
        assert!(stack.kept_value("change").is_object(), "{how:?}");
        stack.replace_manager(how);
        wait_until("it is over", || stack.kept_value("change").is_null());
        assert_eq!(runs(&stack), 1, "{how:?}");
        assert_eq!(stack.request("status", "deaf")["status"], "error");
    }
}

#[test]
fn a_change_that_fails_later_is_taken_back() {
    for how in SUCCESSIONS {
        let [old, new] = change("ready_timeout = 4");
        let mut stack = Stack::start(&old);
        wait_up(&stack, "web");
        let add = json!({"name": "added", "cmd": "sleep 1000", "start": true});
        ok(&stack.ask("add", &add));
        let (before, deaf) = (stack.wait_pids("web", 2), stack.wait_pids("deaf", 1));
        let added = stack.wait_pids("added", 1);
        set_mode(&stack, "web", "never");
        stack.rewrite(&new);
        ok(&stack.ask("reloadconfig", &json!({"accept_removal": true})));
        wait_until("a newcomer runs", || count(&stack, "web", "start") == 3);
        stack.replace_manager(how);
        wait_until("it is taken back", || {
            stack.kept_value("change")["undoing"].is_string()
        });
        // Once more, on the way back, which takes until the one that came has gone.
        stack.replace_manager(how);
        wait_until("it is over", || stack.kept_value("change").is_null());
        wait_until("the newcomer is gone", || stack.pids("web") == before);
        assert_eq!(stack.pids("deaf"), deaf, "{how:?}");
        assert_eq!(stack.pids("added"), added, "{how:?}");
        assert_eq!(count(&stack, "web", "start"), 3, "{how:?}: none in vain");
        assert_eq!(stack.request("status", "comes")["status"], "error");
        assert!(exists(&stack, "goes.sock"), "{how:?}");
        assert!(!exists(&stack, "comes.sock"), "{how:?}");
        // What a worker gets now is what it got before.
        set_mode(&stack, "web", "");
        procfs::signal(before[&1], Signal::SIGKILL);
        let now = wait_for("another is there", || {
            let now = stack.pids("web");
            (now.len() == 2 && now != before).then_some(now)
        });
        for pid in now.values() {
            let environment = procfs::environment(*pid);
            assert!(!environment.contains(&"NEW=yes".to_owned()), "{how:?}");
        }
    }
}

#[test]
fn what_is_removed_while_a_change_is_taken_back_stays_removed() {
    for how in SUCCESSIONS {
        let [old, new] = change("ready_timeout = 1");
        let mut stack = Stack::start(&old);
        wait_up(&stack, "web");
        let deaf = "sh -c 'trap \"\" TERM; while :; do sleep 0.1; done'";
        let add = json!({"name": "added", "cmd": deaf, "start": true,
            "options": {"graceful_timeout": 6, "copy_env": true}});
        ok(&stack.ask("add", &add));
        let added = stack.wait_pids("added", 1)[&1];
        set_mode(&stack, "web", "never");
        stack.rewrite(&new);
        ok(&stack.ask("reloadconfig", &json!({"accept_removal": true})));
        wait_until("it is taken back", || {
            stack.kept_value("change")["undoing"].is_string()
        });
        ok(&stack.ask("rm", &json!({"name": "added"})));
        wait_until("it is on its way", || {
            stack.kept("added")["removing"].is_object()
        });
        stack.replace_manager(how);
        wait_until("it is over", || stack.kept_value("change").is_null());
        wait_until("it has gone", || {
            !procfs::alive(added) && stack.request("status", "added")["status"] == "error"
        });
        // Nor does another change bring it back.
        set_mode(&stack, "web", "");
        // Long enough for a Python to start on a machine that has much else to do.
        let [_, patient] = change("ready_timeout = 20");
        stack.rewrite(&patient);
        ok(&stack.ask(
            "reloadconfig",
            &json!({"waiting": true, "accept_removal": true}),
        ));
        assert_eq!(
            stack.request("status", "added")["status"],
            "error",
            "{how:?}"
        );
    }
}

#[test]
fn a_reload_that_was_only_decided_returns_to_the_settings_before() {
    let [old, new] = change("ready_timeout = 1");
    let mut stack = Stack::start(&old);
    wait_up(&stack, "web");
    let before = stack.wait_pids("web", 2);
    stack.kill_manager();
    stack.start_manager_to_stop_at("reload.decided", 1);
    stack.wait_attached();
    wait_up(&stack, "web");
    set_mode(&stack, "web", "never");
    stack.rewrite(&new);
    ok(&stack.ask("reloadconfig", &json!({"accept_removal": true})));
    wait_until("it is decided", || {
        stack.failpoints().hit("reload.decided").is_some()
    });
    assert!(stack.kept_value("change").is_object());
    assert_eq!(count(&stack, "web", "start"), 2);
    stack.kill_manager();
    stack.start_manager();
    wait_until("it is over", || stack.kept_value("change").is_null());
    wait_until("all is as before", || stack.pids("web") == before);
    assert_eq!(
        count(&stack, "web", "start"),
        3,
        "one was tried, none in vain"
    );
    // They are as that file has them.
    stack.rewrite(&old);
    let plan = stack.ask("reloadconfig", &json!({"plan": true}));
    assert_eq!(plan["plan"], json!([]), "{plan}");
}

#[test]
fn what_a_removed_watcher_wrote_last_gets_to_its_file() {
    for how in SUCCESSIONS {
        let mut stack = Stack::start(
            "[watcher:w]\ncmd = sh -c 'echo last words; echo > DIR/up; exec sleep 1000'\ncopy_env = true\n\
             stdout_stream.filename = DIR/late/w.log\n",
        );
        wait_until("it has spoken", || exists(&stack, "up"));
        stack.rewrite("[circus]\n");
        ok(&stack.ask(
            "reloadconfig",
            &json!({"waiting": true, "accept_removal": true}),
        ));
        assert_eq!(stack.request("status", "w")["status"], "error");
        assert!(stack.kept_value("change").is_null());
        stack.replace_manager(how);
        wait_until("it is gone under the successor", || {
            stack.request("status", "w")["status"] == "error"
        });
        fs::create_dir(stack.kernel.directory().join("late")).unwrap();
        wait_until("it is written", || {
            let path = stack.kernel.directory().join("late/w.log");
            fs::read_to_string(path).is_ok_and(|text| text == "last words\n")
        });
        wait_until("nothing is kept", || stack.kept("w").is_null());
    }
}

#[test]
fn an_upgrade_that_would_not_come_up_is_refused() {
    let stack = Stack::start(&web(""));
    wait_up(&stack, "web");
    let before = stack.wait_pids("web", 2);
    stack.rewrite("[watcher:web]\ncmd = sleep 1\nnumprocesses = many\n");
    let reply = stack.ask("upgrade", &json!({}));
    let reason = reply["reason"].as_str().unwrap_or_default();
    for part in ["nothing was changed", "--check", "stack.ini:3", "\"many\""] {
        assert!(reason.contains(part), "{part} in {reply}");
    }
    stack.rewrite("[circus]\nnamespace = blue\n[watcher:web]\ncmd = sleep 1\n");
    let reply = stack.ask("upgrade", &json!({}));
    assert!(
        reply["reason"].as_str().unwrap().contains("\"blue\""),
        "{reply}"
    );
    let outside = "[circus]\npidfile = DIR/no/such/m.pid\n[watcher:web]\ncmd = sleep 1\n";
    stack.rewrite(outside);
    let reply = stack.ask("upgrade", &json!({}));
    assert!(
        reply["reason"].as_str().unwrap().contains("no/such/m.pid"),
        "{reply}"
    );
    assert_eq!(stack.pids("web"), before);
}
