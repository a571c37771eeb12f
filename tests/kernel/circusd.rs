//! circusd 0.17.2 with `use_papa` watchers and sockets on our kernel, driven by its own circusctl.
//!
//! Its client acknowledges a batch of output only when it asks for the next, so a killed circusd
//! may write lines twice; it must never lose one.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use papa_harness::{Kernel, Venv, private_command, procfs, wait_for, wait_until, wait_until_for};

/// circusctl and circusd are slow starters.
const CIRCUS_PATIENCE: Duration = Duration::from_secs(30);

/// A kernel, and a circusd that comes and goes.
struct Circus {
    venv: Venv,
    kernel: Kernel,
    daemon: Option<Child>,
    endpoint: String,
}

impl Circus {
    fn new(venv: Venv) -> Self {
        let kernel = Kernel::start();
        let endpoint = format!("ipc://{}", kernel.path("ctl"));
        let server = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/python/pid_server.py");
        let python = venv.python();
        let ini = format!(
            "[circus]\n\
             endpoint = {endpoint}\n\
             pubsub_endpoint = ipc://{pubsub}\n\
             check_delay = 0.5\n\
             \n\
             [watcher:chatty]\n\
             cmd = /bin/sh -c 'i=0; while :; do i=$((i+1)); echo line $i; sleep 0.02; done'\n\
             copy_env = true\n\
             use_papa = true\n\
             numprocesses = 2\n\
             graceful_timeout = 5\n\
             stdout_stream.class = FileStream\n\
             stdout_stream.filename = {log}\n\
             stdout_stream.time_format = %Y-%m-%d %H:%M:%S\n\
             \n\
             [watcher:web]\n\
             cmd = {python} {server} $(circus.sockets.web)\n\
             copy_env = true\n\
             use_papa = true\n\
             use_sockets = true\n\
             \n\
             [socket:web]\n\
             host = 127.0.0.1\n\
             port = 0\n\
             use_papa = true\n",
            pubsub = kernel.path("pub"),
            log = kernel.path("chatty.log"),
            python = python.display(),
            server = server.display(),
        );
        fs::write(kernel.path("circus.ini"), ini).expect("the scratch folder takes a file");
        Self {
            venv,
            kernel,
            daemon: None,
            endpoint,
        }
    }

    /// One whose workers have begun to write, and their pids by watcher.
    #[track_caller]
    fn writing() -> Option<(Self, Vec<i32>, Vec<i32>)> {
        let mut circus = Self::new(Venv::get()?);
        circus.up();
        let chatty = circus.pids("chatty");
        let web = circus.pids("web");
        circus.wait_for_new_lines(&chatty);
        Some((circus, chatty, web))
    }

