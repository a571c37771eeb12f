//! The writer as a whole: output in, files and positions out.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use papa_config::{SyslogAddress, SyslogConfig};
use regex_lite::Regex;

use papa_protocol::record::{Record, Stream};

use crate::file::Limits;
use crate::format::Style;
use crate::layout::Kind;
use crate::lines::MAX_LINE_BYTES;
use crate::route::{Route, Routes};
use crate::schedule::Now;
use crate::sink::Address;
use crate::store::Store;
use crate::writer::{LogWriter, Process};

fn writer() -> LogWriter {
    LogWriter::open(Store::create().unwrap(), Vec::new(), Now::read())
}

/// What a new manager finds.
fn successor(writer: &LogWriter) -> LogWriter {
    let copy = writer.store().descriptor().as_fd().try_clone_to_owned();
    let (store, unfinished) = Store::open(copy.unwrap()).unwrap();
    LogWriter::open(store, unfinished, Now::read())
}

fn process(acknowledged: u64, dropped: u64) -> Process {
    Process {
        serial: 7,
        name: "circus.w.1".to_owned(),
        watcher: "w".to_owned(),
        wid: 1,
        pid: 42,
        reel_bytes: 1 << 20,
        acknowledged,
        dropped,
    }
}

fn to(directory: &Path, name: &str) -> Option<Route> {
    Some(Route {
        to: Address::File(directory.join(name)),
        limits: Limits::default(),
        style: Style::Raw,
    })
}

fn out(directory: &Path, name: &str) -> Routes {
    Routes {
        out: to(directory, name),
        ..Routes::default()
    }
}

fn write(writer: &mut LogWriter, start: u64, kind: Kind, text: &str) -> Vec<(u64, u64)> {
    let record = Record {
        end: start + text.len() as u64,
        stream: match kind {
            Kind::Err => Stream::Err,
            _ => Stream::Out,
        },
        stamp_us: 1_795_315_366_978_956,
    };
    writer.output(7, start, [record], text.as_bytes(), Now::read());
    writer.flush(Now::read())
}

#[test]
fn a_line_whose_end_waited_behind_a_pipe_of_the_other_stream_was_torn() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let mut writer = writer();
    let both = Routes {
        out: to(directory, "out"),
        err: to(directory, "err"),
        ..Routes::default()
    };
    writer.add(&process(0, 0), &both);
    assert_eq!(write(&mut writer, 0, Kind::Err, "half"), []);
    // The kernel takes a whole pipe of standard output first, and only then the rest of the line.
    let line = format!("{}\n", "o".repeat(1023));
    let pipe = line.repeat(256);
    assert_eq!(write(&mut writer, 4, Kind::Out, &pipe), []);
    let early = fs::read(directory.join("err")).unwrap_or_default();
    assert_eq!(early, b"", "nothing of the line before its end");
    write(&mut writer, 4 + (256 << 10), Kind::Err, " done\n");
    assert_eq!(
        fs::read(directory.join("err")).unwrap(),
        b"half done\n",
        "in one piece"
    );
}

#[test]
fn an_unfinished_line_does_not_hold_the_other_stream_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let mut writer = writer();
    let both = Routes {
        out: to(directory, "out"),
        err: to(directory, "err"),
        ..Routes::default()
    };
    writer.add(&process(0, 0), &both);
    assert_eq!(write(&mut writer, 0, Kind::Out, "listening"), []);
    let line = format!("{}\n", "e".repeat(999));
    let mut position = 9;
    // Up to half of the reel it may still be finished.
    while position + 1000 <= (1 << 19) {
        assert_eq!(write(&mut writer, position, Kind::Err, &line), []);
        position += 1000;
    }
    let acknowledged = write(&mut writer, position, Kind::Err, &line);
    assert_eq!(acknowledged, [(7, position + 1000)]);
    assert_eq!(fs::read(directory.join("out")).unwrap(), b"listening");
    position += 1000;
    assert_eq!(
        write(&mut writer, position, Kind::Out, " on 80\n"),
        [(7, position + 7)]
    );
    assert_eq!(
        fs::read(directory.join("out")).unwrap(),
        b"listening on 80\n"
    );
}

