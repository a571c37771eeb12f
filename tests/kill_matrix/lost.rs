//! Cells after the loss of keeper and kernel: the next kernel's manager ends what the lost one left
//! running, and somebody is killed at a step of that.
//!
//! Losing both is outside the promise, so output and ends are not looked at. What is checked:
//! nothing runs twice, nothing of the lost kernel runs on, every worker is there again. Each cell
//! has a small installation of its own, since nothing of it is as it was.

use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::cell::{Bench, MORTAL, Victim, wait};
use crate::places::Place;
use papa_harness::whole::{Life, Role, Whole};
use papa_harness::{Failpoints, procfs};

/// One more watcher, whose orphans end when they are asked to.
const WILLING: &str = "
[watcher:willing]
cmd = WORKER willing
copy_env = true
ready = notify
numprocesses = 2
stdout_stream.filename = DIR/logs/willing.out
stderr_stream.filename = DIR/logs/willing.err
";

/// Workers of the two watchers together.
const WORKERS: usize = 3;

/// Tries one cell in a new installation.
///
/// # Errors
/// What is not as it must be.
pub(crate) fn cell(directory: &Path, place: &Place, victim: Victim) -> Result<(), Vec<String>> {
    let failpoints = Failpoints::at(directory);
    failpoints.clear();
    let whole = Whole::builder()
        .without_watchers()
        .environment(
            Failpoints::VARIABLE,
            directory.to_str().expect("the path is UTF-8"),
        )
        .ini(&format!("{MORTAL}{WILLING}"))
        .start();
    let mut bench = Bench { whole, failpoints };
    let result = bench.lose_and_kill(place, victim);
    result.map_err(|wrong| {
        let kept = bench.whole.keep();
        vec![wrong, format!("kept in {}", kept.display())]
    })
}

impl Bench {
    fn lose_and_kill(&mut self, place: &Place, victim: Victim) -> Result<(), String> {
        let directory = self.whole.kernel.directory().to_owned();
        let mut orphans = Vec::new();
        for life in self.whole.lives() {
            // Writing to a pipe that nobody has any more would end it.
            let orders = match life.name.as_str() {
                "mortal" => &["leave", "pause"][..],
                _ => &["pause"],
            };
            for order in orders {
                life.order(&directory, order)
                    .ok_or_else(|| format!("{} takes no orders", life.source()))?;
            }
        }
        for life in self.whole.lives() {
            orphans.push(life.pid);
            orphans.extend(life.left);
        }
        let socket = self.whole.kernel.socket_path();
        let endpoint = format!("[circus]\npapa_endpoint = unix:{}\n", socket.display());
        let ini = format!("{endpoint}{}", self.whole.ini());
        self.whole.write_ini(&ini);
        self.lose_both()?;
        self.failpoints
            .arm(place.name, place.time, &place.role.to_string());
        // It waits for the workers, and may lose the manager it waits for.
        let mut up = self
            .up()
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| error.to_string())?;
        let killed = self.kill_at(place, victim);
        self.failpoints.clear();
        let _ = up.kill();
        let _ = up.wait();
        killed?;
        let again = self.up().output().map_err(|error| error.to_string())?;
        if !again.status.success() {
            return Err(format!("papactl up after the kill: {again:?}"));
        }
        self.check_nothing_twice(&orphans)
    }

    fn up(&self) -> std::process::Command {
        let file = self.whole.kernel.path("whole.ini");
        self.whole.papactl(&["up", &file])
    }

    /// Ends keeper and kernel at once.
    fn lose_both(&mut self) -> Result<(), String> {
        let both = [Role::Keeper, Role::Kernel];
        let pids = both.map(|role| self.whole.pid(role));
        // Standing still, neither can take the other's place.
        for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
            for role in both {
                self.whole.signal(role, signal);
            }
        }
        wait("keeper and kernel are gone", || {
            (!pids.iter().any(|pid| procfs::alive(*pid))).then_some(())
        })
    }

    /// Waits until the manager stands still, and kills whom it is to kill.
    fn kill_at(&mut self, place: &Place, victim: Victim) -> Result<(), String> {
        let manager = self.wait_hit(place.name)?.pid;
        self.whole.wait_roles()?;
        let kernel = self.whole.pid(Role::Kernel);
        let first = match victim {
            Victim::One(Role::Manager) => manager,
            Victim::One(Role::Keeper) => self.whole.pid(Role::Keeper),
            Victim::One(Role::Kernel) | Victim::KernelThenKeeper => kernel,
        };
        procfs::signal(first, Signal::SIGKILL);
        procfs::signal(manager, Signal::SIGCONT);
        if victim == Victim::KernelThenKeeper {
            let keeper = self.wait_serving(kernel)?;
            procfs::signal(keeper, Signal::SIGKILL);
        }
        wait("whoever was killed is gone", || {
            (!procfs::alive(first)).then_some(())
        })?;
        self.whole.wait_roles()
    }

    /// One worker in each place, none of the lost kernel's, and nobody who met another.
    fn check_nothing_twice(&self, orphans: &[i32]) -> Result<(), String> {
        if let Some(pid) = orphans.iter().find(|pid| procfs::alive(**pid)) {
            return Err(format!("{pid} of the lost kernel runs on"));
        }
        let mut living = self.whole.lives();
        if let Some(life) = living.iter().find(|life| life.twice) {
            return Err(format!("{} ran beside another", life.source()));
        }
        living.retain(Life::is_there);
        let status = self.whole.ask("status", &serde_json::json!({}));
        let status = status.ok_or("no manager answers")?;
        let watchers = status["watchers"].as_array().into_iter().flatten();
        let mut known: Vec<i64> = watchers
            .flat_map(|watcher| watcher["workers"].as_array().cloned().unwrap_or_default())
            .filter_map(|worker: Value| worker["pid"].as_i64())
            .collect();
        known.sort_unstable();
        let mut pids: Vec<i64> = living.iter().map(|life| i64::from(life.pid)).collect();
        pids.sort_unstable();
        if pids != known || pids.len() != WORKERS {
            return Err(format!("{pids:?} run, and the manager has {known:?}"));
        }
        let doctor = self.whole.papactl(&["doctor"]).output();
        let doctor = doctor.map_err(|error| error.to_string())?;
        if doctor.status.success() {
            Ok(())
        } else {
            Err(format!("papactl doctor: {doctor:?}"))
        }
    }
}
