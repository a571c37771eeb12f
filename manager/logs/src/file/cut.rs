//! A write that was cut short by a bad disk, and what people do to the file before the rest can
//! follow.
//!
//! Each case runs twice: the manager lives and tries again, or it is killed and a successor
//! finishes the write.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Instant;

use nix::sys::stat::Mode;

use crate::disk::open;
use crate::file::fixtures::{DONE, later};
use crate::file::write::{Attempt, Stuck};
use crate::file::{LogFile, Trouble};
use crate::schedule::Now;
use crate::store::Store;

const BATCH: &[u8] = b"one\ntwo\nthree\n";
/// Bytes of the batch that were written before the disk was full: the second line is torn.
const WRITTEN: usize = 6;

/// One thing that happens to the file, and what must be there afterwards.
struct Case {
    name: &'static str,
    damage: fn(&Path),
    /// Done once it was seen that nothing can be written; `None` when the write is to be finished
    /// at once.
    repair: Option<fn(&Path)>,
    files: &'static [(&'static str, &'static str)],
}

const WHOLE: &str = "one\ntwo\nthree\n";

const CASES: &[Case] = &[
    Case {
        name: "there is room again",
        damage: |_| {},
        repair: None,
        files: &[("log", "before\none\ntwo\nthree\n")],
    },
    Case {
        name: "deleted",
        damage: |logs| fs::remove_file(logs.join("log")).unwrap(),
        repair: None,
        files: &[("log", WHOLE)],
    },
    Case {
        name: "renamed",
        damage: |logs| fs::rename(logs.join("log"), logs.join("log.1")).unwrap(),
        repair: None,
        files: &[("log.1", "before\none\ntwo\nthree\n")],
    },
    Case {
        name: "copied and truncated",
        damage: |logs| {
            fs::copy(logs.join("log"), logs.join("log.1")).unwrap();
            File::create(logs.join("log")).unwrap();
        },
        repair: None,
        files: &[("log.1", "before\none\ntw"), ("log", "o\nthree\n")],
    },
    Case {
        name: "directory removed",
        damage: |logs| fs::remove_dir_all(logs).unwrap(),
        repair: Some(|logs| fs::create_dir(logs).unwrap()),
        files: &[("log", WHOLE)],
    },
    Case {
        name: "replaced by a directory",
        damage: |logs| {
            fs::remove_file(logs.join("log")).unwrap();
            fs::create_dir(logs.join("log")).unwrap();
        },
        repair: Some(|logs| fs::remove_dir(logs.join("log")).unwrap()),
        files: &[("log", WHOLE)],
    },
    Case {
        name: "replaced by a FIFO that nobody reads",
        damage: |logs| {
            fs::remove_file(logs.join("log")).unwrap();
            nix::unistd::mkfifo(&logs.join("log"), Mode::S_IRWXU).unwrap();
        },
        repair: Some(|logs| fs::remove_file(logs.join("log")).unwrap()),
        files: &[("log", WHOLE)],
    },
    Case {
        name: "replaced by our link",
        damage: |logs| {
            fs::remove_file(logs.join("log")).unwrap();
            symlink("elsewhere", logs.join("log")).unwrap();
        },
        repair: None,
        files: &[("elsewhere", WHOLE)],
    },
];

/// A store and a file in which the beginning of a batch stands, as a full disk leaves them.
fn cut_short(path: &Path) -> (Store, Attempt) {
    fs::write(path, "before\n").unwrap();
    let handle = open(path, false).unwrap();
    let mut store = Store::create().unwrap();
    let slot = store.acquire().unwrap();
    store
        .begin_write(slot, path, handle.id, handle.size, &[BATCH], &[DONE])
        .unwrap();
    (&handle.file).write_all(&BATCH[..WRITTEN]).unwrap();
    store.note_written(slot, WRITTEN).unwrap();
    let attempt = Attempt {
        slot,
        file: handle.file,
        id: handle.id,
        start: handle.size,
        regular: true,
        bytes: BATCH.to_vec(),
        written: WRITTEN,
        deltas: vec![DONE],
    };
    (store, attempt)
}

fn stuck(path: &Path, attempt: Attempt) -> LogFile {
    let mut log = LogFile::new(path.to_owned());
    log.trouble = Some(Trouble {
        reason: "no space".to_owned(),
        remedy: None,
        retry_at: Instant::now(),
        stuck: Some(Stuck::Write(attempt)),
    });
    log
}

fn successor(store: &Store) -> (Store, LogFile) {
    let copy = store.descriptor().as_fd().try_clone_to_owned().unwrap();
    let (mut store, mut unfinished) = Store::open(copy).unwrap();
    let log = LogFile::recover(&mut store, unfinished.pop().unwrap(), Now::read());
    (store, log)
}

#[test]
fn the_rest_of_a_cut_write_goes_to_the_right_file_whatever_became_of_it() {
    for case in CASES {
        for killed in [false, true] {
            let name = format!("{}, manager killed: {killed}", case.name);
            let scratch = tempfile::tempdir().unwrap();
            let logs = scratch.path().join("logs");
            fs::create_dir(&logs).unwrap();
            let path = logs.join("log");
            let (mut store, attempt) = cut_short(&path);
            let log = if killed {
                drop(attempt);
                None
            } else {
                Some(stuck(&path, attempt))
            };
            (case.damage)(&logs);
            let mut log = log.unwrap_or_else(|| {
                let (next, log) = successor(&store);
                store = next;
                log
            });
            log.retry(&mut store, later());
            if let Some(repair) = case.repair {
                assert!(log.is_stuck(), "{name}: nothing is in the way");
                assert_eq!(store.done(DONE.source), 0, "{name}");
                repair(&logs);
                log.trouble.as_mut().unwrap().retry_at = Instant::now();
                log.retry(&mut store, later());
            }
            assert!(log.trouble.is_none(), "{name}: {:?}", log.trouble());
            assert_eq!(store.done(DONE.source), DONE.position, "{name}");
            for (file, text) in case.files {
                let found = fs::read_to_string(logs.join(file)).unwrap_or_default();
                assert_eq!(found, *text, "{name}: {file}");
            }
            let expected = case.files.len() + usize::from(case.name == "replaced by our link");
            assert_eq!(fs::read_dir(&logs).unwrap().count(), expected, "{name}");
        }
    }
}

#[test]
fn a_deleted_file_is_let_go_when_logs_are_opened_anew() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("log");
    let (mut store, attempt) = cut_short(&path);
    let mut log = stuck(&path, attempt);
    fs::remove_file(&path).unwrap();
    log.reopen();
    let trouble = log.trouble.as_ref().unwrap();
    assert!(matches!(trouble.stuck, Some(Stuck::Unopened(_))));
    log.retry(&mut store, later());
    assert_eq!(fs::read(&path).unwrap(), BATCH);
}

#[test]
fn a_write_that_had_to_begin_anew_is_found_in_its_new_file_by_a_successor() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("log");
    let (store, attempt) = cut_short(&path);
    fs::remove_file(&path).unwrap();
    // It was begun anew in another file, of which somebody else had the first line, and cut again.
    let slot = attempt.slot;
    drop(attempt);
    fs::write(&path, "new\n").unwrap();
    let handle = open(&path, false).unwrap();
    store.retarget(slot, handle.id, handle.size).unwrap();
    (&handle.file).write_all(&BATCH[..WRITTEN]).unwrap();
    let (store, _log) = successor(&store);
    assert_eq!(fs::read(&path).unwrap(), [b"new\n", BATCH].concat());
    assert_eq!(store.done(DONE.source), DONE.position);
}
