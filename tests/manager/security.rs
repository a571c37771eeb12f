//! What somebody hostile can do to the manager and to who looks at its workers: another user of the
//! machine, a worker, whoever may write to a directory of logs. SECURITY.md says what is promised.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use nix::sys::stat::Mode;
use serde_json::json;

use crate::stack::Stack;
use papa_harness::{
    Scratch, binary, free_port, is_root, private_command, skipped, wait_for, wait_until,
};

/// The user that owns nothing.
const NOBODY: u32 = 65_534;

/// Another user of the machine.
const AS_NOBODY: [&str; 4] = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
];

/// The same, and in a container on our network who calls itself root.
const AS_ROOT_OF_ITS_OWN: [&str; 7] = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "unshare",
    "--user",
    "--map-root-user",
];

/// Those two, as far as there are any here.
fn strangers() -> Vec<&'static [&'static str]> {
    let all: [&[&str]; 2] = [&AS_NOBODY, &AS_ROOT_OF_ITS_OWN];
    let can = |wrapper: &&[&str]| {
        let worked = is_root()
            && Command::new(wrapper[0])
                .args(&wrapper[1..])
                .args(["/usr/bin/python3", "-c", ""])
                .current_dir("/")
                .output()
                .is_ok_and(|output| output.status.success());
        if !worked {
            skipped("another user needs root, python3 within its reach, and user namespaces");
        }
        worked
    };
    all.into_iter().filter(can).collect()
}

fn papactl(directory: &Path, line: &[&str]) -> Output {
    private_command(&binary("papactl"), directory)
        .current_dir(directory)
        .args(line)
        .output()
        .expect("papactl runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn what_workers_call_themselves_is_shown_and_not_obeyed() {
    // A title that clears the screen, sets the terminal's own title, forges a line and turns the
    // text around.
    let title = "\\033[2J\\033]0;x\\007\\nforged: ok\\342\\200\\256";
    let stack = Stack::start(&format!(
        "[watcher:bad]\ncmd = bash -c 'exec -a \"$(printf \"{title}\")\" sleep 1000'\ncopy_env = true\n"
    ));
    stack.wait_pids("bad", 1);
    let directory = stack.kernel.directory();
    wait_until("it has its title", || {
        text(&papactl(directory, &["stats", "bad"]).stdout).contains("^[")
    });
    for line in ["stats", "status", "list", "options bad", "doctor", "dstats"] {
        let words: Vec<&str> = line.split(' ').collect();
        let output = papactl(directory, &words);
        for stream in [&output.stdout, &output.stderr] {
            let shown = text(stream);
            let harmful = |c: char| (c.is_control() && c != '\n' && c != '\t') || c == '\u{202e}';
            assert!(!shown.contains(harmful), "{line}: {shown:?}");
            assert!(
                !shown.lines().any(|shown| shown.starts_with("forged")),
                "{line}: {shown:?}"
            );
        }
    }
}

/// A log file's place has been taken by something else; what the worker said waits until that is
/// gone.
#[track_caller]
fn waits_for_its_log(take: impl FnOnce(&Path), free: impl FnOnce(&Path)) {
    let stack = Stack::start_after(
        "[watcher:w]\ncmd = sh -c 'echo first; echo second; exec sleep 1000'\ncopy_env = true\n\
         stdout_stream.class = FileStream\nstdout_stream.filename = DIR/logs/w.log\n",
        |kernel| take(&kernel.directory().join("logs/w.log")),
    );
    let message = wait_for("the manager says what is wrong", || {
        let status = stack.request("status", "w");
        let message = status["watchers"][0]["message"].as_str()?.to_owned();
        message.contains("w.log").then_some(message)
    });
    println!("{message}");
    let path = stack.kernel.directory().join("logs/w.log");
    free(&path);
    wait_until("the output is written after all", || {
        fs::read(&path).is_ok_and(|text| text == b"first\nsecond\n")
    });
}

#[test]
fn a_directory_in_the_place_of_a_log_costs_no_line() {
    waits_for_its_log(
        |path| fs::create_dir(path).expect("room"),
        |path| fs::remove_dir(path).expect("there"),
    );
}

#[test]
fn a_fifo_in_the_place_of_a_log_stops_nothing_and_costs_no_line() {
    waits_for_its_log(
        |path| nix::unistd::mkfifo(path, Mode::S_IRWXU).expect("room"),
        |path| fs::remove_file(path).expect("there"),
    );
}

#[test]
fn a_strangers_link_in_the_place_of_a_log_is_not_followed() {
    if !is_root() {
        return skipped("a link of another user needs root");
    }
    let scratch = Scratch::new();
    let precious = scratch.directory().join("precious");
    fs::write(&precious, "precious").expect("room");
    waits_for_its_log(
        |path| {
            symlink(&precious, path).expect("room");
            std::os::unix::fs::lchown(path, Some(NOBODY), None).expect("root may");
        },
        |path| fs::remove_file(path).expect("there"),
    );
    assert_eq!(fs::read_to_string(&precious).expect("there"), "precious");
}

#[test]
fn a_strangers_link_on_the_way_to_a_log_is_not_followed() {
    if !is_root() {
        return skipped("a link of another user needs root");
    }
    let scratch = Scratch::new();
    let elsewhere = scratch.directory().join("elsewhere");
    fs::create_dir(&elsewhere).expect("room");
    let stack = Stack::start_after(
        "[watcher:w]\ncmd = sh -c 'echo first; exec sleep 1000'\ncopy_env = true\n\
         stdout_stream.class = FileStream\nstdout_stream.filename = DIR/logs/sub/w.log\n",
        |kernel| {
            // The worker's user owns the directory of its logs, as people have it, and swaps what
            // is in it.
            let logs = kernel.directory().join("logs");
            symlink(&elsewhere, logs.join("sub")).expect("room");
            std::os::unix::fs::lchown(logs.join("sub"), Some(NOBODY), None).expect("root may");
            chown(&logs, Some(NOBODY), None).expect("root may");
        },
    );
    wait_until("the manager says what is wrong", || {
        let status = stack.request("status", "w");
        let message = status["watchers"][0]["message"].as_str();
        message.is_some_and(|message| message.contains("symbolic link"))
    });
    assert_eq!(fs::read_dir(&elsewhere).expect("there").count(), 0);
    let sub = stack.kernel.directory().join("logs/sub");
    fs::remove_file(&sub).expect("there");
    fs::create_dir(&sub).expect("room");
    wait_until("the output is written after all", || {
        fs::read(sub.join("w.log")).is_ok_and(|text| text == b"first\n")
    });
}

#[test]
fn a_fifo_beside_a_log_that_is_compressed_stops_nothing() {
    let stack = Stack::start_after(
        "[watcher:w]\ncmd = sh -c 'i=0; while :; do echo line $i; i=$((i+1)); sleep 0.01; done'\ncopy_env = true\n\
         stdout_stream.class = FileStream\nstdout_stream.filename = DIR/logs/w.log\n\
         stdout_stream.max_bytes = 300\nstdout_stream.backup_count = 3\nstdout_stream.compress = gzip\n",
        |kernel| {
            let path = kernel.directory().join("logs/w.log.1");
            nix::unistd::mkfifo(&path, Mode::S_IRWXU).expect("room");
        },
    );
    let grown = || {
        let entries = fs::read_dir(stack.kernel.directory().join("logs")).expect("there");
        entries
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().ends_with(".gz"))
    };
    wait_until("rotated files are compressed", grown);
    wait_until("the log goes on", || {
        let first = stack.log("w.log").len();
        first > 0
    });
}

