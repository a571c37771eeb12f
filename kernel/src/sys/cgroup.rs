//! A control group for each process, if the system has delegated a subtree to the daemon.
//!
//! Owns finding that subtree, naming the groups in it, and removing them. A starting child makes
//! its own group, so that only its start waits for the system. A process and everything it starts
//! stay in its group, whatever they fork, call or clear; the manager finds, freezes and kills them
//! by it. Groups are an extra: if a step fails, processes start without one.
//! Invariant: only a subtree that is marked as delegated is touched (`user.delegate` or
//! `trusted.delegate` is 1, as systemd sets it for `Delegate=yes`); in any other the groups are
//! somebody else's to manage. Groups of another daemon are not removed while one of its kernels
//! runs: each holds a shared lock (`flock(2)`) on its directory.
//!
//! Source: `cgroups(7)`; systemd's `CGROUP_DELEGATION`.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tracing::warn;

/// Most directories of kernels that are gone which a start clears away.
const MAX_CLEARED: usize = 1024;

/// Most groups that are tried again; more are removed when the kernel ends.
const MAX_LATE: usize = 256;

/// What the directories are called that this module makes in the subtree.
const PREFIX: &str = "papa.";

/// The directory that has a group for every process of one line of kernels, each called by its
/// serial.
#[derive(Debug)]
pub struct Cgroups {
    base: PathBuf,
    /// Says to other kernels that this one runs.
    lock: Option<Flock<File>>,
    told: bool,
    /// Groups of forgotten processes that somebody was in still.
    late: BTreeSet<u64>,
}

impl Cgroups {
    /// The one of the line of kernels that began at this time, in microseconds since the epoch.
    /// None where no subtree is ours.
    #[must_use]
    pub fn find(lineage: u64) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let subtree = own_directory(&mounts, &own)?;
        is_delegated(&subtree).then(|| Self::of(&subtree, lineage))
    }

    fn of(subtree: &Path, lineage: u64) -> Self {
        Self {
            base: subtree.join(format!("{PREFIX}{lineage}")),
            lock: None,
            told: false,
            late: BTreeSet::new(),
        }
    }

    /// The directory.
    #[must_use]
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// The group that a process is to make and enter. None where its directory has no place in a
    /// path.
    pub fn group(&mut self, serial: u64) -> Option<ControlGroup> {
        self.hold();
        let path = |path: &Path| CString::new(path.as_os_str().as_bytes()).ok();
        let group = self.base.join(serial.to_string());
        Some(ControlGroup {
            base: path(&self.base)?,
            procs: path(&group.join("cgroup.procs"))?,
            path: path(&group)?,
        })
    }

    /// Makes the directory, if it is not there, and keeps other kernels from removing what is in
    /// it.
    fn hold(&mut self) {
        if self.lock.is_some() || fs::create_dir_all(&self.base).is_err() {
            return;
        }
        self.lock = File::open(&self.base)
            .ok()
            .and_then(|directory| Flock::lock(directory, FlockArg::LockSharedNonblock).ok());
    }

    /// A process has started without its group; it is said once.
    pub fn note_failure(&mut self, errno: Errno) {
        if !std::mem::replace(&mut self.told, true) {
            warn!(path = %self.base.display(), %errno, "starting processes without a control group");
        }
    }

    /// Removes the group of a process that is forgotten. Answers whether it is the first that
    /// somebody is left in, for which [`Self::try_again`] has to be called.
    pub fn remove(&mut self, serial: u64) -> bool {
        let first = self.late.is_empty();
        if self.late.len() < MAX_LATE {
            self.late.insert(serial);
        }
        self.try_again() && first
    }

    /// Removes the groups of forgotten processes that everybody has left by now. Answers whether
    /// there are others.
    pub fn try_again(&mut self) -> bool {
        let base = &self.base;
        self.late.retain(|serial| {
            let removed = fs::remove_dir(base.join(serial.to_string()));
            removed.is_err_and(|error| error.kind() != ErrorKind::NotFound)
        });
        !self.late.is_empty()
    }

    /// Removes every group that nobody is in, those of other kernels too if none of their line runs
    /// any more.
    pub fn clear(&self) {
        let Some(subtree) = self.base.parent() else {
            return;
        };
        let is_ours = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with(PREFIX))
        };
        for base in directories(subtree).filter(is_ours).take(MAX_CLEARED) {
            let lock = File::open(&base)
                .ok()
                .and_then(|directory| Flock::lock(directory, FlockArg::LockExclusiveNonblock).ok());
            // Groups of a kernel that runs may be empty for they are just made.
            if lock.is_none() && base != self.base {
                continue;
            }
            for group in directories(&base) {
                let _ = fs::remove_dir(group);
            }
            let _ = fs::remove_dir(base);
        }
    }
}

