use super::*;

fn process(serial: u64, name: &str) -> Entry {
    Entry::Intent(Box::new(ProcessRow {
        serial,
        make: ProcessMake::new(Name::new(name).unwrap(), vec!["/bin/true".into()]),
        uid: None,
        gid: None,
        started_us: 1,
        pid: 0,
        exit: None,
        exit_known: false,
        removing: false,
    }))
}

fn exit() -> Exit {
    Exit {
        code: Some(0),
        signal: None,
        core: false,
        stamp_us: 5,
        rusage: None,
    }
}

#[test]
fn the_image_makes_the_same_table() {
    let mut table = Table::default();
    let name = |text: &str| Name::new(text).unwrap();
    for entry in [
        Entry::Boot {
            incarnation: 3,
            first_started_us: 9,
        },
        Entry::Value {
            name: name("v"),
            value: "x".into(),
        },
        process(7, "a"),
        process(8, "b"),
        Entry::Started { serial: 7, pid: 44 },
        Entry::Exit {
            serial: 8,
            exit: exit(),
        },
        process(9, "gone"),
        Entry::Forget {
            serial: 9,
            ledger: Ledger {
                captured: 4,
                ..Ledger::default()
            },
        },
        Entry::Claim {
            namespace: name("circus"),
            holder: "me".into(),
            epoch: 4,
        },
        Entry::Release {
            namespace: name("circus"),
        },
    ] {
        table.apply(entry);
    }
    let text = |table: &Table| {
        table
            .image()
            .map(|entry| serde_json::to_string(&entry).unwrap())
            .collect::<Vec<_>>()
    };
    let mut again = Table::default();
    for line in text(&table) {
        again.apply(serde_json::from_str(&line).unwrap());
    }
    assert_eq!(text(&again), text(&table));
    assert_eq!(again.next_serial, 10);
    assert_eq!(again.forgotten.captured, 4);
}

#[test]
fn a_removed_process_is_listed_until_it_ends_and_then_frees_its_name() {
    let mut table = Table::default();
    table.apply(process(1, "a"));
    table.apply(Entry::Removing { serial: 1 });
    assert!(table.process_named("a").is_some());
    table.apply(Entry::Exit {
        serial: 1,
        exit: exit(),
    });
    assert!(table.process_named("a").is_none());
    table.apply(process(2, "a"));
    table.apply(Entry::Forget {
        serial: 1,
        ledger: Ledger::default(),
    });
    assert_eq!(table.process_named("a").unwrap().serial, 2);
}

#[test]
fn a_matcher_says_what_the_patterns_say() {
    let patterns = ["a.*", "b", "ä*"].map(NamePattern::new);
    let matcher = Matcher::new(&patterns);
    for name in ["a.", "a.x", "a", "b", "bb", "äö", "x"] {
        let expected = patterns.iter().any(|pattern| pattern.matches(name));
        assert_eq!(matcher.matches(name), expected, "{name}");
    }
    assert!(Matcher::new(&[]).matches("anything"));
}

#[test]
fn the_largest_numbers_do_no_harm() {
    let mut table = Table::default();
    table.apply(process(u64::MAX, "a"));
    table.apply(Entry::Hold {
        id: u64::MAX,
        name: Name::new("h").unwrap(),
        kind: "file".into(),
    });
    let ledger = Ledger {
        captured: u64::MAX,
        ..Ledger::default()
    };
    for serial in [1, 2] {
        table.apply(process(serial, "b"));
        table.apply(Entry::Forget { serial, ledger });
    }
    assert_eq!((table.next_serial, table.next_id), (u64::MAX, u64::MAX));
    assert_eq!(table.forgotten.captured, u64::MAX);
}

#[test]
fn exact_names_win_over_numbers() {
    let mut table = Table::default();
    table.apply(process(1, "44"));
    table.apply(process(2, "b"));
    table.apply(Entry::Started { serial: 2, pid: 44 });
    table.apply(Entry::Started { serial: 1, pid: 45 });
    let find = |word: &str| table.find_processes(&[NamePattern::new(word)]).ok();
    assert_eq!(find("44"), Some(vec![1]));
    assert_eq!(find("45"), Some(vec![1]));
    assert_eq!(find("*"), Some(vec![1, 2]));
    assert_eq!(find("nope"), None);
}

#[test]
fn records_of_later_versions_load() {
    let later = Entry::read(br#"{"t":"quantum","v":{"x":1}}"#);
    assert!(matches!(later, Read::Unknown(_)));
    let more = Entry::read(br#"{"t":"started","v":{"serial":1,"pid":2,"colour":"red"}}"#);
    assert!(matches!(more, Read::Entry(Entry::Started { .. })));
    let bad = Entry::read(br#"{"t":"started","v":{"serial":"x"}}"#);
    assert!(matches!(bad, Read::Bad(_)));
}

#[test]
fn a_process_with_everything_reads_back() {
    let line = r#"{"id":1,"op":"process.make","name":"a.b","argv":["x",[255,1]],"env":{"A":[1]},"tag":{"x":[1,{"y":null}]},"rlimits":{"nofile":[1,"infinity"]},"descriptors":{"5":"h"},"stdin":{"socket":"s"},"uid":0,"umask":"022","sockets":"all","listen_fds":["s"]}"#;
    let request = papa_protocol::json::Request::parse(line.as_bytes())
        .unwrap()
        .unwrap();
    let papa_protocol::json::Op::ProcessMake(make) = request.op else {
        panic!("another op");
    };
    let Entry::Intent(mut row) = process(3, "a.b") else {
        panic!("another entry");
    };
    row.make = *make;
    row.exit = Some(exit());
    let text = serde_json::to_vec(&Entry::Intent(row.clone())).unwrap();
    let Read::Entry(Entry::Intent(again)) = Entry::read(&text) else {
        panic!("{}", String::from_utf8_lossy(&text));
    };
    assert_eq!(again.make, row.make);
}
