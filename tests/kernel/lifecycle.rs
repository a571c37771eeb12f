//! How the daemon starts, says that it serves, and ends.

use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::json;

use papa_harness::{
    Classic, Json, Kernel, Scratch, binary, free_port, private_command, procfs, wait_for,
    wait_until,
};

fn pid(value: &serde_json::Value) -> i32 {
    i32::try_from(value.as_i64().expect("a pid is a number")).expect("a pid fits")
}

#[test]
fn a_second_kernel_on_the_port_says_so_and_exits_1() {
    let kernel = Kernel::start();
    let output = private_command(&binary("papa"), kernel.directory())
        .args(["--port", &kernel.port().to_string()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains(&kernel.port().to_string()), "{text}");
    assert_eq!(kernel.classic().ask("get a"), "");

    // The same port from another runtime directory: only the port is in the way.
    let elsewhere = Scratch::new();
    let output = elsewhere
        .papa()
        .args(["--port", &kernel.port().to_string()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(!output.stderr.is_empty());
}

#[test]
fn a_place_that_another_papa_of_this_user_serves_named_no_process() {
    let mut kernel = Kernel::start();
    let port = kernel.port().to_string();
    let path = kernel.directory().join("papa").join(format!("{port}.sock"));
    let path = path.to_str().unwrap();
    let refusal = |directory: &Path, arguments: &[&str]| {
        let output = private_command(&binary("papa"), directory)
            .args(arguments)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let elsewhere = Scratch::new();
    let keeper = format!(
        "papa: keeper {port} (pid {})",
        pid(&kernel.status()["keeper"])
    );
    let by_telnet = format!("telnet localhost {port}");
    for (directory, arguments, place, way) in [
        (
            kernel.directory(),
            &["--port", &port][..],
            format!("port {port}"),
            &*by_telnet,
        ),
        (
            elsewhere.directory(),
            &["--port", &port],
            format!("port {port}"),
            &by_telnet,
        ),
        (
            elsewhere.directory(),
            &["--port", &port, "--tcp", "off"],
            format!("/{port} "),
            &by_telnet,
        ),
        (
            elsewhere.directory(),
            &["--unix-socket", path],
            path.to_owned(),
            "papa_endpoint",
        ),
    ] {
        let said = refusal(directory, arguments);
        assert_eq!(said.lines().count(), 1, "{said}");
        for part in [&*place, "served by another papa of this user", &keeper, way] {
            assert!(said.contains(part), "{arguments:?}, {part}: {said}");
        }
    }
    // Who has the port is another program: its name, and what to do.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let said = refusal(elsewhere.directory(), &["--port", &port]);
    let own = format!("(pid {}): end it", std::process::id());
    assert!(said.contains(&own) && said.contains("-p "), "{said}");
}

#[test]
fn wrong_arguments_exit_2() {
    let scratch = Scratch::new();
    for arguments in [&["--port", "x"][..], &["--nosuch"], &["--tcp", "maybe"]] {
        let output = scratch.papa().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn daemonize_returns_when_it_serves() {
    let scratch = Scratch::new();
    let port = free_port();
    let (pid_file, log_file) = (scratch.path("pid"), scratch.path("log"));
    let daemonize = || {
        let mut command = scratch.papa();
        command
            .args(["--daemonize", "--port", &port.to_string()])
            .args(["--pid-file", &pid_file, "--log-file", &log_file]);
        command
    };
    let output = daemonize().output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // No waiting: it said that it serves.
    assert_eq!(Classic::tcp(port).ask("set a b"), "");
    let status = scratch.status(port);
    let written: i32 = fs::read_to_string(&pid_file)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert!(
        [pid(&status["keeper"]), pid(&status["pid"])].contains(&written),
        "{written}: {status}"
    );
    let daemon = procfs::stat(written).unwrap();
    let own = procfs::stat(i32::try_from(std::process::id()).unwrap()).unwrap();
    assert_ne!(daemon.session, own.session);
    assert!(fs::metadata(&log_file).is_ok());

    let second = daemonize().output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(!second.stderr.is_empty(), "it says why it cannot");
    assert_eq!(Classic::tcp(port).ask("get a"), "b");
}

#[test]
fn a_unix_path_of_the_users_choosing() {
    let scratch = Scratch::new();
    let path = scratch.path("chosen.sock");
    let mut child = scratch
        .papa()
        .args(["--unix-socket", &path])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the path is served", || {
        std::os::unix::net::UnixStream::connect(&path).is_ok()
    });
    let mut client = Classic::unix(std::path::Path::new(&path));
    client.ask("set a b");
    assert_eq!(client.ask("get a"), "b");
    drop(client);
    procfs::signal(i32::try_from(child.id()).unwrap(), Signal::SIGTERM);
    wait_until("it ends", || child.try_wait().unwrap().is_some());
}

#[test]
fn tcp_can_be_switched_off() {
    let kernel = Kernel::builder()
        .argument("--tcp")
        .argument("off")
        .port(free_port())
        .start();
    assert!(std::net::TcpStream::connect(("127.0.0.1", kernel.port())).is_err());
    kernel.json().ok("status", json!({}));
}

#[test]
fn tcp_can_be_for_reading_only() {
    let kernel = Kernel::builder()
        .argument("--tcp")
        .argument("read-only")
        .start();
    let mut client = kernel.classic();
    Classic::unix(&kernel.socket_path()).ask("set a b");
    assert_eq!(client.ask("get a"), "b");
    client.ask_error("set a c");
    client.ask_error("make socket s");
    client.ask_error("make process p /bin/true");
    client.ask_error("remove values a");
    assert_eq!(client.ask("list values"), "a b");
}

#[test]
fn the_listener_comes_from_the_service_manager_and_readiness_goes_to_it() {
    let scratch = Scratch::new();
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let notify_path = scratch.path("notify");
    let notify = UnixDatagram::bind(&notify_path).unwrap();
    notify
        .set_read_timeout(Some(papa_harness::PATIENCE))
        .unwrap();
    // The shell puts the listener where systemd puts it and becomes the kernel under the pid it has
    // named.
    let script =
        "exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$0\" --port \"$1\"";
    let mut child = private_command(std::path::Path::new("/bin/sh"), scratch.directory())
        .args(["-c", script])
        .arg(binary("papa"))
        .arg(port.to_string())
        .env("NOTIFY_SOCKET", &notify_path)
        .stdin(std::os::fd::OwnedFd::from(listener))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut bytes = [0; 512];
    let count = notify.recv(&mut bytes).expect("it says that it is ready");
    let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
    assert!(text.lines().any(|line| line == "READY=1"), "{text:?}");
    assert_eq!(Classic::tcp(port).ask("get a"), "");
    procfs::signal(i32::try_from(child.id()).unwrap(), Signal::SIGTERM);
    wait_until("it ends", || child.try_wait().unwrap().is_some());
}

#[test]
fn a_service_manager_is_told_whom_to_watch_before_the_keeper_it_watches_goes() {
    let scratch = Scratch::new();
    let port = free_port();
    let notify_path = scratch.path("notify");
    let notify = UnixDatagram::bind(&notify_path).unwrap();
    notify
        .set_read_timeout(Some(papa_harness::PATIENCE))
        .unwrap();
    let mut child = private_command(&binary("papa"), scratch.directory())
        .args(["--port", &port.to_string()])
        .env("NOTIFY_SOCKET", &notify_path)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let told = || {
        let mut bytes = [0; 512];
        let count = notify.recv(&mut bytes).expect("it says something");
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    };
    let mut main = child.id();
    assert_eq!(told(), format!("READY=1\nMAINPID={main}"));
    for _ in 0..2 {
        let mut client = Json::tcp(port).expect("it serves");
        let next = client.ok("status", json!({}))["pid"].as_u64().unwrap();
        assert_ne!(next, u64::from(main));
        client.ok("kernel.upgrade", json!({"keeper": true}));
        main = u32::try_from(next).unwrap();
        // By the one that is watched, then by the one that is from now on.
        assert_eq!(told(), format!("MAINPID={main}"));
        assert_eq!(told(), format!("READY=1\nMAINPID={main}"));
    }
    // Neither the kernel nor what it starts is to speak to the service manager.
    let kernel = Json::tcp(port).unwrap().ok("status", json!({}))["pid"].clone();
    let environment = std::fs::read(format!("/proc/{kernel}/environ")).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("NOTIFY_SOCKET"));
    procfs::signal(i32::try_from(main).unwrap(), Signal::SIGTERM);
    child.wait().expect("the first keeper has ended");
    wait_until("all has ended", || Json::tcp(port).is_err());
}

#[test]
fn what_the_launcher_was_started_with_goes_no_further() {
    let scratch = Scratch::new();
    let port = free_port();
    let script = "exec 9>\"$0\"; exec \"$1\" --port \"$2\"";
    let mut child = private_command(std::path::Path::new("/bin/sh"), scratch.directory())
        .args(["-c", script, &scratch.path("held")])
        .arg(binary("papa"))
        .arg(port.to_string())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let kernel = pid(&scratch.status(port)["pid"]);
    for pid in [i32::try_from(child.id()).unwrap(), kernel] {
        let held = procfs::descriptors(pid);
        assert!(
            held.iter().all(|(_, name)| !name.ends_with("/held")),
            "{held:?}"
        );
    }
    procfs::signal(kernel, Signal::SIGTERM);
    wait_until("it ends", || child.try_wait().unwrap().is_some());
}

#[test]
fn exit_if_idle_ends_both_processes() {
    let mut kernel = Kernel::start();
    let (pid, keeper) = (kernel.pid(), kernel.keeper());
    let mut client = kernel.classic();
    client.ask("set a b");
    assert_eq!(client.ask("exit-if-idle"), "not idle");
    client.ask("set a");
    client.send("exit-if-idle");
    assert!(client.read_to_end().starts_with("Exiting papa!\n"));
    drop(client);
    assert_eq!(kernel.wait_exit(), Some(0));
    assert!(!procfs::alive(pid) && !procfs::alive(keeper));
    assert!(!kernel.socket_path().exists(), "its socket is gone");
}

#[test]
fn kernel_exit_is_denied_while_something_is_held() {
    let mut kernel = Kernel::start();
    let mut session = kernel.json();
    session.ok("value.set", json!({"name": "a", "value": "b"}));
    assert_eq!(session.error("kernel.exit", json!({})), "denied");
    session.ok("value.remove", json!({"names": ["a"]}));
    session.ok("kernel.exit", json!({}));
    drop(session);
    assert_eq!(kernel.wait_exit(), Some(0));
}

#[test]
fn a_termination_signal_ends_an_idle_kernel() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut kernel = Kernel::start();
        procfs::signal(kernel.keeper(), signal);
        assert_eq!(kernel.wait_exit(), Some(0), "{signal}");
    }
}

#[test]
fn a_busy_kernel_announces_and_stays_and_the_second_signal_leaves_the_workers() {
    let mut kernel = Kernel::start();
    let mut manager = kernel.json();
    manager.ok("claim", json!({"namespace": "app", "holder": "a test"}));
    let process = manager.make_process("app.1", &["/bin/sleep", "60"], json!({}));
    let worker = pid(&process["pid"]);
    let keeper = kernel.keeper();
    procfs::signal(keeper, Signal::SIGTERM);
    assert_eq!(manager.push_of("shutdown")["signal"], 15);
    // It has dealt with the signal, and serves.
    manager.ok("status", json!({}));
    procfs::signal(keeper, Signal::SIGTERM);
    assert_eq!(kernel.wait_exit(), Some(0));
    assert!(procfs::alive(worker), "the worker runs on");
    procfs::signal(worker, Signal::SIGKILL);
}

#[test]
fn a_hangup_is_ignored() {
    let mut kernel = Kernel::start();
    let before = kernel.status();
    for key in ["pid", "keeper"] {
        procfs::signal(pid(&before[key]), Signal::SIGHUP);
    }
    for key in ["pid", "keeper"] {
        wait_until("the signal has arrived", || {
            let pending = procfs::status_line(pid(&before[key]), "ShdPnd");
            pending.is_none_or(|mask| mask.chars().all(|digit| digit == '0'))
        });
    }
    let after = kernel.status();
    assert_eq!(before["incarnation"], after["incarnation"]);
    assert_eq!(before["pid"], after["pid"]);
}

#[test]
fn titles_tell_keeper_and_kernel_apart() {
    let mut kernel = Kernel::start();
    let title = |pid: i32| {
        let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ")
    };
    let (one, other) = (title(kernel.pid()), title(kernel.keeper()));
    assert_ne!(one, other);
    assert!(other.contains("keeper"), "{other:?}");
}

#[test]
fn it_starts_with_closed_descriptors_blocked_signals_and_no_tty() {
    let scratch = Scratch::new();
    let port = free_port();
    // As a careless caller leaves it: no standard descriptors at all, SIGCHLD and SIGPIPE ignored.
    let script = "trap '' CHLD PIPE; exec \"$0\" --port \"$1\" <&- >&- 2>&-";
    let mut child = private_command(std::path::Path::new("/bin/sh"), scratch.directory())
        .args(["-c", script])
        .arg(binary("papa"))
        .arg(port.to_string())
        .spawn()
        .unwrap();
    scratch.status(port);
    let mut client = Classic::tcp(port);
    client.ask("make process p /bin/sh -c echo\\ x;exit\\ 3");
    wait_until("its exit is seen", || {
        client.ask("list processes").contains("running=False")
    });
    client.send("watch processes p");
    assert!(
        client.read_until("] ").contains(":2\nx\n"),
        "descriptors 0 to 2 were taken care of"
    );
    let _ = child.kill();
    let _ = child.wait();
}

#[test]
fn the_socket_comes_back_when_its_folder_was_cleaned_away() {
    let mut kernel = Kernel::start();
    let (keeper, serving) = (kernel.keeper(), kernel.pid());
    let mut session = kernel.json();
    let before = (
        procfs::open_descriptors(keeper),
        procfs::open_descriptors(serving),
    );
    fs::remove_dir_all(kernel.runtime_dir()).unwrap();
    wait_for("the unix socket is there again", || {
        session.ok("status", json!({}));
        papa_harness::Json::unix(&kernel.socket_path()).ok()
    });
    // The listener nobody finds any more is gone on both sides.
    wait_until("no more descriptors are open than before", || {
        session.ok("status", json!({}));
        let now = (
            procfs::open_descriptors(keeper),
            procfs::open_descriptors(serving),
        );
        now.0 <= before.0 && now.1 <= before.1
    });
}

#[test]
fn the_version_is_told() {
    let output = Command::new(binary("papa"))
        .arg("--version")
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn as_pid_1_it_reaps_strays_and_passes_the_termination_signal_on() {
    if !papa_harness::is_root() {
        return papa_harness::skipped("a pid namespace takes root");
    }
    let scratch = Scratch::new();
    let port = free_port();
    let mut child = private_command(std::path::Path::new("unshare"), scratch.directory())
        .args(["--pid", "--fork", "--mount-proc", "--kill-child"])
        .arg(binary("papa"))
        .args(["--port", &port.to_string()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let status = scratch.status(port);
    assert_eq!(status["keeper"], 1, "{status}");
    let init = wait_for("the keeper is found from outside", || {
        procfs::children(i32::try_from(child.id()).unwrap())
            .first()
            .copied()
    });

    // A grandchild whose parent goes falls to PID 1 and must not stay a zombie.
    let mut client = Classic::tcp(port);
    client.ask("make process stray /bin/sh -c sleep\\ 0.2&exit\\ 0");
    client.ask("make process calm /bin/sleep 60");
    wait_until("only the kernel and the two it made are left", || {
        let below = procfs::descendants(init);
        below.iter().filter(|pid| procfs::alive(**pid)).count() == 2 && below.len() <= 3
    });

    procfs::signal(init, Signal::SIGTERM);
    wait_until("its processes were told", || {
        let below = procfs::descendants(init);
        below.iter().filter(|pid| procfs::alive(**pid)).count() <= 1
    });
    // Idle now, or gone already: another one ends it in any case.
    procfs::signal(init, Signal::SIGTERM);
    wait_until("everything has ended", || {
        child.try_wait().unwrap().is_some()
    });
}

#[test]
fn other_sessions_do_not_keep_a_kernel_that_was_asked_to_end() {
    let mut kernel = Kernel::start();
    let mut person = kernel.classic();
    let mut follower = kernel.json();
    follower.ok("output.follow", json!({"names": ["*"]}));
    // One that asked in between cancelled the end.
    let mut late = kernel.classic();
    let mut session = kernel.json();
    session.ok("kernel.exit", json!({}));
    let _ = late.send_bytes(b"set a b\n");
    assert_eq!(follower.push_of("shutdown")["ends"], true);
    assert!(person.read_to_end().contains("The kernel ends"));
    assert!(!late.read_to_end().contains("> "), "nothing is done for it");
    assert_eq!(kernel.wait_exit(), Some(0));
}

#[test]
fn a_session_that_reads_nothing_does_not_keep_a_kernel_that_was_asked_to_end() {
    let mut kernel = Kernel::start();
    let mut deaf = kernel.classic();
    deaf.send(&format!("set a {}", "x".repeat(1 << 20)));
    for _ in 0..64 {
        let _ = deaf.send_bytes(b"get a\n");
    }
    let mut session = kernel.json();
    wait_until("the value is there", || {
        session.ok("value.get", json!({"name": "a"}))["value"] != serde_json::Value::Null
    });
    session.ok("value.remove", json!({"names": ["a"]}));
    session.ok("kernel.exit", json!({}));
    assert_eq!(kernel.wait_exit(), Some(0));
}

#[test]
fn a_pid_file_that_cannot_be_written_leaves_nothing_behind() {
    let scratch = Scratch::new();
    for daemonize in [false, true] {
        let port = free_port();
        let mut command = private_command(&binary("papa"), scratch.directory());
        command.args([
            "--port",
            &port.to_string(),
            "--pid-file",
            "/nonexistent/papa.pid",
        ]);
        if daemonize {
            command.arg("--daemonize");
        }
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(
            text.contains("--pid-file") && text.contains("/nonexistent/papa.pid"),
            "{text}"
        );
        assert!(!scratch.socket_path(port).exists(), "its socket is left");
        assert!(
            TcpListener::bind(("127.0.0.1", port)).is_ok(),
            "somebody serves"
        );
    }
}

#[test]
fn as_pid_1_it_gives_the_manager_time_before_anybody_is_told_to_end() {
    if !papa_harness::is_root() {
        return papa_harness::skipped("a pid namespace takes root");
    }
    let scratch = Scratch::new();
    let port = free_port();
    let mut child = private_command(std::path::Path::new("unshare"), scratch.directory())
        .args(["--pid", "--fork", "--mount-proc", "--kill-child"])
        .arg(binary("papa"))
        .args(["--port", &port.to_string()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    scratch.status(port);
    let mut manager = Json::unix(&scratch.socket_path(port)).unwrap();
    manager.ok("claim", json!({"namespace": "app", "holder": "a test"}));
    manager.make_process("app.1", &["/bin/sleep", "60"], json!({}));
    let init = wait_for("the keeper is found from outside", || {
        let children = procfs::children(i32::try_from(child.id()).unwrap());
        children.first().copied()
    });
    procfs::signal(init, Signal::SIGTERM);
    assert_eq!(manager.push_of("shutdown")["signal"], 15);
    // The manager decides what ends when: nothing was told to end meanwhile.
    let app = manager.process("app.1").unwrap();
    assert_eq!(app["running"], true, "{app}");
    drop(manager);
    wait_until("everything has ended once the manager has gone", || {
        child.try_wait().unwrap().is_some()
    });
}
