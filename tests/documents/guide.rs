//! The commands of README.md, manager/README.md and kernel/README.md, typed one after the other.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use nix::sys::signal::Signal;

use papa_harness::{
    Classic, Scratch, binary, free_port, private_command, procfs, skipped, wait_until,
};

use crate::pages::{Page, top};
use crate::shown::{Typed, masked, typed};

/// Somebody who reads a page and types what it says, in a directory of their own.
struct Reader {
    scratch: Scratch,
    port: u16,
}

impl Reader {
    fn new() -> Self {
        Self {
            scratch: Scratch::new(),
            port: free_port(),
        }
    }

    /// Writes a file with a kernel's port of this reader's own.
    fn write(&self, name: &str, ini: &str) {
        let path = self.scratch.directory().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let circus = format!("[circus]\npapa_endpoint = tcp://127.0.0.1:{}\n", self.port);
        fs::write(path, format!("{circus}{ini}")).unwrap();
    }

    /// A shell for one line, in which our programs come first.
    fn shell(&self, line: &str) -> Command {
        let programs = binary("papactl").parent().unwrap().to_owned();
        let path = std::env::var("PATH").unwrap_or_default();
        let here = self.scratch.directory();
        let path = format!("{}:{}:{path}", here.display(), programs.display());
        let mut command = private_command("/bin/sh".as_ref(), here);
        command
            .current_dir(here)
            .env("PATH", path)
            .env("HOME", here)
            .args(["-c", line]);
        command
    }

    fn run(&self, line: &str) -> Output {
        self.shell(line).output().unwrap()
    }

    /// What `pkill -9 NAME` does, to processes of this reader's alone.
    fn kill_named(&self, name: &str) {
        let found: Vec<i32> = self
            .scratch
            .processes()
            .into_iter()
            .filter(|pid| {
                fs::read_to_string(format!("/proc/{pid}/comm"))
                    .is_ok_and(|comm| comm.trim() == name)
            })
            .collect();
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        procfs::signal(found[0], Signal::SIGKILL);
        wait_until("the process is gone", || !procfs::alive(found[0]));
    }

    /// Types a command, and compares what it prints, if the page shows that.
    #[track_caller]
    fn follow(&self, typed: &Typed) {
        let command = &typed.command;
        if let Some(name) = command.strip_prefix("pkill -9 ") {
            return self.kill_named(name);
        }
        let output = self.run(command);
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let refused = command.contains("/bin/false");
        assert_eq!(
            output.status.success(),
            !refused,
            "{command}: {printed}{said}"
        );
        if typed.output.is_empty() {
            return;
        }
        let shown: Vec<String> = typed.output.iter().map(|line| masked(line)).collect();
        let printed: Vec<String> = printed.lines().map(masked).collect();
        assert_eq!(printed, shown, "{command}");
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.run("papactl down --timeout 10");
    }
}

#[test]
fn the_first_page_can_be_followed_from_its_first_command_to_its_last() {
    let page = Page::open("README.md");
    let reader = Reader::new();
    let file = "examples/quickstart.ini";
    reader.write(file, &Page::open(file).text);
    let block = page.block("## Five minutes");
    let telnet = block.iter().position(|line| line.starts_with("$ telnet"));
    let telnet = telnet.expect("the page talks to the kernel by hand");
    let mut commands = 0;
    for (number, typed) in typed(&block).iter().enumerate() {
        if number == 0 {
            assert!(
                typed.command.starts_with("export PATH="),
                "{}",
                typed.command
            );
        } else if typed.command.starts_with("telnet ") {
            let mut session = Classic::tcp(reader.port);
            let lines = block[telnet + 1..].iter();
            for line in lines.take_while(|line| !line.starts_with("$ ")) {
                session.send(line);
                let answer = session.read_to("\n");
                assert!(!answer.starts_with("Error"), "{line}: {answer}");
            }
        } else {
            reader.follow(typed);
            commands += 1;
        }
    }
    assert!(commands > 10, "{commands}");
    assert!(reader.scratch.processes().is_empty(), "something runs on");
}

#[test]
fn the_guide_can_be_followed_with_one_service() {
    let page = Page::open("manager/README.md");
    let reader = Reader::new();
    let heading = "## One service";
    reader.write("clock.ini", page.fenced("ini", "[watcher:clock]"));
    let mut commands = 0;
    for typed in typed(&page.block(heading)) {
        if typed.command.contains("logs -f") {
            let mut child = reader
                .shell(&format!("exec {}", typed.command))
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut line = String::new();
            let mut lines = BufReader::new(child.stdout.take().unwrap());
            lines.read_line(&mut line).unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
            assert!(line.ends_with('\n'), "{line:?}");
        } else {
            reader.follow(&typed);
        }
        commands += 1;
    }
    assert!(commands > 5, "{commands}");
    assert!(reader.scratch.processes().is_empty(), "something runs on");
}

/// As much of gunicorn as the guide's file needs: it serves HTTP on the socket it inherits.
const GUNICORN: &str = "#!/usr/bin/env python3
import http.server, socket, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *words):
        pass
