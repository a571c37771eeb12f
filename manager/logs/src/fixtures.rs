//! What another version has left in the log state: read, carried along, or refused as a whole. See
//! `tests/fixtures`.
//!
//! `UPDATE_FIXTURES=VERSION cargo test -p papa-logs` writes the fixture of
//! a version whose form is new.

use std::fmt::Write;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Whence, lseek};

use crate::file_id::FileId;
use crate::layout::{
    DONE_ENTRY_BYTES, DONE_OFFSET, Delta, Kind, RECORD_OFFSETS, SLOTS_OFFSET, SLOTS_USED_OFFSET,
    Source, Unfinished, Work,
};
use crate::rotate::Turn;
use crate::store::Store;

const FILE: FileId = FileId {
    device: 2049,
    inode: 4711,
};
const LATER: Source = source(7, Kind::Other(9));

const fn source(serial: u64, kind: Kind) -> Source {
    Source { serial, kind }
}

fn delta(serial: u64, kind: Kind, position: u64) -> Delta {
    Delta {
        source: source(serial, kind),
        position,
    }
}

/// Every kind of position, and every kind of work, unfinished; and a slot that was used and is
/// free.
fn recorded() -> Store {
    let mut store = Store::create().unwrap();
    for position in [
        delta(7, Kind::Out, 1000),
        delta(7, Kind::Err, 900),
        delta(6, Kind::Gap, 50),
        delta(7, Kind::Dropped, 30),
        delta(7, Kind::Matched, 1),
    ] {
        store.set_done(position).unwrap();
    }
    let write = [delta(7, Kind::Out, 1010)];
    let (a, b, c) = (
        Path::new("/logs/a"),
        Path::new("/logs/b"),
        Path::new("/logs/c"),
    );
    let slot = store.acquire().unwrap();
    store
        .begin_write(slot, a, FILE, 100, &[b"one line\n"], &write)
        .unwrap();
    let slot = store.acquire().unwrap();
    let plan = Turn::Shift { backup_count: 5 };
    store.begin_rotate(slot, b, FILE, &plan).unwrap();
    let slot = store.acquire().unwrap();
    let plan = Turn::Rename {
        suffix: ".20261122".to_owned(),
        backup_count: 3,
    };
    store.begin_rotate(slot, c, FILE, &plan).unwrap();
    let slot = store.acquire().unwrap();
    let write = [delta(8, Kind::Err, 4)];
    store
        .begin_write(slot, a, FILE, 109, &[b"two\n"], &write)
        .unwrap();
    store.finish_write(slot, &write).unwrap();
    store
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/manager")
}

/// A memory file as text: its size, then an offset and the bytes there in hex a line; what is not
/// named is a hole.
fn dump(file: &File) -> String {
    let size = file.metadata().unwrap().len();
    let mut text = format!("size {size}\n");
    let mut at = 0;
    loop {
        at = match lseek(file, i64::try_from(at).unwrap(), Whence::SeekData) {
            Ok(found) => u64::try_from(found).unwrap() / 4096 * 4096,
            Err(Errno::ENXIO) => return text,
            Err(errno) => panic!("{errno}"),
        };
        let mut page = [0; 4096];
        let read = file.read_at(&mut page, at).unwrap();
        for (index, piece) in page[..read].chunks(32).enumerate() {
            if piece.iter().any(|byte| *byte != 0) {
                write!(text, "{} ", at + index as u64 * 32).unwrap();
                for byte in piece {
                    write!(text, "{byte:02x}").unwrap();
                }
                text.push('\n');
            }
        }
        at += 4096;
    }
}

/// The memory file a fixture tells of.
fn load(name: &str) -> File {
    let text = fs::read_to_string(folder().join(name)).unwrap();
    let file = File::from(memfd_create(c"fixture", MFdFlags::MFD_CLOEXEC).unwrap());
    for line in text.lines() {
        let (offset, content) = line.split_once(' ').unwrap();
        if offset == "size" {
            file.set_len(content.parse().unwrap()).unwrap();
            continue;
        }
        let bytes: Vec<u8> = (0..content.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&content[at..at + 2], 16).unwrap())
            .collect();
        file.write_all_at(&bytes, offset.parse().unwrap()).unwrap();
    }
    file
}

fn open(file: &File) -> (Store, Vec<Unfinished>) {
    Store::open(file.try_clone().unwrap().into()).unwrap()
}

fn word(file: &File, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, offset).unwrap();
    u64::from_le_bytes(bytes)
}

