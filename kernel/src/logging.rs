//! The daemon's own log, to standard error.
//!
//! Environment values and captured output never get here; what clients chose
//! (names, paths) is written with its control characters escaped. Whoever
//! reads the log may go away or stand still: a line nobody takes is dropped,
//! and neither role ever fails or waits for it.

use std::io::{self, Write};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing_subscriber::filter::LevelFilter;

use crate::config::Config;

/// Most bytes of one line: what a pipe that says it has room has room for.
const LINE_BYTES: usize = 4096;

/// Standard error, for lines that may be lost.
#[derive(Debug, Clone, Copy)]
pub struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stderr = io::stderr();
        let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        let ready = poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0)
            && fds[0].revents() == Some(PollFlags::POLLOUT);
        if ready {
            let _ = nix::unistd::write(stderr.as_fd(), &bytes[..bytes.len().min(LINE_BYTES)]);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts logging.
pub fn start(config: &Config) {
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