server = http.server.HTTPServer(('127.0.0.1', 0), Answer, bind_and_activate=False)
server.socket = socket.socket(fileno=int(sys.argv[-1].removeprefix('fd://')))
server.serve_forever()
";

#[test]
fn the_guide_can_be_followed_with_a_web_service() {
    if Command::new("python3").arg("--version").output().is_err() {
        return skipped("no python3");
    }
    let page = Page::open("manager/README.md");
    let reader = Reader::new();
    let here = reader.scratch.directory();
    let port = free_port().to_string();
    let ini = page.fenced("ini", "[socket:web]").replace("8080", &port);
    // The manager looks for programs in the PATH of whoever types `up`.
    reader.write("app.ini", &ini);
    fs::write(here.join("gunicorn"), GUNICORN).unwrap();
    assert!(reader.run("chmod +x gunicorn").status.success());
    let up = reader.run("papactl up app.ini");
    assert!(up.status.success(), "{up:?}");
    for heading in ["## A deploy", "## When something is wrong"] {
        for mut typed in typed(&page.block(heading)) {
            typed.command = typed.command.replace("NAME", "web");
            reader.follow(&typed);
        }
    }
    let down = reader.run("papactl down");
    assert!(down.status.success(), "{down:?}");
    let [foreground] = &typed(&page.block("## In a container, or under a service manager"))[..]
    else {
        panic!("one command was expected");
    };
    let mut child = reader
        .shell(&format!("exec {}", foreground.command))
        .spawn()
        .unwrap();
    wait_until("it serves", || {
        reader.run("papactl status --check").status.success()
    });
    procfs::signal(i32::try_from(child.id()).unwrap(), Signal::SIGTERM);
    assert!(child.wait().unwrap().success());
    wait_until("everything has ended", || {
        reader.scratch.processes().is_empty()
    });
}

#[test]
fn the_kernels_page_starts_kernels_that_serve() {
    let page = Page::open("kernel/README.md");
    let mut starts = 0;
    for line in page.block("# papa, the kernel") {
        let Some(command) = line
            .split("   ")
            .next()
            .filter(|line| line.starts_with("papa"))
        else {
            continue;
        };
        let reader = Reader::new();
        let here = reader.scratch.directory().display().to_string();
        let mut command = command.replace("/run/user/1000", &here);
        // The port that everybody has by default may be somebody's.
        if !command.contains(" -p ") && !command.contains(" -u ") {
            command = format!("{command} -p {}", reader.port);
        }
        let mut child = reader
            .shell(&format!("exec {command}"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        if command.contains("--daemonize") {
            assert!(child.wait().unwrap().success(), "{command}");
        }
        let runtime = reader.scratch.directory().join("papa");
        let socket = reader.scratch.directory().join("papa.sock");
        wait_until(&format!("`{command}` serves"), || {
            let sockets = fs::read_dir(&runtime).into_iter().flatten();
            let mut sockets = sockets.filter_map(|entry| Some(entry.ok()?.path()));
            sockets.any(|path| {
                path.extension().is_some_and(|ending| ending == "sock")
                    && papa_harness::Json::unix(&path).is_ok()
            }) || papa_harness::Json::unix(&socket).is_ok()
        });
        // Keepers outlive this; the scratch directory ends them.
        let _ = child.kill();
        let _ = child.wait();
        starts += 1;
    }
    assert!(starts >= 4, "{starts}");
}

#[test]
fn files_of_the_examples_have_no_mistake() {
    let scratch = Scratch::new();
    let mut checked = 0;
    for file in crate::pages::files() {
        if !(file.starts_with("examples/") && file.ends_with(".ini")) || file.contains("uwsgi") {
            continue;
        }
        let path = top().join(&file);
        let output = private_command(&binary("papactl"), scratch.directory())
            .current_dir(path.parent().unwrap())
            .arg("check")
            .arg(path.file_name().unwrap())
            .output()
            .unwrap();
        assert!(output.status.success(), "{file}: {output:?}");
        checked += 1;
    }
    assert!(checked >= 5, "{checked}");
}

/// Every line with `papactl` in an example of a page is one that papactl understands.
#[test]
fn no_page_shows_a_command_that_papactl_refuses() {
    let mut seen = 0;
    for page in crate::pages::pages() {
        for (number, line) in (1..).zip(page.text.lines()) {
            let Some(line) = line.strip_prefix("    ") else {
                continue;
            };
            let line = line.strip_prefix("$ ").unwrap_or(line);
            let Some(words) = line.strip_prefix("papactl ") else {
                continue;
            };
            let words = words.split("   ").next().unwrap();
            let words = words.split(" # ").next().unwrap();
            // The help is printed only if what stands before is understood.
            let output = Command::new(binary("papactl"))
                .args(words.split_whitespace())
                .arg("--help")
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}:{number}: {said}", page.path);
            seen += 1;
        }
    }
    assert!(seen > 25, "{seen}");
}
