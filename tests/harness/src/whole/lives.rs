//! What the numbered workers (`tests/python/numbered.py`) did, by their own account, and orders to
//! them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::{PATIENCE, procfs};

/// Lines on each stream, and bytes of both together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Written {
    pub out: u64,
    pub err: u64,
    pub bytes: u64,
}

impl Written {
    fn parse(words: &[&str]) -> Option<Self> {
        let [out, err, bytes] = words else {
            return None;
        };
        Some(Self {
            out: out.parse().ok()?,
            err: err.parse().ok()?,
            bytes: bytes.parse().ok()?,
        })
    }
}

/// How a worker said it would end: what a parent sees, signals negative as in Circus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    pub written: Written,
    pub status: i64,
}

/// One numbered worker, from its start to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    pub name: String,
    pub wid: u32,
    pub pid: i32,
    /// Start time: the same pid with another one is another life.
    pub ticks: u64,
    /// None as long as it has not said that it ends.
    pub end: Option<End>,
    /// Children that were to stay when it ends.
    pub left: Vec<i32>,
    /// It found something of the worker before in its place.
    pub twice: bool,
}

impl Life {
    /// Every life there was, oldest or not; one that is being written down at this moment counts.
    pub fn all(directory: &Path) -> Vec<Self> {
        let Ok(entries) = fs::read_dir(directory.join("lives")) else {
            return Vec::new();
        };
        let mut found: Vec<Self> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let text = fs::read_to_string(entry.path()).ok()?;
                Self::parse(entry.file_name().to_str()?, &text)
            })
            .collect();
        found.sort_by_key(|life| (life.ticks, life.pid));
        found
    }

    fn parse(file: &str, text: &str) -> Option<Self> {
        let mut parts = file.rsplitn(4, '.');
        let ticks = parts.next()?.parse().ok()?;
        let pid = parts.next()?.parse().ok()?;
        let wid = parts.next()?.parse().ok()?;
        let (mut end, mut left, mut twice) = (None, Vec::new(), false);
        for line in text.lines() {
            match &line.split_whitespace().collect::<Vec<_>>()[..] {
                ["end", counts @ .., how, number] => {
                    let number: i64 = number.parse().ok()?;
                    end = Some(End {
                        written: Written::parse(counts)?,
                        status: if *how == "signal" { -number } else { number },
                    });
                }
                ["left", child] => left.push(child.parse().ok()?),
                ["twice"] => twice = true,
                _ => {}
            }
        }
        Some(Self {
            name: parts.next()?.to_owned(),
            wid,
            pid,
            ticks,
            end,
            left,
            twice,
        })
    }

    /// The first word of its lines, without the stream.
    pub fn source(&self) -> String {
        format!("{}.{}.{}", self.name, self.wid, self.pid)
    }

    /// Its name in the kernel, if it is the manager's.
    pub fn process(&self) -> String {
        format!("circus.{}.{}", self.name, self.wid)
    }

    /// Whether this very process runs.
    pub fn is_there(&self) -> bool {
        procfs::stat(self.pid).is_some_and(|stat| {
            stat.started_ticks == self.ticks && !matches!(stat.state, 'Z' | 'X')
        })
    }

    /// Gives an order and waits for its answer; none when nobody obeyed.
    pub fn order(&self, directory: &Path, order: &str) -> Option<String> {
        let path = directory.join(format!("orders/{}.sock", self.pid));
        let mut stream = UnixStream::connect(path).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        writeln!(stream, "{order}").ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok()?;
        line.strip_suffix('\n').map(str::to_owned)
    }

    /// The same, for orders that are answered with what was written so far.
    pub fn order_written(&self, directory: &Path, order: &str) -> Option<Written> {
        let answer = self.order(directory, order)?;
        Written::parse(&answer.split(' ').collect::<Vec<_>>())
    }
}
