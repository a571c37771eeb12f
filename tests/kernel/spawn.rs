//! Many starts: nothing is left behind, and limits of the machine are met with an error instead of
//! a crash.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use papa_harness::{Json, Kernel, procfs, wait_until};

/// How many starts and exits; the promise is about this number.
const MANY: u64 = 10_000;

/// How many may be under way at once.
const TOGETHER: u64 = 50;

/// Memory may move this much after ten thousand processes: allocator slack, not one byte per
/// process.
const SLACK_KIB: u64 = 512;

fn counts(session: &mut Json) -> Value {
    session.ok("status", json!({}))["counts"].clone()
}

/// What a set of processes has open and uses.
fn footprint(kernel: &mut Kernel) -> (usize, u64, usize) {
    let (pid, keeper) = (kernel.pid(), kernel.keeper());
    let descriptors = procfs::open_descriptors(pid) + procfs::open_descriptors(keeper);
    let memory = [pid, keeper]
        .into_iter()
        .filter_map(procfs::anonymous_kib)
        .sum();
    let below = procfs::descendants(keeper).len();
    (descriptors, memory, below)
}

#[test]
fn ten_thousand_starts_and_exits_leave_nothing_behind() {
    let mut kernel = Kernel::start();
    let mut session = kernel.json();
    session.ok("output.consume", json!({"names": ["many.*"]}));
    // The first few fill caches that stay.
    churn(&mut session, 0, 500);
    let before = footprint(&mut kernel);
    let start = Instant::now();
    churn(&mut session, 500, MANY);
    println!("{} starts and exits in {:?}", MANY - 500, start.elapsed());
    wait_until("all are forgotten", || {
        counts(&mut session)["processes"] == 0
    });
    wait_until("descriptors and children are as before", || {
        let now = footprint(&mut kernel);
        now.0 <= before.0 && now.2 <= before.2
    });
    let after = footprint(&mut kernel);
    assert!(
        after.1 <= before.1 + SLACK_KIB,
        "memory went from {} to {} KiB",
        before.1,
        after.1
    );
}

/// Starts processes FROM..TO, some at a time, consuming and acknowledging all they do.
fn churn(session: &mut Json, from: u64, to: u64) {
    let mut made = from;
    let mut gone = from;
    while gone < to {
        while made < to && made - gone < TOGETHER {
            session.make_process(&format!("many.{made}"), &["/bin/echo", "x"], json!({}));
            made += 1;
        }
        let push = session.push();
        if let Some(output) = push.body("output") {
            assert_eq!(push.bytes, b"x\n");
            let end = output["start"].as_u64().expect("a start") + 2;
            let serial = output["serial"].to_string();
            session
                .send("output.ack", json!({"acks": {serial: end}}))
                .expect("the session lives");
        } else if let Some(exit) = push.body("exit") {
            assert_eq!(exit["code"], 0);
            session
                .send("exit.ack", json!({"serials": [exit["serial"]]}))
                .expect("the session lives");
            gone += 1;
        }
    }
}

#[test]
fn at_the_descriptor_limit_a_start_is_refused_and_clients_still_get_in() {
    let kernel = Kernel::builder()
        .wrapper(&["prlimit", "--nofile=200:200"])
        .start();
    let mut session = kernel.json();
    let mut made = 0;
    let code = loop {
        let name = format!("p.{made}");
        let reply = session
            .call(
                "process.make",
                json!({"name": name, "argv": ["/bin/sleep", "100"]}),
            )
            .expect("the session lives");
        match reply {
            Ok(_) => made += 1,
            Err(error) => break error["code"].as_str().unwrap_or_default().to_owned(),
        }
        assert!(made < 200, "200 descriptors cannot hold {made} processes");
    };
    assert!(made > 10, "only {made} fit");
    assert!(["limit", "spawn_failed"].contains(&code.as_str()), "{code}");
    assert_eq!(kernel.classic().ask("get nothing"), "");
    assert_eq!(counts(&mut kernel.json())["running"], made);
    session.ok("process.remove", json!({"names": ["p.*"]}));
}

