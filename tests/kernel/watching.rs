//! The classic `watch`: batches, acknowledgement, `q`, lost watchers, overflow.

use std::time::{Duration, Instant};

use papa_harness::{Classic, Kernel, wait_until};

/// Far below what a polling watcher needs, far above what a pushed line takes.
const PROMPTLY: Duration = Duration::from_millis(500);

fn ended(client: &mut Classic, name: &str) {
    wait_until("the process is listed as ended", || {
        client
            .ask(&format!("list processes {name}"))
            .contains("running=False")
    });
}

/// The data of a batch without its stamps: (kind, name, payload).
fn frames(batch: &str) -> Vec<(String, String, String)> {
    let mut rest = batch.strip_suffix("] ").expect("a batch ends in a bracket");
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (head, tail) = rest.split_once('\n').expect("a frame has a head");
        let pieces: Vec<&str> = head.split(':').collect();
        let [kind, name, _, number] = pieces[..] else {
            panic!("not a frame: {head:?}");
        };
        if kind == "closed" {
            found.push((kind.to_owned(), name.to_owned(), number.to_owned()));
            rest = tail;
        } else {
            let length: usize = number.parse().expect("a length is a number");
            let data = tail.get(..length).expect("the data is there");
            found.push((kind.to_owned(), name.to_owned(), data.to_owned()));
            rest = tail
                .get(length..)
                .and_then(|rest| rest.strip_prefix('\n'))
                .expect("a line end follows the data");
        }
    }
    found
}

fn frame(kind: &str, name: &str, data: &str) -> (String, String, String) {
    (kind.to_owned(), name.to_owned(), data.to_owned())
}

#[test]
fn a_watch_tells_output_and_exit_and_then_forgets() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    client
        .ask("make process p /bin/sh -c echo\\ out;sleep\\ 0.1;echo\\ err>&2;sleep\\ 0.1;exit\\ 3");
    ended(&mut client, "p");
    client.send("watch processes p");
    assert_eq!(client.read_to("\n"), "Watching 1\n");
    assert_eq!(
        frames(&client.read_until("] ")),
        [
            frame("out", "p", "out\n"),
            frame("err", "p", "err\n"),
            frame("closed", "p", "3")
        ]
    );
    assert_eq!(client.ask(""), "Nothing left to watch");
    assert_eq!(client.ask("list processes"), "");
}

#[test]
fn what_was_not_acknowledged_is_told_again() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    client.ask("make process p /bin/echo kept");
    ended(&mut client, "p");
    for _ in 0..3 {
        let mut watcher = kernel.classic();
        watcher.send("watch processes p");
        watcher.read_to("\n");
        let batch = watcher.read_until("] ");
        assert_eq!(
            frames(&batch),
            [frame("out", "p", "kept\n"), frame("closed", "p", "0")]
        );
    }
    assert!(client.ask("list processes").contains("running=False"));
}

#[test]
fn q_acknowledges_and_stops() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    client.ask("make process p /bin/sh -c echo\\ one;exec\\ sleep\\ 60");
    client.send("watch processes p");
    client.read_to("\n");
    assert_eq!(
        frames(&client.read_until("] ")),
        [frame("out", "p", "one\n")]
    );
    assert_eq!(client.ask("q"), "Stopped watching");
    let pid: i32 = Classic::field(&client.ask("list processes"), "pid")
        .parse()
        .unwrap();
    papa_harness::procfs::signal(pid, nix::sys::signal::Signal::SIGTERM);
    client.send("watch processes p");
    client.read_to("\n");
    assert_eq!(
        frames(&client.read_until("] ")),
        [frame("closed", "p", "-15")]
    );
}

#[test]
fn a_line_is_pushed_at_once() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    let fifo = kernel.path("go");
    nix::unistd::mkfifo(fifo.as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    client.ask(&format!(
        "make process p /bin/sh -c exec\\ 3<>{fifo};while\\ read\\ x\\ <&3;do\\ echo\\ $x;done"
    ));
    client.send("watch processes p");
    assert_eq!(client.read_to("\n"), "Watching 1\n");
    let mut slowest = Duration::ZERO;
    for _ in 0..5 {
        let start = Instant::now();
        std::fs::write(&fifo, "now\n").unwrap();
        assert_eq!(
            frames(&client.read_until("] ")),
            [frame("out", "p", "now\n")]
        );
        slowest = slowest.max(start.elapsed());
        client.send("");
    }
    assert!(slowest < PROMPTLY, "took {slowest:?}");
}

