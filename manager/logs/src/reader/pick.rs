//! Which part of one log file is meant: its last lines, those since a moment, or the last of those.
//!
//! Owns the search: backwards through a plain file, twice forwards through a compressed one. Keeps
//! no text: what was found is a list of places, read when it is printed.
//! Invariant: memory is bounded whatever the file holds.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::os::unix::fs::FileExt;

use chrono::{DateTime, Utc};
use flate2::read::MultiGzDecoder;

use crate::reader::stamp::{HEAD_BYTES, Stamps};

/// How much is read at a time.
pub(super) const CHUNK_BYTES: usize = 64 * 1024;
/// Several workers' lines are not strictly in the order of time: a file is searched until so much
/// of it is too old.
const OLD_ENOUGH_BYTES: u64 = 4 * 1024 * 1024;
/// Places remembered for one file; beyond that a few lines that are too old are shown as well.
const MAX_RANGES: usize = 65_536;
/// Longest piece of a line looked at when unpacking.
const MAX_PIECE_BYTES: u64 = 64 * 1024;

/// Which lines are asked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// How many of the last lines; none means all.
    pub lines: Option<usize>,
    /// Oldest moment.
    pub since: Option<DateTime<Utc>>,
}

/// What was found in one file.
#[derive(Debug)]
pub(super) struct Picked {
    pub(super) places: Places,
    /// Number of lines.
    pub(super) lines: usize,
    /// Whether older files need not be looked at.
    pub(super) complete: bool,
    /// Whether `since` was given and no line has a time.
    pub(super) unstamped: bool,
}

/// Where the lines are.
#[derive(Debug)]
pub(super) enum Places {
    /// From here to there, the last first.
    Ranges(Vec<(u64, u64)>),
    /// In the unpacked text, behind so many lines that match.
    Behind { lines: usize, since: Oldest },
}

/// The oldest moment, and how lines show theirs.
#[derive(Debug, Clone)]
pub(super) struct Oldest {
    moment: Option<DateTime<Utc>>,
    stamps: Stamps,
}

/// Looks through the first `size` bytes of a plain file.
pub(super) fn plain(
    file: &File,
    size: u64,
    modified: DateTime<Utc>,
    stamps: &Stamps,
    wanted: Wanted,
) -> io::Result<Picked> {
    let mut search = Search::new(stamps, wanted, modified);
    search.run(file, size)?;
    if wanted.since.is_some() && !search.stamped {
        // No line has a time, so the last write of the file decides.
        let mut search = Search::new(
            &Stamps::None,
            Wanted {
                since: None,
                ..wanted
            },
            modified,
        );
        search.run(file, size)?;
        return Ok(Picked {
            unstamped: size > 0,
            ..search.found()
        });
    }
    Ok(search.found())
}

/// Looks through a compressed file.
pub(super) fn compressed(file: &File, stamps: &Stamps, wanted: Wanted) -> io::Result<Picked> {
    let told = stamps.are_complete();
    let since = Oldest {
        moment: wanted.since.filter(|_| told).map(|at| stamps.floor(at)),
        stamps: stamps.clone(),
    };
    let mut count = 0_usize;
    each_matching(file, &since, |_, first| {
        count += usize::from(first);
        Ok(())
    })?;
    let lines = wanted.lines.unwrap_or(count).min(count);
    Ok(Picked {
        places: Places::Behind {
            lines: count - lines,
            since,
        },
        lines,
        complete: false,
        unstamped: wanted.since.is_some() && !told && count > 0,
    })
}

/// Hands out what was found, in order.
pub(super) fn print(
    file: &File,
    places: &Places,
    take: &mut impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    match places {
        Places::Ranges(ranges) => {
            let mut chunk = vec![0; CHUNK_BYTES];
            for (start, end) in ranges.iter().rev() {
                let mut at = *start;
                while at < *end {
                    let room = usize::try_from(end - at).unwrap_or(usize::MAX);
                    let part = chunk.len().min(room);
                    let count = file.read_at(chunk.get_mut(..part).unwrap_or_default(), at)?;
                    if count == 0 {
                        // The file was truncated meanwhile.
                        return Ok(());
                    }
                    take(chunk.get(..count).unwrap_or_default())?;
                    at += count as u64;
                }
            }
            Ok(())
        }
        Places::Behind { lines, since } => {
            let mut seen = 0_usize;
            each_matching(file, since, |piece, first| {
                seen += usize::from(first);
                if seen > *lines { take(piece) } else { Ok(()) }
            })
        }
    }
}

