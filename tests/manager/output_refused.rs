//! Whoever reads what the programs print has gone, the disk is full, or nobody was there to begin
//! with: no verb panics, hangs, or stops in the middle of its work.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};

use papa_harness::{Site, binary, private_command, wait_for, wait_until};

const WATCHERS: &str = "[watcher:web]\ncmd = sh -c 'echo started; exec sleep 1000'\ncopy_env = true\n\
    [watcher:worker]\ncmd = sleep 1000\n[socket:api]\npath = DIR/api.sock\n";

/// Every verb once, in an order in which all of them succeed and print something. Whatever takes
/// its time is not waited for.
const LINES: [&str; 40] = [
    "up site.ini",
    "status",
    "status --check",
    "start --no-wait",
    "stop worker --no-wait",
    "start worker --no-wait",
    "restart web --no-wait",
    "reload web --no-wait",
    "reloadconfig --plan",
    "reloadconfig",
    "reread",
    "scale worker 2 --no-wait",
    "incr worker --no-wait",
    "decr worker --no-wait",
    "set worker max_retry 4",
    "get worker max_retry",
    "options web worker",
    "add --start extra sleep 1000",
    "rm extra",
    "signal web CONT",
    "kill worker --no-wait",
    "list",
    "stats",
    "dstats",
    "logs web",
    "listsockets",
    "check site.ini",
    "kernel status",
    "kernel dump",
    "kernel upgrade --dry-run",
    "upgrade",
    "reopenlogs",
    "doctor --verbose",
    "version",
    "completions bash",
    "numprocesses",
    "numwatchers",
    "globaloptions",
    "quit",
    "help",
];

/// Where output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    /// A pipe whose reader has gone: `| true`.
    ReaderGone,
    /// A full disk.
    Full,
    /// Both streams to a full disk.
    BothFull,
    /// Both streams were closed by whoever started the program: `>&- 2>&-`.
    Closed,
}

fn full() -> File {
    OpenOptions::new().write(true).open("/dev/full").unwrap()
}

/// Runs a program to its end with its output going there; answers also what it said.
fn run(site: &Site, program: &str, arguments: &[&str], output: Output) -> (ExitStatus, String) {
    let directory = site.scratch.directory();
    let program = binary(program);
    let mut command: Command = if output == Output::Closed {
        let mut shell = private_command("sh".as_ref(), directory);
        shell
            .args(["-c", "exec \"$0\" \"$@\" >&- 2>&-"])
            .arg(program);
        shell
    } else {
        private_command(&program, directory)
    };
    command.current_dir(directory).args(arguments);
    match output {
        Output::ReaderGone => command.stdout(Stdio::piped()).stderr(Stdio::piped()),
        Output::Full => command.stdout(full()).stderr(Stdio::piped()),
        Output::BothFull => command.stdout(full()).stderr(full()),
        Output::Closed => command.stdout(Stdio::null()).stderr(Stdio::null()),
    };
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    end_of(&mut child, &format!("{arguments:?} {output:?}"))
}

/// How it ended, which it does in time, and what it said.
#[track_caller]
fn end_of(child: &mut Child, what: &str) -> (ExitStatus, String) {
    let status = wait_for(&format!("{what} ends"), || child.try_wait().unwrap());
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut said).unwrap();
    }
    assert!(!said.contains("panicked"), "{what}: {said}");
    (status, said)
}

#[test]
fn verbs_whose_output_nobody_took_panicked_or_stopped_halfway() {
    let site = Site::new(WATCHERS);
    for output in [
        Output::ReaderGone,
        Output::Full,
        Output::BothFull,
        Output::Closed,
    ] {
        for line in LINES {
            let words: Vec<&str> = line.split(' ').collect();
            let (status, said) = run(&site, "papactl", &words, output);
            // The command line parser prints help itself, and nobody's work depends on it.
            let expected = match output {
                Output::Full | Output::BothFull if line != "help" => 1,
                _ => 0,
            };
            assert_eq!(status.code(), Some(expected), "{line} {output:?}: {said}");
            if output == Output::Full && line != "help" {
                assert!(said.contains("No space left"), "{line}: {said}");
            }
            if line == "up site.ini" {
                assert_eq!(site.pids("web").len(), 1, "{line} {output:?}");
            }
        }
    }
    site.done("up site.ini");
    let (status, said) = run(&site, "papactl", &["down"], Output::ReaderGone);
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(!site.scratch.directory().join("k.sock").exists());
}

