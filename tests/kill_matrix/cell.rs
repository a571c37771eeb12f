//! One cell: somebody stands still at a place, somebody is killed, everything is as it must be
//! again.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::places::{Drive, Place};
use papa_harness::whole::{Life, RECOVERY, Role, Whole};
use papa_harness::{Failpoints, Hit, Json, procfs};

/// How long it may take until the place is reached.
const REACHED: Duration = Duration::from_secs(30);
/// Pause between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// What the worker that is to end says.
const STATUS: i64 = 7;
/// Values set until the journal is rewritten: many times what that takes.
const VALUES: usize = 120;
/// Bytes of such a value.
const VALUE_BYTES: usize = 20_000;
/// Lines of a burst: more than a log file's limit.
const BURST_LINES: usize = 3000;

/// The path of a unix socket, below the scratch directory.
const SOCKET: &str = "matrix.sock";
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
    failpoints: Failpoints,
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
        self.prepare(place.drive).map_err(one)?;
        let before = self.whole.lives();
        let mut idle = outlives(place, victim).then(|| self.whole.kernel.json());
        self.failpoints
            .arm(place.name, place.time, &place.role.to_string());
        let driven = self.drive(place.drive).map_err(one)?;
        let hit = self.wait_hit(place);
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

    /// Has the worker that is to end be the child of whom it must be.
    fn prepare(&mut self, drive: Drive) -> Result<(), String> {
        if !matches!(
            drive,
            Drive::End | Drive::EndLeaving | Drive::EndAdopted | Drive::EndOrphaned
        ) {
            return Ok(());
        }
        let mortal = self.mortal()?;
        let parent = procfs::stat(mortal.pid).map(|stat| stat.parent);
        let is = |role| parent == Some(self.whole.pid(role));
        let (own, adopted) = (is(Role::Kernel), is(Role::Keeper));
        let right = match drive {
            Drive::EndAdopted => adopted,
            Drive::EndOrphaned => !own && !adopted,
            _ => own,
        };
        if right {
            return Ok(());
        }
        if !own {
            self.end(&mortal)?;
            self.wait_successor(&mortal)?;
            self.whole.restore()?;
        }
        // Whoever it is the child of from now on.
        let deaths: &[Role] = match drive {
            Drive::EndAdopted => &[Role::Kernel],
            Drive::EndOrphaned => &[Role::Kernel, Role::Keeper],
            _ => &[],
        };
        for role in deaths {
            self.die(*role)?;
        }
        Ok(())
    }

    /// Kills one and waits for its successor.
    fn die(&mut self, role: Role) -> Result<(), String> {
        let before = self.whole.pid(role);
        self.whole.kill(role);
        wait(&format!("the {role} has ended"), || {
            (!procfs::alive(before)).then_some(())
        })?;
        self.whole.restore()
    }

    fn mortal(&self) -> Result<Life, String> {
        let mut living = self.whole.living("mortal");
        living.retain(Life::is_there);
        living.pop().ok_or_else(|| "no mortal worker".to_owned())
    }

    fn end(&self, life: &Life) -> Result<(), String> {
        life.order(self.whole.kernel.directory(), &format!("exit {STATUS}"))
            .map(drop)
            .ok_or_else(|| format!("{} takes no orders", life.source()))
    }

    /// Does what has the place reached, or has it done by somebody who may have to wait.
    fn drive(&mut self, drive: Drive) -> Result<Driven, String> {
        let mut driven = Driven::default();
        match drive {
            Drive::Write => {}
            Drive::Burst => {
                let directory = self.whole.kernel.directory().to_owned();
                let mortal = self.mortal()?;
                driven.asked = Some(std::thread::spawn(move || {
                    let _ = mortal.order(&directory, &format!("burst out {BURST_LINES} 80 0"));
                }));
            }
            Drive::End | Drive::EndLeaving | Drive::EndAdopted | Drive::EndOrphaned => {
                let mortal = self.mortal()?;
                if drive == Drive::EndLeaving {
                    mortal
                        .order(self.whole.kernel.directory(), "leave")
                        .ok_or_else(|| format!("{} takes no orders", mortal.source()))?;
                }
                self.end(&mortal)?;
                driven.ending = Some(mortal);
            }
            Drive::Values => {
                let socket = self.whole.kernel.socket_path();
                driven.asked = Some(std::thread::spawn(move || set_values(&socket)));
            }
            Drive::KernelDies => self.whole.kill(Role::Kernel),
            Drive::ManagerDies => {
                let manager = self.whole.pid(Role::Manager);
                self.whole.kill(Role::Manager);
                // Gone is more than ended: its first thread may end before the others.
                wait("another manager is started", || {
                    let started = self.whole.start_manager();
                    let gone = procfs::stat(manager).is_none();
                    gone.then_some(started)
                })??;
            }
            Drive::KeeperDies => self.whole.kill(Role::Keeper),
            Drive::Upgrade | Drive::UpgradeBoth => {
                let socket = self.whole.kernel.socket_path();
                let request = json!({"keeper": drive == Drive::UpgradeBoth});
                driven.asked = Some(std::thread::spawn(move || {
                    let session = Json::unix(&socket);
                    let _ = session.map(|mut session| session.call("kernel.upgrade", request));
                }));
            }
            Drive::UpgradeManager => self.whole.signal(Role::Manager, Signal::SIGUSR2),
            Drive::PathGone => {
                let path = self.whole.kernel.directory().join(SOCKET);
                std::fs::remove_file(&path).map_err(|error| error.to_string())?;
                driven.lost = Some((path, self.whole.living("web")));
            }
            Drive::Reload => {
                let path = self.whole.kernel.runtime_dir().join("circus.manager.sock");
                driven.asked = Some(std::thread::spawn(move || reload(&path)));
            }
        }
        Ok(driven)
    }

    fn wait_hit(&self, place: &Place) -> Result<Hit, String> {
        let deadline = Instant::now() + REACHED;
        loop {
            if let Some(hit) = self.failpoints.hit(place.name)
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
    fn wait_serving(&self, before: i32) -> Result<i32, String> {
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

    fn wait_successor(&self, before: &Life) -> Result<(), String> {
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

/// What goes on because of a drive.
#[derive(Debug, Default)]
struct Driven {
    /// The worker that ends.
    ending: Option<Life>,
    /// Who waits for an answer.
    asked: Option<JoinHandle<()>>,
    /// Where a unix socket is to be again, and the workers that have the old one.
    lost: Option<(PathBuf, Vec<Life>)>,
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

fn wait<T>(what: &str, mut get: impl FnMut() -> Option<T>) -> Result<T, String> {
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

/// Until the kernel is killed or all are set.
fn set_values(socket: &Path) {
    let Ok(mut session) = Json::unix(socket) else {
        return;
    };
    for number in 0..VALUES {
        let value = format!("{number}{}", "v".repeat(VALUE_BYTES));
        let request = json!({"name": "matrix.filler", "value": value});
        if !matches!(session.call("value.set", request), Ok(Ok(_))) {
            return;
        }
    }
}

/// Asks for a reload and waits for its answer, or for the end of the connection.
fn reload(socket: &Path) {
    let Ok(mut stream) = UnixStream::connect(socket) else {
        return;
    };
    let _ = stream.set_read_timeout(Some(RECOVERY));
    let request =
        json!({"id": 1, "command": "reload", "properties": {"name": "web", "waiting": true}});
    if writeln!(stream, "{request}").is_ok() {
        let _ = BufReader::new(stream).read_line(&mut String::new());
    }
}
