//! The control socket: what is answered to whom, and the stream of events.

use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::stack::Stack;
use papa_harness::wait_until;

const TWO: &str =
    "[watcher:Web]\ncmd = sleep 1000\n[watcher:worker]\ncmd = sleep 1000\nnumprocesses = 2\n";

/// Longest wait for a line.
const PATIENCE: Duration = Duration::from_secs(20);

/// One connection to the control socket.
#[derive(Debug)]
pub(crate) struct Session(BufReader<UnixStream>);

impl Session {
    #[track_caller]
    pub(crate) fn connect(stack: &Stack) -> Self {
        let path = stack.kernel.runtime_dir().join("circus.manager.sock");
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(BufReader::new(stream))
    }

    #[track_caller]
    fn send(&mut self, line: &str) {
        writeln!(self.0.get_mut(), "{line}").unwrap();
    }

    #[track_caller]
    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    #[track_caller]
    fn ask(&mut self, line: &str) -> Value {
        self.send(line);
        self.line()
    }

    #[track_caller]
    pub(crate) fn command(&mut self, command: &str, properties: &Value) -> Value {
        self.ask(&json!({"id": 1, "command": command, "properties": properties}).to_string())
    }

    /// The next event with this end of its topic.
    #[track_caller]
    pub(crate) fn event(&mut self, topic: &str) -> Value {
        loop {
            let event = self.line();
            if event["topic"] == topic {
                return event;
            }
        }
    }
}

#[test]
fn whatever_is_sent_is_answered() {
    let stack = Stack::start(TWO);
    let mut session = Session::connect(&stack);
    for (line, errno) in [
        ("", 1),
        ("   ", 1),
        ("garbage", 1),
        ("[1,2]", 1),
        ("7", 1),
        ("{}", 3),
        (r#"{"command":"frobnicate"}"#, 2),
        (r#"{"command":"status","properties":[]}"#, 3),
        (r#"{"command":"status","properties":{"name":"nope"}}"#, 3),
        (r#"{"command":"list","properties":{"name":"nope"}}"#, 3),
        (r#"{"command":"options"}"#, 3),
        (r#"{"command":"stop","properties":{"match":"fuzzy"}}"#, 3),
        (
            r#"{"command":"set","properties":{"name":"web","options":{"nope":1}}}"#,
            3,
        ),
    ] {
        let reply = session.ask(line);
        assert_eq!(
            (&reply["status"], &reply["errno"]),
            (&json!("error"), &json!(errno)),
            "{line}: {reply}"
        );
        assert!(
            reply["time"].is_number() && reply["reason"].is_string(),
            "{reply}"
        );
    }
    let reply = session.ask(r#"{"id":{"a":[1]},"command":"NUMWATCHERS"}"#);
    assert_eq!(
        (&reply["numwatchers"], &reply["id"]),
        (&json!(2), &json!({"a": [1]}))
    );
    // A cast is never answered: what comes next is the answer to what was asked next.
    session.send(r#"{"id":5,"command":"status","msg_type":"cast"}"#);
    assert_eq!(session.ask(r#"{"id":6,"command":"numwatchers"}"#)["id"], 6);
}

#[test]
fn half_a_connection_is_still_answered() {
    let stack = Stack::start(TWO);
    let mut session = Session::connect(&stack);
    let request = r#"{"id":1,"command":"restart","properties":{"name":"web","waiting":true}}"#;
    session.0.get_mut().write_all(request.as_bytes()).unwrap();
    session.0.get_mut().shutdown(Shutdown::Write).unwrap();
    assert_eq!(session.line()["status"], "ok");
}

#[test]
fn names_match_by_pattern_name_and_expression() {
    let stack = Stack::start(TWO);
    stack.wait_pids("worker", 2);
    let mut session = Session::connect(&stack);
    let stopped = |stack: &Stack| {
        (
            stack.state("web") == "stopped",
            stack.state("worker") == "stopped",
        )
    };
    for (properties, expected) in [
        (json!({"name": "W*", "match": "simple"}), (false, false)),
        (
            json!({"name": "w(eb|ob)$", "match": "regex"}),
            (true, false),
        ),
        (json!({"name": "W[oe]*"}), (true, true)),
    ] {
        let mut properties = properties;
        properties["waiting"] = true.into();
        let reply = session.command("stop", &properties);
        let found = expected != (false, false);
        assert_eq!(reply["status"] == "ok", found, "{reply}");
        assert_eq!(stopped(&stack), expected, "{properties}");
    }
}

#[test]
fn events_are_streamed_and_resumed() {
    let stack = Stack::start(TWO);
    let pid = stack.wait_pids("web", 1)[&1];
    stack.wait_pids("worker", 2);
    let mut listener = Session::connect(&stack);
    let start = listener.command("listen", &json!({"since": 0}));
    assert_eq!(start["status"], "ok");
    let incarnation = start["incarnation"].as_str().unwrap().to_owned();
    let spawn = listener.event("watcher.web.spawn");
    assert_eq!(
        (&spawn["process_pid"], &spawn["wid"]),
        (&json!(pid), &json!(1))
    );
    listener.event("watcher.web.start");

    let mut filtered = Session::connect(&stack);
    filtered.command("listen", &json!({"topics": ["watcher.web."]}));
    stack.request("stop", "worker");
    stack.request("stop", "web");
    let kill = listener.event("watcher.web.kill");
    assert_eq!(kill["process_pid"], pid);
    let reap = listener.event("watcher.web.reap");
    assert_eq!(
        (&reap["process_pid"], &reap["exit_code"]),
        (&json!(pid), &json!(-15))
    );
    let stop = listener.event("watcher.web.stop");
    // The filtered one sees exactly the three of its watcher.
    for expected in [&kill, &reap, &stop] {
        assert_eq!(filtered.line(), *expected);
    }
    drop(listener);
    stack.request("start", "web");

    // Resumed: nothing twice, nothing missing.
    let mut listener = Session::connect(&stack);
    let since = format!("{incarnation}:{}", stop["seq"]);
    listener.command("listen", &json!({"since": since}));
    let next = listener.line();
    assert_eq!(
        next["seq"],
        json!(stop["seq"].as_u64().unwrap() + 1),
        "{next}"
    );

    // From another life: said so, then all there is.
    let mut stranger = Session::connect(&stack);
    stranger.command("listen", &json!({"since": "other:1"}));
    let missed = stranger.line();
    assert_eq!(
        (&missed["topic"], &missed["missed"]),
        (&json!("listen.missed"), &Value::Null)
    );
    assert_eq!(stranger.line()["seq"], 1);
}

#[test]
fn callers_that_go_leave_room_for_others() {
    let stack = Stack::start(
        "[watcher:deaf]\ncmd = sh -c 'trap \"\" TERM; echo up > DIR/up; while :; do sleep 1; done'\ncopy_env = true\ngraceful_timeout = 60\n",
    );
    let path = stack.kernel.directory().join("up");
    wait_until("the worker ignores signals", || path.exists());
    // More than are served at once, each waiting for a stop that takes a minute, and gone.
    for _ in 0..200 {
        let mut session = Session::connect(&stack);
        session.send(r#"{"id":1,"command":"stop","properties":{"name":"deaf","waiting":true}}"#);
    }
    assert_eq!(stack.state("deaf"), "stopping");
    assert_eq!(stack.request("kill", "nope")["status"], "error");
}
