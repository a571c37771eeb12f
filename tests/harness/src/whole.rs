//! Everything at once: keeper, kernel, manager, workers that number their lines, and those who look
//! on.
//!
//! Owns one whole installation of a test and the checks of the promise: whoever was killed or
//! replaced, [`Whole::restore`] waits until everything is there again, and [`Whole::check`] says
//! what is not as it must be: a worker that died, a line lost, repeated or torn, an exit told twice
//! or not at all, a visitor turned away, a ledger that does not add up, a zombie, a descriptor too
//! many. Leaves to the test what is done, and when.
//!
//! A watcher whose workers are to be checked runs `WORKER NAME [key=value…]`
//! (`tests/python/numbered.py`), NAME being its own. In an INI file `DIR` is the scratch directory,
//! where `DIR/logs` takes the log files.

mod builder;
mod check;
mod lines;
mod lives;
mod witness;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

pub use builder::WholeBuilder;
pub use lines::{Gap, Lines};
pub use lives::{End, Life, Written};
pub use witness::{Listener, Reaps, Visitor};

use super::{Collector, Json, Kernel, binary, private_command, procfs};

/// How long it may take until everything is as it should be again: far above what it needs on a
/// busy machine.
pub const RECOVERY: Duration = Duration::from_secs(60);

/// Pause between two looks while waiting for that.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Who may be killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    Keeper,
    Kernel,
    Manager,
}

impl Role {
    pub const ALL: [Self; 3] = [Self::Keeper, Self::Kernel, Self::Manager];
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Keeper => "keeper",
            Self::Kernel => "kernel",
            Self::Manager => "manager",
        })
    }
}

/// Keeper, kernel, manager and workers of one test.
#[derive(Debug)]
pub struct Whole {
    /// The text the INI file was last written from.
    ini: String,
    environment: Vec<(String, String)>,
    manager_wrapper: Vec<String>,
    /// What a manager that is started now needs for every step with a log file, in milliseconds.
    slow_disk: Option<u64>,
    manager: Option<Child>,
    logs: Vec<PathBuf>,
    /// The client with processes of its own, read only while everything is checked.
    side: Option<Collector>,
    /// How much of each of its streams, by serial, was looked at.
    fed: HashMap<(u64, u64), usize>,
    /// The kernel's when it was last looked at.
    incarnation: u64,
    /// Keeper or kernel that was killed, until it is replaced.
    signalled: Option<(Role, i32)>,
    /// Who was who when everything was last there.
    pids: BTreeMap<Role, i32>,
    lines: Lines,
    /// Log files that are read though they may be deleted.
    deleted: Vec<fs::File>,
    /// Lives whose end was found in the manager's events.
    told: BTreeSet<(i32, u64)>,
    /// The manager, which keeps its events in memory, was killed or replaced since the last check.
    manager_disturbed: bool,
    /// A worker may have ended that nobody could wait for, and whose status the system does not
    /// keep.
    unknown_ends: bool,
    /// Descriptors of keeper and kernel, when there was so much to hold.
    descriptors: BTreeMap<String, [Vec<(i32, String)>; 2]>,
    visits: u64,
    listener: Listener,
    pub visitor: Option<Visitor>,
    // Last: its drop ends every process, after those who look on have stopped.
    pub kernel: Kernel,
}

impl Whole {
    /// With the two watchers and nothing else.
    #[track_caller]
    pub fn start() -> Self {
        Self::builder().start()
    }

    pub fn builder() -> WholeBuilder {
        WholeBuilder::default()
    }

    /// Pid of one of the three when everything was last there: it stays what it was while they are
    /// stopped or killed.
    ///
    /// # Panics
    /// Never after a start.
    pub fn pid(&self, role: Role) -> i32 {
        self.pids[&role]
    }