    /// Starts circusd and waits until it says that both watchers are active.
    #[track_caller]
    fn up(&mut self) {
        let wrapper =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/python/circusd_on_port.py");
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.kernel.path("circusd.log"))
            .expect("circusd's log can be made");
        let mut command = private_command(&self.venv.python(), self.kernel.directory());
        // Its client cannot send a variable without a value, and cargo sets some.
        for (key, value) in std::env::vars_os() {
            if value.is_empty() {
                command.env_remove(key);
            }
        }
        let child = command
            .arg("-B")
            .arg(wrapper)
            .arg(self.kernel.port().to_string())
            .arg(self.kernel.path("circus.ini"))
            .stdout(log.try_clone().expect("a descriptor can be duplicated"))
            .stderr(log)
            .spawn()
            .expect("circusd starts");
        self.daemon = Some(child);
        wait_until_for("circusd reports its watchers", CIRCUS_PATIENCE, || {
            let status = self.try_ctl(&["status"]);
            status.contains("chatty: active") && status.contains("web: active")
        });
    }

    fn try_ctl(&self, words: &[&str]) -> String {
        let output = Command::new(self.venv.root().join("bin/circusctl"))
            .args(["--timeout", "5", "--endpoint", &self.endpoint])
            .args(words)
            .stdin(Stdio::null())
            .output()
            .expect("circusctl runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[track_caller]
    fn ctl(&self, words: &[&str], expected: &str) {
        let answer = self.try_ctl(words);
        assert!(
            answer.trim().ends_with(expected),
            "circusctl {words:?} says {answer:?}\n{}",
            self.log()
        );
    }

    fn log(&self) -> String {
        fs::read_to_string(self.kernel.path("circusd.log")).unwrap_or_default()
    }

    /// The pids circusd knows.
    #[track_caller]
    fn pids(&self, watcher: &str) -> Vec<i32> {
        let mut pids = wait_for("circusctl lists the workers", || {
            let answer = self.try_ctl(&["list", watcher]);
            let pids: Option<Vec<i32>> = answer
                .trim()
                .split(',')
                .map(|word| word.trim().parse().ok())
                .collect();
            pids.filter(|pids| !pids.is_empty())
        });
        pids.sort_unstable();
        pids
    }

    /// The pids the kernel runs for a watcher.
    fn kernel_pids(&self, watcher: &str) -> Vec<i32> {
        let mut session = self.kernel.json();
        let pattern = format!("circus.{watcher}.*");
        let listed = session.ok("process.list", json!({"names": [pattern]}));
        let mut pids: Vec<i32> = listed["processes"]
            .as_array()
            .expect("processes is a list")
            .iter()
            .filter(|process| process["running"] == true)
            .filter_map(|process| i32::try_from(process["pid"].as_i64()?).ok())
            .collect();
        pids.sort_unstable();
        pids
    }

    #[track_caller]
    fn kill_daemon(&mut self) {
        let mut child = self.daemon.take().expect("circusd runs");
        child.kill().expect("circusd can be killed");
        child.wait().expect("circusd is ours to wait for");
    }

    #[track_caller]
    fn wait_daemon_end(&mut self) {
        let mut child = self.daemon.take().expect("circusd runs");
        wait_until_for("circusd has ended", CIRCUS_PATIENCE, || {
            child.try_wait().ok().flatten().is_some()
        });
    }

    /// Who answers on the socket.
    #[track_caller]
    fn web_pid(&self) -> i32 {
        let line = self.kernel.classic().ask("list sockets circus.web");
        let port: u16 = papa_harness::Classic::field(&line, "port")
            .parse()
            .expect("a port is a number");
        let mut text = String::new();
        TcpStream::connect(("127.0.0.1", port))
            .and_then(|mut stream| stream.read_to_string(&mut text))
            .expect("the worker answers");
        text.trim().parse().expect("it answers with its pid")
    }

    /// The numbers each worker has logged, in the order of the file.
    #[track_caller]
    fn logged(&self) -> HashMap<i32, Vec<u64>> {
        let text = fs::read_to_string(self.kernel.path("chatty.log")).unwrap_or_default();
        let mut found: HashMap<i32, Vec<u64>> = HashMap::new();
        for line in text.lines() {
            // `2026-01-31 12:00:00 [4711] | line 5`
            let parsed = line.split_once(" | line ").and_then(|(head, number)| {
                let (stamp, pid) = head.split_once(" [")?;
                let pid = pid.strip_suffix(']')?.parse().ok()?;
                (stamp.len() == "2026-01-31 12:00:00".len()).then_some(())?;
                Some((pid, number.parse().ok()?))
            });
            let (pid, number) = parsed.unwrap_or_else(|| panic!("not a stamped line: {line:?}"));
            found.entry(pid).or_default().push(number);
        }
        found
    }

    /// Waits until every worker has logged something new.
    #[track_caller]
    fn wait_for_new_lines(&self, pids: &[i32]) {
        let last = |pid: &i32| {
            self.logged()
                .get(pid)
                .and_then(|numbers| numbers.iter().max().copied())
        };
        let before: Vec<_> = pids.iter().map(last).collect();
        wait_until("every worker has new lines in the log", || {
            pids.iter()
                .zip(&before)
                .all(|(pid, before)| last(pid) > before.map(|number| number + 2))
        });
    }

    /// Every line of these workers is there once and in order.
    #[track_caller]
    fn assert_each_once(&self, pids: &[i32]) {
        let logged = self.logged();
        for pid in pids {
            let numbers = logged.get(pid).cloned().unwrap_or_default();
            let expected: Vec<u64> = (1..=numbers.len() as u64).collect();
            assert!(numbers == expected, "worker {pid}: {numbers:?}");
        }
    }

    /// No line of these workers is missing; one may come twice.
    #[track_caller]
    fn assert_nothing_lost(&self, pids: &[i32]) {
        let logged = self.logged();
        for pid in pids {
            let mut numbers = logged.get(pid).cloned().unwrap_or_default();
            numbers.sort_unstable();
            numbers.dedup();
            let expected: Vec<u64> = (1..=numbers.last().copied().unwrap_or_default()).collect();
            assert!(
                numbers == expected,
                "worker {pid}: {} of {} lines are in the log",
                numbers.len(),
                expected.len()
            );
        }
    }
}

impl Drop for Circus {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of circusd\n{}---", self.log());
        }
        if let Some(mut child) = self.daemon.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn circusd_runs_stops_starts_and_recovers() {
    let Some(venv) = Venv::get() else { return };
    let mut circus = Circus::new(venv);

    circus.up();
    let first = circus.pids("chatty");
    assert_eq!(first.len(), 2);
    assert_eq!(first, circus.kernel_pids("chatty"));
    let web = circus.pids("web");
    assert_eq!(vec![circus.web_pid()], web);
    circus.wait_for_new_lines(&first);

    circus.ctl(&["stop", "chatty"], "ok");
    wait_until("the stopped workers are gone", || {
        circus.kernel_pids("chatty").is_empty() && !first.iter().any(|pid| procfs::alive(*pid))
    });
    circus.ctl(&["status", "chatty"], "stopped");
    circus.assert_nothing_lost(&first);

    circus.ctl(&["start", "chatty"], "ok");
    wait_until("new workers run", || {
        circus.kernel_pids("chatty").len() == 2
    });
    let second = circus.pids("chatty");
    circus.wait_for_new_lines(&second);

    // It goes and leaves everything with the kernel; the next one takes it up where it was.
    circus.ctl(&["quit"], "ok");
    circus.wait_daemon_end();
    assert_eq!(circus.kernel_pids("chatty"), second);
    assert_eq!(vec![circus.web_pid()], web);
    circus.up();
    assert_eq!(circus.pids("chatty"), second);
    assert_eq!(circus.pids("web"), web);
    circus.wait_for_new_lines(&second);

    circus.kill_daemon();
    assert_eq!(vec![circus.web_pid()], web);
    circus.up();
    assert_eq!(circus.pids("chatty"), second);
    assert_eq!(circus.pids("web"), web);
    circus.wait_for_new_lines(&second);
    circus.assert_nothing_lost(&second);
}

#[test]
fn a_killed_kernel_under_circusd_costs_no_worker() {
    let Some((mut circus, chatty, web)) = Circus::writing() else {
        return;
    };

    circus.kernel.kill_kernel();
    assert_eq!(circus.kernel_pids("chatty"), chatty);
    assert_eq!(circus.kernel_pids("web"), web);
    assert_eq!(vec![circus.web_pid()], web);

    // Its client cannot reconnect a lost watch: that takes a new circusd, which finds everything as
    // it was.
    let pid = circus
        .daemon
        .as_ref()
        .and_then(|child| i32::try_from(child.id()).ok())
        .expect("circusd was started");
    procfs::signal(pid, Signal::SIGKILL);
    circus.wait_daemon_end();
    circus.up();
    assert_eq!(circus.pids("chatty"), chatty);
    assert_eq!(circus.pids("web"), web);
    circus.wait_for_new_lines(&chatty);
    circus.assert_nothing_lost(&chatty);
}

#[test]
fn circusd_goes_on_over_changes_of_the_kernels_program() {
    let Some((mut circus, chatty, web)) = Circus::writing() else {
        return;
    };

    let mut session = circus.kernel.json();
    for keeper in [false, false, true, false] {
        session.ok("kernel.upgrade", json!({ "keeper": keeper }));
        // The very circusd that runs goes on: its watch, which it cannot make anew, is still the
        // one it had.
        circus.wait_for_new_lines(&chatty);
        assert_eq!(vec![circus.web_pid()], web);
    }
    circus.assert_each_once(&chatty);
    circus.ctl(&["incr", "chatty"], "ok");
    wait_until("another worker runs", || circus.pids("chatty").len() == 3);
    circus.ctl(&["stop", "chatty"], "ok");
    wait_until("the stopped workers are gone", || {
        circus.kernel_pids("chatty").is_empty()
    });
    circus.assert_each_once(&chatty);
    assert_eq!(circus.pids("web"), web);
    circus.kernel.status();
}
