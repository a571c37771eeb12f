//! Lines by the million, as fast as the writers can, through random kills of keeper, kernel and
//! manager: none is lost or repeated.
//!
//! Nothing paces the writers, and the kernel keeps its usual 1 MiB of each: whenever it is full
//! they wait. So a killed manager has to be back within the kernel's stall limit of 2 s; where that
//! did not work the check finds a gap, and the run is worth nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::action::Random;
use papa_harness::wait_until_for;
use papa_harness::whole::{Role, Whole};

const WRITERS: u64 = 4;

/// Lines of one order to a worker: more than the kernel keeps.
const BURST: u64 = 20_000;
const LINE_BYTES: u64 = 60;

/// Bytes of one write of a worker, so that most writes end within a line.
const CHUNK: u64 = 4_096;

/// How long it may take from one kill to the next.
const PATIENCE: Duration = Duration::from_secs(600);

const INI: &str = "\
[watcher:ten]
cmd = WORKER ten rate=0
copy_env = true
ready = notify
numprocesses = 4
stdout_stream.filename = DIR/logs/ten.out
stdout_stream.max_bytes = 10000000
stdout_stream.backup_count = 9000
stderr_stream.filename = DIR/logs/ten.err
stderr_stream.max_bytes = 7000000
stderr_stream.backup_count = 9000
";

#[track_caller]
fn lines_through_kills(lines: u64, kills: usize, seed: u64) {
    println!("{lines} lines, {kills} kills, seed {seed}");
    let mut random = Random::new(seed);
    let mut whole = Whole::builder().ini(INI).start();
    let writers = whole.living("ten");
    assert_eq!(writers.len() as u64, WRITERS);
    let bursts = lines / BURST;
    // A kill comes when so many bursts are written.
    let mut moments: Vec<u64> = (0..kills).map(|_| random.below(bursts)).collect();
    moments.sort_unstable();
    let written = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let threads: Vec<_> = writers
        .iter()
        .zip(0..)
        .map(|(life, number)| {
            let (life, written) = (life.clone(), Arc::clone(&written));
            let directory = whole.kernel.directory().to_owned();
            let own = bursts / WRITERS + u64::from(number < bursts % WRITERS);
            std::thread::spawn(move || {
                for burst in 0..own {
                    let stream = ["out", "err"][usize::from(burst % 2 == 1)];
                    let order = format!("burst {stream} {BURST} {LINE_BYTES} {CHUNK}");
                    life.order(&directory, &order).expect("the worker obeys");
                    written.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let mut killed = [0; 3];
    let mut worst = Duration::ZERO;
    for moment in moments {
        wait_until_for("the next kill is due", PATIENCE, || {
            written.load(Ordering::Relaxed) >= moment
        });
        let place = usize::try_from(random.below(3)).unwrap();
        // Not always just after a burst.
        std::thread::sleep(Duration::from_millis(random.below(100)));
        let role = Role::ALL[place];
        let before = Instant::now();
        whole.kill(role);
        whole.restore().unwrap();
        worst = worst.max(before.elapsed());
        killed[place] += 1;
    }
    for thread in threads {
        thread.join().expect("the writers have written");
    }
    let seconds = begun.elapsed().as_secs_f64();
    if let Err(wrong) = whole.check() {
        panic!("{}", wrong.join("\n"));
    }
    let read: u64 = whole
        .lines()
        .sources
        .iter()
        .filter(|(source, _)| source.starts_with("ten."))
        .map(|(_, read)| read.next)
        .sum();
    assert_eq!(read, bursts * BURST);
    let files = std::fs::read_dir(whole.logs()).map_or(0, Iterator::count);
    println!(
        "{read} lines in {files} files, each once and in order; killed: keeper {}, kernel {}, manager {}; \
         {seconds:.1} s to write, {:.1} s with the check; longest until all was there again {worst:.2?}; \
         {} visits answered, the longest {:.2?}",
        killed[0],
        killed[1],
        killed[2],
        begun.elapsed().as_secs_f64(),
        whole
            .visitor
            .as_ref()
            .map_or(0, |visitor| visitor.answered()),
        whole
            .visitor
            .as_ref()
            .map_or(Duration::ZERO, |visitor| visitor.worst()),
    );
}

#[test]
fn many_lines_through_kills() {
    lines_through_kills(400_000, 10, 1);
}

/// The one in the README: `cargo build --release && cargo test --release -p papa-manager --test
/// soak ten_million -- --ignored --nocapture`
#[test]
#[ignore = "takes minutes, and a machine with nothing else to do"]
fn ten_million_lines_through_forty_kills() {
    let seed = std::env::var("PAPA_SOAK_SEED").map_or(1, |seed| seed.parse().unwrap());
    lines_through_kills(10_000_000, 40, seed);
}
