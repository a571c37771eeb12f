//! The keys each kind of section knows: type, default, meaning, example.
//!
//! Owns the tables, so that a misspelt key is reported instead of silently kept, a key that is
//! accepted without effect says so, and the reference in manager/docs/ini.md is written from them
//! (`UPDATE_README=1 cargo test -p papa-config --lib known` writes it anew). Values are
//! `resolve`'s.
//! Source: Circus 0.17.2's option tables.

mod circus;
pub mod foreign;
mod socket;
mod stream;
mod watcher;

pub use circus::{CIRCUS, FLAPPING, PLUGIN};
pub use socket::SOCKET;
pub use stream::STREAM;
pub use watcher::WATCHER;

/// One key of a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// As written in a file.
    pub name: &'static str,
    /// What its value is.
    pub accepts: &'static str,
    /// What holds without it.
    pub default: Initial,
    /// What it does.
    pub meaning: &'static str,
    /// A value someone may have.
    pub example: &'static str,
    /// Whether it is obeyed.
    pub effect: Effect,
}

/// What holds when a key is not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initial {
    /// As if this were written.
    Value(&'static str),
    /// Something that cannot be written, in words; empty: nothing.
    Words(&'static str),
}

/// What a key does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It is obeyed.
    Active,
    /// It is kept and shown and has no effect; whoever writes it is told so. The text follows the
    /// key's name.
    Inactive(&'static str),
    /// It has no effect and needs none, so nobody is told.
    Needless,
}

use Effect::{Active, Inactive, Needless};
use Initial::{Value, Words};

const NOT_YET: &str = "is accepted but not yet active";
const ZMQ: &str =
    "is accepted but not active: papactl uses a private unix socket instead of ZeroMQ";
const NEVER_READ: &str = "has no effect, as in Circus";

const YES_NO: &str = "yes or no";
const SECONDS: &str = "seconds";
const NUMBER: &str = "whole number";
const TEXT: &str = "text";
const PATH: &str = "path";

/// A key that is obeyed.
const fn key(
    name: &'static str,
    accepts: &'static str,
    default: Initial,
    meaning: &'static str,
    example: &'static str,
) -> Key {
    Key {
        name,
        accepts,
        default,
        meaning,
        example,
        effect: Active,
    }
}

/// A key that is accepted without effect.
const fn inert(
    name: &'static str,
    accepts: &'static str,
    meaning: &'static str,
    example: &'static str,
    effect: Effect,
) -> Key {
    Key {
        name,
        accepts,
        default: Words(""),
        meaning,
        example,
        effect,
    }
}

/// Kinds of sections, for suggestions.
pub const SECTIONS: [&str; 5] = ["circus", "env", "plugin", "socket", "watcher"];

/// The key called `name`, if the table has it.
#[must_use]
pub fn find<'a>(table: &'a [Key], name: &str) -> Option<&'a Key> {
    table.iter().find(|key| key.name == name)
}

/// Prefixes of a watcher's keys with a free second half.
const WATCHER_PREFIXES: [&str; 5] = [
    "stdout_stream.",
    "stderr_stream.",
    "hooks.",
    "flapping.",
    "rlimit_",
];

/// Whether a watcher's section knows `name`, which may have a free second half.
#[must_use]
pub fn is_watcher_key(name: &str) -> bool {
    find(WATCHER, name).is_some()
        || WATCHER_PREFIXES
            .iter()
            .any(|prefix| name.len() > prefix.len() && name.starts_with(prefix))
}

/// Whether a watcher's key says where its output goes, or how.
#[must_use]
pub fn is_stream_key(name: &str) -> bool {
    let streams = ["stdout_stream.", "stderr_stream."];
    streams.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether any section knows `name`.
#[must_use]
pub fn is_known(name: &str) -> bool {
    is_watcher_key(name)
        || [CIRCUS, SOCKET]
            .iter()
            .any(|table| find(table, name).is_some())
}

/// The key that was probably meant by an unknown one.
#[must_use]
pub fn suggestion(table: &[Key], name: &str) -> Option<&'static str> {
    // A row like `rlimit_NAME` stands for many keys and is nobody's correct spelling.
    nearest(
        table
            .iter()
            .map(|key| key.name)
            .filter(|name| !name.contains(char::is_uppercase)),
        name,
    )
}

/// The one of `names` that was probably meant by `name`.
pub fn nearest<'a>(names: impl IntoIterator<Item = &'a str>, name: &str) -> Option<&'a str> {
    let lower = name.to_lowercase();
    let tolerance = (lower.chars().count() / 3).min(2);
    names
        .into_iter()
        .map(|known| (distance(&lower, known), known))
        .filter(|(distance, _)| *distance <= tolerance)
        .min()
        .map(|(_, known)| known)
}

/// The table as the reference page has it.
#[must_use]
pub fn markdown(table: &[Key]) -> String {
    let mut text =
        String::from("| key | type | default | meaning | example |\n|---|---|---|---|---|\n");
    for key in table {
        let default = match key.default {
            Value("") => "empty".to_owned(),
            Value(value) => format!("`{value}`"),
            Words(words) => words.to_owned(),
        };
        let meaning = match key.effect {
            Active => key.meaning.to_owned(),
            Inactive(what) => format!("{}; **{what}**", key.meaning),
            Needless => format!("{}; needless here", key.meaning),
        };
        let cells = [
            format!("`{}`", key.name),
            key.accepts.to_owned(),
            default,
            meaning,
            format!("`{}`", key.example),
        ];
        for cell in cells {
            text.push_str("| ");
            text.push_str(&cell.replace('|', "\\|"));
            text.push(' ');
        }
        text.push_str("|\n");
    }
    text
}

/// Longest text worth comparing, in characters; no known key is near that.
const MAX_COMPARED: usize = 64;

/// Insertions, deletions, replacements and swaps of neighbours between two texts.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(MAX_COMPARED).collect();
    let b: Vec<char> = b.chars().take(MAX_COMPARED).collect();
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests;
