//! The files of the manager itself: its pid, its log; and a bad configuration, which starts
//! nothing.

use std::fs;
use std::process::{Command, Output};

use nix::sys::signal::Signal;

use crate::stack::Stack;
use papa_harness::{Scratch, binary, private_command};

const INI: &str = "[circus]\npidfile = DIR/m.pid\n[watcher:w]\ncmd = sleep 600\n";

fn papactl(scratch: &Scratch, arguments: &[&str]) -> Output {
    private_command(&binary("papactl"), scratch.directory())
        .current_dir(scratch.directory())
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn the_pidfile_names_the_manager_and_goes_with_it() {
    let mut stack = Stack::start(INI);
    let pidfile = stack.kernel.directory().join("m.pid");
    let pid: i32 = fs::read_to_string(&pidfile)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert!(
        fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .unwrap()
            .contains("papa-manager")
    );
    // What a killed one leaves behind stops nobody.
    stack.kill_manager();
    assert!(pidfile.exists());
    stack.start_manager();
    stack.signal_manager(Signal::SIGTERM);
    assert!(stack.wait_manager_end().success());
    assert!(!pidfile.exists());
}

#[test]
fn a_pidfile_of_somebody_who_lives_refuses_the_start() {
    let mut stack = Stack::start(INI);
    stack.signal_manager(Signal::SIGTERM);
    assert!(stack.wait_manager_end().success());
    let pidfile = stack.kernel.directory().join("m.pid");
    let own = format!("{}\n", std::process::id());
    fs::write(&pidfile, &own).unwrap();
    let output = manager(&stack).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains(&format!("names process {}, which runs", own.trim())),
        "{text}"
    );
    assert_eq!(fs::read_to_string(&pidfile).unwrap(), own);
}

#[test]
fn a_bad_pidfile_left_a_kernel_running() {
    let scratch = Scratch::new();
    let directory = scratch.directory();
    fs::create_dir(directory.join("taken")).unwrap();
    let own = format!("{}\n", std::process::id());
    fs::write(directory.join("m.pid"), &own).unwrap();
    let endpoint = format!("papa_endpoint = ipc:{}/papa.sock", directory.display());
    for (pidfile, said) in [
        ("m.pid", "which runs"),
        ("taken", "is a directory"),
        ("no/such/m.pid", "No such file"),
    ] {
        let ini =
            format!("[circus]\n{endpoint}\npidfile = {pidfile}\n[watcher:w]\ncmd = sleep 600\n");
        fs::write(directory.join("f.ini"), ini).unwrap();
        for arguments in [&["up", "f.ini"][..], &["up", "--foreground", "f.ini"]] {
            let output = papactl(&scratch, arguments);
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{text}");
            assert!(text.contains("pidfile") && text.contains(said), "{text}");
            assert_eq!(output.stdout, b"", "nothing is started");
        }
    }
    assert!(
        !directory.join("papa.sock").exists(),
        "no kernel was started"
    );

    // What is seen only when the manager has started ends what was started for it.
    fs::create_dir(directory.join("bin")).unwrap();
    for program in ["papactl", "papa"] {
        papa_harness::copy_program(&binary(program), &directory.join("bin").join(program));
    }
    std::os::unix::fs::symlink("/bin/false", directory.join("bin/papa-manager")).unwrap();
    fs::write(
        directory.join("f.ini"),
        format!("[circus]\n{endpoint}\n[watcher:w]\ncmd = sleep 600\n"),
    )
    .unwrap();
    let output = private_command(&directory.join("bin/papactl"), directory)
        .current_dir(directory)
        .args(["up", "f.ini"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("kernel:  started") && text.contains("ended again"),
        "{text}"
    );
    papa_harness::wait_until("it is gone", || !directory.join("papa.sock").exists());
}

fn manager(stack: &Stack) -> Command {
    let mut command = private_command(&binary("papa-manager"), stack.kernel.directory());
    command
        .current_dir(stack.kernel.directory())
        .arg("--kernel")
        .arg(stack.kernel.socket_path())
        .arg("stack.ini");
    command
}

#[test]
fn check_reports_every_mistake_with_its_place() {
    let scratch = Scratch::new();
    fs::write(
        scratch.directory().join("bad.ini"),
        "[watcher:w]\ncmd = 'open\nnumproceses = 2\nstop_signal =  NOPE\n",
    )
    .unwrap();
    let output = papactl(&scratch, &["check", "bad.ini"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "bad.ini:2:7: error: cmd \"'open\": a quote (') is never closed\n\
         bad.ini:3:1: warning: numproceses is not known; did you mean numprocesses?\n\
         bad.ini:4:16: error: stop_signal \"NOPE\": expected a signal like TERM, SIGQUIT, RTMIN+1 or a number from 1 to 64\n\
         papactl: 2 mistakes, 1 warning; nothing would be started\n"
    );
    let output = papactl(&scratch, &["check", "--json", "bad.ini"]);
    assert_eq!(output.status.code(), Some(2));
    let reply: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (
            &reply["errors"][1]["line"],
            &reply["errors"][1]["column"],
            &reply["warnings"][0]["line"]
        ),
        (&4.into(), &16.into(), &3.into())
    );
    fs::write(
        scratch.directory().join("good.ini"),
        "[watcher:w]\ncmd = sleep 1\n",
    )
    .unwrap();
    let output = papactl(&scratch, &["check", "--strict", "good.ini"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("good.ini: no mistakes; 1 watcher, 0 sockets\n"),
        "{text}"
    );
}

#[test]
fn up_and_check_wrote_the_same_finding_in_two_ways() {
    let scratch = Scratch::new();
    fs::write(
        scratch.directory().join("bad.ini"),
        "[circus]\ninclude = part.ini\n[watcher:w]\ncmd = 'open\n",
    )
    .unwrap();
    let findings = |verb: &str| {
        let output = papactl(&scratch, &[verb, "bad.ini"]);
        assert_eq!(output.status.code(), Some(2));
        let text = String::from_utf8(output.stderr).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with("papactl: "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let checked = findings("check");
    assert_eq!(checked, findings("up"));
    assert_eq!(
        checked,
        [
            "bad.ini:2:11: error: include part.ini: cannot be read: No such file or directory (os error 2)",
            "bad.ini:4:7: error: cmd \"'open\": a quote (') is never closed",
        ]
    );
}

#[test]
fn check_names_what_is_not_there_and_strict_fails_for_it() {
    let scratch = Scratch::new();
    let file = scratch.directory().join("f.ini");
    let check = |arguments: &[&str], text: &str| {
        fs::write(&file, text).unwrap();
        let output = papactl(&scratch, &[&["check"], arguments, &["f.ini"]].concat());
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), errors)
    };
    let absent = "[watcher:w]\ncmd = /no/such/program\nworking_dir = /\n";
    let (code, said) = check(&[], absent);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(
        said,
        "f.ini:2:7: warning: cmd \"/no/such/program\": does not exist\n"
    );
    assert_eq!(check(&["--strict"], absent).0, Some(2));
    for (text, part) in [
        ("", "the file is empty"),
        ("[circus]\n", "there is no watcher in it"),
        ("[program:w]\ncommand = x\n", "supervisord"),
        ("[watcher:w]\ncmd = sleep 1\nuser = nobody\n", "use uid"),
    ] {
        let (code, said) = check(&[], text);
        assert_eq!(code, Some(2), "{text:?}: {said}");
        assert!(said.contains(part), "{part:?} in {said:?}");
        let output = papactl(&scratch, &["up", "f.ini"]);
        assert_eq!(output.status.code(), Some(2), "up starts nothing of it");
    }
}