#[test]
fn what_a_slow_syslog_daemon_has_not_taken_goes_by_the_next_route() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    // One that reads nothing: after some messages there is no room.
    let daemon = UnixDatagram::bind(directory.join("daemon")).unwrap();
    daemon.set_nonblocking(true).unwrap();
    let syslog = SyslogConfig {
        address: SyslogAddress::Unix(directory.join("daemon")),
        facility: 1,
        rfc5424: false,
    };
    let mut writer = writer();
    let slow = Routes {
        out: Some(Route {
            to: Address::Syslog(syslog),
            limits: Limits::default(),
            style: Style::Syslog {
                facility: 1,
                rfc5424: false,
                remote: false,
            },
        }),
        ..Routes::default()
    };
    writer.add(&process(0, 0), &slow);
    let lines: String = (0..2000).map(|number| format!("line {number}\n")).collect();
    let acknowledged = write(&mut writer, 0, Kind::Out, &lines);
    let taken = acknowledged.first().map_or(0, |(_, position)| *position);
    assert!(taken < lines.len() as u64, "the daemon has taken all");
    writer.begin_update();
    assert!(!writer.reroute(7, &slow, Now::read()), "it stays there");
    assert!(writer.reroute(7, &out(directory, "file"), Now::read()));
    writer.end_update();
    // What it was asked for again.
    let rest = &lines[usize::try_from(taken).unwrap()..];
    let now = write(&mut writer, taken, Kind::Out, rest);
    assert_eq!(now, [(7, lines.len() as u64)]);
    assert_eq!(fs::read_to_string(directory.join("file")).unwrap(), rest);
    let mut buffer = [0; 200];
    let mut sent = 0;
    while daemon.recv(&mut buffer).is_ok() {
        sent += 1;
        writer.retry(Now::read());
    }
    assert_eq!(sent, lines.lines().count() - rest.lines().count());
}

#[test]
fn another_route_takes_over_at_a_line() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let mut writer = writer();
    writer.add(&process(0, 0), &out(directory, "old"));
    assert_eq!(write(&mut writer, 0, Kind::Out, "one\ntw"), [(7, 4)]);
    writer.begin_update();
    assert!(!writer.reroute(7, &out(directory, "new"), Now::read()));
    writer.end_update();
    assert_eq!(write(&mut writer, 6, Kind::Out, "o\nthree\n"), [(7, 14)]);
    assert_eq!(fs::read(directory.join("old")).unwrap(), b"one\n");
    assert_eq!(fs::read(directory.join("new")).unwrap(), b"two\nthree\n");
}

#[test]
fn what_a_flush_has_not_come_to_is_not_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let mut writer = writer();
    // The last has no file, which is noticed before it is flushed.
    for (serial, name) in [(7, "first"), (8, "second"), (9, "absent/third")] {
        let process = Process {
            serial,
            ..process(0, 0)
        };
        writer.add(&process, &out(directory, name));
        let record = Record {
            end: 4,
            stream: Stream::Out,
            stamp_us: 0,
        };
        writer.output(serial, 0, [record], b"one\n", Now::read());
    }
    // No patience at all: one file in each turn.
    let (positions, rest) = writer.flush_some(0, Duration::ZERO, Now::read());
    assert_eq!(positions, [(7, 4)]);
    assert_eq!(fs::read(directory.join("first")).unwrap(), b"one\n");
    assert_eq!(fs::read(directory.join("second")).unwrap(), b"");
    let (positions, rest) = writer.flush_some(rest.unwrap(), Duration::ZERO, Now::read());
    assert_eq!(positions, [(8, 4)]);
    let (positions, _) = writer.flush_some(rest.unwrap(), Duration::ZERO, Now::read());
    assert_eq!(positions, []);
    assert_eq!(fs::read(directory.join("second")).unwrap(), b"one\n");
}

