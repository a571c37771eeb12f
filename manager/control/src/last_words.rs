//! How the latest workers of a watcher ended, and what they wrote last.
//!
//! Owns the record of one end, its bounds and its wording. Leaves to others: reading the output
//! (`kernel_link`), when an end is worth a record (`supervisor`).
//! Invariant: a record has at most [`MAX_LINES`] lines of [`MAX_BYTES`] bytes in all, whatever a
//! worker writes.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Ends kept of one watcher.
pub const MAX_ENDS: usize = 3;
/// Lines kept of each.
pub const MAX_LINES: usize = 64;
/// Bytes kept of each.
pub const MAX_BYTES: usize = 16 * 1024;
/// Bytes of the lines that events carry: there are thousands of events in memory.
pub const MAX_EVENT_BYTES: usize = 2 * 1024;
/// Most characters of the last line in a message, which is one line itself.
const MAX_QUOTED_CHARS: usize = 160;

/// How one worker ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct End {
    /// Its number within the watcher.
    pub wid: u32,
    /// The process id it had.
    pub pid: u32,
    /// The kernel's number for it.
    pub serial: u64,
    /// When, in milliseconds since the epoch.
    pub at_ms: u64,
    /// How long it had run, in milliseconds; none: nobody saw the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ran_ms: Option<u64>,
    /// Its exit code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// The signal that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// It left a core dump.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub core: bool,
    /// It was asked to end.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub asked: bool,
    /// The last lines it wrote, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lines: Vec<String>,
}

/// The latest ends of one watcher, oldest first.
pub type Ends = VecDeque<End>;

impl End {
    /// `exited with 1`, `signal 11 (core dumped)`.
    #[must_use]
    pub fn how(&self) -> String {
        match (self.signal, self.code) {
            (Some(signal), _) if self.core => format!("signal {signal} (core dumped)"),
            (Some(signal), _) => format!("signal {signal}"),
            (None, Some(code)) => format!("exited with {code}"),
            (None, None) => "ended, and nobody saw how".to_owned(),
        }
    }

    /// The same with how long it ran: `exited with 1, ran 0.2 s`.
    #[must_use]
    pub fn how_and_ran(&self) -> String {
        match self.ran_ms {
            Some(ms) => format!("{}, ran {}", self.how(), seconds(Duration::from_millis(ms))),
            None => self.how(),
        }
    }

    /// The last line that is not blank, for a message: quoted, short, without control characters.
    #[must_use]
    pub fn last_line(&self) -> Option<String> {
        let mut lines = self.lines.iter().rev();
        let line = lines.find(|line| !line.trim().is_empty())?.trim();
        let mut short: String = line.chars().take(MAX_QUOTED_CHARS).collect();
        if short.len() < line.len() {
            short.push('…');
        }
        Some(format!("{short:?}"))
    }

    /// The last of the lines, as many as events carry.
    #[must_use]
    pub fn tail(&self) -> &[String] {
        let mut bytes = 0;
        let fits = |line: &&String| {
            bytes += line.len() + 1;
            bytes <= MAX_EVENT_BYTES
        };
        let count = self.lines.iter().rev().take_while(fits).count();
        self.lines.get(self.lines.len() - count..).unwrap_or(&[])
    }
}

/// Adds an end, and forgets the oldest where there are too many.
pub fn push(ends: &mut Ends, end: End) {
    ends.retain(|known| known.serial != end.serial);
    ends.push_back(end);
    while ends.len() > MAX_ENDS {
        ends.pop_front();
    }
}

/// A short time, for people: `0.2 s`, `12 s`, `5 min`, `3 h`.
#[must_use]
pub fn seconds(time: Duration) -> String {
    match time.as_secs() {
        0..10 => format!("{:.1} s", time.as_secs_f64()),
        seconds @ 10..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

/// The last whole lines of `bytes`, which begin in the middle of a line if `cut`.
#[must_use]
pub fn lines_of(bytes: &[u8], cut: bool) -> Vec<String> {
    let from = bytes.len().saturating_sub(MAX_BYTES);
    let cut = cut || from > 0;
    let bytes = bytes.get(from..).unwrap_or_default();
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    if bytes.is_empty() {
        return Vec::new();
    }
    let mut lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    if cut && lines.len() > 1 {
        lines.remove(0);
    }
    let more = lines.len().saturating_sub(MAX_LINES);
    // A byte that is no text becomes three: lines are dropped until all fit again.
    let mut room = MAX_BYTES;
    let mut kept: Vec<String> = Vec::new();
    for line in lines.iter().skip(more).rev() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let mut text = String::from_utf8_lossy(line).into_owned();
        if text.len() > room {
            if !kept.is_empty() {
                break;
            }
            let mut from = text.len() - room;
            while !text.is_char_boundary(from) {
                from += 1;
            }
            text.drain(..from);
        }
        room -= text.len();
        kept.push(text);
    }
    kept.reverse();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_whole_lines_are_kept() {
        assert_eq!(lines_of(b"", false), [""; 0]);
        assert_eq!(lines_of(b"a\r\n\nb\n", false), ["a", "", "b"]);
        assert_eq!(lines_of(b"rt\nwhole\nno end", true), ["whole", "no end"]);
        assert_eq!(lines_of(b"one long", true), ["one long"]);
        let many: String = (0..100).map(|n| format!("{n}\n")).collect();
        let lines = lines_of(many.as_bytes(), false);
        assert_eq!((lines.len(), lines[0].as_str()), (MAX_LINES, "36"));
    }

    #[test]
    fn no_output_makes_a_record_large() {
        for byte in [b'x', 0xff, b'\n', 0] {
            for mut bytes in [vec![byte; 3 * MAX_BYTES], vec![byte; MAX_BYTES - 1]] {
                bytes.extend_from_slice("\nend é\n".as_bytes());
                let lines = lines_of(&bytes, false);
                assert_eq!(lines.last().unwrap(), "end é");
                assert!(lines.len() <= MAX_LINES);
                assert!(lines.iter().map(String::len).sum::<usize>() <= MAX_BYTES);
                let end = End {
                    lines,
                    ..End::default()
                };
                assert!(end.tail().iter().map(String::len).sum::<usize>() <= MAX_EVENT_BYTES);
            }
            let lines = lines_of(&vec![byte; 3 * MAX_BYTES], false);
            assert!(lines.iter().map(String::len).sum::<usize>() <= MAX_BYTES);
        }
    }

    #[test]
    fn an_end_is_told_with_its_cause_and_its_last_line() {
        let mut ends = Ends::new();
        for serial in [1, 2, 3, 3, 4] {
            push(
                &mut ends,
                End {
                    serial,
                    signal: Some(11),
                    core: true,
                    ran_ms: Some(240),
                    lines: vec!["\x1b[31mred".to_owned(), " ".to_owned()],
                    ..End::default()
                },
            );
        }
        let serials: Vec<u64> = ends.iter().map(|end| end.serial).collect();
        assert_eq!(serials, [2, 3, 4]);
        let end = ends.back().unwrap();
        assert_eq!(end.how_and_ran(), "signal 11 (core dumped), ran 0.2 s");
        assert_eq!(end.last_line().unwrap(), "\"\\u{1b}[31mred\"");
        assert_eq!(seconds(Duration::from_secs(125)), "2 min");
    }
}
