//! Well-known HTTP servers behind sockets of ours, under load, through a reload: no request may
//! fail. They run from `examples/servers`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::stack::Stack;
use papa_harness::{Venv, procfs, skipped, wait_until_for};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/servers");

/// They take it that a socket they are given does not block, and stand still in `accept` if it
/// does.
const TRUST_THE_FLAG: [&str; 2] = ["tornado", "thumbor"];

/// So many clients at a time ask each server.
const CLIENTS: usize = 3;

/// Pause of a client between two requests: a dozen servers share one small machine.
const PAUSE: Duration = Duration::from_millis(10);

/// How long all servers may take to start, or to be replaced, one beside the other.
const START: Duration = Duration::from_secs(120);

/// How long an answer may take; the application itself takes 20 ms.
const ANSWER: Duration = Duration::from_secs(20);

/// A server that stands still is waited for no longer than this.
const NO_ANSWER: Duration = Duration::from_secs(2);

#[test]
fn servers_failed_requests_while_they_were_reloaded() {
    let Some(servers) = Servers::start("no") else {
        return;
    };
    servers.reload_under_load(&[]);
}

#[test]
fn servers_on_blocking_sockets_failed_requests_or_answered_none() {
    let Some(servers) = Servers::start("yes") else {
        return;
    };
    for name in TRUST_THE_FLAG {
        let answer = ask(servers.ports[name], path(name), NO_ANSWER);
        assert!(answer.is_err(), "{name} answers on a blocking socket");
    }
    servers.reload_under_load(&TRUST_THE_FLAG);
}

/// All servers of the example, each on its socket.
struct Servers {
    stack: Stack,
    ports: BTreeMap<String, u16>,
}

/// What the clients of one server have seen.
#[derive(Default)]
struct Seen {
    /// Bodies of the answers: the pid of the process that served, where it is an application of
    /// ours.
    bodies: BTreeSet<Vec<u8>>,
    answers: usize,
    /// Those since somebody set it to zero.
    recent: usize,
    failures: Vec<String>,
}

impl Servers {
    /// Starts them on sockets with this value of `blocking`, and waits until all are ready; none
    /// where Python lacks them.
    fn start(blocking: &str) -> Option<Self> {
        let requirements = fs::read_to_string(format!("{EXAMPLE}/requirements.txt")).unwrap();
        let venv = Venv::with("servers-venv", &requirements)?;
        let ini = fs::read_to_string(format!("{EXAMPLE}/servers.ini")).unwrap();
        let node = Command::new("node").arg("--version").output();
        let node = node.is_ok_and(|output| output.status.success());
        if !node {
            skipped("node is not installed");
        }
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}/bin:{path}", venv.root().display());
        let stack = Stack::start_with(&prepared(&ini, blocking, node), ("PATH", &path));
        wait_until_for("all servers are ready", START, || {
            let status = stack.ask("status", &json!({}));
            let mut states = status["statuses"].as_object().unwrap().values();
            states.all(|state| state == "active")
        });
        let listed = stack.ask("listsockets", &json!({}));
        let sockets = listed["sockets"].as_array().unwrap();
        let port = |socket: &Value| u16::try_from(socket["port"].as_u64()?).ok();
        let name = |socket: &Value| socket["name"].as_str().unwrap().to_owned();
        let ports = sockets
            .iter()
            .map(|socket| (name(socket), port(socket).unwrap()));
        let ports = ports.collect();
        Some(Self { stack, ports })
    }

    /// Reloads all while clients ask all but some of them; no request may fail.
    fn reload_under_load(&self, but: &[&str]) {
        let asked = self.ports.keys().map(String::as_str);
        let asked = asked.filter(|name| !but.contains(name));
        let seen: BTreeMap<&str, Mutex<Seen>> =
            asked.map(|name| (name, Mutex::default())).collect();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Also when an assertion fails: the scope waits for its threads.
            let over = &over;
            let _over = Raised(over);
            for (name, seen) in &seen {
                let port = self.ports[*name];
                for _ in 0..CLIENTS {
                    scope.spawn(move || visit(port, path(name), over, seen));
                }
            }
            let before = next_bodies(&seen);
            let names = self.ports.keys();
            let old: Vec<i32> = names
                .flat_map(|name| self.stack.pids(name).into_values())
                .collect();
            assert_eq!(old.len(), self.ports.len());
            let reply = self.stack.request_all("reload");
            assert_eq!(reply["status"], "ok", "{reply}");
            wait_until_for("the old ones are gone", START, || {
                !old.iter().any(|pid| procfs::alive(*pid))
            });
            // What comes now may have been answered before they went; what comes after that was
            // not.
            next_bodies(&seen);
            for (name, bodies) in next_bodies(&seen) {
                let same = !bodies.is_disjoint(&before[name]);
                assert_eq!(
                    same,
                    name == "thumbor",
                    "{name}: {bodies:?} after the reload"
                );
            }
        });
        for (name, seen) in seen {
            let seen = seen.into_inner().unwrap();
            println!("{name}: {} answers", seen.answers);
            let failures = seen.failures;
            assert!(
                failures.is_empty(),
                "{name}: {} failed: {failures:?}",
                failures.len()
            );
        }
    }
}

