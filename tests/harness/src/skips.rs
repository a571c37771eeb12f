//! The tests that one run of `cargo test` skips.
//!
//! Every test program of a run adds to one file, `target/skipped/PID-START.txt`, named after the
//! process that started it, which is cargo; the target of `tests/skipped`, the last of the
//! workspace, shows it and takes it away.
//! Source: `proc_pid_stat(5)` for the start time, which tells two runs of one pid apart.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};

use crate::kernel::target_folder;
use crate::procfs;

/// Adds a test to the list of this run.
pub(crate) fn add(test: &str, why: &str) -> io::Result<()> {
    let folder = folder();
    fs::create_dir_all(&folder)?;
    add_to(&folder.join(file_name()), test, why)
}

fn add_to(file: &Path, test: &str, why: &str) -> io::Result<()> {
    let mut file = File::options().create(true).append(true).open(file)?;
    // One write: lines of programs that run at the same time stay whole.
    file.write_all(format!("{test}: {}\n", why.replace('\n', " ")).as_bytes())
}

/// The tests that this run has skipped so far, each `TEST: WHY`; they are forgotten with that. Lists
/// that runs of a part of the suite left go, too.
#[must_use]
pub fn take() -> Vec<String> {
    take_from(&folder(), &file_name())
}

fn take_from(folder: &Path, ours: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name == ours {
            let text = fs::read_to_string(&path).unwrap_or_default();
            found.extend(text.lines().map(str::to_owned));
        } else if is_running(&name) {
            continue;
        }
        // Nothing depends on it: the next run has another name.
        let _ = fs::remove_file(&path);
    }
    found.sort_unstable();
    found
}

fn folder() -> PathBuf {
    target_folder().join("skipped")
}

fn file_name() -> String {
    let parent = i32::try_from(parent_id()).unwrap_or_default();
    name_of(parent)
}

fn name_of(pid: i32) -> String {
    let start = procfs::stat(pid).map_or(0, |stat| stat.started_ticks);
    format!("{pid}-{start}.txt")
}

/// Whether the run that a list is named after goes on.
fn is_running(name: &str) -> bool {
    let pid = name.split('-').next().and_then(|pid| pid.parse().ok());
    pid.is_some_and(|pid| name == name_of(pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_told_its_own_tests_once_and_lists_of_ended_runs_go() {
        let folder = tempfile::tempdir().unwrap();
        let ours = name_of(i32::try_from(std::process::id()).unwrap());
        let other = file_name();
        for (file, test) in [(&*ours, "b"), (&ours, "a"), (&other, "c"), ("1-0.txt", "d")] {
            add_to(&folder.path().join(file), test, "takes\nroot").unwrap();
        }
        assert_eq!(
            take_from(folder.path(), &ours),
            ["a: takes root", "b: takes root"]
        );
        let left: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(left, [other]);
        assert!(take_from(folder.path(), &ours).is_empty());
    }
}