#[test]
fn a_strangers_listener_is_not_taken_for_the_kernel() {
    for stranger in strangers() {
        listener_is_not_taken_for_the_kernel(stranger);
    }
}

fn listener_is_not_taken_for_the_kernel(stranger: &[&str]) {
    let scratch = Scratch::new();
    let port = free_port();
    let ini = scratch.path("a.ini");
    fs::write(
        &ini,
        "[watcher:w]\ncmd = sleep 600\n[env:w]\nTOKEN = hunter2\n",
    )
    .expect("room");
    let fake = FakeKernel::start(stranger, port);
    let endpoint = format!("tcp://127.0.0.1:{port}");
    let manager = private_command(&binary("papa-manager"), scratch.directory())
        .current_dir(scratch.directory())
        .args(["--kernel", &endpoint, "a.ini"])
        .stderr(Stdio::null())
        .spawn();
    let manager = Killed(manager.expect("it runs"));
    wait_until("the manager says who listens there", || {
        let output = papactl(scratch.directory(), &["status", "--json"]);
        (text(&output.stdout) + &text(&output.stderr)).contains("belongs to uid 65534")
    });
    drop(manager);
    let heard = fake.heard();
    assert!(heard.contains("hello"), "the fake was asked: {heard}");
    assert!(
        !heard.contains("hunter2") && !heard.contains("process."),
        "{heard}"
    );
}

/// A process that is killed at the end of its test, however that ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A stranger who listens on the port and answers like a kernel, printing what is said to it.
struct FakeKernel {
    process: Killed,
    stdout: BufReader<ChildStdout>,
}

