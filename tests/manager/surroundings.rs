//! What a manager meets on a machine that is not kept for it: a reader that goes, a directory that
//! is cleaned up, many callers, signals that whoever started it had ignored.

use std::fs;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::Signal;

use crate::stack::Stack;
use papa_harness::{binary, private_command, procfs, wait_for, wait_until};

const ONE: &str = "[watcher:web]\ncmd = sleep 1000\n";

/// Executes a program with every signal blocked and the ends of children ignored.
const CARELESS: &str = "
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.execv(sys.argv[1], sys.argv[1:])
";

/// Executes a program in a terminal of its own, tells its pid, and takes the terminal away when it
/// is told so by the end of its input.
const TERMINAL: &str = "
import os, pty, select, sys
pid, master = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
print(pid, flush=True)
while True:
    ready = select.select([0, master], [], [])[0]
    if master in ready:
        os.read(master, 65536)
    if 0 in ready and not os.read(0, 65536):
        break
os.close(master)
print('closed', flush=True)
os.waitpid(pid, 0)
";

/// The same command, executed by a Python script.
fn through(script: &str, command: &Command) -> Command {
    let mut python = Command::new("python3");
    python.args(["-c", script]).arg(command.get_program());
    python.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => python.env(name, value),
            None => python.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        python.current_dir(directory);
    }
    python.stdin(Stdio::null());
    python
}

fn manager_command(stack: &Stack) -> Command {
    let mut command = private_command(&binary("papa-manager"), stack.kernel.directory());
    command
        .current_dir(stack.kernel.directory())
        .args(["--debug", "--kernel"])
        .arg(stack.kernel.socket_path())
        .arg("stack.ini");
    command
}

fn papactl(stack: &Stack, words: &[&str]) -> Command {
    let mut command = private_command(&binary("papactl"), stack.kernel.directory());
    command.current_dir(stack.kernel.directory()).args(words);
    command
}

/// Has the file say where the kernel is, so that `papactl up` finds it.
fn rewrite_with_endpoint(stack: &Stack, ini: &str) {
    let endpoint = stack.kernel.socket_path().display().to_string();
    stack.rewrite(&format!("[circus]\npapa_endpoint = ipc:{endpoint}\n{ini}"));
}

fn end(mut manager: Child) {
    manager.kill().unwrap();
    manager.wait().unwrap();
}

/// Bit of a signal in the masks of `/proc/PID/status`.
fn has_signal(pid: i32, mask: &str, signal: Signal) -> bool {
    let mask = procfs::status_line(pid, mask).unwrap();
    let mask = u64::from_str_radix(&mask, 16).unwrap();
    mask & (1 << (signal as i32 - 1)) != 0
}

fn manager_pid(stack: &Stack) -> i32 {
    let status = stack.request("status", "web");
    i32::try_from(status["manager"]["pid"].as_i64().unwrap()).unwrap()
}

/// A manager none of whose lines can be written works, and lives.
fn works_without_its_log(stack: &Stack, mut manager: Child) {
    let before = stack.wait_pids("web", 1);
    stack.wait_attached();
    for _ in 0..3 {
        let reply = stack.request("restart", "web");
        assert_eq!(reply["status"], "ok", "{reply}");
    }
    assert_ne!(stack.wait_pids("web", 1), before);
    assert!(manager.try_wait().unwrap().is_none(), "the manager lives");
    end(manager);
}

#[test]
fn a_line_of_its_own_log_that_could_not_be_written_ended_the_manager() {
    let mut stack = Stack::start(ONE);
    stack.wait_pids("web", 1);
    stack.kill_manager();
    // A pipe whose reader has gone says so with every line.
    let mut command = manager_command(&stack);
    let mut manager = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(manager.stderr.take());
    works_without_its_log(&stack, manager);
    // So does a full disk.
    let full = || OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = manager_command(&stack);
    let manager = command.stdout(full()).stderr(full()).spawn().unwrap();
    works_without_its_log(&stack, manager);
    let mut command = manager_command(&stack);
    command.args(["--log-file", "/dev/full"]);
    let manager = command.stderr(full()).spawn().unwrap();
    works_without_its_log(&stack, manager);
}

#[test]
fn a_manager_in_the_foreground_whose_terminal_was_closed_ended() {
    let mut stack = Stack::start(ONE);
    stack.wait_pids("web", 1);
    stack.kill_manager();
    rewrite_with_endpoint(&stack, ONE);
    let up = papactl(&stack, &["up", "--foreground", "stack.ini"]);
    let mut terminal = through(TERMINAL, &up)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(terminal.stdout.take().unwrap()).lines();
    let manager: i32 = said.next().unwrap().unwrap().parse().unwrap();
    stack.wait_attached();
    assert_eq!(manager_pid(&stack), manager);
    drop(terminal.stdin.take());
    assert_eq!(said.next().unwrap().unwrap(), "closed");
    for _ in 0..3 {
        let reply = stack.request("restart", "web");
        assert_eq!(reply["status"], "ok", "{reply}");
    }
    assert_eq!(manager_pid(&stack), manager, "the manager lives");
    stack.wait_pids("web", 1);
    procfs::signal(manager, Signal::SIGKILL);
    terminal.wait().unwrap();
}

/// A second manager ends by itself, saying who the first is.
#[track_caller]
fn a_second_is_refused(stack: &Stack, first: i32, directory: Option<&str>) {
    let mut command = manager_command(stack);
    if let Some(directory) = directory {
        command.env("XDG_RUNTIME_DIR", directory);
    }
    let mut second = command.stderr(Stdio::piped()).spawn().unwrap();
    let ended = wait_for("the second manager ends", || second.try_wait().unwrap());
    let mut said = String::new();
    std::io::Read::read_to_string(&mut second.stderr.take().unwrap(), &mut said).unwrap();
    assert_eq!(ended.code(), Some(1), "{said}");
    let last = said.trim_end().lines().last().unwrap_or_default();
    assert!(last.contains(&first.to_string()), "{said}");
}

