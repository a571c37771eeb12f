//! A log file of our own that cannot grow without bound.
//!
//! Owns when such a file is put aside and opened anew, and which descriptor leads to it afterwards.
//! What is written is everybody's.
//! Invariant: file and predecessor together hold at most twice the limit and one write.
//! Source: the kernel's `--log-bytes`; `WatchedFileHandler` of Python, which is what Circus uses,
//! for a file that somebody moved.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::stat::{FileStat, SFlag, fstat};

use papa_config::{LogOutput, SyslogAddress};
use papa_system::walk::{Anchored, check_append, open_append};

use crate::syslog_socket::SyslogSocket;

/// Where `StdoutStream` goes: wherever the manager's own output goes.
pub(crate) const OWN_STDOUT: &str = "/dev/stdout";
/// Pause between two checks that the path still leads to the file.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// What is added to the name of a file that is put aside.
const ASIDE: &str = ".1";

/// Device and inode.
type Identity = (u64, u64);

/// Why the manager's own log cannot go where the configuration says.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The file cannot be appended to.
    #[error("log file {}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Nobody takes it at the syslog's address.
    #[error("logoutput: syslog at {address:?}: {error}")]
    Syslog {
        /// The address, as the file has it.
        address: SyslogAddress,
        /// What the system said.
        error: io::Error,
    },
}

/// Checks that a manager could open its own log there. Creates and writes nothing.
///
/// # Errors
/// The file cannot be appended to, or the syslog cannot be reached.
pub fn check(output: Option<&LogOutput>) -> Result<(), OutputError> {
    match output {
        None => Ok(()),
        Some(LogOutput::File(path)) => check_append(path).map_err(|error| OutputError::File {
            path: path.clone(),
            error,
        }),
        Some(LogOutput::Syslog(syslog)) => SyslogSocket::connect(&syslog.address)
            .map(drop)
            .map_err(|error| OutputError::Syslog {
                address: syslog.address.clone(),
                error,
            }),
    }
}

/// A file and how large it may become.
#[derive(Debug)]
pub struct CappedFile {
    path: PathBuf,
    /// Put aside from this size on; 0: never.
    limit_bytes: u64,
    looked: Option<Instant>,
}

impl CappedFile {
    pub fn new(path: PathBuf, limit_bytes: u64) -> Self {
        Self {
            path,
            limit_bytes,
            looked: None,
        }
    }

    /// The next look is at the path, too.
    pub fn look_soon(&mut self) {
        self.looked = None;
    }

    /// The file to go on with instead of `file`: that one was full and was put aside, or somebody
    /// moved or deleted it.
    pub fn look(&mut self, file: BorrowedFd<'_>, now: Instant) -> Option<File> {
        let status = fstat(file).ok().filter(is_regular)?;
        let size = u64::try_from(status.st_size).unwrap_or(0);
        let full = self.limit_bytes > 0 && size >= self.limit_bytes;
        let due = self
            .looked
            .is_none_or(|last| now.saturating_duration_since(last) >= LOOK_INTERVAL);
        if !full && !due {
            return None;
        }
        self.looked = Some(now);
        let metadata = fs::metadata(&self.path).ok();
        let is_there = metadata
            .as_ref()
            .is_some_and(|there| identity(there) == identity_of(&status));
        if is_there && !full {
            return None;
        }
        // Where the path leads elsewhere already, somebody else has put the file aside.
        let moved = !is_there || put_aside(&self.path).is_ok();
        let opened = moved.then(|| open_append(&self.path, false, mode(&status)));
        let new = opened.and_then(Result::ok);
        if new.is_none() && full {
            // Bounded all the same, where neither renaming nor opening works.
            let _ = nix::unistd::ftruncate(file, 0);
        }
        new
    }
}

/// Renames the file; what was put aside before goes. A link there is replaced and not followed.
fn put_aside(path: &Path) -> io::Result<()> {
    let place = Anchored::at(path)?;
    let mut aside = OsString::from(place.path());
    aside.push(ASIDE);
    fs::rename(place.path(), aside)
}

#[allow(clippy::unnecessary_cast, reason = "the types differ by system")]
fn is_regular(status: &FileStat) -> bool {
    SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG
}

/// A new file gets the mode of the one before it.
#[allow(clippy::useless_conversion, reason = "the types differ by system")]
fn mode(status: &FileStat) -> u32 {
    u32::from(status.st_mode) & 0o777
}

#[allow(clippy::useless_conversion, reason = "the types differ by system")]
fn identity_of(status: &FileStat) -> Identity {
    (u64::from(status.st_dev), u64::from(status.st_ino))
}

fn identity(metadata: &fs::Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

/// Our standard output and standard error, where they lead to a file that is ours to put aside.
#[derive(Debug)]
struct Output {
    kept: CappedFile,
    leads: Leads,
}

/// Two threads write there: what we log, and lines of workers (`StdoutStream`).
static OUTPUT: Mutex<Option<Output>> = Mutex::new(None);

/// Which of ours lead to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leads {
    pub out: bool,
    pub err: bool,
}

