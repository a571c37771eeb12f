//! What people see: one line per watcher, as wide as the terminal; in a pipe 80 columns, where
//! nothing is cut.
//!
//! Owns layout. Names and messages come from files and programs; control characters in them are
//! shown, not obeyed (`papa_system::printable`).

use std::fmt::Write;

use papa_system::printable::printable;

use papa_control::message::{WatcherState, WatcherStatus};

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

#[cfg(test)]
mod tests {
    use super::*;
    use papa_control::message::WorkerStatus;

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
    fn long_lines_are_cut() {
        assert_eq!(cut("short", 80), "short");
        assert_eq!(cut(&"x".repeat(200), 80).chars().count(), 80);
    }
}
