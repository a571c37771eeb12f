//! Everything at once: keeper, kernel, manager, workers that number their lines, and those who look on.
//!
//! Owns one whole installation of a test and the checks of the promise: whoever was killed or replaced, [`Whole::restore`]
//! waits until everything is there again, and [`Whole::check`] says what is not as it must be: a worker that died, a line
//! lost, repeated or torn, an exit told twice or not at all, a visitor turned away, a ledger that does not add up, a zombie, a
//! descriptor too many. Leaves to the test what is done, and when.
//!
//! A watcher whose workers are to be checked runs `WORKER NAME [key=value…]` (`tests/python/numbered.py`), NAME being its own.
//! In an INI file `DIR` is the scratch directory, where `DIR/logs` takes the log files.

mod check;
mod lines;
mod lives;
mod witness;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

pub use lines::Lines;
pub use lives::{End, Life, Written};
pub use witness::{Listener, Reaps, Visitor};

use super::{Kernel, KernelBuilder, PATIENCE, binary, private_command, procfs};

/// How long it may take until everything is as it should be again: far above what it needs on a busy machine.
pub const RECOVERY: Duration = Duration::from_secs(60);

/// Pause between two looks while waiting for that.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The watchers every installation has: `web` serves and is reloaded, `steady` is never touched, and its workers share a file.
const WATCHERS: &str = "\
[socket:web]
host = 127.0.0.1
port = 0
blocking = no

[watcher:web]
cmd = WORKER web listen=$(circus.sockets.web)
copy_env = true
use_sockets = true
numprocesses = 2
ready = notify
stdout_stream.filename = DIR/logs/web.out
stdout_stream.max_bytes = 100000
stdout_stream.backup_count = 9000
stderr_stream.filename = DIR/logs/web.err

[watcher:steady]
cmd = WORKER steady
copy_env = true
ready = notify
numprocesses = 2
stdout_stream.filename = DIR/logs/steady.log
stdout_stream.max_bytes = 150000
stdout_stream.backup_count = 9000
stdout_stream.time_format = %H:%M:%S
stderr_stream.filename = DIR/logs/steady.log
";

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

/// How to start one.
#[derive(Debug, Default)]
pub struct WholeBuilder {
    kernel: KernelBuilder,
    ini: String,
    without_watchers: bool,
    environment: Vec<(String, String)>,
}

impl WholeBuilder {
    /// A kernel with something special about it.
    #[must_use]
    pub fn kernel(mut self, kernel: KernelBuilder) -> Self {
        self.kernel = kernel;
        self
    }

    /// More sections of the INI file; `DIR` and `WORKER` are replaced.
    #[must_use]
    pub fn ini(mut self, ini: &str) -> Self {
        self.ini.push_str(ini);
        self
    }

    /// Only the sections given: no `web`, no `steady`, no visitor.
    #[must_use]
    pub fn without_watchers(mut self) -> Self {
        self.without_watchers = true;
        self
    }

    /// A variable of kernel and manager.
    #[must_use]
    pub fn environment(mut self, key: &str, value: &str) -> Self {
        self.environment.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Starts everything, and waits until it is there.
    ///
    /// # Panics
    /// When it does not come up.
    #[track_caller]
    pub fn start(mut self) -> Whole {
        for (key, value) in &self.environment {
            self.kernel = self.kernel.environment(key, value);
        }
        let kernel = self.kernel.start();
        for name in ["logs", "lives", "orders"] {
            fs::create_dir(kernel.directory().join(name)).expect("the scratch directory is empty");
        }
        let watchers = if self.without_watchers { "" } else { WATCHERS };
        let mut whole = Whole {
            ini: format!("{watchers}\n{}", self.ini),
            environment: self.environment,
            manager: None,
            pids: BTreeMap::new(),
            lines: Lines::default(),
            told: BTreeSet::new(),
            manager_disturbed: false,
            descriptors: BTreeMap::new(),
            visits: 0,
            listener: Listener::start(&kernel.runtime_dir().join("circus.manager.sock")),
            visitor: None,
            kernel,
        };
        let ini = whole.ini.clone();
        whole.write_ini(&ini);
        if let Err(why) = whole.restore() {
            panic!("it does not come up: {why}");
        }
        if !self.without_watchers {
            whole.visitor = Some(Visitor::start(whole.port("web")));
        }
        whole
    }
}

/// Keeper, kernel, manager and workers of one test.
#[derive(Debug)]
pub struct Whole {
    /// The text the INI file was last written from.
    ini: String,
    environment: Vec<(String, String)>,
    manager: Option<Child>,
    /// Who was who when everything was last there.
    pids: BTreeMap<Role, i32>,
    lines: Lines,
    /// Lives whose end was found in the manager's events.
    told: BTreeSet<(i32, u64)>,
    /// The manager, which keeps its events in memory, was killed or replaced since the last check.
    manager_disturbed: bool,
    /// Descriptors of keeper and kernel, when there was so much to hold.
    descriptors: BTreeMap<String, (usize, usize)>,
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