impl FakeKernel {
    fn start(stranger: &[&str], port: u16) -> Self {
        let program = "import socket, sys, threading
listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))
print('there', flush=True)
hello = ('{\"ok\":{\"papa\":\"9\",\"protocol\":1,\"pid\":1,\"keeper\":1,\"incarnation\":1,\"features\":[],\"limits\":{}}}\\n').encode()
def serve(s):
    s.sendall(b'Papa is home. Type \"help\" for commands.\\n> ')
    for line in s.makefile('rb'):
        print(line, flush=True)
        if b'hello' in line: s.sendall(hello)
while True:
    s, _ = listener.accept()
    threading.Thread(target=serve, args=(s,), daemon=True).start()
";
        let child = Command::new(stranger[0])
            .args(&stranger[1..])
            .args(["/usr/bin/python3", "-c", program, &port.to_string()])
            .current_dir("/")
            .stdout(Stdio::piped())
            .spawn();
        let mut process = Killed(child.expect("setpriv runs"));
        let stdout = process.0.stdout.take().expect("it is piped");
        let mut fake = Self {
            process,
            stdout: BufReader::new(stdout),
        };
        let mut line = String::new();
        fake.stdout.read_line(&mut line).expect("it says something");
        assert_eq!(line, "there\n");
        fake
    }

    /// Ends it; all that was said to it.
    fn heard(self) -> String {
        let Self {
            process,
            mut stdout,
        } = self;
        drop(process);
        let mut heard = String::new();
        stdout.read_to_string(&mut heard).expect("text");
        heard
    }
}

#[test]
fn another_user_does_not_reach_the_manager() {
    for stranger in strangers() {
        does_not_reach_the_manager(stranger);
    }
}

fn does_not_reach_the_manager(stranger: &[&str]) {
    let stack = Stack::start("[watcher:w]\ncmd = sleep 600\n");
    let socket = stack.kernel.runtime_dir().join("circus.manager.sock");
    assert_eq!(fs::metadata(&socket).expect("there").mode() & 0o777, 0o600);
    // The manager closes its directory again when it notes its worker.
    let notes = stack.kernel.runtime_dir().join("circus.workers.json");
    wait_until("the worker is noted", || notes.exists());
    // Even where somebody has opened the way to it.
    for path in [stack.kernel.directory(), &stack.kernel.runtime_dir()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("ours");
    }
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o777)).expect("ours");
    let program = "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.settimeout(10)\ns.connect(sys.argv[1])\n\
                   try:\n\x20s.sendall(b'{\"id\":1,\"command\":\"quit\"}\\n')\n\x20print(s.recv(4096))\n\
                   except ConnectionError: print(b'')\n";
    let output = Command::new(stranger[0])
        .args(&stranger[1..])
        .args(["/usr/bin/python3", "-c", program])
        .arg(&socket)
        .current_dir("/")
        .output()
        .expect("the wrapper runs");
    assert_eq!(text(&output.stdout), "b''\n", "{output:?}");
    assert!(stack.manager_log().contains("another user"));
    assert_eq!(stack.ask("numwatchers", &json!({}))["numwatchers"], 1);
}

#[test]
fn a_file_with_strange_names_makes_no_strange_paths() {
    let scratch = Scratch::new();
    let check = |ini: &str| {
        fs::write(scratch.path("a.ini"), ini).expect("room");
        let output = papactl(scratch.directory(), &["check", "a.ini"]);
        (
            output.status.code(),
            text(&output.stdout) + &text(&output.stderr),
        )
    };
    for namespace in ["../x", "a/b", "a b", ".", "n\u{202e}", &"n".repeat(33)] {
        let (code, said) = check(&format!(
            "[circus]\nnamespace = {namespace}\n[watcher:w]\ncmd = x\n"
        ));
        assert_eq!(code, Some(2), "{namespace}: {said}");
        assert!(said.starts_with("a.ini:2:13: error"), "{said}");
    }
    let (code, said) = check(&format!("[watcher:{}]\ncmd = x\n", "w".repeat(300)));
    assert_eq!(code, Some(2), "{said}");
    let (code, said) = check("[watcher:w]\ncmd = x\n[env:w]\nA = x\0y\n");
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("NUL"), "{said}");
    // A file that includes itself, and everything beside it, is read once.
    let (code, said) =
        check("[circus]\ninclude = *.ini a.ini ./a.ini\ninclude_dir = .\n[watcher:w]\ncmd = x\n");
    assert_eq!(code, Some(0), "{said}");
    // One without an end is not read to its end.
    symlink("/dev/zero", scratch.path("endless.ini")).expect("room");
    let (code, said) = check("[circus]\ninclude = endless.ini\n[watcher:w]\ncmd = x\n");
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("larger than"), "{said}");
}
