//! The end of a log file, and what is added to it, across rotation.
//!
//! Owns reading in order: what is meant of the file and its predecessors, then following by inode,
//! so that a file that was renamed or compressed is read to its end and those that came after it
//! are read in order. Leaves to others: which lines are meant (`pick`), what files there are
//! (`generations`). Prints nothing.
//! Invariant: every byte that is added is handed out once and in order, as long as rotation does
//! not delete a file between two looks.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use flate2::read::MultiGzDecoder;

use crate::file_id::{FileId, file_id};
use crate::reader::generations::{self, Generation, Generations};
use crate::reader::pick::{self, CHUNK_BYTES, Picked, Wanted};
use crate::reader::stamp::Stamps;

/// Most files of one log that are open at once; below the usual limit of descriptors.
const MAX_FILES: usize = 512;
/// Most files waiting to be read; the others are found when these are done.
const MAX_QUEUED: usize = 32;
/// How often the beginning is tried again because files moved meanwhile.
const MAX_ATTEMPTS: usize = 10;

/// A log file being read.
#[derive(Debug)]
pub struct Tail {
    path: PathBuf,
    /// The file being read and those that came after it.
    queue: VecDeque<Reading>,
}

/// What there is to say about the beginning.
#[derive(Debug, Default)]
pub struct Begun {
    /// The file does not exist yet.
    pub absent: bool,
    /// Moments were asked for, and these lines tell none.
    pub unstamped: bool,
    /// There are more files than are looked at.
    pub more: bool,
    /// Files that could not be read.
    pub failures: Vec<String>,
}

#[derive(Debug)]
struct Reading {
    file: File,
    identity: FileId,
    at: At,
}

#[derive(Debug)]
enum At {
    /// How far a plain file has been read.
    Position(u64),
    /// A compressed file is read in one go.
    Compressed { done: bool },
}

impl Reading {
    /// At the beginning; none when something else has the name by now.
    fn open(generation: &Generation) -> io::Result<Option<Self>> {
        Ok(generation.open()?.map(|file| Self {
            file,
            identity: generation.identity,
            at: if generation.compressed {
                At::Compressed { done: false }
            } else {
                At::Position(0)
            },
        }))
    }

    /// Passes over what is there.
    fn skip(&mut self, size: u64) {
        self.at = match self.at {
            At::Position(_) => At::Position(size),
            At::Compressed { .. } => At::Compressed { done: true },
        };
    }

    fn is(&self, generation: &Generation) -> io::Result<bool> {
        Ok(self.identity == generation.identity
            || (matches!(self.at, At::Position(_)) && generation.is_compressed_from(&self.file)?))
    }

    fn has_bytes(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.size() > 0)
    }

    fn modified(&self) -> io::Result<DateTime<Utc>> {
        Ok(generations::modified(&self.file.metadata()?))
    }

    /// Hands out what has not been read.
    fn drain(&mut self, take: &mut impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK_BYTES];
        match &mut self.at {
            At::Position(position) => {
                if self.file.metadata()?.size() < *position {
                    // Truncated in place: it begins anew.
                    *position = 0;
                }
                loop {
                    let count = self.file.read_at(&mut chunk, *position)?;
                    if count == 0 {
                        return Ok(());
                    }
                    *position += count as u64;
                    take(chunk.get(..count).unwrap_or_default())?;
                }
            }
            At::Compressed { done: true } => Ok(()),
            At::Compressed { done } => {
                *done = true;
                let mut text = MultiGzDecoder::new(&self.file);
                loop {
                    let count = text.read(&mut chunk)?;
                    if count == 0 {
                        return Ok(());
                    }
                    take(chunk.get(..count).unwrap_or_default())?;
                }
            }
        }
    }
}

