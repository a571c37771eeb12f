//! `papactl` as people and scripts use it: every verb once, exit status, JSON, what is said when
//! something is wrong.

use std::fs;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::stack::Stack;
use papa_harness::{binary, private_command, procfs, wait_for, wait_until};

const TWO: &str = "[watcher:Web]\ncmd = sleep 1000\nnumprocesses = 2\n[watcher:worker]\ncmd = sleep 1000\n\
    [socket:api]\npath = DIR/api.sock\n";

/// A command that ignores TERM, and the file it makes once it does.
const DEAF: &str = "[watcher:deaf]\ncmd = sh -c 'trap \"\" TERM; echo up > DIR/up; while :; do sleep 0.2; done'\n\
    copy_env = true\ngraceful_timeout = 60\n";

fn papactl(stack: &Stack) -> Command {
    let mut command = private_command(&binary("papactl"), stack.kernel.directory());
    command
        .current_dir(stack.kernel.directory())
        .stdin(Stdio::null());
    command
}

fn run(stack: &Stack, line: &str) -> Output {
    papactl(stack)
        .args(line.split_whitespace())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Standard output of a command that succeeds.
#[track_caller]
fn done(stack: &Stack, line: &str) -> String {
    let output = run(stack, line);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "papactl {line}: {said}");
    let printed = text(&output.stdout);
    assert!(
        !printed.contains('\x1b') && !said.contains(['\x1b', '\r']),
        "papactl {line}: escapes in a pipe"
    );
    printed
}

/// The one line of JSON of a command that succeeds.
#[track_caller]
fn json(stack: &Stack, line: &str) -> Value {
    let printed = done(stack, &format!("{line} --json"));
    assert_eq!(printed.lines().count(), 1, "papactl {line}: {printed}");
    serde_json::from_str(&printed).unwrap()
}

/// What a command says that fails with `code`.
#[track_caller]
fn failed(stack: &Stack, line: &str, code: i32) -> String {
    let output = run(stack, line);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "papactl {line}: {said}");
    assert!(!said.is_empty(), "papactl {line} fails silently");
    said
}

#[test]
fn what_runs_is_shown() {
    let stack = Stack::start(TWO);
    let pids = stack.wait_pids("web", 2);
    let status = done(&stack, "status");
    assert!(status.contains("Web     active    2/2"), "{status}");
    assert!(status.lines().all(|line| line.len() <= 80));
    assert_eq!(done(&stack, "status web*").lines().count(), 1);
    assert_eq!(
        json(&stack, "status")["statuses"],
        json!({"Web": "active", "worker": "active"})
    );
    assert_eq!(done(&stack, "list"), "web,worker\n");
    assert_eq!(
        done(&stack, "list web"),
        format!("{},{}\n", pids[&1], pids[&2])
    );
    assert_eq!(
        json(&stack, "list web")["pids"],
        json!([pids[&1], pids[&2]])
    );
    assert_eq!(done(&stack, "numprocesses"), "3\n");
    assert_eq!(done(&stack, "numwatchers"), "2\n");
    assert!(failed(&stack, "status nope", 1).contains("watcher nope not found"));
    assert!(failed(&stack, "list nope", 1).contains("not found"));
}

#[test]
fn options_have_values_and_defaults() {
    let stack = Stack::start(TWO);
    assert_eq!(
        done(&stack, "get web numprocesses cmd"),
        "cmd: sleep 1000\nnumprocesses: 2\n"
    );
    let options = json(&stack, "options web")["options"].clone();
    for (key, value) in [
        ("numprocesses", json!(2)),
        ("graceful_timeout", json!(30)),
        ("stop_signal", json!(15)),
        ("respawn", json!(true)),
        ("uid", Value::Null),
    ] {
        assert_eq!(options[key], value, "{key}");
    }
    assert!(done(&stack, "options").contains("loglevel: info\n"));
    assert_eq!(done(&stack, "globaloptions loglevel"), "loglevel: info\n");
    assert!(failed(&stack, "get web numproceses", 1).contains("numprocesses"));
    assert!(failed(&stack, "globaloptions nope", 1).contains("nope"));
    assert!(failed(&stack, "options nope", 1).contains("not found"));
}

