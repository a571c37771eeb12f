//! Log files: whole lines, prefixes, rotation, files that cannot be written for a while.

use std::fs;

use crate::stack::Stack;
use papa_harness::{binary, private_command, wait_until};

#[test]
fn lines_are_whole_however_they_were_written() {
    let stack = Stack::start(
        "[watcher:slow]\ncmd = sh -c 'printf one; sleep 0.2; printf \" line\\n\"; printf tail; exec 1>&-; exec sleep 1000'\n\
         copy_env = true\nstdout_stream.class = FileStream\nstdout_stream.filename = DIR/logs/slow.log\n\
         stdout_stream.time_format = <%Y>\n",
    );
    let pid = stack.wait_pids("slow", 1)[&1];
    wait_until("both lines are written", || {
        stack
            .log("slow.log")
            .iter()
            .filter(|byte| **byte == b'\n')
            .count()
            == 2
    });
    let text = String::from_utf8(stack.log("slow.log")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[0].starts_with("<2") && lines[0].ends_with(&format!("[{pid}] | one line")),
        "{text}"
    );
    assert!(lines[1].ends_with(&format!("[{pid}] | tail")), "{text}");
}

#[test]
fn bytes_without_a_format_pass_unchanged() {
    let stack = Stack::start(
        "[watcher:raw]\ncmd = sh -c 'printf \"\\377\\000\\n\\n  x\"; exec sleep 1000'\ncopy_env = true\n\
         stdout_stream.class = FileStream\nstdout_stream.filename = DIR/logs/raw.log\n",
    );
    wait_until("the lines are written", || stack.log("raw.log").len() == 4);
    stack.request("stop", "raw");
    wait_until("the tail is written at the end", || {
        stack.log("raw.log").len() == 7
    });
    assert_eq!(stack.log("raw.log"), b"\xff\x00\n\n  x");
}

#[test]
fn a_file_is_rotated_by_size_and_old_ones_go() {
    let stack = Stack::start(
        "[watcher:w]\ncmd = sh -c 'i=0; while [ $i -lt 500 ]; do echo line $i; i=$((i+1)); done; exec sleep 1000'\n\
         copy_env = true\nstdout_stream.class = FileStream\nstdout_stream.filename = DIR/logs/w.log\n\
         stdout_stream.max_bytes = 1000\nstdout_stream.backup_count = 2\n",
    );
    wait_until("the last line is written", || {
        stack.log("w.log").ends_with(b"line 499\n")
    });
    let directory = stack.kernel.directory().join("logs");
    let mut files: Vec<(String, u64)> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (
                entry.file_name().into_string().unwrap(),
                entry.metadata().unwrap().len(),
            )
        })
        .collect();
    files.sort();
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["w.log", "w.log.1", "w.log.2"]);
    assert!(files.iter().all(|(_, size)| *size < 1000), "{files:?}");
    // What is kept is the end of what was written: each line once, whole, in order, over the
    // borders of the files.
    let kept: String = ["w.log.2", "w.log.1", "w.log"]
        .map(|name| fs::read_to_string(directory.join(name)).unwrap())
        .concat();
    let count = kept.lines().count();
    let expected: String = (500 - count..500)
        .map(|number| format!("line {number}\n"))
        .collect();
    assert_eq!(kept, expected);
    assert!(count > 2 * 1000 / "line 499\n".len() - 10, "{count}");
}

