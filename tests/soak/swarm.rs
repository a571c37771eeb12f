//! Strays that multiply when they are killed or replace themselves for ever, met by a stop.

use std::fs;
use std::time::{Duration, Instant};

use crate::action::Which;
use crate::driver::Soak;
use papa_harness::procfs;
use papa_harness::whole::{RECOVERY, Role};

/// Whose workers start them.
const WATCHER: &str = "crowd";
/// How far a stop has come when somebody is killed: within the time the strays have to end.
const KILL_AFTER: Duration = Duration::from_millis(100);
/// Pause between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

impl Soak {
    /// Has a worker start a stray, and its watcher stop meanwhile; nothing of it may be left.
    pub(crate) fn swarm(
        &mut self,
        nth: u64,
        order: &str,
        verb: &str,
        victim: Option<Role>,
    ) -> Result<(), String> {
        self.whole.restore()?;
        self.join()?;
        let who = Which { name: WATCHER, nth };
        let Some(life) = self.worker(who) else {
            return Ok(());
        };
        if life.order(self.whole.kernel.directory(), order).is_none() {
            return Ok(());
        }
        let begun = Instant::now();
        while self.strays().is_empty() {
            if begun.elapsed() > RECOVERY {
                return Err(format!("{} started nothing", life.source()));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        let mut asked = self.whole.papactl(&[verb, WATCHER]);
        let asked = std::thread::spawn(move || asked.output());
        if let Some(role) = victim {
            std::thread::sleep(KILL_AFTER);
            self.counts.kills += 1;
            self.whole.kill(role);
            if role != Role::Manager {
                self.whole.wait_roles()?;
            }
        }
        let _ = asked.join();
        self.whole.restore()?;
        // A manager that was killed may have taken the request along.
        let again: &[&str] = if verb == "stop" {
            &["stop", "start"]
        } else {
            &[verb]
        };
        for verb in again {
            let output = self.whole.papactl(&[verb, WATCHER]).output();
            let output = output.map_err(|error| error.to_string())?;
            if !output.status.success() {
                return Err(format!("papactl {verb} {WATCHER}: {output:?}"));
            }
            let left = self.strays();
            if !left.is_empty() {
                return Err(format!(
                    "papactl {verb} {WATCHER} is done, and {left:?} run"
                ));
            }
        }
        Ok(())
    }

    /// Processes of the watcher's workers that ignore SIGTERM, which no worker does.
    fn strays(&self) -> Vec<i32> {
        let directory = self.whole.kernel.path("");
        let words = format!("{}\0{WATCHER}\0", directory.trim_end_matches('/'));
        let mut found = procfs::pids();
        found.retain(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&words)
                && procfs::alive(*pid)
                && ignores_term(*pid)
        });
        found
    }
}

fn ignores_term(pid: i32) -> bool {
    const TERM: u64 = 1 << (15 - 1);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored
        .is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask & TERM != 0))
}
