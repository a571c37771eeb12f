//! A manager on a kernel, both of one test's own.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use papa_harness::{
    Failpoints, Kernel, KernelBuilder, below_file_limit, binary, private_command, procfs, wait_for,
    wait_until,
};

/// How a manager makes way for the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Succession {
    /// By SIGKILL.
    Killed,
    /// By `upgrade`.
    Upgraded,
}

/// Both ways.
pub(crate) const SUCCESSIONS: [Succession; 2] = [Succession::Killed, Succession::Upgraded];

/// A kernel, a manager and the INI file it runs.
#[derive(Debug)]
pub(crate) struct Stack {
    pub(crate) kernel: Kernel,
    manager: Child,
    /// The manager's standard output, where it is a socket of the test's, and what came from it.
    output: Option<(UnixStream, Mutex<Vec<u8>>)>,
}

impl Stack {
    /// Starts both. `ini` may say `DIR` for the scratch directory.
    #[track_caller]
    pub(crate) fn start(ini: &str) -> Self {
        let kernel = prepare(ini);
        let manager = spawn(&mut manager_command(&kernel));
        let stack = Self {
            kernel,
            manager,
            output: None,
        };
        stack.wait_attached();
        stack
    }

    /// The same, with a kernel that has something special about it.
    #[track_caller]
    pub(crate) fn start_on(kernel: KernelBuilder, ini: &str) -> Self {
        Self::attach(prepare_on(kernel, ini), |_| {})
    }

    /// The same, after something else has been done with the kernel and the file.
    #[track_caller]
    pub(crate) fn start_after(ini: &str, before: impl FnOnce(&Kernel)) -> Self {
        Self::attach(prepare(ini), before)
    }

    /// The same, on a kernel that was started below a limit on file size that it cannot raise.
    #[track_caller]
    pub(crate) fn start_below_file_limit(ini: &str, kib: u32) -> Self {
        let wrapper = below_file_limit(kib);
        let words: Vec<&str> = wrapper.iter().map(String::as_str).collect();
        Self::start_on(Kernel::builder().wrapper(&words), ini)
    }

    #[track_caller]
    fn attach(kernel: Kernel, before: impl FnOnce(&Kernel)) -> Self {
        before(&kernel);
        let manager = spawn(&mut manager_command(&kernel));
        let stack = Self {
            kernel,
            manager,
            output: None,
        };
        stack.wait_attached();
        stack
    }

    /// The same, with a socket as the manager's standard output.
    #[track_caller]
    pub(crate) fn start_with_output(ini: &str) -> Self {
        let kernel = prepare(ini);
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let output = Stdio::from(OwnedFd::from(theirs));
        let manager = spawn(manager_command(&kernel).stdout(output));
        let stack = Self {
            kernel,
            manager,
            output: Some((ours, Mutex::default())),
        };
        stack.wait_attached();
        stack
    }

    /// The same, with one more variable in the manager's environment.
    #[track_caller]
    pub(crate) fn start_with(ini: &str, variable: (&str, &str)) -> Self {
        let kernel = prepare(ini);
        let manager = spawn(manager_command(&kernel).env(variable.0, variable.1));
        let stack = Self {
            kernel,
            manager,
            output: None,
        };
        stack.wait_attached();
        stack
    }

