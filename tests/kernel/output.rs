//! Captured output: nothing lost, nothing twice, whatever the writer and the consumer do.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use papa_harness::{
    Collector, Json, Kernel, assert_same_bytes, procfs, wait_until, wait_until_for,
};

/// How long the kernel lets a writer wait for a consumer that does not acknowledge.
const STALL_LIMIT: Duration = Duration::from_secs(2);

/// Enough for the slowest of these on a busy machine.
const LONG: Duration = Duration::from_secs(120);

fn serial(process: &Value) -> u64 {
    process["serial"].as_u64().expect("a process has a serial")
}

fn path() -> Value {
    json!({"PATH": "/usr/bin:/bin"})
}

/// `seq FIRST LAST` as it prints.
fn numbers(first: u64, last: u64) -> Vec<u8> {
    let mut text = String::new();
    for number in first..=last {
        text.push_str(&number.to_string());
        text.push('\n');
    }
    text.into_bytes()
}

#[test]
fn output_before_and_after_the_consumer_came() {
    let kernel = Kernel::start();
    let mut session = kernel.json();
    let early = session.make_process("w.1", &["seq", "1000"], json!({"env": path()}));
    wait_until("the early one has ended", || {
        session
            .process("w.1")
            .is_some_and(|process| process["running"] == false)
    });
    let mut collector = Collector::new(&kernel.socket_path(), &["w.*"]);
    assert_same_bytes(
        "early",
        &numbers(1, 1000),
        &collector.finish(serial(&early)).bytes,
    );
    let late = session.make_process("w.2", &["seq", "1000"], json!({"env": path()}));
    assert_same_bytes(
        "late",
        &numbers(1, 1000),
        &collector.finish(serial(&late)).bytes,
    );
    wait_until("both are forgotten", || {
        session.ok("process.list", json!({}))["processes"] == json!([])
    });
}

#[test]
fn both_streams_keep_their_order_and_their_stamps_do_not_decrease() {
    let kernel = Kernel::start();
    let script =
        "for i in 1 2 3 4 5; do echo out $i; sleep 0.02; echo err $i >&2; sleep 0.02; done";
    let process =
        kernel
            .json()
            .make_process("p", &["/bin/sh", "-c", script], json!({"env": path()}));
    let seen = Collector::new(&kernel.socket_path(), &["p"]).finish(serial(&process));
    let expected: String = (1..=5).map(|i| format!("out {i}\nerr {i}\n")).collect();
    assert_same_bytes("both streams", expected.as_bytes(), &seen.bytes);
    assert_same_bytes(
        "errors",
        b"err 1\nerr 2\nerr 3\nerr 4\nerr 5\n",
        &seen.stream(2),
    );
    assert!(
        seen.records.windows(2).all(|pair| pair[0].2 <= pair[1].2),
        "{:?}",
        seen.records
    );
    assert_eq!(seen.ended.len(), 2);
}

#[test]
fn one_byte_at_a_time() {
    let kernel = Kernel::start();
    let script = "i=0; while [ $i -lt 3000 ]; do printf x; i=$((i+1)); done";
    let process = kernel
        .json()
        .make_process("p", &["/bin/sh", "-c", script], json!({}));
    let seen = Collector::new(&kernel.socket_path(), &["p"]).finish(serial(&process));
    assert_same_bytes("single bytes", &vec![b'x'; 3000], &seen.bytes);
    assert_eq!(seen.dropped, 0);
}

#[test]
fn a_closed_stdout_leaves_stderr_alone() {
    let kernel = Kernel::start();
    let script =
        "echo first; exec >&-; sleep 0.2; echo still here >&2; sleep 0.1; echo and here >&2";
    let process =
        kernel
            .json()
            .make_process("p", &["/bin/sh", "-c", script], json!({"env": path()}));
    let seen = Collector::new(&kernel.socket_path(), &["p"]).finish(serial(&process));
    assert_same_bytes("everything", b"first\nstill here\nand here\n", &seen.bytes);
    assert_eq!(seen.exit.unwrap()["code"], 0);
    assert_eq!(seen.ended, [1, 2]);
}

