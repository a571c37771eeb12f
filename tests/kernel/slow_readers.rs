//! Readers that stand still: what their writers see of it by each overflow policy, what the readers
//! find when they go on, and that every byte is accounted for.
//!
//! To the kernel a stopped process and one that does not read are the same, so the readers here are
//! sessions nobody reads.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use papa_harness::{Classic, Collector, Json, Kernel, wait_until, wait_until_for};

const LONG: Duration = Duration::from_secs(120);

/// How long the kernel waits for an acknowledgement (protocol/README.md).
const STALL_LIMIT: Duration = Duration::from_secs(2);

/// Output kept of each process.
const REEL: u64 = 65_536;

/// What each writes: many times what is kept.
const LAST: u32 = 200_000;

fn numbers() -> Vec<u8> {
    let text: String = (1..=LAST).map(|number| format!("{number}\n")).collect();
    text.into_bytes()
}

/// Makes a process that writes the numbers once the file `go` is there.
fn writer(kernel: &Kernel, name: &str, overflow: &str) -> u64 {
    let script = format!("until [ -e $0 ]; do sleep 0.02; done; seq 1 {LAST}");
    let made = kernel.json().make_process(
        name,
        &["/bin/sh", "-c", &script, &kernel.path("go")],
        json!({"env": {"PATH": "/usr/bin:/bin"}, "overflow": overflow, "reel_bytes": REEL}),
    );
    made["serial"].as_u64().expect("a serial")
}

fn go(kernel: &Kernel) {
    std::fs::write(kernel.path("go"), "").expect("the scratch directory is writable");
}

/// Ledgers by name of everything listed, each of which adds up.
#[track_caller]
fn ledgers(session: &mut Json) -> BTreeMap<String, Ledger> {
    let listed = session.ok("process.list", json!({}))["processes"].clone();
    let ledger = |process: &Value| {
        let of = |key: &str| process["ledger"][key].as_u64().expect("a number");
        let ledger = Ledger {
            captured: of("captured"),
            acknowledged: of("acknowledged"),
            dropped: of("dropped"),
            running: process["running"] == true,
        };
        assert!(
            ledger.acknowledged + ledger.dropped <= ledger.captured,
            "{process}"
        );
        let name = process["name"].as_str().expect("a name");
        (name.to_owned(), ledger)
    };
    listed
        .as_array()
        .expect("a list")
        .iter()
        .map(ledger)
        .collect()
}

#[derive(Debug, Clone, Copy)]
struct Ledger {
    captured: u64,
    acknowledged: u64,
    dropped: u64,
    running: bool,
}

impl Ledger {
    fn kept(&self) -> u64 {
        self.captured - self.acknowledged - self.dropped
    }
}

/// One of each kind of reader that acknowledges, none of them reading.
struct Readers {
    inline: Json,
    reel: Json,
    watcher: Classic,
}

impl Readers {
    fn start(kernel: &Kernel, group: &str) -> Self {
        let mut inline = kernel.json();
        inline.ok(
            "output.consume",
            json!({"names": [format!("{group}.inline")]}),
        );
        let mut reel = kernel.json();
        reel.ok(
            "output.consume",
            json!({"names": [format!("{group}.reel")], "bytes": "reel"}),
        );
        let mut watcher = kernel.classic();
        watcher.send(&format!("watch processes {group}.watch"));
        watcher.read_to("\n");
        Self {
            inline,
            reel,
            watcher,
        }
    }
}

/// Reads a process to its end, acknowledging; gives what came by position.
#[track_caller]
fn read_on(session: &mut Json, serial: u64) -> (Vec<(u64, Vec<u8>)>, u64) {
    let (mut pieces, mut position, mut gaps, mut ends) = (Vec::new(), 0, 0, 0);
    while ends < 2 {
        let push = session.push();
        if let Some(output) = push.body("output") {
            let start = output["start"].as_u64().expect("a start");
            let length = output["length"].as_u64().expect("a length");
            assert!(start >= position, "nothing comes twice: {output}");
            gaps += start - position;
            position = start + length;
            pieces.push((start, push.bytes.clone()));
            let acks = json!({"acks": {serial.to_string(): position}});
            session.send("output.ack", acks).expect("it is sent");
        } else if push.body("end").is_some() {
            ends += 1;
        }
    }
    let exit = json!({"serials": [serial]});
    session.send("exit.ack", exit).expect("it is sent");
    (pieces, gaps)
}