#[test]
fn a_watch_started_with_the_process_misses_nothing() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    client.send("make process p watch=1 /bin/sh -c exit\\ 4");
    assert!(client.read_to("\n").starts_with("p pid="));
    assert_eq!(
        frames(&client.read_until("] ")),
        [frame("closed", "p", "4")]
    );
    assert_eq!(client.ask(""), "Nothing left to watch");
}

#[test]
fn the_oldest_goes_when_nobody_reads() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    client.ask("make process p bufsize=14 /bin/sh -c echo\\ 0123456789;sleep\\ 0.1;echo\\ second;sleep\\ 0.1;echo\\ third>&2");
    ended(&mut client, "p");
    client.send("watch processes p");
    client.read_to("\n");
    assert_eq!(
        frames(&client.read_until("] ")),
        [
            frame("out", "p", "second\n"),
            frame("err", "p", "third\n"),
            frame("closed", "p", "0")
        ]
    );
}

#[test]
fn two_watchers_each_get_what_is_there() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    client.ask("make process p /bin/echo both");
    ended(&mut client, "p");
    let mut first = kernel.classic();
    let mut second = kernel.classic();
    let mut batches = Vec::new();
    for watcher in [&mut first, &mut second] {
        watcher.send("watch processes p");
        watcher.read_to("\n");
        batches.push(watcher.read_until("] "));
    }
    assert_eq!(batches[0], batches[1]);
    assert_eq!(first.ask(""), "Nothing left to watch");
    assert_eq!(second.ask(""), "Nothing left to watch");
}

#[test]
fn output_that_looks_like_frames_stays_output() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    client.ask("make process p /bin/printf closed:p:1.5:0\\n]\\ \\n\\n>\\ ");
    ended(&mut client, "p");
    client.send("watch processes p");
    client.read_to("\n");
    assert_eq!(
        frames(&client.read_until(":0\n] ")),
        [
            frame("out", "p", "closed:p:1.5:0\n] \n\n> "),
            frame("closed", "p", "0")
        ]
    );
}

#[test]
fn in_a_claimed_namespace_a_watch_only_looks() {
    let kernel = Kernel::start();
    let mut manager = kernel.json();
    manager.ok(
        "claim",
        serde_json::json!({"namespace": "circus", "holder": "a test"}),
    );
    manager.make_process(
        "circus.p.1",
        &["/bin/echo", "precious"],
        serde_json::json!({}),
    );
    let mut client = kernel.classic();
    ended(&mut client, "circus.p.1");
    for _ in 0..2 {
        client.send("watch processes circus.p.1");
        client.read_to("\n");
        assert_eq!(
            frames(&client.read_until("] ")),
            [
                frame("out", "circus.p.1", "precious\n"),
                frame("closed", "circus.p.1", "0")
            ]
        );
        client.send("");
        client.read_until("\n> ");
    }
    assert!(
        client
            .ask_error("remove processes circus.p.1")
            .contains("a test")
    );
}

#[test]
fn quit_leaves_a_watch_and_other_words_are_told_what_is_possible() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    client.ask("make process p /bin/sh -c echo\\ one;sleep\\ 1000");
    client.send("watch processes p");
    client.read_to("\n");
    let batch = client.read_until("] ");
    assert_eq!(frames(&batch), [frame("out", "p", "one\n")]);
    // A word that is none of those counted as Enter, and the line was gone.
    for word in ["help", "stop", "watch processes"] {
        client.send(word);
        let hint = client.read_until("] ");
        assert!(
            hint.contains("q to stop") && hint.contains("quit to leave"),
            "{hint}"
        );
    }
    for (word, last) in [("quit", "ok\n"), ("EXIT", "ok\n")] {
        let mut client = kernel.classic();
        client.ask(&format!(
            "make process {word} /bin/sh -c echo\\ two;sleep\\ 1000"
        ));
        client.send(&format!("watch processes {word}"));
        client.read_until("] ");
        client.send(word);
        assert_eq!(client.read_to_end(), last);
    }
    client.send("q");
    assert!(client.read_until("> ").starts_with("Stopped watching"));
}
