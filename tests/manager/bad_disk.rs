//! Log files whose disk refuses a step of a rotation: the rename, the new file, the removal of the
//! oldest. Nothing is lost or written twice, whether the manager lives or is killed meanwhile.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::stack::Stack;
use papa_harness::{skipped, wait_until};

/// Lines of each worker, some twenty rotations.
const LINES: usize = 20_000;

/// What is done to a directory with log files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// No file of it can be renamed, removed or made: EPERM.
    ImmutableDirectory,
    /// The log file can be neither renamed nor opened: EPERM.
    ImmutableFile,
    /// Files can be made, and neither renamed nor removed: EPERM.
    AppendOnlyDirectory,
    /// The log file can be opened for appending alone: EPERM.
    AppendOnlyFile,
    /// No file can be made: ENOSPC of inodes.
    NoInode,
    /// Another file system is mounted over it, which is read-only: EROFS.
    Covered,
}

const ALL: [Trouble; 6] = [
    Trouble::ImmutableDirectory,
    Trouble::ImmutableFile,
    Trouble::AppendOnlyDirectory,
    Trouble::AppendOnlyFile,
    Trouble::NoInode,
    Trouble::Covered,
];

/// A file system of its own for one watcher's log, gone at the end.
struct Disk {
    path: PathBuf,
    trouble: Trouble,
}

fn does(program: &str, arguments: &[&str], path: &Path) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).arg(path).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

impl Disk {
    /// None where this system does not allow it.
    fn mount(path: PathBuf, trouble: Trouble) -> Option<Self> {
        fs::create_dir(&path).unwrap();
        let disk = Self { path, trouble };
        let mounted = does(
            "mount",
            &["-t", "tmpfs", "-o", "size=8m", "logs"],
            &disk.path,
        );
        // Whether attributes can be set is tried before a worker depends on it.
        (mounted && does("chattr", &["+i"], &disk.path) && does("chattr", &["-i"], &disk.path))
            .then_some(disk)
    }

    fn log(&self) -> PathBuf {
        self.path.join("w.log")
    }

    /// How many inodes are in use, those of the mount itself among them.
    fn inodes(&self) -> u64 {
        let data = nix::sys::statvfs::statvfs(&self.path).unwrap();
        #[allow(
            clippy::useless_conversion,
            reason = "the width differs by architecture"
        )]
        u64::from(data.files() - data.files_free())
    }

    fn begin(&self) {
        let (path, log) = (&self.path, self.log());
        let done = match self.trouble {
            Trouble::ImmutableDirectory => does("chattr", &["+i"], path),
            Trouble::ImmutableFile => does("chattr", &["+i"], &log),
            Trouble::AppendOnlyDirectory => does("chattr", &["+a"], path),
            Trouble::AppendOnlyFile => does("chattr", &["+a"], &log),
            // Another file may be made in between: then that many are in use the next time.
            Trouble::NoInode => (0..100).any(|_| {
                let limit = format!("remount,nr_inodes={}", self.inodes());
                does("mount", &["-o", &limit], path)
            }),
            Trouble::Covered => does(
                "mount",
                &["-t", "tmpfs", "-o", "ro,size=64k", "cover"],
                path,
            ),
        };
        assert!(done, "{:?}", self.trouble);
    }

    fn end(&self) {
        let done = match self.trouble {
            Trouble::ImmutableDirectory => does("chattr", &["-i"], &self.path),
            Trouble::AppendOnlyDirectory => does("chattr", &["-a"], &self.path),
            // Whatever name it has by now.
            Trouble::ImmutableFile => self
                .files()
                .iter()
                .all(|file| does("chattr", &["-i"], file)),
            Trouble::AppendOnlyFile => self
                .files()
                .iter()
                .all(|file| does("chattr", &["-a"], file)),
            Trouble::NoInode => does("mount", &["-o", "remount,nr_inodes=5000"], &self.path),
            Trouble::Covered => does("umount", &[], &self.path),
        };
        assert!(done, "{:?}", self.trouble);
    }

    /// Log files, in no order.
    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.path).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.filter(|path| path.is_file()).collect()
    }

    /// The lines of each file; the files by their first line.
    fn lines(&self) -> Vec<usize> {
        let files = self.files();
        let mut parts: Vec<Vec<usize>> = files
            .iter()
            .map(|file| {
                let text = fs::read_to_string(file).unwrap_or_default();
                text.lines().map(|line| line.parse().unwrap_or(0)).collect()
            })
            .collect();
        parts.sort();
        parts.concat()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        does("umount", &["-l"], &self.path);
        does("umount", &["-l"], &self.path);
    }
}

fn refused_steps_of_rotations(killed: bool) {
    let directory = tempfile::tempdir().unwrap();
    let mut disks = Vec::new();
    for trouble in ALL {
        let path = directory.path().join(format!("{trouble:?}"));
        let Some(disk) = Disk::mount(path, trouble) else {
            return skipped("a tmpfs with attributes takes root, and a new kernel");
        };
        disks.push(disk);
    }
    let watchers: String = disks
        .iter()
        .map(|disk| {
            format!(
                "[watcher:{:?}]\ncmd = sh -c 'i=1; while [ $i -lt {LINES} ]; do seq $i $((i+499)); i=$((i+500)); sleep 0.05; done; \
                 echo > DIR/done.{0:?}; exec sleep 1000'\ncopy_env = true\nstdout_stream.class = FileStream\n\
                 stdout_stream.filename = {}\nstdout_stream.max_bytes = 5000\nstdout_stream.backup_count = 400\n",
                disk.trouble,
                disk.log().display()
            )
        })
        .collect();
    let mut stack = Stack::start(&watchers);
    for disk in &disks {
        wait_until("it was rotated", || disk.path.join("w.log.3").exists());
        disk.begin();
    }
    for disk in &disks {
        let done = stack.kernel.path(&format!("done.{:?}", disk.trouble));
        wait_until("the worker has said everything", || {
            fs::exists(&done).unwrap()
        });
    }
    if killed {
        stack.kill_manager();
        stack.start_manager();
        stack.wait_attached();
    }
    for disk in &disks {
        disk.end();
    }
    let expected: Vec<usize> = (1..=LINES).collect();
    for disk in &disks {
        wait_until(
            &format!("{:?}: the last line is there", disk.trouble),
            || disk.lines().last() == Some(&LINES),
        );
        let lines = disk.lines();
        assert!(
            lines == expected,
            "{:?}, killed: {killed}: {} lines, the first that is wrong: {:?}",
            disk.trouble,
            lines.len(),
            lines
                .iter()
                .zip(&expected)
                .find(|(line, number)| line != number)
        );
    }
}

#[test]
fn a_rotation_whose_steps_were_refused_cost_or_repeated_lines() {
    refused_steps_of_rotations(false);
}

#[test]
fn a_rotation_whose_steps_were_refused_cost_or_repeated_lines_when_the_manager_was_killed() {
    refused_steps_of_rotations(true);
}
