//! Kills a log writer at random moments, many times, and counts lines.
//!
//! The writer is this test binary started again; the kernel is played by files: what each process
//! wrote is a function of its serial, and the positions acknowledged are words in a file. Source:
//! reference/probes/once.py.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use papa_protocol::record::{Record, Stream};

use crate::file::Limits;
use crate::format::Style;
use crate::route::{Route, Routes};
use crate::schedule::Now;
use crate::sink::Address;
use crate::store::Store;
use crate::writer::{LogWriter, Process};

/// Tells the started binary that it is the writer, and where.
const DIRECTORY: &str = "PAPA_TEST_LOGS_KILLED";
const SERIALS: u64 = 3;
const LINES: usize = 20_000;
const MAX_BYTES: u64 = 150_000;
/// Then the writer is left to end: on a slow machine it would never come to it.
const KILLS: usize = 500;
const DEADLINE: Duration = Duration::from_secs(300);

/// A small generator: the test needs variety, not quality.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

/// Everything a process ever wrote: bytes, and records that cut lines anywhere and mix the streams.
fn script(serial: u64) -> (Vec<u8>, Vec<Record>) {
    let mut random = Random(serial);
    let mut waiting: [Vec<u8>; 2] = Default::default();
    let mut numbers = [0, 0];
    let (mut bytes, mut records) = (Vec::new(), Vec::new());
    while numbers.iter().any(|n| *n < LINES) || waiting.iter().any(|w| !w.is_empty()) {
        let which = random.below(2);
        for _ in 0..random.below(20) {
            if numbers[which] < LINES {
                let text = format!(
                    "{serial} {which} {} {}\n",
                    numbers[which],
                    "x".repeat(random.below(60))
                );
                waiting[which].extend_from_slice(text.as_bytes());
                numbers[which] += 1;
            }
        }
        let length = waiting[which].len();
        let taken = if numbers[which] == LINES {
            length
        } else {
            random.below(length + 1)
        };
        bytes.extend(waiting[which].drain(..taken));
        if taken > 0 {
            records.push(Record {
                end: bytes.len() as u64,
                stream: [Stream::Out, Stream::Err][which],
                stamp_us: 0,
            });
        }
    }
    (bytes, records)
}

/// A script as a file: the writer must not spend its short life on making it.
fn write_script(directory: &Path, serial: u64) {
    let (bytes, records) = script(serial);
    let mut words = Vec::new();
    for record in records {
        let stream = u64::from(record.stream == Stream::Err);
        words.extend_from_slice(&(record.end << 1 | stream).to_le_bytes());
    }
    fs::write(directory.join(format!("bytes{serial}")), bytes).unwrap();
    fs::write(directory.join(format!("records{serial}")), words).unwrap();
}

fn read_script(directory: &Path, serial: u64) -> (Vec<u8>, Vec<Record>) {
    let words = fs::read(directory.join(format!("records{serial}"))).unwrap();
    let records = words.chunks_exact(8).map(|word| {
        let word = u64::from_le_bytes(word.try_into().unwrap());
        Record {
            end: word >> 1,
            stream: [Stream::Out, Stream::Err][usize::from(word & 1 == 1)],
            stamp_us: 1_700_000_000_000_000,
        }
    });
    let bytes = fs::read(directory.join(format!("bytes{serial}"))).unwrap();
    (bytes, records.collect())
}

fn routes(directory: &Path, serial: u64) -> Routes {
    let route = |name: &str, time_format: Option<&str>| {
        Some(Route {
            to: Address::File(directory.join(name)),
            limits: Limits {
                max_bytes: MAX_BYTES,
                backup_count: 100_000,
                ..Limits::default()
            },
            style: time_format.map_or(Style::Raw, |format| Style::Stamped(format.to_owned())),
        })
    };
    match serial {
        1 => Routes {
            out: route("shared.log", None),
            err: route("shared.log", None),
            ready: None,
        },
        2 => Routes {
            out: route("shared.log", None),
            err: route("stamped.log", Some("%H:%M")),
            ready: None,
        },
        _ => Routes {
            out: route("stamped.log", Some("%H:%M")),
            err: route("own.log", None),
            ready: None,
        },
    }
}

