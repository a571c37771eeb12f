//! The daemon's own log, and what it inherits from whoever starts it: bounded, replaced, reset.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::{Collector, Kernel, procfs, wait_until};

fn make_some(kernel: &Kernel, count: usize) {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let mut session = kernel.json();
    for _ in 0..count {
        let name = format!("p.{}", NEXT.fetch_add(1, Ordering::Relaxed));
        session.make_process(&name, &["/bin/true"], json!({}));
        session.ok("process.remove", json!({"names": [name]}));
    }
}

fn size(path: &str) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}

/// A kernel with a log file of its own; the folder's name is the test's.
fn with_log(more: &[&str]) -> (Kernel, String, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a temporary directory can be made");
    let path = folder.path().join("papa.log").display().to_string();
    let mut builder = Kernel::builder().argument("--log-file").argument(&path);
    for argument in more {
        builder = builder.argument(argument);
    }
    (builder.start(), path, folder)
}

#[test]
fn a_log_file_is_put_aside_when_it_is_large() {
    let (mut kernel, path, folder) = with_log(&["--log-bytes", "8k"]);
    make_some(&kernel, 200);
    // The keeper's lines count as well.
    kernel.kill_kernel();
    kernel.kill_keeper();
    make_some(&kernel, 200);
    let most = 8192 + 4096;
    assert!((1..most).contains(&size(&path)), "{}", size(&path));
    assert!((8192..most).contains(&size(&format!("{path}.1"))));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn a_log_file_that_was_moved_is_opened_anew() {
    let (mut kernel, path, _folder) = with_log(&[]);
    for (turn, asked) in [kernel.keeper(), kernel.pid()].into_iter().enumerate() {
        let moved = format!("{path}.{turn}");
        fs::rename(&path, &moved).unwrap();
        procfs::signal(asked, Signal::SIGUSR1);
        wait_until("there is a new one", || fs::metadata(&path).is_ok());
        make_some(&kernel, 1);
        wait_until("lines go there", || {
            make_some(&kernel, 1);
            fs::read_to_string(&path)
                .unwrap_or_default()
                .contains("process made")
        });
    }
    // Without being asked, and never through somebody's link.
    let target = kernel.path("precious");
    fs::write(&target, "mine\n").unwrap();
    fs::remove_file(&path).unwrap();
    symlink(&target, &path).unwrap();
    procfs::signal(kernel.pid(), Signal::SIGUSR1);
    make_some(&kernel, 3);
    assert_eq!(fs::read_to_string(&target).unwrap(), "mine\n");
    fs::remove_file(&path).unwrap();
    wait_until("there is a new one", || {
        make_some(&kernel, 1);
        fs::symlink_metadata(&path).is_ok_and(|file| file.is_file())
    });
}

#[test]
fn signals_ignored_by_whoever_started_it_are_not() {
    let mut kernel = Kernel::builder()
        .wrapper(&["env", "--ignore-signal"])
        .start();
    let mut session = kernel.json();
    let made = session.make_process("w", &["/bin/sh", "-c", "exit 3"], json!({}));
    let seen =
        Collector::new(&kernel.socket_path(), &["w"]).finish(made["serial"].as_u64().unwrap());
    assert_eq!(seen.exit.unwrap()["code"], 3);
    let made = session.make_process("v", &["/bin/sleep", "1000"], json!({}));
    let pid = i32::try_from(made["pid"].as_i64().unwrap()).unwrap();
    let ignored = procfs::status_line(pid, "SigIgn").unwrap();
    assert_eq!(ignored.trim().trim_matches('0'), "", "{ignored}");
    kernel.kill_kernel();
    kernel.kill_keeper();
    procfs::signal(pid, Signal::SIGKILL);
    let seen =
        Collector::new(&kernel.socket_path(), &["v"]).finish(made["serial"].as_u64().unwrap());
    assert_eq!(seen.exit.unwrap()["signal"], 9);
}

#[test]
fn output_goes_on_beyond_the_limit_on_file_size_of_whoever_started_it() {
    let raises = Command::new("bash")
        .args(["-c", "ulimit -f 2048 && ulimit -f unlimited"])
        .status();
    // A hard limit takes CAP_SYS_RESOURCE to raise, which not even every root has; a soft one takes nothing.
    let limit = if raises.is_ok_and(|status| status.success()) {
        "ulimit -f 2048; exec \"$@\""
    } else {
        "ulimit -S -f 2048; exec \"$@\""
    };
    // 2 MiB: less than what a reel begins with and one batch.
    let mut kernel = Kernel::builder()
        .wrapper(&["bash", "-c", limit, "bash"])
        .start();
    let script = "ulimit -f; head -c 20000000 /dev/zero";
    let mut collector = Collector::new(&kernel.socket_path(), &["w"]);
    let made = kernel.json().make_process(
        "w",
        &["/bin/bash", "-c", script],
        // The collector may come later than the first of it.
        json!({"env": {"PATH": "/usr/bin:/bin"}, "overflow": "block"}),
    );
    let seen = collector.finish(made["serial"].as_u64().unwrap());
    assert!(
        seen.bytes.starts_with(b"2048\n"),
        "a worker has the limit it had: {:?}",
        String::from_utf8_lossy(&seen.bytes[..seen.bytes.len().min(40)])
    );
    assert_eq!(seen.bytes.len(), 20_000_005);
    kernel.kill_keeper();
    kernel.kill_kernel();
    let made = kernel
        .json()
        .make_process("v", &["/bin/bash", "-c", "ulimit -f"], json!({}));
    let mut collector = Collector::new(&kernel.socket_path(), &["v"]);
    assert_eq!(
        collector.finish(made["serial"].as_u64().unwrap()).bytes,
        b"2048\n"
    );
}

#[test]
fn output_that_cannot_be_stored_is_told_with_the_process_and_once_in_the_log() {
    let mut kernel = Kernel::builder()
        .wrapper(&["bash", "-c", "ulimit -f 2048; exec \"$@\"", "bash"])
        .start();
    // The limit there is, whatever the daemon could raise.
    let pid = kernel.pid().to_string();
    let set = Command::new("prlimit")
        .args(["--pid", &pid, "--fsize=2097152:2097152"])
        .status();
    assert!(set.expect("prlimit can be run").success());
    let mut collector = Collector::new(&kernel.socket_path(), &["w"]);
    let script = "head -c 20000000 /dev/zero";
    kernel.json().make_process(
        "w",
        &["/bin/sh", "-c", script],
        json!({"env": {"PATH": "/usr/bin:/bin"}}),
    );
    wait_until("it is told", || {
        let _ = &mut collector;
        let process = kernel.json().process("w").expect("it is listed");
        process["trouble"]
            .as_str()
            .is_some_and(|text| text.contains("File too large"))
    });
    // Several tries later.
    let begin = std::time::Instant::now();
    wait_until("it was tried again", || {
        begin.elapsed() > std::time::Duration::from_secs(1)
    });
    assert_eq!(kernel.log().matches("cannot be stored").count(), 1);
}
