//! What earlier versions have left in memory files is still read: journal, reel, hand-over; and so
//! is what a later one may leave.

use std::os::fd::OwnedFd;
use std::path::Path;

use papa_kernel::change::handover::HandOver;
use papa_kernel::readers::session::SubKind;
use papa_kernel::sys::memfd;
use papa_kernel::world::journal::Journal;
use papa_kernel::world::reel::Reel;
use papa_kernel::world::table::{Entry, Read, Table};
use papa_protocol::limits::REEL_BYTES;

/// The memory file a fixture tells of.
fn file(name: &str) -> OwnedFd {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/kernel");
    let text = std::fs::read_to_string(folder.join(name)).expect("the fixture is there");
    let file = memfd::memfd_create("papa-fixture").expect("a memory file can be made");
    for line in text.lines() {
        let (offset, content) = line.split_once(' ').expect("two words a line");
        if offset == "size" {
            let size = content.parse().expect("a size");
            memfd::set_size(&file, size).expect("it can be sized");
            continue;
        }
        let bytes: Vec<u8> = (0..content.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&content[at..at + 2], 16).expect("hex"))
            .collect();
        let offset = offset.parse().expect("an offset");
        memfd::write_at(&file, &bytes, offset).expect("it can be written");
    }
    file
}

/// The table a journal tells of, and how many records nobody here knows.
fn table(name: &str) -> (Table, usize) {
    let (mut table, mut unknown) = (Table::default(), 0);
    let mut replay = Journal::replay(file(name)).expect("it is a journal");
    while let Some(text) = replay.next_record().expect("it can be read") {
        match Entry::read(&text) {
            Read::Entry(entry) => table.apply(entry),
            Read::Unknown(_) => unknown += 1,
            Read::Bad(error) => panic!("{error}: {}", String::from_utf8_lossy(&text)),
        }
    }
    assert_eq!(replay.skipped, 0);
    replay.finish().settle().expect("it can be gone on with");
    (table, unknown)
}

#[test]
fn journals_of_every_version_are_read() {
    for (name, strangers) in [("journal-0.1.0.txt", 0), ("journal-future.txt", 1)] {
        let (table, unknown) = table(name);
        assert_eq!(unknown, strangers, "{name}");
        assert_eq!(table.incarnation, 1, "{name}");
        let values: Vec<_> = table.values.iter().collect();
        assert_eq!(values.len(), 1, "{name}");
        assert_eq!(values[0].1.as_bytes(), "héllo".as_bytes());
        let process = table.process_named("mine.p").expect(name);
        assert!(process.pid > 0 && process.exit.is_none(), "{name}");
        assert_eq!(process.make.argv.len(), 3);
        assert_eq!(
            process.make.tag.as_ref().expect("its tag").value()["wid"],
            1
        );
        let socket = table.socket_named("web").expect(name);
        assert!(socket.port > 0);
        assert_eq!(socket.number, Some(100));
        let (namespace, claim) = table.claims.iter().next().expect(name);
        assert_eq!((namespace.as_ref(), claim.epoch), ("mine", 1));
        assert_eq!(claim.holder.as_deref(), Some("the recorder"));
    }
}

#[test]
fn reels_of_every_version_are_read() {
    let file = file("reel-0.1.0.txt");
    Reel::check(&file).expect("a dry run takes it");
    let reel = Reel::recover(file, REEL_BYTES, 1).expect("it is a reel");
    assert_eq!((reel.start(), reel.committed()), (0, 8));
    let mut bytes = bytes::BytesMut::new();
    reel.read(&mut bytes, 0, 8).expect("it can be read");
    assert_eq!(&bytes[..], b"out\nerr\n");
}

#[test]
fn hand_overs_of_every_version_are_read() {
    for name in ["handover-0.1.0.txt", "handover-future.txt"] {
        let found = HandOver::read(file(name)).expect(name);
        let (asker, id) = found.change.asked.expect("somebody asked");
        assert!(id.is_some(), "{name}");
        assert!(found.change.check.expect("it was tried").records > 0);
        assert_eq!(found.processes.len(), 1, "{name}");
        assert_eq!(found.sessions.len(), 3, "{name}");
        for session in &found.sessions {
            assert!(session.json, "{name}");
            // Only who asked waits for an answer.
            assert_eq!(session.connection.state.is_none(), session.id == asker);
        }
        let asker = found.sessions.iter().find(|session| session.id == asker);
        assert_eq!(asker.expect("it is among them").claims[0].as_ref(), "mine");
        let half = b"{\"id\":7,\"op\":\"value.g";
        let typed = |session: &&papa_kernel::change::handover::SessionRecord| {
            session.connection.bytes[0][..] == half[..]
        };
        assert_eq!(found.sessions.iter().filter(typed).count(), 1, "{name}");
        let followers: Vec<_> = found
            .sessions
            .iter()
            .flat_map(|session| session.subs.values())
            .collect();
        assert_eq!(followers.len(), 1, "{name}");
        assert!(matches!(followers[0].kind, SubKind::Follow { .. }));
        assert_eq!(followers[0].cursors.len(), 1, "{name}");
    }
}
