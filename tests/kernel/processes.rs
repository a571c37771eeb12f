//! What a process is given: its environment, identity, limits, descriptors; and what stays of it
//! when it ends.

use serde_json::{Value, json};

use papa_harness::{Collector, Kernel, is_root, procfs, skipped, wait_until};

fn pid(process: &Value) -> i32 {
    i32::try_from(process["pid"].as_i64().expect("a process has a pid")).expect("a pid fits")
}

/// Runs a program to its end and gives its standard output.
fn output_of(kernel: &Kernel, argv: &[&str], more: Value) -> String {
    let process = kernel.json().make_process("probe", argv, more);
    let serial = process["serial"].as_u64().expect("a process has a serial");
    let seen = Collector::new(&kernel.socket_path(), &["probe"]).finish(serial);
    String::from_utf8_lossy(&seen.bytes).into_owned()
}

#[test]
fn the_environment_is_exactly_what_was_given() {
    let kernel = Kernel::start();
    let shown = output_of(
        &kernel,
        &["/usr/bin/env"],
        json!({"env": {"ONE": "1", "TWO": "a b\nc", "EMPTY": ""}}),
    );
    let mut lines: Vec<&str> = shown.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["EMPTY=", "ONE=1", "TWO=a b", "c"]);
}

#[test]
fn the_environment_is_inherited_only_where_asked_for() {
    let kernel = Kernel::start();
    let shown = output_of(
        &kernel,
        &["/usr/bin/env"],
        json!({"env_inherit": true, "env": {"MORE": "x"}}),
    );
    let directory = format!("XDG_RUNTIME_DIR={}", kernel.directory().display());
    assert!(shown.lines().any(|line| line == directory), "{shown}");
    assert!(shown.lines().any(|line| line == "MORE=x"), "{shown}");
}

#[test]
fn standard_input_is_empty_and_the_session_new() {
    let kernel = Kernel::start();
    assert_eq!(output_of(&kernel, &["/bin/cat"], json!({})), "");
    let process = kernel
        .json()
        .make_process("sleeper", &["/bin/sleep", "60"], json!({}));
    let pid = pid(&process);
    let stat = procfs::stat(pid).expect("it runs");
    assert_eq!((stat.session, stat.group), (pid, pid));
}

#[test]
fn directory_umask_and_nice_are_set() {
    let kernel = Kernel::start();
    assert_eq!(
        output_of(&kernel, &["/bin/pwd"], json!({"working_dir": "/usr"})),
        "/usr\n"
    );
    assert_eq!(
        output_of(
            &kernel,
            &["/bin/sh", "-c", "umask; nice"],
            json!({"umask": "027", "nice": 5, "env": {"PATH": "/usr/bin:/bin"}})
        ),
        "0027\n5\n"
    );
}

#[test]
fn limits_are_set_soft_and_hard() {
    let kernel = Kernel::start();
    assert_eq!(
        output_of(
            &kernel,
            &["/bin/sh", "-c", "ulimit -S -n; ulimit -H -n; ulimit -c"],
            json!({"rlimits": {"nofile": [50, 60], "core": 0}})
        ),
        "50\n60\n0\n"
    );
    let mut session = kernel.json();
    for rlimits in [
        json!({"foo": 1}),
        json!({"nofile": "many"}),
        json!({"nofile": -1}),
    ] {
        assert_eq!(
            session.error(
                "process.make",
                json!({"name": "p", "argv": ["/bin/true"], "rlimits": rlimits})
            ),
            "invalid",
            "{rlimits}"
        );
    }
}

#[test]
fn a_user_brings_its_group_and_loses_ours() {
    if !is_root() {
        return skipped("another user needs root");
    }
    let kernel = Kernel::start();
    let mut session = kernel.json();
    let process = session.make_process("n", &["/bin/sleep", "60"], json!({"uid": "nobody"}));
    let worker = pid(&process);
    assert_eq!(
        procfs::status_line(worker, "Uid").unwrap(),
        "65534 65534 65534 65534"
    );
    assert_eq!(
        procfs::status_line(worker, "Gid").unwrap(),
        "65534 65534 65534 65534"
    );
    let groups = procfs::status_line(worker, "Groups").unwrap();
    assert!(!groups.split(' ').any(|group| group == "0"), "{groups:?}");

    let process = session.make_process(
        "g",
        &["/bin/sleep", "60"],
        json!({"uid": 65534, "gid": 3, "groups": [4, 5]}),
    );
    let worker = pid(&process);
    assert_eq!(procfs::status_line(worker, "Gid").unwrap(), "3 3 3 3");
    assert_eq!(procfs::status_line(worker, "Groups").unwrap(), "4 5");
}

