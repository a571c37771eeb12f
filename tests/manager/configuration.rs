//! The file and what it names are changed under a running manager: moved, emptied, linked
//! elsewhere, mended.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use serde_json::{Value, json};

use crate::journal::wait_up;
use crate::stack::Stack;
use papa_harness::{free_port, wait_until};

#[track_caller]
pub(crate) fn refused(reply: &Value) -> &str {
    assert_eq!(reply["status"], "error", "{reply}");
    reply["reason"].as_str().unwrap()
}

#[track_caller]
pub(crate) fn reload(stack: &Stack) -> Value {
    stack.ask("reloadconfig", &json!({"waiting": true}))
}

#[track_caller]
pub(crate) fn ok(reply: &Value) {
    assert_eq!(reply["status"], "ok", "{reply}");
}

pub(crate) fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// A stack whose watchers a and b come from `conf.d/`.
fn with_includes() -> Stack {
    let main = "[circus]\ninclude = DIR/conf.d/*.ini\n[watcher:main]\ncmd = sleep 1000\n";
    let stack = Stack::start_after(main, |kernel| {
        for name in ["a", "b"] {
            write(
                &kernel.directory().join(format!("conf.d/{name}.ini")),
                &format!("[watcher:{name}]\ncmd = sleep 1000\n"),
            );
        }
    });
    for name in ["main", "a", "b"] {
        wait_up(&stack, name);
    }
    stack
}

#[test]
fn an_include_that_is_gone_for_a_moment_stops_nobody() {
    let stack = with_includes();
    let directory = stack.kernel.directory().join("conf.d");
    let away = stack.kernel.directory().join("away");
    let before = stack.pids("a");

    fs::rename(&directory, &away).unwrap();
    let reply = reload(&stack);
    assert!(refused(&reply).contains("conf.d cannot be read"), "{reply}");

    fs::create_dir(&directory).unwrap();
    let reply = reload(&stack);
    let reason = refused(&reply);
    assert!(reason.contains("matches no file any more"), "{reason}");
    assert!(reason.contains("--accept-removal"), "{reason}");
    fs::remove_dir(&directory).unwrap();
    fs::rename(&away, &directory).unwrap();

    let file = directory.join("a.ini");
    let text = fs::read_to_string(&file).unwrap();
    fs::remove_file(&file).unwrap();
    symlink("nowhere", &file).unwrap();
    let reply = reload(&stack);
    assert!(refused(&reply).contains("a.ini: cannot be read"), "{reply}");
    fs::remove_file(&file).unwrap();

    // A mark of some editors and a section that lost its keys say as little as nothing.
    for nothing in ["", "\u{feff}", "[watcher:a]\n"] {
        fs::write(&file, nothing).unwrap();
        let plan = stack.ask("reloadconfig", &json!({"plan": true}));
        ok(&plan);
        let needs = plan["needs_acceptance"].as_str().unwrap();
        assert!(needs.contains("a.ini has become empty"), "{needs}");
        let reply = reload(&stack);
        assert!(refused(&reply).contains("1 of 3 workers (a)"), "{reply}");
        assert_eq!(stack.pids("a"), before, "nobody was stopped");
    }

    let accept = json!({"waiting": true, "accept_removal": true});
    ok(&stack.ask("reloadconfig", &accept));
    assert_eq!(stack.request("status", "a")["status"], "error");
    fs::write(&file, text).unwrap();
    ok(&reload(&stack));
    wait_up(&stack, "a");
}

#[test]
fn a_file_that_would_stop_most_of_what_runs_is_asked_about() {
    let one = "[watcher:a]\ncmd = sleep 1000\n";
    let all = format!("{one}[watcher:b]\ncmd = sleep 1000\nnumprocesses = 3\n");
    let stack = Stack::start(&all);
    stack.wait_pids("b", 3);
    wait_up(&stack, "a");
    let before = stack.pids("b");
    for less in [
        "",
        one,
        &all.replace("numprocesses = 3", "numprocesses = 0"),
    ] {
        stack.rewrite(less);
        let reply = reload(&stack);
        assert!(refused(&reply).contains("--accept-removal"), "{reply}");
        let reply = stack.request_all("restart");
        assert!(refused(&reply).contains("--accept-removal"), "{reply}");
    }
    assert_eq!(stack.pids("b"), before);
    // Less than half needs no word.
    stack.rewrite(&all.replace("numprocesses = 3", "numprocesses = 2"));
    ok(&reload(&stack));
    stack.wait_pids("b", 2);
}