/// The pieces of the unpacked lines that are meant, and whether each is the first of its line.
fn each_matching(
    mut file: &File,
    since: &Oldest,
    mut take: impl FnMut(&[u8], bool) -> io::Result<()>,
) -> io::Result<()> {
    file.rewind()?;
    let mut text = BufReader::with_capacity(CHUNK_BYTES, MultiGzDecoder::new(file));
    let mut piece = Vec::new();
    let mut first = true;
    // Lines without a time belong to the one before them.
    let mut meant = true;
    loop {
        piece.clear();
        if text
            .by_ref()
            .take(MAX_PIECE_BYTES)
            .read_until(b'\n', &mut piece)?
            == 0
        {
            return Ok(());
        }
        if first && let Some(since_moment) = since.moment {
            let head = piece.get(..HEAD_BYTES).unwrap_or(&piece);
            // A complete stamp needs no later moment.
            if let Some(moment) = since.stamps.read(head, DateTime::UNIX_EPOCH) {
                meant = moment >= since_moment;
            }
        }
        if meant {
            take(&piece, first)?;
        }
        first = piece.ends_with(b"\n");
    }
}

/// A search from the end of a plain file.
#[derive(Debug)]
struct Search<'a> {
    stamps: &'a Stamps,
    lines: Option<usize>,
    since: Option<DateTime<Utc>>,
    /// The moment of the line behind, or of the last write.
    latest: DateTime<Utc>,
    ranges: Vec<(u64, u64)>,
    found: usize,
    /// Lines without a time whose predecessor has not been read yet.
    undecided: Option<(u64, u64, usize)>,
    too_old_bytes: u64,
    stamped: bool,
    complete: bool,
}

impl<'a> Search<'a> {
    fn new(stamps: &'a Stamps, wanted: Wanted, modified: DateTime<Utc>) -> Self {
        Self {
            stamps,
            lines: wanted.lines,
            since: wanted.since.map(|at| stamps.floor(at)),
            latest: modified,
            ranges: Vec::new(),
            found: 0,
            undecided: None,
            too_old_bytes: 0,
            stamped: false,
            complete: wanted.lines == Some(0),
        }
    }

    fn run(&mut self, file: &File, size: u64) -> io::Result<()> {
        if self.since.is_some() && !self.stamps.exist() {
            return Ok(());
        }
        let mut block_end = size;
        let mut line_end = size;
        // What follows the block: a line that begins at its end has its moment there.
        let mut behind: Vec<u8> = Vec::new();
        while block_end > 0 && !self.complete {
            let begin = block_end.saturating_sub(CHUNK_BYTES as u64);
            let length = usize::try_from(block_end - begin).unwrap_or(CHUNK_BYTES);
            let mut block = vec![0; length];
            file.read_exact_at(&mut block, begin)?;
            block.extend_from_slice(&behind);
            let newlines = block.iter().enumerate().take(length).rev();
            for (index, _) in newlines.filter(|(_, byte)| **byte == b'\n') {
                let start = begin + index as u64 + 1;
                if start < line_end && !self.complete {
                    self.line(start, line_end, head(&block, index + 1));
                    line_end = start;
                }
            }
            behind = head(&block, 0).to_vec();
            block_end = begin;
        }
        if line_end > 0 && !self.complete {
            self.line(0, line_end, &behind);
        }
        if let Some((start, end, lines)) = self.undecided.take() {
            self.take(start, end, lines);
        }
        Ok(())
    }

    fn line(&mut self, start: u64, end: u64, head: &[u8]) {
        let Some(since) = self.since else {
            return self.take(start, end, 1);
        };
        let (run_end, run_lines) = match self.undecided {
            Some((_, end, lines)) => (end, lines),
            None => (end, 0),
        };
        let Some(moment) = self.stamps.read(head, self.latest) else {
            self.undecided = Some((start, run_end, run_lines + 1));
            return;
        };
        self.stamped = true;
        self.latest = moment;
        self.undecided = None;
        if moment >= since {
            self.too_old_bytes = 0;
            self.take(start, run_end, run_lines + 1);
        } else {
            self.too_old_bytes += run_end - start;
            self.complete |= self.too_old_bytes > OLD_ENOUGH_BYTES;
        }
    }

    fn take(&mut self, start: u64, end: u64, lines: usize) {
        let full = self.ranges.len() >= MAX_RANGES;
        match self.ranges.last_mut() {
            Some(range) if range.0 == end || full => range.0 = start,
            _ => self.ranges.push((start, end)),
        }
        self.found += lines;
        self.complete |= self.lines.is_some_and(|wanted| self.found >= wanted);
    }

    fn found(self) -> Picked {
        Picked {
            places: Places::Ranges(self.ranges),
            lines: self.found,
            complete: self.complete,
            unstamped: false,
        }
    }
}