#[test]
fn an_exit_is_told_though_a_grandchild_holds_the_pipe_and_late_output_still_comes() {
    let kernel = Kernel::start();
    let script = "(sleep 0.6; echo from the grandchild) & echo from the child; exit 5";
    let process =
        kernel
            .json()
            .make_process("p", &["/bin/sh", "-c", script], json!({"env": path()}));
    let serial = serial(&process);
    let mut collector = Collector::new(&kernel.socket_path(), &["p"]);
    collector.run_until("the exit is told", LONG, |collector| {
        collector
            .seen
            .get(&serial)
            .is_some_and(|seen| seen.exit.is_some())
    });
    let seen = &collector.seen[&serial];
    assert_eq!(seen.exit.as_ref().unwrap()["code"], 5);
    assert!(
        seen.ended.is_empty(),
        "the pipe is still held: {:?}",
        seen.ended
    );
    let seen = collector.finish(serial);
    assert_same_bytes(
        "child and grandchild",
        b"from the child\nfrom the grandchild\n",
        &seen.bytes,
    );
}

#[test]
fn an_end_is_told_though_all_output_is_acknowledged_and_the_exit_known() {
    let kernel = Kernel::start();
    let gate = kernel.path("gate");
    let script = "echo one; exec 2>&-; (until [ -e $0 ]; do sleep 0.01; done) &";
    let argv = ["/bin/sh", "-c", script, &gate];
    let mut session = kernel.json();
    let process = session.make_process("p", &argv, json!({"env": path()}));
    let serial = serial(&process);
    let mut collector = Collector::new(&kernel.socket_path(), &["p"]);
    collector.run_until("its exit is told", LONG, |all| {
        all.seen
            .get(&serial)
            .is_some_and(|seen| seen.exit.is_some() && seen.position == 4 && seen.ended == [2])
    });
    wait_until("the kernel has both acknowledgements", || {
        let listed = session.process("p").expect("somebody holds its output");
        let pid = i32::try_from(listed["pid"].as_i64().expect("a pid")).expect("fits");
        listed["ledger"]["acknowledged"] == 4 && procfs::stat(pid).is_none()
    });
    // The only holder of its output ends: nothing is left to wait for, and it is forgotten.
    std::fs::write(&gate, "").expect("the scratch directory is writable");
    collector.finish(serial);
    assert!(session.process("p").is_none());
}

#[test]
fn merged_and_null_streams() {
    let kernel = Kernel::start();
    let mut session = kernel.json();
    let script = "echo a; echo b >&2; echo c";
    let merged = session.make_process("m", &["/bin/sh", "-c", script], json!({"stderr": "stdout"}));
    let silent = session.make_process("n", &["/bin/sh", "-c", script], json!({"stdout": "null"}));
    let mut collector = Collector::new(&kernel.socket_path(), &["*"]);
    let (merged, silent) = (serial(&merged), serial(&silent));
    collector.run_until("both are done", LONG, |collector| {
        [merged, silent].iter().all(|serial| {
            collector
                .seen
                .get(serial)
                .is_some_and(|seen| seen.exit.is_some())
        }) && collector.seen[&merged].bytes.len() == 6
            && collector.seen[&silent].bytes.len() == 2
    });
    assert_same_bytes("merged", b"a\nb\nc\n", &collector.seen[&merged].stream(1));
    assert_same_bytes("only errors", b"b\n", &collector.seen[&silent].stream(2));
}

/// The megabytes of the big run; `PAPA_TEST_BIG_MIB` makes it smaller for a quick look.
fn big_mib() -> u64 {
    std::env::var("PAPA_TEST_BIG_MIB")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1024)
}