#[test]
fn a_corrected_file_brings_back_a_watcher_that_was_given_up() {
    let broken = "[watcher:fine]\ncmd = sleep 1000\n\
        [watcher:bad]\ncmd = /no/such/program\nmax_retry = 1\nbackoff_first = 0.01\nbackoff_max = 0.01\n";
    let stack = Stack::start(broken);
    wait_up(&stack, "fine");
    wait_until("it is given up", || stack.state("bad") == "stopped");
    // A change elsewhere is no reason to try again, one of its own is.
    stack.rewrite(&broken.replace("/no/such/program", "sleep 1000"));
    ok(&reload(&stack));
    wait_up(&stack, "bad");

    // An operator's stop is not giving up.
    ok(&stack.request("stop", "bad"));
    stack.rewrite(&broken.replace("/no/such/program", "sleep 1001"));
    ok(&reload(&stack));
    assert_eq!(stack.state("bad"), "stopped");
}

#[test]
fn a_program_that_was_mended_on_disk_did_not_bring_its_watcher_back() {
    let stack = Stack::start(
        "[watcher:fine]\ncmd = sleep 1000\n\
         [watcher:bad]\ncmd = DIR/program\nmax_retry = 1\nbackoff_first = 0.01\nbackoff_max = 0.01\n",
    );
    wait_up(&stack, "fine");
    wait_until("it is given up", || stack.state("bad") == "stopped");
    let step = |action: &str, why: &str| {
        let plan = stack.ask("reloadconfig", &json!({"plan": true}));
        ok(&plan);
        let text = plan["plan"].to_string();
        assert!(text.contains(action) && text.contains(why), "{text}");
    };
    step("keep", "papactl start bad");
    ok(&reload(&stack));
    assert_eq!(stack.state("bad"), "stopped", "nothing has changed");

    let program = stack.kernel.directory().join("program");
    write(&program, "#!/bin/sh\nexec sleep 1000\n");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    step("change", "tried again");
    assert_eq!(stack.state("bad"), "stopped", "a plan does nothing");
    ok(&reload(&stack));
    wait_up(&stack, "bad");
    let plan = stack.ask("reloadconfig", &json!({"plan": true}));
    assert_eq!(plan["plan"], json!([]), "{plan}");
}

#[test]
fn every_kind_of_correction_brings_back_a_watcher_that_was_given_up() {
    let (taken, free) = (free_port(), free_port());
    let given_up = |name: &str, more: &str| {
        format!(
            "[watcher:{name}]\ncmd = /no/such/program\nmax_retry = 0\nbackoff_first = 0.01\n{more}"
        )
    };
    // None of these corrections makes the program appear, so each is seen by another attempt.
    let main = format!(
        "[circus]\ninclude = DIR/conf.d/*.ini\n[watcher:fine]\ncmd = sleep 1000\nnumprocesses = 9\n{}{}{}[env:env]\nA = 1\n[socket:web]\nport = {taken}\n",
        given_up("count", "numprocesses = 1\n"),
        given_up("env", ""),
        given_up("socket", "use_sockets = yes\n"),
    );
    let stack = Stack::start_after(&main, |kernel| {
        write(
            &kernel.directory().join("conf.d/part.ini"),
            &given_up("part", "shell = no\n"),
        );
    });
    let attempts = |name: &str| {
        let line = format!("watcher=\"{name}\" reason=\"given up after");
        stack.manager_log().matches(&line).count()
    };
    let names = ["count", "env", "socket", "part"];
    for name in names {
        wait_until("it is given up", || attempts(name) == 1);
    }
    stack.rewrite(
        &main
            .replace("numprocesses = 1\n", "numprocesses = 2\n")
            .replace("A = 1", "A = 2")
            .replace(&taken.to_string(), &free.to_string()),
    );
    let part = stack.kernel.directory().join("conf.d/part.ini");
    fs::write(&part, given_up("part", "stop_children = yes\n")).unwrap();
    ok(&reload(&stack));
    for name in names {
        wait_until("it is tried again", || attempts(name) >= 2);
    }
}

