//! One cell: somebody stands still at a place, somebody is killed, everything is as it must be
//! again.

use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::drive::{Driven, STATUS};
use crate::places::{Drive, Place};
use papa_harness::whole::{Life, RECOVERY, Role, Whole};
use papa_harness::{Failpoints, Hit, procfs};

/// How long it may take until the place is reached.
const REACHED: Duration = Duration::from_secs(30);
/// Pause between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Has `web` use it: its workers are replaced when the socket is bound anew.
const USES_SOCKET: &str = "also=$(circus.sockets.matrix)";

/// The watcher whose worker is told to end, and a socket whose path is removed; the other watchers
/// are `Whole`'s own.
pub(crate) const MORTAL: &str = "
[socket:matrix]
path = DIR/matrix.sock
[watcher:mortal]
cmd = WORKER mortal
copy_env = true
ready = notify
backoff_reset = 0
graceful_timeout = 1
stdout_stream.filename = DIR/logs/mortal.out
stdout_stream.max_bytes = 100000
stdout_stream.backup_count = 9000
stderr_stream.filename = DIR/logs/mortal.err
";

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Victim {
    One(Role),
    /// The kernel, and when another one serves, the keeper.
    KernelThenKeeper,
}

impl Victim {
    pub(crate) const ALL: [Self; 4] = [
        Self::One(Role::Keeper),
        Self::One(Role::Kernel),
        Self::One(Role::Manager),
        Self::KernelThenKeeper,
    ];

    fn includes(self, role: Role) -> bool {
        match self {
            Self::One(one) => one == role,
            Self::KernelThenKeeper => role != Role::Manager,
        }
    }
}

impl std::fmt::Display for Victim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::One(role) => write!(f, "{role}"),
            Self::KernelThenKeeper => f.write_str("kernel, then keeper"),
        }
    }
}

/// An installation in which one cell after the other is tried.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) whole: Whole,
    pub(crate) failpoints: Failpoints,
}

impl Bench {
    /// Starts one; nothing is armed.
    pub(crate) fn start(directory: &Path) -> Self {
        let failpoints = Failpoints::at(directory);
        let path = directory.to_str().expect("the path is UTF-8");
        let whole = Whole::builder()
            .environment(Failpoints::VARIABLE, path)
            .ini(MORTAL)
            .web_word(USES_SOCKET)
            .start();
        Self { whole, failpoints }
    }

    /// Tries one cell.
    ///
    /// # Errors
    /// Everything that is not as it must be.
    pub(crate) fn cell(&mut self, place: &Place, victim: Victim) -> Result<(), Vec<String>> {
        let one = |text: String| vec![text];
        let mut driven = self.prepare(place.drive).map_err(one)?;
        let before = self.whole.lives();
        let mut idle = outlives(place, victim).then(|| self.whole.kernel.json());
        self.failpoints
            .arm(place.name, place.time, &place.role.to_string());
        self.drive(place.drive, &mut driven).map_err(one)?;
        let hit = self.wait_hit(place.name);
        let killed = hit.and_then(|hit| self.kill(place, &hit, victim));
        self.failpoints.clear();
        killed.map_err(one)?;
        self.wait_effect(&driven).map_err(one)?;
        if let Some(idle) = &mut idle
            && idle.call("status", json!({})).is_err()
        {
            return Err(one("an idle session was closed".to_owned()));
        }
        drop(idle);
        if victim == Victim::KernelThenKeeper || place.drive == Drive::EndOrphaned {
            self.whole.workers_were_orphaned();
        }
        self.whole.check()?;
        self.check_ends(place, victim, &driven.ending, &before)
    }

