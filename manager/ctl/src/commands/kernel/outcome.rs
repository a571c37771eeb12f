//! What became of a change of program whose answer never came: a program too old to answer for the
//! one before just ends the connection.
//!
//! Owns the question "which program runs now", asked of the kernel and of `/proc` until there is an
//! answer or the time is up. Invariant: a change is called done only if the kernel has started anew
//! as the file that was wanted.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use papa_client::Address;
use papa_protocol::json::status::{Program, StatusReply, Upgraded};
use papa_system::printable::printable;

use super::asking::ask_status;
use crate::cli::args::KernelUpgradeArgs;
use crate::commands::progress::ProgressLine;

/// How long the kernel may be away: a program that fails is left for the one before within the
/// keeper's limit, 20 s, and another start.
const PATIENCE: Duration = Duration::from_secs(40);
/// How often to look.
const POLL: Duration = Duration::from_millis(50);

/// A file, whatever it is called by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

/// What is to be compared once the kernel answers again. Taken before it is asked to change.
#[derive(Debug)]
pub(super) struct Expected {
    before: StatusReply,
    before_path: String,
    /// The file it is to become; none if it cannot be looked at from here.
    wanted: Option<FileId>,
}

/// A kernel that answers.
#[derive(Debug)]
struct Running {
    status: StatusReply,
    path: String,
    /// None if it cannot be looked at from here.
    file: Option<FileId>,
}

impl Expected {
    /// Remembers what runs and what is wanted.
    pub(super) fn note(before: &StatusReply, args: &KernelUpgradeArgs) -> Self {
        let path = program_path(before.pid);
        let wanted = args.binary.clone().or_else(|| path.clone());
        Self {
            before: before.clone(),
            before_path: shown(path.as_deref()),
            wanted: wanted.as_deref().and_then(identity),
        }
    }

    /// Asks until it is clear what runs, and says so: what was wanted, or an error that says what
    /// is so instead.
    pub(super) fn find_out(
        &self,
        addresses: &[Address],
        args: &KernelUpgradeArgs,
        line: &mut ProgressLine,
    ) -> Result<Upgraded, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let last = ask_status(addresses);
            if let Ok((_, status)) = &last
                && status.incarnation > self.before.incarnation
            {
                return self.judge(running(status), args);
            }
            if Instant::now() >= deadline {
                return Err(match last {
                    Ok((_, status)) => format!(
                        "the connection to the kernel was lost during the request; version {} serves on, pid {}, and nothing was changed \
                         within {} s; ask again",
                        printable(&status.version),
                        status.pid,
                        PATIENCE.as_secs()
                    ),
                    Err(error) => format!(
                        "the connection to the kernel was lost during the request, and it has not answered for {} s since: {error}; its \
                         log says why, and `papactl kernel status` shows when it is back",
                        PATIENCE.as_secs()
                    ),
                });
            }
            line.show("the kernel is asked which program it is now");
            thread::sleep(POLL);
        }
    }

    fn judge(&self, now: Running, args: &KernelUpgradeArgs) -> Result<Upgraded, String> {
        let version = printable(&now.status.version);
        let (pid, path) = (now.status.pid, &now.path);
        let (Some(file), Some(wanted)) = (now.file, self.wanted) else {
            return Err(format!(
                "the kernel has started anew, pid {pid}, version {version}, and does not say why; which program it is cannot be seen from \
                 here: compare /proc/{pid}/exe with the program that was wanted"
            ));
        };
        if file != wanted {
            return Err(format!(
                "the program did not come up; the kernel runs {path} again, pid {pid}, version {version}, {} of {} processes run on; its \
                 log says what was wrong",
                now.status.counts.running, self.before.counts.running
            ));
        }
        if args.keeper && now.status.keeper == self.before.keeper {
            return Err(format!(
                "the kernel runs {path} now, pid {pid}, version {version}, but the keeper, pid {}, was not replaced: this program is too \
                 old to do that; change to one that can, with `--keeper`",
                now.status.keeper
            ));
        }
        Ok(Upgraded {
            before: Program {
                version: Some(self.before.version.clone()),
                path: self.before_path.clone(),
            },
            after: Program {
                version: Some(now.status.version),
                path: now.path,
            },
            pid,
            keeper: now.status.keeper,
            incarnation: now.status.incarnation,
            dry_run: false,
            check: None,
        })
    }
}

fn running(status: &StatusReply) -> Running {
    Running {
        status: status.clone(),
        path: shown(program_path(status.pid).as_deref()),
        file: identity(&proc_exe(status.pid)),
    }
}

fn proc_exe(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/exe"))
}

/// Where the program of a process is or was.
fn program_path(pid: u32) -> Option<PathBuf> {
    let path = fs::read_link(proc_exe(pid)).ok()?;
    let bytes = path.as_os_str().as_bytes();
    let bytes = bytes.strip_suffix(b" (deleted)").unwrap_or(bytes);
    Some(PathBuf::from(OsStr::from_bytes(bytes)))
}

fn identity(path: &Path) -> Option<FileId> {
    let found = fs::metadata(path).ok()?;
    Some(FileId {
        device: found.dev(),
        inode: found.ino(),
    })
}

fn shown(path: Option<&Path>) -> String {
    path.map_or_else(|| "?".to_owned(), |path| printable(&path.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(incarnation: u64, keeper: u32) -> StatusReply {
        serde_json::from_value(json!({
            "version": "0.1.0", "pid": 7, "keeper": keeper, "uid": 0, "started_us": 0, "uptime_ms": 0, "incarnation": incarnation,
            "counts": {"processes": 3, "running": 3, "sockets": 0, "values": 0, "held": 0, "claims": 0, "sessions": 1},
            "memory": {"budget_bytes": 0, "used_bytes": 0}, "skipped_records": 0,
            "ledger": {"captured": 0, "delivered": 0, "acknowledged": 0, "dropped": 0}
        }))
        .unwrap()
    }

    fn file(inode: u64) -> Option<FileId> {
        Some(FileId { device: 1, inode })
    }

    fn judged(
        wanted: Option<FileId>,
        found: Option<FileId>,
        keeper: bool,
    ) -> Result<Upgraded, String> {
        let expected = Expected {
            before: status(4, 6),
            before_path: "/old".to_owned(),
            wanted,
        };
        let now = Running {
            status: status(5, 6),
            path: "/now".to_owned(),
            file: found,
        };
        let args = KernelUpgradeArgs {
            binary: None,
            keeper,
            force: true,
            dry_run: false,
        };
        expected.judge(now, &args)
    }

    #[test]
    fn only_the_file_that_was_wanted_is_success() {
        let upgraded = judged(file(1), file(1), false).unwrap();
        assert_eq!(
            (upgraded.before.path.as_str(), upgraded.after.path.as_str()),
            ("/old", "/now")
        );
        assert_eq!((upgraded.incarnation, upgraded.pid), (5, 7));
        for (wanted, found, keeper, part) in [
            (file(1), file(2), false, "runs /now again"),
            (None, file(2), false, "/proc/7/exe"),
            (file(1), None, false, "/proc/7/exe"),
            (file(1), file(1), true, "keeper, pid 6, was not replaced"),
        ] {
            let said = judged(wanted, found, keeper).unwrap_err();
            assert!(said.contains(part), "{part} in {said}");
        }
    }

    #[test]
    fn a_program_is_known_by_its_file_not_by_its_name() {
        let own = std::process::id();
        let path = program_path(own).unwrap();
        assert!(identity(&path).is_some());
        assert_eq!(identity(&proc_exe(own)), identity(&path));
        assert_ne!(identity(Path::new("/")), identity(&path));
    }
}
