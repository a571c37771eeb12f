//! Keeper and kernel die one soon after the other: from the moment the second process holds
//! everything, nothing is lost.

use std::fs;
use std::net::TcpStream;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use papa_harness::{Collector, Failpoints, Kernel, procfs, wait_for, wait_until};

/// A kernel with a listener and workers, and places where it can be stopped.
struct Loaded {
    kernel: Kernel,
    points: Failpoints,
    _directory: TempDir,
    workers: Vec<Value>,
    port: u16,
}

fn pid(value: &Value) -> i32 {
    i32::try_from(value.as_i64().expect("a pid")).expect("a pid fits")
}

impl Loaded {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let variable = format!("PAPA_FAILPOINTS={}", directory.path().display());
        let kernel = Kernel::builder().wrapper(&["env", &variable]).start();
        let mut session = kernel.json();
        let socket = session.ok("socket.make", json!({"name": "web"}));
        let port =
            u16::try_from(socket["socket"]["port"].as_u64().expect("a port")).expect("it fits");
        let workers = (0..20)
            .map(|number| {
                let name = format!("w.{number}");
                let script = "echo begun; exec sleep 1000";
                session.make_process(&name, &["/bin/sh", "-c", script], json!({}))
            })
            .collect();
        Self {
            kernel,
            points: Failpoints::at(directory.path()),
            _directory: directory,
            workers,
            port,
        }
    }

    /// Has a process in `role` stop at `place` when `victim` is killed; the one that stands there.
    #[track_caller]
    fn kill_and_stop_at(&mut self, victim: i32, place: &str, role: &str) -> i32 {
        self.points.arm(place, 1, role);
        procfs::signal(victim, Signal::SIGKILL);
        self.kernel.collect();
        let stopped = wait_for("somebody stands there", || {
            Some(self.points.hit(place)?.pid)
        });
        self.points.clear();
        stopped
    }

    /// Everybody is there, under the same pid, with all output, and roles are filled once.
    #[track_caller]
    fn assert_whole(&mut self, incarnation: &Value) {
        wait_for("a later kernel serves", || {
            let now = self.kernel.try_status()?;
            (now["incarnation"].as_u64() > incarnation.as_u64()).then_some(())
        });
        TcpStream::connect(("127.0.0.1", self.port)).expect("the listener is held");
        for worker in &self.workers {
            assert!(procfs::alive(pid(&worker["pid"])));
            let name = worker["name"].as_str().expect("a name");
            let now = self.kernel.json().process(name).expect("it is listed");
            assert_eq!(
                (&now["pid"], &now["serial"]),
                (&worker["pid"], &worker["serial"])
            );
        }
        let status = self.kernel.status();
        let mut wanted = [pid(&status["pid"]), pid(&status["keeper"])];
        wanted.sort_unstable();
        wait_until("one keeper and one kernel live", || {
            let mut found: Vec<i32> = self.kernel.processes().into_iter().collect();
            found.retain(|pid| {
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                name.starts_with("papa") && procfs::alive(*pid)
            });
            found.sort_unstable();
            found == wanted
        });
        let first = &self.workers[0];
        procfs::signal(pid(&first["pid"]), Signal::SIGKILL);
        let seen = Collector::new(&self.kernel.socket_path(), &["w.0"])
            .finish(first["serial"].as_u64().expect("a serial"));
        assert_eq!(seen.bytes, b"begun\n");
        // Changes of roles go on as ever.
        self.kernel.kill_keeper();
        self.kernel.kill_kernel();
        assert_eq!(self.kernel.status()["counts"]["running"], 19);
    }
}

impl Drop for Loaded {
    /// They fell to process 1 and are not found by whose children they are.
    fn drop(&mut self) {
        for worker in &self.workers {
            procfs::signal(pid(&worker["pid"]), Signal::SIGKILL);
        }
    }
}

#[test]
fn a_kernel_killed_while_it_takes_the_keepers_place_has_a_second_holder() {
    for place in ["understudy.waits", "upgrade.frozen", "takeover.alone"] {
        let mut loaded = Loaded::start();
        let status = loaded.kernel.status();
        let stopped = loaded.kill_and_stop_at(pid(&status["keeper"]), place, "kernel");
        assert_eq!(stopped, pid(&status["pid"]), "{place}");
        procfs::signal(stopped, Signal::SIGKILL);
        loaded.assert_whole(&status["incarnation"]);
    }
}

#[test]
fn a_new_keeper_killed_before_its_kernel_has_everything_has_a_second_holder() {
    for place in ["takeover.executed", "keeper.forked"] {
        let mut loaded = Loaded::start();
        let status = loaded.kernel.status();
        let stopped = loaded.kill_and_stop_at(pid(&status["keeper"]), place, "keeper");
        procfs::signal(pid(&status["pid"]), Signal::SIGKILL);
        if place == "keeper.forked" {
            // The child that is about to become the kernel; it has everything, and goes on.
            procfs::signal(stopped, Signal::SIGCONT);
        }
        loaded.assert_whole(&status["incarnation"]);
    }
}

#[test]
fn a_keeper_killed_before_the_next_kernel_has_fetched_has_a_second_holder() {
    for (place, role) in [("keeper.forked", "keeper"), ("recover.fetched", "kernel")] {
        let mut loaded = Loaded::start();
        let status = loaded.kernel.status();
        let stopped = loaded.kill_and_stop_at(pid(&status["pid"]), place, role);
        procfs::signal(pid(&status["keeper"]), Signal::SIGKILL);
        loaded.kernel.collect();
        procfs::signal(stopped, Signal::SIGCONT);
        loaded.assert_whole(&status["incarnation"]);
    }
}

#[test]
fn a_kernel_that_was_killed_was_taken_apart_before_its_keeper_heard_of_it() {
    let mut loaded = Loaded::start();
    let incarnation = loaded.kernel.status()["incarnation"].clone();
    for _ in 0..3 {
        let keeper = loaded.kernel.keeper();
        // With its copy what the kernel waits on outlives the kernel: thousands of files are not
        // let go one by one meanwhile.
        wait_until("the keeper holds it, and none of kernels before", || {
            let held = procfs::descriptors(keeper);
            held.iter()
                .filter(|(_, to)| to.contains("[eventpoll]"))
                .count()
                == 1
        });
        loaded.kernel.kill_kernel();
    }
    loaded.assert_whole(&incarnation);
}
