//! `papactl logs`: the end of files and of what the kernel keeps, and what comes, while files are
//! turned and managers die.

use std::fs::{self, File};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::stack::Stack;
use papa_harness::{binary, private_command, procfs, wait_for, wait_until};

fn papactl(stack: &Stack, line: &[&str]) -> Command {
    let mut command = private_command(&binary("papactl"), stack.kernel.directory());
    command
        .current_dir(stack.kernel.directory())
        .stdin(Stdio::null())
        .arg("logs")
        .args(line);
    command
}

fn run(stack: &Stack, line: &[&str]) -> Output {
    papactl(stack, line).output().unwrap()
}

/// What is printed by a command that succeeds.
#[track_caller]
fn logs(stack: &Stack, line: &[&str]) -> String {
    let output = run(stack, line);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "papactl logs {line:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// A `papactl logs -f`, ended with the test.
struct Follower {
    child: Child,
    path: std::path::PathBuf,
}

impl Follower {
    fn start(stack: &Stack, line: &[&str]) -> Self {
        let path = stack.kernel.directory().join("followed");
        // In the background of a script without job control an interrupt is ignored, and that is
        // inherited.
        let child = private_command("env".as_ref(), stack.kernel.directory())
            .arg("--default-signal=INT")
            .arg(binary("papactl"))
            .current_dir(stack.kernel.directory())
            .stdin(Stdio::null())
            .arg("logs")
            .args(line)
            .arg("-f")
            .stdout(File::create(&path).unwrap())
            .stderr(File::create(path.with_extension("errors")).unwrap())
            .spawn()
            .unwrap();
        Self { child, path }
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.path).unwrap()
    }

    fn said(&self) -> String {
        fs::read_to_string(self.path.with_extension("errors")).unwrap()
    }

    #[track_caller]
    fn wait_for_text(&self, what: &str) {
        wait_until(&format!("{what:?} is printed"), || {
            self.text().contains(what)
        });
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the follower said\n{}---", self.said());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command that counts until it is told to stop.
fn counter(pause: &str) -> String {
    format!(
        "sh -c 'i=0; while [ ! -e DIR/enough ]; do echo $i; i=$((i+1)); {pause}; done; echo end; exec sleep 1000'\ncopy_env = true"
    )
}

/// The numbers of a text, which must be those from the first on, each once and in order; then
/// `end`.
#[track_caller]
fn check_count(text: &str, first: usize) -> usize {
    let lines = text.lines().skip_while(|line| *line != first.to_string());
    for (next, line) in (first..).zip(lines) {
        if line == "end" {
            return next;
        }
        assert_eq!(line, next.to_string());
    }
    panic!("no end in {} lines", text.lines().count());
}

#[test]
fn a_file_is_followed_while_the_manager_is_killed_and_files_are_turned() {
    let mut stack = Stack::start(&format!(
        "[watcher:w]\ncmd = {}\nstdout_stream.class = FileStream\nstdout_stream.filename = DIR/logs/w.log\n\
         stdout_stream.max_bytes = 300\nstdout_stream.backup_count = 5000\nstdout_stream.compress = gzip\n",
        counter("sleep 0.001")
    ));
    wait_until("there is a log", || !stack.log("w.log").is_empty());
    let follower = Follower::start(&stack, &["w", "-n", "100000"]);
    for round in 1..=4 {
        let before = follower.text().len();
        wait_until("more is printed", || follower.text().len() > before + 1500);
        if round % 2 == 0 {
            stack.kill_manager();
            stack.start_manager();
        }
    }
    fs::write(stack.kernel.directory().join("enough"), "").unwrap();
    follower.wait_for_text("end\n");
    let count = check_count(&follower.text(), 0);
    assert!(count > 500, "{count}");
    let files = fs::read_dir(stack.kernel.directory().join("logs")).unwrap();
    assert!(files.count() > 5);
    // The same again from the files at rest, most of them compressed.
    let text = logs(&stack, &["w", "-n", "100000"]);
    assert_eq!(check_count(&text, 0), count);
    let last = logs(&stack, &["w", "-n", "200"]);
    assert_eq!(check_count(&last, count - 199), count);
}

#[test]
fn a_file_that_is_turned_by_time_is_followed() {
    let stack = Stack::start(&format!(
        "[watcher:w]\ncmd = {}\nstdout_stream.class = TimedRotatingFileStream\nstdout_stream.filename = DIR/logs/w.log\n\
         stdout_stream.rotate_when = S\nstdout_stream.max_bytes = 400\nstdout_stream.compress = gzip\n",
        counter("sleep 0.005")
    ));
    wait_until("there is a log", || {
        stack.kernel.directory().join("logs/w.log").exists()
    });
    let follower = Follower::start(&stack, &["-n", "100000"]);
    let files = || {
        fs::read_dir(stack.kernel.directory().join("logs"))
            .unwrap()
            .count()
    };
    wait_until("some files are turned", || files() > 4);
    fs::write(stack.kernel.directory().join("enough"), "").unwrap();
    follower.wait_for_text("end\n");
    let count = check_count(&follower.text(), 0);
    assert_eq!(check_count(&logs(&stack, &["-n", "100000"]), 0), count);
}

#[test]
fn output_in_no_file_is_followed_from_the_kernel() {
    let mut stack = Stack::start(&format!(
        "[watcher:Web]\ncmd = {}\n[watcher:web.other]\ncmd = sh -c 'echo other; exec sleep 1000'\ncopy_env = true\n",
        counter("sleep 0.005")
    ));
    let pid = stack.wait_pids("web", 1)[&1];
    wait_until("something is kept", || {
        logs(&stack, &["WEB"]).lines().count() == 10
    });
    let follower = Follower::start(&stack, &["web", "-n", "100000"]);
    follower.wait_for_text("0\n1\n2\n");
    // Neither manager nor kernel is needed for long.
    stack.kill_manager();
    let before = follower.text().len();
    wait_until("more is printed without a manager", || {
        follower.text().len() > before + 50
    });
    stack.start_manager();
    stack.kernel.kill_kernel();
    let before = follower.text().len();
    wait_until("more is printed by the next kernel", || {
        follower.text().len() > before + 50
    });
    fs::write(stack.kernel.directory().join("enough"), "").unwrap();
    follower.wait_for_text("end\n");
    let count = check_count(&follower.text(), 0);
    assert!(!follower.text().contains("other"));
    // Nothing was acknowledged by looking.
    assert_eq!(
        check_count(&logs(&stack, &["web", "-n", "100000"]), 0),
        count
    );
    let line: Value = serde_json::from_str(&logs(&stack, &["web", "-n1", "--json"])).unwrap();
    assert_eq!(
        (
            &line["watcher"],
            &line["wid"],
            &line["pid"],
            &line["stream"],
            &line["line"]
        ),
        (
            &"Web".into(),
            &1.into(),
            &pid.into(),
            &"stdout".into(),
            &"end".into()
        )
    );
    assert!(line["time"].is_string());
}

#[test]
fn workers_and_watchers_that_come_later_are_followed() {
    let stack = Stack::start(
        "[watcher:w]\ncmd = sh -c 'echo worker $$; exec sleep 1000'\ncopy_env = true\n",
    );
    let pid = stack.wait_pids("w", 1)[&1];
    let follower = Follower::start(&stack, &[]);
    follower.wait_for_text(&format!("worker {pid}\n"));
    procfs::signal(pid, Signal::SIGKILL);
    let next = wait_for("there is another worker", || {
        stack.pids("w").into_values().find(|other| *other != pid)
    });
    follower.wait_for_text(&format!("worker {next}\n"));
    assert_eq!(follower.text(), format!("worker {pid}\nworker {next}\n"));
    let mut add = private_command(&binary("papactl"), stack.kernel.directory());
    add.args([
        "add",
        "--start",
        "-o",
        "copy_env=true",
        "late",
        "sh -c 'echo late; exec sleep 1000'",
    ]);
    assert!(add.output().unwrap().status.success());
    follower.wait_for_text("late.1 | late\n");
}

#[test]
fn files_and_live_output_are_shown_together() {
    let stack = Stack::start(
        "[watcher:both]\ncmd = sh -c 'echo out; echo err >&2; exec sleep 1000'\ncopy_env = true\n\
         stdout_stream.class = FileStream\nstdout_stream.filename = DIR/logs/out.log\n\
         [watcher:live]\ncmd = sh -c 'echo one; echo two >&2; printf three; exec sleep 1000'\ncopy_env = true\n\
         [watcher:silent]\ncmd = sh -c 'echo nothing; exec sleep 1000'\ncopy_env = true\nclose_child_stdout = true\nclose_child_stderr = true\n",
    );
    wait_until("the file is written", || stack.log("out.log") == b"out\n");
    wait_until("everything is there", || {
        logs(&stack, &[]) == "both   | out\nlive.1 | one\nlive.1 | two\nlive.1 | three\n"
    });
    assert_eq!(logs(&stack, &["l*", "-n", "1"]), "three\n");
    let output = run(&stack, &["silent"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("goes nowhere"));
}

#[test]
fn one_log_that_cannot_be_read_hid_all_others() {
    let stack = Stack::start(
        "[watcher:bad]\ncmd = sleep 1000\nstdout_stream.class = FileStream\nstdout_stream.filename = DIR/logs/bad.log\n\
         [watcher:good]\ncmd = sh -c 'echo here; exec sleep 1000'\ncopy_env = true\n\
         stdout_stream.class = FileStream\nstdout_stream.filename = DIR/logs/good.log\n",
    );
    wait_until("the file is written", || stack.log("good.log") == b"here\n");
    let bad = stack.kernel.directory().join("logs/bad.log");
    let _ = std::fs::remove_file(&bad);
    std::fs::create_dir(&bad).unwrap();
    let output = run(&stack, &[]);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).contains("here"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("bad.log"));
}

#[test]
fn lines_since_a_moment_are_found_by_what_they_say() {
    let mut stack = Stack::start(
        "[watcher:w]\ncmd = sh -c 'exec sleep 1000'\n\
         stdout_stream.class = FileStream\nstdout_stream.filename = DIR/logs/w.log\nstdout_stream.time_format = %Y-%m-%d %H:%M:%S\n\
         stderr_stream.class = json\nstderr_stream.filename = DIR/logs/w.json\n\
         [watcher:plain]\ncmd = sh -c 'exec sleep 1000'\nstdout_stream.class = FileStream\nstdout_stream.filename = DIR/logs/p.log\n\
         [watcher:live]\ncmd = sh -c 'echo kept; exec sleep 1000'\ncopy_env = true\n",
    );
    let directory = stack.kernel.directory().join("logs");
    let stamped = |hour: u32| format!("2026-11-21 {hour:02}:00:00 [7] | line {hour}\n");
    let lines: Vec<String> = (10..20).map(stamped).collect();
    fs::write(directory.join("w.log.1"), lines[..5].concat()).unwrap();
    fs::write(directory.join("w.log"), lines[5..].concat()).unwrap();
    let object =
        |hour: u32| format!("{{\"time\":\"2026-11-21T{hour}:00:00+00:00\",\"line\":\"{hour}\"}}\n");
    fs::write(directory.join("w.json"), [object(10), object(12)].concat()).unwrap();
    fs::write(directory.join("p.log"), "plain\n").unwrap();
    let since = |moment: &str| logs(&stack, &["w", "--since", moment]);
    let only = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| line.contains("[7]"));
        lines
            .map(|line| line.rsplit("line ").next().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        only(&since("2026-11-21 13:30")),
        ["14", "15", "16", "17", "18", "19"]
    );
    assert_eq!(only(&since("2026-11-21 19:00:00")), ["19"]);
    assert_eq!(only(&since("2027-01-01")), [""; 0]);
    let both = logs(&stack, &["w", "--since", "2026-11-21 12:00", "-n", "2"]);
    assert_eq!(only(&both), ["18", "19"]);
    let objects = logs(&stack, &["w", "--json", "--since", "2026-11-21T11:00:00Z"]);
    let objects = objects.lines().filter(|line| line.contains("T1")).count();
    assert_eq!(objects, 1);
    // Lines that say nothing are as old as their file, and that is said.
    let output = run(&stack, &["plain", "--since", "1h"]);
    assert_eq!(output.stdout, b"plain\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("do not say when"));
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
    let file = File::options()
        .append(true)
        .open(directory.join("p.log"))
        .unwrap();
    file.set_modified(old).unwrap();
    assert_eq!(logs(&stack, &["plain", "--since", "1h"]), "");
    // The kernel knows when it read what it keeps.
    wait_until("something is kept", || {
        logs(&stack, &["live", "--since", "1m"]) == "kept\n"
    });
    assert_eq!(logs(&stack, &["live", "--since", "2027-01-01"]), "");
    let output = run(&stack, &["--since", "soon"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("expected so long ago"));
    // Without a manager the file says where the logs are.
    stack.kill_manager();
    let text = logs(&stack, &["W", "-n", "1", "--config", "stack.ini"]);
    assert_eq!(only(&text), ["19"]);
}

#[test]
fn following_ends_with_its_reader_and_quietly_when_interrupted() {
    let stack =
        Stack::start("[watcher:w]\ncmd = sh -c 'echo up; exec sleep 1000'\ncopy_env = true\n");
    stack.wait_pids("w", 1);
    let mut follower = Follower::start(&stack, &[]);
    follower.wait_for_text("up\n");
    procfs::signal(i32::try_from(follower.child.id()).unwrap(), Signal::SIGINT);
    wait_until("it has ended", || {
        follower.child.try_wait().unwrap().is_some()
    });
    assert_eq!(
        (follower.text().as_str(), follower.said().as_str()),
        ("up\n", "")
    );
    let mut child = papactl(&stack, &["-f"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let status = wait_for("it has ended", || child.try_wait().unwrap());
    assert!(status.success());
}