#[test]
fn a_renamed_watcher_that_binds_its_own_port_can_be_renamed() {
    let port = free_port();
    let section = |name: &str| {
        format!(
            "[watcher:other]\ncmd = sleep 1000\n[watcher:third]\ncmd = sleep 1000\n[watcher:{name}]\ncmd = python3 -m http.server --bind 127.0.0.1 {port}\n\
             ready = http://127.0.0.1:{port}/\nready_timeout = 20\nmax_retry = 1\nbackoff_first = 0.05\n"
        )
    };
    let stack = Stack::start(&section("web"));
    wait_up(&stack, "web");
    stack.rewrite(&section("site"));
    ok(&reload(&stack));
    assert_eq!(stack.state("site"), "active");
    assert_eq!(stack.request("status", "web")["status"], "error");
}

#[test]
fn a_file_of_which_half_was_saved_stops_nobody() {
    let whole = "[watcher:a]\ncmd = sleep 1000\n[watcher:b]\ncmd = sleep 1000\n[watcher:c]\ncmd = sleep 1000\n";
    let stack = Stack::start(whole);
    for name in ["a", "b", "c"] {
        wait_up(&stack, name);
    }
    let before = ["a", "b", "c"].map(|name| stack.pids(name));
    let cut = |left: &str| {
        whole
            .find("[watcher:c]")
            .map(|at| format!("{}{left}", &whole[..at]))
    };
    for (left, part) in [
        ("[watc", "stack.ini:5"),
        ("[watcher:c]\n", "[watcher:c] has no keys any more"),
        ("[watcher:c]\ncm", "stack.ini:6"),
        ("[watcher:c]\ncmd =", "stack.ini:"),
    ] {
        stack.rewrite(&cut(left).unwrap());
        let reply = reload(&stack);
        assert!(refused(&reply).contains(part), "{left:?}: {reply}");
        assert!(!refused(&reply).contains("JSON"), "{left:?}: {reply}");
        assert_eq!(
            ["a", "b", "c"].map(|name| stack.pids(name)),
            before,
            "{left:?}"
        );
    }
    stack.rewrite(whole);
    ok(&reload(&stack));
    assert_eq!(["a", "b", "c"].map(|name| stack.pids(name)), before);
}

#[test]
fn a_plan_shows_values_as_a_file_has_them_and_no_key_twice() {
    let first = "[watcher:a]\ncmd = sleep 1000\nstdout_stream.filename = DIR/a.log\n\
        stderr_stream.class = syslog\n";
    let stack = Stack::start(first);
    wait_up(&stack, "a");
    ok(&stack.ask(
        "set",
        &json!({"name": "a", "options": {"max_age": 200.5, "graceful_timeout": 4}, "waiting": true}),
    ));
    stack.rewrite(&format!(
        "{first}stdout_stream.max_bytes = 1000\nstderr_stream.facility = local3\ngraceful_timeout = 7\n"
    ));
    let plan = stack.ask("reloadconfig", &json!({"plan": true}));
    ok(&plan);
    let text = plan["plan"].to_string();
    for sign in ["{ ", "File(", "Syslog", "Some(", "PathBuf", "StreamConfig"] {
        assert!(!text.contains(sign), "{sign:?} in {text}");
    }
    for line in [
        r#"stdout_stream.max_bytes: \"0\" -> \"1000\""#,
        r#"stderr_stream.facility: \"daemon\" -> \"local3\""#,
        r#"graceful_timeout: \"4\" -> \"7\""#,
        r#"max_age: \"200.5\" at run time"#,
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert_eq!(text.matches("graceful_timeout").count(), 1, "{text}");
}