    /// What the manager has written to its standard output so far.
    pub(crate) fn own_output(&self) -> String {
        let Some((socket, text)) = &self.output else {
            return String::new();
        };
        let mut text = text.lock().unwrap();
        // Ends with "would block"; what came before is kept.
        let _ = (&mut &*socket).read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Starts the manager again and waits for nothing.
    pub(crate) fn spawn_manager(&mut self) {
        self.manager = spawn(&mut manager_command(&self.kernel));
    }

    /// The same, and it stops itself where it reaches the failpoint for the n-th time, which may
    /// come at any time or never.
    pub(crate) fn start_manager_to_stop_at(&mut self, failpoint: &str, time: u64) {
        let failpoints = self.failpoints();
        failpoints.clear();
        failpoints.arm(failpoint, time, "manager");
        let mut command = manager_command(&self.kernel);
        self.manager = spawn(failpoints.put_into(&mut command));
    }

    /// Where a manager started so looks.
    pub(crate) fn failpoints(&self) -> Failpoints {
        Failpoints::at(&self.kernel.directory().join("failpoints"))
    }

    /// Starts the manager again after it has ended.
    #[track_caller]
    pub(crate) fn start_manager(&mut self) {
        self.manager = spawn(&mut manager_command(&self.kernel));
        self.wait_attached();
    }

    /// The same, with one more variable in its environment.
    #[track_caller]
    pub(crate) fn start_manager_with(&mut self, variable: (&str, &str)) {
        self.manager = spawn(manager_command(&self.kernel).env(variable.0, variable.1));
        self.wait_attached();
    }

    /// Starts the manager again after it has ended, by somebody with the file mode mask `mask`
    /// (octal).
    #[track_caller]
    pub(crate) fn start_manager_under_umask(&mut self, mask: &str) {
        let manager = manager_command(&self.kernel);
        let mut shell = Command::new("/bin/sh");
        shell
            .args(["-c", &format!("umask {mask}; exec \"$@\""), "sh"])
            .current_dir(self.kernel.directory())
            .arg(manager.get_program())
            .args(manager.get_args());
        for (name, value) in manager.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        self.manager = spawn(&mut shell);
        self.wait_attached();
    }

    /// Ends the manager with SIGKILL.
    pub(crate) fn kill_manager(&mut self) {
        self.manager.kill().unwrap();
        self.manager.wait().unwrap();
    }

    /// Has another manager take the place of this one, and waits until it is there.
    #[track_caller]
    pub(crate) fn replace_manager(&mut self, how: Succession) {
        if how == Succession::Killed {
            self.kill_manager();
            return self.start_manager();
        }
        let started = |stack: &Self| {
            let status = stack.try_request("status", &json!({}))?;
            let manager = &status["manager"];
            manager["kernel_pid"].as_u64()?;
            manager["started"].as_f64()
        };
        let before = started(self);
        let reply = self.ask("upgrade", &json!({}));
        assert_eq!(reply["status"], "ok", "{reply}");
        wait_until("the next manager is there", || {
            started(self).is_some_and(|now| Some(now) != before)
        });
    }

    /// What the kernel keeps of a watcher.
    #[track_caller]
    pub(crate) fn kept(&self, name: &str) -> Value {
        self.kept_value(&format!("watcher.{name}"))
    }

    /// A value the manager has the kernel keep; null if there is none.
    #[track_caller]
    pub(crate) fn kept_value(&self, name: &str) -> Value {
        let name = format!("circus.manager.{name}");
        let listed = self
            .kernel
            .json()
            .ok("value.list", json!({"names": [name]}));
        let text = listed["values"][&name].as_str().unwrap_or("null");
        serde_json::from_str(text).unwrap()
    }

    /// What `status` says hinders a watcher.
    #[track_caller]
    pub(crate) fn message(&self, name: &str) -> String {
        let status = self.request("status", name);
        let message = status["watchers"][0]["message"].as_str();
        message.unwrap_or_default().to_owned()
    }

    /// Writes the INI file anew, as [`Stack::start`] did.
    #[track_caller]
    pub(crate) fn rewrite(&self, ini: &str) {
        write_ini(&self.kernel, ini);
    }

    /// Sends the manager a signal.
    pub(crate) fn signal_manager(&self, signal: Signal) {
        procfs::signal(i32::try_from(self.manager.id()).unwrap(), signal);
    }

    /// Waits until the manager has ended by itself.
    #[track_caller]
    pub(crate) fn wait_manager_end(&mut self) -> ExitStatus {
        let manager = &mut self.manager;
        wait_for("the manager has ended", || manager.try_wait().unwrap())
    }

    #[track_caller]
    pub(crate) fn wait_attached(&self) {
        wait_until("the manager has found its kernel", || {
            let status = self.try_request("status", &json!({}));
            status.is_some_and(|status| status["manager"]["kernel_pid"].is_number())
        });
    }

    fn try_request(&self, command: &str, properties: &Value) -> Option<Value> {
        let path = self.kernel.runtime_dir().join("circus.manager.sock");
        let mut stream = UnixStream::connect(path).ok()?;
        let request = json!({"id": 1, "command": command, "properties": properties});
        writeln!(stream, "{request}").ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok()?;
        serde_json::from_str(&line).ok()
    }

    /// Sends a request with these properties.
    #[track_caller]
    pub(crate) fn ask(&self, command: &str, properties: &Value) -> Value {
        self.try_request(command, properties)
            .expect("the manager answers")
    }

    /// Sends a request that is answered when its work is done.
    #[track_caller]
    pub(crate) fn request(&self, command: &str, name: &str) -> Value {
        let properties = json!({"name": name, "waiting": true});
        self.try_request(command, &properties)
            .expect("the manager answers")
    }

    /// Sends a request that is answered at once; its work goes on.
    #[track_caller]
    pub(crate) fn request_now(&self, command: &str, name: &str) -> Value {
        self.try_request(command, &json!({"name": name, "waiting": false}))
            .expect("the manager answers")
    }

    /// Sends a request to every watcher.
    #[track_caller]
    pub(crate) fn request_all(&self, command: &str) -> Value {
        self.try_request(command, &json!({"waiting": true}))
            .expect("the manager answers")
    }

    /// State of a watcher.
    #[track_caller]
    pub(crate) fn state(&self, name: &str) -> String {
        let reply = self.request("status", name);
        reply["status"].as_str().unwrap_or_default().to_owned()
    }

    /// Pids of a watcher's workers by their numbers; empty while the manager is away.
    pub(crate) fn pids(&self, name: &str) -> BTreeMap<u64, i32> {
        let reply = self
            .try_request("status", &json!({"name": name}))
            .unwrap_or_default();
        let workers = reply["watchers"][0]["workers"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        workers
            .iter()
            .filter_map(|worker| {
                let pid = i32::try_from(worker["pid"].as_i64()?).ok()?;
                Some((worker["wid"].as_u64()?, pid))
            })
            .collect()
    }

    /// Pids once there are so many workers.
    #[track_caller]
    pub(crate) fn wait_pids(&self, name: &str, count: usize) -> BTreeMap<u64, i32> {
        wait_for("the workers run", || {
            Some(self.pids(name)).filter(|pids| pids.len() == count)
        })
    }

    /// A log file and its rotated predecessors, oldest first.
    pub(crate) fn log(&self, name: &str) -> Vec<u8> {
        let path = self.kernel.directory().join("logs").join(name);
        let old = |number: u32| path.with_file_name(format!("{name}.{number}"));
        let count = (1..).take_while(|number| old(*number).exists()).count();
        let files = (1..=u32::try_from(count).unwrap())
            .rev()
            .map(old)
            .chain([path.clone()]);
        files
            .flat_map(|file| fs::read(file).unwrap_or_default())
            .collect()
    }

    /// What the manager said about itself.
    pub(crate) fn manager_log(&self) -> String {
        let bytes = fs::read(self.kernel.directory().join("manager.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the manager\n{}---", self.manager_log());
        }
        let _ = self.manager.kill();
        let _ = self.manager.wait();
    }
}

fn prepare(ini: &str) -> Kernel {
    prepare_on(Kernel::builder(), ini)
}

fn prepare_on(kernel: KernelBuilder, ini: &str) -> Kernel {
    let kernel = kernel.start();
    fs::create_dir(kernel.directory().join("logs")).unwrap();
    write_ini(&kernel, ini);
    kernel
}

fn write_ini(kernel: &Kernel, ini: &str) {
    let ini = ini.replace("DIR", kernel.directory().to_str().unwrap());
    fs::write(kernel.directory().join("stack.ini"), ini).unwrap();
}

fn manager_command(kernel: &Kernel) -> Command {
    let mut command = private_command(&binary("papa-manager"), kernel.directory());
    command
        .current_dir(kernel.directory())
        .args(["--debug", "--log-file", &kernel.path("manager.log")])
        .arg("--kernel")
        .arg(kernel.socket_path())
        .arg("stack.ini");
    command
}

fn spawn(command: &mut Command) -> Child {
    command.spawn().expect("the manager can be started")
}