/// The first position a reel has, as the reel says it.
#[track_caller]
fn reel_start(session: &mut Json, serial: u64) -> u64 {
    let reply = session.ok("output.reel", json!({"serial": serial}));
    let reel = std::fs::File::from(session.descriptor());
    let mut word = [0; 8];
    let offset = reply["start_offset"].as_u64().expect("an offset");
    reel.read_exact_at(&mut word, offset)
        .expect("the reel can be read");
    u64::from_le_bytes(word)
}

/// Reads a classic watch to its end, acknowledging; gives the bytes that came.
#[track_caller]
fn watch_on(watcher: &mut Classic) -> u64 {
    let mut bytes = 0;
    let mut closed = false;
    loop {
        let mark = watcher.read_text(2);
        if mark == "] " {
            watcher.send("");
            if closed {
                watcher.read_to("Nothing left to watch\n");
                return bytes;
            }
            continue;
        }
        let head = mark + &watcher.read_to("\n");
        let words: Vec<&str> = head.trim_end().split(':').collect();
        let [kind, _, _, number] = words[..] else {
            panic!("not a frame: {head:?}");
        };
        if kind == "closed" {
            closed = true;
        } else {
            let length: usize = number.parse().expect("a length is a number");
            watcher.read_bytes(length + 1);
            bytes += length as u64;
        }
    }
}

#[test]
fn auto_waits_once_for_each_kind_of_reader_and_then_lets_the_oldest_go() {
    let kernel = Kernel::start();
    let serials =
        ["inline", "reel", "watch"].map(|kind| writer(&kernel, &format!("a.{kind}"), "auto"));
    let mut readers = Readers::start(&kernel, "a");
    let mut session = kernel.json();
    let start = Instant::now();
    go(&kernel);
    wait_until_for("all writers have ended", LONG, || {
        ledgers(&mut session).values().all(|ledger| !ledger.running)
    });
    assert!(start.elapsed() >= STALL_LIMIT, "they should have waited");
    let all = numbers();
    let total = all.len() as u64;
    let at_rest = ledgers(&mut session);
    assert_eq!(at_rest.len(), 3);
    for (name, ledger) in &at_rest {
        assert_eq!((ledger.captured, ledger.acknowledged), (total, 0), "{name}");
        assert!(
            ledger.dropped > 0 && ledger.kept() <= 2 * REEL,
            "{name}: {ledger:?}"
        );
    }
    // Of a reel all may have been announced before the oldest went: the reel itself tells.
    let start = reel_start(&mut readers.reel, serials[1]);
    assert_eq!(start, at_rest["a.reel"].dropped);
    // Now they read on: what was sent before, then a gap, then the end.
    for (reader, serial, name) in [
        (&mut readers.inline, serials[0], "a.inline"),
        (&mut readers.reel, serials[1], "a.reel"),
    ] {
        let (pieces, gaps) = read_on(reader, serial);
        assert!(gaps > 0 || name == "a.reel", "{name}: no gap");
        assert!(gaps <= at_rest[name].dropped, "{name}: {gaps}");
        for (start, bytes) in pieces {
            let start = usize::try_from(start).expect("a position fits");
            assert_eq!(
                all.get(start..start + bytes.len()),
                Some(&bytes[..]),
                "{name}"
            );
        }
    }
    assert!(watch_on(&mut readers.watcher) >= total - at_rest["a.watch"].dropped);
    wait_until("all are forgotten", || ledgers(&mut session).is_empty());
    // What was let go counts once, in the sum too.
    let dropped: u64 = at_rest.values().map(|ledger| ledger.dropped).sum();
    let sum = session.ok("status", json!({}))["ledger"].clone();
    assert_eq!(sum["captured"], 3 * total, "{sum}");
    assert_eq!(sum["dropped"], dropped, "{sum}");
    assert_eq!(sum["acknowledged"], 3 * total - dropped, "{sum}");
}

