//! Verbs that only look: status, list, options, stats, sockets, events, doctor.

use super::*;

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
