//! What each kind of difference asks for.

use super::*;
use crate::{Surroundings, load};

const BASE: &str = "[socket:a]\nport = 1\n[watcher:web]\ncmd = run\n";

fn config(text: &str) -> Config {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t.ini");
    std::fs::write(&path, text).unwrap();
    let around = Surroundings {
        environment: [("HOME".into(), "/root".into())].into(),
        directory: "/srv".into(),
    };
    load(&path, &around).unwrap()
}

fn plan(old: &str, new: &str) -> Plan {
    diff(&config(old), &config(new))
}

fn shown(old: &str, new: &str) -> String {
    lines(&plan(old, new))
}

/// One line for each thing that happens.
fn lines(plan: &Plan) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut say = |line: String| lines.push(line);
    for name in &plan.sockets.removed {
        say(format!("socket {name}: closed"));
    }
    for change in &plan.sockets.changed {
        let how = if change.recreated {
            "closed and opened again"
        } else {
            "changed in place"
        };
        let reasons = reasons(&change.keys, &[]);
        say(format!("socket {}: {how} ({reasons})", change.name));
    }
    for name in &plan.sockets.added {
        say(format!("socket {name}: opened"));
    }
    for name in &plan.watchers.removed {
        say(format!("{name}: removed"));
    }
    for change in &plan.watchers.changed {
        let how = match change.apply {
            Apply::InPlace => "changed in place",
            Apply::Roll => "rolled",
            Apply::Restart => "restarted, as a singleton cannot roll",
        };
        let reasons = reasons(&change.keys, &change.sockets);
        say(format!("{}: {how} ({reasons})", change.name));
    }
    for name in &plan.watchers.added {
        say(format!("{name}: added"));
    }
    for change in &plan.settings {
        say(format!(
            "[circus]: {}",
            reasons(std::slice::from_ref(change), &[])
        ));
    }
    for change in &plan.manager {
        let reasons = reasons(std::slice::from_ref(change), &[]);
        say(format!("[circus], after a restart: {reasons}"));
    }
    lines.into_iter().map(|line| line + "\n").collect()
}

fn reasons(keys: &[KeyChange], sockets: &[String]) -> String {
    let shown = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
    let keys = keys
        .iter()
        .map(|change| match (shown(&change.old), shown(&change.new)) {
            (Some(old), Some(new)) => format!("{} {old} -> {new}", change.key),
            _ => format!("{} changed", change.key),
        });
    let sockets = sockets.iter().map(|name| format!("socket {name} changed"));
    keys.chain(sockets).collect::<Vec<_>>().join(", ")
}

/// With the lines in the watcher's section before and after.
fn watcher(old: &str, new: &str) -> String {
    shown(&format!("{BASE}{old}"), &format!("{BASE}{new}"))
}

#[test]
fn equal_configurations_differ_in_nothing() {
    let plan = plan(BASE, BASE);
    assert!(plan.is_empty());
    assert_eq!(lines(&plan), "");
    assert_eq!(
        watcher("", "numprocesses = 1\nstop_signal = 15\n# note\n"),
        ""
    );
}

#[test]
fn policy_changes_in_place() {
    for (old, new, reason) in [
        ("", "numprocesses = 4", "numprocesses 1 -> 4"),
        (
            "stop_signal = QUIT",
            "stop_signal = INT",
            "stop_signal SIGQUIT -> SIGINT",
        ),
        ("", "max_age = 60", "max_age 0 -> 60"),
        (
            "",
            "health = tcp:h:1",
            "health changed, health_interval changed, health_retries changed, health_timeout changed",
        ),
        (
            "flapping.window = 1",
            "flapping.window = 2",
            "flapping.window 1 -> 2",
        ),
        (
            "ready = tcp:h:1",
            "ready = tcp:h:2",
            "ready tcp:h:1 -> tcp:h:2",
        ),
        (
            "",
            "stdout_stream.filename = x",
            "stdout_stream.class changed, stdout_stream.filename changed",
        ),
        ("max_retry = -1", "", "max_retry -1 -> 5"),
        ("free = 1", "free = 2", "free 1 -> 2"),
        ("", "use_papa = no", "use_papa yes -> no"),
        ("", "singleton = yes", "singleton no -> yes"),
    ] {
        assert_eq!(
            watcher(old, new),
            format!("web: changed in place ({reason})\n")
        );
    }
}