    /// Ends one of the three with SIGKILL, and returns at once. Does nothing where it is the
    /// manager, and that is gone.
    pub fn kill(&mut self, role: Role) {
        self.signal(role, Signal::SIGKILL);
        match (role, &mut self.manager) {
            (Role::Manager, Some(manager)) => {
                let _ = manager.wait();
            }
            (Role::Manager, None) => {}
            (Role::Keeper | Role::Kernel, _) => self.signalled = Some((role, self.pid(role))),
        }
        self.collect();
    }

    /// Sends one of the three a signal.
    pub fn signal(&mut self, role: Role, signal: Signal) {
        self.collect();
        if role != Role::Manager || self.manager.is_some() {
            procfs::signal(self.pid(role), signal);
        }
    }

    /// Has every manager that is started from now on find its disk slow, by so many milliseconds a
    /// step, or as it is. Only builds with debug assertions do.
    pub fn set_slow_disk(&mut self, ms: Option<u64>) {
        self.slow_disk = ms;
    }

    /// Whether the next manager is to find its disk slow.
    pub fn has_slow_disk(&self) -> bool {
        self.slow_disk.is_some()
    }

    /// Waits until there are keeper and kernel again after one of them was killed.
    ///
    /// # Errors
    /// What is missing after [`RECOVERY`].
    pub fn wait_roles(&mut self) -> Result<(), String> {
        self.wait(|whole| whole.missing_roles().map(|_| ()))
    }

    /// Waits until the kernel that was last seen here has started anew.
    ///
    /// # Errors
    /// What is missing after [`RECOVERY`].
    pub fn wait_incarnation(&mut self) -> Result<(), String> {
        let before = self.incarnation;
        self.wait(|whole| {
            whole.missing_roles()?;
            if whole.incarnation == before {
                return Err(format!("it is still incarnation {before}"));
            }
            Ok(())
        })
    }

    /// The manager's life was cut, also where that was not done by [`Whole::kill`]: it may take
    /// events along.
    pub fn manager_was_disturbed(&mut self) {
        self.manager_disturbed = true;
    }

    /// Kernel and keeper have died one after the other: who was a child of the first is nobody's
    /// child then, and Linux before 6.15 does not tell how it ended.
    pub fn workers_were_orphaned(&mut self) {
        let features = self.kernel.json().hello["features"].clone();
        let told = features
            .as_array()
            .is_some_and(|features| features.iter().any(|name| name == "pidfd_info"));
        self.unknown_ends |= !told;
    }

    /// Waits for those of our own children that have ended.
    fn collect(&mut self) {
        self.kernel.collect();
        if let Some(manager) = &mut self.manager
            && !matches!(manager.try_wait(), Ok(None))
        {
            self.manager = None;
            self.manager_disturbed = true;
        }
    }

    /// Starts the manager if it is gone, as a service manager would, and waits until everything is
    /// there and serves.
    ///
    /// # Errors
    /// What is missing after [`RECOVERY`].
    pub fn restore(&mut self) -> Result<(), String> {
        self.wait(|whole| {
            whole.start_manager()?;
            whole.missing()
        })
    }

