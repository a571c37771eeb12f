//! Mixed versions: an older revision of this repository is built, and each of its programs has to
//! do with each of ours.
//!
//! Invariant: across every change of a program, up and down, the
//! workers keep their pids and no line of theirs is lost or repeated.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Output};
use std::sync::OnceLock;

use serde_json::Value;

use papa_harness::{
    Kernel, binary, copy_program, private_command, revision, skipped, wait_for, wait_until,
};

/// The revision before kernels could be asked to change their program, and managers to check a file
/// for another.
const REVISION: &str = "bfeb559";

const INI: &str = "[watcher:lines]\ncmd = sh -c 'n=0; while sleep 0.02; do n=$((n+1)); echo line $n; done'\ncopy_env = true\nnumprocesses = 1\n\
    stdout_stream.class = FileStream\nstdout_stream.filename = DIR/lines.log\n[watcher:quiet]\ncmd = sleep 1000\nnumprocesses = 2\n";

/// Where the programs of the revision are; none, and said why, where they cannot be built.
fn old() -> Option<&'static Path> {
    static OLD: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match OLD.get_or_init(|| revision::built(REVISION)) {
        Ok(path) => Some(path),
        Err(why) => {
            skipped(why);
            None
        }
    }
}

/// A kernel and a manager of chosen versions; the manager's program can be changed.
struct Mixed {
    kernel: Kernel,
    manager: Child,
    program: PathBuf,
}

impl Mixed {
    #[track_caller]
    fn start(kernel: &Path, manager: &Path) -> Self {
        Self::start_with(kernel, manager, INI)
    }

    #[track_caller]
    fn start_with(kernel: &Path, manager: &Path, ini: &str) -> Self {
        let kernel = Kernel::builder().program(kernel).start();
        let directory = kernel.directory().to_owned();
        let ini = ini.replace("DIR", directory.to_str().unwrap());
        fs::write(directory.join("stack.ini"), ini).unwrap();
        let program = directory.join("papa-manager");
        install(manager, &program);
        let manager = private_command(&program, &directory)
            .current_dir(&directory)
            .args(["--log-file", "manager.log", "--kernel"])
            .arg(kernel.socket_path())
            .arg("stack.ini")
            .spawn()
            .unwrap();
        Self {
            kernel,
            manager,
            program,
        }
    }

    fn papactl(&self, program: &Path, line: &str) -> Output {
        private_command(program, self.kernel.directory())
            .current_dir(self.kernel.directory())
            .args(line.split(' '))
            .output()
            .unwrap()
    }

    /// The answer to a verb that has to succeed.
    #[track_caller]
    fn json(&self, program: &Path, line: &str) -> Value {
        let output = self.papactl(program, &format!("{line} --json"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{line}: {said}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Pids of all workers, as this papactl shows them, once there are all three.
    #[track_caller]
    fn pids(&self, papactl: &Path) -> Vec<u64> {
        wait_for("all workers are shown", || {
            let output = self.papactl(papactl, "status --json");
            let status: Value = serde_json::from_slice(&output.stdout).ok()?;
            let watchers = status["watchers"].as_array()?.clone();
            let pids: Vec<u64> = watchers
                .iter()
                .filter_map(|watcher| watcher["workers"].as_array())
                .flatten()
                .filter_map(|worker| worker["pid"].as_u64())
                .collect();
            (pids.len() == 3).then_some(pids)
        })
    }

    fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(self.kernel.directory().join("lines.log"));
        let text = text.unwrap_or_default();
        // The last one may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(str::to_owned).collect()
    }

    /// Twenty more lines are logged, and all there are follow one another.
    #[track_caller]
    fn assert_whole(&self, when: &str) {
        let before = self.lines().len();
        wait_until("more lines are logged", || {
            self.lines().len() >= before + 20
        });
        for (index, line) in self.lines().iter().enumerate() {
            assert_eq!(*line, format!("line {}", index + 1), "{when}");
        }
    }
}

impl Drop for Mixed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.kernel.directory().join("manager.log"));
            eprintln!("--- log of the manager\n{}---", log.unwrap_or_default());
        }
        let _ = self.manager.kill();
        let _ = self.manager.wait();
    }
}

/// Puts a program in the place of another that may be running.
fn install(from: &Path, to: &Path) {
    let fresh = to.with_extension("new");
    copy_program(from, &fresh);
    fs::rename(&fresh, to).unwrap();
}