fn head(block: &[u8], start: usize) -> &[u8] {
    let end = block.len().min(start + HEAD_BYTES);
    block.get(start..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;
    use crate::form::LineForm;

    fn form(time_format: &str) -> LineForm {
        LineForm::Stamped {
            time_format: time_format.to_owned(),
        }
    }

    fn at(text: &str) -> DateTime<Utc> {
        use chrono::{Local, NaiveDateTime, TimeZone};
        let moment = NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S").unwrap();
        Local.from_local_datetime(&moment).unwrap().to_utc()
    }

    /// What is found in a file, plain and compressed; they must agree.
    fn found(text: &[u8], form: Option<&LineForm>, wanted: Wanted) -> (String, bool) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(&path, text).unwrap();
        let zipped = directory.path().join("log.gz");
        let mut encoder = GzEncoder::new(File::create(&zipped).unwrap(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap();
        let stamps = Stamps::of(form);
        let modified = at("2026-11-22 12:00:00");
        let mut texts = Vec::new();
        let mut unstamped = false;
        for path in [&path, &zipped] {
            let file = File::open(path).unwrap();
            let picked = if path == &zipped {
                compressed(&file, &stamps, wanted).unwrap()
            } else {
                plain(&file, text.len() as u64, modified, &stamps, wanted).unwrap()
            };
            let mut out = Vec::new();
            print(&file, &picked.places, &mut |bytes| out.write_all(bytes)).unwrap();
            texts.push(String::from_utf8(out).unwrap());
            unstamped |= picked.unstamped;
            if form.is_some_and(|form| !Stamps::of(Some(form)).are_complete()) {
                // Compressed files are then taken whole.
                return (texts.remove(0), unstamped);
            }
        }
        assert_eq!(texts[0], texts[1]);
        (texts.remove(0), unstamped)
    }

    fn last(lines: usize) -> Wanted {
        Wanted {
            lines: Some(lines),
            since: None,
        }
    }

    fn since(moment: &str) -> Wanted {
        Wanted {
            lines: None,
            since: Some(at(moment)),
        }
    }

    #[test]
    fn the_last_lines() {
        let text = b"1\n22\n\n4\nrest";
        for (lines, expected) in [
            (0, ""),
            (1, "rest"),
            (2, "4\nrest"),
            (3, "\n4\nrest"),
            (9, "1\n22\n\n4\nrest"),
        ] {
            assert_eq!(found(text, None, last(lines)).0, expected, "{lines}");
        }
        assert_eq!(found(b"", None, last(3)).0, "");
        assert_eq!(found(b"\n", None, last(3)).0, "\n");
        let long = "x".repeat(3 * CHUNK_BYTES);
        let text = format!("first\n{long}\nlast\n");
        let expected = format!("{long}\nlast\n");
        assert_eq!(found(text.as_bytes(), None, last(2)).0, expected);
    }

    #[test]
    fn lines_since_a_moment() {
        let line = |hour: u32, text: &str| format!("2026-11-22 {hour:02}:00:00 [7] | {text}\n");
        let text = [
            line(8, "a"),
            line(9, "b"),
            "more of b\n".to_owned(),
            line(8, "late"),
            line(10, "c"),
        ]
        .concat();
        let form = form("%Y-%m-%d %H:%M:%S");
        let expected = [line(9, "b"), "more of b\n".to_owned(), line(10, "c")].concat();
        let got = found(text.as_bytes(), Some(&form), since("2026-11-22 09:00:00"));
        assert_eq!(got, (expected, false));
        let both = Wanted {
            lines: Some(1),
            ..since("2026-11-22 09:00:00")
        };
        assert_eq!(found(text.as_bytes(), Some(&form), both).0, line(10, "c"));
        assert_eq!(
            found(text.as_bytes(), Some(&form), since("2026-11-22 11:00:00")).0,
            ""
        );
    }

    #[test]
    fn times_of_day_are_counted_back_over_midnights() {
        let text = b"11:00:00 [1] | old\n13:00:00 [1] | yesterday\n01:00:00 [1] | night\n11:30:00 [1] | now\n";
        let form = form("%H:%M:%S");
        let got = found(text, Some(&form), since("2026-11-21 12:30:00")).0;
        assert!(got.starts_with("13:00:00 [1] | yesterday\n01"), "{got}");
        let got = found(text, Some(&form), since("2026-11-22 02:00:00")).0;
        assert_eq!(got, "11:30:00 [1] | now\n");
    }

    #[test]
    fn without_moments_the_whole_file_is_meant_and_that_is_said() {
        let wanted = since("2026-11-22 11:00:00");
        assert_eq!(found(b"a\nb\n", None, wanted), ("a\nb\n".to_owned(), true));
        assert_eq!(found(b"", None, wanted), (String::new(), false));
        let few = Wanted {
            lines: Some(1),
            ..wanted
        };
        assert_eq!(found(b"a\nb\n", None, few), ("b\n".to_owned(), true));
    }
}
