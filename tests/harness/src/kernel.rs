//! One kernel of a test's own, with everything below it killed at the end.

use std::collections::HashSet;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::scratch::{Identity, MARK, below, end_everything};
use super::{Classic, Json, procfs, wait_for};

/// The user that owns nothing.
const NOBODY: u32 = 65_534;

/// Path of a program of this workspace, in the target folder that the test itself is in.
///
/// Cargo names it (`CARGO_BIN_EXE_…`) only to the tests of the package that has it.
///
/// # Panics
/// When it has not been built.
pub fn binary(name: &str) -> PathBuf {
    let path = profile_folder().join(name);
    assert!(
        path.exists(),
        "{} is missing: build the workspace first (`cargo build --workspace`)",
        path.display()
    );
    path
}

/// `target/debug`, or wherever this test was built.
fn profile_folder() -> PathBuf {
    let test = std::env::current_exe().expect("a test binary knows its path");
    test.parent()
        .and_then(Path::parent)
        .expect("test binaries live in PROFILE/deps")
        .to_owned()
}

/// Cargo's `target`: what takes long to make is kept there from one run to the next.
pub(crate) fn target_folder() -> PathBuf {
    let profile = profile_folder();
    profile
        .parent()
        .expect("profiles are in the target folder")
        .to_owned()
}

/// A port nobody has, and nobody gets by chance: below those the system deals out, and another one
/// each time.
///
/// # Panics
/// When the loopback interface has none.
pub fn free_port() -> u16 {
    const PORTS: std::ops::Range<u32> = 21_000..32_000;
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let all = PORTS.end - PORTS.start;
    // Programs of tests that run side by side begin at different places.
    let begin = std::process::id().wrapping_mul(7919);
    (0..all)
        .map(|_| begin.wrapping_add(NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)))
        .filter_map(|number| u16::try_from(PORTS.start + number % all).ok())
        .find(|port| is_free(*port))
        .expect("the loopback interface has a free port")
}

/// Whether a port can be bound. The socket for it does not listen: a child of another test has a copy
/// until its exec, and a copy that listened would keep the port from the program it is meant for.
fn is_free(port: u16) -> bool {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .expect("a socket is made");
    setsockopt(&socket, sockopt::ReuseAddr, &true).expect("an address may be used again");
    bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port)).is_ok()
}

/// A command whose runtime directory is private to a test.
pub fn private_command(program: &Path, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env("XDG_RUNTIME_DIR", directory)
        .env(MARK, directory)
        .env_remove("LISTEN_FDS")
        .env_remove("LISTEN_PID")
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null());
    command
}

/// How to start a kernel.
#[derive(Debug, Default)]
pub struct KernelBuilder {
    arguments: Vec<String>,
    port: Option<u16>,
    program: Option<PathBuf>,
    wrapper: Vec<String>,
    environment: Vec<(String, String)>,
    nobody: bool,
}

impl KernelBuilder {
    /// One more command line argument.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// A port of the test's choosing; by default the system chooses.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Another binary than the one cargo built.
    #[must_use]
    pub fn program(mut self, program: &Path) -> Self {
        self.program = Some(program.to_owned());
        self
    }