#[test]
fn statistics_and_sockets_have_the_shape_of_circus() {
    let stack = Stack::start(TWO);
    let pids = stack.wait_pids("web", 2);
    let printed = done(&stack, "stats");
    assert!(printed.starts_with("PID "), "{printed}");
    let line = |pid: i32| -> Vec<String> {
        let mut lines = printed.lines();
        let line = lines.find(|line| line.starts_with(&format!("{pid} ")));
        line.unwrap_or_else(|| panic!("no line of {pid}: {printed}"))
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    };
    let words = line(pids[&1]);
    assert_eq!(words.last().map(String::as_str), Some("sleep"));
    let pid = pids[&1].to_string();
    assert_eq!(
        words.iter().filter(|word| **word == pid).count(),
        1,
        "{words:?}"
    );
    let info = json(&stack, &format!("stats web {}", pids[&2]))["info"].clone();
    assert_eq!((&info["pid"], &info["wid"]), (&json!(pids[&2]), &json!(2)));
    assert_eq!(
        json(&stack, "stats")["infos"]["Web"]
            .as_object()
            .unwrap()
            .len(),
        2
    );
    assert!(failed(&stack, "stats web 1", 1).contains("pid"));
    assert!(done(&stack, "dstats").starts_with("PID "));
    let path = stack.kernel.directory().join("api.sock");
    let sockets = json(&stack, "listsockets")["sockets"].clone();
    assert_eq!(
        (&sockets[0]["name"], &sockets[0]["path"]),
        (&json!("api"), &json!(path))
    );
    let printed = done(&stack, "listsockets");
    assert_eq!(
        printed,
        format!("{}:socket 'api' at {}\n", sockets[0]["fd"], path.display())
    );
}

#[test]
fn watchers_are_stopped_started_and_restarted() {
    let stack = Stack::start(TWO);
    let first = stack.wait_pids("web", 2);
    let stopped = done(&stack, "stop WEB");
    assert_eq!(
        stopped.split_whitespace().collect::<Vec<_>>(),
        ["Web", "stopped", "0/2"]
    );
    assert!(first.values().all(|pid| !procfs::alive(*pid)));
    assert!(done(&stack, "start w(e|o)b$ --match regex").starts_with("Web  active"));
    let second = stack.wait_pids("web", 2);
    assert_eq!(
        json(&stack, "restart web --waiting")["statuses"]["Web"],
        "active"
    );
    let third = stack.wait_pids("web", 2);
    assert!(
        third
            .values()
            .all(|pid| !second.values().any(|old| old == pid))
    );
    assert!(failed(&stack, "stop w* --match simple", 1).contains("w*"));
    assert!(failed(&stack, "stop nope", 1).contains("not found"));
    assert!(failed(&stack, "stop ( --match regex", 1).contains("regular expression"));
}

#[test]
fn workers_are_reloaded_counted_signalled_and_killed() {
    let stack = Stack::start(TWO);
    let mut pids = stack.wait_pids("web", 2);
    for line in [
        "reload web",
        "reload web --sequential",
        "reload web --terminate",
    ] {
        assert!(done(&stack, line).starts_with("Web "), "{line}");
        let new = stack.wait_pids("web", 2);
        assert!(
            new.values().all(|pid| !pids.values().any(|old| old == pid)),
            "{line}"
        );
        pids = new;
    }
    assert_eq!(done(&stack, "incr web 2"), "4\n");
    stack.wait_pids("web", 4);
    assert_eq!(json(&stack, "decr web 3")["numprocesses"], 1);
    let pid = *stack.wait_pids("web", 1).values().next().unwrap();
    assert_eq!(done(&stack, "kill web --graceful-timeout 5"), "ok\n");
    wait_until("the killed worker is replaced", || {
        let pids = stack.pids("web");
        pids.len() == 1 && pids.values().all(|new| *new != pid)
    });
    let pid = *stack.pids("web").values().next().unwrap();
    assert_eq!(done(&stack, &format!("signal web {pid} KILL")), "ok\n");
    wait_until("the signalled worker is replaced", || {
        let pids = stack.pids("web");
        pids.len() == 1 && pids.values().all(|new| *new != pid)
    });
    for line in [
        "reload nope",
        "incr nope",
        "decr nope",
        "signal nope HUP",
        "kill nope",
    ] {
        assert!(failed(&stack, line, 1).contains("not found"), "{line}");
    }
}

