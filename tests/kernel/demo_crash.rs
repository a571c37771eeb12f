//! The demonstration: two hundred chatty processes, a consumer, and the kernel killed with -9 forty
//! times at random moments, then keeper and kernel in turns. Same pids, byte-exact output, every
//! exit code, no refused connection.
//!
//! `cargo test -p papa-kernel --test demo_crash -- --nocapture` prints a summary.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use papa_harness::{Collector, Kernel, assert_same_bytes, procfs};

const WORKERS: usize = 200;
const KERNEL_KILLS: u32 = 40;
/// Turns in which first the keeper, then the kernel is killed.
const TURNS: u32 = 10;
/// The longest pause between two kills.
const LONGEST_PAUSE_MS: u64 = 120;
/// Often enough to hit the gap a restart would leave; nobody accepts on the held listener, so its
/// queue must not fill up meanwhile.
const CONNECT_EVERY: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(180);

/// Twenty numbered lines, a short rest without starting a program, until the stop file is there;
/// then a last line and an exit code of its own.
const WORKER: &str = r#"
exec 9<>"$1"
i=0
while [[ ! -e "$2" ]]; do
  for ((k = 0; k < 20; k++)); do
    ((++i))
    echo "worker $3 line $i"
  done
  read -t 0.1 -u 9
done
echo "worker $3 done after $i"
exit $4
"#;

/// Random enough for kill times, without a dependency (Knuth's MMIX constants).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Connects all the time; gives how often it tried and failed, and the longest wait.
fn connector(port: u16, stop: Arc<AtomicBool>) -> JoinHandle<(u64, u64, Duration)> {
    std::thread::spawn(move || {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let (mut tried, mut refused, mut longest) = (0, 0, Duration::ZERO);
        while !stop.load(Ordering::Relaxed) {
            let start = Instant::now();
            tried += 1;
            if TcpStream::connect_timeout(&address, PATIENCE).is_err() {
                refused += 1;
            }
            longest = longest.max(start.elapsed());
            std::thread::sleep(CONNECT_EVERY);
        }
        (tried, refused, longest)
    })
}

#[test]
fn two_hundred_workers_notice_nothing() {
    let mut kernel = Kernel::start();
    let (fifo, stop_file) = (kernel.path("rest"), kernel.path("stop"));
    nix::unistd::mkfifo(fifo.as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut session = kernel.json();
    let web = session.ok("socket.make", json!({"name": "web", "backlog": 4096}))["socket"].clone();
    let made: Vec<Value> = (0..WORKERS)
        .map(|index| {
            let (number, code) = (index.to_string(), (index % 100 + 1).to_string());
            session.make_process(
                &format!("demo.{index}"),
                &[
                    "/bin/bash",
                    "-c",
                    WORKER,
                    "worker",
                    &fifo,
                    &stop_file,
                    &number,
                    &code,
                ],
                json!({"overflow": "block"}),
            )
        })
        .collect();
    drop(session);
    println!("{WORKERS} workers run; killing the kernel {KERNEL_KILLS} times");

    let stop = Arc::new(AtomicBool::new(false));
    let web_port = u16::try_from(web["port"].as_u64().unwrap()).unwrap();
    let connectors = [
        ("the kernel", kernel.port()),
        ("a worker's listener", web_port),
    ]
    .map(|(what, port)| (what, connector(port, stop.clone())));
    let path = kernel.socket_path();
    let serials: Vec<u64> = made
        .iter()
        .map(|process| process["serial"].as_u64().unwrap())
        .collect();
    let wanted = serials.clone();
    let consumer = std::thread::spawn(move || {
        let mut collector = Collector::new(&path, &["demo.*"]);
        collector.run_until("all workers are finished", PATIENCE, |collector| {
            wanted.iter().all(|serial| collector.finished(*serial))
        });
        collector
    });

    let seed = u64::from(std::process::id());
    let mut random = Random(seed);
    let mut longest_recovery = Duration::ZERO;
    let mut pause = || std::thread::sleep(Duration::from_millis(random.below(LONGEST_PAUSE_MS)));
    for _ in 0..KERNEL_KILLS {
        pause();
        let start = Instant::now();
        kernel.kill_kernel();
        longest_recovery = longest_recovery.max(start.elapsed());
    }
    println!(
        "longest time until it served again: {longest_recovery:?}; keeper and kernel in turns"
    );
    for _ in 0..TURNS {
        pause();
        kernel.kill_keeper();
        pause();
        kernel.kill_kernel();
    }

    for process in &made {
        let listed = kernel
            .json()
            .process(process["name"].as_str().unwrap())
            .unwrap();
        assert_eq!(listed["pid"], process["pid"], "the same process as before");
        assert_eq!(listed["running"], true, "{listed}");
        let pid = i32::try_from(process["pid"].as_i64().unwrap()).unwrap();
        assert!(procfs::alive(pid));
    }
    std::fs::write(&stop_file, "").unwrap();
    let collector = consumer.join().expect("the consumer got everything");
    stop.store(true, Ordering::Relaxed);

    let (mut bytes, mut lines) = (0, 0);
    for (index, serial) in serials.iter().enumerate() {
        let seen = &collector.seen[serial];
        let text = String::from_utf8_lossy(&seen.bytes);
        let last = text.lines().last().unwrap_or_default();
        let count: u64 = last
            .strip_prefix(&format!("worker {index} done after "))
            .and_then(|count| count.parse().ok())
            .unwrap_or_else(|| panic!("worker {index} ends in {last:?}"));
        let mut expected = String::new();
        for line in 1..=count {
            expected.push_str(&format!("worker {index} line {line}\n"));
        }
        expected.push_str(&format!("worker {index} done after {count}\n"));
        assert_same_bytes("a worker's output", expected.as_bytes(), &seen.bytes);
        assert_eq!(seen.dropped, 0);
        assert_eq!(seen.exit.as_ref().unwrap()["code"], index % 100 + 1);
        bytes += seen.bytes.len();
        lines += count;
    }
    println!(
        "{WORKERS} pids unchanged, {lines} lines ({bytes} bytes) complete and in order, {WORKERS} exit codes, {} \
         consumer connections",
        collector.connections
    );
    for (what, connector) in connectors {
        let (tried, refused, longest) = connector.join().expect("the connector does not panic");
        println!("{what}: {tried} connections, {refused} refused, longest wait {longest:?}");
        assert_eq!(refused, 0, "{what}");
    }
}