impl Tail {
    /// Opens `path`, which need not exist yet, and hands out what is wanted of what is there.
    ///
    /// # Errors
    /// The files cannot be listed or read, they are turned faster than that, or what `take` answers.
    pub fn open(
        path: PathBuf,
        stamps: &Stamps,
        wanted: Wanted,
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<(Self, Begun)> {
        for attempt in 1.. {
            let Generations { files, stable } = generations::list(&path)?;
            let last = attempt == MAX_ATTEMPTS;
            if let Some(beginning) = Beginning::find(&files, stamps, wanted)?
                && (stable || last)
            {
                let mut begun = beginning.begun;
                begun.absent = files.last().is_none_or(|newest| newest.path != path);
                for (reading, picked) in beginning.parts.iter().rev() {
                    pick::print(&reading.file, &picked.places, &mut take)?;
                }
                let newest = beginning.parts.into_iter().next();
                let queue = newest.map(|(reading, _)| reading).into_iter().collect();
                return Ok((Self { path, queue }, begun));
            }
            if last {
                break;
            }
        }
        Err(io::Error::other(
            "its files are turned faster than they can be listed",
        ))
    }

    /// Hands out what was added since the last look.
    ///
    /// # Errors
    /// A file cannot be read, or what `take` answers.
    pub fn poll(&mut self, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        loop {
            self.discover()?;
            // The writer is done with a file once there is something in the next: this must be seen
            // before the rest is read.
            let done = match self.queue.get(1) {
                Some(next) => self.queue.len() > 2 || next.has_bytes()?,
                None => false,
            };
            let Some(front) = self.queue.front_mut() else {
                return Ok(());
            };
            front.drain(&mut take)?;
            if !done {
                return Ok(());
            }
            self.queue.pop_front();
        }
    }

    /// Finds the files that came after the last one known, oldest first.
    fn discover(&mut self) -> io::Result<()> {
        if self.queue.len() >= MAX_QUEUED {
            return Ok(());
        }
        if let Some(back) = self.queue.back() {
            match fs::metadata(&self.path) {
                Ok(metadata) if file_id(&metadata) == back.identity => {
                    return Ok(());
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let Generations { mut files, stable } = generations::list(&self.path)?;
        if !stable {
            // The next look will do.
            return Ok(());
        }
        if let Some(back) = self.queue.back() {
            let mut known = None;
            for (index, file) in files.iter().enumerate().rev() {
                if back.is(file)? {
                    known = Some(index);
                    break;
                }
            }
            match known {
                Some(index) => drop(files.drain(..=index)),
                // The oldest go first: what is left was written later.
                None => {
                    let modified = back.modified()?;
                    files.retain(|file| file.modified >= modified);
                }
            }
        }
        for file in files.iter().take(MAX_QUEUED - self.queue.len()) {
            match Reading::open(file)? {
                Some(reading) => self.queue.push_back(reading),
                // It moved meanwhile; the next look finds it and those behind it.
                None => break,
            }
        }
        Ok(())
    }
}

/// What is meant of the files there are.
#[derive(Debug, Default)]
struct Beginning {
    /// The newest first.
    parts: Vec<(Reading, Picked)>,
    begun: Begun,
}

impl Beginning {
    /// None when files moved meanwhile.
    fn find(files: &[Generation], stamps: &Stamps, wanted: Wanted) -> io::Result<Option<Self>> {
        let mut beginning = Self::default();
        let mut missing = wanted.lines;
        for (index, file) in files.iter().rev().enumerate() {
            let too_old = wanted.since.is_some_and(|since| file.modified < since);
            if index > 0 && (too_old || missing == Some(0)) {
                break;
            }
            if index >= MAX_FILES {
                beginning.begun.more = true;
                break;
            }
            let Some(mut reading) = Reading::open(file)? else {
                return Ok(None);
            };
            let size = reading.file.metadata()?.size();
            let lines = if too_old { Some(0) } else { missing };
            let wanted = Wanted { lines, ..wanted };
            let picked = match &reading.at {
                At::Position(_) => pick::plain(&reading.file, size, file.modified, stamps, wanted),
                At::Compressed { .. } => pick::compressed(&reading.file, stamps, wanted),
            };
            reading.skip(size);
            let picked = match picked {
                Ok(picked) => picked,
                Err(error) if index > 0 => {
                    let failure = format!("{}: {error}", file.path.display());
                    beginning.begun.failures.push(failure);
                    continue;
                }
                Err(error) => return Err(error),
            };
            missing = missing.map(|missing| missing.saturating_sub(picked.lines));
            beginning.begun.unstamped |= picked.unstamped;
            let complete = picked.complete;
            beginning.parts.push((reading, picked));
            if complete {
                break;
            }
        }
        Ok(Some(beginning))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::path::Path;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    struct Log {
        _dir: tempfile::TempDir,
        path: PathBuf,
        files: u32,
    }

    fn rotated(path: &Path, number: u32) -> PathBuf {
        path.with_file_name(format!("log.{number}"))
    }

    impl Log {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("log");
            Self {
                _dir: dir,
                path,
                files: 0,
            }
        }

        fn add(&self, text: &str) {
            let mut file = OpenOptions::new()
                .append(true)
                .create(true)
                .open(&self.path)
                .unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }

        fn rotate(&mut self) {
            for number in (1..=self.files).rev() {
                for end in ["", ".gz"] {
                    let name = |number| {
                        let mut name = rotated(&self.path, number).into_os_string();
                        name.push(end);
                        name
                    };
                    let _ = fs::rename(name(number), name(number + 1));
                }
            }
            fs::rename(&self.path, rotated(&self.path, 1)).unwrap();
            self.files += 1;
        }

        /// As the manager does it.
        fn compress(&self, number: u32) {
            let plain = rotated(&self.path, number);
            let zipped = plain.with_file_name(format!("log.{number}.gz"));
            let modified = fs::metadata(&plain).unwrap().modified().unwrap();
            let mut encoder = GzEncoder::new(File::create(zipped).unwrap(), Compression::fast());
            encoder.write_all(&fs::read(&plain).unwrap()).unwrap();
            encoder.finish().unwrap().set_modified(modified).unwrap();
            fs::remove_file(plain).unwrap();
        }
    }

    fn polled(tail: &mut Tail) -> String {
        let mut text = Vec::new();
        tail.poll(|bytes| text.write_all(bytes)).unwrap();
        String::from_utf8(text).unwrap()
    }

    fn open(log: &Log, lines: usize) -> (Tail, Begun, String) {
        let wanted = Wanted {
            lines: Some(lines),
            since: None,
        };
        let mut text = Vec::new();
        let take = |bytes: &[u8]| text.write_all(bytes);
        let (tail, begun) = Tail::open(log.path.clone(), &Stamps::None, wanted, take).unwrap();
        (tail, begun, String::from_utf8(text).unwrap())
    }

    #[test]
    fn the_last_lines_are_found_in_rotated_files_too() {
        let mut log = Log::new();
        log.add("1\n2\n");
        log.rotate();
        log.add("3\n4\n5\n");
        log.rotate();
        log.compress(2);
        log.add("6\nrest");
        for (lines, expected) in [
            (0, ""),
            (1, "rest"),
            (2, "6\nrest"),
            (4, "4\n5\n6\nrest"),
            (6, "2\n3\n4\n5\n6\nrest"),
            (100, "1\n2\n3\n4\n5\n6\nrest"),
        ] {
            assert_eq!(open(&log, lines).2, expected);
        }
    }

    #[test]
    fn a_damaged_file_is_named_and_the_others_are_read() {
        let mut log = Log::new();
        log.add("1\n");
        log.rotate();
        fs::rename(rotated(&log.path, 1), log.path.with_file_name("log.1.gz")).unwrap();
        log.add("2\n");
        let (_, begun, text) = open(&log, 9);
        assert_eq!(text, "2\n");
        assert!(begun.failures[0].contains("log.1.gz"), "{begun:?}");
    }

    #[test]
    fn additions_are_followed_across_rotations() {
        let mut log = Log::new();
        let (mut tail, begun, nothing) = open(&log, 10);
        assert!(nothing.is_empty() && begun.absent);
        assert_eq!(polled(&mut tail), "");
        log.add("a\n");
        assert_eq!(polled(&mut tail), "a\n");
        log.add("b\n");
        log.rotate();
        assert_eq!(polled(&mut tail), "b\n");
        // No new file yet; what is still added to the old one is not lost.
        log.add("c\n");
        log.rotate();
        log.add("d\n");
        log.rotate();
        log.add("e\n");
        assert_eq!(polled(&mut tail), "c\nd\ne\n");
        assert_eq!(polled(&mut tail), "");
    }

    #[test]
    fn files_that_are_compressed_between_two_looks_are_read() {
        let mut log = Log::new();
        log.add("a\n");
        let (mut tail, _, _) = open(&log, 0);
        log.add("b\n");
        log.rotate();
        log.compress(1);
        log.add("c\n");
        log.rotate();
        log.compress(1);
        log.add("d\n");
        assert_eq!(polled(&mut tail), "b\nc\nd\n");
        log.rotate();
        log.compress(1);
        assert_eq!(polled(&mut tail), "");
        log.add("e\n");
        assert_eq!(polled(&mut tail), "e\n");
    }

    #[test]
    fn what_is_added_after_the_renaming_comes_first() {
        let mut log = Log::new();
        log.add("a\n");
        let (mut tail, _, _) = open(&log, 0);
        log.rotate();
        // Somebody made the new file for us, and the writer does not know it yet.
        log.add("");
        assert_eq!(polled(&mut tail), "");
        fs::write(rotated(&log.path, 1), "a\nb\n").unwrap();
        assert_eq!(polled(&mut tail), "b\n");
        log.add("c\n");
        assert_eq!(polled(&mut tail), "c\n");
    }

    #[test]
    fn many_rotations_at_once_are_followed() {
        let mut log = Log::new();
        log.add("begin\n");
        let (mut tail, _, _) = open(&log, 0);
        let mut expected = String::new();
        for number in 0..3 * MAX_QUEUED {
            let line = format!("{number}\n");
            log.add(&line);
            expected.push_str(&line);
            log.rotate();
        }
        log.add("end\n");
        expected.push_str("end\n");
        assert_eq!(polled(&mut tail), expected);
    }

    #[test]
    fn a_truncated_or_replaced_file_begins_anew() {
        let log = Log::new();
        log.add("old old old\n");
        let (mut tail, _, _) = open(&log, 0);
        fs::write(&log.path, "n\n").unwrap();
        assert_eq!(polled(&mut tail), "n\n");
        fs::rename(&log.path, log.path.with_extension("away")).unwrap();
        log.add("other\n");
        assert_eq!(polled(&mut tail), "other\n");
    }
}
