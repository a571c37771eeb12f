//! The end of a log file, and what is added to it, across rotation.
//!
//! Owns reading: the last lines, looked for in rotated files too, and following by inode, so that a file that was
//! renamed is read to its end and those that came after it are read in order. Prints nothing.
//! Invariant: every byte of the files is handed out once and in order, as long as rotation does not delete a file
//! between two looks.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Most bytes looked at for the last lines: more than any screen, less than memory.
const MAX_TAIL_BYTES: u64 = 16 * 1024 * 1024;

/// How much is read at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// Most rotated files looked at; the manager keeps at most that many.
const MAX_ROTATED: u32 = 10_000;

/// A log file being read.
#[derive(Debug)]
pub(super) struct Tail {
    path: PathBuf,
    current: Option<Reading>,
}

#[derive(Debug)]
struct Reading {
    file: File,
    identity: (u64, u64),
    /// How far it has been read.
    position: u64,
}

impl Reading {
    fn open(path: &Path) -> io::Result<Option<Self>> {
        match File::open(path) {
            Ok(file) => {
                let metadata = file.metadata()?;
                if !metadata.is_file() {
                    return Err(io::Error::other("not a regular file"));
                }
                Ok(Some(Self {
                    identity: (metadata.dev(), metadata.ino()),
                    file,
                    position: 0,
                }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Hands out what has not been read.
    fn drain(&mut self, take: &mut impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let count = self.file.read_at(&mut chunk, self.position)?;
            if count == 0 {
                return Ok(());
            }
            self.position += count as u64;
            take(&chunk[..count])?;
        }
    }
}

impl Tail {
    /// Opens `path`, which need not exist yet, and gives its last `lines` lines.
    pub(super) fn open(path: PathBuf, lines: usize) -> io::Result<(Self, Vec<u8>)> {
        let mut current = Reading::open(&path)?;
        let mut last = Vec::new();
        if let Some(reading) = &mut current {
            reading.position = reading.file.metadata()?.size();
            last = last_lines(&mut reading.file, reading.position, lines)?;
            let mut missing = lines.saturating_sub(count_lines(&last));
            for number in 1..=MAX_ROTATED {
                if missing == 0 {
                    break;
                }
                let Some(mut older) = Reading::open(&rotated(&path, number))? else {
                    break;
                };
                let size = older.file.metadata()?.size();
                let mut text = last_lines(&mut older.file, size, missing)?;
                missing = missing.saturating_sub(count_lines(&text));
                text.append(&mut last);
                last = text;
            }
        }
        Ok((Self { path, current }, last))
    }

    /// Whether the file exists, or did when it was last looked at.
    pub(super) fn exists(&self) -> bool {
        self.current.is_some()
    }

    /// Hands out what was added since the last look.
    pub(super) fn poll(&mut self, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        if let Some(reading) = &mut self.current {
            reading.drain(&mut take)?;
            match fs::metadata(&self.path) {
                Ok(metadata) if (metadata.dev(), metadata.ino()) == reading.identity => {
                    if metadata.size() < reading.position {
                        // Truncated in place: it begins anew.
                        reading.position = 0;
                    }
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
        let Some(newest) = Reading::open(&self.path)? else {
            return Ok(());
        };
        for mut reading in self.since_current(newest)? {
            // What was written to the old file between the last look and its renaming.
            if let Some(old) = &mut self.current {
                old.drain(&mut take)?;
            }
            reading.drain(&mut take)?;
            self.current = Some(reading);
        }
        Ok(())
    }

    /// The files that came after the current one, oldest first; only `newest` if the current one is gone, because
    /// then nobody can tell which of the rotated ones are new.
    fn since_current(&self, newest: Reading) -> io::Result<Vec<Reading>> {
        let mut files = vec![newest];
        let Some(current) = &self.current else {
            return Ok(files);
        };
        for number in 1..=MAX_ROTATED {
            let Some(reading) = Reading::open(&rotated(&self.path, number))? else {
                files.truncate(1);
                break;
            };
            if reading.identity == current.identity {
                break;
            }
            // A rotation while we look makes a file appear again under its next name.
            if files.iter().all(|file| file.identity != reading.identity) {
                files.push(reading);
            }
        }
        files.reverse();
        Ok(files)
    }
}

fn rotated(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

fn count_lines(text: &[u8]) -> usize {
    text.split_inclusive(|byte| *byte == b'\n').count()
}

/// The last `lines` lines of the first `size` bytes of `file`.
fn last_lines(file: &mut File, size: u64, lines: usize) -> io::Result<Vec<u8>> {
    let mut text: Vec<u8> = Vec::new();
    let mut start = size;
    while start > 0 && lines > 0 && size - start < MAX_TAIL_BYTES {
        let begin = start.saturating_sub(CHUNK_BYTES as u64);
        let mut chunk = Vec::new();
        file.seek(SeekFrom::Start(begin))?;
        file.by_ref().take(start - begin).read_to_end(&mut chunk)?;
        chunk.append(&mut text);
        text = chunk;
        start = begin;
        if count_lines(&text) > lines {
            break;
        }
    }
    let skip = count_lines(&text).saturating_sub(lines);
    let cut: usize = text
        .split_inclusive(|byte| *byte == b'\n')
        .take(skip)
        .map(<[u8]>::len)
        .sum();
    Ok(text.split_off(cut))
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write;

    use super::*;

    struct Log {
        _dir: tempfile::TempDir,
        path: PathBuf,
        files: u32,
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
                fs::rename(rotated(&self.path, number), rotated(&self.path, number + 1)).unwrap();
            }
            fs::rename(&self.path, rotated(&self.path, 1)).unwrap();
            self.files += 1;
        }
    }

    fn polled(tail: &mut Tail) -> String {
        let mut text = Vec::new();
        tail.poll(|bytes| text.write_all(bytes)).unwrap();
        String::from_utf8(text).unwrap()
    }

    fn last(log: &Log, lines: usize) -> String {
        String::from_utf8(Tail::open(log.path.clone(), lines).unwrap().1).unwrap()
    }

    #[test]
    fn the_last_lines_are_found_in_rotated_files_too() {
        let mut log = Log::new();
        log.add("1\n2\n");
        log.rotate();
        log.add("3\n4\n5\n");
        log.rotate();
        log.add("6\nrest");
        assert_eq!(last(&log, 0), "");
        assert_eq!(last(&log, 1), "rest");
        assert_eq!(last(&log, 2), "6\nrest");
        assert_eq!(last(&log, 4), "4\n5\n6\nrest");
        assert_eq!(last(&log, 6), "2\n3\n4\n5\n6\nrest");
        assert_eq!(last(&log, 100), "1\n2\n3\n4\n5\n6\nrest");
    }

    #[test]
    fn lines_longer_than_a_chunk_are_whole() {
        let log = Log::new();
        let long = "x".repeat(3 * CHUNK_BYTES);
        log.add(&format!("first\n{long}\nlast\n"));
        assert_eq!(last(&log, 2), format!("{long}\nlast\n"));
    }

    #[test]
    fn additions_are_followed_across_rotations() {
        let mut log = Log::new();
        let (mut tail, nothing) = Tail::open(log.path.clone(), 10).unwrap();
        assert!(nothing.is_empty() && !tail.exists());
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
    fn a_truncated_or_replaced_file_begins_anew() {
        let log = Log::new();
        log.add("old old old\n");
        let (mut tail, _) = Tail::open(log.path.clone(), 0).unwrap();
        fs::write(&log.path, "n\n").unwrap();
        polled(&mut tail);
        assert_eq!(polled(&mut tail), "n\n");
        fs::rename(&log.path, log.path.with_extension("away")).unwrap();
        log.add("other\n");
        assert_eq!(polled(&mut tail), "other\n");
    }
}
