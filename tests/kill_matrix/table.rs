//! The table as people read it: `tests/kill_matrix/README.md`, written by `UPDATE_MATRIX=1`.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use crate::cell::Victim;
use crate::places::Place;

const BEGIN: &str = "<!-- The table is written by the test: UPDATE_MATRIX=1. -->\n";
const END: &str = "<!-- End of the table. -->\n";

/// What came of a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Held,
    Failed(Vec<String>),
}

/// The rows as text.
pub(crate) fn render(rows: &[(Place, Vec<Option<Outcome>>)]) -> String {
    let mut text = String::from("| place | what has happened | stands still | because of |");
    for victim in Victim::ALL {
        let _ = write!(text, " {victim} |");
    }
    text.push_str("\n|---|---|---|---|");
    text.push_str(&"---|".repeat(Victim::ALL.len()));
    text.push('\n');
    for (place, cells) in rows {
        let Place {
            name,
            what,
            role,
            drive,
            ..
        } = place;
        let _ = write!(text, "| `{name}` | {what} | {role} | {drive} |");
        for cell in cells {
            text.push_str(match cell {
                Some(Outcome::Held) => " ok |",
                Some(Outcome::Failed(_)) => " FAILED |",
                None => " - |",
            });
        }
        text.push('\n');
    }
    text
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/kill_matrix/README.md")
}

/// The table in the file, and what is before and behind it.
fn parts() -> (String, String, String) {
    let text = fs::read_to_string(path()).expect("the table's file is there");
    let (before, rest) = text
        .split_once(BEGIN)
        .expect("the file has the beginning of a table");
    let (table, after) = rest
        .split_once(END)
        .expect("the file has the end of a table");
    (before.to_owned(), table.to_owned(), after.to_owned())
}

/// Compares the table with the file's, or writes it there.
pub(crate) fn settle(table: &str) {
    let (before, kept, after) = parts();
    if std::env::var_os("UPDATE_MATRIX").is_some() {
        let text = format!("{before}{BEGIN}{table}{END}{after}");
        fs::write(path(), text).expect("the table can be written");
    } else {
        papa_harness::assert_same("the table in tests/kill_matrix/README.md", &kept, table);
    }
}
