//! Which folder may import which: a test that reads the sources.
//!
//! Rust lets every module of a crate import every other; this keeps the direction.

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