#[test]
fn a_route_is_left_for_another_while_its_file_cannot_be_opened() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let mut writer = writer();
    writer.add(&process(0, 0), &out(directory, "absent/old"));
    assert_eq!(write(&mut writer, 0, Kind::Out, "one\n"), []);
    writer.begin_update();
    assert!(writer.reroute(7, &out(directory, "new"), Now::read()));
    writer.end_update();
    // What is not acknowledged comes again.
    assert_eq!(write(&mut writer, 0, Kind::Out, "one\ntwo\n"), [(7, 8)]);
    assert_eq!(fs::read(directory.join("new")).unwrap(), b"one\ntwo\n");
}

#[test]
fn a_line_that_readiness_waits_for_is_told_once_and_to_a_successor_again() {
    let ready = Routes {
        ready: Some(Regex::new("^serving on [0-9]+$").unwrap()),
        ..Routes::default()
    };
    let mut writer = writer();
    writer.add(&process(0, 0), &ready);
    write(&mut writer, 0, Kind::Out, "not serving on 1\nserving ");
    assert!(writer.take_matched().is_empty());
    // Half a line is still wanted; then nobody wants anything.
    assert_eq!(write(&mut writer, 25, Kind::Err, "e\n"), []);
    assert_eq!(write(&mut writer, 27, Kind::Out, "on 8080\n"), [(7, 35)]);
    assert_eq!(writer.take_matched(), [7]);
    write(&mut writer, 35, Kind::Out, "serving on 1\n");
    assert!(writer.take_matched().is_empty());
    let mut next = successor(&writer);
    next.add(&process(35, 0), &ready);
    assert_eq!(next.take_matched(), [7]);
}

#[test]
fn what_was_dropped_on_its_way_here_is_no_gap() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let routes = out(directory, "out");
    let mut writer = writer();
    writer.add(&process(0, 0), &routes);
    write(&mut writer, 0, Kind::Out, "a\nbegun");
    assert!(writer.take_unsettled().is_empty());
    // Acknowledged was up to 2: the kernel dropped the rest of what it had sent, and 93 bytes it
    // had not.
    write(&mut writer, 100, Kind::Out, "b\n");
    assert_eq!(writer.take_unsettled(), [7]);
    assert!(writer.take_unsettled().is_empty());
    // By now it has dropped five bytes more, which will be a gap of their own.
    writer.settle_gap(7, 4, 103);
    let mut next = successor(&writer);
    next.add(&process(4, 103), &routes);
    write(&mut next, 107, Kind::Out, "c\n");
    let mut last = successor(&next);
    last.add(&process(6, 103), &routes);
    write(&mut last, 109, Kind::Out, "d\n");
    let text = fs::read_to_string(directory.join("out")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 7, "{text}");
    assert_eq!(lines[..2], ["a", "begun"]);
    assert!(lines[2].starts_with("papa: 93 bytes of "), "{text}");
    assert_eq!(lines[3], "b");
    assert!(lines[4].starts_with("papa: 5 bytes of "), "{text}");
    assert_eq!(lines[5..], ["c", "d"]);
}

#[test]
fn what_a_killed_manager_had_written_is_no_gap_of_its_successors() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let routes = out(directory, "out");
    let mut writer = writer();
    writer.add(&process(0, 0), &routes);
    write(&mut writer, 0, Kind::Out, "a\nb\n");
    // It was killed before it could acknowledge, and the kernel had dropped that and 96 bytes more.
    let mut next = successor(&writer);
    next.add(&process(0, 100), &routes);
    write(&mut next, 100, Kind::Out, "c\n");
    let mut last = successor(&next);
    last.add(&process(2, 100), &routes);
    write(&mut last, 102, Kind::Out, "d\n");
    let text = fs::read_to_string(directory.join("out")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 5, "{text}");
    assert_eq!(lines[..2], ["a", "b"]);
    assert!(lines[2].starts_with("papa: 96 bytes of "), "{text}");
    assert_eq!(lines[3..], ["c", "d"]);
}

