//! The daemon's own log, to standard error.
//!
//! Environment values and captured output are never logged; what clients choose (names, paths) is
//! written with its control characters escaped. The reader of the log may go away or stand still: a
//! line that cannot be written is dropped, and neither role ever fails or waits for it.
//!
//! A log file (`--log-file`) is put aside when it is large. Its path is checked from time to time:
//! if the file was moved or removed, the next line goes to a new one. Keeper and kernel do so each
//! by itself. Lines that come too fast are dropped and counted.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing_subscriber::filter::LevelFilter;

use crate::config::Config;
use crate::sys::process::put_at;

/// Most bytes of one line: what a pipe that says it has room has room for.
const LINE_BYTES: usize = 4096;

/// Between two looks whether the log's path still leads to it.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Lines that may come at once …
const BURST_LINES: u32 = 4096;
/// … and a second after that.
const LINES_PER_SECOND: u32 = 20;

/// What one process knows of its log.
struct State {
    file: Option<File>,
    /// Lines that may still come at once, and as of when.
    room: f64,
    as_of: Option<Instant>,
    left_out: u64,
}

/// A log file of ours.
struct File {
    path: PathBuf,
    /// Put aside from this size on; 0 is never.
    limit_bytes: u64,
    looked: Option<Instant>,
}

static STATE: Mutex<State> = Mutex::new(State {
    file: None,
    room: BURST_LINES as f64,
    as_of: None,
    left_out: 0,
});

impl State {
    /// Whether a line may come; of a flood only some do.
    fn admits(&mut self, now: Instant) -> bool {
        if let Some(as_of) = self.as_of.replace(now) {
            let passed = now.saturating_duration_since(as_of).as_secs_f64();
            let more = passed * f64::from(LINES_PER_SECOND);
            self.room = (self.room + more).min(f64::from(BURST_LINES));
        }
        if self.room < 1.0 {
            self.left_out += 1;
            return false;
        }
        self.room -= 1.0;
        true
    }
}

impl File {
    /// Sees to it that standard error leads to the file at the path, and that
    /// this is not too large.
    fn look(&mut self, now: Instant) {
        let Some((size, here)) = status_of_log() else {
            return;
        };
        let full = self.limit_bytes > 0 && size >= self.limit_bytes;
        let due = self
            .looked
            .is_none_or(|last| now.saturating_duration_since(last) >= LOOK_INTERVAL);
        if !full && !due {
            return;
        }
        self.looked = Some(now);
        let there = fs::symlink_metadata(&self.path).map(|file| (file.dev(), file.ino()));
        let is_there = there.is_ok_and(|there| there == here);
        if is_there && !full {
            return;
        }
        // Where the path leads elsewhere already, somebody else has put it aside.
        let moved = !is_there || fs::rename(&self.path, aside(&self.path)).is_ok();
        let opened = moved.then(|| open(&self.path)).and_then(Result::ok);
        let replaced = opened.is_some_and(|new| put_at(&new, 2).is_ok());
        if !replaced && full {
            // Bounded all the same.
            let _ = nix::unistd::ftruncate(io::stderr().as_fd(), 0);
        }
    }
}

/// Size and identity of what standard error leads to, if that is a file.
fn status_of_log() -> Option<(u64, (u64, u64))> {
    let status = nix::sys::stat::fstat(io::stderr().as_fd()).ok()?;
    let is_file = status.st_mode & libc::S_IFMT == libc::S_IFREG;
    let size = u64::try_from(status.st_size).ok()?;
    #[allow(clippy::useless_conversion, reason = "the types differ by system")]
    is_file.then(|| (size, (u64::from(status.st_dev), u64::from(status.st_ino))))
}

/// Where a full log goes; what was there goes.
fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// Opens the log anew. Never through a link: who may write to the directory
/// must not choose which file of ours is written to.
fn open(path: &Path) -> io::Result<OwnedFd> {
    let file = fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(file.into())
}

/// Says where the log is, if it is a file of ours.
pub fn set_file(config: &Config) {
    if let Some(path) = &config.log_file {
        let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
        state.file = Some(File {
            path: path.clone(),
            limit_bytes: config.log_bytes,
            looked: Some(Instant::now()),
        });
    }
}

/// Has the next line look at the path: whoever has moved the file has said so.
pub fn reopen() {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(file) = &mut state.file {
        file.looked = None;
        file.look(Instant::now());
    }
}

/// Standard error, for lines that may be lost.
#[derive(Debug, Clone, Copy)]
pub struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let now = Instant::now();
        let left_out = {
            let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
            if !state.admits(now) {
                return Ok(bytes.len());
            }
            if let Some(file) = &mut state.file {
                file.look(now);
            }
            std::mem::take(&mut state.left_out)
        };
        if left_out > 0 {
            let text = format!("papa: {left_out} lines were left out here: too many at once\n");
            write_line(text.as_bytes());
        }
        write_line(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_line(bytes: &[u8]) {
    let stderr = io::stderr();
    let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    let ready = poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0)
        && fds[0].revents() == Some(PollFlags::POLLOUT);
    if ready {
        let _ = nix::unistd::write(stderr.as_fd(), &bytes[..bytes.len().min(LINE_BYTES)]);
    }
}

/// Starts logging.
pub fn start(config: &Config) {
    set_file(config);
    let level = if config.debug {
        LevelFilter::DEBUG
    } else {
        LevelFilter::INFO
    };
    // A second start in one process keeps the first.
    let _ = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .with_target(false)
        .log_internal_errors(false)
        .with_writer(|| Log)
        .try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_flood_of_lines_some_come_and_the_others_are_counted() {
        let mut state = State {
            file: None,
            room: f64::from(BURST_LINES),
            as_of: None,
            left_out: 0,
        };
        let begin = Instant::now();
        let admitted = |state: &mut State, seconds: u64, lines: u64| {
            let now = begin + Duration::from_secs(seconds);
            (0..lines).filter(|_| state.admits(now)).count()
        };
        assert_eq!(admitted(&mut state, 0, 10_000), 4096);
        assert_eq!(state.left_out, 5904);
        assert_eq!(admitted(&mut state, 10, 10_000), 200);
        // Quiet for long enough, it may be loud again.
        assert_eq!(admitted(&mut state, 1000, 10_000), 4096);
    }
}