#[test]
fn managers_and_kernels_of_two_versions_serve_each_other_and_managers_change() {
    let Some(old) = old() else {
        return;
    };
    let (new_manager, old_manager) = (binary("papa-manager"), old.join("papa-manager"));
    let (new_papactl, old_papactl) = (binary("papactl"), old.join("papactl"));
    for (kernel, first, second) in [
        (binary("papa"), &old_manager, &new_manager),
        (old.join("papa"), &new_manager, &old_manager),
    ] {
        let mixed = Mixed::start(&kernel, first);
        let pids = mixed.pids(&new_papactl);
        assert_eq!(mixed.pids(&old_papactl), pids);
        mixed.assert_whole("at first");
        for program in [second, first, second] {
            install(program, &mixed.program);
            mixed.json(&new_papactl, "upgrade");
            let when = format!("after a change to {}", program.display());
            assert_eq!(mixed.pids(&old_papactl), pids, "{when}");
            mixed.assert_whole(&when);
        }
    }
}

#[test]
fn a_socket_key_that_an_older_kernel_does_not_know_was_a_riddle() {
    let Some(old) = old() else {
        return;
    };
    // The second section makes the first one's IPv6 socket leave IPv4 to it.
    let port = papa_harness::free_port();
    let ini = format!(
        "{INI}[watcher:web]\ncmd = sleep 1000\nuse_sockets = True\n\
         [socket:six]\nhost = ::\nfamily = AF_INET6\nport = {port}\n\
         [socket:four]\nhost = 0.0.0.0\nport = {port}\n"
    );
    let mixed = Mixed::start_with(&old.join("papa"), &binary("papa-manager"), &ini);
    let papactl = binary("papactl");
    let said = wait_for("status says why it waits", || {
        let output = mixed.papactl(&papactl, "status web --json");
        let status: Value = serde_json::from_slice(&output.stdout).ok()?;
        let message = status["watchers"][0]["message"].as_str()?;
        message.contains("v6only").then(|| message.to_owned())
    });
    for part in [
        "six",
        "needs v6only, which a kernel of an older version does not know",
        "papactl kernel upgrade",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // Nobody else waits for it.
    mixed.assert_whole("beside a socket that cannot be made");
}

#[test]
fn a_kernel_changes_to_an_older_version_and_back() {
    let Some(old) = old() else {
        return;
    };
    let papactl = binary("papactl");
    let mixed = Mixed::start(&binary("papa"), &binary("papa-manager"));
    let pids = mixed.pids(&papactl);
    mixed.assert_whole("at first");
    // It cannot be tried first, so nobody changes to it by mistake.
    let program = mixed.kernel.directory().join("papa-old");
    install(&old.join("papa"), &program);
    let older = format!("kernel upgrade --binary {}", program.display());
    let refused = mixed.papactl(&papactl, &older);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("serves on"), "{said}");
    mixed.assert_whole("after a refusal");

    // It does not know how to answer for the one before: the connection ends, and the kernel is
    // asked which program it is now.
    let changed = mixed.json(&papactl, &format!("{older} --force"));
    let now = mixed.json(&papactl, "kernel status")["kernel"].clone();
    assert_eq!(changed["kernel"]["pid"], now["pid"], "{changed}");
    assert_eq!(
        changed["kernel"]["after"]["path"],
        program.to_str().unwrap(),
        "{changed}"
    );
    assert_eq!(mixed.pids(&papactl), pids);
    mixed.assert_whole("after the change to the older one");
    let tried = mixed.papactl(&papactl, "kernel upgrade --dry-run");
    let said = String::from_utf8_lossy(&tried.stderr).into_owned();
    assert!(
        said.contains("can only start anew"),
        "the older one runs: {said}"
    );

    install(&binary("papa"), &program);
    mixed.json(&papactl, "kernel upgrade");
    assert_eq!(mixed.pids(&papactl), pids);
    mixed.assert_whole("after the change back");
    mixed.json(&papactl, "kernel upgrade --dry-run");

    // It can be changed to, but not replace the keeper.
    let older = older.replace("papa-old", "papa-older");
    install(
        &old.join("papa"),
        &mixed.kernel.directory().join("papa-older"),
    );
    let halfway = mixed.papactl(&papactl, &format!("{older} --force --keeper"));
    let said = String::from_utf8_lossy(&halfway.stderr).into_owned();
    assert_eq!(halfway.status.code(), Some(1), "{said}");
    assert!(said.contains("papa-older now"), "{said}");
    assert!(said.contains("was not replaced"), "{said}");
    assert_eq!(mixed.pids(&papactl), pids);
    mixed.assert_whole("after the change of one half");
}
