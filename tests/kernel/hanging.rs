//! Programs on a file system that does not answer, and children that die before their program
//! starts.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use papa_harness::{Kernel, is_root, procfs, skipped, wait_for, wait_until};

/// A program whose every exec hangs until this is dropped, as on a file system that does not
/// answer.
struct Hanging {
    path: String,
    holder: std::process::Child,
}

impl Hanging {
    /// Holds a lease on the file: whoever opens it waits until it is given back. Source:
    /// `fcntl(2)`, "Leases".
    fn new(kernel: &Kernel) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = kernel.path(&format!("program-{number}"));
        papa_harness::copy_program(
            std::path::Path::new("/bin/sleep"),
            std::path::Path::new(&path),
        );
        let program = "import fcntl, os, signal, sys\nsignal.signal(signal.SIGIO, signal.SIG_IGN)\n\
                       fd = os.open(sys.argv[1], os.O_RDONLY)\nfcntl.fcntl(fd, 1024, fcntl.F_WRLCK)\n\
                       print('held', flush=True)\nsys.stdin.read()";
        let mut holder = std::process::Command::new("python3")
            .args(["-c", program, &path])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("python3 can be run");
        let mut said = String::new();
        let out = holder.stdout.take().expect("its output is piped");
        let _ = std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut said);
        assert_eq!(said, "held\n");
        Self { path, holder }
    }

    fn release(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// The child that has not exec'ed yet.
fn unexeced(kernel: &mut Kernel) -> i32 {
    let own = kernel.pid();
    wait_for("the kernel has a child that hangs", || {
        procfs::children(own).into_iter().find(|pid| {
            fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|name| name == "papa-kernel\n")
        })
    })
}

#[test]
fn a_program_on_a_file_system_that_hangs_keeps_nobody_else_waiting() {
    let mut kernel = Kernel::start();
    let mut hanging = Hanging::new(&kernel);
    let path = hanging.path.clone();
    let mut asker = kernel.json();
    let slow_request = asker
        .ask(
            "process.make",
            json!({"name": "slow", "argv": [path, "1000"]}),
            None,
        )
        .unwrap();
    let mut classic = kernel.classic();
    classic.send(&format!("make process slower {path} 1000"));
    unexeced(&mut kernel);
    // Twenty programs on one such disk would be a second and a half.
    let begin = std::time::Instant::now();
    for number in 0..20 {
        let mut session = kernel.json();
        let name = format!("p.{number}");
        session.make_process(&name, &["/bin/true"], json!({}));
    }
    assert!(
        begin.elapsed() < Duration::from_secs(8),
        "{:?}",
        begin.elapsed()
    );
    let slow = kernel.json().process("slow").unwrap();
    assert_eq!((&slow["pid"], &slow["running"]), (&json!(0), &json!(true)));
    let again = kernel
        .json()
        .call(
            "process.make",
            json!({"name": "slow", "argv": [path, "1000"]}),
        )
        .unwrap()
        .unwrap_err();
    assert!(
        again["message"]
            .as_str()
            .unwrap()
            .contains("is being started"),
        "{again}"
    );
    hanging.release();
    let made = asker.reply(slow_request).unwrap().unwrap();
    assert_eq!(made["created"], true);
    let pid = made["process"]["pid"].as_i64().unwrap();
    assert!(procfs::alive(i32::try_from(pid).unwrap()));
    assert!(classic.read_until("> ").starts_with("slower pid="));
}

#[test]
fn a_program_that_never_starts_is_given_up_and_the_answer_says_so() {
    let mut kernel = Kernel::builder()
        .environment("PAPA_TEST_PATIENCE_MS", "1000")
        .start();
    let mut hanging = Hanging::new(&kernel);
    let path = hanging.path.clone();
    let mut session = kernel.json();
    let answer = session.call("process.make", json!({"name": "w", "argv": [path, "1000"]}));
    let error = answer.unwrap().unwrap_err();
    assert_eq!(error["code"], "spawn_failed");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("did not start within 10 s"), "{message}");
    let own = kernel.pid();
    wait_until("nothing is left of it", || {
        session.process("w").is_none() && procfs::children(own).is_empty()
    });
    hanging.release();
    session.make_process("w", &[&path, "1000"], json!({}));
}

#[test]
fn a_child_killed_before_its_program_started_is_no_success() {
    let mut kernel = Kernel::start();
    let hanging = Hanging::new(&kernel);
    let mut session = kernel.json();
    let request = session
        .ask(
            "process.make",
            json!({"name": "w", "argv": [hanging.path, "1000"]}),
            None,
        )
        .unwrap();
    let child = unexeced(&mut kernel);
    procfs::signal(child, Signal::SIGKILL);
    let error = session.reply(request).unwrap().unwrap_err();
    assert_eq!(error["code"], "spawn_failed");
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("was killed before its program"),
        "{message}"
    );
    assert!(session.process("w").is_none());
}

#[test]
fn a_start_under_way_when_the_kernel_is_killed_is_taken_up() {
    let mut kernel = Kernel::start();
    let mut hanging = Hanging::new(&kernel);
    let mut session = kernel.json();
    session
        .send(
            "process.make",
            json!({"name": "w", "argv": [hanging.path, "1000"]}),
        )
        .unwrap();
    let child = unexeced(&mut kernel);
    kernel.kill_kernel();
    let found = kernel.json().process("w").expect("it is known");
    assert_eq!(found["pid"], child);
    hanging.release();
    wait_until("its program runs", || {
        fs::read_to_string(format!("/proc/{child}/comm"))
            .is_ok_and(|name| name.starts_with("program-"))
    });
    // The same when the keeper dies: this process takes its place with the start under way.
    let hanging = Hanging::new(&kernel);
    let mut session = kernel.json();
    session
        .send(
            "process.make",
            json!({"name": "v", "argv": [hanging.path, "1000"]}),
        )
        .unwrap();
    let child = unexeced(&mut kernel);
    kernel.kill_keeper();
    let found = kernel.json().process("v").expect("it is known");
    assert_eq!(found["pid"], child);
}

#[test]
fn a_worker_of_a_user_with_few_descriptors_registers_as_the_daemon() {
    if !is_root() {
        return skipped("another user takes root");
    }
    let mut kernel = Kernel::start();
    let keeper = kernel.keeper();
    // What the keeper has not read counts against the user who sent it.
    procfs::signal(keeper, Signal::SIGSTOP);
    let mut session = kernel.json();
    for number in 0..8 {
        let name = format!("w.{number}");
        session.make_process(
            &name,
            &["/bin/sleep", "1000"],
            json!({"uid": 65534, "gid": 65534, "groups": [], "rlimits": {"nofile": 4}}),
        );
    }
    procfs::signal(keeper, Signal::SIGCONT);
}
