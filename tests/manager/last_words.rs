//! What a worker wrote before it ended is there afterwards, also without a log file: it is what
//! says why.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use serde_json::{Value, json};

use crate::control::Session;
use crate::stack::Stack;
use crate::starts::fails;
use papa_harness::{Site, wait_until};

#[test]
fn what_a_worker_without_a_log_wrote_before_it_died_was_gone() {
    let site = Site::new(
        "[watcher:bad]\ncmd = sh -c 'echo first; echo no module named foo >&2; exit 7'\ncopy_env = true\n",
    );
    let up = fails(
        &site,
        "up site.ini",
        &["not up: bad", "exited with 7, ran 0."],
    );
    // In the line of the watcher, and whole below it.
    let words: Vec<&str> = up.split_whitespace().collect();
    assert!(
        words
            .join(" ")
            .contains("its last line: \"no module named foo\""),
        "{up}"
    );
    assert!(up.contains("\nfirst\nno module named foo\n"), "{up}");
    fails(
        &site,
        "start bad",
        &["its last line: \"no module named foo\"", "\nfirst\n"],
    );
    let logs = site.done("logs bad");
    assert!(
        logs.contains("--- bad.1, pid ") && logs.contains("exited with 7"),
        "{logs}"
    );
    assert!(
        logs.contains("it wrote last:\nfirst\nno module named foo\n"),
        "{logs}"
    );
    // Both managers are gone, the kernel still knows.
    site.done("stop bad");
    site.done("quit");
    site.done("up site.ini");
    let logs = site.done("logs bad");
    assert!(logs.contains("\nfirst\nno module named foo\n"), "{logs}");
    let lines = site.done("logs bad --json");
    let line: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&line["line"], &line["ended"]),
        (&json!("first"), &json!("exited with 7"))
    );
    // Nothing of it stays when the watcher goes.
    let dump = |site: &Site| site.done("kernel dump");
    assert!(dump(&site).contains("manager.ends.bad"));
    site.done("rm bad");
    wait_until("it is forgotten", || {
        !dump(&site).contains("manager.ends.bad")
    });
}

#[test]
fn what_said_why_a_reload_was_taken_back_was_gone() {
    let site = Site::new("[watcher:web]\ncmd = sh -c '. DIR/web'\ncopy_env = true\n");
    let script = site.scratch.directory().join("web");
    fs::write(&script, "exec sleep 1000\n").unwrap();
    site.done("up site.ini");
    fs::write(&script, "echo port in use; exit 3\n").unwrap();
    fails(
        &site,
        "reload web",
        &[
            "rolled back",
            "exited with 3",
            "its last line: \"port in use\"",
            "\nport in use\n",
        ],
    );
    // Also of one that runs and is never ready.
    fs::write(&script, "exec sleep 1000\n").unwrap();
    let file = site.scratch.directory().join("site.ini");
    let ini = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{ini}ready = notify\nready_timeout = 1\n")).unwrap();
    fs::write(&script, "echo waits for the moon; exec sleep 1000\n").unwrap();
    fails(&site, "reloadconfig", &["not ready within 1 s"]);
    wait_until("its words are kept", || {
        site.done("logs web").contains("\nwaits for the moon\n")
    });
}

#[test]
fn what_said_why_a_change_failed_was_shown_by_up_start_and_restart_alone() {
    let site = Site::new("[watcher:web]\ncmd = sh -c '. DIR/web'\ncopy_env = true\n");
    let script = site.scratch.path("web");
    fs::write(&script, "exec sleep 1000\n").unwrap();
    site.done("up site.ini");
    fs::write(&script, "echo no port; echo port in use >&2; exit 3\n").unwrap();
    let wanted = ["exited with 3", "it wrote last:\nno port\nport in use\n"];
    fails(&site, "set web stop_children true env A=1", &wanted);
    fails(&site, "incr web", &wanted);
    site.done("decr web --no-wait");
    let file = site.scratch.directory().join("site.ini");
    let before = fs::read_to_string(&file).unwrap();
    // Of a watcher that is gone again when its failure is told.
    let more = format!("[watcher:other]\ncmd = sh {script}\ncopy_env = true\n");
    fs::write(&file, format!("{before}{more}")).unwrap();
    let said = fails(&site, "reloadconfig", &wanted);
    assert!(said.contains("--- other.1, pid "), "{said}");
    let changed = format!("{before}[env:web]\nA = 2\n");
    fs::write(&file, changed).unwrap();
    fails(&site, "reloadconfig", &wanted);
    fs::write(&file, before).unwrap();
    let line = format!("add --start late sh {script}");
    fails(&site, &line, &wanted);
}