/// A control group as paths, laid out for a child that allocates nothing.
#[derive(Debug, Clone)]
pub struct ControlGroup {
    /// The directory it is in.
    pub base: CString,
    /// Its own.
    pub path: CString,
    /// The file by which a process enters it.
    pub procs: CString,
}

fn directories(path: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
}

/// Our own group as a directory. None where no cgroup2 file system shows it.
fn own_directory(mounts: &str, own: &str) -> Option<PathBuf> {
    let group = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        let (mount, system) = line.split_once(" - ")?;
        if system.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        // A name with an escaped character in it is not worth the trouble.
        if at.contains('\\') {
            return None;
        }
        let below = group.strip_prefix(root.trim_end_matches('/'))?;
        let below = below.trim_start_matches('/');
        Some(Path::new(at).join(below))
    })
}

/// Whether the manager of all groups has left this subtree to who is in it.
fn is_delegated(subtree: &Path) -> bool {
    let Ok(path) = CString::new(subtree.as_os_str().as_bytes()) else {
        return false;
    };
    [c"user.delegate", c"trusted.delegate"].iter().any(|name| {
        let mut value = [0_u8; 8];
        // SAFETY: both strings end with NUL, and the system writes at most as many bytes as `value`
        // has.
        let length = unsafe {
            libc::getxattr(
                path.as_ptr(),
                name.as_ptr(),
                value.as_mut_ptr().cast(),
                value.len(),
            )
        };
        usize::try_from(length).is_ok_and(|length| value.get(..length) == Some(b"1"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use papa_test_hooks::patience::eventually;

    #[test]
    fn a_kernel_in_the_same_group_cleared_what_another_had_just_made() {
        let subtree = tempfile::tempdir().unwrap();
        let mut first = Cgroups::of(subtree.path(), 1);
        let mut second = Cgroups::of(subtree.path(), 2);
        let fresh = |groups: &mut Cgroups, serial: u64| {
            groups.group(serial).unwrap();
            let path = groups.base().join(serial.to_string());
            fs::create_dir(&path).unwrap();
            path
        };
        let (one, two) = (fresh(&mut first, 7), fresh(&mut second, 7));
        second.clear();
        assert!(one.exists(), "another kernel's");
        assert!(!two.exists(), "its own");
        // Its kernel is gone, and another of that line is not there yet.
        drop(first);
        let mut first = Cgroups::of(subtree.path(), 1);
        assert!(eventually(|| {
            second.clear();
            !one.exists() && !first.base().exists()
        }));
        assert!(fresh(&mut first, 8).exists());
    }

    #[test]
    fn our_group_is_found_below_the_mount_that_shows_it() {
        let of = |mounts: &str, own: &str| own_directory(mounts, own);
        let unified = "25 30 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";
        let hybrid = "24 30 0:21 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            30 24 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
            31 24 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let part = "25 30 0:22 /machine/a /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let odd = "25 30 0:22 / /sys/fs\\040x rw - cgroup2 cgroup2 rw\n";
        let service = "9:name=systemd:/x\n0::/system.slice/papa.service\n";
        for (mounts, own, expected) in [
            (
                unified,
                service,
                Some("/sys/fs/cgroup/system.slice/papa.service"),
            ),
            (
                hybrid,
                service,
                Some("/sys/fs/cgroup/unified/system.slice/papa.service"),
            ),
            (hybrid, "0::/\n", Some("/sys/fs/cgroup/unified")),
            (part, "0::/machine/a/b\n", Some("/sys/fs/cgroup/b")),
            (part, "0::/other\n", None),
            (odd, service, None),
            (unified, "9:name=systemd:/x\n", None),
            ("", service, None),
            ("garbage\n - cgroup2\n", service, None),
        ] {
            assert_eq!(
                of(mounts, own),
                expected.map(PathBuf::from),
                "{mounts}{own}"
            );
        }
    }
}
