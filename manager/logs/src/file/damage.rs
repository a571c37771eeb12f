//! What people do to a log file while nothing is written to it, and while it is being turned, and
//! where the next lines go.
//!
//! Each case runs four times: while the file is idle or in rotation, and the manager lives or is
//! killed meanwhile. What happens while a write is stuck is `cut`'s. Which error a bad disk answers
//! with makes no difference: nothing of a refused write is in the file, and it is offered again.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::stat::Mode;

use crate::disk::{Handle, open};
use crate::file::fixtures::{DONE, later};
use crate::file::{Limits, LogFile};
use crate::file_id::file_id;
use crate::rotate::Turn;
use crate::schedule::Now;
use crate::store::Store;

const LINES: &str = "one\ntwo\nthree\n";
/// The file has seven bytes: the lines that come have it turned first.
const LIMITS: Limits = Limits {
    max_bytes: 10,
    backup_count: 3,
    watch_path: false,
    rotation: None,
    compress: false,
    mkdir: false,
};

/// Files, and what they hold.
type Files = &'static [(&'static str, &'static str)];

/// One thing that happens to the file, and what must be there afterwards.
struct Case {
    name: &'static str,
    damage: fn(&Path),
    /// Done once it was seen that nothing can be written; `None` when the lines are written at
    /// once.
    repair: Option<fn(&Path)>,
    idle: Files,
    idle_killed: Files,
    /// Whether the manager lives or not.
    in_rotation: Files,
}

const ONLY_NEW: Files = &[("log", LINES)];

const CASES: &[Case] = &[
    Case {
        name: "left alone",
        damage: |_| {},
        repair: None,
        idle: &[("log", "before\none\ntwo\nthree\n")],
        idle_killed: &[("log", "before\none\ntwo\nthree\n")],
        in_rotation: &[("log.1", "before\n"), ("log", LINES)],
    },
    Case {
        name: "deleted",
        damage: |logs| fs::remove_file(logs.join("log")).unwrap(),
        repair: None,
        idle: ONLY_NEW,
        idle_killed: ONLY_NEW,
        in_rotation: ONLY_NEW,
    },
    Case {
        name: "renamed",
        damage: |logs| fs::rename(logs.join("log"), logs.join("log.old")).unwrap(),
        repair: None,
        idle: &[("log.old", "before\none\ntwo\nthree\n")],
        idle_killed: &[("log.old", "before\n"), ("log", LINES)],
        in_rotation: &[("log.old", "before\n"), ("log", LINES)],
    },
    Case {
        name: "copied and truncated",
        damage: |logs| {
            fs::copy(logs.join("log"), logs.join("log.old")).unwrap();
            File::create(logs.join("log")).unwrap();
        },
        repair: None,
        idle: &[("log.old", "before\n"), ("log", LINES)],
        idle_killed: &[("log.old", "before\n"), ("log", LINES)],
        in_rotation: &[("log.old", "before\n"), ("log.1", ""), ("log", LINES)],
    },
    Case {
        name: "directory removed",
        damage: |logs| fs::remove_dir_all(logs).unwrap(),
        repair: Some(|logs| fs::create_dir(logs).unwrap()),
        idle: ONLY_NEW,
        idle_killed: ONLY_NEW,
        in_rotation: ONLY_NEW,
    },
    Case {
        name: "replaced by a directory",
        damage: |logs| {
            fs::remove_file(logs.join("log")).unwrap();
            fs::create_dir(logs.join("log")).unwrap();
        },
        repair: Some(|logs| fs::remove_dir(logs.join("log")).unwrap()),
        idle: ONLY_NEW,
        idle_killed: ONLY_NEW,
        in_rotation: ONLY_NEW,
    },
    Case {
        name: "replaced by a FIFO that nobody reads",
        damage: |logs| {
            fs::remove_file(logs.join("log")).unwrap();
            nix::unistd::mkfifo(&logs.join("log"), Mode::S_IRWXU).unwrap();
        },
        repair: Some(|logs| fs::remove_file(logs.join("log")).unwrap()),
        idle: ONLY_NEW,
        idle_killed: ONLY_NEW,
        in_rotation: ONLY_NEW,
    },
    Case {
        name: "replaced by our link",
        damage: |logs| {
            fs::remove_file(logs.join("log")).unwrap();
            symlink("elsewhere", logs.join("log")).unwrap();
        },
        repair: None,
        idle: &[("elsewhere", LINES)],
        idle_killed: &[("elsewhere", LINES)],
        // The link is turned as the file would be.
        in_rotation: ONLY_NEW,
    },
    Case {
        name: "cannot be renamed",
        damage: |logs| {
            for number in 1..=3 {
                fs::create_dir_all(logs.join(format!("log.{number}/in the way"))).unwrap();
            }
        },
        repair: None,
        idle: &[("log", "before\none\ntwo\nthree\n")],
        idle_killed: &[("log", "before\none\ntwo\nthree\n")],
        in_rotation: &[("log", "before\none\ntwo\nthree\n")],
    },
];