#[test]
fn numbers_of_user_and_group_need_no_entry_anywhere() {
    if !is_root() {
        return skipped("another user needs root");
    }
    let kernel = Kernel::start();
    let process = kernel.json().make_process(
        "n",
        &["/bin/sleep", "60"],
        json!({"uid": 3_999_991, "gid": 3_999_992}),
    );
    let worker = pid(&process);
    let line = |key| procfs::status_line(worker, key).unwrap();
    assert_eq!(line("Uid"), "3999991 3999991 3999991 3999991");
    assert_eq!(line("Gid"), "3999992 3999992 3999992 3999992");
    assert_eq!(line("Groups"), "3999992");
}

#[test]
fn a_worker_of_another_user_may_open_its_own_output() {
    if !is_root() {
        return skipped("another user needs root");
    }
    let kernel = Kernel::start();
    assert_eq!(
        output_of(
            &kernel,
            &["/bin/sh", "-c", "echo opened > /proc/self/fd/1"],
            json!({"uid": "nobody"})
        ),
        "opened\n"
    );
}

#[test]
fn a_worker_inherits_nothing_but_its_own() {
    let kernel = Kernel::start();
    let clients: Vec<_> = (0..5).map(|_| kernel.classic()).collect();
    let process = kernel
        .json()
        .make_process("bare", &["/bin/sleep", "60"], json!({}));
    let worker = pid(&process);
    wait_until("it has only its three descriptors", || {
        procfs::open_descriptors(worker) == 3
    });
    let open = procfs::descriptors(worker);
    assert_eq!(open[0].1, "/dev/null", "{open:?}");
    assert!(
        open[1].1.starts_with("pipe:") && open[2].1.starts_with("pipe:"),
        "{open:?}"
    );
    assert_ne!(open[1].1, open[2].1);
    drop(clients);
}

#[test]
fn signals_are_as_in_a_fresh_process_whatever_the_kernel_was_started_with() {
    let ignoring = ["/bin/sh", "-c", "trap '' HUP QUIT 34; exec \"$@\"", "sh"];
    let mut kernel = Kernel::builder().wrapper(&ignoring).start();
    let ignored = procfs::status_line(kernel.pid(), "SigIgn").unwrap();
    let ignored = u64::from_str_radix(&ignored, 16).unwrap();
    for signal in [1, 3, 34] {
        // Nor does it ignore what whoever started it did.
        assert_eq!(ignored & (1 << (signal - 1)), 0, "{signal}: {ignored:x}");
    }
    let process = kernel
        .json()
        .make_process("s", &["/bin/sleep", "60"], json!({}));
    let worker = pid(&process);
    assert_eq!(
        procfs::status_line(worker, "SigBlk").unwrap(),
        "0000000000000000"
    );
    assert_eq!(
        procfs::status_line(worker, "SigIgn").unwrap(),
        "0000000000000000"
    );
}

#[test]
fn errors_say_what_is_wrong() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    for (line, error) in [
        ("make process", "Process requires a name"),
        ("make process p", "No command"),
        ("make process p nosuch=1 /bin/true", "nosuch"),
        ("make process p /no/such", "'/no/such'"),
        ("make process p working_dir=/nope /bin/true", "'/nope'"),
        (
            "make process p uid=nosuch /bin/true",
            "'nosuch' is not a valid user name",
        ),
        (
            "make process p gid=nosuch /bin/true",
            "No such group: 'nosuch'",
        ),
        ("make process p /etc/passwd", "/etc/passwd"),
    ] {
        let text = client.ask_error(line);
        assert!(text.contains(error), "{line}: {text}");
    }
    assert_eq!(client.ask("list processes"), "");
    let mut session = kernel.json();
    assert_eq!(
        session.error("process.make", json!({"name": "p", "argv": ["/no/such"]})),
        "spawn_failed"
    );
    assert_eq!(
        session.error("process.make", json!({"name": "p", "argv": []})),
        "invalid"
    );
    assert_eq!(
        session.ok("process.list", json!({}))["processes"],
        json!([])
    );
}

