//! Closes log files when there are more of them than descriptors.
//!
//! Owns how many files stay open; other descriptors are for the kernel's connection, signals and
//! callers. A closed file is opened again by its path, so a file that was moved gets no more lines.

use std::time::Duration;

use papa_system::sys;

use crate::file::LogFile;
use crate::schedule::Now;
use crate::sink::Sink;
use crate::writer::LogWriter;

/// Files that one process's output may open.
const FILES_OF_A_PROCESS: usize = 2;
/// Kept free of log files where there is room.
const RESERVE: usize = 512;

/// How many log files may be open where there are so many descriptors.
fn most_open(descriptors: usize) -> usize {
    let rest = if descriptors >= 2 * RESERVE {
        descriptors - RESERVE
    } else {
        descriptors / 4
    };
    rest.max(FILES_OF_A_PROCESS)
}

impl LogWriter {
    /// Makes room for the files of one more process. Where there are fewer descriptors than files,
    /// all are closed now and then.
    pub(super) fn spare_descriptors(&mut self, now: Now) {
        let most = most_open(sys::descriptor_limit());
        if self.desk.sinks.len() <= most {
            return;
        }
        let files = self.desk.sinks.iter().filter_map(Sink::file);
        if files.filter(|file| file.is_open()).count() + FILES_OF_A_PROCESS <= most {
            return;
        }
        if !std::mem::replace(&mut self.spares, true) {
            tracing::warn!(
                limit = sys::descriptor_limit(),
                files = self.desk.sinks.len(),
                "too few descriptors to keep every log file open; they are closed and opened by turns. A higher hard limit (ulimit -Hn) \
                 for the manager ends that"
            );
        }
        self.flush_files(0, Duration::MAX, now);
        self.desk
            .sinks
            .iter_mut()
            .filter_map(Sink::file_mut)
            .for_each(LogFile::rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_descriptors_of_few_are_left_to_others() {
        assert_eq!(most_open(4), FILES_OF_A_PROCESS);
        assert_eq!(most_open(40), 10);
        assert_eq!(most_open(1024), 512);
        assert_eq!(most_open(1 << 20), (1 << 20) - 512);
    }
}
