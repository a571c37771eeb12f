//! Workers that write down from when until when they serve, so that a test need not look at the
//! right moment.
//!
//! The other half is `tests/python/worker.py`.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::stack::Stack;
use papa_harness::wait_until;

/// Longest wait for an answer of a worker.
const ANSWER: Duration = Duration::from_secs(20);

/// The program: to be called with a path, the worker's number, its way to be ready, and perhaps a
/// socket.
pub(crate) fn worker(arguments: &str) -> String {
    format!(
        "python3 -SE {}/../tests/python/worker.py {arguments}",
        env!("CARGO_MANIFEST_DIR")
    )
}

/// Two workers on a socket of their own that say in this way that they are ready. `more` is added
/// to the section.
pub(crate) fn site(name: &str, ready: &str, how: &str, more: &str) -> String {
    let command = worker(&format!(
        "DIR/{name} $(circus.wid) {how} $(circus.sockets.{name})"
    ));
    format!(
        "[watcher:{name}]\ncmd = {command}\ncopy_env = true\nuse_sockets = true\nnumprocesses = 2\nready = {ready}\n{more}\n\
         [socket:{name}]\nhost = 127.0.0.1\nport = 0\nblocking = no\n"
    )
}

/// One line of a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) at: u64,
    pub(crate) pid: i32,
    pub(crate) wid: u32,
    pub(crate) word: String,
}

/// What the workers of `DIR/name` wrote down, in the order of time.
pub(crate) fn journal(stack: &Stack, name: &str) -> Vec<Entry> {
    let path = stack.kernel.directory().join(format!("{name}.journal"));
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut entries: Vec<Entry> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some(Entry {
                at: words.next()?.parse().ok()?,
                pid: words.next()?.parse().ok()?,
                wid: words.next()?.parse().ok()?,
                word: words.next()?.to_owned(),
            })
        })
        .collect();
    entries.sort_by_key(|entry| entry.at);
    entries
}

/// How many workers have written this word.
pub(crate) fn count(stack: &Stack, name: &str, word: &str) -> usize {
    journal(stack, name)
        .iter()
        .filter(|entry| entry.word == word)
        .count()
}

/// The least that served at once since `wanted` did for the first time, and the most that were
/// there at once.
#[track_caller]
pub(crate) fn extremes(stack: &Stack, name: &str, wanted: usize) -> (usize, usize) {
    let (mut there, mut serving) = (BTreeSet::new(), BTreeSet::new());
    let (mut least, mut most) = (None, 0);
    for entry in journal(stack, name) {
        match entry.word.as_str() {
            "start" => drop(there.insert(entry.pid)),
            "up" => drop(serving.insert(entry.pid)),
            "down" => {
                there.remove(&entry.pid);
                serving.remove(&entry.pid);
            }
            _ => {}
        }
        most = most.max(there.len());
        if least.is_some() || serving.len() >= wanted {
            least = Some(least.unwrap_or(wanted).min(serving.len()));
        }
    }
    (least.expect("once all of them served"), most)
}

/// Tells those workers of `DIR/name` that start from now on how to behave.
pub(crate) fn set_mode(stack: &Stack, name: &str, mode: &str) {
    fs::write(
        stack.kernel.directory().join(format!("{name}.mode")),
        format!("{mode}\n"),
    )
    .unwrap();
}

/// Lets workers that wait serve.
pub(crate) fn open_gate(stack: &Stack, name: &str) {
    fs::write(stack.kernel.directory().join(format!("{name}.go")), "").unwrap();
}

/// Waits until a watcher is up.
#[track_caller]
pub(crate) fn wait_up(stack: &Stack, name: &str) {
    wait_until("the watcher is up", || stack.state(name) == "active");
}

/// The port of a socket.
#[track_caller]
pub(crate) fn port(stack: &Stack, name: &str) -> u16 {
    let reply = stack.ask("listsockets", &json!({}));
    let sockets = reply["sockets"].as_array().unwrap();
    let socket = sockets.iter().find(|socket| socket["name"] == name);
    u16::try_from(socket.unwrap()["port"].as_u64().unwrap()).unwrap()
}

/// The pid of the worker that answers there.
pub(crate) fn visit(port: u16) -> std::io::Result<i32> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(ANSWER))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    text.trim()
        .parse()
        .map_err(|_| std::io::Error::other(format!("answered {text:?}")))
}

/// What has happened until this for the first time, which is waited for.
#[track_caller]
pub(crate) fn events_until(stack: &Stack, topic: &str) -> Vec<Value> {
    let path = stack.kernel.runtime_dir().join("circus.manager.sock");
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(ANSWER)).unwrap();
    let request = json!({"command": "listen", "properties": {"since": 0}});
    writeln!(stream, "{request}").unwrap();
    let mut events = Vec::new();
    for line in BufReader::new(stream).lines() {
        let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
        let found = event["topic"] == topic;
        events.push(event);
        if found {
            break;
        }
    }
    events
}
