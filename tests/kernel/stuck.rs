//! Keeper and kernel that stand still: the other one takes their place, workers and output do not
//! notice; one that a debugger holds is left alone.
//!
//! The daemon's own patience is half a minute to a minute. Builds with debug assertions shorten it
//! to the measure below (`kernel/src/patience.rs`); with the real limits the same is tried by the
//! test that is ignored unless asked for.

use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::{Value, json};

use papa_harness::{
    Classic, Collector, Failpoints, Json, Kernel, KernelBuilder, Scratch, assert_same_bytes,
    binary, free_port, is_root, private_command, procfs, skipped, wait_for, wait_until,
    wait_until_for,
};

/// For what takes the daemon's patience with itself, real or shortened, on a busy machine.
const LONG: Duration = Duration::from_secs(180);

/// What ten seconds of the daemon's patience are in most of these tests.
const TEN_SECONDS: &str = "PAPA_TEST_PATIENCE_MS=1000";

/// Writes numbered lines for as long as the file `$0` is not there.
const NUMBERS: &str =
    "i=0; until [ -e $0 ]; do i=$((i+1)); echo line $i; sleep 0.02; done; echo $i >&2; exit 9";

fn impatient() -> KernelBuilder {
    Kernel::builder().wrapper(&["env", TEN_SECONDS])
}

/// A writer, and somebody who reads it all the time.
pub(crate) struct Load {
    worker: Value,
    stop: String,
    reader: std::thread::JoinHandle<Collector>,
}

impl Load {
    pub(crate) fn start(kernel: &Kernel) -> Self {
        let stop = kernel.path("enough");
        let worker = kernel.json().make_process(
            "w",
            &["/bin/sh", "-c", NUMBERS, &stop],
            json!({"env": {"PATH": "/usr/bin:/bin"}}),
        );
        let serial = worker["serial"].as_u64().expect("a serial");
        let mut reader = Collector::new(&kernel.socket_path(), &["w"]);
        let reader = std::thread::spawn(move || {
            reader.run_until("the writer is finished", LONG * 2, |reader| {
                reader.finished(serial)
            });
            reader
        });
        Self {
            worker,
            stop,
            reader,
        }
    }

    /// The same process still writes, and every line of it came exactly once.
    #[track_caller]
    pub(crate) fn finish(self, kernel: &Kernel) {
        let listed = kernel.json().process("w").expect("it is listed");
        assert_eq!(listed["pid"], self.worker["pid"]);
        assert_eq!(listed["running"], true);
        std::fs::write(&self.stop, "").expect("the scratch directory is writable");
        let collector = self.reader.join().expect("the reader got everything");
        let serial = self.worker["serial"].as_u64().expect("a serial");
        let seen = &collector.seen[&serial];
        assert_eq!(seen.dropped, 0);
        let count = String::from_utf8(seen.stream(2)).expect("a number");
        let count: usize = count.trim().parse().expect("a number");
        let expected: String = (1..=count).map(|i| format!("line {i}\n")).collect();
        assert_same_bytes("its lines", expected.as_bytes(), &seen.stream(1));
        assert_eq!(seen.exit.as_ref().expect("it exited")["code"], 9);
    }
}

/// Stops the kernel process; its keeper replaces it.
#[track_caller]
fn replace_stopped_kernel(kernel: &mut Kernel) {
    let (keeper, before) = (kernel.keeper(), kernel.pid());
    procfs::signal(before, Signal::SIGSTOP);
    wait_until_for("the stopped kernel is gone", LONG, || {
        !procfs::alive(before)
    });
    assert_eq!(kernel.keeper(), keeper);
    assert_ne!(kernel.pid(), before);
    assert!(kernel.log().contains("does not answer; replacing it"));
}

/// Stops the keeper process; its kernel takes its place.
#[track_caller]
fn replace_stopped_keeper(kernel: &mut Kernel) {
    let (keeper, before) = (kernel.keeper(), kernel.pid());
    procfs::signal(keeper, Signal::SIGSTOP);
    wait_until_for("the kernel has become the keeper", LONG, || {
        kernel
            .try_status()
            .is_some_and(|status| status["keeper"].as_i64() == Some(before.into()))
    });
    // Nobody who stood still wakes up beside its successor.
    procfs::signal(keeper, Signal::SIGCONT);
    wait_until("the stopped keeper is gone", || !procfs::alive(keeper));
    assert_ne!(kernel.pid(), before);
}

#[test]
fn a_kernel_that_stands_still_is_replaced() {
    let mut kernel = impatient().start();
    let load = Load::start(&kernel);
    for _ in 0..2 {
        replace_stopped_kernel(&mut kernel);
    }
    load.finish(&kernel);
}

#[test]
fn a_keeper_that_stands_still_is_replaced() {
    let mut kernel = impatient().start();
    let load = Load::start(&kernel);
    for _ in 0..2 {
        replace_stopped_keeper(&mut kernel);
    }
    // The new keeper does what the first did.
    kernel.kill_kernel();
    load.finish(&kernel);
}

