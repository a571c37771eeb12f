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
        // The log may be gone (a closed terminal, a dead pipe): complaining
        // about that on standard error would be the end of this process.
        .log_internal_errors(false)
        .with_writer(std::io::stderr)
        .try_init();
}
