//! Numbered lines: each once, whole and in order, through all files a log was turned into.
//!
//! Reads only what is new since the last time, a file being known by its inode; nothing may be
//! turned meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Findings of one reading before it says "and so on".
const MAX_FINDINGS: usize = 20;

/// What was read of one worker's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Read {
    /// The number the next line should have.
    pub next: u64,
    /// Numbers that were left out.
    pub missing: u64,
    /// The first of them, and the last of these in a row.
    pub left_out: Option<(u64, u64)>,
    /// Bytes of its lines, newlines included, as the worker wrote them.
    pub bytes: u64,
}

/// What was dropped of one process's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Gap {
    /// How often.
    pub count: u64,
    pub bytes: u64,
}

/// What all logs hold.
#[derive(Debug, Default)]
pub struct Lines {
    /// By the first word of the lines.
    pub sources: BTreeMap<String, Read>,
    /// What the manager said was dropped, by the process's name.
    pub gaps: BTreeMap<String, Gap>,
    /// Gaps, each of which may tear two lines.
    pub gap_count: u64,
    /// Lines that are none of a worker's, whole.
    pub torn: u64,
    /// How far each file was read, by inode.
    offsets: HashMap<u64, u64>,
    findings: Vec<String>,
}

impl Lines {
    /// Whether something of the file with this inode was read.
    pub fn knows(&self, inode: u64) -> bool {
        self.offsets.get(&inode).is_some_and(|offset| *offset > 0)
    }

    /// Reads what is new in a file that may have no name any more.
    pub fn read_deleted(&mut self, file: &fs::File) {
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        if let Err(error) = self.read_file(&path) {
            self.find(format!("a deleted log: {error}"));
        }
    }

    /// Reads what is new in a directory of logs.
    pub fn read(&mut self, directory: &Path) {
        for (_, path) in pieces(directory) {
            if let Err(error) = self.read_file(&path) {
                self.find(format!("{}: {error}", path.display()));
            }
        }
    }

    /// What was wrong with what was read since the last time this was asked.
    pub fn findings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.findings)
    }

    fn find(&mut self, text: String) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(text);
        }
    }

    fn read_file(&mut self, path: &Path) -> std::io::Result<()> {
        let mut file = fs::File::open(path)?;
        let inode = file.metadata()?.ino();
        let mut offset = self.offsets.get(&inode).copied().unwrap_or(0);
        file.seek(SeekFrom::Start(offset))?;
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let count = reader.read_until(b'\n', &mut line)?;
            if count == 0 {
                break;
            }
            if line.pop() != Some(b'\n') {
                self.find(format!("{}: ends within a line", path.display()));
                break;
            }
            self.line(&line, path);
            offset += count as u64;
        }
        self.offsets.insert(inode, offset);
        Ok(())
    }

    /// Takes what a stream wrote, from wherever it was got.
    pub fn take(&mut self, bytes: &[u8], whence: &Path) {
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            match line.strip_suffix(b"\n") {
                Some(line) => self.line(line, whence),
                None => self.find(format!("{}: ends within a line", whence.display())),
            }
        }
    }

    fn line(&mut self, line: &[u8], path: &Path) {
        let Ok(text) = std::str::from_utf8(line) else {
            self.torn += 1;
            return self.find(format!("{}: a line that is no text", path.display()));
        };
        // What a time format put before it.
        let text = text.rsplit("| ").next().unwrap_or(text);
        if let Some((name, bytes)) = gap(text) {
            let gap = self.gaps.entry(name.to_owned()).or_default();
            gap.count += 1;
            gap.bytes += bytes;
            self.gap_count += 1;
            return;
        }
        let mut words = text.splitn(3, ' ');
        let source = words.next().unwrap_or_default();
        let number: Option<u64> = words.next().and_then(|word| word.parse().ok());
        // What a gap left of a line may begin within its first word.
        let whole = is_source(source) && text.ends_with(';') && text.matches(';').count() == 1;
        let (Some(number), true) = (number, whole) else {
            self.torn += 1;
            let shown: String = text.chars().take(100).collect();
            if self.torn > 2 * self.gap_count {
                self.find(format!("{}: torn line {shown:?}", path.display()));
            }
            return;
        };
        if let Some(kind) = kind_of(path)
            && !source.ends_with(kind)
        {
            self.find(format!("{}: has a line of {source}", path.display()));
        }
        // One look-up for each of millions of lines, and no text made but for the first.
        let read = match self.sources.get_mut(source) {
            Some(read) => read,
            None => self.sources.entry(source.to_owned()).or_default(),
        };
        read.bytes += text.len() as u64 + 1;
        let expected = read.next;
        if number < expected {
            let text = format!(
                "{}: line {number} of {source} comes again, {expected} was next",
                path.display()
            );
            return self.find(text);
        }
        read.missing += number - expected;
        read.next = number + 1;
        if number > expected {
            // Whether it was told is known when all files are read.
            read.left_out = read.left_out.or(Some((expected, number - 1)));
        }
    }
}

/// `NAME.WID.PID.STREAM`.
fn is_source(word: &str) -> bool {
    let parts: Vec<&str> = word.split('.').collect();
    let number = |text: &str| text.parse::<u32>().is_ok();
    matches!(parts[..], [name, wid, pid, "out" | "err"] if !name.is_empty() && number(wid) && number(pid))
}

/// The stream a file is of alone, by its name: `web.out`, `web.err.3`.
fn kind_of(path: &Path) -> Option<&'static str> {
    let name = path.file_name()?.to_str()?;
    [".out", ".err"].into_iter().find(|kind| {
        name.split_once(kind)
            .is_some_and(|(_, rest)| rest.is_empty() || rest.starts_with('.'))
    })
}

/// `papa: N bytes of output of NAME were dropped here, …`
fn gap(text: &str) -> Option<(&str, u64)> {
    let rest = text.strip_prefix("papa: ")?;
    let (bytes, rest) = rest.split_once(" bytes of output of ")?;
    let (name, _) = rest.split_once(" were dropped here")?;
    Some((name, bytes.parse().ok()?))
}

/// Every file of a directory of logs: of each log the oldest first.
fn pieces(directory: &Path) -> Vec<((String, i64), PathBuf)> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut found: Vec<((String, i64), PathBuf)> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let name = path.file_name()?.to_str()?.to_owned();
            let turned = name
                .rsplit_once('.')
                .and_then(|(base, number)| Some((base.to_owned(), -number.parse::<i64>().ok()?)));
            Some((turned.unwrap_or((name, 0)), path))
        })
        .collect();
    found.sort();
    found
}