#[test]
fn what_this_version_leaves_is_what_it_left_before() {
    let store = recorded();
    let file = File::from(store.descriptor().try_clone_to_owned().unwrap());
    if let Ok(version) = std::env::var("UPDATE_FIXTURES") {
        let path = folder().join(format!("logs-{version}.txt"));
        assert!(!path.exists(), "fixtures are never changed");
        fs::write(path, dump(&file)).unwrap();
    }
    let text = fs::read_to_string(folder().join("logs-0.1.0.txt")).unwrap();
    assert_eq!(
        dump(&file),
        text,
        "what is written now is another form: add a fixture of it, and keep this one"
    );
}

#[test]
fn log_states_of_every_version_are_read() {
    for (name, later) in [("logs-0.1.0.txt", 0), ("logs-future.txt", 77)] {
        let (mut store, unfinished) = open(&load(name));
        for (serial, kind, position) in [
            (7, Kind::Out, 1000),
            (7, Kind::Err, 900),
            (6, Kind::Gap, 50),
            (7, Kind::Dropped, 30),
            (7, Kind::Matched, 1),
            (8, Kind::Err, 4),
            (8, Kind::Out, 0),
        ] {
            assert_eq!(
                store.done(source(serial, kind)),
                position,
                "{name}: {kind:?}"
            );
        }
        assert_eq!(store.done(LATER), later, "{name}");
        let [write, shift, rename] = &unfinished[..] else {
            panic!("{name}: {unfinished:?}");
        };
        for (work, path) in [(write, "/logs/a"), (shift, "/logs/b"), (rename, "/logs/c")] {
            assert_eq!(
                (work.path.as_path(), work.file),
                (Path::new(path), FILE),
                "{name}"
            );
        }
        let Work::Write {
            start,
            bytes,
            deltas,
        } = &write.work
        else {
            panic!("{name}: {write:?}");
        };
        assert_eq!((*start, bytes.as_slice()), (100, &b"one line\n"[..]));
        assert_eq!(deltas[0], delta(7, Kind::Out, 1010));
        assert!(
            matches!(&shift.work, Work::Rotate(Turn::Shift { backup_count: 5 })),
            "{name}: {shift:?}"
        );
        assert!(
            matches!(&rename.work, Work::Rotate(Turn::Rename { suffix, backup_count: 3 }) if suffix == ".20261122"),
            "{name}: {rename:?}"
        );
        // The place of the one that is finished, not of one that is not.
        assert_eq!(
            store.acquire().unwrap().offset(),
            write.slot.offset() + 3 * (shift.slot.offset() - write.slot.offset())
        );
    }
}

#[test]
fn what_a_later_version_counts_is_carried_along() {
    let file = load("logs-future.txt");
    let (mut store, unfinished) = open(&file);
    let Work::Write { deltas, .. } = &unfinished[0].work else {
        panic!("{unfinished:?}");
    };
    assert_eq!(deltas[1], delta(7, Kind::Other(9), 80));
    store.finish_write(unfinished[0].slot, deltas).unwrap();
    // Others take no place of theirs.
    for serial in 20..40 {
        store.set_done(delta(serial, Kind::Out, 1)).unwrap();
    }
    let (mut store, _) = open(&file);
    assert_eq!(store.done(LATER), 80);
    assert_eq!(store.done(source(7, Kind::Out)), 1010);
    let spare = |entry: usize| word(&file, DONE_OFFSET + (entry * DONE_ENTRY_BYTES) as u64 + 24);
    assert_eq!(spare(0), 5, "the word behind a position is left alone");
    // Until the process is forgotten, and then all of it.
    store.retain(|serial| serial != 7).unwrap();
    assert_eq!(spare(0), 0);
    let (store, _) = open(&file);
    assert_eq!(store.done(LATER), 0);
    assert!(store.serials().all(|serial| serial != 7));
}

#[test]
fn what_cannot_be_carried_along_is_refused_and_left_as_it_is() {
    let record = SLOTS_OFFSET + RECORD_OFFSETS[1];
    let number = |number: u64| number.to_le_bytes();
    for (what, offset, bytes) in [
        ("another layout", 0, *b"PAPALOG2"),
        ("more slots", SLOTS_USED_OFFSET, number(2000)),
        ("more positions", 8, number(1 << 20)),
        ("another phase", record, number(9)),
        ("a longer write", record + 32, number(1 << 20)),
    ] {
        let file = load("logs-0.1.0.txt");
        assert_eq!(word(&file, record), 1, "the write is recorded there");
        file.write_all_at(&bytes, offset).unwrap();
        let before = dump(&file);
        let error = Store::open(file.try_clone().unwrap().into()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{what}: {error}");
        assert!(
            error.to_string().contains("later version"),
            "{what}: {error}"
        );
        assert_eq!(dump(&file), before, "{what}");
    }
    // A layout may also become smaller.
    let file = File::from(memfd_create(c"small", MFdFlags::MFD_CLOEXEC).unwrap());
    file.write_all_at(b"PAPALOG3 and so on", 0).unwrap();
    let error = Store::open(file.into()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}
