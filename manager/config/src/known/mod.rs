//! The table of keys: one entry for each key of each kind of section.
//!
//! An entry says what a key accepts, its default, its meaning, an example and how a change comes
//! into force, and reads and shows its value. From the tables come the checks for misspelt keys and
//! keys without effect, the defaults and types of `resolve`, the differences of `facets`, the
//! JSON types of `papactl set` and `options`, and the reference in manager/docs/ini.md
//! (`UPDATE_README=1 cargo test -p papa-config --lib known` writes it anew).
//! Source: Circus 0.17.2's option tables.

#[macro_use]
mod key;

mod circus;
mod flapping;
pub mod foreign;
mod socket;
mod stream;
mod watcher;

pub use circus::{CIRCUS, PLUGIN};
pub use flapping::FLAPPING;
pub use key::{Apply, Effect, Form, Initial, Key, OnChange, Read, Show, Written, yes_no};
pub use socket::SOCKET;
pub use stream::STREAM;
pub use watcher::{MAX_WORKERS, WATCHER};

use Effect::{Active, Inactive, Needless};

const NOT_YET: &str = "is accepted but not yet active";
const ZMQ: &str =
    "is accepted but not active: papactl uses a private unix socket instead of ZeroMQ";
const NEVER_READ: &str = "has no effect, as in Circus";

const TEXT: Form = Form::Text("text");
const PATH: Form = Form::Text("path");
const WORDS: Form = Form::Text("words");
const BYTES: Form = Form::Text("bytes");
const MASK: Form = Form::Text("octal mask");

/// Kinds of sections, for suggestions.
pub const SECTIONS: [&str; 5] = ["circus", "env", "plugin", "socket", "watcher"];

/// The key called `name`, if the table has it.
#[must_use]
pub fn find<'a, S>(table: &'a [Key<S>], name: &str) -> Option<&'a Key<S>> {
    table.iter().find(|key| key.name == name)
}

/// Whether a watcher's section knows `name`, which may have a free second half.
#[must_use]
pub fn is_watcher_key(name: &str) -> bool {
    let mut prefixes = WATCHER.iter().filter_map(Key::prefix);
    find(WATCHER, name).is_some()
        || prefixes.any(|prefix| name.len() > prefix.len() && name.starts_with(prefix))
}

/// The form of a watcher's key, options of `flapping.` included; none for a key that nobody here
/// knows and for one with a free second half.
#[must_use]
pub fn form_of_watcher_key(name: &str) -> Option<Form> {
    match name.strip_prefix("flapping.") {
        Some(option) => find(FLAPPING, option).map(|key| key.form),
        None => find(WATCHER, name).map(|key| key.form),
    }
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
    is_watcher_key(name) || find(CIRCUS, name).is_some() || find(SOCKET, name).is_some()
}

/// The key that was probably meant by an unknown one.
#[must_use]
pub fn suggestion<S>(table: &[Key<S>], name: &str) -> Option<&'static str> {
    // An entry like `rlimit_NAME` stands for many keys and is nobody's correct spelling.
    let fixed = table.iter().filter(|key| !key.is_family());
    nearest(fixed.map(|key| key.name), name)
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
pub fn markdown<S>(table: &[Key<S>]) -> String {
    let mut text = String::from(
        "| key | type | default | meaning | example | a change |\n|---|---|---|---|---|---|\n",
    );
    for key in table {
        let default = match key.default {
            Initial::Value("") => "empty".to_owned(),
            Initial::Value(value) => format!("`{value}`"),
            Initial::Words(words) => words.to_owned(),
        };
        let meaning = match key.effect {
            Active => key.meaning.to_owned(),
            Inactive(what) => format!("{}; **{what}**", key.meaning),
            Needless => format!("{}; needless here", key.meaning),
        };
        let cells = [
            format!("`{}`", key.name),
            key.form.accepts(),
            default,
            meaning,
            format!("`{}`", key.example),
            key.change.words().to_owned(),
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