#[test]
fn a_gap_is_reported_once_by_whoever_comes_first() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    // Only standard error is logged: its position says nothing of what was dropped.
    let routes = Routes {
        err: to(directory, "err"),
        ..Routes::default()
    };
    let mut writer = writer();
    writer.add(&process(0, 0), &routes);
    write(&mut writer, 100, Kind::Err, "a\n");
    write(&mut writer, 102, Kind::Out, "unseen\n");
    let mut next = successor(&writer);
    next.add(&process(9, 100), &routes);
    write(&mut next, 109, Kind::Err, "b\n");
    let mut last = successor(&next);
    last.add(&process(11, 105), &routes);
    write(&mut last, 116, Kind::Err, "c\n");
    let text = fs::read_to_string(directory.join("err")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let gap = |bytes: u64| {
        format!("papa: {bytes} bytes of output of circus.w.1 were dropped here, before 2026-")
    };
    assert_eq!(lines.len(), 5, "{text}");
    assert!(lines[0].starts_with(&gap(100)), "{text}");
    assert_eq!(lines[1..3], ["a", "b"]);
    assert!(lines[3].starts_with(&gap(5)), "{text}");
    assert_eq!(lines[4], "c");
}

fn styled(directory: &Path, name: &str, style: Style) -> Option<Route> {
    to(directory, name).map(|route| Route { style, ..route })
}

fn stamped(directory: &Path, name: &str) -> Option<Route> {
    styled(directory, name, Style::Stamped("T".to_owned()))
}

fn read(directory: &Path, name: &str) -> String {
    fs::read_to_string(directory.join(name)).unwrap()
}

/// What is written at once: less than a reel's share, more than a line's limit when there are two.
const CHUNK: usize = 60_000;

#[test]
fn a_long_line_had_a_stamp_in_every_part_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let routes = Routes {
        out: stamped(directory, "log"),
        ..Routes::default()
    };
    let mut first = writer();
    first.add(&process(0, 0), &routes);
    let mut expected = "T [42] | ".to_owned();
    let mut position = 0;
    let mut done = 0;
    for letter in ["a", "b", "c", "d", "e", "f"] {
        let text = letter.repeat(CHUNK);
        if let Some((_, acknowledged)) = write(&mut first, position, Kind::Out, &text).last() {
            done = *acknowledged;
        }
        position += CHUNK as u64;
        expected += &text;
    }
    assert!(done > 0);
    // The manager is killed within the line. Its successor gets what is not acknowledged once more,
    // and the rest.
    let mut second = successor(&first);
    second.add(&process(done, 0), &routes);
    let start = usize::try_from(done).unwrap();
    let rest = format!("{}the end\nnext\n", &expected["T [42] | ".len()..][start..]);
    write(&mut second, done, Kind::Out, &rest);
    expected += "the end\nT [42] | next\n";
    assert!(
        read(directory, "log") == expected,
        "{} stamps",
        read(directory, "log").matches("T [").count()
    );
}

#[test]
fn a_line_of_another_stream_stood_within_a_long_line() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let routes = Routes {
        out: stamped(directory, "log"),
        err: stamped(directory, "log"),
        ..Routes::default()
    };
    let mut first = writer();
    first.add(&process(0, 0), &routes);
    let long = "x".repeat(MAX_LINE_BYTES);
    let mut at = 0;
    let mut say = |writer: &mut LogWriter, kind, text: &str| {
        write(writer, at, kind, text);
        at += text.len() as u64;
    };
    say(&mut first, Kind::Out, &long);
    say(&mut first, Kind::Out, "y");
    say(&mut first, Kind::Err, "error\n");
    say(&mut first, Kind::Out, "z\n");
    let before = format!("T [42] | {long}\nT [42] | error\n");
    let short = |text: &str| text.replace(&long, "LONG");
    let expected = format!("{before}T [42] | yz\n");
    assert_eq!(short(&read(directory, "log")), short(&expected));
    // The same where the manager is killed between the two: the line was ended, and its successor
    // knows.
    fs::remove_file(directory.join("log")).unwrap();
    let mut first = writer();
    first.add(&process(0, 0), &routes);
    let mut at = 0;
    for (kind, text) in [
        (Kind::Out, long.as_str()),
        (Kind::Out, "y"),
        (Kind::Err, "error\n"),
    ] {
        write(&mut first, at, kind, text);
        at += text.len() as u64;
    }
    let mut second = successor(&first);
    let kept = MAX_LINE_BYTES as u64;
    second.add(&process(kept, 0), &routes);
    write(&mut second, kept, Kind::Out, "y");
    write(&mut second, kept + 1, Kind::Err, "error\n");
    write(&mut second, kept + 7, Kind::Out, "z\n");
    let short = |text: &str| text.replace(&long, "LONG");
    let expected = format!("{before}T [42] | yz\n");
    assert_eq!(short(&read(directory, "log")), short(&expected));
}

