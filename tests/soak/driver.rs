//! Carries out what was drawn, and checks after every few steps that the promise was kept.
//!
//! Between two checks things overlap: bursts and reloads go on while somebody is killed, and a
//! killed manager stays away for some steps. One at a time holds for keeper and kernel: after a
//! kill of either the next step waits until both are there.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::action::{Action, Ending, Program, Random, Which};
use papa_harness::whole::{Life, RECOVERY, Role, Whole};
use papa_harness::{Json, Kernel, binary, copy_program, procfs, revision, skipped};

mod limits;
mod logs;
mod programs;

use logs::Disk;

/// Steps between two checks.
const CHECK_EVERY: u64 = 5;

/// Descriptors of a kernel that is to run out of them: some for itself, and some for a few dozen
/// processes.
const FEW_DESCRIPTORS: &str = "--nofile=400:400";

/// How soon `status` is to say that there is no kernel: two seconds, and this machine may be busy.
const SOON: Duration = Duration::from_secs(10);

/// Seconds for what a worker leaves behind, which takes them all; far more than a worker needs.
const GRACE: u64 = 5;

/// Pause between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// More connections than the manager takes.
const IDLE_SESSIONS: usize = 200;

/// What the kernel is downgraded to. To be raised when it has a fault that this test finds, or when
/// downgrades to it need not work any more.
const OLDER: &str = "13b47e4";

/// The kernel's program of then; where it cannot be built, ours again.
fn older() -> PathBuf {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match BUILT.get_or_init(|| revision::built(OLDER)) {
        Ok(place) => place.join("papa"),
        Err(why) => {
            skipped(&format!("no downgrades, only another copy: {why}"));
            binary("papa")
        }
    }
}

/// Watchers besides those every installation has.
fn sections(crowd: u64, generation: u64, extra: bool, disk: &str) -> String {
    let log = |name: &str, directory: &str, max: u64| {
        format!(
            "stdout_stream.filename = {directory}/{name}.out\nstdout_stream.max_bytes = {max}\nstdout_stream.backup_count = 9000\n\
             stderr_stream.filename = {directory}/{name}.err\nbackoff_max = 0.3\nbackoff_reset = 1\n"
        )
    };
    let mut text = format!("[env:web]\nGENERATION = {generation}\n");
    for (name, count, log) in [
        ("crowd", crowd, log("crowd", "DIR/logs", 60_000)),
        ("full", 1, log("full", disk, 300_000)),
        ("lossy", 1, log("lossy", "DIR/logs", 900_000)),
    ] {
        text += &format!(
            "[watcher:{name}]\ncmd = WORKER {name} rate=1\ncopy_env = true\nready = notify\nnumprocesses = {count}\n\
             graceful_timeout = {GRACE}\n{log}\n"
        );
    }
    if extra {
        let log = log("extra", "DIR/logs", 50_000);
        text += &format!("[watcher:extra]\ncmd = WORKER extra\ncopy_env = true\n{log}\n");
    }
    text
}

/// One run of one seed.
pub(crate) struct Soak {
    pub(crate) whole: Whole,
    disk: Option<Disk>,
    clock: fs::File,
    few_descriptors: bool,
    /// What goes on beside the steps; each says what went wrong.
    under_way: Vec<JoinHandle<Option<String>>>,
    deaf: Vec<Json>,
    /// Connections to the manager that say nothing.
    idle: Vec<UnixStream>,
    ballast: bool,
    locked: bool,
    /// A directory is in the place of the log file of `full`.
    replaced: bool,
    /// Logs that were moved away, deleted or not.
    logs_gone: u64,
    /// Whose limit on file size is a low one.
    limited: Vec<Role>,
    /// The kernel may keep output in a form that the older program cannot read.
    rings: bool,
    /// The base file's text, without the sections that change.
    base: String,
    disk_path: String,
    made: u64,
    /// Another program of the kernel's, an older one.
    copy: PathBuf,
    pub(crate) counts: Counts,
    /// Dropped last: the others use what is in it.
    _tools: TempDir,
}

/// What a run did.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) steps: u64,
    pub(crate) checks: u64,
    pub(crate) kills: u64,
    pub(crate) lines: u64,
    pub(crate) dropped: u64,
    pub(crate) visits: u64,
    pub(crate) worst_visit: Duration,
}