#[test]
fn block_waits_for_each_kind_of_reader_as_long_as_it_takes() {
    let kernel = Kernel::start();
    let serials =
        ["inline", "reel", "watch"].map(|kind| writer(&kernel, &format!("b.{kind}"), "block"));
    // How long that is is seen by another, which waits for its reader once and then ends.
    writer(&kernel, "a.inline", "auto");
    let mut readers = Readers::start(&kernel, "b");
    let mut other = kernel.json();
    other.ok("output.consume", json!({"names": ["a.inline"]}));
    let mut session = kernel.json();
    go(&kernel);
    wait_until_for("the other has ended", LONG, || {
        !ledgers(&mut session)["a.inline"].running
    });
    let mut at_rest = ledgers(&mut session);
    assert!(at_rest.remove("a.inline").expect("it is listed").dropped > 0);
    for (name, ledger) in &at_rest {
        assert!(ledger.running, "{name} waits");
        assert_eq!((ledger.acknowledged, ledger.dropped), (0, 0), "{name}");
        assert!(ledger.captured <= 2 * REEL, "{name}: {ledger:?}");
    }
    let all = numbers();
    let (pieces, gaps) = read_on(&mut readers.inline, serials[0]);
    assert_eq!(gaps, 0);
    let pieces: Vec<u8> = pieces.into_iter().flat_map(|(_, bytes)| bytes).collect();
    assert!(pieces == all, "{} bytes", pieces.len());
    let (_, gaps) = read_on(&mut readers.reel, serials[1]);
    assert_eq!(gaps, 0);
}

#[test]
fn drop_oldest_waits_for_nobody() {
    let kernel = Kernel::start();
    let serials = ["inline", "reel", "watch"]
        .map(|kind| writer(&kernel, &format!("d.{kind}"), "drop_oldest"));
    let mut readers = Readers::start(&kernel, "d");
    let mut session = kernel.json();
    go(&kernel);
    wait_until_for("all writers have ended", LONG, || {
        ledgers(&mut session).values().all(|ledger| !ledger.running)
    });
    for (name, ledger) in ledgers(&mut session) {
        assert!(
            ledger.dropped > 0 && ledger.kept() <= 2 * REEL,
            "{name}: {ledger:?}"
        );
    }
    let total = numbers().len() as u64;
    let (pieces, gaps) = read_on(&mut readers.inline, serials[0]);
    let read: u64 = pieces.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    assert_eq!(read + gaps, total);
}

#[test]
fn a_follower_that_stands_still_costs_nobody_anything() {
    let kernel = Kernel::start();
    let serial = writer(&kernel, "p", "block");
    let mut follower = kernel.json();
    follower.ok("output.follow", json!({"names": ["p"]}));
    go(&kernel);
    let seen = Collector::new(&kernel.socket_path(), &["p"]).finish(serial);
    assert!(seen.bytes == numbers(), "{} bytes", seen.bytes.len());
    // What it was sent before it fell behind is right; the rest has gone by.
    let mut position = 0;
    while let Some(output) = follower
        .push_within(Duration::from_millis(200))
        .expect("it is served")
    {
        if let Some(header) = output.body("output") {
            let start = header["start"].as_u64().expect("a start");
            assert!(start >= position);
            position = start + header["length"].as_u64().expect("a length");
            let from = usize::try_from(start).expect("a position fits");
            assert_eq!(
                numbers().get(from..from + output.bytes.len()),
                Some(&output.bytes[..])
            );
        }
    }
    assert!(position > 0);
}

