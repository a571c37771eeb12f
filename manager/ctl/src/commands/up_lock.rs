//! One `papactl up` at a time for each namespace.
//!
//! Owns a lock file in the runtime directory; the lock is released by the end of the process,
//! however that comes.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

use crate::commands::CommandError;
use papa_system::runtime_dir::RuntimeDir;

/// How often to try again.
const POLL: Duration = Duration::from_millis(20);
/// A pid in digits.
const MAX_PID_BYTES: u64 = 16;

/// The lock, held.
#[derive(Debug)]
pub(super) struct UpLock(#[expect(dead_code, reason = "held for its end")] Flock<File>);

impl UpLock {
    /// Waits until no other `up` of this namespace is at work.
    pub(super) fn take(
        directory: &RuntimeDir,
        namespace: &str,
        deadline: Instant,
    ) -> Result<Self, CommandError> {
        let path = directory.path().join(format!("{namespace}.up.lock"));
        let failed = |error| CommandError::Failed(format!("lock {}: {error}", path.display()));
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(&path)
            .map_err(failed)?;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(mut lock) => {
                    // For whoever waits too long; the lock does not depend on it.
                    let _ = lock.set_len(0);
                    let _ = write!(*lock, "{}", std::process::id());
                    return Ok(Self(lock));
                }
                Err((mut back, Errno::EWOULDBLOCK | Errno::EINTR)) => {
                    if Instant::now() >= deadline {
                        return Err(CommandError::Failed(format!(
                            "another `papactl up` of namespace {namespace:?} is under way{}; try again when it is done",
                            pid_in(&mut back)
                        )));
                    }
                    thread::sleep(POLL);
                    file = back;
                }
                Err((_, errno)) => return Err(failed(errno.into())),
            }
        }
    }
}

fn pid_in(file: &mut File) -> String {
    let mut text = String::new();
    let read = file
        .rewind()
        .and_then(|()| file.take(MAX_PID_BYTES).read_to_string(&mut text));
    match (read, text.parse::<u32>()) {
        (Ok(_), Ok(pid)) => format!(", pid {pid}"),
        _ => String::new(),
    }
}
