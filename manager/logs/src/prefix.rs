//! The prefix `TIME [PID] | ` of a log line.
//!
//! Owns the translation of Python's strftime to chrono's, and a cache: lines of one moment share
//! one text.
//! Invariant: a format chrono cannot follow is written as it stands, never an error; a prefix is at
//! most `MAX_PREFIX_BYTES` long.
//! Source: `time_format` of Circus 0.17.2's `FileStream`.

use std::fmt::Write as _;

use chrono::format::{Item, StrftimeItems};

use papa_system::civil;

/// Longest prefix: a line must fit one write together with it.
pub const MAX_PREFIX_BYTES: usize = 1024;

/// Formats prefixes of one stream's lines.
#[derive(Debug)]
pub struct Prefix {
    items: Option<Vec<Item<'static>>>,
    literal: String,
    /// Stamp and process the text was made for.
    made_for: Option<(i64, i32)>,
    text: Vec<u8>,
}

impl Prefix {
    /// A formatter for Circus's `time_format`.
    #[must_use]
    pub fn new(time_format: &str) -> Self {
        Self {
            items: items(time_format),
            literal: time_format.to_owned(),
            made_for: None,
            text: Vec::new(),
        }
    }

    /// The prefix of a line captured at `stamp_us` from process `pid`, in local time.
    pub fn at(&mut self, stamp_us: i64, pid: i32) -> &[u8] {
        if self.made_for != Some((stamp_us, pid)) {
            let mut time = String::new();
            let moment = civil::local(stamp_us);
            let written = self.items.as_ref().is_some_and(|items| {
                write!(time, "{}", moment.format_with_items(items.iter())).is_ok()
            });
            if !written {
                time.clone_from(&self.literal);
            }
            self.text.clear();
            self.text.extend_from_slice(time.as_bytes());
            self.text.truncate(MAX_PREFIX_BYTES - 32);
            self.text
                .extend_from_slice(format!(" [{pid}] | ").as_bytes());
            self.made_for = Some((stamp_us, pid));
        }
        &self.text
    }
}

/// Circus's `time_format` as chrono has it; none where chrono cannot follow.
#[must_use]
pub fn items(time_format: &str) -> Option<Vec<Item<'static>>> {
    let chrono_format = from_python(time_format);
    let items: Vec<Item<'static>> = StrftimeItems::new(&chrono_format)
        .map(Item::to_owned)
        .collect();
    let usable = !items.iter().any(|item| matches!(item, Item::Error));
    usable.then_some(items)
}

/// chrono writes nanoseconds for `%f` where Python writes microseconds. Python's naive times have
/// no zone, so that Circus wrote nothing for `%z` and `%Z`; here both are the distance from UTC:
/// `+0100`, `+01:00`.
fn from_python(format: &str) -> String {
    let mut out = String::with_capacity(format.len());
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('f') => out.push_str("%6f"),
            // The system's name of a zone is not known here; its distance from UTC says more.
            Some('Z') => out.push_str("%:z"),
            Some(other) => {
                out.push('%');
                out.push(other);
            }
            None => out.push_str("%%"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(format: &str) -> String {
        String::from_utf8(Prefix::new(format).at(1_795_315_366_978_956, 42).to_vec()).unwrap()
    }

    #[test]
    fn python_formats_look_as_python_writes_them() {
        assert!(text("%Y-%m-%d %H:%M:%S").ends_with(" [42] | "));
        assert_eq!(text("%f"), "978956 [42] | ");
        assert_eq!(text("%%"), "% [42] | ");
        assert_eq!(text("\"%%\""), "\"%\" [42] | ");
    }

    #[test]
    fn zones_are_not_lost_silently() {
        let moment = civil::local(1_795_315_366_978_956);
        assert_eq!(text("%z"), format!("{} [42] | ", moment.format("%z")));
        assert_eq!(text("%Z"), format!("{} [42] | ", moment.format("%:z")));
        assert!(text("%z").starts_with(['+', '-']));
    }

    #[test]
    fn an_unknown_format_stands_as_it_is() {
        assert_eq!(text("%Q now"), "%Q now [42] | ");
        assert_eq!(text("%"), "% [42] | ");
    }

    #[test]
    fn a_prefix_is_bounded_and_follows_stamp_and_process() {
        let mut prefix = Prefix::new(&"x".repeat(5000));
        assert!(prefix.at(0, 1).len() <= MAX_PREFIX_BYTES);
        assert!(prefix.at(i64::MAX, 7).ends_with(b" [7] | "));
        assert!(prefix.at(i64::MAX, 8).ends_with(b" [8] | "));
    }
}