#[test]
fn a_gibibyte_through_one_process() {
    let kernel = Kernel::start();
    let mib = big_mib();
    // A pattern with a period that divides nothing the kernel uses, so that a shift shows.
    let script = format!(
        "yes 'a line whose length is prime...' | head -c {}",
        mib << 20
    );
    let mut session = kernel.json();
    // First the consumer: without one the oldest output goes.
    session.ok("output.consume", json!({"names": ["big"]}));
    let process =
        kernel
            .json()
            .make_process("big", &["/bin/sh", "-c", &script], json!({"env": path()}));
    let serial = serial(&process);
    let pattern = b"a line whose length is prime...\n".repeat(4096);
    let mut position = 0_u64;
    let (mut ends, mut exits) = (0, 0);
    let start = Instant::now();
    while ends < 2 || exits < 1 {
        let push = session.push();
        if let Some(output) = push.body("output") {
            assert_eq!(output["start"].as_u64(), Some(position), "no gap: {output}");
            let mut rest = push.bytes.as_slice();
            let mut phase = usize::try_from(position % 32).unwrap();
            while !rest.is_empty() {
                let count = rest.len().min(pattern.len() - phase);
                let (piece, more) = rest.split_at(count);
                assert!(
                    piece == &pattern[phase..phase + count],
                    "wrong bytes near {position}"
                );
                (rest, phase) = (more, 0);
                position += u64::try_from(count).unwrap();
                phase += usize::try_from(position % 32).unwrap();
            }
            session
                .send(
                    "output.ack",
                    json!({"acks": {serial.to_string(): position}}),
                )
                .unwrap();
        }
        ends += usize::from(push.body("end").is_some());
        exits += usize::from(push.body("exit").is_some());
        assert!(
            start.elapsed() < LONG * 3,
            "at {position} after {:?}",
            start.elapsed()
        );
    }
    assert_eq!(position, mib << 20);
    println!("{mib} MiB in {:?}", start.elapsed());
    let ledger = session.process("big").unwrap()["ledger"].clone();
    assert_eq!(ledger["captured"].as_u64(), Some(position), "{ledger}");
    assert_eq!(ledger["dropped"].as_u64(), Some(0), "{ledger}");
}

#[test]
fn a_consumer_that_comes_and_goes_loses_nothing() {
    let kernel = Kernel::start();
    let process = kernel.json().make_process(
        "p",
        &["seq", "2000000"],
        json!({"env": path(), "overflow": "block"}),
    );
    let serial = serial(&process);
    let mut collector = Collector::new(&kernel.socket_path(), &["p"]);
    // A cheap deterministic sequence decides after how many batches it leaves.
    let mut random = 12345_u64;
    while !collector.finished(serial) {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        for _ in 0..=(random >> 62) {
            collector.step(Duration::from_millis(20));
        }
        collector.disconnect();
    }
    assert!(
        collector.connections > 3,
        "only {} connections",
        collector.connections
    );
    let seen = &collector.seen[&serial];
    assert_eq!(seen.dropped, 0);
    assert_same_bytes("all numbers", &numbers(1, 2_000_000), &seen.bytes);
}

#[test]
fn a_consumer_that_does_not_read_costs_its_writer_the_stall_limit_once() {
    let kernel = Kernel::start();
    let mut session = kernel.json();
    session.ok("output.consume", json!({"names": ["p"]}));
    let start = Instant::now();
    // Many times what the reel and the socket buffers hold; written fast, but for the one wait.
    let script = "head -c 100000000 /dev/zero";
    let process =
        kernel
            .json()
            .make_process("p", &["/bin/sh", "-c", script], json!({"env": path()}));
    let worker = i32::try_from(process["pid"].as_i64().unwrap()).unwrap();
    wait_until_for("the writer has ended", LONG, || !procfs::alive(worker));
    let took = start.elapsed();
    assert!(
        took >= STALL_LIMIT - Duration::from_millis(300),
        "it should have waited: {took:?}"
    );
    // Every time the reel is full it would be minutes.
    assert!(
        took < STALL_LIMIT * 10,
        "it should have waited once: {took:?}"
    );
    let listed = kernel.json().process("p").unwrap();
    let count = |key: &str| listed["ledger"][key].as_u64().unwrap();
    wait_until("all is captured", || {
        kernel.json().process("p").unwrap()["ledger"]["captured"] == 100_000_000_u64
    });
    assert!(count("dropped") > 50_000_000, "{listed}");
}