#[test]
fn a_manager_whose_runtime_directory_was_removed_could_not_be_reached() {
    let stack = Stack::start(ONE);
    let pid = manager_pid(&stack);
    let workers = stack.wait_pids("web", 1);
    fs::remove_dir_all(stack.kernel.runtime_dir()).unwrap();
    wait_until("the manager answers again", || {
        UnixStream::connect(stack.kernel.runtime_dir().join("circus.manager.sock")).is_ok()
    });
    assert_eq!(manager_pid(&stack), pid);
    let lock = stack.kernel.runtime_dir().join("circus.manager.lock");
    assert_eq!(fs::read_to_string(&lock).unwrap(), pid.to_string());
    a_second_is_refused(&stack, pid, None);
    // Neither the lock nor the directory is what keeps it away.
    stack.signal_manager(Signal::SIGSTOP);
    fs::remove_file(&lock).unwrap();
    fs::remove_file(lock.with_extension("sock")).unwrap();
    a_second_is_refused(&stack, pid, None);
    let elsewhere = stack.kernel.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    a_second_is_refused(&stack, pid, Some(&elsewhere));
    stack.signal_manager(Signal::SIGCONT);
    wait_until("the first can be reached again", || {
        stack.pids("web") == workers
    });
    assert_eq!(manager_pid(&stack), pid);
}

#[test]
fn idle_connections_and_listeners_locked_a_manager_out() {
    let stack = Stack::start(ONE);
    let socket = stack.kernel.runtime_dir().join("circus.manager.sock");
    let idle: Vec<UnixStream> = (0..200)
        .map(|_| UnixStream::connect(&socket).unwrap())
        .collect();
    wait_until("the worker has run for a moment", || {
        stack.state("web") == "active"
    });
    let listeners: Vec<BufReader<UnixStream>> = (0..128)
        .map(|_| {
            let mut stream = UnixStream::connect(&socket).unwrap();
            writeln!(stream, r#"{{"id": 1, "command": "listen"}}"#).unwrap();
            let mut reader = BufReader::new(stream);
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            assert!(line.contains("\"ok\""), "{line}");
            reader
        })
        .collect();
    assert_eq!(stack.state("web"), "active");
    // Nor does `up` take the manager for one that hangs.
    let manager = manager_pid(&stack);
    rewrite_with_endpoint(&stack, ONE);
    let up = papactl(&stack, &["up", "stack.ini"]).output().unwrap();
    assert!(up.status.success(), "{up:?}");
    assert_eq!(manager_pid(&stack), manager, "{up:?}");
    // Whoever listens is told what happens, however many others there are.
    stack.request("restart", "web");
    for mut listener in listeners {
        let mut line = String::new();
        listener.read_line(&mut line).unwrap();
        assert!(line.contains("watcher.web."), "{line}");
    }
    drop(idle);
}

/// Runs on its own: a process that nobody of ours waits for has neither an ignored SIGCHLD nor
/// anything blocked.
#[track_caller]
fn has_usual_signals(pid: i32) {
    assert!(!has_signal(pid, "SigIgn", Signal::SIGCHLD), "{pid}");
    let blocked = procfs::status_line(pid, "SigBlk").unwrap();
    assert_eq!(blocked, "0000000000000000", "{pid}");
}

#[test]
fn ignored_children_and_blocked_signals_of_whoever_typed_up_were_inherited() {
    let mut stack = Stack::start(ONE);
    stack.kill_manager();
    let checked = format!(
        "{ONE}health = command:sh DIR/check.sh\nhealth_interval = 0.1\nhealth_retries = 1\n"
    );
    let signals = stack.kernel.path("signals");
    let check = format!("grep Sig /proc/self/status > {signals}.new && mv {signals}.new {signals}");
    fs::write(stack.kernel.path("check.sh"), check).unwrap();
    rewrite_with_endpoint(&stack, &checked);
    let mut shown = Command::new("/bin/grep");
    shown.args(["SigBlk", "/proc/self/status"]);
    let shown: Output = through(CARELESS, &shown).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains('f'), "whoever starts them blocks: {shown}");
    // Once through `up`, once without it.
    for direct in [false, true] {
        let _ = fs::remove_file(&signals);
        let mut started = if direct {
            through(CARELESS, &manager_command(&stack))
        } else {
            through(CARELESS, &papactl(&stack, &["up", "stack.ini"]))
        };
        let mut started = started.stderr(Stdio::null()).spawn().unwrap();
        if !direct {
            assert!(started.wait().unwrap().success());
        }
        stack.wait_attached();
        let pid = manager_pid(&stack);
        has_usual_signals(pid);
        let worker = stack.wait_pids("web", 1);
        has_usual_signals(worker[&1]);
        // A check that is well says so: with ignored children none could, and the worker would be
        // replaced.
        for _ in 0..3 {
            let seen = wait_for("a check was made", || fs::read_to_string(&signals).ok());
            fs::remove_file(&signals).unwrap();
            assert!(seen.contains("SigBlk:\t0000000000000000"), "{seen}");
        }
        assert_eq!(stack.wait_pids("web", 1), worker, "a healthy worker stays");
        procfs::signal(pid, Signal::SIGTERM);
        wait_until("it hears SIGTERM", || !procfs::alive(pid));
        started.wait().unwrap();
    }
}
