//! `papactl up` as it meets other shells, other users' directories and itself; and `up
//! --foreground`, in a terminal and as process 1.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Output, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, Flock, FlockArg, fcntl};
use nix::sys::signal::Signal;

use papa_harness::{Site, binary, is_root, private_command, procfs, skipped, wait_for, wait_until};

/// `papactl up --foreground` with further options.
fn foreground(site: &Site, options: &str) -> Child {
    site.command("papactl", &format!("up --foreground {options} site.ini"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn signal(child: &Child, signal: Signal) {
    procfs::signal(i32::try_from(child.id()).unwrap(), signal);
}

const TALKER: &str = "[watcher:web]\ncmd = sh -c 'trap \"echo bye; exit\" TERM; printf \"hello \\033[2J\\n\"; echo oops >&2; while :; do sleep 0.1; done'\n";

#[test]
fn term_in_the_foreground_left_the_workers_and_showed_nothing_of_them() {
    let site = Site::new(TALKER);
    let mut up = foreground(&site, "");
    let workers = site.wait_workers(1);
    let mut lines = BufReader::new(up.stdout.take().unwrap()).lines();
    let mut seen = Vec::new();
    while !seen.iter().any(|line: &String| line.contains("oops")) {
        seen.push(lines.next().unwrap().unwrap());
    }
    signal(&up, Signal::SIGTERM);
    seen.extend(lines.map(Result::unwrap));
    assert_eq!(up.wait().unwrap().code(), Some(0));
    for line in ["web:1 | hello ^[[2J", "web:1 | oops", "web:1 | bye"] {
        assert!(seen.iter().any(|seen| seen == line), "{line}: {seen:?}");
    }
    assert!(workers.iter().all(|pid| !procfs::alive(*pid)));
    wait_until("the kernel has ended", || {
        site.scratch.processes().is_empty()
    });
}

#[test]
fn workers_are_kept_by_a_manager_in_the_foreground_that_is_asked_to() {
    let site = Site::new("[watcher:web]\ncmd = sleep 1000\n");
    let mut up = foreground(&site, "--keep-workers");
    let workers = site.wait_workers(1);
    signal(&up, Signal::SIGINT);
    assert_eq!(up.wait().unwrap().code(), Some(0));
    assert!(workers.iter().all(|pid| procfs::alive(*pid)));
}

#[test]
fn a_second_interrupt_ends_the_patience_with_a_deaf_worker() {
    let site = Site::new(
        "[watcher:deaf]\ncmd = sh -c 'trap \"\" TERM; touch DIR/up; while :; do sleep 0.1; done'\ngraceful_timeout = 600\n",
    );
    let mut up = foreground(&site, "");
    let workers = site.wait_workers(1);
    wait_until("it ignores TERM", || {
        site.scratch.directory().join("up").exists()
    });
    signal(&up, Signal::SIGINT);
    wait_until("the manager is stopping", || {
        let status = site.status();
        status["watchers"][0]["state"] == "stopping"
    });
    assert!(workers.iter().all(|pid| procfs::alive(*pid)));
    signal(&up, Signal::SIGINT);
    assert_eq!(up.wait().unwrap().code(), Some(0));
    assert!(workers.iter().all(|pid| !procfs::alive(*pid)));
}

#[test]
fn a_standard_output_that_nobody_reads_stalls_neither_workers_nor_the_manager() {
    let site = Site::new(
        "[watcher:loud]\ncmd = sh -c 'i=0; while [ $i -lt 40 ]; do head -c 100000 /dev/zero | tr \"\\\\0\" x; echo; i=$((i+1)); done; touch DIR/done; sleep 1000'\n",
    );
    let mut up = foreground(&site, "");
    site.wait_workers(1);
    wait_until("the worker has written 4 MB", || {
        site.scratch.directory().join("done").exists()
    });
    let restarted = site.papactl("restart loud");
    assert!(restarted.status.success(), "{}", said(&restarted));
    signal(&up, Signal::SIGTERM);
    assert_eq!(up.wait().unwrap().code(), Some(0));
}

#[test]
fn as_process_1_it_reaps_what_it_adopts_and_starts_a_manager_that_was_killed() {
    let site = Site::new("[watcher:web]\ncmd = sleep 1000\n");
    let mut up = private_command("unshare".as_ref(), site.scratch.directory())
        .current_dir(site.scratch.directory())
        .args(["-p", "-f", "--mount-proc", "--kill-child"])
        .arg(binary("papactl"))
        .args(["up", "--foreground", "site.ini"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let first = || {
        procfs::children(i32::try_from(up.id()).unwrap())
            .first()
            .copied()
    };
    let first = wait_for("process 1", first);
    let named = |name: &str| {
        site.scratch
            .processes()
            .into_iter()
            .filter(|pid| {
                fs::read_to_string(format!("/proc/{pid}/comm"))
                    .is_ok_and(|comm| comm.trim() == name)
            })
            .collect::<Vec<_>>()
    };
    let worker = wait_for("the worker", || named("sleep").first().copied());
    let manager = wait_for("the manager", || named("papa-manager").first().copied());
    procfs::signal(manager, Signal::SIGKILL);
    wait_until("another manager", || {
        named("papa-manager").iter().any(|pid| *pid != manager)
    });
    assert!(procfs::alive(worker), "the worker was killed unasked");
    // A grandchild whose parent has gone.
    let entered = Command::new("nsenter")
        .args([
            "-t",
            &first.to_string(),
            "-p",
            "-m",
            "sh",
            "-c",
            "sh -c 'sleep 0.3' & exit 0",
        ])
        .status()
        .unwrap();
    assert!(entered.success());
    wait_until("nobody is left to wait for", || {
        procfs::children(first)
            .into_iter()
            .all(|pid| procfs::stat(pid).is_none_or(|stat| stat.state != 'Z'))
    });
    wait_until("the manager answers", || site.workers().len() == 1);
    procfs::signal(first, Signal::SIGTERM);
    assert_eq!(up.wait().unwrap().code(), Some(0));
    assert!(!procfs::alive(worker));
}

#[test]
fn a_manager_used_the_kernel_of_another_process_namespace_and_could_stop_nothing() {
    if !is_root() {
        return skipped("a process namespace takes root");
    }
    let site = Site::new("[watcher:web]\ncmd = sleep 1000\n");
    assert!(site.papactl("up site.ini").status.success());
    let workers = site.wait_workers(1);
    assert!(site.papactl("quit").status.success());
    let inside = |words: &[&str]| {
        private_command("unshare".as_ref(), site.scratch.directory())
            .current_dir(site.scratch.directory())
            .args(["-p", "-f", "--mount-proc", "--kill-child"])
            .arg(binary(words[0]))
            .args(&words[1..])
            .output()
            .unwrap()
    };
    for words in [
        &["papa-manager", "site.ini"][..],
        &["papactl", "up", "site.ini"],
        &["papactl", "up", "--foreground", "site.ini"],
    ] {
        let output = inside(words);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {said}");
        for part in ["k.sock", "another process namespace", "papa_endpoint"] {
            assert!(said.contains(part), "{words:?}, {part}: {said}");
        }
    }
    assert!(workers.iter().all(|pid| procfs::alive(*pid)));
    // Where it belongs, a manager goes on with them.
    assert!(site.papactl("up site.ini").status.success());
    assert_eq!(site.workers(), workers);
    site.papactl("down");
}

#[test]
fn a_second_manager_was_started_from_another_runtime_directory() {
    let site = Site::new("[watcher:web]\ncmd = sleep 1000\n");
    assert!(site.papactl("up site.ini").status.success());
    let workers = site.wait_workers(1);
    let elsewhere = tempfile::tempdir().unwrap();
    let refused = site
        .command("papactl", "up site.ini")
        .env("XDG_RUNTIME_DIR", elsewhere.path())
        .output()
        .unwrap();
    let said = said(&refused);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    let manager = site.status()["manager"]["pid"].to_string();
    let directory = site.scratch.directory().join("papa");
    for part in [&format!("pid {manager}"), directory.to_str().unwrap()] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!elsewhere.path().join("papa/circus.manager.sock").exists());
    assert_eq!(site.workers(), workers);
    site.papactl("down");
}

#[test]
fn of_ten_that_bring_it_up_at_once_one_failed_with_a_riddle() {
    let site = Site::new("[watcher:web]\ncmd = sleep 1000\nnumprocesses = 2\n");
    let all: Vec<Child> = (0..10)
        .map(|_| {
            site.command("papactl", "up site.ini")
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for child in all {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(printed.contains("2/2"), "{printed}");
    }
    assert_eq!(site.workers().len(), 2);
    site.papactl("down");
}

#[test]
fn a_lock_of_the_shell_that_typed_up_stayed_taken() {
    let site = Site::new("[watcher:web]\ncmd = sleep 1000\n");
    let path = site.scratch.directory().join("lock");
    let file = fs::File::create(&path).unwrap();
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
    fcntl(&*lock, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    assert!(site.papactl("up site.ini").status.success());
    let upgraded = site.papactl("upgrade");
    assert!(upgraded.status.success(), "{}", said(&upgraded));
    // Closed, not unlocked: unlocking would free it for all who have it.
    assert!(lock.as_raw_fd() > 2);
    fcntl(&*lock, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
    for pid in site.scratch.processes() {
        let open = procfs::descriptors(pid);
        assert!(
            open.iter().all(|(_, target)| !target.contains("/lock")),
            "{pid} {}: {open:?}",
            fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default()
        );
    }
    site.papactl("down");
}

#[test]
fn a_manager_without_a_kernel_waited_in_silence() {
    let site = Site::new("[watcher:web]\ncmd = sleep 1000\n");
    let mut manager = site
        .command("papa-manager", "site.ini")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(manager.stderr.take().unwrap()).lines();
    let line = lines
        .find_map(|line| line.ok().filter(|line| line.contains("waiting for one")))
        .unwrap();
    let directory = site.scratch.directory().display().to_string();
    for part in [
        format!("no kernel runs at {directory}/k.sock; waiting for one"),
        format!("`papactl up {directory}/site.ini`"),
        format!("`papa --daemonize --unix-socket {directory}/k.sock` starts it"),
    ] {
        assert!(line.contains(&part), "{part}: {line}");
    }
    assert!(!line.contains("os error"), "{line}");
    let mut kernel = site
        .command("papa", "--unix-socket")
        .arg(site.scratch.directory().join("k.sock"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    assert!(lines.any(|line| line.is_ok_and(|line| line.contains("connected to the kernel"))));
    signal(&manager, Signal::SIGTERM);
    assert!(manager.wait().unwrap().success());
    let _ = kernel.kill();
    let _ = kernel.wait();
}

#[test]
fn a_runtime_directory_that_cannot_be_used_names_its_remedy_everywhere() {
    let site = Site::new("[watcher:web]\ncmd = sleep 1000\n");
    let deep = site.scratch.directory().join("x".repeat(100));
    let foreign = site.scratch.directory().join("foreign");
    for directory in [&deep, &foreign] {
        fs::create_dir(directory).unwrap();
    }
    std::os::unix::fs::chown(&foreign, Some(12345), None).unwrap();
    let absent = site.scratch.directory().join("nobody/made/this");
    let all = [
        (&deep, "107", "XDG_RUNTIME_DIR"),
        (&foreign, "12345", "unset it"),
        (&absent, "No such file", "unset it"),
    ];
    for (directory, cause, remedy) in all {
        for (program, words) in [
            ("papactl", "up site.ini"),
            ("papa-manager", "site.ini"),
            ("papa", "--port 20977"),
        ] {
            // The kernel makes what is missing.
            if program == "papa" && directory == &absent {
                continue;
            }
            let output = site
                .command(program, words)
                .env("XDG_RUNTIME_DIR", directory)
                .output()
                .unwrap();
            let said = said(&output);
            assert!(!output.status.success(), "{program}: {said}");
            let last = said.lines().last().unwrap_or_default();
            assert!(
                last.contains(cause) && last.contains(remedy),
                "{program}: {said}"
            );
            assert_eq!(
                last.matches(cause).count(),
                1,
                "said twice: {program}: {said}"
            );
        }
    }
}

#[test]
fn with_few_descriptors_workers_could_not_be_stopped_and_the_kernel_was_lost_again_and_again() {
    let mut ini = String::new();
    for number in 0..100 {
        ini.push_str(&format!(
            "[watcher:w{number}]\ncmd = sh -c 'while :; do echo line; sleep 0.5; done'\ngraceful_timeout = 5\n\
             stdout_stream.class = FileStream\nstdout_stream.filename = DIR/logs/w{number}.log\n"
        ));
    }
    let site = Site::new(&ini);
    fs::create_dir(site.scratch.directory().join("logs")).unwrap();
    let mut kernel = site
        .command("papa", "--unix-socket")
        .arg(site.scratch.directory().join("k.sock"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the kernel serves", || {
        std::os::unix::net::UnixStream::connect(site.scratch.directory().join("k.sock")).is_ok()
    });
    let log = site.scratch.directory().join("manager.log");
    let mut manager = private_command("sh".as_ref(), site.scratch.directory())
        .current_dir(site.scratch.directory())
        .arg("-c")
        .arg(format!(
            "ulimit -n 40; exec {} --log-file {} site.ini",
            binary("papa-manager").display(),
            log.display()
        ))
        .spawn()
        .unwrap();
    let lines = |number: usize| {
        let path = site.scratch.path(&format!("logs/w{number}.log"));
        fs::read_to_string(path).map_or(0, |text| text.lines().count())
    };
    wait_until("every log has lines", || {
        (0..100).all(|number| lines(number) >= 2)
    });
    let stopped = site.papactl("stop w5 --timeout 20");
    assert!(stopped.status.success(), "{}", said(&stopped));
    let down = site.papactl("down");
    assert!(down.status.success(), "{}", said(&down));
    assert!(manager.wait().unwrap().success());
    let text = fs::read_to_string(&log).unwrap();
    assert!(!text.contains("the kernel is gone"), "{text}");
    assert_eq!(text.matches("too few descriptors").count(), 1, "{text}");
    let _ = kernel.kill();
    let _ = kernel.wait();
}
