use super::*;
use proptest::prelude::*;

fn read_all(file: &OwnedFd) -> (Vec<String>, Journal) {
    let mut replay = Journal::replay(file.try_clone().unwrap()).unwrap();
    let mut found = Vec::new();
    while let Some(text) = replay.next_record().unwrap() {
        found.push(serde_json::from_slice(&text).unwrap());
    }
    let journal = replay.finish();
    journal.settle().unwrap();
    (found, journal)
}

#[test]
fn a_cut_tail_is_dropped_and_written_over() {
    let file = Journal::create().unwrap();
    let (_, mut journal) = read_all(&file);
    journal.append(&"one").unwrap();
    journal.append(&"two").unwrap();
    memfd::set_size(&file, memfd::size(&file).unwrap() - 1).unwrap();
    let (found, mut journal) = read_all(&file);
    assert_eq!(found, ["one"]);
    journal.append(&"three").unwrap();
    assert_eq!(read_all(&file).0, ["one", "three"]);
}

#[test]
fn a_record_that_kills_twice_is_left_out() {
    let file = Journal::create().unwrap();
    let (_, mut journal) = read_all(&file);
    for text in ["one", "bad", "three"] {
        journal.append(&text).unwrap();
    }
    for _ in 0..2 {
        let mut replay = Journal::replay(file.try_clone().unwrap()).unwrap();
        replay.next_record().unwrap();
        replay.next_record().unwrap();
        // Dies here: neither another record nor finish.
    }
    let mut replay = Journal::replay(file.try_clone().unwrap()).unwrap();
    let mut found: Vec<String> = Vec::new();
    while let Some(text) = replay.next_record().unwrap() {
        found.push(serde_json::from_slice(&text).unwrap());
    }
    assert_eq!(
        (found, replay.skipped),
        (vec!["one".into(), "three".into()], 1)
    );
}

#[test]
fn of_two_records_that_kill_neither_is_tried_for_ever() {
    let file = Journal::create().unwrap();
    let (_, mut journal) = read_all(&file);
    for text in ["one", "bad", "two", "bad", "three"] {
        journal.append(&text).unwrap();
    }
    // Until one replay survives, which takes two deaths for each.
    for deaths in 0.. {
        let mut replay = Journal::replay(file.try_clone().unwrap()).unwrap();
        let mut found: Vec<String> = Vec::new();
        while let Some(text) = replay.next_record().unwrap() {
            found.push(serde_json::from_slice(&text).unwrap());
            if found.last().unwrap() == "bad" {
                break;
            }
        }
        if found.last().unwrap() != "bad" {
            assert_eq!((deaths, replay.skipped), (4, 2));
            replay.finish().settle().unwrap();
            break;
        }
    }
    assert_eq!(read_all(&file).0, ["one", "two", "three"]);
}

#[test]
fn a_header_that_holds_anything_does_no_harm() {
    let file = Journal::create().unwrap();
    let (_, mut journal) = read_all(&file);
    journal.append(&"one").unwrap();
    // Attempt, deaths, records skipped, suspect.
    memfd::write_at(&file, &[0xff; 32], ATTEMPT).unwrap();
    assert_eq!(read_all(&file).0, ["one"]);
    set_word(&file, START, memfd::size(&file).unwrap() + 1).unwrap();
    assert!(matches!(
        Journal::replay(file),
        Err(JournalError::NotAJournal)
    ));
}

/// A record, or one that cannot be written.
#[derive(Clone)]
struct Item(Option<String>);

impl Serialize for Item {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Some(text) => serializer.serialize_str(text),
            None => Err(serde::ser::Error::custom("no")),
        }
    }
}

#[test]
fn half_an_image_is_never_replayed() {
    let file = Journal::create().unwrap();
    let (_, mut journal) = read_all(&file);
    // The next page begins right behind this record.
    let text = "x".repeat(4096 - PREFIX - 2);
    journal.append(&text).unwrap();
    let size = memfd::size(&file).unwrap();
    assert_eq!(size, 8192);
    let half = || [Item(Some("y".repeat(300 * 1024))), Item(None)].into_iter();
    // Killed half-way.
    journal.write_image(half(), size + 4096, None).unwrap_err();
    assert!(memfd::size(&file).unwrap() > size + 300 * 1024);
    let (found, mut journal) = read_all(&file);
    assert_eq!(found, [text.as_str()]);
    // Refused half-way.
    journal.compact(half()).unwrap_err();
    assert_eq!(memfd::size(&file).unwrap(), size);
    journal.append(&"z").unwrap();
    assert_eq!(read_all(&file).0, [text.as_str(), "z"]);
}

#[test]
fn a_refused_compaction_waits_until_the_journal_has_grown() {
    let file = Journal::create().unwrap();
    let (_, mut journal) = read_all(&file);
    journal.append(&"x".repeat(300 * 1024)).unwrap();
    assert!(journal.wants_compaction());
    journal.compact([Item(None)].into_iter()).unwrap_err();
    assert!(!journal.wants_compaction());
    journal.append(&"x".repeat(74 * 1024)).unwrap();
    assert!(!journal.wants_compaction());
    journal.append(&"x".repeat(1024)).unwrap();
    assert!(journal.wants_compaction());
}