#[test]
fn a_reader_that_lags_gets_a_gap_that_is_counted() {
    let kernel = Kernel::start();
    let process = kernel.json().make_process(
        "p",
        &["seq", "2000000"],
        json!({"env": path(), "overflow": "drop_oldest", "reel_bytes": 65536}),
    );
    let serial = serial(&process);
    let mut session = kernel.json();
    wait_until("it has ended", || {
        session
            .process("p")
            .is_some_and(|process| process["running"] == false)
    });
    let seen = Collector::new(&kernel.socket_path(), &["p"]).finish(serial);
    let all = numbers(1, 2_000_000);
    assert!(seen.dropped > 0);
    assert_eq!(seen.dropped + seen.bytes.len() as u64, all.len() as u64);
    assert!(all.ends_with(&seen.bytes), "what is left is the end");
    assert!(
        seen.bytes.len() <= 2 * 65536 + 65536,
        "{} bytes kept",
        seen.bytes.len()
    );
}

#[test]
fn a_blocked_writer_waits_for_as_long_as_it_takes() {
    let kernel = Kernel::start();
    let process = kernel.json().make_process(
        "p",
        &["seq", "2000000"],
        json!({"env": path(), "overflow": "block", "reel_bytes": 65536}),
    );
    let worker = i32::try_from(process["pid"].as_i64().unwrap()).unwrap();
    let mut session = kernel.json();
    wait_until("the reel is full", || {
        session.process("p").unwrap()["ledger"]["captured"].as_u64() >= Some(65536)
    });
    // Meanwhile another one has waited for its reader as long as the policy `auto` does.
    let mut reader = kernel.json();
    reader.ok("output.consume", json!({"names": ["q"]}));
    let more = json!({"env": path(), "reel_bytes": 65536});
    session.make_process("q", &["seq", "200000"], more);
    wait_until("the other one goes on", || {
        session.process("q").unwrap()["running"] == false
    });
    assert!(procfs::alive(worker), "it waits");
    let seen = Collector::new(&kernel.socket_path(), &["p"]).finish(serial(&process));
    assert_same_bytes("all of it", &numbers(1, 2_000_000), &seen.bytes);
}

#[test]
fn a_follower_only_looks() {
    let kernel = Kernel::start();
    let process = kernel.json().make_process(
        "p",
        &["/bin/sh", "-c", "echo one; sleep 60"],
        json!({"env": path()}),
    );
    let mut follower = kernel.json();
    follower.ok("output.follow", json!({"names": ["p"], "from": "start"}));
    assert_eq!(follower.push_of("output")["length"], 4);
    let serial = serial(&process);
    let error = follower.error("output.ack", json!({"acks": {serial.to_string(): 4}}));
    assert!(
        ["denied", "claimed", "not_found", "invalid"].contains(&error.as_str()),
        "{error}"
    );
    let mut consumer = kernel.json();
    consumer.ok("output.consume", json!({"names": ["p"]}));
    assert_eq!(consumer.push().bytes, b"one\n");
}

#[test]
fn there_is_one_consumer_and_a_second_takes_over_only_by_force() {
    let kernel = Kernel::start();
    kernel
        .json()
        .make_process("p", &["/bin/sleep", "60"], json!({}));
    let mut first = kernel.json();
    first.ok("output.consume", json!({"names": ["p"]}));
    let mut second = kernel.json();
    assert_eq!(
        second.error("output.consume", json!({"names": ["p"]})),
        "claimed"
    );
    second.ok("output.consume", json!({"names": ["p"], "force": true}));
}

#[test]
fn the_reel_can_be_read_by_descriptor() {
    let kernel = Kernel::start();
    let process = kernel.json().make_process(
        "p",
        &["seq", "100000"],
        json!({"env": path(), "overflow": "block"}),
    );
    let serial = serial(&process);
    let mut session = kernel.json();
    session.ok("output.consume", json!({"names": ["p"], "bytes": "reel"}));
    let offset = session.ok("output.reel", json!({"serial": serial}))["data_offset"]
        .as_u64()
        .unwrap();
    let reel = std::fs::File::from(session.descriptor());
    let mut bytes = Vec::new();
    let all = numbers(1, 100_000);
    while bytes.len() < all.len() {
        let push = session.push();
        let Some(output) = push.body("output") else {
            continue;
        };
        assert!(
            push.bytes.is_empty() && output["inline"] == false,
            "{output}"
        );
        let start = output["start"].as_u64().unwrap();
        let mut piece = vec![0; usize::try_from(output["length"].as_u64().unwrap()).unwrap()];
        std::os::unix::fs::FileExt::read_exact_at(&reel, &mut piece, offset + start).unwrap();
        bytes.extend_from_slice(&piece);
        session
            .send(
                "output.ack",
                json!({"acks": {serial.to_string(): bytes.len()}}),
            )
            .unwrap();
    }
    assert_same_bytes("by descriptor", &all, &bytes);
    let refused = std::os::unix::fs::FileExt::write_at(&reel, b"forged", offset);
    assert!(refused.is_err(), "the descriptor is for reading");
}