#[test]
fn what_a_worker_is_started_with_rolls() {
    for (old, new, reason) in [
        ("", "args = -v", "cmd run -> run -v"),
        ("uid = 1", "uid = 2", "uid 1 -> 2"),
        ("", "rlimit_core =", "rlimit_core changed"),
        (
            "working_dir = /a",
            "working_dir = /b",
            "working_dir /a -> /b",
        ),
        ("", "ready = notify", "ready changed"),
        ("ready = fd:3", "ready = fd:4", "ready fd:3 -> fd:4"),
        (
            "",
            "stdout_stream.class = null",
            "close_child_stdout no -> yes, stdout_stream.class changed",
        ),
        ("", "copy_env = yes", "env.HOME changed"),
    ] {
        assert_eq!(watcher(old, new), format!("web: rolled ({reason})\n"));
    }
}

#[test]
fn a_singleton_restarts() {
    assert_eq!(
        watcher("singleton = yes", "singleton = yes\nargs = -v"),
        "web: restarted, as a singleton cannot roll (cmd run -> run -v)\n"
    );
}

#[test]
fn values_of_variables_are_never_shown() {
    let text = |secret: &str| format!("[env]\nTOKEN = {secret}\nOTHER = 1\n{BASE}");
    let plan = plan(&text("before"), &text("after"));
    assert_eq!(lines(&plan), "web: rolled (env.TOKEN changed)\n");
    let json = serde_json::to_string(&plan).unwrap();
    assert!(
        !json.contains("before") && !json.contains("after"),
        "{json}"
    );
    assert!(json.contains("{\"name\":\"web\",\"apply\":\"roll\",\"keys\":[{\"key\":\"env.TOKEN\"}],\"sockets\":[]}"), "{json}");
}

#[test]
fn watchers_and_sockets_come_and_go() {
    assert_eq!(
        shown(BASE, "[socket:b]\nport = 2\n[watcher:db]\ncmd = run\n"),
        "socket a: closed\nsocket b: opened\nweb: removed\ndb: added\n"
    );
}

#[test]
fn a_changed_socket_rolls_those_that_hold_it() {
    let text = |port: &str| {
        format!(
            "[socket:a]\nport = {port}\n[watcher:holds]\ncmd = x\nuse_sockets = yes\n[watcher:other]\ncmd = x\n[watcher:stdin]\ncmd = x\nstdin_socket = a\nsingleton = yes\n"
        )
    };
    assert_eq!(
        shown(&text("1"), &text("2")),
        "socket a: closed and opened again (port 1 -> 2)\nholds: rolled (socket a changed)\n\
         stdin: restarted, as a singleton cannot roll (socket a changed)\n"
    );
    assert_eq!(
        shown(&text("1"), &text("1\nreplace = yes")),
        "socket a: changed in place (replace no -> yes)\n"
    );
}

#[test]
fn a_new_socket_rolls_only_those_that_serve_it() {
    let old = "[socket:a]\nport = 1\n[watcher:a]\ncmd = x $(circus.sockets.a)\nuse_sockets = yes\n[watcher:all]\ncmd = x\nuse_sockets = yes\n";
    let new = format!("{old}[socket:b]\nport = 2\n");
    assert_eq!(
        shown(old, &new),
        "socket b: opened\nall: rolled (socket b changed)\n"
    );
}

#[test]
fn the_managers_own_keys_say_what_they_need() {
    assert_eq!(
        shown(
            BASE,
            &format!("[circus]\nnamespace = prod\nwarmup_delay = 2\n{BASE}")
        ),
        "[circus]: warmup_delay 0 -> 2\n[circus], after a restart: namespace circus -> prod\n"
    );
}