    /// A program that starts the kernel, such as `prlimit --nofile=64`.
    #[must_use]
    pub fn wrapper(mut self, words: &[&str]) -> Self {
        self.wrapper = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// A variable of its environment.
    #[must_use]
    pub fn environment(mut self, key: &str, value: &str) -> Self {
        self.environment.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Runs it as the user nobody, which takes root.
    #[must_use]
    pub fn nobody(mut self) -> Self {
        self.nobody = true;
        self
    }

    /// Starts it and waits until it serves.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn start(mut self) -> Kernel {
        let directory = tempfile::Builder::new()
            .prefix("papa-test-")
            .tempdir()
            .expect("a temporary directory can be made");
        let mut program = self.program.take().unwrap_or_else(|| binary("papa"));
        if self.nobody {
            // The build folder may be out of that user's reach.
            let copy = directory.path().join("papa-copy");
            super::copy_program(&program, &copy);
            program = copy;
            std::os::unix::fs::chown(directory.path(), Some(NOBODY), Some(NOBODY))
                .expect("root may give the scratch folder away");
            self.wrapper = vec![
                "setpriv".to_owned(),
                format!("--reuid={NOBODY}"),
                format!("--regid={NOBODY}"),
                "--clear-groups".to_owned(),
            ];
        }
        let mut command = match self.wrapper.split_first() {
            None => private_command(&program, directory.path()),
            Some((first, rest)) => {
                let mut command = private_command(Path::new(first), directory.path());
                command.args(rest).arg(&program);
                command
            }
        };
        let log = fs::File::create(directory.path().join("kernel.log"))
            .expect("the kernel's log can be made");
        let errors = log.try_clone().expect("a descriptor can be duplicated");
        let child = command
            .envs(self.environment)
            .arg("--port")
            .arg(self.port.unwrap_or(0).to_string())
            .args(&self.arguments)
            .stdout(log)
            .stderr(errors)
            .spawn()
            .expect("the kernel can be started");
        let started = i32::try_from(child.id()).expect("a pid fits");
        let started_identity = Identity::of(started);
        let mut kernel = Kernel {
            started,
            child,
            port: 0,
            seen: started_identity.into_iter().collect(),
            directory,
        };
        kernel.wait_until_serving();
        kernel
    }
}

/// What starts a program below a limit on file size that it cannot raise.
#[must_use]
pub fn below_file_limit(kib: u32) -> Vec<String> {
    let limit = format!("ulimit -f {kib}; exec \"$@\"");
    let mut words = vec!["bash".to_owned(), "-c".to_owned(), limit, "bash".to_owned()];
    if nix::unistd::geteuid().is_root() {
        let powerless = ["setpriv", "--bounding-set=-sys_resource"];
        words.splice(0..0, powerless.map(str::to_owned));
    }
    words
}

/// A running kernel.
#[derive(Debug)]
pub struct Kernel {
    child: Child,
    /// The pid of the process that was started: the first keeper.
    started: i32,
    port: u16,
    /// Everything that was once keeper or kernel, for the clean-up: pids alone may mean somebody
    /// else by then.
    seen: HashSet<Identity>,
    directory: TempDir,
}

impl Kernel {
    /// A kernel with nothing special about it.
    ///
    /// # Panics
    /// When it does not serve in time.
    #[track_caller]
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// A kernel with arguments.
    pub fn builder() -> KernelBuilder {
        KernelBuilder::default()
    }

    #[track_caller]
    fn wait_until_serving(&mut self) {
        let runtime = self.runtime_dir();
        let port = wait_for("the kernel has made its unix socket", || {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("the kernel ended at once, {status}\n{}", self.log());
            }
            fs::read_dir(&runtime).ok()?.find_map(|entry| {
                let name = entry.ok()?.file_name();
                name.to_str()?.strip_suffix(".sock")?.parse().ok()
            })
        });
        self.port = port;
        let status = wait_for("the kernel answers", || self.try_status());
        self.remember(&status);
    }

    /// The TCP port it serves.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its scratch directory; gone at the end.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A path below the scratch directory, as text.
    ///
    /// # Panics
    /// When the temporary directory's name is not UTF-8.
    pub fn path(&self, name: &str) -> String {
        let path = self.directory.path().join(name);
        path.to_str().expect("the path is UTF-8").to_owned()
    }

    /// Where its sockets are.
    pub fn runtime_dir(&self) -> PathBuf {
        self.directory.path().join("papa")
    }

    /// Its unix socket.
    pub fn socket_path(&self) -> PathBuf {
        self.runtime_dir().join(format!("{}.sock", self.port))
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read(self.directory.path().join("kernel.log")).map_or_else(
            |error| error.to_string(),
            |bytes| String::from_utf8_lossy(&bytes).into_owned(),
        )
    }

    /// A classic session over TCP.
    #[track_caller]
    pub fn classic(&self) -> Classic {
        Classic::tcp(self.port)
    }

    /// A JSON session over the unix socket.
    ///
    /// # Panics
    /// When nobody answers.
    #[track_caller]
    pub fn json(&self) -> Json {
        Json::unix(&self.socket_path()).expect("the kernel speaks JSON")
    }

