//! Compressing rotated files, aside from the writing.
//!
//! Owns one thread at most, with one file; its work has no effect until the log thread gives the
//! result its name. Leaves to others: which file (`rotate`), when (`writer`).
//! Invariant: the compressed file gets its name complete, before the plain one goes; a kill at any
//! moment costs only the work. There are never two at one temporary file: it is made anew, under a
//! name nobody else has open.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use nix::fcntl::OFlag;
use papa_system::walk::Anchored;
use papa_test_hooks::failpoint;

use crate::file_id::{FileId, file_id};
use crate::rotate::{added, find_rotated, gz};

/// Suffix of a compressed file that is not complete.
const UNFINISHED: &str = ".gz.tmp";
const CHUNK_BYTES: usize = 128 * 1024;
/// How often a running job is asked whether it is done.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Pause after a failure, most likely a full disk.
const TRY_AGAIN: Duration = Duration::from_secs(60);

/// Compresses rotated files on a thread, one at a time.
#[derive(Debug, Default)]
pub(super) struct Compressor {
    job: Option<Job>,
    paused_until: Option<Instant>,
}

#[derive(Debug)]
struct Job {
    /// The log file.
    path: PathBuf,
    /// The rotated file.
    id: FileId,
    result: mpsc::Receiver<io::Result<()>>,
    look_at: Instant,
}

impl Compressor {
    /// When the running job is to be looked at.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.job.as_ref().map(|job| job.look_at)
    }

    /// Whether another job may begin.
    pub(super) fn is_idle(&self, now: Instant) -> bool {
        self.job.is_none() && self.paused_until.is_none_or(|until| until <= now)
    }

    /// When another job may begin after a failure.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// Begins with `plain`, a rotated file of `path`.
    pub(super) fn begin(&mut self, path: &Path, plain: &Path, now: Instant) {
        let (sender, result) = mpsc::channel();
        let begun = (|| {
            // Whoever may write to the directory may have put anything there: what is no file is
            // not waited for, and a link not followed.
            let place = Anchored::at(plain)?;
            let source = OpenOptions::new()
                .read(true)
                .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
                .open(place.path())?;
            let metadata = source.metadata()?;
            if !metadata.is_file() {
                return Err(io::Error::other("it is not a file"));
            }
            let id = file_id(&metadata);
            let target = Anchored::at(&added(path, UNFINISHED))?;
            std::thread::Builder::new()
                .name("gzip".to_owned())
                .spawn(move || {
                    // The log thread may have ended.
                    let _ = sender.send(compress(source, target.path()));
                })?;
            Ok::<FileId, io::Error>(id)
        })();
        match begun {
            Ok(id) => {
                self.paused_until = None;
                self.job = Some(Job {
                    path: path.to_owned(),
                    id,
                    result,
                    look_at: now + LOOK_AGAIN,
                });
            }
            Err(error) => self.pause(plain, &error, now),
        }
    }

    /// Gives a finished file its name. True when one was finished.
    pub(super) fn look(&mut self, now: Instant) -> bool {
        let Some(job) = &mut self.job else {
            return false;
        };
        let result = match job.result.try_recv() {
            Ok(result) => result,
            Err(mpsc::TryRecvError::Empty) => {
                job.look_at = now + LOOK_AGAIN;
                return false;
            }
            Err(mpsc::TryRecvError::Disconnected) => Err(io::Error::other("the thread died")),
        };
        let (path, id) = (job.path.clone(), job.id);
        self.job = None;
        if let Err(error) = settle(&path, id, result) {
            self.pause(&path, &error, now);
        }
        true
    }

    fn pause(&mut self, path: &Path, error: &io::Error, now: Instant) {
        tracing::warn!(path = %path.display(), %error, "cannot compress a rotated log file; leaving it uncompressed");
        self.paused_until = Some(now + TRY_AGAIN);
    }
}

/// Gives a finished file of `path` its name, or deletes it.
fn settle(path: &Path, id: FileId, result: io::Result<()>) -> io::Result<()> {
    let place = Anchored::at(path)?;
    let unfinished = added(place.path(), UNFINISHED);
    let settled = result.and_then(|()| match find_rotated(place.path(), id)? {
        Some(plain) => {
            fs::rename(&unfinished, gz(&plain))?;
            failpoint::reach("log.compressed");
            fs::remove_file(plain)
        }
        // Newer files have pushed it out meanwhile.
        None => fs::remove_file(&unfinished),
    });
    if settled.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    settled
}

fn compress(mut source: File, target: &Path) -> io::Result<()> {
    match fs::remove_file(target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let metadata = source.metadata()?;
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(metadata.permissions().mode() & 0o777)
        .open(target)?;
    let mut encoder = GzEncoder::new(file, Compression::default());
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let count = match source.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        encoder.write_all(chunk.get(..count).unwrap_or_default())?;
    }
    let file = encoder.finish()?;
    // The plain file goes after this: its bytes must be on the disk in the other form.
    file.sync_data()?;
    file.set_modified(metadata.modified()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(compressor: &mut Compressor) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !compressor.look(Instant::now()) {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_file_is_compressed_under_the_name_it_has_by_then() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let text = b"line\n".repeat(100_000);
        fs::write(added(&path, ".1"), &text).unwrap();
        fs::write(added(&path, UNFINISHED), "of a predecessor").unwrap();
        let mut compressor = Compressor::default();
        compressor.begin(&path, &added(&path, ".1"), Instant::now());
        fs::rename(added(&path, ".1"), added(&path, ".2")).unwrap();
        wait(&mut compressor);
        let names: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["log.2.gz"]);
        let mut found = Vec::new();
        flate2::read::GzDecoder::new(File::open(added(&path, ".2.gz")).unwrap())
            .read_to_end(&mut found)
            .unwrap();
        assert!(found == text);
        assert!(compressor.is_idle(Instant::now()));
    }

    #[test]
    fn a_failure_pauses() {
        let mut compressor = Compressor::default();
        let now = Instant::now();
        compressor.begin(Path::new("/absent/log"), Path::new("/absent/log.1"), now);
        assert!(!compressor.is_idle(now) && compressor.is_idle(now + TRY_AGAIN));
    }
}