#[test]
fn a_consumer_that_says_it_is_at_work_is_waited_for() {
    let kernel = Kernel::start();
    let serial = writer(&kernel, "p", "auto");
    let mut consumer = kernel.json();
    consumer.ok("output.consume", json!({"names": ["p"]}));
    // Another session of the same process: the one that consumes may be held up.
    let mut alive = kernel.json();
    go(&kernel);
    wait_until("the reel is full", || {
        ledgers(&mut alive)["p"].captured >= REEL
    });
    let start = Instant::now();
    wait_until_for("the limit has passed twice", LONG, || {
        alive.ok("output.ack", json!({"acks": {}}));
        start.elapsed() > STALL_LIMIT * 2
    });
    let ledger = ledgers(&mut alive)["p"];
    assert!(ledger.running && ledger.dropped == 0, "{ledger:?}");
    // It says no more, and is waited for once more and then not.
    wait_until_for("the writer has ended", LONG, || {
        !ledgers(&mut alive)["p"].running
    });
    assert!(ledgers(&mut alive)["p"].dropped > 0);
    let (_, gaps) = read_on(&mut consumer, serial);
    assert!(gaps > 0);
}

#[test]
fn a_sign_of_life_speaks_for_what_its_claim_holder_does_not_consume_yet_and_for_nobody_else() {
    let kernel = Kernel::start();
    let mut holder = kernel.json();
    holder.ok("claim", json!({"namespace": "app", "holder": "a test"}));
    let made = |name: &str, session: &mut Json| {
        session.make_process(
            name,
            &[
                "/bin/sh",
                "-c",
                &format!("until [ -e $0 ]; do sleep 0.02; done; seq 1 {LAST}"),
                &kernel.path("go"),
            ],
            json!({"env": {"PATH": "/usr/bin:/bin"}, "reel_bytes": REEL}),
        );
    };
    made("app.1", &mut holder);
    made("other.1", &mut holder);
    // A consumer that went a moment ago, of both.
    kernel.json().ok(
        "output.consume",
        json!({"names": ["app.*", "other.*"], "force": true}),
    );
    go(&kernel);
    wait_until_for("the other has ended", LONG, || {
        holder.ok("output.ack", json!({"acks": {}}));
        !ledgers(&mut holder)["other.1"].running
    });
    let both = ledgers(&mut holder);
    assert!(both["other.1"].dropped > 0, "{both:?}");
    assert!(
        both["app.1"].running && both["app.1"].dropped == 0,
        "{both:?}"
    );
}

/// A follower has a batch unread while the consumer acknowledges all there is, and then reads on.
#[test]
fn a_follower_that_wakes_up_when_nothing_is_left_keeps_nobody_waiting() {
    const BYTES: u64 = 4 << 20;
    let kernel = Kernel::start();
    let script = format!("head -c {BYTES} /dev/zero; exec sleep 1000");
    let made = kernel.json().make_process(
        "p",
        &["/bin/sh", "-c", &script],
        json!({"env": {"PATH": "/usr/bin:/bin"}}),
    );
    let serial = made["serial"].as_u64().expect("a serial");
    let mut follower = kernel.json();
    follower.ok("output.follow", json!({"names": ["p"], "from": "start"}));
    let mut consumer = Collector::new(&kernel.socket_path(), &["p"]);
    consumer.run_until("all is taken", LONG, |all| {
        let seen = all.seen.get(&serial);
        seen.is_some_and(|seen| seen.position == BYTES)
    });
    let mut session = kernel.json();
    wait_until("nothing is left", || {
        let ledger = session.process("p").expect("it runs")["ledger"].clone();
        // What was written before the consumer came may be gone.
        let of = |key: &str| ledger[key].as_u64().expect("a number");
        of("acknowledged") + of("dropped") == BYTES
    });
    let first = follower.push_of("output");
    assert!(first["length"].as_u64().expect("a length") < BYTES);
    while follower
        .push_within(Duration::from_millis(100))
        .expect("the connection is up")
        .is_some()
    {}
    session.ok("status", json!({}));
    // What comes next is told to it, with the gap to be seen by where it begins.
    let pid = i32::try_from(made["pid"].as_i64().expect("a pid")).expect("it fits");
    papa_harness::procfs::signal(pid, nix::sys::signal::Signal::SIGKILL);
    for _ in 0..2 {
        assert_eq!(follower.push_of("end")["position"], BYTES);
    }
}
