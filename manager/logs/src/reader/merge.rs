//! Lines of several files in the order in which they were written.
//!
//! Owns that order; reads no file. A line that does not say its time stays behind the one before it
//! in its file, and files that tell no times at all come first, each as it is.

use chrono::{DateTime, Utc};

use crate::reader::stamp::{HEAD_BYTES, Stamps};

/// The text shown of one file.
#[derive(Debug)]
pub struct Shown {
    /// Whole lines; the last may lack its end.
    pub bytes: Vec<u8>,
    /// How its lines say when they were written.
    pub stamps: Stamps,
}

/// Every line with the number of its file. Lines of one file keep their order.
#[must_use]
pub fn merged(files: &[Shown], now: DateTime<Utc>) -> Vec<(usize, &[u8])> {
    let mut lines: Vec<(DateTime<Utc>, usize, &[u8])> = Vec::new();
    for (number, file) in files.iter().enumerate() {
        let own: Vec<&[u8]> = file.bytes.split_inclusive(|byte| *byte == b'\n').collect();
        // Read from the end, since a time without a day is completed from the next line.
        let mut latest = now;
        let mut times: Vec<Option<DateTime<Utc>>> = own
            .iter()
            .rev()
            .map(|line| {
                let head = line.get(..HEAD_BYTES).unwrap_or(line);
                let time = file.stamps.read(head, latest);
                latest = time.unwrap_or(latest);
                time
            })
            .collect();
        times.reverse();
        let mut known = DateTime::<Utc>::MIN_UTC;
        for (line, time) in own.into_iter().zip(times) {
            known = time.unwrap_or(known).max(known);
            lines.push((known, number, line));
        }
    }
    // A stable sort: equal times stand in the order of the files.
    lines.sort_by_key(|(time, ..)| *time);
    lines
        .into_iter()
        .map(|(_, number, line)| (number, line))
        .collect()
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;

    use super::*;
    use crate::form::LineForm;

    fn json(second: u32, text: &str) -> String {
        format!("{{\"time\":\"2026-11-22T10:00:{second:02}+00:00\",\"line\":\"{text}\"}}\n")
    }

    fn shown(text: &str, form: &LineForm) -> Shown {
        Shown {
            bytes: text.as_bytes().to_vec(),
            stamps: Stamps::of(Some(form)),
        }
    }

    #[test]
    fn lines_of_several_files_stand_in_the_order_of_their_times() {
        let stamped = LineForm::Stamped {
            time_format: "%Y-%m-%dT%H:%M:%SZ%z".to_owned(),
        };
        let line =
            |second: u32, text: &str| format!("2026-11-22T10:00:{second:02}Z+0000 [7] | {text}\n");
        let (a, c, e, g) = (json(1, "a"), json(3, "c"), json(5, "e"), json(2, "late"));
        let first = [a.as_str(), &c, &e, &g].concat();
        let (b, d) = (line(2, "b"), line(4, "d"));
        let second = [b.as_str(), "no time\n", &d, "unfinished"].concat();
        let files = [
            shown(&first, &LineForm::Json),
            shown(&second, &stamped),
            shown("plain\n", &LineForm::Plain),
        ];
        let now = Utc.with_ymd_and_hms(2026, 11, 23, 0, 0, 0).unwrap();
        let merged: Vec<(usize, String)> = merged(&files, now)
            .into_iter()
            .map(|(number, line)| (number, String::from_utf8_lossy(line).into_owned()))
            .collect();
        let expected = [
            (2, "plain\n"),
            (0, &a),
            (1, &b),
            (1, "no time\n"),
            (0, &c),
            (1, &d),
            (1, "unfinished"),
            (0, &e),
            // Its file has it behind the one of second 5.
            (0, &g),
        ];
        let expected = expected.map(|(number, line)| (number, line.to_owned()));
        assert_eq!(merged, expected);
    }
}