fn offer(log: &mut LogFile, store: &mut Store, now: Now) -> bool {
    log.append(store, &[LINES.as_bytes()], DONE, now).is_ok() && log.flush(store, now).is_ok()
}

/// Offers the lines, as often as the kernel would: until they are taken.
fn deliver(case: &Case, name: &str, logs: &Path, mut log: LogFile, mut store: Store) {
    if let Some(repair) = case.repair {
        assert!(!offer(&mut log, &mut store, Now::read()), "{name}");
        assert_eq!(store.done(DONE.source), 0, "{name}");
        let (reason, _) = log.trouble().unwrap();
        assert!(reason.contains("/log cannot be written: "), "{reason}");
        repair(logs);
        assert!(log.retry(&mut store, later()), "{name}: it resumes");
    }
    assert!(
        offer(&mut log, &mut store, later()),
        "{name}: {:?}",
        log.trouble()
    );
    assert_eq!(store.done(DONE.source), DONE.position, "{name}");
}

fn check(name: &str, logs: &Path, files: Files) {
    for (file, text) in files {
        let found = fs::read_to_string(logs.join(file)).unwrap_or_default();
        assert_eq!(found, *text, "{name}: {file}");
    }
    // The lines stand nowhere else.
    let copies: usize = fs::read_dir(logs)
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
        .map(|entry| fs::read_to_string(entry.path()).unwrap())
        .map(|text| text.matches("three\n").count())
        .sum();
    assert_eq!(copies, 1, "{name}");
}

fn successor(store: &Store) -> (Store, Option<LogFile>) {
    let copy = store.descriptor().as_fd().try_clone_to_owned().unwrap();
    let (mut store, unfinished) = Store::open(copy).unwrap();
    let recovered = unfinished
        .into_iter()
        .map(|work| LogFile::recover(&mut store, work, Now::read()))
        .next();
    (store, recovered)
}

#[test]
fn lines_after_damage_while_the_file_was_idle_go_to_the_right_file() {
    for case in CASES {
        for killed in [false, true] {
            let name = format!("{}, idle, manager killed: {killed}", case.name);
            let scratch = tempfile::tempdir().unwrap();
            let logs = scratch.path().join("logs");
            fs::create_dir(&logs).unwrap();
            let path = logs.join("log");
            fs::write(&path, "before\n").unwrap();
            let mut log = LogFile::new(path.clone());
            log.handle = Some(open(&path, false).unwrap());
            let mut store = Store::create().unwrap();
            (case.damage)(&logs);
            if killed {
                store = successor(&store).0;
                log = LogFile::new(path);
            }
            deliver(case, &name, &logs, log, store);
            let files = if killed { case.idle_killed } else { case.idle };
            check(&name, &logs, files);
        }
    }
}

