use nix::sys::socket::MsgFlags;

use super::*;
use crate::keeper::wire::{MAX_MESSAGE, ToKeeper};
use crate::sys::message;

/// A world in which nothing exists, the keeper's end of its line, and its journal's file.
pub(crate) fn empty_world() -> (World, OwnedFd, OwnedFd) {
    let (ours, keeper) = message::seqpacket_pair().unwrap();
    let file = Journal::create().unwrap();
    let journal = Journal::replay(file.try_clone().unwrap()).unwrap().finish();
    let null = || std::fs::File::open("/dev/null").unwrap().into();
    let fixed = Fixed {
        config: null(),
        binary: null(),
        controls: Vec::new(),
        null: null(),
    };
    let link = KeeperLink::new(ours).unwrap();
    let world = World::new(Config::default(), fixed, link, journal, Table::default()).unwrap();
    (world, keeper, file)
}

/// The next thing the keeper was told, with how many descriptors came along; none if it was
/// told nothing.
pub(crate) fn told(keeper: &OwnedFd) -> Option<(ToKeeper, usize)> {
    let mut buffer = [0; MAX_MESSAGE];
    let got = message::receive(keeper, &mut buffer, MsgFlags::MSG_DONTWAIT).ok()?;
    Some((
        ToKeeper::decode(&buffer[..got.length])?,
        got.descriptors.len(),
    ))
}

/// The table that a kernel started on this journal would have.
pub(crate) fn recovered(file: &OwnedFd) -> Table {
    let mut table = Table::default();
    let mut replay = Journal::replay(file.try_clone().unwrap()).unwrap();
    while let Some(text) = replay.next_record().unwrap() {
        match Entry::read(&text) {
            table::Read::Entry(entry) => table.apply(entry),
            _ => panic!("a record that cannot be read"),
        }
    }
    table
}

fn value(text: &str) -> Entry {
    Entry::Value {
        name: papa_protocol::name::Name::new("v").unwrap(),
        value: text.into(),
    }
}

#[test]
fn a_change_that_was_made_is_in_the_journal() {
    let (mut world, _keeper, file) = empty_world();
    world.commit(value("one")).unwrap();
    world.commit(value("two")).unwrap();
    assert_eq!(recovered(&file).values, world.table.values);
    assert_eq!(world.table.values.len(), 1);
}

#[test]
fn a_change_that_could_not_be_recorded_was_not_made() {
    let (mut world, _keeper, _file) = empty_world();
    world.journal.break_file();
    world.commit(value("one")).unwrap_err();
    assert!(world.table.values.is_empty());
    // What has happened has happened.
    world.commit_fact(value("one"));
    assert_eq!(world.table.values.len(), 1);
}

#[test]
fn what_recovery_found_is_recorded_before_the_next_change() {
    let (mut world, _keeper, file) = empty_world();
    world.unrecorded.push_back(value("found"));
    world.commit(value("changed")).unwrap();
    assert_eq!(recovered(&file).values, world.table.values);
    assert!(world.unrecorded.is_empty());
}

#[test]
fn a_key_is_let_go_before_it_is_kept_again() {
    let (mut world, keeper, _file) = empty_world();
    let key = Key::new(Kind::HELD, 1);
    let null = world.fixed.null.try_clone().unwrap();
    world.keep(&[(key, null.as_fd())]).unwrap();
    world.unkeep(&[key]);
    world.keep(&[(key, null.as_fd())]).unwrap();
    let said: Vec<_> = std::iter::from_fn(|| told(&keeper)).collect();
    assert_eq!(
        said,
        [
            (ToKeeper::Put(vec![key]), 1),
            (ToKeeper::Drop(vec![key]), 0),
            (ToKeeper::Put(vec![key]), 1),
        ]
    );
}

#[test]
fn a_keeper_that_is_gone_is_noticed_once_and_refuses_nothing() {
    let (mut world, keeper, _file) = empty_world();
    drop(keeper);
    let key = Key::new(Kind::HELD, 1);
    let null = world.fixed.null.try_clone().unwrap();
    for _ in 0..2 {
        world.keep(&[(key, null.as_fd())]).unwrap();
    }
    assert!(world.take_keeper_gone());
    assert!(!world.take_keeper_gone());
}
