//! `papactl` as people and scripts use it: every verb once, exit status, JSON, what is said when
//! something is wrong. One file for each kind of verb.

mod changing;
mod looking;
mod programs;
mod waiting;
mod wrong;

use std::fs;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::stack::Stack;
use papa_harness::{binary, private_command, procfs, wait_for, wait_until};

const TWO: &str = "[watcher:Web]\ncmd = sleep 1000\nnumprocesses = 2\n[watcher:worker]\ncmd = sleep 1000\n\
    [socket:api]\npath = DIR/api.sock\n";

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
