//! `papactl` where what it looks for is somewhere else: the manager in another runtime directory,
//! the port with somebody else.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Output};
use std::thread;

use papa_harness::{
    Kernel, Scratch, binary, copy_program, free_port, is_root, private_command, skipped,
};

const NOBODY: u32 = 65534;
/// A user of no container either: the number of `nobody` may stand for users of other user
/// namespaces.
const SOMEBODY: u32 = 12345;
/// Every verb that asks the manager, with what it needs.
const VERBS: [&str; 21] = [
    "status",
    "start web",
    "stop web",
    "restart web",
    "reload web",
    "reloadconfig",
    "reread",
    "scale web 2",
    "incr web",
    "set web numprocesses 2",
    "get web cmd",
    "options web",
    "signal web HUP",
    "list",
    "stats",
    "logs",
    "listsockets",
    "reopenlogs",
    "upgrade",
    "quit",
    "down",
];

fn papactl(directory: &Path, words: &str) -> Command {
    let mut command = private_command(&binary("papactl"), directory);
    command.args(words.split_whitespace());
    command
}

fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&text).into_owned()
}

/// A file with one watcher and a kernel at `port`, in the directory of `scratch`.
fn ini(scratch: &Scratch, port: u16) -> String {
    let path = scratch.path("site.ini");
    let text = format!(
        "[circus]\npapa_endpoint = tcp://127.0.0.1:{port}\n[watcher:web]\ncmd = sleep 1000\n"
    );
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn verbs_said_that_no_manager_runs_when_one_ran_in_another_runtime_directory() {
    let scratch = Scratch::new();
    let file = ini(&scratch, free_port());
    let up = papactl(scratch.directory(), &format!("up {file}"))
        .output()
        .unwrap();
    assert!(up.status.success(), "{}", said(&up));
    let status = papactl(scratch.directory(), "status --json")
        .output()
        .unwrap();
    let before: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    let pid = format!("pid {}", before["manager"]["pid"]);
    let reach = format!(
        "`XDG_RUNTIME_DIR={} papactl status`",
        scratch.path("").trim_end_matches('/')
    );

    let empty = tempfile::tempdir().unwrap();
    let missing = empty.path().join("not/made");
    let long = empty.path().join("x".repeat(100));
    fs::create_dir(&long).unwrap();
    let mut places = vec![
        (empty.path(), "no manager answers"),
        (missing.as_path(), "which does not exist"),
        (long.as_path(), "107"),
    ];
    let foreign = tempfile::tempdir().unwrap();
    if is_root() {
        chown(foreign.path(), Some(NOBODY), None).unwrap();
        places.push((foreign.path(), "belongs to uid 65534"));
    }
    for (place, cause) in places {
        // One verb stands for all where the cause alone differs.
        let verbs = if place == empty.path() {
            &VERBS[..]
        } else {
            &VERBS[..1]
        };
        for verb in verbs {
            let output = papactl(place, &format!("--config {file} {verb}"))
                .output()
                .unwrap();
            let said = said(&output);
            assert_eq!(output.status.code(), Some(1), "{verb}: {said}");
            for part in [cause, pid.as_str(), reach.as_str()] {
                assert!(said.contains(part), "{verb}, {part}: {said}");
            }
        }
        let doctor = papactl(place, &format!("--config {file} doctor --json"))
            .output()
            .unwrap();
        assert!(said(&doctor).contains(&pid), "{}", said(&doctor));
        // The kernel can be asked without the manager.
        assert!(
            said(&doctor).contains("start number 1"),
            "{}",
            said(&doctor)
        );
    }
    let status = papactl(scratch.directory(), "status --json")
        .output()
        .unwrap();
    let after: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(
        before["watchers"][0]["workers"],
        after["watchers"][0]["workers"]
    );
    let down = papactl(scratch.directory(), "down").output().unwrap();
    assert!(down.status.success(), "{}", said(&down));
}

/// What each verb says of `port` is one line that names who has it and a way out that works.
fn assert_says_who_has_it(mut command: impl FnMut(&str) -> Command, port: u16, who: &[&str]) {
    for verb in [
        "up FILE",
        "down --config FILE",
        "kernel status --config FILE",
    ] {
        let output = command(verb).output().unwrap();
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{verb}: {said}");
        assert_eq!(said.lines().count(), 1, "{verb}: {said}");
        for part in who.iter().chain(&[
            format!("port {port} is taken by").as_str(),
            "papa_endpoint = tcp://127.0.0.1:",
        ]) {
            assert!(said.contains(part), "{verb}, {part}: {said}");
        }
    }
}

#[test]
fn a_port_with_another_program_was_told_without_whose_it_is() {
    let scratch = Scratch::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let file = ini(&scratch, port);
    thread::spawn(move || {
        for stream in listener.incoming() {
            // Who called may be gone.
            let _ = stream.and_then(|mut stream| stream.write_all(b"SSH-2.0-x\r\n"));
        }
    });
    let own = format!("pid {}", std::process::id());
    let command = |verb: &str| papactl(scratch.directory(), &verb.replace("FILE", &file));
    assert_says_who_has_it(command, port, &[&own, "no papa kernel"]);
}

#[test]
fn two_users_on_one_port_got_two_unclear_texts() {
    if !is_root() {
        return skipped("another user needs root");
    }
    // Theirs, as root sees it.
    let kernel = Kernel::builder().nobody().start();
    let scratch = Scratch::new();
    let file = ini(&scratch, kernel.port());
    let command = |verb: &str| papactl(scratch.directory(), &verb.replace("FILE", &file));
    assert_says_who_has_it(command, kernel.port(), &["papa: ", "user nobody"]);
    drop(kernel);

    // Root's, as they see it: a kernel of root's is trusted, and does not serve them.
    let kernel = Kernel::start();
    let scratch = Scratch::new();
    let directory = scratch.directory();
    let program = directory.join("papactl");
    copy_program(&binary("papactl"), &program);
    let file = ini(&scratch, kernel.port());
    chown(directory, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let command = |verb: &str| {
        let mut command = private_command("setpriv".as_ref(), directory);
        command
            .args(["--reuid=12345", "--regid=12345", "--clear-groups"])
            .arg(&program)
            .args(verb.replace("FILE", &file).split_whitespace())
            .current_dir("/");
        command
    };
    assert_says_who_has_it(
        command,
        kernel.port(),
        &["user root", "serves only that user"],
    );
}
