//! What people see: one line per watcher, as wide as the terminal; in a pipe 80 columns, where
//! nothing is cut.
//!
//! Owns layout and the harmlessness of what is printed: names and messages come from files and
//! programs, so control characters in them are shown, not obeyed.

use std::fmt::Write;

use crate::control::message::{WatcherState, WatcherStatus};

/// Width of the output where there is no terminal, in columns.
pub const COLUMNS: usize = 80;
/// Narrowest and widest terminal that lines are laid out for.
const TERMINALS: std::ops::RangeInclusive<usize> = 40..=500;

/// Width of standard output, in columns.
#[must_use]
pub fn width() -> usize {
    width_of(terminal_size::terminal_size_of(std::io::stdout()))
}

fn width_of(size: Option<(terminal_size::Width, terminal_size::Height)>) -> usize {
    size.map_or(COLUMNS, |(width, _)| {
        usize::from(width.0).clamp(*TERMINALS.start(), *TERMINALS.end())
    })
}

/// One line per watcher: name, state, workers, pids; more lines where pids need them.
#[must_use]
pub fn watchers(watchers: &[WatcherStatus]) -> String {
    let columns = width();
    let names: Vec<_> = watchers
        .iter()
        .map(|watcher| printable(&watcher.name))
        .collect();
    let counts: Vec<_> = watchers
        .iter()
        .map(|watcher| format!("{}/{}", watcher.workers.len(), watcher.numprocesses))
        .collect();
    let name_width = names
        .iter()
        .map(|name| name.chars().count())
        .max()
        .unwrap_or(0);
    let count_width = counts.iter().map(String::len).max().unwrap_or(0);
    let mut text = String::new();
    for ((watcher, name), count) in watchers.iter().zip(&names).zip(&counts) {
        let mut line = format!(
            "{name:name_width$}  {:8}  {count:>count_width$}",
            watcher.state.as_str()
        );
        // A very long name leaves no room beside it.
        let indent = if line.chars().count() + 12 < columns {
            line.chars().count()
        } else {
            4
        };
        let waits = watcher.state == WatcherState::Starting && !watcher.workers.is_empty();
        let message = watcher
            .message
            .as_deref()
            .or(waits.then_some("not ready yet"))
            .map(printable)
            .unwrap_or_default();
        let pids: Vec<_> = watcher
            .workers
            .iter()
            .map(|worker| worker.pid.to_string())
            .collect();
        let words = pids
            .iter()
            .map(String::as_str)
            .chain(message.split_whitespace());
        let mut separator = "  ";
        for (index, word) in words.enumerate() {
            if index == pids.len() {
                separator = "  ";
            }
            if line.chars().count() + separator.len() + word.chars().count() > columns {
                let _ = writeln!(text, "{}", line.trim_end());
                line = " ".repeat(indent);
                separator = "  ";
            }
            line.push_str(separator);
            line.push_str(word);
            separator = " ";
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// `said` after `start`, broken between words at the width of the output, the lines indented to
/// where it began.
#[must_use]
pub fn wrapped(start: &str, said: &str) -> String {
    let columns = width();
    let indent = (start.chars().count() + 2).min(columns / 2);
    let mut text = String::new();
    let mut line = start.to_owned();
    let mut separator = "  ";
    for word in said.split_whitespace() {
        let width = line.chars().count() + separator.len() + word.chars().count();
        if width > columns && line.chars().count() > indent {
            let _ = writeln!(text, "{}", line.trim_end());
            line = " ".repeat(indent.saturating_sub(2));
            separator = "  ";
        }
        line.push_str(separator);
        line.push_str(word);
        separator = " ";
    }
    let _ = writeln!(text, "{}", line.trim_end());
    text
}

/// `line` cut to the width of standard error, for a line that is drawn over.
#[must_use]
pub fn shortened(line: &str) -> String {
    cut(
        line,
        width_of(terminal_size::terminal_size_of(std::io::stderr())),
    )
}

/// `line` cut to the width of the terminal; in a pipe it stays whole.
#[must_use]
pub fn fitted(line: &str) -> String {
    match terminal_size::terminal_size_of(std::io::stdout()) {
        Some(size) => cut(line, width_of(Some(size))),
        None => line.to_owned(),
    }
}

fn cut(line: &str, columns: usize) -> String {
    if line.chars().count() <= columns {
        return line.to_owned();
    }
    let mut short: String = line.chars().take(columns - 1).collect();
    short.push('…');
    short
}

/// `text` with control characters made visible.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        push_printable(&mut out, c);
    }
    out
}

/// One line of a log, newline excluded, made harmless for a terminal. Tabs stay.
#[must_use]
pub fn printable_bytes(line: &[u8]) -> String {
    let mut out = String::with_capacity(line.len());
    for chunk in line.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '\t' {
                out.push(c);
            } else {
                push_printable(&mut out, c);
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

fn push_printable(out: &mut String, c: char) {
    match c {
        // The way terminals show them: ^[ for escape.
        '\0'..='\x1f' => {
            out.push('^');
            out.push(char::from(c as u8 + b'@'));
        }
        '\x7f' => out.push_str("^?"),
        // Includes the second set of control characters, which some terminals obey, and characters
        // that turn the direction of text around.
        c if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        }
        c => out.push(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::message::WorkerStatus;

    fn watcher(name: &str, pids: std::ops::Range<u32>, message: Option<&str>) -> WatcherStatus {
        WatcherStatus {
            name: name.to_owned(),
            state: WatcherState::Active,
            dormant: false,
            numprocesses: 2,
            workers: pids
                .map(|pid| WorkerStatus {
                    wid: 1,
                    pid,
                    serial: 1,
                    started_us: 0,
                    started_ticks: None,
                    stopping: false,
                })
                .collect(),
            message: message.map(str::to_owned),
            failing: false,
            settling: false,
            done: false,
            orphans: Vec::new(),
        }
    }

    #[test]
    fn columns_line_up_and_pids_wrap() {
        let text = watchers(&[
            watcher("web_app", 1000..1002, None),
            watcher("a", 10000..10014, None),
            watcher("dying", 0..0, Some("exited with 1, next try 4 s later")),
        ]);
        assert_eq!(
            text,
            "\
web_app  active     2/2  1000 1001
a        active    14/2  10000 10001 10002 10003 10004 10005 10006 10007 10008
                         10009 10010 10011 10012 10013
dying    active     0/2  exited with 1, next try 4 s later
"
        );
        assert!(text.lines().all(|line| line.len() <= COLUMNS));
    }

    #[test]
    fn control_characters_are_shown() {
        assert_eq!(
            printable("a\x1b[31m\x07\n\u{9b}é\u{202e}"),
            "a^[[31m^G^J\\u{9b}é\\u{202e}"
        );
        assert_eq!(
            printable_bytes(b"a\tb\x1b]0;x\x07 \xff\xc3\xa9\x7f\r"),
            "a\tb^[]0;x^G \\xffé^?^M"
        );
    }

    #[test]
    fn long_lines_are_cut() {
        assert_eq!(cut("short", 80), "short");
        assert_eq!(cut(&"x".repeat(200), 80).chars().count(), 80);
    }
}