#[test]
fn a_program_is_found_on_the_path() {
    let kernel = Kernel::start();
    assert_eq!(
        output_of(
            &kernel,
            &["echo", "found"],
            json!({"env": {"PATH": "/usr/bin:/bin"}})
        ),
        "found\n"
    );
}

#[test]
fn the_same_request_gives_the_same_process_another_one_is_refused() {
    let kernel = Kernel::start();
    let mut session = kernel.json();
    let request = json!({"name": "p", "argv": ["/bin/sleep", "60"], "env": {"A": "b"}, "tag": {"any": ["thing", 1]}});
    let first = session.ok("process.make", request.clone());
    assert_eq!(first["created"], true);
    assert_eq!(first["process"]["tag"], json!({"any": ["thing", 1]}));
    let second = session.ok("process.make", request.clone());
    assert_eq!(second["created"], false);
    assert_eq!(second["process"]["serial"], first["process"]["serial"]);
    let mut other = request;
    other["env"] = json!({"A": "c"});
    assert_eq!(session.error("process.make", other), "exists");
}

#[test]
fn an_ended_process_stays_listed_until_its_exit_is_acknowledged() {
    let kernel = Kernel::start();
    let mut session = kernel.json();
    let process = session.make_process("p", &["/bin/sh", "-c", "exit 7"], json!({}));
    let serial = process["serial"].as_u64().unwrap();
    wait_until("it is listed as ended", || {
        session
            .process("p")
            .is_some_and(|process| process["running"] == false)
    });
    let ended = session.process("p").unwrap();
    assert_eq!(ended["exit"]["code"], 7, "{ended}");
    assert!(
        ended["exit"]["rusage"]["max_rss_kib"].as_u64().unwrap() > 0,
        "{ended}"
    );
    let seen = Collector::new(&kernel.socket_path(), &["p"]).finish(serial);
    assert_eq!(seen.exit.unwrap()["code"], 7);
    wait_until("it is forgotten", || session.process("p").is_none());
}

#[test]
fn a_zombie_is_kept_until_then_so_that_its_pid_is_not_reused() {
    let kernel = Kernel::start();
    let mut session = kernel.json();
    let process = session.make_process("p", &["/bin/true"], json!({}));
    let worker = pid(&process);
    wait_until("it is listed as ended", || {
        session
            .process("p")
            .is_some_and(|process| process["running"] == false)
    });
    assert_eq!(procfs::stat(worker).map(|stat| stat.state), Some('Z'));
    session.ok("process.remove", json!({"names": ["p"]}));
    wait_until("the zombie is gone", || procfs::stat(worker).is_none());
}

#[test]
fn removing_a_running_process_only_stops_looking_at_it() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    client.ask("make process p /bin/sleep 60");
    let worker: i32 = papa_harness::Classic::field(&client.ask("list processes p"), "pid")
        .parse()
        .unwrap();
    assert_eq!(client.ask("remove processes p"), "");
    assert!(procfs::alive(worker));
    procfs::signal(worker, nix::sys::signal::Signal::SIGKILL);
    wait_until("it is gone from the list", || {
        client.ask("list processes").is_empty()
    });
}

#[test]
fn a_pidfd_names_the_process() {
    let kernel = Kernel::start();
    let mut session = kernel.json();
    let process = session.make_process("p", &["/bin/sleep", "60"], json!({}));
    session.ok("process.pidfd", json!({"serial": process["serial"]}));
    let descriptor = session.descriptor();
    let number = std::os::fd::AsRawFd::as_raw_fd(&descriptor);
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap();
    assert!(
        info.lines()
            .any(|line| line == format!("Pid:\t{}", pid(&process))),
        "{info}"
    );
    assert_eq!(
        session.error("process.pidfd", json!({"serial": 999_999})),
        "not_found"
    );
}

#[test]
fn held_descriptors_arrive_at_the_numbers_asked_for() {
    let kernel = Kernel::start();
    let mut session = kernel.json();
    let path = kernel.path("held.txt");
    std::fs::write(&path, "through a held descriptor").unwrap();
    let file = std::fs::File::open(&path).unwrap();
    session
        .call_with(
            "hold",
            json!({"name": "file"}),
            std::os::fd::AsFd::as_fd(&file),
        )
        .unwrap()
        .unwrap();
    assert_eq!(
        output_of(
            &kernel,
            &["/bin/sh", "-c", "cat <&7"],
            json!({"descriptors": {"7": "file"}, "env": {"PATH": "/usr/bin:/bin"}})
        ),
        "through a held descriptor"
    );
}