#[test]
fn watchers_are_changed_added_and_removed() {
    let stack = Stack::start(TWO);
    stack.wait_pids("web", 2);
    assert_eq!(
        done(&stack, "set web numprocesses 3 graceful_timeout 4"),
        "ok\n"
    );
    assert_eq!(
        done(&stack, "get web numprocesses graceful_timeout"),
        "graceful_timeout: 4\nnumprocesses: 3\n"
    );
    assert!(
        done(&stack, "reloadconfig --plan").contains("keep"),
        "what was set is shown"
    );
    assert!(done(&stack, "add --start new -o numprocesses=2 sleep 1000").starts_with("new "));
    stack.wait_pids("new", 2);
    let printed = done(&stack, "doctor");
    assert!(
        printed.contains("watcher:new  was added at run time"),
        "{printed}"
    );
    assert!(printed.contains("is as it was read"), "{printed}");
    assert!(failed(&stack, "add new sleep 5", 1).contains("exists"));
    assert_eq!(done(&stack, "rm new"), "ok\n");
    assert_eq!(done(&stack, "list"), "web,worker\n");
    assert!(failed(&stack, "rm new", 1).contains("not found"));
    // Back to what the file says, and on to what it says then.
    assert_eq!(done(&stack, "set web numprocesses 2"), "ok\n");
    let path = stack.kernel.directory().join("stack.ini");
    let ini = fs::read_to_string(&path).unwrap();
    fs::write(&path, ini.replace("[watcher:worker]", "[watcher:other]")).unwrap();
    let plan = done(&stack, "reloadconfig --plan");
    assert!(
        plan.contains("add      watcher:other") && plan.contains("remove   watcher:worker"),
        "{plan}"
    );
    assert_eq!(done(&stack, "list"), "web,worker\n", "a plan does nothing");
    done(&stack, "reloadconfig");
    assert_eq!(done(&stack, "list"), "other,web\n");
    fs::write(&path, "nonsense\n").unwrap();
    assert!(failed(&stack, "reloadconfig", 1).contains("stack.ini:1"));
}

#[test]
fn the_manager_starts_anew_and_the_workers_stay() {
    let stack = Stack::start(TWO);
    let pids = stack.wait_pids("web", 2);
    let reply = json(&stack, "upgrade");
    let manager = |when: &str| reply[when]["pid"].as_u64().unwrap();
    assert_eq!(manager("before"), manager("after"), "the same process");
    assert!(
        reply["before"]["started"] != reply["after"]["started"],
        "{reply}"
    );
    assert_eq!(stack.wait_pids("web", 2), pids);
}

#[test]
fn a_wait_that_is_too_long_says_what_is_missing() {
    let stack = Stack::start(DEAF);
    let path = stack.kernel.directory().join("up");
    wait_until("the worker ignores signals", || path.exists());
    let said = failed(&stack, "stop deaf --timeout 0.2", 1);
    assert!(
        said.contains("not done within 0.2 s: deaf stopping 1/1"),
        "{said}"
    );
    assert!(said.contains("goes on"), "{said}");
    assert_eq!(stack.state("deaf"), "stopping", "the work goes on");
    assert!(done(&stack, "stop deaf --no-wait").starts_with("deaf  stopping"));
    let output = run(&stack, "stop deaf --timeout 0.2 --json");
    let reply: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (output.status.code(), &reply["status"]),
        (Some(1), &json!("error"))
    );
}

