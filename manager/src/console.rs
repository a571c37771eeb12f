//! Output that is in no file, on the standard output of a manager that runs in the foreground.
//!
//! Owns a thread that prints lines as `NAME:WID | TEXT`, and the list of watchers whose output that
//! is. It only follows: a reader that is slow or gone leaves output in the kernel, which drops the
//! oldest, so that neither workers nor the manager wait for it. Control characters are made
//! visible: what reads our standard output shows it on a terminal sooner or later.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use papa_client::Address;
use papa_control::live::{self, Line, News, QUEUED_NEWS};
use papa_control::message::log_files;
use papa_control::sources::{LiveSource, Sources};
use papa_system::printable::{printable, printable_bytes};

use crate::config::WatcherConfig;

/// Times that watchers are added to what is followed; each costs two connections to the kernel and
/// a thread.
const MAX_FOLLOWERS: usize = 16;

/// What is shown, by the lower-case name of its watcher.
type Shown = BTreeMap<String, LiveSource>;

/// The printing thread and what it prints.
#[derive(Debug)]
pub struct Console {
    addresses: Vec<Address>,
    namespace: String,
    shown: Arc<Mutex<Shown>>,
    /// Somebody may read standard output still.
    open: Arc<AtomicBool>,
    /// Watchers that are followed; never fewer.
    followed: Shown,
    followers: usize,
    news: SyncSender<News>,
}

impl Console {
    /// Starts printing. `ended` is told of each process all of whose output has been printed.
    ///
    /// # Errors
    /// There is no room for a thread.
    pub fn start(
        addresses: Vec<Address>,
        namespace: String,
        ended: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let (news, receiver) = sync_channel(QUEUED_NEWS);
        let shown = Arc::new(Mutex::new(Shown::new()));
        let open = Arc::new(AtomicBool::new(true));
        let printer = Printer {
            shown: shown.clone(),
            since_us: now_us(),
        };
        let still_open = open.clone();
        thread::Builder::new()
            .name("console".to_owned())
            .spawn(move || {
                if let Err(error) = printer.run(&receiver, &ended) {
                    tracing::warn!(%error, "standard output is closed; no longer showing output of workers without a log file");
                }
                still_open.store(false, Ordering::Relaxed);
            })?;
        Ok(Self {
            addresses,
            namespace,
            shown,
            open,
            followed: Shown::new(),
            followers: 0,
            news,
        })
    }

    /// Shows what these watchers write into no file, and nothing else.
    pub fn show<'a>(&mut self, watchers: impl Iterator<Item = &'a WatcherConfig>) {
        let live = Sources::of(&log_files(watchers)).live;
        let new: Shown = live
            .iter()
            .filter(|(key, _)| !self.followed.contains_key(*key))
            .map(|(key, source)| {
                let whole = LiveSource {
                    // What is shown of it is decided line by line: its streams may change.
                    stdout: true,
                    stderr: true,
                    ..source.clone()
                };
                (key.clone(), whole)
            })
            .collect();
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = live;
        if new.is_empty() || !self.is_open() {
            return;
        }
        if self.followers >= MAX_FOLLOWERS {
            tracing::warn!(
                watchers = new.len(),
                "output of watchers that were added is not shown here: they were added too often; `papactl logs -f` shows it"
            );
            self.followed.extend(new);
            return;
        }
        self.followers += 1;
        self.followed.extend(new.clone());
        let wanted = live::Wanted {
            addresses: self.addresses.clone(),
            namespace: self.namespace.clone(),
            watchers: new,
            follow: true,
        };
        live::start(wanted, self.news.clone());
    }

    /// Whether the end of this watcher's output will be told.
    #[must_use]
    pub fn tells_end_of(&self, key: &str) -> bool {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = |source: &LiveSource| source.stdout && source.stderr;
        self.is_open() && self.followers > 0 && shown.get(key).is_some_and(whole)
    }

    fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct Printer {
    shown: Arc<Mutex<Shown>>,
    /// What was written before is history, which `papactl logs` shows.
    since_us: i64,
}

impl Printer {
    /// Prints until standard output fails.
    fn run(&self, news: &Receiver<News>, ended: &impl Fn(u64)) -> io::Result<()> {
        while let Ok(news) = news.recv() {
            let mut out = Vec::new();
            match news {
                News::Lines(lines) => self.lines(&lines, &mut out),
                News::Gap(bytes, name) => gap(bytes, &name, &mut out),
                News::Ended(serial) => ended(serial),
                News::Failed(error) => {
                    tracing::warn!(error, "cannot show output of workers without a log file");
                }
                News::Caught => {}
            }
            write_out(&out)?;
        }
        Ok(())
    }

    fn lines(&self, lines: &[Line], out: &mut Vec<u8>) {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let width = shown
            .values()
            .map(|source| source.name.chars().count() + 2)
            .max()
            .unwrap_or(0)
            .min(MAX_LABEL_COLUMNS);
        for line in lines {
            let Some(source) = shown.get(&line.watcher) else {
                continue;
            };
            let wanted = match line.stream_name() {
                "stdout" => source.stdout,
                _ => source.stderr,
            };
            if wanted && !(line.kept && line.stamp_us < self.since_us) {
                render(&source.name, line.wid, &line.text, width, out);
            }
        }
    }
}

/// Labels are lined up as far as this; a longer one pushes its line to the right.
const MAX_LABEL_COLUMNS: usize = 24;

fn render(name: &str, wid: u32, text: &[u8], width: usize, out: &mut Vec<u8>) {
    let label = printable(&format!("{name}:{wid}"));
    out.extend_from_slice(format!("{label:width$} | ").as_bytes());
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    out.extend_from_slice(printable_bytes(text).as_bytes());
    out.push(b'\n');
}

/// Says how much nobody will see. The kernel knows bytes, not lines: it has dropped them without
/// looking.
fn gap(bytes: u64, process: &str, out: &mut Vec<u8>) {
    let name = printable(process);
    out.extend_from_slice(
        format!("papa-manager | {bytes} bytes of {name} are left out: standard output is read too slowly\n")
            .as_bytes(),
    );
}

/// Writes everything; a reader that is slow is waited for, also where somebody has made our
/// standard output non-blocking.
fn write_out(mut out: &[u8]) -> io::Result<()> {
    let stdout = io::stdout();
    while !out.is_empty() {
        match nix::unistd::write(stdout.as_fd(), out) {
            Ok(written) => out = out.get(written..).unwrap_or_default(),
            Err(nix::errno::Errno::EINTR) => {}
            Err(nix::errno::Errno::EAGAIN) => {
                let mut wanted = [PollFd::new(stdout.as_fd(), PollFlags::POLLOUT)];
                poll(&mut wanted, PollTimeout::NONE)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_whose_it_is_and_has_no_escapes() {
        let mut out = Vec::new();
        render("web", 1, b"a\x1b[2Jb\r", 7, &mut out);
        assert_eq!(out, b"web:1   | a^[[2Jb\n");
    }
}