/// Raised when it is dropped.
struct Raised<'a>(&'a AtomicBool);

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The file of the example for a test: any free ports, this value of `blocking`, and no section of
/// node where it is not to be had.
fn prepared(ini: &str, blocking: &str, node: bool) -> String {
    let mut prepared = String::new();
    let mut left_out = false;
    for line in ini.lines() {
        if line.starts_with('[') {
            left_out = !node && line.ends_with(":node]");
        }
        if left_out {
        } else if line.starts_with("port = ") {
            prepared.push_str(&format!("port = 0\nblocking = {blocking}\n"));
        } else {
            prepared.push_str(&line.replace("$(circus.config_dir)", EXAMPLE));
            prepared.push('\n');
        }
    }
    prepared
}

/// Asks until it is over, as fast as it is answered.
fn visit(port: u16, path: &str, over: &AtomicBool, seen: &Mutex<Seen>) {
    while !over.load(Ordering::Relaxed) {
        let answer = ask(port, path, ANSWER);
        let mut seen = seen.lock().unwrap();
        match answer {
            Ok(body) => {
                seen.answers += 1;
                seen.recent += 1;
                seen.bodies.insert(body);
            }
            Err(error) => seen.failures.push(error.to_string()),
        }
        drop(seen);
        std::thread::sleep(PAUSE);
    }
}

/// The bodies of the next answers of each server.
fn next_bodies<'a>(seen: &BTreeMap<&'a str, Mutex<Seen>>) -> BTreeMap<&'a str, BTreeSet<Vec<u8>>> {
    for seen in seen.values() {
        let mut seen = seen.lock().unwrap();
        seen.recent = 0;
        seen.bodies.clear();
    }
    let next = seen.iter().map(|(name, seen)| {
        wait_until_for(&format!("{name} answers"), START, || {
            let seen = seen.lock().unwrap();
            seen.recent >= 3 * CLIENTS || !seen.failures.is_empty()
        });
        (*name, seen.lock().unwrap().bodies.clone())
    });
    next.collect()
}

/// One request on a connection of its own; the body of its answer, or why there is none.
fn ask(port: u16, path: &str, patience: Duration) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    whole(&answer).ok_or_else(|| {
        let text = String::from_utf8_lossy(&answer);
        io::Error::other(format!("answered {text:?}"))
    })
}

/// The body of an answer that is well and whole.
fn whole(answer: &[u8]) -> Option<Vec<u8>> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let (head, body) = (
        std::str::from_utf8(&answer[..end]).ok()?,
        &answer[end + 4..],
    );
    let mut lines = head.lines();
    let mut words = lines.next()?.split(' ');
    let well = words.next()?.starts_with("HTTP/1.") && words.next()? == "200";
    let fields = lines.filter_map(|line| line.split_once(": "));
    let length = fields
        .filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .find_map(|(_, length)| length.parse().ok());
    (well && length == Some(body.len())).then(|| body.to_vec())
}

/// What a server is asked for: thumbor has pictures only.
fn path(name: &str) -> &'static str {
    match name {
        "thumbor" => "/unsafe/20x20/picture.png",
        _ => "/",
    }
}
