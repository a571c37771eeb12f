//! What somebody hostile can do: in a browser, as another user of the machine, in a container, in a
//! worker, or with a descriptor they were given. `safety.rs` has what a careless caller can do;
//! SECURITY.md says what is promised.

mod containers;
mod descriptors_and_content;
mod other_users;

use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use papa_harness::{Collector, Kernel, is_root, skipped};

/// The user that owns nothing.
const NOBODY: u32 = 65_534;
/// The system's: what root has on its own path may be out of another user's reach.
const PYTHON: &str = "/usr/bin/python3";
/// A program that connects to each address it is given (a port, or `@` and an abstract name), asks
/// for something to be kept, and prints for each what it heard: `served` for a prompt.
const CALLER: &str = "import socket, sys
for where in sys.argv[1:]:
    try:
        if where.startswith('@'):
            s = socket.socket(socket.AF_UNIX)
            s.settimeout(10)
            s.connect('\\0' + where[1:])
        else:
            s = socket.create_connection(('127.0.0.1', int(where)), 10)
        s.sendall(b'set forged 1\\nquit\\n')
        heard = b''
        while True:
            piece = s.recv(4096)
            if not piece: break
            heard += piece
        print('served' if b'> ' in heard else 'closed')
    except ConnectionRefusedError: print('refused')
    except ConnectionError: print('closed')
";

/// Runs a Python program under a wrapper such as `setpriv` or `unshare`.
fn python(wrapper: &[&str], program: &str, arguments: &[&str]) -> Output {
    Command::new(wrapper[0])
        .args(&wrapper[1..])
        .args([PYTHON, "-c", program])
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .expect("the wrapper runs")
}

const AS_NOBODY: [&str; 4] = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
];

/// Whether this machine lets a test do what it needs, with the command that shows it.
fn can(what: &str, command: &[&str]) -> bool {
    let worked = is_root()
        && Command::new(command[0])
            .args(&command[1..])
            .stdin(Stdio::null())
            .output()
            .is_ok_and(|output| output.status.success());
    if !worked {
        skipped(what);
    }
    worked
}

fn nobody_has_python() -> bool {
    let command = [&AS_NOBODY[..], &[PYTHON, "-c", ""]].concat();
    can(
        "another user needs root, and python3 within its reach",
        &command,
    )
}

fn lines(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!text.is_empty(), "the caller said nothing: {output:?}");
    text.lines().map(str::to_owned).collect()
}

#[track_caller]
fn assert_nothing_forged(kernel: &Kernel) {
    assert_eq!(kernel.classic().ask("list values"), "");
}

/// A process's output once it has ended.
fn output_of(kernel: &Kernel, argv: &[&str], more: Value) -> String {
    let process = kernel.json().make_process("hostile", argv, more);
    let serial = process["serial"].as_u64().expect("a serial");
    let collected = Collector::new(&kernel.socket_path(), &["hostile"]).finish(serial);
    String::from_utf8_lossy(&collected.bytes).into_owned()
}

fn path() -> Value {
    json!({"PATH": "/usr/local/bin:/usr/bin:/bin"})
}
