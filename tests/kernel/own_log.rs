//! The daemon's own log, and what it inherits from whoever starts it: bounded, replaced, reset.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::signal::Signal;
use serde_json::json;

use papa_harness::{
    Collector, Failpoints, Kernel, PATIENCE, assert_same_bytes, below_file_limit, procfs, wait_for,
    wait_until,
};

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
    // A hard limit takes CAP_SYS_RESOURCE to raise, which not even every root has; a soft one takes
    // nothing.
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

/// Sizes of the memory files of that name that a process has open.
fn memory_files(pid: i32, name: &str) -> Vec<u64> {
    let link = format!("/memfd:{name} (deleted)");
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("the kernel runs")
        .flatten()
        .filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == link.as_str()))
        .filter_map(|fd| Some(std::fs::metadata(fd.path()).ok()?.len()))
        .collect()
}

#[test]
fn below_a_hard_limit_on_file_size_workers_waited_for_ever() {
    const LIMIT: u64 = 4 << 20;
    let wrapper = below_file_limit(4096);
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let mut kernel = Kernel::builder().wrapper(&wrapper).start();
    let log = kernel.log();
    assert!(
        log.contains("files may have 4194304 bytes at most (ulimit -f)"),
        "{log}"
    );
    // Some 20 MB, with deaths in between.
    let mut collector = Collector::new(&kernel.socket_path(), &["w"]);
    let made = kernel.json().make_process(
        "w",
        &["seq", "2900000"],
        json!({"env": {"PATH": "/usr/bin:/bin"}, "overflow": "block"}),
    );
    assert_eq!(
        kernel
            .json()
            .error("output.reel", json!({"serial": made["serial"]})),
        "denied",
        "only a consumer may ask"
    );
    let serial = made["serial"].as_u64().unwrap();
    let read_up_to = |collector: &mut Collector, bytes: usize| {
        collector.run_until("output comes", PATIENCE, |all| {
            let seen = all.seen.get(&serial);
            seen.is_some_and(|seen| seen.bytes.len() >= bytes)
        });
    };
    for bytes in [3_000_000, 9_000_000] {
        read_up_to(&mut collector, bytes);
        kernel.kill_kernel();
    }
    read_up_to(&mut collector, 12_000_000);
    kernel.kill_keeper();
    // What nobody drops by acknowledging waits, and no file is larger.
    let pid = kernel.pid();
    for size in memory_files(pid, "papa-reel") {
        assert!(size <= LIMIT, "{size}");
    }
    let seen = collector.finish(serial);
    let mut expected = Vec::with_capacity(23_000_000);
    for number in 1..=2_900_000 {
        std::io::Write::write_fmt(&mut expected, format_args!("{number}\n")).unwrap();
    }
    assert_same_bytes("all lines", &expected, &seen.bytes);
    assert_eq!(seen.dropped, 0);

    // The journal as well lives longer than its file could grow.
    let mut session = kernel.json();
    let value = "x".repeat(20_000);
    for round in 0..600 {
        let name = format!("v.{}", round % 20);
        session.ok("value.set", json!({"name": name, "value": value}));
    }
    kernel.kill_kernel();
    let values = kernel.json().ok("value.list", json!({}));
    assert_eq!(
        values["values"].as_object().map(serde_json::Map::len),
        Some(20),
        "{values}"
    );
}

#[test]
fn where_files_are_too_small_for_any_output_the_start_says_so() {
    let wrapper = below_file_limit(200);
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let kernel = Kernel::builder().wrapper(&wrapper).start();
    assert!(
        kernel.log().contains("processes are not started"),
        "{}",
        kernel.log()
    );
    let refused = kernel
        .json()
        .call("process.make", json!({"name": "w", "argv": ["/bin/true"]}))
        .unwrap()
        .unwrap_err();
    let said = refused["message"].as_str().unwrap();
    assert!(said.contains("ulimit -f"), "{said}");
    kernel
        .json()
        .make_process("v", &["/bin/true"], json!({"reel_bytes": 0}));
}

/// Sets a limit on file size for the running kernel.
fn limit_files(kernel: &mut Kernel, bytes: u64) {
    let pid = kernel.pid().to_string();
    let limit = format!("--fsize={bytes}:{bytes}");
    let set = Command::new("prlimit")
        .args(["--pid", &pid, &limit])
        .status();
    assert!(set.expect("prlimit can be run").success());
}

#[test]
fn a_limit_on_file_size_beyond_all_output_made_every_reel_a_ring() {
    // 1 TiB.
    let wrapper = below_file_limit(1 << 30);
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let mut kernel = Kernel::builder().wrapper(&wrapper).start();
    assert_eq!(kernel.status()["file_size_limit"], json!(null));
    assert!(!kernel.log().contains("ulimit"), "{}", kernel.log());
    let mut client = kernel.json();
    let made = client.make_process("w", &["/bin/sleep", "1000"], json!({}));
    client.ok("output.consume", json!({"names": ["w"]}));
    let reel = client.ok("output.reel", json!({"serial": made["serial"]}));
    assert_eq!(reel["data_offset"], 1 << 20);
}