impl Soak {
    pub(crate) fn start(random: &mut Random) -> Self {
        let few_descriptors = Self::draw_few_descriptors(random);
        let kernel = Kernel::builder();
        let kernel = if few_descriptors {
            kernel.wrapper(&["prlimit", FEW_DESCRIPTORS])
        } else {
            kernel
        };
        let tools = tempfile::Builder::new().prefix("papa-soak-").tempdir();
        let tools = tools.unwrap();
        let path = |name: &str| tools.path().join(name).to_str().unwrap().to_owned();
        // Outside of the scratch directory: the kernel has the clock from its start, before there
        // is one.
        let clock = fs::File::create(path("clock")).unwrap();
        clock.write_all_at(&0_i64.to_ne_bytes(), 0).unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/soak/clock.c");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o", &path("clock.so"), source])
            .status();
        assert!(
            compiled.is_ok_and(|status| status.success()),
            "cc builds {source}"
        );
        let copy = PathBuf::from(path("papa"));
        copy_program(&older(), &copy);
        let disk_path = path("disk");
        fs::create_dir(&disk_path).unwrap();
        let disk = Disk::new(&disk_path);
        let mut builder = Whole::builder()
            .kernel(kernel)
            .environment("PAPA_TEST_CLOCK", &path("clock"))
            .environment("LD_PRELOAD", &path("clock.so"))
            .ini(&sections(2, 0, true, &disk_path))
            .side("side.*");
        if let Some(disk) = &disk {
            builder = builder
                .manager_wrapper(&["nsenter", "-m", "-t", &disk.pid])
                .logs(format!("/proc/{}/root{disk_path}", disk.pid).into());
        } else {
            builder = builder.logs(disk_path.clone().into());
        }
        let whole = builder.start();
        let base = whole.ini().replace(&sections(2, 0, true, &disk_path), "");
        Self {
            whole,
            disk,
            clock,
            few_descriptors,
            under_way: Vec::new(),
            deaf: Vec::new(),
            idle: Vec::new(),
            ballast: false,
            locked: false,
            replaced: false,
            logs_gone: 0,
            limited: Vec::new(),
            rings: false,
            base,
            disk_path,
            made: 0,
            copy,
            _tools: tools,
            counts: Counts::default(),
        }
    }

    /// Whether the kernel is one with few descriptors.
    pub(crate) fn draw_few_descriptors(random: &mut Random) -> bool {
        random.below(3) == 0
    }

    /// Draws and does so many steps.
    ///
    /// # Errors
    /// What was wrong, and at which step.
    pub(crate) fn run(&mut self, random: &mut Random, steps: u64) -> Result<(), String> {
        self.make();
        for step in 1..=steps {
            let action = Action::draw(random);
            println!("  {step}: {action:?}");
            self.act(action)
                .map_err(|why| format!("step {step}, {action:?}: {why}"))?;
            self.counts.steps += 1;
            if step % CHECK_EVERY == 0 || step == steps {
                self.check()
                    .map_err(|why| format!("after step {step}:\n{why}"))?;
            }
        }
        self.lose_kernel(random.below(2) == 0)
    }

    /// Keeper and kernel are killed at once, which nobody promises to survive: what is checked
    /// after it is that nothing runs twice and nothing lies. The last thing a run does, because
    /// output and ends are lost.
    fn lose_kernel(&mut self, manager_too: bool) -> Result<(), String> {
        println!("  the kernel is lost, manager too: {manager_too}");
        let before = self.whole.lives();
        let before: Vec<_> = before.into_iter().filter(Life::is_there).collect();
        // Writing to a pipe that nobody has any more would end them.
        for life in &before {
            life.order(self.whole.kernel.directory(), "pause")
                .ok_or_else(|| format!("{} takes no orders", life.source()))?;
        }
        let mut lost = vec![Role::Keeper, Role::Kernel];
        lost.extend(manager_too.then_some(Role::Manager));
        // Standing still, neither can take the other's place.
        for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
            for role in &lost {
                self.whole.signal(*role, signal);
            }
        }
        let pids: Vec<i32> = lost.iter().map(|role| self.whole.pid(*role)).collect();
        let begun = Instant::now();
        while pids.iter().any(|pid| procfs::alive(*pid)) && begun.elapsed() < RECOVERY {
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Some(dead) = before.iter().find(|life| life.wid != 0 && !life.is_there()) {
            return Err(format!("{} died of a lost kernel", dead.source()));
        }
        let asked = Instant::now();
        let status = self.whole.papactl(&["status"]).output();
        let status = status.map_err(|error| error.to_string())?;
        if status.status.code() != Some(1) || asked.elapsed() > SOON {
            return Err(format!(
                "papactl status without a kernel, after {:?}: {status:?}",
                asked.elapsed()
            ));
        }
        let socket = self.whole.kernel.socket_path();
        let endpoint = format!("[circus]\npapa_endpoint = unix:{}\n", socket.display());
        let ini = format!("{endpoint}{}", self.whole.ini());
        self.whole.write_ini(&ini);
        let file = self.whole.kernel.path("whole.ini");
        let up = self.whole.papactl(&["up", &file]).output();
        let up = up.map_err(|error| error.to_string())?;
        if !up.status.success() {
            return Err(format!("papactl up after a lost kernel: {up:?}"));
        }
        println!("  papactl up after {:.1?}", begun.elapsed());
        let now = self.whole.lives();
        let mut still = before
            .iter()
            .filter(|life| life.wid != 0 && life.is_there());
        if let Some(life) = still.next() {
            return Err(format!("{} runs beside its successor", life.source()));
        }
        if let Some(life) = now.iter().find(|life| life.twice) {
            return Err(format!(
                "{} ran beside what it came in place of",
                life.source()
            ));
        }
        let doctor = self.whole.papactl(&["doctor"]).output();
        let doctor = doctor.map_err(|error| error.to_string())?;
        if doctor.status.success() {
            Ok(())
        } else {
            Err(format!("papactl doctor after a lost kernel: {doctor:?}"))
        }
    }

    /// Everybody is let go on and waited for, and everything is looked at.
    fn check(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        if std::mem::take(&mut self.ballast) {
            fs::remove_file(self.ballast_path()).map_err(|error| error.to_string())?;
        }
        if std::mem::take(&mut self.locked) {
            self.set_immutable(false);
        }
        if std::mem::take(&mut self.replaced) {
            fs::remove_dir(self.full_path("full.out"))
                .map_err(|error| format!("the directory in the place of a log: {error}"))?;
        }
        for role in std::mem::take(&mut self.limited) {
            self.limit_files(role, None);
        }
        self.deaf.clear();
        self.idle.clear();
        // Killed in the middle of it: the next one finishes the same writes with a disk as it is.
        if self.whole.has_slow_disk() {
            self.whole.set_slow_disk(None);
            self.whole.kill(Role::Manager);
        }
        self.whole.restore()?;
        self.join()?;
        self.whole.check().map_err(|wrong| wrong.join("\n"))?;
        self.counts.checks += 1;
        self.counts.lines = self.whole.lines_read();
        self.counts.dropped = self.whole.lines().gaps.values().map(|gap| gap.bytes).sum();
        if let Some(visitor) = &self.whole.visitor {
            self.counts.visits = visitor.answered();
            self.counts.worst_visit = visitor.worst();
        }
        println!("  all is well, after {:.1?}", begun.elapsed());
        Ok(())
    }

    /// Waits for what goes on beside.
    pub(crate) fn join(&mut self) -> Result<(), String> {
        let wrong: Vec<String> = self
            .under_way
            .drain(..)
            .filter_map(|thread| thread.join().unwrap_or(Some("it panicked".to_owned())))
            .collect();
        if wrong.is_empty() {
            Ok(())
        } else {
            Err(wrong.join("\n"))
        }
    }

    fn beside(&mut self, run: impl FnOnce() -> Option<String> + Send + 'static) {
        self.under_way.push(std::thread::spawn(run));
    }

    fn act(&mut self, action: Action) -> Result<(), String> {
        match action {
            Action::Burst {
                who,
                stream,
                count,
                length,
                chunk,
            } => self.order_beside(who, format!("burst {stream} {count} {length} {chunk}")),
            Action::Partial { who, stream } => self.order_beside(who, format!("partial {stream}")),
            Action::End { who, how } => self.end(who, how)?,
            Action::Leave { nth } => self.leave(nth)?,
            Action::Background { nth } => self.background(nth)?,
            Action::Swarm {
                nth,
                order,
                verb,
                victim,
            } => self.swarm(nth, order, verb, victim)?,
            Action::Make => self.make(),
            Action::Kill(role) => {
                self.counts.kills += 1;
                self.whole.kill(role);
                if role != Role::Manager {
                    self.whole.wait_roles()?;
                }
            }
            Action::Start => self.whole.restore()?,
            Action::UpgradeKernel(Program::Signal) => {
                self.whole.signal(Role::Kernel, Signal::SIGUSR2);
                self.whole.wait_incarnation()?;
            }
            Action::UpgradeKernel(program) => self.upgrade_kernel(program)?,
            Action::UpgradeManager => self.upgrade_manager()?,
            Action::Reload { terminate } => self.reload(terminate),
            Action::Configure {
                crowd,
                generation,
                extra,
            } => self.configure(crowd, generation, extra)?,
            Action::BadFile(bad) => self.bad_file(bad)?,
            Action::Increase(by) => self.count("incr", by),
            Action::Decrease(by) => self.count("decr", by),
            Action::Reopen => self.whole.signal(Role::Manager, Signal::SIGUSR1),
            Action::Pause { ms } => {
                self.whole.signal(Role::Manager, Signal::SIGSTOP);
                // How long it stands still is the test's input, not a wait for something.
                std::thread::sleep(Duration::from_millis(ms));
                self.whole.signal(Role::Manager, Signal::SIGCONT);
            }
            Action::Stall { bytes } => self.stall(bytes)?,
            Action::Deaf => {
                if let Ok(mut session) = Json::unix(&self.whole.kernel.socket_path()) {
                    let follow = json!({"names": ["circus.*"], "from": "start"});
                    let _ = session.call("output.follow", follow);
                    self.deaf.push(session);
                }
            }
            Action::FullDisk => self.fill_disk()?,
            Action::LockedFile => {
                self.locked = self.disk.is_some() && self.set_immutable(true);
                if !self.locked {
                    skipped("a file that cannot be renamed takes root, and a tmpfs with chattr");
                }
            }
            Action::ReplacedLog => self.replace_log()?,
            Action::LogGone { deleted, reopen } => self.lose_log(deleted, reopen)?,
            Action::DeafListeners => self.deaf_listeners()?,
            Action::FileLimit { role, bytes } => self.low_limit(role, bytes)?,
            Action::OwnLog => {
                let log = fs::metadata(self.whole.kernel.path("manager.log"));
                // Whatever is written behind its end is too much.
                let size = log.map_err(|error| error.to_string())?.len();
                self.low_limit(Role::Manager, size)?;
            }
            Action::IdleSessions => {
                self.whole.restore()?;
                let path = self.whole.kernel.runtime_dir().join("circus.manager.sock");
                let sessions = (0..IDLE_SESSIONS).filter_map(|_| UnixStream::connect(&path).ok());
                self.idle.extend(sessions);
            }
            Action::RemoveRuntimeDirectory => {
                self.whole.restore()?;
                fs::remove_dir_all(self.whole.kernel.runtime_dir())
                    .map_err(|error| format!("the runtime directory stays: {error}"))?;
                // Both make their sockets anew; until then nobody can be asked for anything.
                self.whole.restore()?;
            }
            Action::SlowDisk { ms } => self.slow_disk(ms)?,
            Action::Clock { seconds } => {
                let bytes = seconds.to_ne_bytes();
                self.clock.write_all_at(&bytes, 0).unwrap();
            }
            Action::Exhaust => self.exhaust()?,
        }
        Ok(())
    }

    /// The n-th of these workers; none where there is none, as after a kill in a moment of few.
    pub(crate) fn worker(&self, who: Which) -> Option<papa_harness::whole::Life> {
        let mut living = self.whole.living_like(who.name);
        let count = living.len() as u64;
        (count > 0).then(|| living.swap_remove(usize::try_from(who.nth % count).unwrap()))
    }

    fn order_beside(&mut self, who: Which, order: String) {
        let Some(life) = self.worker(who) else {
            return;
        };
        let directory = self.whole.kernel.directory().to_owned();
        // It may end meanwhile: what it has written is checked in any case.
        self.beside(move || {
            let _ = life.order(&directory, &order);
            None
        });
    }

    fn end(&mut self, who: Which, how: Ending) -> Result<(), String> {
        // Else the burst of one would end within a line.
        self.join()?;
        let Some(life) = self.worker(who) else {
            return Ok(());
        };
        let order = match how {
            Ending::Exit(code) => format!("exit {code}"),
            Ending::Signal(number) => format!("signal {number}"),
        };
        let _ = life.order(self.whole.kernel.directory(), &order);
        Ok(())
    }

    /// Has a worker end that leaves a child behind.
    fn leave(&mut self, nth: u64) -> Result<(), String> {
        self.join()?;
        let name = "crowd";
        let Some(life) = self.worker(Which { name, nth }) else {
            return Ok(());
        };
        let directory = self.whole.kernel.directory();
        if life.order(directory, "leave").is_some() {
            let _ = life.order(directory, "exit 3");
        }
        Ok(())
    }

    /// Has a worker go into the background soon after its start: it is reported, and nobody is
    /// started beside it; when it has ended the watcher goes on. One that comes to it too late has
    /// left something behind, which is ended.
    fn background(&mut self, nth: u64) -> Result<(), String> {
        self.whole.restore()?;
        self.join()?;
        let name = "crowd";
        let Some(before) = self.worker(Which { name, nth }) else {
            return Ok(());
        };
        let directory = self.whole.kernel.directory().to_owned();
        let known: HashSet<i32> = self.whole.lives().iter().map(|life| life.pid).collect();
        let _ = before.order(&directory, "exit 0");
        let begun = Instant::now();
        let life = loop {
            let mut living = self.whole.living(name).into_iter();
            // Under another number perhaps: a lower one may be free.
            let found = living.find(|life| !known.contains(&life.pid));
            match found {
                Some(life) if life.order(&directory, "leave").is_some() => break life,
                _ if begun.elapsed() > RECOVERY => {
                    return Err(format!("nobody came in place of {}", before.source()));
                }
                _ => std::thread::sleep(LOOK_AGAIN),
            }
        };
        let _ = life.order(&directory, "exit 0");
        let mut lives = self.whole.lives().into_iter();
        let now = lives.find(|now| (now.pid, now.ticks) == (life.pid, life.ticks));
        let left = now.map(|now| now.left).unwrap_or_default();
        let is_there = || left.iter().all(|pid| procfs::alive(*pid));
        let is_told = |soak: &Self| {
            let status = soak.whole.ask("status", &json!({"name": name}));
            status.is_some_and(|status| status.to_string().contains("went into the background"))
        };
        while is_there() && !is_told(self) {
            if begun.elapsed() > RECOVERY {
                return Err(format!("{} runs on, and nobody is told", life.source()));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        for pid in left {
            procfs::signal(pid, Signal::SIGKILL);
        }
        Ok(())
    }

    /// Writes more than is kept while nobody takes it.
    fn stall(&mut self, bytes: u64) -> Result<(), String> {
        self.whole.restore()?;
        let who = Which {
            name: "lossy",
            nth: 0,
        };
        let Some(life) = self.worker(who) else {
            return Err("there is no lossy worker".to_owned());
        };
        self.whole.signal(Role::Manager, Signal::SIGSTOP);
        let order = format!("burst out {} 200 8000", bytes / 200);
        let answer = life.order(self.whole.kernel.directory(), &order);
        self.whole.signal(Role::Manager, Signal::SIGCONT);
        answer
            .map(|_| ())
            .ok_or("the writer was not let go on".to_owned())
    }
}

impl Counts {
    /// What two runs did together.
    pub(crate) fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.checks += other.checks;
        self.kills += other.kills;
        self.lines += other.lines;
        self.dropped += other.dropped;
        self.visits += other.visits;
        self.worst_visit = self.worst_visit.max(other.worst_visit);
    }
}