#[test]
fn one_after_the_other_stands_still() {
    let mut kernel = impatient().start();
    let load = Load::start(&kernel);
    replace_stopped_kernel(&mut kernel);
    replace_stopped_keeper(&mut kernel);
    replace_stopped_kernel(&mut kernel);
    load.finish(&kernel);
}

/// A process of this test's that a debugger (this thread) holds still.
struct Held(Pid);

impl Held {
    /// None where the system does not allow it.
    fn seize(pid: i32) -> Option<Self> {
        let pid = Pid::from_raw(pid);
        ptrace::seize(pid, ptrace::Options::empty()).ok()?;
        let held = Self(pid);
        ptrace::interrupt(pid).ok()?;
        wait_until("it is held still", || {
            procfs::stat(pid.as_raw()).is_some_and(|stat| stat.state == 't')
        });
        Some(held)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = ptrace::detach(self.0, None);
    }
}

#[test]
fn a_kernel_in_a_debugger_is_left_alone() {
    let mut debugged = impatient().start();
    let load = Load::start(&debugged);
    let before = debugged.status();
    let Some(held) = Held::seize(debugged.pid()) else {
        return skipped("no process may be traced here");
    };
    // How long that is left to be is seen by another, which is replaced twice meanwhile: each takes
    // at least as long as an unanswered question may.
    let mut other = impatient().start();
    for _ in 0..2 {
        replace_stopped_kernel(&mut other);
    }
    drop(held);
    let now = debugged.status();
    for key in ["pid", "keeper", "incarnation"] {
        assert_eq!(now[key], before[key]);
    }
    load.finish(&debugged);
    // And nothing of it is left: stopped without a debugger it is replaced.
    replace_stopped_kernel(&mut debugged);
}

#[test]
fn a_keeper_in_a_debugger_is_left_alone() {
    let mut debugged = impatient().start();
    let before = debugged.status();
    let Some(held) = Held::seize(debugged.keeper()) else {
        return skipped("no process may be traced here");
    };
    let mut other = impatient().start();
    replace_stopped_keeper(&mut other);
    let since = Instant::now();
    replace_stopped_keeper(&mut other);
    assert!(
        since.elapsed() > Duration::from_secs(1),
        "the patience is shortened too far to tell"
    );
    drop(held);
    let now = debugged.status();
    for key in ["pid", "keeper", "incarnation"] {
        assert_eq!(now[key], before[key]);
    }
    replace_stopped_keeper(&mut debugged);
}

#[test]
fn a_keeper_that_is_process_1_and_wakes_up_beside_its_successor_ends_nobody() {
    if !is_root() {
        return skipped("a pid namespace takes root");
    }
    let scratch = Scratch::new();
    let port = free_port();
    let mut child = private_command(std::path::Path::new("unshare"), scratch.directory())
        .env("PAPA_TEST_PATIENCE_MS", "500")
        .args(["--pid", "--fork", "--mount-proc", "--kill-child"])
        .arg(binary("papa"))
        .args(["--port", &port.to_string()])
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("it can be started");
    assert_eq!(scratch.status(port)["keeper"], 1);
    let started = i32::try_from(child.id()).expect("a pid fits");
    let init = wait_for("it is found from outside", || {
        procfs::children(started).first().copied()
    });
    Classic::tcp(port).ask("make process w /bin/sleep 1000");
    // The keeper takes its copies in its own time.
    wait_until("the keeper has the process's descriptors", || {
        procfs::descriptors(init)
            .iter()
            .any(|(_, to)| to.contains("papa-reel"))
    });
    let held = procfs::open_descriptors(init);
    procfs::signal(init, Signal::SIGSTOP);
    wait_until_for("the kernel has become the keeper", LONG, || {
        scratch.status(port)["keeper"] != 1
    });
    procfs::signal(init, Signal::SIGCONT);
    // The listener, the settings, the journal, and what the process has.
    wait_until("it has let go of everything", || {
        procfs::open_descriptors(init) < held - 5
    });
    assert!(
        Classic::tcp(port)
            .ask("list processes")
            .contains("running=True")
    );
    // Asked to end, it passes that on, and everybody is asked by the one who decides now.
    procfs::signal(init, Signal::SIGTERM);
    wait_until("everything has ended", || {
        child.try_wait().expect("it is ours").is_some()
    });
}

