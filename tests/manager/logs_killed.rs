//! The manager is killed again and again, at random and in the middle of writes and rotations,
//! while eight workers write to shared files: every number is there once and in order.
//!
//! The steps are failpoints of the manager, which exist in builds with debug assertions only.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::logs_streams::text_of;
use crate::stack::Stack;
use papa_harness::{wait_until, wait_until_for};

const KILLS: usize = 200;
/// How many of them are aimed: every third, one of these steps.
const STEPS: [&str; 7] = [
    "log.before_write",
    "log.in_write",
    "log.after_write",
    "log.rotating",
    "log.rotated",
    "log.compressed",
    "log.before_acknowledge",
];
const WORKERS: usize = 8;
/// The kernel goes as well, now and then.
const KERNEL_EVERY: usize = 25;
/// Output a worker may have waiting before a manager is left alone for a while: far from the 1 MiB
/// at which the oldest goes.
const BACKLOG: u64 = 256 * 1024;
/// A slow machine gets fewer kills, and says so.
const TIME: Duration = Duration::from_secs(75);
const WRITING: Duration = Duration::from_secs(90);

/// A small generator: the test needs variety, and the same again for a seed.
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

fn stack() -> Stack {
    // Until told to stop; each burst is some lines, and some of them come in two writes.
    let cmd = |name: &str| {
        format!(
            "sh -c 'i=0; while [ ! -e DIR/enough ]; do for n in 1 2 3 4 5 6 7 8 9 10; do echo \"{name}-out-$$ $i abcdefghijklmnop\"; \
             printf \"{name}-err-$$ \" >&2; echo \"$i\" >&2; i=$((i+1)); done; sleep 0.005; done; echo \"{name}-out-$$ $i end\"; \
             echo \"{name}-err-$$ $i end\" >&2; exec sleep 1000'"
        )
    };
    let watcher = |name: &str, streams: &str| {
        format!(
            "[watcher:{name}]\ncmd = {}\ncopy_env = true\nnumprocesses = 2\n{streams}\n",
            cmd(name)
        )
    };
    let ini = [
        watcher(
            "size",
            "stdout_stream.filename = DIR/logs/shared.log\nstdout_stream.max_bytes = 400000\nstdout_stream.backup_count = 9000\n\
             stdout_stream.time_format = %H:%M:%S\nstderr_stream.filename = DIR/logs/shared.log\n",
        ),
        watcher(
            "time",
            "stdout_stream.class = TimedRotatingFileStream\nstdout_stream.filename = DIR/logs/timed.log\n\
             stdout_stream.rotate_when = S\nstdout_stream.max_bytes = 500000\nstdout_stream.time_format = %H:%M:%S\n\
             stderr_stream.filename = DIR/logs/shared.log\n",
        ),
        watcher(
            "gzip",
            "stdout_stream.filename = DIR/logs/zip.log\nstdout_stream.max_bytes = 300000\nstdout_stream.backup_count = 9000\n\
             stdout_stream.compress = gzip\nstderr_stream.class = json\nstderr_stream.filename = DIR/logs/lines.json\n\
             stderr_stream.rotate_when = S\nstderr_stream.rotate_interval = 3\n",
        ),
        watcher(
            "mixed",
            "stdout_stream.class = TimedRotatingFileStream\nstdout_stream.filename = DIR/logs/timed.log\n\
             stdout_stream.rotate_when = S\nstdout_stream.max_bytes = 500000\nstderr_stream.filename = DIR/logs/zip.log\n\
             stderr_stream.time_format = [%f]\n",
        ),
    ];
    Stack::start(&ini.concat())
}

/// The most output the kernel keeps of any worker.
fn backlog(stack: &Stack) -> u64 {
    let listed = stack
        .kernel
        .json()
        .ok("process.list", serde_json::json!({}));
    let processes = listed["processes"].as_array().unwrap();
    let kept = |process: &serde_json::Value| {
        let of = |key: &str| process["ledger"][key].as_u64().unwrap();
        of("captured") - of("acknowledged") - of("dropped")
    };
    processes.iter().map(kept).max().unwrap_or(0)
}

/// A log file's pieces, oldest first.
fn pieces(directory: &Path, name: &str) -> Vec<std::path::PathBuf> {
    let mut found: Vec<(i64, i64, std::path::PathBuf)> = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_str().unwrap().to_owned();
        let Some(rest) = file.strip_prefix(name) else {
            continue;
        };
        if rest.ends_with(".tmp") {
            continue;
        }
        let plain = rest.strip_suffix(".gz").unwrap_or(rest);
        if plain != rest && directory.join(format!("{name}{plain}")).exists() {
            // Complete, and the plain one is about to go: it counts once.
            continue;
        }
        let mut numbers = plain.split('.').skip(1).map(|n| n.parse::<i64>().unwrap());
        let key = match (numbers.next(), numbers.next()) {
            (None, _) => (i64::MAX, 0),
            (Some(stamp), more) if stamp > 1_000_000 => (stamp, more.unwrap_or(0)),
            (Some(number), _) => (-number, 0),
        };
        found.push((key.0, key.1, path));
    }
    found.sort();
    found.into_iter().map(|(_, _, path)| path).collect()
}