#[test]
fn an_interrupted_wait_says_that_the_work_goes_on() {
    let stack = Stack::start(DEAF);
    let path = stack.kernel.directory().join("up");
    wait_until("the worker ignores signals", || path.exists());
    let child = papactl(&stack)
        .args(["stop", "deaf"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("the stop is under way", || {
        stack.state("deaf") == "stopping"
    });
    let pid = i32::try_from(child.id()).unwrap();
    procfs::signal(pid, nix::sys::signal::Signal::SIGINT);
    let output = child.wait_with_output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("interrupted") && said.contains("goes on"),
        "{said}"
    );
    assert_eq!(stack.state("deaf"), "stopping");
}

#[test]
fn wrong_arguments_are_usage_errors_and_say_what_is_accepted() {
    let stack = Stack::start(TWO);
    stack.wait_pids("web", 2);
    stack.wait_pids("worker", 1);
    for (line, expected) in [
        ("signal web zero HUP", "watcher zero not found"),
        ("incr web x", "watcher x not found"),
        ("status web nope", "watcher nope not found"),
        ("stop worker nope", "watcher nope not found"),
        ("kill web:7", "these run: 1, 2"),
    ] {
        let said = failed(&stack, line, 1);
        assert!(said.contains(expected), "papactl {line}: {said}");
    }
    assert_eq!(stack.state("worker"), "active", "nothing is done by halves");
    for (line, expected) in [
        ("frobnicate", "frobnicate"),
        ("set web numprocesses many", "a whole number"),
        ("set web numproceses 2", "did you mean"),
        ("set web cmd", "2"),
        ("set web a b c", "has no value"),
        ("get web", "KEY"),
        ("signal web NOPE", "expected a signal"),
        ("kill web --graceful-timeout -1", "graceful"),
        ("kill web --signum NOPE", "expected a signal"),
        ("reload --sequential --terminate", "terminate"),
        ("stop --match regex", "NAME"),
        ("add web", "CMD"),
        ("add web --set x=y -- sleep 5", "no option of add"),
        ("add --option x new sleep", "KEY=VALUE"),
        ("listen --since x", "number of an event"),
        ("completions nosuchshell", "bash"),
        ("status --timeout 0", "above 0"),
        ("status --namespace a.b/c", "namespace"),
        ("status --config nope.ini", "nope.ini"),
    ] {
        let said = failed(&stack, line, 2);
        assert!(said.contains(expected), "papactl {line}: {said}");
    }
}

#[test]
fn several_names_all_and_single_workers_are_understood() {
    let stack = Stack::start(TWO);
    let web = stack.wait_pids("web", 2);
    let worker = stack.wait_pids("worker", 1)[&1];
    let names = |printed: &str| -> Vec<String> {
        let firsts = printed
            .lines()
            .filter_map(|line| line.split_whitespace().next());
        firsts.map(str::to_owned).collect()
    };
    assert_eq!(names(&done(&stack, "status worker web")), ["Web", "worker"]);
    for line in ["status all", "ps", "ls", "status *"] {
        assert_eq!(names(&done(&stack, line)), ["Web", "worker"], "{line}");
    }
    let one = done(&stack, "status web:2");
    assert!(one.contains(&web[&2].to_string()) && !one.contains(&web[&1].to_string()));
    assert_eq!(done(&stack, "list web:2"), format!("{}\n", web[&2]));
    assert_eq!(
        done(&stack, "list worker web"),
        format!("worker: {worker}\nWeb: {},{}\n", web[&1], web[&2])
    );
    // One worker is ended and replaced; the other stays.
    done(&stack, "restart web:2");
    let pids = wait_for("another worker in its place", || {
        let pids = stack.pids("web");
        (pids.len() == 2 && !pids.values().any(|pid| *pid == web[&2])).then_some(pids)
    });
    assert_eq!(pids[&1], web[&1]);
    assert!(failed(&stack, "stop web:1", 2).contains("papactl kill Web:1"));
    done(&stack, "stop web worker");
    assert!(stack.pids("web").is_empty() && stack.pids("worker").is_empty());
    done(&stack, "start all");
    stack.wait_pids("web", 2);
    assert_eq!(done(&stack, "scale web 3"), "3\n");
    stack.wait_pids("web", 3);
    assert_eq!(done(&stack, "incr web worker 1"), "Web: 4\nworker: 2\n");
    assert!(done(&stack, "version").contains("kernel   "));
    assert!(
        done(&stack, "reread").contains("numprocesses"),
        "what was set at run time"
    );
    assert_eq!(
        json(&stack, "options web worker")["watchers"]["worker"]["options"]["cmd"],
        "sleep 1000"
    );
}

#[test]
fn status_and_doctor_were_content_with_a_watcher_that_was_given_up() {
    let stack = Stack::start(
        "[watcher:dead]\ncmd = sh -c 'exit 7'\nflapping.attempts = 2\nflapping.window = 60\nflapping.max_retry = 0\n\
         [watcher:web]\ncmd = sleep 1000\n",
    );
    stack.wait_pids("web", 1);
    wait_until("it is given up", || {
        stack.message("dead").starts_with("given up: ")
    });
    // The cause stands before the count.
    let said = stack.message("dead");
    assert!(said.contains("worker 1 exited with 7, ran 0."), "{said}");
    for line in ["status --check", "status dead --check"] {
        assert!(failed(&stack, line, 3).contains("not as wanted: dead"));
    }
    done(&stack, "status");
    done(&stack, "status web --check");
    let output = run(&stack, "doctor");
    assert_eq!(output.status.code(), Some(1));
    let printed = text(&output.stdout);
    assert!(
        printed
            .lines()
            .any(|line| line.starts_with("problem") && line.contains("watcher:dead")),
        "{printed}"
    );
}

#[test]
fn a_failure_of_long_ago_was_shown_at_a_watcher_that_is_well() {
    let stack = Stack::start(
        "[watcher:w]\ncmd = sh -c 'test -e DIR/well || exit 7; exec sleep 1000'\ncopy_env = true\nbackoff_first = 0.1\nbackoff_max = 0.1\nbackoff_reset = 1\n",
    );
    wait_until("it fails", || {
        stack.message("w").contains("; 2 times in a row")
    });
    fs::write(stack.kernel.directory().join("well"), "").unwrap();
    stack.wait_pids("w", 1);
    wait_until("the failure is forgotten", || stack.message("w").is_empty());
    done(&stack, "status --check");
}

#[test]
fn up_said_nothing_of_a_file_that_was_edited() {
    let stack = Stack::start(TWO);
    stack.wait_pids("web", 2);
    let endpoint = format!(
        "[circus]\npapa_endpoint = ipc:{}\n",
        stack.kernel.socket_path().display()
    );
    stack.rewrite(&format!(
        "{endpoint}{}",
        TWO.replace("numprocesses = 2", "numprocesses = 3")
    ));
    let output = run(&stack, "up stack.ini");
    let said = text(&output.stderr);
    assert!(said.contains("papactl reloadconfig --plan"), "{said}");
    stack.rewrite(TWO);
    let output = run(&stack, "up stack.ini");
    assert!(!text(&output.stderr).contains("changed"), "{output:?}");
}

#[test]
fn words_of_other_managers_were_answered_with_wrong_guesses() {
    let stack = Stack::start(TWO);
    for (word, expected) in [
        ("top", "papactl stats"),
        ("avail", "papactl options"),
        ("daemon-reload", "papactl reloadconfig"),
        ("monit", "papactl stats"),
        ("jlist", "papactl status --json"),
    ] {
        let said = failed(&stack, word, 2);
        assert!(
            said.contains(expected) && !said.contains("similar"),
            "{word}: {said}"
        );
    }
    assert!(
        failed(&stack, "statsu", 2).contains("stat"),
        "typing errors are clap's"
    );
}

#[test]
fn events_are_printed_as_they_come() {
    let stack = Stack::start(TWO);
    let pid = stack.wait_pids("worker", 1)[&1];
    let log = stack.kernel.directory().join("events");
    let mut child = papactl(&stack)
        .args(["listen", "watcher.worker.", "--since", "0"])
        .stdout(fs::File::create(&log).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let events = || -> Vec<Value> {
        let text = fs::read_to_string(&log).unwrap();
        let whole = text.lines().filter(|line| line.ends_with('}'));
        whole
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    wait_until("the start is told", || events().len() >= 2);
    stack.request("stop", "worker");
    wait_until("the stop is told", || {
        events()
            .iter()
            .any(|event| event["topic"] == "watcher.worker.stop")
    });
    let all = events();
    assert_eq!(all[0]["process_pid"], pid);
    assert!(
        all.iter().all(|event| event["watcher"] == "worker"),
        "{all:?}"
    );
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn the_doctor_finds_what_differs_from_the_file() {
    let stack = Stack::start(TWO);
    stack.wait_pids("web", 2);
    let healthy = json(&stack, "doctor");
    let findings = healthy["findings"].as_array().unwrap();
    assert!(
        findings.iter().all(|finding| finding["level"] == "ok"),
        "{healthy}"
    );
    let of = |about: &str| findings.iter().any(|finding| finding["about"] == about);
    assert!(
        ["kernel", "claim", "ledger", "held", "logs", "drift", "file"]
            .iter()
            .all(|about| of(about))
    );
    let ledgers: Vec<&str> = findings
        .iter()
        .filter(|finding| finding["about"] == "ledger")
        .filter_map(|finding| finding["text"].as_str())
        .collect();
    for name in ["circus.web.1", "circus.web.2", "circus.worker.1"] {
        let line = ledgers.iter().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("{name} in {ledgers:?}"));
        assert!(line.contains("bytes captured = "), "{line}");
    }
    let path = stack.kernel.directory().join("stack.ini");
    let ini = fs::read_to_string(&path).unwrap();
    fs::write(&path, ini.replace("numprocesses = 2", "numprocesses = 3")).unwrap();
    let printed = done(&stack, "doctor");
    assert!(
        printed.contains("notice") && printed.contains("reloadconfig"),
        "{printed}"
    );
    fs::write(&path, "[watcher:web]\nnonsense\n").unwrap();
    let output = run(&stack, "doctor");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stdout).contains("stack.ini:2"),
        "{}",
        text(&output.stdout)
    );
}

#[test]
fn the_kernel_is_shown_dumped_and_started_anew() {
    let stack = Stack::start(TWO);
    let pids = stack.wait_pids("web", 2);
    let before = json(&stack, "kernel status")["kernel"]["incarnation"]
        .as_u64()
        .unwrap();
    assert!(done(&stack, "kernel status").contains("processes  3 running of 3"));
    assert!(done(&stack, "kernel upgrade").contains("3 of 3 processes run on"));
    let after = json(&stack, "kernel status")["kernel"]["incarnation"]
        .as_u64()
        .unwrap();
    assert!(after > before);
    // Tried, refused, forced by a relative path, and with the keeper.
    let tried = done(&stack, "kernel upgrade --dry-run");
    assert!(
        tried.contains("nothing was changed") && tried.contains("3 processes"),
        "{tried}"
    );
    let output = run(&stack, "kernel upgrade --binary /bin/false");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("/bin/false") && said.contains("serves on"),
        "{said}"
    );
    assert!(
        said.contains("`--force`") && !said.contains("`force`"),
        "{said}"
    );
    let before = json(&stack, "kernel status")["kernel"].clone();
    let keeper = &before["keeper"];
    let upgraded = json(&stack, "kernel upgrade --keeper")["kernel"].clone();
    assert_ne!(&upgraded["keeper"], keeper, "{upgraded}");
    assert_ne!(upgraded["pid"], before["pid"], "{upgraded}");
    assert_eq!(upgraded["check"]["unreadable_records"], 0, "{upgraded}");
    // The kernel is another process now, and nobody has connected anew.
    let pid = json(&stack, "kernel status")["kernel"]["pid"].clone();
    assert_eq!(pid, upgraded["pid"]);
    assert_eq!(json(&stack, "status")["manager"]["kernel_pid"], pid);
    let doctor = done(&stack, "doctor");
    assert!(doctor.contains(&format!("pid {pid}, version")), "{doctor}");
    let dump = json(&stack, "kernel dump");
    assert_eq!(dump["processes"].as_array().unwrap().len(), 3);
    assert_eq!(dump["sockets"][0]["name"], "circus.api");
    assert_eq!(stack.wait_pids("web", 2), pids);
}