#[test]
fn at_the_end_of_its_file_a_refused_compaction_was_tried_at_each_append() {
    const LARGEST: u64 = 1 << 20;
    let file = Journal::create().unwrap();
    let (_, mut journal) = read_all(&file);
    journal.largest_file = Some(LARGEST);
    // Little that lives, far behind in the file.
    let begin = LARGEST - LARGEST / COMPACT_END_PART - 4096;
    memfd::set_size(&file, begin).unwrap();
    journal.write_image(["x"].iter(), begin, None).unwrap();
    let (_, mut journal) = read_all(&file);
    journal.largest_file = Some(LARGEST);
    let (mut tries, mut appends) = (0, 0);
    while journal.end + 3000 < LARGEST {
        journal.append(&"x".repeat(1000)).unwrap();
        appends += 1;
        if journal.wants_compaction() {
            journal.compact([Item(None)].into_iter()).unwrap_err();
            tries += 1;
        }
    }
    assert!(
        appends > 100 && (2..=12).contains(&tries),
        "{tries} of {appends}"
    );
    // Once it works again, half of what is left has not been used yet.
    journal.append(&"x".repeat(1600)).unwrap();
    assert!(journal.wants_compaction());
    journal.compact(["y"].iter()).unwrap();
    assert_eq!(read_all(&file).0, ["y"]);
}

#[test]
fn a_journal_came_to_the_largest_file_however_little_it_held() {
    const LARGEST: u64 = 1 << 20;
    let file = Journal::create().unwrap();
    let (_, mut journal) = read_all(&file);
    journal.largest_file = Some(LARGEST);
    let live: Vec<String> = (0..20)
        .map(|n| format!("{n}{}", "x".repeat(15_000)))
        .collect();
    let mut places = std::collections::BTreeSet::new();
    for round in 0..800 {
        journal.append(&live[round % 20]).unwrap();
        if journal.wants_compaction() {
            journal.compact(live.iter()).unwrap();
            places.insert(journal.start);
            // What a successor finds is the image, in front or behind.
            let (found, again) = read_all(&file);
            assert_eq!(found, live);
            assert_eq!((again.start, again.end), (journal.start, journal.end));
        }
        assert!(memfd::size(&file).unwrap() <= LARGEST, "round {round}");
    }
    assert!(places.contains(&FIRST) && places.len() > 1, "{places:?}");
}

#[test]
fn an_image_in_front_of_older_records_ends_before_them() {
    let file = Journal::create().unwrap();
    let (_, mut journal) = read_all(&file);
    // Half an image of before is left in front, and all of the records behind.
    for text in ["a", "b", "c"] {
        journal.append(&text.repeat(100)).unwrap();
    }
    let begin = 3 * 4096;
    memfd::set_size(&file, begin).unwrap();
    journal.write_image(["d"].iter(), begin, None).unwrap();
    let (found, journal) = read_all(&file);
    assert_eq!(found, ["d"]);
    // Killed before the records behind were cut off.
    let end = journal
        .write_image(["e"].iter(), FIRST, Some(begin))
        .unwrap();
    let (found, mut journal) = read_all(&file);
    assert_eq!(found, ["e"]);
    assert_eq!(Some(memfd::size(&file).unwrap()), end);
    journal.append(&"f").unwrap();
    assert_eq!(read_all(&file).0, ["e", "f"]);
    // There is no room in front for this one.
    let large = "g".repeat(5000);
    journal.compact([&large].into_iter()).unwrap();
    assert_eq!(read_all(&file).0, [large.as_str()]);
    assert!(
        journal
            .write_image([&large].into_iter(), FIRST, Some(8192))
            .unwrap()
            .is_none()
    );
    assert_eq!(read_all(&file).0, [large.as_str()]);
}

#[test]
fn a_look_changes_nothing() {
    let file = Journal::create().unwrap();
    let (_, mut journal) = read_all(&file);
    journal.append(&"one").unwrap();
    // A cut record, and an attempt under way.
    memfd::write_at(&file, &[9, 0, 0], journal.end).unwrap();
    set_word(&file, ATTEMPT, 1).unwrap();
    let bytes = || {
        let mut bytes = vec![0; 8192];
        let length = memfd::read_at(&file, &mut bytes, 0).unwrap();
        bytes.truncate(length);
        bytes
    };
    let before = bytes();
    let mut scan = Journal::scan(file.try_clone().unwrap()).unwrap();
    assert_eq!(scan.next_record().unwrap().unwrap(), b"\"one\"");
    assert_eq!(scan.next_record().unwrap(), None);
    assert_eq!(bytes(), before);
}

#[test]
fn anything_else_is_refused() {
    let file = memfd::memfd_create("x").unwrap();
    assert!(matches!(
        Journal::replay(file),
        Err(JournalError::NotAJournal)
    ));
}

proptest! {
    /// Against a plain list: appends and compactions in any order, the
    /// process dying anywhere between.
    #[test]
    fn reads_back_what_a_list_would_hold(steps in proptest::collection::vec((0u8..4, "[a-z]{0,200}"), 0..60)) {
        let file = Journal::create().unwrap();
        let (_, mut journal) = read_all(&file);
        let mut model: Vec<String> = Vec::new();
        for (step, text) in steps {
            match step {
                0 => {
                    model.truncate(model.len() / 2);
                    journal.compact(model.iter()).unwrap();
                }
                1 => journal = read_all(&file).1,
                _ => {
                    journal.append(&text).unwrap();
                    model.push(text);
                }
            }
            prop_assert_eq!(&read_all(&file).0, &model);
        }
    }

    /// Garbage behind the header neither panics nor is taken for records.
    #[test]
    fn garbage_ends_the_replay(garbage in proptest::collection::vec(any::<u8>(), 0..300)) {
        let file = Journal::create().unwrap();
        memfd::write_at(&file, &garbage, FIRST).unwrap();
        let mut replay = Journal::replay(file).unwrap();
        while replay.next_record().unwrap().is_some() {}
        replay.finish().settle().unwrap();
    }
}