/// The writer. Does nothing unless the test below started it.
#[test]
fn writer_process() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else {
        return;
    };
    let state = OpenOptions::new()
        .read(true)
        .write(true)
        .open(directory.join("state"))
        .unwrap();
    let acknowledged = OpenOptions::new()
        .read(true)
        .write(true)
        .open(directory.join("acknowledged"))
        .unwrap();
    let scripts: Vec<_> = (1..=SERIALS)
        .map(|serial| read_script(&directory, serial))
        .collect();
    // Says that it begins, so that the kill does not fall into the start of the program.
    acknowledged
        .write_all_at(&u64::from(std::process::id()).to_le_bytes(), 0)
        .unwrap();
    let now = Now::read();
    let (store, unfinished) = Store::open(state.into()).unwrap();
    let mut writer = LogWriter::open(store, unfinished, now);
    let mut random = Random(u64::from(std::process::id()));
    let mut positions = Vec::new();
    for serial in 1..=SERIALS {
        let mut word = [0; 8];
        acknowledged.read_exact_at(&mut word, serial * 8).unwrap();
        positions.push(u64::from_le_bytes(word));
        let process = Process {
            serial,
            name: format!("circus.t.{serial}"),
            watcher: "t".to_owned(),
            wid: 1,
            pid: 1,
            reel_bytes: 1 << 20,
            acknowledged: u64::from_le_bytes(word),
            dropped: 0,
        };
        writer.add(&process, &routes(&directory, serial));
    }
    loop {
        let mut left = false;
        for _ in 0..=random.below(4) {
            let which = random.below(scripts.len());
            let (bytes, records) = &scripts[which];
            let start = positions[which];
            let at = usize::try_from(start).unwrap();
            let end = (at + 1 + random.below(40_000)).min(bytes.len());
            if at >= end {
                // This one has no more.
                continue;
            }
            let first = records.partition_point(|record| record.end <= start);
            let last = records.partition_point(|record| record.end < end as u64);
            let mut batch = records[first..last].to_vec();
            if let Some(last) = records.get(last) {
                batch.push(Record {
                    end: end as u64,
                    ..*last
                });
            }
            writer.output(which as u64 + 1, start, batch, &bytes[at..end], now);
            positions[which] = end as u64;
        }
        for (serial, position) in writer.flush(now) {
            acknowledged
                .write_all_at(&position.to_le_bytes(), serial * 8)
                .unwrap();
        }
        assert!(writer.troubles().is_empty(), "{:?}", writer.troubles());
        for (which, (bytes, _)) in scripts.iter().enumerate() {
            left |= positions[which] < bytes.len() as u64;
        }
        if !left {
            return;
        }
    }
}

#[test]
fn kill_9_at_any_moment_loses_nothing_and_repeats_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let state = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(directory.join("state"))
        .unwrap();
    drop(Store::format(state).unwrap());
    File::create(directory.join("acknowledged"))
        .unwrap()
        .set_len(4096)
        .unwrap();
    (1..=SERIALS).for_each(|serial| write_script(directory, serial));
    let begun_by = File::open(directory.join("acknowledged")).unwrap();
    let mut random = Random(7);
    let mut kills = 0;
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < DEADLINE, "not done after {kills} kills");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "killed::writer_process",
                "--test-threads=1",
                "--nocapture",
            ])
            .env(DIRECTORY, directory)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut ended = None;
        let mut until = None;
        while ended.is_none() && until.is_none_or(|until| Instant::now() < until) {
            ended = child.try_wait().unwrap();
            let mut word = [0; 8];
            begun_by.read_exact_at(&mut word, 0).unwrap();
            if until.is_none() && kills < KILLS && u64::from_le_bytes(word) == u64::from(child.id())
            {
                // The moment of the kill is the test's input, not a wait for something.
                until = Some(Instant::now() + Duration::from_micros(random.below(4000) as u64));
            }
            std::thread::yield_now();
        }
        if let Some(status) = ended {
            assert!(status.success(), "{status}");
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    let mut next: HashMap<(u64, u64), u64> = HashMap::new();
    let mut files = 0;
    for name in ["shared.log", "stamped.log", "own.log"] {
        let path = directory.join(name);
        let backups = (1..)
            .take_while(|n| directory.join(format!("{name}.{n}")).exists())
            .count();
        let old = (1..=backups)
            .rev()
            .map(|n| directory.join(format!("{name}.{n}")));
        for path in old.chain([path]) {
            files += 1;
            let text = fs::read_to_string(&path).unwrap();
            assert!(
                text.len() as u64 <= MAX_BYTES,
                "{} has {}",
                path.display(),
                text.len()
            );
            for line in text.lines() {
                let line = line.rsplit("| ").next().unwrap();
                let mut words = line.split(' ').map(|word| word.parse::<u64>().ok());
                let (serial, which, number) = (words.next(), words.next(), words.next());
                let expected = next
                    .entry((serial.unwrap().unwrap(), which.unwrap().unwrap()))
                    .or_default();
                assert_eq!(
                    number.unwrap().unwrap(),
                    *expected,
                    "{}: {line}",
                    path.display()
                );
                *expected += 1;
            }
        }
    }
    assert_eq!(next.len() as u64, SERIALS * 2);
    assert!(
        next.values().all(|count| *count == LINES as u64),
        "{next:?}"
    );
    println!(
        "{kills} kills, {files} files, {} lines",
        SERIALS * 2 * LINES as u64
    );
}