    /// Starts the manager if it is gone, and waits for nothing.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_manager(&mut self) -> Result<(), String> {
        self.collect();
        if self.manager.is_none() {
            let child = self.manager_command().spawn();
            self.manager = Some(child.map_err(|error| format!("no manager: {error}"))?);
        }
        Ok(())
    }

    fn wait(
        &mut self,
        mut missing: impl FnMut(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        let deadline = Instant::now() + RECOVERY;
        loop {
            self.collect();
            let missing = match missing(self) {
                Ok(()) => return Ok(()),
                Err(missing) => missing,
            };
            if Instant::now() > deadline {
                return Err(format!("after {RECOVERY:?} still {missing}"));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Keeper and kernel, or which of them is not there yet.
    fn missing_roles(&mut self) -> Result<(i32, i32), String> {
        let status = self.kernel.try_status().ok_or("no kernel answers")?;
        let keeper = alive(&status["keeper"]).ok_or("no keeper")?;
        let kernel = alive(&status["pid"]).ok_or("the kernel is gone")?;
        match self.signalled {
            Some((Role::Keeper, pid)) if pid == keeper => return Err("the keeper dies".to_owned()),
            Some((Role::Kernel, pid)) if pid == kernel => return Err("the kernel dies".to_owned()),
            _ => self.signalled = None,
        }
        self.incarnation = status["incarnation"].as_u64().unwrap_or_default();
        self.kernel.remember_roles();
        self.pids.insert(Role::Keeper, keeper);
        self.pids.insert(Role::Kernel, kernel);
        Ok((keeper, kernel))
    }

    /// Whether the kernel of now has the manager's connection. Not by the kernel's pid as the
    /// manager knows it: a connection outlives a kernel that is killed once it has handed its
    /// sessions over.
    fn is_claimed_by(&self, manager: i32) -> bool {
        let Ok(mut session) = Json::unix(&self.kernel.socket_path()) else {
            return false;
        };
        let Ok(Ok(listed)) = session.call("claim.list", json!({})) else {
            return false;
        };
        let holder = format!("pid {manager},");
        listed["claims"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|claim| {
                let by = claim["holder"].as_str();
                claim["live"] == true && by.is_some_and(|by| by.contains(&holder))
            })
    }

    /// What is not there yet.
    fn missing(&mut self) -> Result<(), String> {
        self.missing_roles()?;
        let status = self.ask("status", &json!({})).ok_or("no manager answers")?;
        let manager = &status["manager"];
        if !manager["kernel_pid"].is_number() {
            return Err("the manager has no kernel".to_owned());
        }
        let manager = alive(&manager["pid"]).ok_or("the manager is gone")?;
        if !self.is_claimed_by(manager) {
            return Err("the manager has not claimed its namespace of this kernel".to_owned());
        }
        for watcher in status["watchers"].as_array().into_iter().flatten() {
            let workers = watcher["workers"].as_array().map_or(0, Vec::len) as u64;
            let settled = match watcher["state"].as_str() {
                Some("active") => Some(workers) == watcher["numprocesses"].as_u64(),
                Some("stopped") => workers == 0,
                _ => false,
            };
            if !settled {
                return Err(format!("on the way: {watcher}"));
            }
        }
        self.pids.insert(Role::Manager, manager);
        Ok(())
    }

    fn manager_command(&self) -> Command {
        let directory = self.kernel.directory();
        let program = binary("papa-manager");
        let mut command = match self.manager_wrapper.split_first() {
            None => private_command(&program, directory),
            Some((first, rest)) => {
                let mut command = private_command(Path::new(first), directory);
                command.args(rest).arg(&program);
                command
            }
        };
        command
            .current_dir(directory)
            .envs(self.environment.iter().map(|(key, value)| (key, value)))
            .envs(
                self.slow_disk
                    .map(|ms| ("PAPA_TEST_SLOW_DISK_MS", ms.to_string())),
            )
            .args(["--debug", "--log-file", &self.kernel.path("manager.log")])
            .arg("--kernel")
            .arg(self.kernel.socket_path())
            .arg(self.kernel.path("whole.ini"));
        command
    }

    /// `papactl` for this installation.
    pub fn papactl(&self, words: &[&str]) -> Command {
        let mut command = private_command(&binary("papactl"), self.kernel.directory());
        command.current_dir(self.kernel.directory()).args(words);
        command
    }

    /// The INI file's text as it was given.
    pub fn ini(&self) -> &str {
        &self.ini
    }

    /// Writes the INI file anew.
    ///
    /// # Panics
    /// When the scratch directory takes no file.
    pub fn write_ini(&mut self, ini: &str) {
        let directory = self.kernel.path("");
        let directory = directory.trim_end_matches('/');
        let text = ini
            .replace("WORKER", &worker_command(directory))
            .replace("DIR", directory);
        fs::write(self.kernel.directory().join("whole.ini"), text).expect("the INI file is ours");
        ini.clone_into(&mut self.ini);
    }

    /// Sends the manager a request; none when nobody answers.
    pub fn ask(&self, command: &str, properties: &Value) -> Option<Value> {
        let path = self.kernel.runtime_dir().join("circus.manager.sock");
        let mut stream = UnixStream::connect(path).ok()?;
        stream.set_read_timeout(Some(RECOVERY)).ok()?;
        let request = json!({"id": 1, "command": command, "properties": properties});
        writeln!(stream, "{request}").ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok()?;
        serde_json::from_str(&line).ok()
    }

    /// Port of one of the manager's sockets.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn port(&self, name: &str) -> u16 {
        let names = json!({"names": [format!("circus.{name}")]});
        let listed = self.kernel.json().ok("socket.list", names);
        let port = listed["sockets"][0]["port"].as_u64();
        port.and_then(|port| u16::try_from(port).ok())
            .unwrap_or_else(|| panic!("socket {name} has a port: {listed}"))
    }

    /// Every numbered worker there ever was.
    pub fn lives(&self) -> Vec<Life> {
        Life::all(self.kernel.directory())
    }

    /// The numbered workers of a watcher that have not said that they end, by number.
    pub fn living(&self, name: &str) -> Vec<Life> {
        let mut found = self.lives();
        found.retain(|life| life.name == name && life.end.is_none());
        found.sort_by_key(|life| life.wid);
        found
    }

    /// The same of all watchers and clients' processes whose names begin so.
    pub fn living_like(&self, beginning: &str) -> Vec<Life> {
        let mut found = self.lives();
        found.retain(|life| life.name.starts_with(beginning) && life.end.is_none());
        found
    }

    /// The command of a numbered worker, for a client that makes one itself.
    pub fn worker_argv(&self, name: &str) -> Vec<String> {
        let directory = self.kernel.path("");
        let command = worker_command(directory.trim_end_matches('/'));
        let words = command.split(' ').map(str::to_owned);
        words.chain([name.to_owned()]).collect()
    }

    /// Lines found in the logs so far, as of the last check.
    pub fn lines_read(&self) -> u64 {
        self.lines.sources.values().map(|read| read.next).sum()
    }

    /// Whether some of a log file was read so far: then all that is older was.
    pub fn has_read(&self, path: &str) -> bool {
        fs::metadata(path).is_ok_and(|file| self.lines.knows(file.ino()))
    }

    /// Has a log file that is about to be deleted read on all the same, before all others.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn read_on(&mut self, path: &str) -> std::io::Result<()> {
        self.deleted.push(fs::File::open(path)?);
        Ok(())
    }

    /// What is in the logs, as of the last check.
    pub fn lines(&self) -> &Lines {
        &self.lines
    }

    /// Where the log files are.
    pub fn logs(&self) -> PathBuf {
        self.kernel.directory().join("logs")
    }

    /// Keeps the scratch directory, and gives its path.
    pub fn keep(&mut self) -> PathBuf {
        self.kernel.keep();
        self.kernel.directory().to_owned()
    }
}

/// The pid in a reply, if such a process lives.
fn alive(value: &Value) -> Option<i32> {
    let pid = i32::try_from(value.as_i64()?).ok()?;
    procfs::alive(pid).then_some(pid)
}

/// What `WORKER` stands for.
fn worker_command(directory: &str) -> String {
    format!(
        "python3 -SE {}/../python/numbered.py {directory}",
        env!("CARGO_MANIFEST_DIR")
    )
}

impl Drop for Whole {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- kept in {}", self.keep().display());
        }
        // Reaped here; the kernel's drop ends whoever is left.
        if let Some(mut manager) = self.manager.take() {
            let _ = manager.kill();
            let _ = manager.wait();
        }
    }
}