#[test]
fn the_manager_is_found_or_looked_for() {
    let stack = Stack::start(TWO);
    // The one that runs is meant, also by its file and its name.
    for line in [
        "status",
        "status --namespace circus",
        "status --config stack.ini",
    ] {
        assert!(done(&stack, line).contains("Web"), "{line}");
    }
    let said = failed(&stack, "status --namespace other", 1);
    assert!(
        said.contains("other") && said.contains("papactl up"),
        "{said}"
    );
    // Another one beside it: now it must be said which.
    let ini = format!(
        "[circus]\nnamespace = second\npapa_endpoint = unix:{}\n[watcher:x]\ncmd = sleep 1000\n",
        stack.kernel.socket_path().display()
    );
    fs::write(stack.kernel.directory().join("second.ini"), ini).unwrap();
    assert!(done(&stack, "up second.ini").contains("x  active"));
    let said = failed(&stack, "status", 2);
    assert!(
        said.contains("circus, second") && said.contains("--namespace"),
        "{said}"
    );
    assert!(done(&stack, "list --namespace second").contains('x'));
    assert!(done(&stack, "quit --config second.ini").contains("1 worker runs on"));
    assert!(done(&stack, "status").contains("Web"));
}

#[test]
fn completions_and_help_need_no_manager() {
    let stack = Stack::start(TWO);
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            done(&stack, &format!("completions {shell}")).contains("reloadconfig"),
            "{shell}"
        );
    }
    let help = done(&stack, "help reload");
    assert!(
        help.contains("Example") && help.contains("--sequential"),
        "{help}"
    );
    assert_eq!(done(&stack, "reopenlogs"), "ok\n");
}