    pub(crate) fn wait_hit(&self, place: &str) -> Result<Hit, String> {
        let deadline = Instant::now() + REACHED;
        loop {
            if let Some(hit) = self.failpoints.hit(place)
                && !stopped(&hit).is_empty()
            {
                return Ok(hit);
            }
            if Instant::now() > deadline {
                return Err(format!("nobody reached it in {REACHED:?}"));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Kills whom it is to kill, and lets go on who stands still and was not killed.
    fn kill(&mut self, place: &Place, hit: &Hit, victim: Victim) -> Result<(), String> {
        let standing = stopped(hit);
        let pid = |role: Role| match role {
            // The next keeper is the process that was the kernel.
            Role::Keeper if place.next_keeper => self.whole.pid(Role::Kernel),
            Role::Keeper if place.drive == Drive::UpgradeBoth => self.whole.pid(Role::Keeper),
            Role::Kernel if place.drive == Drive::UpgradeBoth => hit.pid,
            _ if hit.role == role.to_string() => hit.pid,
            _ => self.whole.pid(role),
        };
        let first = match victim {
            Victim::One(role) => role,
            Victim::KernelThenKeeper => Role::Kernel,
        };
        let kernel = pid(Role::Kernel);
        procfs::signal(pid(first), Signal::SIGKILL);
        for pid in standing {
            procfs::signal(pid, Signal::SIGCONT);
        }
        if victim.includes(Role::Manager) {
            self.whole.manager_was_disturbed();
        }
        if victim == Victim::KernelThenKeeper {
            let keeper = self.wait_serving(kernel)?;
            procfs::signal(keeper, Signal::SIGKILL);
        }
        Ok(())
    }

    /// Waits until a kernel other than this one serves; answers its keeper.
    pub(crate) fn wait_serving(&self, before: i32) -> Result<i32, String> {
        let number = |value: &serde_json::Value| i32::try_from(value.as_i64()?).ok();
        wait("another kernel serves", || {
            let status = self.whole.kernel.try_status()?;
            let keeper = number(&status["keeper"])?;
            (number(&status["pid"])? != before).then_some(keeper)
        })
    }

    /// Waits until what was driven has come about.
    fn wait_effect(&mut self, driven: &Driven) -> Result<(), String> {
        if let Some(asked) = &driven.asked {
            wait("the request is answered, or its connection gone", || {
                asked.is_finished().then_some(())
            })?;
        }
        self.whole.restore()?;
        if let Some((path, users)) = &driven.lost {
            wait("the socket has its path again", || {
                UnixStream::connect(path).ok()
            })?;
            wait("the workers that had the old one are replaced", || {
                (!users.iter().any(Life::is_there)).then_some(())
            })?;
        }
        if let Some(ending) = &driven.ending {
            self.wait_successor(ending)?;
        }
        self.whole.restore()
    }

    pub(crate) fn wait_successor(&self, before: &Life) -> Result<(), String> {
        wait("another mortal worker lives", || {
            let living = self.whole.living("mortal");
            living
                .iter()
                .any(|life| life.is_there() && !is_in(life, std::slice::from_ref(before)))
                .then_some(())
        })
    }

    /// Nobody ended but who was to end.
    fn check_ends(
        &self,
        place: &Place,
        victim: Victim,
        ending: &Option<Life>,
        before: &[Life],
    ) -> Result<(), Vec<String>> {
        let mut wrong = Vec::new();
        let mut web = BTreeSet::new();
        let rolls = matches!(place.drive, Drive::Reload | Drive::PathGone);
        for life in self.whole.lives() {
            let Some(end) = life.end else { continue };
            let earlier = before
                .iter()
                .any(|one| (one.pid, one.ticks) == (life.pid, life.ticks) && one.end.is_some());
            if earlier {
                continue;
            }
            let expected = ending
                .as_ref()
                .is_some_and(|one| is_in(&life, std::slice::from_ref(one)));
            if expected && end.status == STATUS {
                continue;
            }
            if rolls && life.name == "web" && is_in(&life, before) {
                web.insert(life.pid);
                continue;
            }
            wrong.push(format!("{} ended, and was not to", life.source()));
        }
        // A manager that had not kept its decision takes it along; then nobody is replaced.
        let lost = victim == Victim::One(Role::Manager) && web.is_empty();
        if rolls && web.len() != 2 && !lost {
            wrong.push(format!("of two old workers the reload replaced {web:?}"));
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }
}

/// Whether who is connected and says nothing is to stay so: a change of program or of keeper goes
/// past it, and so does the death of anybody but the kernel.
fn outlives(place: &Place, victim: Victim) -> bool {
    let stays = !matches!(place.drive, Drive::KernelDies | Drive::KeeperDies);
    match victim {
        Victim::One(Role::Manager | Role::Keeper) => stays,
        Victim::One(Role::Kernel) | Victim::KernelThenKeeper => false,
    }
}

fn is_in(life: &Life, others: &[Life]) -> bool {
    others
        .iter()
        .any(|other| (other.pid, other.ticks) == (life.pid, life.ticks))
}

/// Who stands still: the one that said so, or the child it is about to start.
fn stopped(hit: &Hit) -> Vec<i32> {
    let mut found = vec![hit.pid];
    found.extend(procfs::children(hit.pid));
    found.retain(|pid| procfs::stat(*pid).is_some_and(|stat| stat.state == 'T'));
    found
}

pub(crate) fn wait<T>(what: &str, mut get: impl FnMut() -> Option<T>) -> Result<T, String> {
    let deadline = Instant::now() + RECOVERY;
    loop {
        if let Some(found) = get() {
            return Ok(found);
        }
        if Instant::now() > deadline {
            return Err(format!("waited {RECOVERY:?} in vain until {what}"));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}