    /// `status`, when somebody answers.
    pub fn try_status(&self) -> Option<Value> {
        let mut session = Json::unix(&self.socket_path()).ok()?;
        session.call("status", json!({})).ok()?.ok()
    }

    fn remember(&mut self, status: &Value) {
        for key in ["pid", "keeper"] {
            if let Some(pid) = status[key].as_i64() {
                let pid = i32::try_from(pid).unwrap_or_default();
                self.seen.extend(Identity::of(pid));
            }
        }
    }

    /// Notes who keeper and kernel are now, if they answer: everything that was once either is
    /// ended with the test.
    pub fn remember_roles(&mut self) {
        if let Some(status) = self.try_status() {
            self.remember(&status);
        }
    }

    /// Waits for the process that was started, if it has ended.
    pub fn collect(&mut self) {
        let _ = self.child.try_wait();
    }

    /// Leaves the scratch directory where it is at the end.
    pub fn keep(&mut self) {
        self.directory.disable_cleanup(true);
    }

    /// `status`, waiting while the kernel is away.
    ///
    /// # Panics
    /// When it does not answer in time.
    #[track_caller]
    pub fn status(&mut self) -> Value {
        let status = wait_for("the kernel answers", || self.try_status());
        self.remember(&status);
        status
    }

    /// The pid of the kernel process now.
    #[track_caller]
    pub fn pid(&mut self) -> i32 {
        pid_of(&self.status(), "pid")
    }

    /// The pid of the keeper process now.
    #[track_caller]
    pub fn keeper(&mut self) -> i32 {
        pid_of(&self.status(), "keeper")
    }

    /// Kills the kernel process and waits until another serves.
    ///
    /// # Panics
    /// When none does.
    #[track_caller]
    pub fn kill_kernel(&mut self) {
        let before = self.status();
        procfs::signal(pid_of(&before, "pid"), Signal::SIGKILL);
        self.wait_for_successor(&before);
    }

    /// Kills the keeper process and waits until the roles are filled again.
    ///
    /// # Panics
    /// When they are not.
    #[track_caller]
    pub fn kill_keeper(&mut self) {
        let before = self.status();
        let keeper = pid_of(&before, "keeper");
        procfs::signal(keeper, Signal::SIGKILL);
        if keeper == self.started {
            // Ours to wait for; the status says nothing new.
            let _ = self.child.wait();
        }
        self.wait_for_successor(&before);
    }

    /// Asks for a re-exec and waits until it has happened.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn upgrade(&mut self) {
        let before = self.status();
        procfs::signal(pid_of(&before, "pid"), Signal::SIGUSR2);
        self.wait_for_successor(&before);
    }

    #[track_caller]
    fn wait_for_successor(&mut self, before: &Value) {
        let status = wait_for("a recovered kernel serves", || {
            let now = self.try_status()?;
            let changed = ["pid", "keeper", "incarnation"]
                .iter()
                .any(|key| now[*key] != before[*key]);
            let filled = ["pid", "keeper"]
                .iter()
                .all(|key| now[*key].as_i64().is_some_and(is_alive));
            (changed && filled).then_some(now)
        });
        self.remember(&status);
    }

    /// Waits until the process that was started has ended, and gives its exit code.
    ///
    /// # Panics
    /// When it does not end in time.
    #[track_caller]
    pub fn wait_exit(&mut self) -> Option<i32> {
        let child = &mut self.child;
        let status = wait_for("the daemon has ended", || child.try_wait().ok().flatten());
        status.code()
    }

    /// Every process of this test that is alive, but for the one asking.
    pub fn processes(&self) -> HashSet<i32> {
        below(self.directory.path(), &self.seen)
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "--- log of the kernel on port {}\n{}---",
                self.port,
                self.log()
            );
        }
        end_everything(self.directory.path(), &self.seen);
        let _ = self.child.wait();
    }
}

fn is_alive(pid: i64) -> bool {
    i32::try_from(pid).is_ok_and(procfs::alive)
}

#[track_caller]
fn pid_of(status: &Value, key: &str) -> i32 {
    let pid = status[key]
        .as_i64()
        .unwrap_or_else(|| panic!("status has {key}: {status}"));
    i32::try_from(pid).expect("a pid fits")
}
