//! The daemon's own log, to standard error.
//!
//! Environment values and captured output never get here; what clients chose
//! (names, paths) is written with its control characters escaped.

use tracing_subscriber::filter::LevelFilter;

use crate::config::Config;

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
        .with_writer(std::io::stderr)
        .try_init();
}