    /// Pid of one of the three when everything was last there: it stays what it was while they are stopped or killed.
    ///
    /// # Panics
    /// Never after a start.
    pub fn pid(&self, role: Role) -> i32 {
        self.pids[&role]
    }

    /// Ends one of the three with SIGKILL, and returns at once.
    pub fn kill(&mut self, role: Role) {
        procfs::signal(self.pid(role), Signal::SIGKILL);
        self.collect();
    }

    /// Sends one of the three a signal.
    pub fn signal(&mut self, role: Role, signal: Signal) {
        procfs::signal(self.pid(role), signal);
        self.collect();
    }

    /// The manager's life was cut, also where that was not done by [`Whole::kill`]: it may take events along.
    pub fn manager_was_disturbed(&mut self) {
        self.manager_disturbed = true;
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

    /// Starts the manager if it is gone, as a service manager would, and waits until everything is there and serves.
    ///
    /// # Errors
    /// What is missing after [`RECOVERY`].
    pub fn restore(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + RECOVERY;
        loop {
            self.collect();
            if self.manager.is_none() {
                let child = self.manager_command().spawn();
                self.manager = Some(child.map_err(|error| format!("no manager: {error}"))?);
            }
            let missing = match self.missing() {
                Ok(()) => return Ok(()),
                Err(missing) => missing,
            };
            if Instant::now() > deadline {
                return Err(format!("after {RECOVERY:?} still {missing}"));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// What is not there yet.
    fn missing(&mut self) -> Result<(), String> {
        let kernel = self.kernel.try_status().ok_or("no kernel answers")?;
        let alive = |value: &Value| {
            let pid = i32::try_from(value.as_i64().unwrap_or_default()).unwrap_or_default();
            Some(pid).filter(|pid| procfs::alive(*pid))
        };
        let keeper = alive(&kernel["keeper"]).ok_or("no keeper")?;
        let kernel = alive(&kernel["pid"]).ok_or("the kernel is gone")?;
        let status = self.ask("status", &json!({})).ok_or("no manager answers")?;
        let manager = &status["manager"];
        if manager["kernel_pid"].as_i64() != Some(i64::from(kernel)) {
            return Err(format!("the manager has kernel {}", manager["kernel_pid"]));
        }
        let manager = alive(&manager["pid"]).ok_or("the manager is gone")?;
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
        self.kernel.remember_roles();
        self.pids = [
            (Role::Keeper, keeper),
            (Role::Kernel, kernel),
            (Role::Manager, manager),
        ]
        .into();
        Ok(())
    }

    fn manager_command(&self) -> Command {
        let directory = self.kernel.directory();
        let mut command = private_command(&binary("papa-manager"), directory);
        command
            .current_dir(directory)
            .envs(self.environment.iter().map(|(key, value)| (key, value)))
            .args(["--debug", "--log-file", &self.kernel.path("manager.log")])
            .arg("--kernel")
            .arg(self.kernel.socket_path())
            .arg("whole.ini");
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

    /// Lines found in the logs so far, as of the last check.
    pub fn lines_read(&self) -> u64 {
        self.lines.sources.values().map(|read| read.next).sum()
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

/// What `WORKER` stands for.
fn worker_command(directory: &str) -> String {
    format!(
        "python3 -SE {}/../tests/python/numbered.py {directory}",
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