#[test]
fn where_the_last_words_are_in_a_log_file_a_failure_showed_none() {
    let site = Site::new(
        "[watcher:web]\ncmd = sh -c '. DIR/web'\ncopy_env = true\n\
         stdout_stream.class = FileStream\nstdout_stream.filename = DIR/out.log\n\
         stderr_stream.class = FileStream\nstderr_stream.filename = DIR/err.log\n",
    );
    let (out, err) = (site.scratch.path("out.log"), site.scratch.path("err.log"));
    let ends = |path: &str, lines: &str| format!("--- its log {path} ends with:\n{lines}");
    let script = site.scratch.path("web");
    fs::write(&script, "echo port in use >&2; exit 3\n").unwrap();
    let nothing = format!("--- it wrote nothing to its log {out}\n");
    for line in ["up site.ini", "restart web"] {
        fails(
            &site,
            line,
            &["exited with 3", &nothing, &ends(&err, "port in use\n")],
        );
    }
    fs::write(&script, "echo serves; exec sleep 1000\n").unwrap();
    site.done("start web");
    fs::write(&script, "seq 1 100; exit 4\n").unwrap();
    let ten: String = (91..=100).map(|number| format!("{number}\n")).collect();
    for line in ["reload web", "set web env A=1", "incr web"] {
        fails(&site, line, &["exited with 4", &ends(&out, &ten)]);
    }
}

#[test]
fn events_say_how_a_worker_ended_and_what_it_wrote_last() {
    let stack = Stack::start(
        "[watcher:w]\ncmd = sh -c 'printf \"\\033[31mred\\n\"; kill -SEGV $$'\ncopy_env = true\n\
         autostart = false\nflapping.attempts = 2\nflapping.window = 60\nflapping.max_retry = 0\n\
         [watcher:calm]\ncmd = sleep 1000\n",
    );
    stack.request_now("start", "w");
    wait_until("it is given up", || stack.state("w") == "stopped");
    stack.request("stop", "calm");
    let mut listener = Session::connect(&stack);
    listener.command("listen", &json!({"since": 0}));
    for topic in ["watcher.w.reap", "watcher.w.gave_up"] {
        let event = listener.event(topic);
        assert_eq!(event["wid"], 1, "{event}");
        assert_eq!(event["exit_code"], -11, "{event}");
        assert_eq!(event["asked"], false, "{event}");
        assert_eq!(event["tail"], json!(["\u{1b}[31mred"]), "{event}");
        assert!(event["ran"].as_f64().unwrap() < 30.0, "{event}");
        assert!(event["core"].is_boolean(), "{event}");
    }
    assert_eq!(listener.event("watcher.calm.reap")["asked"], true);
    let message = stack.message("w");
    assert!(
        message.contains("given up: worker 1 was ended by signal 11"),
        "{message}"
    );
    assert!(
        message.contains("its last line: \"\\u{1b}[31mred\""),
        "{message}"
    );
}

#[test]
fn a_core_dump_is_told_where_there_was_one() {
    let script = |limit: &str| format!("ulimit -c {limit}; kill -SEGV $$");
    let watcher = |name: &str, limit: &str| {
        format!(
            "[watcher:{name}]\ncmd = sh -c '{}'\nworking_dir = DIR/logs\ncopy_env = true\nautostart = false\nrespawn = false\n",
            script(limit)
        )
    };
    let stack = Stack::start(&(watcher("dumps", "unlimited") + &watcher("silent", "0")));
    // Whether there is a dump is the system's to say: a pattern may name a program, a hard limit
    // may forbid it.
    let dumped = |limit: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", &script(limit)]);
        let ended = command.current_dir(stack.kernel.path("logs")).status();
        ended.unwrap().core_dumped()
    };
    assert!(!dumped("0"));
    let mut listener = Session::connect(&stack);
    listener.command("listen", &json!({"since": 0}));
    for (name, limit) in [("dumps", "unlimited"), ("silent", "0")] {
        stack.request_now("start", name);
        let event = listener.event(&format!("watcher.{name}.reap"));
        assert_eq!(event["core"], dumped(limit), "{event}");
        let told = if dumped(limit) {
            "signal 11 (core dumped), ran "
        } else {
            "signal 11, ran "
        };
        wait_until("the status says how it ended", || {
            stack.message(name).contains(told)
        });
    }
}

#[test]
fn of_a_worker_that_writes_without_end_only_the_last_lines_are_kept() {
    let site = Site::new(
        "[watcher:loud]\ncmd = sh -c 'seq 1 100000; exit 5'\nrespawn = false\ncopy_env = true\n",
    );
    fails(
        &site,
        "up site.ini",
        &["its last line: \"100000\"", "\n99991\n", "54 lines before"],
    );
    let logs = site.done("logs -n all loud");
    assert_eq!(logs.lines().count(), 1 + 64, "{logs}");
    assert!(logs.ends_with("\n99999\n100000\n"), "{logs}");
}