#[test]
fn parts_of_a_long_json_line_could_not_be_joined() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let style = Style::Json {
        max_line_bytes: 40_000,
    };
    let routes = Routes {
        out: styled(directory, "log", style),
        ..Routes::default()
    };
    // Characters of three bytes, and those that take six as text.
    let line = format!("{}{}", "\u{20ac}".repeat(40_000), "\u{1}".repeat(70_000));
    let text = format!("short\n{line}\nlast\n");
    for mut cut in [None, Some(50_000), Some(100_000), Some(199_000)] {
        let killed = format!("killed at {cut:?}");
        let _ = fs::remove_file(directory.join("log"));
        let mut writer = writer();
        writer.add(&process(0, 0), &routes);
        let mut at = 0;
        let mut done = 0;
        while at < text.len() {
            let near = (at + 30_000).min(text.len());
            let end = (at..=near)
                .rev()
                .find(|end| text.is_char_boundary(*end))
                .unwrap();
            if let Some((_, position)) =
                write(&mut writer, at as u64, Kind::Out, &text[at..end]).last()
            {
                done = usize::try_from(*position).unwrap();
            }
            at = end;
            if cut.take_if(|cut| end > *cut).is_some() {
                writer = successor(&writer);
                writer.add(&process(done as u64, 0), &routes);
                at = done;
            }
        }
        let mut joined = vec![String::new()];
        let mut part = 0;
        for object in read(directory, "log").lines() {
            let object: serde_json::Value = serde_json::from_str(object).unwrap();
            *joined.last_mut().unwrap() += object["line"].as_str().unwrap();
            assert!(object.get("line_base64").is_none(), "no character is cut");
            if let Some(number) = object.get("part") {
                part += 1;
                assert_eq!(number, part, "killed at {cut:?}");
            } else {
                assert_eq!(part, 0);
            }
            if object.get("more") != Some(&true.into()) {
                joined.push(String::new());
                part = 0;
            }
        }
        assert!(joined == ["short", &line, "last", ""], "{killed}");
    }
}

#[test]
fn a_long_line_that_its_process_does_not_end_gets_an_end() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let routes = Routes {
        out: stamped(directory, "log"),
        err: styled(
            directory,
            "json",
            Style::Json {
                max_line_bytes: 1024,
            },
        ),
        ..Routes::default()
    };
    let mut first = writer();
    first.add(&process(0, 0), &routes);
    let long = "x".repeat(MAX_LINE_BYTES + 1);
    write(&mut first, 0, Kind::Out, &long);
    write(&mut first, long.len() as u64, Kind::Err, &"y".repeat(1025));
    // The rest of both was dropped while no manager ran.
    let mut second = successor(&first);
    let all = (long.len() + 1025) as u64;
    second.add(&process(all - 1026, 1026), &routes);
    write(&mut second, all, Kind::Out, "more\n");
    second.end(7, Kind::Out, Now::read());
    second.end(7, Kind::Err, Now::read());
    second.flush(Now::read());
    let text = read(directory, "log");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{:?}", &text[MAX_LINE_BYTES..]);
    assert!(lines[1].contains("were dropped here") && lines[2] == "T [42] | more");
    let text = read(directory, "json");
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!((&last["part"], &last["more"]), (&2.into(), &false.into()));
}