#[test]
fn a_keeper_that_dies_when_all_descriptors_are_used_is_replaced_all_the_same() {
    let mut kernel = Kernel::builder()
        .wrapper(&["prlimit", "--nofile=200:200"])
        .start();
    let mut session = kernel.json();
    let mut made = 0;
    while session
        .call(
            "process.make",
            json!({"name": format!("p.{made}"), "argv": ["/bin/sleep", "100"]}),
        )
        .expect("the session lives")
        .is_ok()
    {
        made += 1;
    }
    assert!(made > 10, "only {made} fit");
    let callers: Vec<_> = (0..45).map(|_| kernel.classic()).collect();
    kernel.kill_keeper();
    drop(session);
    wait_until("another keeper's kernel has all of them", || {
        kernel
            .try_status()
            .is_some_and(|status| status["counts"]["running"] == made)
    });
    drop(callers);
}

#[test]
fn a_hanging_exec_does_not_stop_the_kernel_for_ever() {
    // A fifo as program fails at once; it must be an error, not a wait.
    let kernel = Kernel::start();
    let fifo = kernel.path("fifo");
    nix::unistd::mkfifo(fifo.as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let start = Instant::now();
    assert_eq!(
        kernel
            .json()
            .error("process.make", json!({"name": "p", "argv": [fifo]})),
        "spawn_failed"
    );
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn long_argument_lists_and_environments_arrive_whole() {
    let kernel = Kernel::start();
    let long = "x".repeat(100_000);
    let mut argv = vec!["/bin/sh", "-c", "echo $# ${#1} ${#VAR}", "sh"];
    argv.extend(std::iter::repeat_n(long.as_str(), 5));
    let process = kernel
        .json()
        .make_process("p", &argv, json!({"env": {"VAR": long}}));
    let seen = papa_harness::Collector::new(&kernel.socket_path(), &["p"])
        .finish(process["serial"].as_u64().unwrap());
    assert_eq!(String::from_utf8_lossy(&seen.bytes), "5 100000 100000\n");
    let too_long = "x".repeat(200_000);
    let code = kernel.json().error(
        "process.make",
        json!({"name": "q", "argv": ["/bin/echo", too_long]}),
    );
    assert!(
        ["invalid", "limit", "spawn_failed"].contains(&code.as_str()),
        "one argument over the system's limit: {code}"
    );
}

#[test]
fn an_ordinary_user_past_its_pipe_allowance_loses_nothing() {
    const PROCESSES: u64 = 300;
    if !papa_harness::is_root() {
        return papa_harness::skipped("the user nobody can only be tried by root");
    }
    // Past fs.pipe-user-pages-soft a user's new pipes hold one or two pages.
    let kernel = Kernel::builder().nobody().start();
    let mut session = kernel.json();
    let mut collector = papa_harness::Collector::new(&kernel.socket_path(), &["p.*"]);
    let idle: Vec<Value> = (0..PROCESSES)
        .map(|index| {
            session.make_process(&format!("idle.{index}"), &["/bin/sleep", "100"], json!({}))
        })
        .collect();
    assert_eq!(idle.len() as u64, PROCESSES);
    let expected: String = (1..=50_000).map(|number| format!("{number}\n")).collect();
    let serials: Vec<u64> = (0..5)
        .map(|index| {
            let process = session.make_process(
                &format!("p.{index}"),
                &["/usr/bin/seq", "50000"],
                json!({"overflow": "block"}),
            );
            process["serial"].as_u64().unwrap()
        })
        .collect();
    for serial in serials {
        let seen = collector.finish(serial);
        papa_harness::assert_same_bytes("through small pipes", expected.as_bytes(), &seen.bytes);
    }
}