#[test]
fn a_verb_was_missing_from_the_table_above() {
    let help = Command::new(binary("papactl"))
        .arg("help")
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let verbs = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next());
    let tried: BTreeSet<&str> = LINES
        .iter()
        .filter_map(|line| line.split(' ').next())
        .chain(["down", "listen"])
        .collect();
    let missing: Vec<&str> = verbs.filter(|verb| !tried.contains(verb)).collect();
    assert_eq!(missing, Vec::<&str>::new(), "{help}");
}

#[test]
fn work_for_several_watchers_ended_with_the_reader_of_the_first_answer() {
    let site = Site::new(WATCHERS);
    site.done("up site.ini");
    for output in [Output::ReaderGone, Output::Full] {
        let (_, said) = run(&site, "papactl", &["stop", "web", "worker"], output);
        let statuses = &site.status()["statuses"];
        assert_eq!(statuses["web"], "stopped", "{output:?}: {said}");
        assert_eq!(statuses["worker"], "stopped", "{output:?}: {said}");
        site.done("start --no-wait");
    }
}

#[test]
fn a_verdict_depended_on_whether_somebody_read_it() {
    let site = Site::new("[watcher:dies]\ncmd = false\ncopy_env = true\n");
    let (status, said) = run(&site, "papactl", &["up", "site.ini"], Output::ReaderGone);
    assert_eq!(status.code(), Some(1), "{said}");
    wait_until("it keeps failing", || {
        site.papactl("doctor").status.code() == Some(1)
    });
    for (line, code) in [("status --check", 3), ("doctor", 1)] {
        let words: Vec<&str> = line.split(' ').collect();
        let (status, said) = run(&site, "papactl", &words, Output::ReaderGone);
        assert_eq!(status.code(), Some(code), "{line}: {said}");
    }
}

#[test]
fn a_follower_without_a_reader_waited_for_the_next_line() {
    let site = Site::new(WATCHERS);
    site.done("up site.ini");
    for words in [&["listen"][..], &["logs", "-f"]] {
        let mut child = private_command(&binary("papactl"), site.scratch.directory())
            .current_dir(site.scratch.directory())
            .args(words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Nothing happens that it could print.
        drop(child.stdout.take());
        let (status, said) = end_of(&mut child, words[0]);
        assert_eq!(status.code(), Some(0), "{words:?}: {said}");
    }
}

#[test]
fn programs_panicked_where_their_help_or_their_errors_could_not_be_written() {
    let site = Site::new("[watcher:web]\nnumprocesses = many\n");
    let file = site.scratch.directory().join("site.ini");
    assert!(fs::exists(&file).unwrap());
    for output in [
        Output::ReaderGone,
        Output::Full,
        Output::BothFull,
        Output::Closed,
    ] {
        for (program, arguments, code) in [
            ("papa", &["--help"][..], 0),
            ("papa", &["--version"], 0),
            ("papa", &["--nosuch"], 2),
            ("papa", &["--unix-socket", "/no/such/directory/k.sock"], 1),
            ("papa-manager", &["--help"], 0),
            ("papa-manager", &["--nosuch"], 2),
            ("papa-manager", &["site.ini"], 2),
            ("papa-manager", &["site.ini", "--check"], 2),
            ("papactl", &["--help"], 0),
            ("papactl", &["--nosuch"], 2),
            ("papactl", &["restrat"], 2),
            ("papactl", &["supervise"], 2),
            ("papactl", &["check", "site.ini"], 2),
            ("papactl", &["up", "site.ini"], 2),
            ("papactl", &["status"], 1),
        ] {
            let (status, said) = run(&site, program, arguments, output);
            assert_eq!(
                status.code(),
                Some(code),
                "{program} {arguments:?} {output:?}: {said}"
            );
        }
    }
}
