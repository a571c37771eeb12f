//! Acts on the log of `full`: its disk fills up or is slow, and the file is moved, deleted, replaced or locked.

use std::fs;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;

use super::Soak;
use papa_harness::skipped;
use papa_harness::whole::Role;

/// What every step with a log file takes while a log is moved away or deleted, in milliseconds.
const SLOW_MS: u64 = 200;

/// What the tmpfs of `full` holds.
const DISK_BYTES: usize = 16 << 20;

/// The log directory of `full` as a file system of its own, in a mount namespace that lives as long
/// as this.
#[derive(Debug)]
pub(super) struct Disk {
    holder: Child,
    pub(super) pid: String,
}

impl Disk {
    /// None without the privilege.
    pub(super) fn new(directory: &str) -> Option<Self> {
        let script = format!(
            "mount -t tmpfs -o size={DISK_BYTES} none {directory} && echo mounted && exec cat"
        );
        let mut holder = Command::new("unshare")
            .args(["-m", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut said = [0; 8];
        let mounted = std::io::Read::read_exact(holder.stdout.as_mut()?, &mut said).is_ok();
        let pid = holder.id().to_string();
        if mounted {
            return Some(Self { holder, pid });
        }
        let _ = holder.wait();
        None
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

impl Soak {
    /// A file in the log directory of `full`.
    pub(super) fn full_path(&self, name: &str) -> String {
        let root = self
            .disk
            .as_ref()
            .map_or_else(String::new, |disk| format!("/proc/{}/root", disk.pid));
        format!("{root}{}/{name}", self.disk_path)
    }

    pub(super) fn ballast_path(&self) -> String {
        self.full_path("ballast")
    }

    /// Puts a directory where the log file of `full` is, and has the manager open it anew.
    /// Everything is written and read before: what comes to the file that is moved away is older
    /// than all that comes to another, and so is its name for who reads them.
    pub(super) fn replace_log(&mut self) -> Result<(), String> {
        self.check()?;
        let log = self.full_path("full.out");
        if fs::rename(&log, self.full_path("full.before")).is_err() {
            // Just turned: there is none.
            return Ok(());
        }
        // Unless another was made at once.
        self.replaced = fs::create_dir(&log).is_ok();
        self.whole.signal(Role::Manager, Signal::SIGUSR1);
        Ok(())
    }

    /// Moves the log file of `full` away, or deletes it, while the manager's disk is slow. Everything
    /// is written and read before, so that what comes to that file is older than all that comes to
    /// another; and whoever reads looks into it first, deleted or not.
    pub(super) fn lose_log(&mut self, deleted: bool, reopen: bool) -> Result<(), String> {
        self.check()?;
        if cfg!(debug_assertions) {
            self.slow_disk(SLOW_MS)?;
        }
        let log = self.full_path("full.out");
        if !self.whole.has_read(&log) {
            // Just turned: what is older was not read, or there is none.
            return Ok(());
        }
        self.logs_gone += 1;
        let away = self.full_path(&format!("full.a{:06}", self.logs_gone));
        let moved = fs::rename(&log, &away).and_then(|()| {
            if !deleted {
                return Ok(());
            }
            self.whole.read_on(&away)?;
            fs::remove_file(&away)
        });
        moved.map_err(|error| format!("{log}: {error}"))?;
        if reopen {
            self.whole.signal(Role::Manager, Signal::SIGUSR1);
        }
        Ok(())
    }

    /// Sets or clears the attribute of the log files of `full` that forbids every change; whether
    /// that could be done.
    pub(super) fn set_immutable(&self, immutable: bool) -> bool {
        let Some(disk) = &self.disk else {
            return false;
        };
        let file = if immutable { "/full.out" } else { "" };
        let path = format!("/proc/{}/root{}{file}", disk.pid, self.disk_path);
        let words: &[&str] = if immutable { &["+i"] } else { &["-R", "-i"] };
        Command::new("chattr")
            .args(words)
            .arg(path)
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }

    pub(super) fn fill_disk(&mut self) -> Result<(), String> {
        if self.disk.is_none() {
            skipped("a file system of one's own takes root");
            return Ok(());
        }
        if !std::mem::replace(&mut self.ballast, true) {
            // Ends with "no space left", which is the point.
            let _ = fs::write(self.ballast_path(), vec![0; DISK_BYTES]);
        }
        let size = fs::metadata(self.ballast_path()).map_or(0, |data| data.len());
        (size > 0)
            .then_some(())
            .ok_or("the disk takes no ballast".to_owned())
    }

    pub(super) fn slow_disk(&mut self, ms: u64) -> Result<(), String> {
        if !cfg!(debug_assertions) {
            skipped("a slow disk is played in builds with debug assertions only");
            return Ok(());
        }
        self.whole.set_slow_disk(Some(ms));
        self.counts.kills += 1;
        self.whole.kill(Role::Manager);
        self.whole.restore()
    }
}
