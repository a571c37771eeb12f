//! `kill -9` of kernel and keeper, re-exec by SIGUSR2: same pids, exact output, every exit code, no
//! refused connection.

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use papa_harness::{Collector, Kernel, assert_same_bytes, procfs, wait_until};

const LONG: Duration = Duration::from_secs(120);

/// Writes numbered lines with a pause now and then, so that it is busy over many kills.
const CHATTY: &str = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; [ $((i % 50)) = 0 ] && sleep 0.05; done; exit 42";

fn chatty_output() -> Vec<u8> {
    (1..=3000)
        .map(|i| format!("line {i}\n"))
        .collect::<String>()
        .into_bytes()
}

fn serial(process: &Value) -> u64 {
    process["serial"].as_u64().expect("a process has a serial")
}

fn pid(process: &Value) -> i32 {
    i32::try_from(process["pid"].as_i64().expect("a process has a pid")).expect("a pid fits")
}

/// Often enough to hit the gap a restart would leave; nobody accepts on the held listener, so its
/// queue must not fill up meanwhile.
const CONNECT_EVERY: Duration = Duration::from_millis(10);

/// Connects to a port again and again, counting what was refused.
struct Connector {
    stop: Arc<AtomicBool>,
    tried: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Connector {
    fn start(port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let tried = Arc::new(AtomicU64::new(0));
        let refused = Arc::new(AtomicU64::new(0));
        let shared = (stop.clone(), tried.clone(), refused.clone());
        let thread = std::thread::spawn(move || {
            let (stop, tried, refused) = shared;
            let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
            while !stop.load(Ordering::Relaxed) {
                tried.fetch_add(1, Ordering::Relaxed);
                if TcpStream::connect_timeout(&address, Duration::from_secs(5)).is_err() {
                    refused.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(CONNECT_EVERY);
            }
        });
        Self {
            stop,
            tried,
            refused,
            thread: Some(thread),
        }
    }

    fn finish(mut self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the connector does not panic");
        }
        (
            self.tried.load(Ordering::Relaxed),
            self.refused.load(Ordering::Relaxed),
        )
    }
}

/// Runs chatty workers while `disturb` is called again and again; everything must come out whole.
fn survives(times: usize, mut disturb: impl FnMut(&mut Kernel, usize)) {
    let mut kernel = Kernel::start();
    let mut session = kernel.json();
    let made: Vec<Value> = (0..5)
        .map(|index| {
            session.make_process(
                &format!("w.{index}"),
                &["/bin/sh", "-c", CHATTY],
                json!({"env": {"PATH": "/usr/bin:/bin"}, "overflow": "block"}),
            )
        })
        .collect();
    let listening = session.ok("socket.make", json!({"name": "web", "backlog": 4096}));
    let port =
        u16::try_from(listening["socket"]["port"].as_u64().expect("a port")).expect("a port fits");
    let connectors = [Connector::start(kernel.port()), Connector::start(port)];
    let path = kernel.socket_path();
    let serials: Vec<u64> = made.iter().map(serial).collect();
    let wanted = serials.clone();
    let consumer = std::thread::spawn(move || {
        let mut collector = Collector::new(&path, &["w.*"]);
        collector.run_until("all workers are finished", LONG, |collector| {
            wanted.iter().all(|serial| collector.finished(*serial))
        });
        collector
    });
    for turn in 0..times {
        disturb(&mut kernel, turn);
        for process in &made {
            let name = process["name"].as_str().expect("a name");
            if let Some(listed) = kernel.json().process(name) {
                assert_eq!(listed["pid"], process["pid"]);
                assert_eq!(listed["serial"], process["serial"]);
            }
        }
        assert_eq!(
            kernel.json().ok("socket.list", json!({}))["sockets"][0],
            listening["socket"]
        );
    }
    let collector = consumer.join().expect("the consumer got everything");
    let expected = chatty_output();
    for serial in serials {
        let seen = &collector.seen[&serial];
        assert_eq!(seen.dropped, 0);
        assert_same_bytes("a worker's output", &expected, &seen.bytes);
        assert_eq!(seen.exit.as_ref().expect("it exited")["code"], 42);
    }
    for connector in connectors {
        let (tried, refused) = connector.finish();
        assert_eq!(refused, 0, "of {tried} connections");
    }
}

#[test]
fn a_killed_kernel_is_not_noticed() {
    survives(8, |kernel, _| kernel.kill_kernel());
}

#[test]
fn a_killed_keeper_is_not_noticed() {
    survives(5, |kernel, _| kernel.kill_keeper());
}

#[test]
fn both_in_turns() {
    survives(8, |kernel, turn| {
        if turn % 2 == 0 {
            kernel.kill_kernel();
        } else {
            kernel.kill_keeper();
        }
    });
}

#[test]
fn a_reexec_keeps_its_pid_and_everything_else() {
    survives(5, |kernel, _| {
        let before = kernel.pid();
        kernel.upgrade();
        assert_eq!(kernel.pid(), before);
    });
}

#[test]
fn an_exit_while_the_kernel_was_away_is_known_afterwards() {
    let mut kernel = Kernel::start();
    let mut session = kernel.json();
    let by_signal = session.make_process("w.signal", &["/bin/sleep", "60"], json!({}));
    let by_code = session.make_process(
        "w.code",
        &["/bin/sh", "-c", "sleep 0.5; exit 7"],
        json!({"env": {"PATH": "/usr/bin:/bin"}}),
    );
    let (before, keeper) = (kernel.pid(), kernel.keeper());
    procfs::signal(keeper, Signal::SIGSTOP);
    procfs::signal(before, Signal::SIGKILL);
    procfs::signal(pid(&by_signal), Signal::SIGKILL);
    wait_until("both workers are dead", || {
        !procfs::alive(pid(&by_signal)) && !procfs::alive(pid(&by_code))
    });
    procfs::signal(keeper, Signal::SIGCONT);
    let mut collector = Collector::new(&kernel.socket_path(), &["w.*"]);
    let exit = |collector: &Collector, process: &Value| {
        collector
            .seen
            .get(&serial(process))
            .and_then(|seen| seen.exit.clone())
    };
    collector.run_until("both exits are told", LONG, |collector| {
        exit(collector, &by_code).is_some() && exit(collector, &by_signal).is_some()
    });
    assert_eq!(exit(&collector, &by_code).unwrap()["code"], 7);
    assert_eq!(exit(&collector, &by_signal).unwrap()["signal"], 9);
}

#[test]
fn what_was_made_stays_as_it_was() {
    let mut kernel = Kernel::start();
    let mut client = kernel.classic();
    client.ask("set v some value");
    let path = kernel.path("u.sock");
    client.ask(&format!("make socket u path={path} umask=7"));
    client.ask("make socket s");
    client.ask("make socket r reuseport=1");
    client.ask("remove sockets s");
    client.ask("make socket t type=dgram");
    client.ask("make process p env.A=b working_dir=/usr /bin/sleep 60");
    client.ask("make process q /bin/sh -c exit\\ 3");
    wait_until("q has ended", || {
        client.ask("list processes q").contains("running=False")
    });
    let listing = |kernel: &Kernel| {
        let mut client = kernel.classic();
        ["values", "sockets", "processes"]
            .map(|what| client.ask(&format!("list {what}")))
            .join("\n")
    };
    let before = listing(&kernel);
    for turn in 0..3 {
        kernel.kill_kernel();
        assert_eq!(listing(&kernel), before, "after kill {turn}");
        kernel.kill_keeper();
        assert_eq!(listing(&kernel), before, "after losing the keeper, {turn}");
        kernel.upgrade();
        assert_eq!(listing(&kernel), before, "after re-exec {turn}");
    }
    // The same request still finds the process it made.
    let again = kernel
        .classic()
        .ask("make process p env.A=b working_dir=/usr /bin/sleep 60");
    assert!(before.contains(&again), "{again}");
}

#[test]
fn unacknowledged_output_waits_across_a_crash_and_acknowledged_does_not_come_again() {
    let mut kernel = Kernel::start();
    nix::unistd::mkfifo(kernel.path("go").as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut session = kernel.json();
    let process = session.make_process(
        "p",
        &[
            "/bin/sh",
            "-c",
            "echo first; read x < $0; echo second",
            &kernel.path("go"),
        ],
        json!({}),
    );
    let serial = serial(&process);
    let mut collector = Collector::new(&kernel.socket_path(), &["p"]);
    collector.run_until("the first line is here", LONG, |collector| {
        collector
            .seen
            .get(&serial)
            .is_some_and(|seen| seen.position == 6)
    });
    // The acknowledgement is acted on before the next request of the same session; ours go by
    // another one.
    wait_until("it is acknowledged", || {
        kernel.json().process("p").unwrap()["ledger"]["acknowledged"] == 6
    });
    collector.disconnect();
    kernel.kill_kernel();
    std::fs::write(kernel.path("go"), "x\n").unwrap();
    wait_until("the second line is captured", || {
        kernel.json().process("p").unwrap()["ledger"]["captured"] == 13
    });
    kernel.kill_kernel();
    let seen = collector.finish(serial);
    assert_same_bytes("both lines once", b"first\nsecond\n", &seen.bytes);
    assert_eq!(seen.dropped, 0);
}

#[test]
fn a_worker_that_waits_on_a_full_pipe_goes_on() {
    let mut kernel = Kernel::start();
    let process = kernel.json().make_process(
        "p",
        &["seq", "500000"],
        json!({"env": {"PATH": "/usr/bin:/bin"}, "overflow": "block"}),
    );
    let mut session = kernel.json();
    wait_until("the reel is full", || {
        session.process("p").unwrap()["ledger"]["captured"].as_u64() >= Some(1 << 20)
    });
    drop(session);
    kernel.kill_kernel();
    kernel.kill_keeper();
    let seen = Collector::new(&kernel.socket_path(), &["p"]).finish(serial(&process));
    let expected: String = (1..=500_000).map(|i| format!("{i}\n")).collect();
    assert_same_bytes("all of it", expected.as_bytes(), &seen.bytes);
}

#[test]
fn new_workers_and_their_exits_work_after_every_change_of_roles() {
    let mut kernel = Kernel::start();
    for turn in 0..4 {
        match turn % 3 {
            0 => kernel.kill_keeper(),
            1 => kernel.kill_kernel(),
            _ => kernel.upgrade(),
        }
        let process =
            kernel
                .json()
                .make_process("p", &["/bin/sh", "-c", "echo x; exit 5"], json!({}));
        let seen = Collector::new(&kernel.socket_path(), &["p"]).finish(serial(&process));
        assert_same_bytes("its output", b"x\n", &seen.bytes);
        assert_eq!(seen.exit.unwrap()["code"], 5, "turn {turn}");
        wait_until("it is forgotten", || kernel.json().process("p").is_none());
    }
    let keeper = kernel.keeper();
    wait_until("no zombie is left", || {
        procfs::descendants(keeper)
            .into_iter()
            .all(|pid| procfs::stat(pid).is_none_or(|stat| stat.state != 'Z'))
    });
}

#[test]
fn a_kill_in_the_middle_of_a_start_leaves_no_worker_unknown() {
    let mut kernel = Kernel::start();
    let mut answered = Vec::new();
    let mut asked = 0;
    for turn in 0..12_u64 {
        let mut session = kernel.json();
        let victim = kernel.pid();
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(3 + turn * 2));
            procfs::signal(victim, Signal::SIGKILL);
        });
        loop {
            asked += 1;
            let name = format!("w.{asked}");
            let request = json!({"name": name, "argv": ["/bin/sleep", "100"]});
            match session.call("process.make", request) {
                Ok(reply) => answered.push(reply.expect("it can be made")["process"].clone()),
                Err(_) => break,
            }
        }
        killer.join().expect("the killer does not panic");
        // The one that was not answered may or may not have been made; if it was, it is listed.
        let listed = kernel.json().ok("process.list", json!({}))["processes"].clone();
        let listed = listed.as_array().expect("a list");
        for process in &answered {
            let same = listed.iter().find(|other| other["name"] == process["name"]);
            let same = same.unwrap_or_else(|| panic!("{} is not listed", process["name"]));
            assert_eq!(
                (&same["pid"], &same["serial"]),
                (&process["pid"], &process["serial"])
            );
            assert_eq!(same["running"], true, "{same}");
        }
        let running: std::collections::HashSet<i32> = listed
            .iter()
            .filter(|process| process["running"] == true)
            .map(pid)
            .collect();
        let keeper = kernel.keeper();
        let kernel_pid = kernel.pid();
        wait_until("what runs is what is listed", || {
            let real: std::collections::HashSet<i32> = procfs::descendants(keeper)
                .into_iter()
                .filter(|pid| *pid != kernel_pid && procfs::alive(*pid))
                .collect();
            real == running
        });
    }
    assert!(answered.len() > 12, "only {} starts", answered.len());
}