#[test]
fn little_comes_inline_and_much_is_left_in_the_reel() {
    let kernel = Kernel::start();
    let mut session = kernel.json();
    session.ok("output.consume", json!({"names": ["p"], "bytes": "auto"}));
    let go = kernel.path("go");
    let wait = |gate: u32| format!("until [ -e {go}.{gate} ]; do sleep 0.01; done");
    let open = |gate: u32| std::fs::write(format!("{go}.{gate}"), "").unwrap();
    let script = format!(
        "echo little; {}; head -c 100000 /dev/zero; {}; head -c 1000000 /dev/zero; sleep 60",
        wait(1),
        wait(2)
    );
    let process = kernel.json().make_process(
        "p",
        &["/bin/sh", "-c", &script],
        json!({"env": path(), "reel_bytes": 200_000, "overflow": "drop_oldest"}),
    );
    let little = session.push();
    assert_eq!(little.bytes, b"little\n");
    let reply = session.ok("output.reel", json!({"serial": serial(&process)}));
    let reel = std::fs::File::from(session.descriptor());
    let first_kept = || {
        let mut word = [0; 8];
        let offset = reply["start_offset"].as_u64().unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&reel, &mut word, offset).unwrap();
        u64::from_le_bytes(word)
    };
    assert_eq!(first_kept(), 0);
    open(1);
    let mut end = 0;
    while end < 100_007 {
        let push = session.push();
        let output = push.body("output").unwrap();
        let (start, length) = (
            output["start"].as_u64().unwrap(),
            output["length"].as_u64().unwrap(),
        );
        assert_eq!(output["inline"], length < 16 * 1024, "{output}");
        end = start + length;
    }
    open(2);
    // What is dropped is said before it goes.
    wait_until("the oldest goes", || first_kept() > 0);
}

#[test]
fn two_hundred_chatty_processes() {
    const PROCESSES: u64 = 200;
    const LINES: u64 = 2000;
    let kernel = Kernel::start();
    let mut session = kernel.json();
    let last = LINES.to_string();
    let mut collector = Collector::new(&kernel.socket_path(), &["c.*"]);
    let serials: Vec<u64> = (0..PROCESSES)
        .map(|index| {
            serial(&session.make_process(
                &format!("c.{index}"),
                &["seq", &last],
                json!({"env": path()}),
            ))
        })
        .collect();
    collector.run_until("all are finished", LONG, |collector| {
        serials.iter().all(|serial| collector.finished(*serial))
    });
    let expected = numbers(1, LINES);
    for serial in &serials {
        assert_same_bytes("one of many", &expected, &collector.seen[serial].bytes);
    }
    wait_until("all are forgotten", || {
        session.ok("process.list", json!({}))["processes"] == json!([])
    });
}

#[test]
fn the_ledger_adds_up() {
    let kernel = Kernel::start();
    let process = kernel
        .json()
        .make_process("p", &["seq", "5000"], json!({"env": path()}));
    let serial = serial(&process);
    let mut session: Json = kernel.json();
    session.ok("output.consume", json!({"names": ["p"]}));
    let mut position = 0;
    let total = numbers(1, 5000).len() as u64;
    while position < total {
        if let Some(output) = session.push().body("output") {
            position = output["start"].as_u64().unwrap() + output["length"].as_u64().unwrap();
        }
    }
    let ledger = session.process("p").unwrap()["ledger"].clone();
    assert_eq!(
        ledger,
        json!({"captured": total, "delivered": total, "acknowledged": 0, "dropped": 0})
    );
    session
        .send("output.ack", json!({"acks": {serial.to_string(): total}}))
        .unwrap();
    let ledger = session.process("p").unwrap()["ledger"].clone();
    assert_eq!(ledger["acknowledged"].as_u64(), Some(total), "{ledger}");
}
