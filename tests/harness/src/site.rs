//! An installation as a user has it: an INI file, and whatever `papactl up` starts for it.
//!
//! Owns the file and the processes; ended with `papactl down`, and by force where that fails.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Scratch, binary, private_command, procfs, wait_for, wait_until};

/// What a verb may take that finds no kernel. Two seconds are promised, and the machine may be
/// busy; a hang is of five or more.
const SOON: Duration = Duration::from_secs(4);

/// An installation whose kernel has a socket of its own. Its file is `site.ini`.
#[derive(Debug)]
pub struct Site {
    /// Where everything of it is.
    pub scratch: Scratch,
}

impl Site {
    /// Writes the file and starts nothing. `ini` begins within the section `[circus]`, and may say
    /// `DIR` for the scratch directory.
    ///
    /// # Panics
    /// When the file cannot be written.
    #[track_caller]
    pub fn new(ini: &str) -> Self {
        let scratch = Scratch::new();
        let directory = scratch.directory().display().to_string();
        let text = format!("[circus]\npapa_endpoint = unix:{directory}/k.sock\n{ini}");
        let site = Self { scratch };
        let written = fs::write(site.file("site.ini"), text.replace("DIR", &directory));
        written.expect("the scratch directory takes a file");
        site
    }

    /// A file of the scratch directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.scratch.directory().join(name)
    }

    /// A program of ours with these words, in the scratch directory.
    pub fn command(&self, program: &str, line: &str) -> Command {
        let mut command = private_command(&binary(program), self.scratch.directory());
        command
            .current_dir(self.scratch.directory())
            .args(line.split_whitespace());
        command
    }

    /// What `papactl` with these words prints, and how it ends.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn papactl(&self, line: &str) -> Output {
        let output = self.command("papactl", line).output();
        output.expect("papactl can be started")
    }

    /// What it prints on standard output; it succeeds.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn done(&self, line: &str) -> String {
        let output = self.papactl(line);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let code = output.status.code();
        assert_eq!(code, Some(0), "papactl {line}: {printed}{said}");
        printed
    }

    /// What it says; it fails, and does so within seconds.
    ///
    /// # Panics
    /// When it succeeds or takes longer.
    #[track_caller]
    pub fn fails_soon(&self, line: &str) -> String {
        let begun = Instant::now();
        let output = self.papactl(line);
        let took = begun.elapsed();
        let streams = [&output.stdout, &output.stderr];
        let said = streams.map(|bytes| String::from_utf8_lossy(bytes)).concat();
        assert_eq!(output.status.code(), Some(1), "papactl {line}: {said}");
        assert!(took < SOON, "papactl {line} took {took:?}");
        said
    }

    /// `papactl status --json`; null when no manager answers.
    pub fn status(&self) -> Value {
        let output = self.papactl("status --json");
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// Pids of the workers of a watcher.
    pub fn pids(&self, name: &str) -> BTreeSet<i32> {
        self.pids_where(|watcher| watcher["name"] == name)
    }

    /// Pids of all workers.
    pub fn workers(&self) -> BTreeSet<i32> {
        self.pids_where(|_| true)
    }

    fn pids_where(&self, wanted: impl Fn(&Value) -> bool) -> BTreeSet<i32> {
        let status = self.status();
        let watchers = status["watchers"].as_array().cloned().unwrap_or_default();
        watchers
            .iter()
            .filter(|watcher| wanted(watcher))
            .flat_map(|watcher| watcher["workers"].as_array().cloned().unwrap_or_default())
            .filter_map(|worker| i32::try_from(worker["pid"].as_i64()?).ok())
            .collect()
    }

    /// Pids of a watcher's workers once there are so many.
    ///
    /// # Panics
    /// When there are not in time.
    #[track_caller]
    pub fn wait_pids(&self, name: &str, count: usize) -> BTreeSet<i32> {
        wait_for("the workers run", || {
            Some(self.pids(name)).filter(|pids| pids.len() == count)
        })
    }

    /// Pid of the only worker of a watcher, once it runs.
    ///
    /// # Panics
    /// When there is not exactly one in time.
    #[track_caller]
    pub fn wait_pid(&self, name: &str) -> i32 {
        let pids = self.wait_pids(name, 1);
        *pids.first().expect("one worker was waited for")
    }

    /// Pids of all workers once there are so many.
    ///
    /// # Panics
    /// When there are not in time.
    #[track_caller]
    pub fn wait_workers(&self, count: usize) -> BTreeSet<i32> {
        wait_for("the workers run", || {
            Some(self.workers()).filter(|pids| pids.len() == count)
        })
    }

    /// Pid of the manager.
    ///
    /// # Panics
    /// When none answers.
    #[track_caller]
    pub fn manager(&self) -> i32 {
        pid_in(&self.status()["manager"]["pid"])
    }

    /// Ends the manager with SIGKILL.
    ///
    /// # Panics
    /// When none answers, or it outlives that.
    #[track_caller]
    pub fn kill_manager(&self) {
        kill(self.manager());
    }

    /// Ends keeper and kernel in the same instant.
    ///
    /// # Panics
    /// When there are none, or one of them outlives that.
    #[track_caller]
    pub fn kill_kernels(&self) {
        let printed = self.done("kernel status --json");
        let status: Value = serde_json::from_str(&printed).expect("the status is JSON");
        let both = ["keeper", "pid"].map(|role| pid_in(&status["kernel"][role]));
        for pid in both {
            procfs::signal(pid, Signal::SIGSTOP);
        }
        for pid in both {
            kill(pid);
        }
    }

    /// The same, and then the manager, before it has acted on that.
    ///
    /// # Panics
    /// When one of them does not run, or outlives that.
    #[track_caller]
    pub fn kill_all(&self) {
        let manager = self.manager();
        self.kill_kernels();
        kill(manager);
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.papactl("down --timeout 10");
    }
}

#[track_caller]
fn kill(pid: i32) {
    procfs::signal(pid, Signal::SIGKILL);
    wait_until("the process is gone", || !procfs::alive(pid));
}

#[track_caller]
fn pid_in(value: &Value) -> i32 {
    let pid = value.as_i64().and_then(|pid| i32::try_from(pid).ok());
    pid.unwrap_or_else(|| panic!("a pid instead of {value}"))
}