#[test]
fn lines_after_damage_in_a_rotation_go_to_the_right_file() {
    for case in CASES {
        for killed in [false, true] {
            let name = format!("{}, in rotation, manager killed: {killed}", case.name);
            let scratch = tempfile::tempdir().unwrap();
            let logs = scratch.path().join("logs");
            fs::create_dir(&logs).unwrap();
            let path = logs.join("log");
            fs::write(&path, "before\n").unwrap();
            let handle = open(&path, false).unwrap();
            let mut store = Store::create().unwrap();
            let mut log = LogFile::new(path.clone());
            if killed {
                // It is recorded, and not a file is renamed yet.
                let slot = store.acquire().unwrap();
                let plan = Turn::Shift { backup_count: 3 };
                store.begin_rotate(slot, &path, handle.id, &plan).unwrap();
                drop(handle);
                (case.damage)(&logs);
                let (next, recovered) = successor(&store);
                store = next;
                log = recovered.unwrap();
            } else {
                log.handle = Some(handle);
                (case.damage)(&logs);
            }
            log.set_limits(LIMITS);
            deliver(case, &name, &logs, log, store);
            check(&name, &logs, case.in_rotation);
        }
    }
}

/// What our own log is told.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<u8>>>);

impl io::Write for Told {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_file_on_a_full_disk_was_said_to_be_writable_at_each_try() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("log");
    // It opens, and answers ENOSPC to every write.
    symlink("/dev/full", &path).unwrap();
    let told = Told::default();
    let writer = told.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone());
    tracing::subscriber::with_default(subscriber.finish(), || {
        let mut store = Store::create().unwrap();
        let mut log = LogFile::new(path.clone());
        let mut now = Now::read();
        assert!(!offer(&mut log, &mut store, now));
        for _ in 0..5 {
            now.at += Duration::from_secs(60);
            assert!(log.retry(&mut store, now));
            assert!(!offer(&mut log, &mut store, now));
        }
        fs::remove_file(&path).unwrap();
        now.at += Duration::from_secs(60);
        assert!(log.retry(&mut store, now));
        for _ in 0..3 {
            assert!(offer(&mut log, &mut store, now));
        }
    });
    let told = String::from_utf8(told.0.lock().unwrap().clone()).unwrap();
    let count = |what: &str| told.matches(what).count();
    assert_eq!(count("cannot write the log file"), 1, "{told}");
    assert_eq!(count("can be written again"), 1, "{told}");
}

#[test]
fn a_disk_that_refuses_a_whole_write_costs_nothing_whatever_it_answers() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("log");
    // What answers ENOSPC to every write, in the place of a file on such a disk.
    let file = File::options().append(true).open("/dev/full").unwrap();
    let id = file_id(&file.metadata().unwrap());
    let mut log = LogFile::new(path.clone());
    log.handle = Some(Handle {
        file,
        id,
        size: 0,
        regular: true,
    });
    let mut store = Store::create().unwrap();
    assert!(!offer(&mut log, &mut store, Now::read()));
    assert!(!log.is_stuck() && log.remedy().is_some());
    assert!(successor(&store).1.is_none(), "nothing is left to finish");
    assert!(log.retry(&mut store, later()));
    assert!(offer(&mut log, &mut store, later()));
    assert_eq!(fs::read_to_string(&path).unwrap(), LINES);
    for errno in [
        Errno::ENOSPC,
        Errno::EDQUOT,
        Errno::EIO,
        Errno::EFBIG,
        Errno::EROFS,
        Errno::EPERM,
    ] {
        log.suspend(&errno.into(), Now::read(), None);
        let (reason, _) = log.trouble().unwrap();
        assert!(!reason.contains("os error"), "{reason}");
        assert!(log.remedy().is_some(), "{errno}");
        assert!(log.retry(&mut store, later()));
    }
}
