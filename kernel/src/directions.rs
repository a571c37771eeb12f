//! Which folder may import which, and what a child may do before its exec: tests that read the sources.
//!
//! Rust lets every module of a crate import every other, and every function allocate; this keeps
//! the direction, and the child from it.

use std::fs;
use std::path::{Path, PathBuf};

/// A folder or file below `src`, and the parts of the crate it must not name.
const FORBIDDEN: [(&str, &[&str]); 9] = [
    (
        "sys",
        &[
            "change",
            "cli",
            "client",
            "config",
            "holder",
            "keeper",
            "launcher",
            "logging",
            "owner",
            "processes",
            "readers",
            "run",
            "verbs",
            "world",
        ],
    ),
    (
        "client",
        &[
            "change",
            "keeper",
            "owner",
            "processes",
            "readers",
            "run",
            "verbs",
            "world",
        ],
    ),
    (
        "world",
        &[
            "change",
            "owner",
            "processes",
            "readers",
            "run",
            "verbs",
            "client::connection",
            "client::server",
        ],
    ),
    ("readers", &["change", "owner", "processes", "run", "verbs"]),
    ("processes", &["change", "owner", "run", "verbs"]),
    ("verbs", &["change", "owner", "run"]),
    ("change", &["owner", "run"]),
    ("change/takeover.rs", &["readers", "verbs"]),
    (
        "keeper",
        &[
            "change",
            "client",
            "owner",
            "processes",
            "readers",
            "run",
            "verbs",
            "world",
        ],
    ),
];

fn sources(path: &Path, found: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            sources(&entry.unwrap().path(), found);
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        found.push(path.to_owned());
    }
}

/// Every `crate::…` path that `text` names outside comments.
fn named(text: &str) -> Vec<&str> {
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .flat_map(|line| line.split("crate::").skip(1))
        .collect()
}

#[test]
fn no_folder_imports_a_higher_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (below, forbidden) in FORBIDDEN {
        let mut files = Vec::new();
        sources(&root.join(below), &mut files);
        assert!(!files.is_empty(), "{below} is not there");
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            for path in named(&text) {
                // One import a line, so that no group hides a name.
                assert!(
                    !path.starts_with('{'),
                    "{}: write out `use crate::{{…}}`",
                    file.display()
                );
                for part in forbidden {
                    let rest = path.strip_prefix(part);
                    let names = rest.is_some_and(|rest| {
                        !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_')
                    });
                    assert!(
                        !names,
                        "{} must not import {part}: crate::{path}",
                        file.display()
                    );
                }
            }
        }
    }
}

/// What a child between clone and exec must not do: allocate, lock, unwind, or run what its parent
/// has registered for its end. Its memory may be its parent's.
const FORBIDDEN_BEFORE_EXEC: [&str; 17] = [
    "std::process",
    "process::exit",
    "libc::exit",
    "format!",
    "vec!",
    "println!",
    "panic!",
    "Vec",
    "String",
    "Box",
    "tracing",
    ".unwrap(",
    ".expect(",
    ".to_owned(",
    ".collect(",
    ".clone(",
    ".lock(",
];

/// Files that call `std::process::exit`, and how often: each ends a process that has its memory for
/// itself. A forked child ends by `exit_forked`.
const MAY_EXIT: [(&str, usize); 2] = [
    // The parent, whose daemon serves.
    ("launcher.rs", 1),
    // The kernel at its end, after its exec.
    ("owner/signals.rs", 1),
];

/// The code of a file, without comments and without its tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .fold(String::new(), |text, line| text + line + "\n")
}

#[test]
fn a_child_before_its_exec_makes_system_calls_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let text = code(&root.join("sys/spawn/child.rs"));
    assert!(text.contains("SYS_exit_group"), "it ends itself");
    for word in FORBIDDEN_BEFORE_EXEC {
        assert!(!text.contains(word), "sys/spawn/child.rs: {word}");
    }
}

#[test]
fn a_forked_child_does_not_run_what_its_parent_registered_for_its_end() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut forked = 0;
    for file in files.iter().filter(|file| !file.ends_with("directions.rs")) {
        let name = file.strip_prefix(&root).unwrap().to_str().unwrap();
        let text = code(file);
        let exits = text.matches("process::exit(").count() + text.matches("libc::exit(").count();
        let allowed = MAY_EXIT.iter().find(|(file, _)| *file == name);
        assert_eq!(exits, allowed.map_or(0, |(_, count)| *count), "{name}");
        // Whatever a child does, from its arm of the match to the end of that.
        for child in text
            .split("ForkResult::Child) =>")
            .skip(1)
            .chain(text.split("ForkResult::Child =>").skip(1))
        {
            forked += 1;
            assert!(child.contains("process::exit_forked("), "{name}");
        }
    }
    assert_eq!(forked, 2, "the keeper's kernel and its understudy");
}