#[test]
fn a_limit_on_file_size_that_came_later_stopped_workers_that_had_written_much() {
    let mut expected = Vec::new();
    for number in 1..=1_200_000 {
        std::io::Write::write_fmt(&mut expected, format_args!("{number}\n")).unwrap();
    }
    for place in [None, Some("reel.copied"), Some("reel.moved")] {
        let folder = tempfile::tempdir().unwrap();
        let points = Failpoints::at(folder.path());
        let mut kernel = Kernel::builder()
            .environment(Failpoints::VARIABLE, folder.path().to_str().unwrap())
            .start();
        let mut collector = Collector::new(&kernel.socket_path(), &["w"]);
        let made = kernel.json().make_process(
            "w",
            &["seq", "1200000"],
            json!({"env": {"PATH": "/usr/bin:/bin"}, "overflow": "block"}),
        );
        let serial = made["serial"].as_u64().unwrap();
        collector.run_until("output comes", PATIENCE, |all| {
            let seen = all.seen.get(&serial);
            seen.is_some_and(|seen| seen.bytes.len() >= 1_000_000)
        });
        if let Some(place) = place {
            points.arm(place, 1, "kernel");
        }
        limit_files(&mut kernel, 4 << 20);
        if let Some(place) = place {
            // It stands still while it moves the reel, and dies there.
            let pid = std::cell::Cell::new(0);
            collector.run_until("the reel is moved", PATIENCE, |_| {
                pid.set(points.hit(place).map_or(0, |hit| hit.pid));
                pid.get() != 0
            });
            procfs::signal(pid.get(), Signal::SIGKILL);
        }
        let seen = collector.finish(serial);
        assert_same_bytes(&format!("all lines, {place:?}"), &expected, &seen.bytes);
        assert_eq!(seen.dropped, 0, "{place:?}");
        if place.is_none() {
            assert_eq!(
                kernel.log().matches("is reached; the output goes").count(),
                1
            );
            assert_eq!(kernel.log().matches("cannot store output").count(), 0);
        }
    }
}

#[test]
fn a_reel_moved_after_its_keeper_died_was_not_the_stand_ins() {
    let folder = tempfile::tempdir().unwrap();
    let points = Failpoints::at(folder.path());
    let mut kernel = Kernel::builder()
        .environment(Failpoints::VARIABLE, folder.path().to_str().unwrap())
        .start();
    let mut expected = Vec::new();
    for number in 1..=1_200_000 {
        std::io::Write::write_fmt(&mut expected, format_args!("{number}\n")).unwrap();
    }
    let mut collector = Collector::new(&kernel.socket_path(), &["w"]);
    let made = kernel.json().make_process(
        "w",
        &["seq", "1200000"],
        json!({"env": {"PATH": "/usr/bin:/bin"}, "overflow": "block"}),
    );
    let serial = made["serial"].as_u64().unwrap();
    collector.run_until("output comes", PATIENCE, |all| {
        let seen = all.seen.get(&serial);
        seen.is_some_and(|seen| seen.bytes.len() >= 1_000_000)
    });
    // Without the collector: a kernel that stands still takes no consumer.
    let stands_still = |place: &str| {
        wait_for(place, || {
            let hit = points.hit(place)?;
            (procfs::stat(hit.pid)?.state == 'T').then_some(hit.pid)
        })
    };
    // The keeper dies while the new reel is on its way to it.
    points.arm("reel.copied", 1, "kernel");
    limit_files(&mut kernel, 4 << 20);
    collector.run_until("the reel is copied", PATIENCE, |_| {
        points.hit("reel.copied").is_some()
    });
    let pid = stands_still("reel.copied");
    let keeper = procfs::stat(pid).unwrap().parent;
    points.arm("understudy.waits", 1, "kernel");
    procfs::signal(keeper, Signal::SIGKILL);
    procfs::signal(pid, Signal::SIGCONT);
    assert_eq!(stands_still("understudy.waits"), pid);
    // It dies as soon as it has taken anything the stand-in might not have.
    points.arm("capture.indexed", 1, "kernel");
    procfs::signal(pid, Signal::SIGCONT);
    // The reel may be full, so that something has to be acknowledged before anything is taken; and
    // whoever consumes must not wait for a kernel that stands still.
    let seen = std::thread::scope(|scope| {
        scope.spawn(|| {
            let taker = stands_still("capture.indexed");
            let end = if taker == pid {
                Signal::SIGKILL
            } else {
                Signal::SIGCONT
            };
            procfs::signal(taker, end);
        });
        collector.finish(serial)
    });
    assert_same_bytes("all lines", &expected, &seen.bytes);
    assert_eq!(seen.dropped, 0);
    // A full reel that another kernel finds is no trouble.
    assert_eq!(kernel.log().matches("ENOSPC").count(), 0);
}

#[test]
fn output_that_cannot_be_stored_is_told_with_the_process_and_once_in_the_log() {
    let mut kernel = Kernel::start();
    let mut collector = Collector::new(&kernel.socket_path(), &["w"]);
    let go = kernel.path("go");
    let script = format!("until [ -e {go} ]; do sleep 0.01; done; head -c 20000000 /dev/zero");
    kernel.json().make_process(
        "w",
        &["/bin/sh", "-c", &script],
        json!({"env": {"PATH": "/usr/bin:/bin"}}),
    );
    // A limit that comes later, and below which there is no room for any output.
    limit_files(&mut kernel, 200_000);
    std::fs::write(&go, "").unwrap();
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
    assert_eq!(kernel.log().matches("cannot store output").count(), 1);
}