/// Bounds standard output and standard error if one of them leads to the file at `path`. Tells
/// which of them do.
pub fn keep_output(path: &Path, limit_bytes: u64) -> Leads {
    let Ok(there) = fs::metadata(path) else {
        return Leads::default();
    };
    let leads_there = |descriptor: BorrowedFd<'_>| {
        let status = fstat(descriptor).ok().filter(is_regular);
        status.is_some_and(|status| identity_of(&status) == identity(&there))
    };
    let leads = Leads {
        out: leads_there(io::stdout().as_fd()),
        err: leads_there(io::stderr().as_fd()),
    };
    if leads != Leads::default() {
        let kept = CappedFile::new(path.to_owned(), limit_bytes);
        *lock() = Some(Output { kept, leads });
    }
    leads
}

/// Puts the file that standard output and error lead to aside when it is full. To be called before
/// each write there.
pub fn look_at_output() {
    if let Some(output) = &mut *lock() {
        output.look(Instant::now());
    }
}

/// Looks at once whether somebody moved that file.
pub fn reopen_output() {
    if let Some(output) = &mut *lock() {
        output.kept.look_soon();
        output.look(Instant::now());
    }
}

/// Adds a line of ours to that file. False when there is none.
pub fn write_to_output(bytes: &[u8]) -> bool {
    let Some(output) = &mut *lock() else {
        return false;
    };
    output.look(Instant::now());
    let (stdout, stderr) = (io::stdout(), io::stderr());
    let to = if output.leads.err {
        stderr.as_fd()
    } else {
        stdout.as_fd()
    };
    let mut rest = bytes;
    while let Ok(count @ 1..) = nix::unistd::write(to, rest) {
        rest = rest.get(count..).unwrap_or_default();
    }
    true
}

fn lock() -> std::sync::MutexGuard<'static, Option<Output>> {
    OUTPUT.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Output {
    fn look(&mut self, now: Instant) {
        let (stdout, stderr) = (io::stdout(), io::stderr());
        let either = if self.leads.out {
            stdout.as_fd()
        } else {
            stderr.as_fd()
        };
        let Some(new) = self.kept.look(either, now) else {
            return;
        };
        if self.leads.out {
            let _ = nix::unistd::dup2_stdout(&new);
        }
        if self.leads.err {
            let _ = nix::unistd::dup2_stderr(&new);
        }
    }
}

/// The mode of a log file that has none yet: what Python's `open` asks for, less the mask.
pub const NEW_FILE_MODE: u32 = 0o666;

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::symlink;

    use super::*;

    struct Log {
        directory: tempfile::TempDir,
        kept: CappedFile,
        file: File,
    }

    impl Log {
        fn new(limit_bytes: u64) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("log");
            let file = open_append(&path, false, 0o640).unwrap();
            let kept = CappedFile::new(path, limit_bytes);
            Self {
                directory,
                kept,
                file,
            }
        }

        fn write(&mut self, text: &str) {
            if let Some(new) = self.kept.look(self.file.as_fd(), Instant::now()) {
                self.file = new;
            }
            self.file.write_all(text.as_bytes()).unwrap();
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.directory.path().join(name)).unwrap_or_default()
        }
    }

    #[test]
    fn a_full_log_is_put_aside_with_its_mode_and_one_predecessor_stays() {
        let mut log = Log::new(10);
        for number in 0..7 {
            log.write(&format!("line {number}\n"));
        }
        assert_eq!(log.read("log.1"), "line 4\nline 5\n");
        assert_eq!(log.read("log"), "line 6\n");
        assert_eq!(fs::read_dir(log.directory.path()).unwrap().count(), 2);
        let mode = |name: &str| {
            fs::metadata(log.directory.path().join(name))
                .unwrap()
                .mode()
        };
        assert_eq!(mode("log"), mode("log.1"));
    }

    #[test]
    fn a_log_that_cannot_be_put_aside_is_bounded_all_the_same() {
        let mut log = Log::new(10);
        fs::create_dir(log.directory.path().join("log.1")).unwrap();
        for number in 0..4 {
            log.write(&format!("line {number}\n"));
        }
        assert_eq!(log.read("log"), "line 2\nline 3\n");
    }

    #[test]
    fn a_link_where_the_full_log_goes_is_not_followed() {
        let mut log = Log::new(10);
        let precious = log.directory.path().join("precious");
        fs::write(&precious, "mine\n").unwrap();
        symlink(&precious, log.directory.path().join("log.1")).unwrap();
        for _ in 0..3 {
            log.write("a line\n");
        }
        assert_eq!(log.read("precious"), "mine\n");
        assert_eq!(log.read("log.1"), "a line\na line\n");
    }

    #[test]
    fn a_log_that_was_moved_is_opened_anew() {
        let mut log = Log::new(0);
        log.write("one\n");
        let path = log.directory.path().join("log");
        fs::rename(&path, log.directory.path().join("old")).unwrap();
        log.kept.look_soon();
        log.write("two\n");
        assert_eq!(
            (log.read("old").as_str(), log.read("log").as_str()),
            ("one\n", "two\n")
        );
    }
}
