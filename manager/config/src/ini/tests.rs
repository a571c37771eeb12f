//! The grammar, rule by rule, and arbitrary bytes.

use super::*;

fn read(text: &str) -> (Document, Findings) {
    let mut document = Document::default();
    let mut findings = Findings::default();
    document.read(Path::new("f.ini"), text.as_bytes(), &mut findings);
    (document, findings)
}

fn value(text: &str) -> String {
    let (document, findings) = read(&format!("[s]\n{text}"));
    assert_eq!(findings.errors, []);
    document.get("s", "k").unwrap().value.clone()
}

fn errors(text: &str) -> Vec<String> {
    read(text)
        .1
        .errors
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn warnings(text: &str) -> Vec<String> {
    read(text)
        .1
        .warnings
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn comments_delimiters_and_quotes() {
    assert_eq!(value("# c\n; c\nrem c = d\nREM\nk = v"), "v");
    assert_eq!(value("k: v=w"), "v=w");
    assert_eq!(value("k = a ;b ;c"), "a");
    assert_eq!(value("k = \"a;b\" ; note"), "\"a;b\" ; note");
    assert_eq!(value("k = a # b"), "a # b");
    assert_eq!(value("k ="), "");
    assert_eq!(value("k = \"\""), "");
    assert_eq!(value("k = \"abc\""), "\"abc\"");
    assert_eq!(value("remark = x\nk = v\r"), "v");
    assert_eq!(value("k\t=\tv"), "v");
}

#[test]
fn continuations_take_any_indented_line() {
    assert_eq!(value("k = a\n\n  b\n# c\n\t; d ; e"), "a\nb\n; d ; e");
    assert_eq!(value("k =\n  a"), "\na");
    assert_eq!(value("  k = a"), "a");
}

#[test]
fn indented_lines_that_look_like_something_else_are_reported() {
    let text = "[watcher:a]\ncmd = x\n  # note\n  numprocesses = 2\n  [watcher:b]\n  --flag = 3";
    assert_eq!(warnings(text).len(), 3);
    assert!(
        warnings(text)[1].starts_with("f.ini:4:3: "),
        "{:?}",
        warnings(text)
    );
}

#[test]
fn the_first_of_two_keys_stays_with_its_own_continuations() {
    let text = "k = a\n  b\nk = c\n  d\nj = e";
    assert_eq!(value(text), "a\nb");
    assert_eq!(
        warnings(&format!("[s]\n{text}")),
        ["f.ini:4:1: \"k\" is ignored: the first one, in line 2, is used"]
    );
}

#[test]
fn sections_merge_and_defaults_show_through() {
    let (document, _) = read("[DEFAULT]\nd = 1\nk = 2\n[s]\nk = a\n[t]\n[s]\nk = b\nl = c");
    assert_eq!(document.sections().len(), 2);
    let get = |key| document.get("s", key).map(|entry| entry.value.as_str());
    assert_eq!(
        [get("k"), get("l"), get("d"), get("x")],
        [Some("a"), Some("c"), Some("1"), None]
    );
    assert_eq!(document.get("t", "k").unwrap().origin.line(), 3);
}

#[test]
fn an_earlier_file_wins_silently() {
    let (mut document, mut findings) = read("[s]\nk = main");
    document.read(
        Path::new("g.ini"),
        b"[s]\nk = other\n  more\nl = new",
        &mut findings,
    );
    assert_eq!(document.get("s", "k").unwrap().value, "main");
    assert_eq!(
        document.get("s", "l").unwrap().origin.to_string(),
        "g.ini:4:1"
    );
    assert_eq!(findings, Findings::default());
}

#[test]
fn headers_may_hold_brackets_and_be_followed_by_comments() {
    let name = |text: &str| read(text).0.sections()[0].name.clone();
    assert_eq!(name("[env:web[12]]"), "env:web[12]");
    assert_eq!(name("[a] ; see [1]"), "a");
    assert_eq!(name("[a]  # b"), "a");
    assert_eq!(warnings("[a] b").len(), 1);
}

#[test]
fn every_mistake_is_reported_with_its_line() {
    assert_eq!(
        errors(
            "early = 1\nmore = 2\n[ok]\nno delimiter\n  continued\n= v\n[open\nk = v\n[]\n[fine]\nk = v"
        ),
        [
            "f.ini:1:1: found \"early = 1\" before any section, expected a section header like [circus]",
            "f.ini:4:1: found \"no delimiter\", expected `key = value`",
            "f.ini:6:1: found \"= v\", expected a key before the delimiter",
            "f.ini:7:1: found \"[open\", expected a section header like [watcher:web]",
            "f.ini:9:1: found \"[]\", expected a section header like [watcher:web]",
        ]
    );
}

#[test]
fn bytes_that_are_no_text_are_errors() {
    let mut findings = Findings::default();
    let mut document = Document::default();
    document.read(
        Path::new("f.ini"),
        b"\xef\xbb\xbf[s]\r\nk = \xff\r\nl = a\0b\r\nm = c",
        &mut findings,
    );
    let lines: Vec<_> = findings
        .errors
        .iter()
        .map(|error| error.origin.line())
        .collect();
    assert_eq!(lines, [2, 3]);
    assert_eq!(document.get("s", "m").unwrap().value, "c");
}

proptest::proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        Document::default().read(Path::new("f"), &bytes, &mut Findings::default());
    }

    #[test]
    fn arbitrary_lines_never_panic(text in "(\\[|\\]|k|=|:|;|#|rem| |\n|\t|DEFAULT|\u{e9}){0,40}") {
        Document::default().read(Path::new("f"), text.as_bytes(), &mut Findings::default());
    }
}