#[test]
fn output_waits_in_the_kernel_while_its_file_cannot_be_written() {
    let stack = Stack::start(
        "[watcher:lost]\ncmd = sh -c 'echo first; echo second; exec sleep 1000'\ncopy_env = true\n\
         stdout_stream.class = FileStream\nstdout_stream.filename = DIR/absent/lost.log\n\
         [watcher:well]\ncmd = sh -c 'while :; do echo beat; sleep 0.05; done'\ncopy_env = true\n\
         stdout_stream.class = FileStream\nstdout_stream.filename = DIR/logs/well.log\n",
    );
    wait_until("the manager says what is wrong", || {
        let status = stack.request("status", "lost");
        let message = status["watchers"][0]["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        // The number comes with the first look after the failure.
        message.contains("/absent/lost.log cannot be written: No such file or directory; ")
            && message.contains("lines wait in the kernel (1 KiB); make its directory")
    });
    let logs = |arguments: &[&str]| {
        let mut command = private_command(&binary("papactl"), stack.kernel.directory());
        let output = command.args(arguments).output().unwrap();
        (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (printed, _) = logs(&["doctor"]);
    let words: Vec<_> = printed.split_whitespace().collect();
    assert!(
        words
            .join(" ")
            .contains("absent/lost.log cannot be written"),
        "{printed}"
    );
    // It would show what an earlier run wrote.
    let (_, said) = logs(&["logs", "lost", "well"]);
    assert!(
        said.contains("what is shown of it was written before that"),
        "{said}"
    );
    assert_eq!(said.matches("cannot be written").count(), 1, "{said}");
    let before = stack.log("well.log").len();
    wait_until("the other file grows on", || {
        stack.log("well.log").len() > before + 20
    });
    let directory = stack.kernel.directory().join("absent");
    fs::create_dir(&directory).unwrap();
    wait_until("the output is written after all", || {
        fs::read(directory.join("lost.log")).is_ok_and(|text| text == b"first\nsecond\n")
    });
    wait_until("nothing is said any more", || {
        stack.request("status", "lost")["watchers"][0]["message"].is_null()
    });
}

#[test]
fn a_moved_file_is_left_when_asked_to_reopen() {
    let stack = Stack::start(
        "[watcher:w]\ncmd = sh -c 'i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done'\ncopy_env = true\n\
         stdout_stream.class = FileStream\nstdout_stream.filename = DIR/logs/w.log\n",
    );
    wait_until("there is a log", || !stack.log("w.log").is_empty());
    let directory = stack.kernel.directory().join("logs");
    fs::rename(directory.join("w.log"), directory.join("w.log.1")).unwrap();
    stack.signal_manager(nix::sys::signal::Signal::SIGUSR1);
    wait_until("there is a new log", || {
        fs::metadata(directory.join("w.log")).is_ok_and(|data| data.len() > 20)
    });
    let text = String::from_utf8(stack.log("w.log")).unwrap();
    for (expected, line) in text.lines().enumerate() {
        assert_eq!(line, expected.to_string());
    }
}

/// A file system of a few pages, gone at the end.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(path: std::path::PathBuf) -> Option<Self> {
        fs::create_dir(&path).unwrap();
        let disk = Self(path);
        disk.run("mount", &["-t", "tmpfs", "-o", "size=64k", "small"])
            .then_some(disk)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> bool {
        let mut command = std::process::Command::new(program);
        command
            .args(arguments)
            .arg(&self.0)
            .stderr(std::process::Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        self.run("umount", &["-l"]);
    }
}

#[test]
fn a_full_disk_costs_no_line_even_if_the_manager_is_killed_meanwhile() {
    let directory = tempfile::tempdir().unwrap();
    // Needs privileges that a container may lack; nothing else makes a write fail in the middle.
    let Some(disk) = SmallDisk::mount(directory.path().join("small")) else {
        println!("skipped: a file system cannot be mounted here");
        return;
    };
    let log = disk.0.join("w.log");
    let mut stack = Stack::start(&format!(
        "[watcher:w]\ncmd = sh -c 'i=0; while [ $i -lt 20000 ]; do echo $i abcdefgh; i=$((i+1)); done; exec sleep 1000'\n\
         copy_env = true\nstdout_stream.class = FileStream\nstdout_stream.filename = {}\n",
        log.display()
    ));
    let full = || fs::metadata(&log).is_ok_and(|data| data.len() == 64 * 1024);
    wait_until("the disk is full", full);
    stack.kill_manager();
    stack.start_manager();
    wait_until("the manager says so", || {
        let status = stack.request("status", "w");
        let message = status["watchers"][0]["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        message.contains("No space left")
    });
    assert!(disk.run("mount", &["-o", "remount,size=8m"]));
    let text = || fs::read_to_string(&log).unwrap_or_default();
    wait_until("everything is written", || text().lines().count() >= 20_000);
    for (number, line) in text().lines().enumerate() {
        assert_eq!(line, format!("{number} abcdefgh"));
    }
}

#[test]
fn below_a_hard_limit_on_file_size_logging_came_to_an_end() {
    let stack = Stack::start_below_file_limit(
        "[watcher:w]\ncmd = seq 1000000\ncopy_env = true\nrespawn = no\nstdout_stream.class = FileStream\n\
         stdout_stream.filename = DIR/logs/w.log\nstdout_stream.max_bytes = 0\n",
        2048,
    );
    // 6.9 MB: more than any file of the kernel's may have. The manager's own limit is another.
    wait_until("the last line is written", || {
        stack.log("w.log").ends_with(b"\n1000000\n")
    });
    let log = stack.log("w.log");
    let lines = log
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty());
    for (line, number) in lines.zip(1..) {
        assert_eq!(line, format!("{number}").as_bytes());
    }
    assert_eq!(log.len(), 6_888_896);
    let findings = stack.request_all("doctor").to_string();
    assert!(
        findings.contains("its files may have 2097152 bytes at most"),
        "{findings}"
    );
}

/// Sets a limit on file size for the running kernel.
fn limit_files(stack: &mut Stack, bytes: u64) {
    let pid = stack.kernel.pid().to_string();
    let limit = format!("--fsize={bytes}:{bytes}");
    let set = std::process::Command::new("prlimit")
        .args(["--pid", &pid, &limit])
        .status();
    assert!(set.unwrap().success());
}

#[test]
fn a_reel_that_moved_below_a_limit_left_its_log_unwhole() {
    let mut stack = Stack::start(
        "[watcher:w]\ncmd = sh -c 'seq 600000; until [ -e DIR/go ]; do sleep 0.01; done; seq 600001 1200000; exec sleep 1000'\n\
         copy_env = true\nstdout_stream.filename = DIR/logs/w.log\nstdout_stream.max_bytes = 0\n",
    );
    let ends_with = |stack: &Stack, text: &str| stack.log("w.log").ends_with(text.as_bytes());
    wait_until("the first half is logged", || {
        ends_with(&stack, "\n600000\n")
    });
    // Less than the reel's offsets have come to already.
    limit_files(&mut stack, 2 << 20);
    fs::write(stack.kernel.directory().join("go"), "").unwrap();
    wait_until("all is logged", || ends_with(&stack, "\n1200000\n"));
    let mut expected = Vec::new();
    for number in 1..=1_200_000 {
        std::io::Write::write_fmt(&mut expected, format_args!("{number}\n")).unwrap();
    }
    assert!(
        stack.log("w.log") == expected,
        "lines were lost or repeated"
    );
}

#[test]
fn a_reel_that_could_not_be_written_stopped_its_worker_and_nothing_said_why() {
    let mut stack = Stack::start(
        "[watcher:w]\ncmd = sh -c 'until [ -e DIR/go ]; do sleep 0.01; done; head -c 20000000 /dev/zero; exec sleep 1000'\n\
         copy_env = true\nstdout_stream.filename = DIR/absent/w.log\n",
    );
    stack.wait_pids("w", 1);
    // A limit that comes later, and below which there is no room for any output.
    limit_files(&mut stack, 200_000);
    fs::write(stack.kernel.directory().join("go"), "").unwrap();
    let is_said = |text: &str| {
        text.contains("its output cannot be stored: ") && text.contains("File too large")
    };
    wait_until("status says so", || {
        let status = stack.request("status", "w");
        let message = status["watchers"][0]["message"].as_str();
        message.is_some_and(is_said)
    });
    let doctor = private_command(&binary("papactl"), stack.kernel.directory())
        .arg("doctor")
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&doctor.stdout);
    let finding = printed
        .lines()
        .any(|line| line.starts_with("problem  output "));
    let words: Vec<_> = printed.split_whitespace().collect();
    assert!(finding && is_said(&words.join(" ")), "{printed}");
    assert!(!doctor.status.success());
}