#[test]
fn quit_leaves_the_workers_and_down_leaves_nothing() {
    let mut stack = Stack::start(TWO);
    let pids = stack.wait_pids("web", 2);
    assert_eq!(done(&stack, "quit"), "manager: ended; 3 workers run on\n");
    assert!(stack.wait_manager_end().success());
    assert!(failed(&stack, "status", 1).contains("papactl up FILE"));
    stack.start_manager();
    assert_eq!(stack.wait_pids("web", 2), pids);
    let reply = json(&stack, "down");
    assert_eq!(
        (&reply["status"], &reply["manager"]),
        (&json!("ok"), &json!("ended"))
    );
    assert!(pids.values().all(|pid| !procfs::alive(*pid)));
}

#[test]
fn one_watcher_without_workers_kept_the_others_from_what_all_were_to_get() {
    let stack = Stack::start(
        "[watcher:early]\ncmd = /no/such/program\nmax_retry = 0\n\
         [watcher:late]\ncmd = sleep 1000\ngraceful_timeout = 1\n\
         [watcher:slow]\ncmd = sleep 1000\nready = tcp:127.0.0.1:1\nready_timeout = 1000\n",
    );
    stack.wait_pids("late", 1);
    stack.wait_pids("slow", 1);
    wait_until("it is given up", || {
        stack.message("early").starts_with("given up")
    });
    let before = stack.pids("late")[&1];
    let said = failed(&stack, "signal early late TERM", 1);
    assert!(said.contains("early has no workers"), "{said}");
    wait_until("the other got the signal", || {
        stack.pids("late").get(&1).is_some_and(|pid| *pid != before)
    });
    assert_eq!(done(&stack, "set lat* numprocesses 2"), "ok\n");
    stack.wait_pids("late", 2);
    let said = failed(&stack, "status nope", 1);
    assert!(said.contains("papactl list"), "{said}");
    let said = failed(&stack, "scale late many", 2);
    assert!(said.contains("papactl scale web 4"), "{said}");
    // What has nothing to say says so.
    let silent = text(&run(&stack, "logs slow").stderr);
    assert!(silent.contains("nothing is there to show"), "{silent}");
    let status = done(&stack, "status slow");
    assert!(status.contains("not ready yet"), "{status}");
}