/// How many sources have written their last line; files may be turned meanwhile.
fn ends(directory: &Path, name: &str) -> usize {
    let pieces = pieces(directory, name);
    let ended = |path: &std::path::PathBuf| {
        let text = text_of(path);
        text.windows(4).filter(|word| *word == b" end").count()
    };
    pieces.iter().map(ended).sum()
}

/// The next number expected of every source; fails on the first line lost, repeated, torn or out of
/// order.
#[track_caller]
fn count(directory: &Path, name: &str) -> BTreeMap<String, u64> {
    let mut next: BTreeMap<String, u64> = BTreeMap::new();
    for path in pieces(directory, name) {
        let text = String::from_utf8(text_of(&path)).unwrap();
        assert!(
            text.is_empty() || text.ends_with('\n'),
            "{}",
            path.display()
        );
        for line in text.lines() {
            let json: Option<serde_json::Value> = serde_json::from_str(line).ok();
            let line = match &json {
                Some(value) => value["line"].as_str().unwrap(),
                None => line.rsplit("| ").next().unwrap_or(line),
            };
            let mut words = line.split(' ');
            let source = words.next().unwrap_or_default().to_owned();
            let number = words.next().and_then(|word| word.parse().ok());
            let expected = next.entry(source).or_default();
            assert_eq!(number, Some(*expected), "{}: {line:?}", path.display());
            *expected += 1;
        }
    }
    next
}

#[test]
fn two_hundred_kills_cost_no_line_and_repeat_none() {
    let mut stack = stack();
    for name in ["size", "time", "gzip", "mixed"] {
        stack.wait_pids(name, WORKERS / 4);
    }
    let mut random = Random(20_261_122);
    let begun = Instant::now();
    let (mut kills, mut aimed) = (0, 0);
    stack.kill_manager();
    while kills < KILLS && begun.elapsed() < TIME {
        if kills % 3 == 2 {
            let step = STEPS[usize::try_from(random.below(STEPS.len() as u64)).unwrap()];
            stack.start_manager_to_stop_at(step, 1 + random.below(6));
            // Some steps are rare; then it is a kill like the others.
            let patience = Instant::now() + Duration::from_millis(1500);
            wait_until("the manager stops or its time is over", || {
                stack.failpoints().hit(step).is_some() || Instant::now() > patience
            });
            aimed += usize::from(stack.failpoints().hit(step).is_some());
        } else {
            stack.spawn_manager();
            // The moment of the kill is the test's input, not a wait for something.
            std::thread::sleep(Duration::from_millis(20 + random.below(200)));
        }
        stack.kill_manager();
        kills += 1;
        if kills % KERNEL_EVERY == 0 {
            stack.kernel.kill_kernel();
        }
        if backlog(&stack) > BACKLOG {
            // Killed so soon again and again, nobody ever gets to acknowledge, and then the oldest
            // output goes, rightly.
            stack.start_manager();
            wait_until_for("the kernel keeps little again", WRITING, || {
                backlog(&stack) < BACKLOG / 4
            });
            stack.kill_manager();
        }
    }
    stack.start_manager();
    fs::write(stack.kernel.directory().join("enough"), "").unwrap();
    let directory = stack.kernel.directory().join("logs");
    let files = ["shared.log", "timed.log", "zip.log", "lines.json"];
    // Of two watchers both streams, of two one each.
    let sources = [
        WORKERS / 4 * 3,
        WORKERS / 4 * 2,
        WORKERS / 4 * 2,
        WORKERS / 4,
    ];
    wait_until_for("everything is written", WRITING, || {
        files
            .iter()
            .zip(sources)
            .all(|(file, sources)| ends(&directory, file) == sources)
    });
    // Files are still being turned by the clock and compressed: nothing must move while they are
    // read.
    stack.kill_manager();
    let mut lines = 0;
    for (file, sources) in files.iter().zip(sources) {
        let counts = count(&directory, file);
        assert_eq!(counts.len(), sources, "{file}: {counts:?}");
        lines += counts.values().sum::<u64>();
    }
    println!("{kills} kills, {aimed} of them in the middle of something, {lines} lines");
    assert!(kills >= KILLS / 4, "only {kills} kills in {TIME:?}");
}