/// While no kernel of the next keeper serves, a copy of that process holds the line to the old one
/// open: to the old one, which asks on it, it looks as if its kernel were stuck.
#[test]
fn a_keeper_that_is_process_1_killed_its_successor_if_that_took_long_to_recover() {
    if !is_root() {
        return skipped("a pid namespace takes root");
    }
    if !cfg!(debug_assertions) {
        return skipped("a release build has no places to stop at");
    }
    let scratch = Scratch::new();
    let port = free_port();
    let points = Failpoints::at(&scratch.directory().join("failpoints"));
    let log_path = scratch.directory().join("keeper.log");
    let log = std::fs::File::create(&log_path).expect("the scratch directory is writable");
    let mut command = private_command(std::path::Path::new("unshare"), scratch.directory());
    let mut child = points
        .put_into(&mut command)
        .env("PAPA_TEST_PATIENCE_MS", "1000")
        .args(["--pid", "--fork", "--mount-proc", "--kill-child"])
        .arg(binary("papa"))
        .args(["--port", &port.to_string()])
        .stderr(log)
        .spawn()
        .expect("it can be started");
    assert_eq!(scratch.status(port)["keeper"], 1);
    let started = i32::try_from(child.id()).expect("a pid fits");
    let init = wait_for("it is found from outside", || {
        procfs::children(started).first().copied()
    });
    Classic::tcp(port).ask("make process w /bin/sleep 1000");
    procfs::signal(init, Signal::SIGSTOP);
    points.arm("recover.fetched", 1, "kernel");
    wait_until_for("the next keeper's kernel stands still", LONG, || {
        points.hit("recover.fetched").is_some()
    });
    procfs::signal(init, Signal::SIGCONT);
    let said = |text: &str| {
        let log = std::fs::read_to_string(&log_path).unwrap_or_default();
        log.contains(text)
    };
    wait_until("it knows that it is replaced", || {
        said("the kernel has taken this keeper's place; staying as process 1")
    });
    for pid in procfs::descendants(init) {
        if procfs::stat(pid).is_some_and(|stat| stat.state == 'T') {
            procfs::signal(pid, Signal::SIGCONT);
        }
    }
    assert_ne!(scratch.status(port)["keeper"], 1);
    assert!(!said("does not answer; replacing it"));
    assert!(
        Classic::tcp(port)
            .ask("list processes")
            .contains("running=True")
    );
    procfs::signal(init, Signal::SIGTERM);
    wait_until("everything has ended", || {
        child.try_wait().expect("it is ours").is_some()
    });
}

#[test]
fn a_signal_to_process_1_reaches_the_keeper_of_now() {
    if !is_root() {
        return skipped("a pid namespace takes root");
    }
    let scratch = Scratch::new();
    let port = free_port();
    let mut child = private_command(std::path::Path::new("unshare"), scratch.directory())
        .args(["--pid", "--fork", "--mount-proc", "--kill-child"])
        .arg(binary("papa"))
        .args(["--port", &port.to_string()])
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("it can be started");
    assert_eq!(scratch.status(port)["keeper"], 1);
    let started = i32::try_from(child.id()).expect("a pid fits");
    let init = wait_for("it is found from outside", || {
        procfs::children(started).first().copied()
    });
    let mut manager = Json::tcp(port).expect("it serves");
    // Another daemon below a worker of this one is no successor, though it shows the same role.
    let inner = free_port();
    manager.make_process(
        "inner",
        &[
            binary("papa").to_str().expect("UTF-8"),
            "--daemonize",
            "--port",
            &inner.to_string(),
        ],
        json!({"env": {"XDG_RUNTIME_DIR": scratch.path("inner")}}),
    );
    wait_until("the inner one serves", || Json::tcp(inner).is_ok());
    let inside = |init| procfs::descendants(init).len();
    manager.ok("claim", json!({"namespace": "app", "holder": "a test"}));
    manager.make_process("app.1", &["/bin/sleep", "1000"], json!({}));
    let mut before = json!(1);
    for _ in 0..2 {
        manager.ok("kernel.upgrade", json!({"keeper": true}));
        let keeper = scratch.status(port)["keeper"].clone();
        assert_ne!(keeper, before);
        before = keeper;
    }
    // Whoever was the keeper meanwhile is gone, and waited for. The inner one's worker has ended.
    manager.ok("process.remove", json!({"names": ["inner"]}));
    wait_until("keeper, kernel, worker, and the inner two", || {
        inside(init) == 5
    });
    procfs::signal(init, Signal::SIGTERM);
    assert_eq!(manager.push_of("shutdown")["signal"], 15);
    assert_eq!(manager.process("app.1").expect("listed")["running"], true);
    assert!(Json::tcp(inner).is_ok(), "the inner one was asked to end");
    procfs::signal(init, Signal::SIGTERM);
    wait_until("everything has ended", || {
        child.try_wait().expect("it is ours").is_some()
    });
}

/// With the limits as they are in a release build. Takes about two minutes.
#[test]
#[ignore = "takes minutes; named in tests/README.md"]
fn with_the_real_limits() {
    let mut kernel = Kernel::start();
    let load = Load::start(&kernel);
    let start = Instant::now();
    replace_stopped_kernel(&mut kernel);
    // A question every ten seconds, twenty for its answer.
    let took = start.elapsed();
    assert!(
        took > Duration::from_secs(19) && took < Duration::from_secs(45),
        "{took:?}"
    );
    let start = Instant::now();
    replace_stopped_keeper(&mut kernel);
    // Forty seconds of silence and fifteen more.
    let took = start.elapsed();
    assert!(
        took > Duration::from_secs(40) && took < Duration::from_secs(80),
        "{took:?}"
    );
    load.finish(&kernel);
}
