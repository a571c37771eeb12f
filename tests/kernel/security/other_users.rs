//! Who is not served, and who cannot get in the way: pages in a browser, other users, other
//! namespaces.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::json;

use papa_harness::{
    Classic, Kernel, Scratch, binary, free_port, is_root, private_command, procfs, skipped,
    wait_for, wait_until,
};

use super::{
    AS_NOBODY, CALLER, NOBODY, PYTHON, assert_nothing_forged, can, lines, nobody_has_python,
    output_of, path, python,
};

#[test]
fn what_a_browser_can_send_runs_nothing() {
    let kernel = Kernel::start();
    let body = "set forged 1\njson\n{\"op\":\"value.set\",\"name\":\"forged\",\"value\":\"1\"}\n";
    let long = format!("GET /{} HTTP/1.1\r\n\r\n{body}", "x".repeat(100_000));
    let requests: [(&str, Vec<u8>); 8] = [
        (
            "a form",
            format!(
                "POST / HTTP/1.1\r\nHost: 127.0.0.1:20202\r\nContent-Type: text/plain\r\n\r\n{body}"
            )
            .into(),
        ),
        (
            "a rebound name",
            format!("POST /x HTTP/1.1\r\nHost: evil.example\r\n\r\n{body}").into(),
        ),
        (
            "a preflight",
            format!(
                "OPTIONS * HTTP/1.1\r\nAccess-Control-Request-Private-Network: true\r\n\r\n{body}"
            )
            .into(),
        ),
        (
            "a web socket",
            format!("GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n{body}").into(),
        ),
        (
            "a proxy's form",
            format!("GET http://localhost:20202/ HTTP/1.0\r\n\r\n{body}").into(),
        ),
        (
            "HTTP/2",
            format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{body}").into(),
        ),
        ("a long address", long.into()),
        // STUN over TCP, as WebRTC sends it, with a user name that has lines.
        (
            "WebRTC",
            [
                &b"\x00\x03\x00\x40\x21\x12\xa4\x42"[..],
                b"\n",
                body.as_bytes(),
            ]
            .concat(),
        ),
    ];
    for (what, request) in &requests {
        // At once, and a first line that comes in pieces.
        for pieces in [request.len(), 7] {
            let mut client = Classic::tcp_silent(kernel.port());
            for piece in request.chunks(pieces).take(40) {
                if client.send_bytes(piece).is_err() {
                    break;
                }
            }
            client.finish_sending();
            let heard = client.read_to_end();
            assert!(!heard.contains("forged"), "{what}: {heard:?}");
            assert_nothing_forged(&kernel);
        }
    }
}

#[test]
fn a_name_taken_by_another_user_does_not_stop_the_start() {
    if !nobody_has_python() {
        return;
    }
    let port = free_port();
    let name = format!("papa/{}/{port}", nix::unistd::geteuid());
    // Two that listen and never accept, the second with a full queue; and one that does not even
    // listen.
    for listening in ["s.listen(5)", "s.listen(0)", "pass"] {
        let mut squatter = squat(&name, listening);
        let kernel = Kernel::builder().port(port).start();
        assert_eq!(kernel.classic().ask("get nothing"), "");
        let log = kernel.log();
        assert!(log.contains(&format!("@{name} is taken")), "{log}");
        drop(kernel);
        let _ = squatter.kill();
        let _ = squatter.wait();
    }
    // One of ours is another daemon, and said to be.
    let kernel = Kernel::builder().port(port).start();
    let other = Scratch::new();
    let output = other
        .papa()
        .args(["--tcp", "off", "--port", &port.to_string()])
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    drop(kernel);
}

/// Takes an abstract name as the user nobody.
fn squat(name: &str, listening: &str) -> Child {
    let program = format!(
        "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.bind('\\0' + sys.argv[1])\n{listening}\n\
         print('there', flush=True)\nsys.stdin.read()"
    );
    let mut child = Command::new(AS_NOBODY[0])
        .args(&AS_NOBODY[1..])
        .args([PYTHON, "-c", &program, name])
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("setpriv runs");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("it is piped");
    BufReader::new(stdout)
        .read_line(&mut line)
        .expect("it says something");
    assert_eq!(line, "there\n");
    child
}

#[test]
fn a_runtime_directory_that_others_could_replace_is_refused() {
    if !is_root() {
        return skipped("another user's directory needs root");
    }
    let scratch = Scratch::new();
    let base = scratch.directory();
    let own = nix::unistd::geteuid().as_raw();
    let start = |what: &str| {
        let output = scratch
            .papa()
            .args(["--tcp", "off", "--port", &free_port().to_string()])
            .output()
            .expect("it runs");
        assert_eq!(output.status.code(), Some(1), "{what}: {output:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("XDG_RUNTIME_DIR"), "{what}: {text}");
    };
    chown(base, Some(NOBODY), None).expect("root may");
    start("the directory above is another user's");
    chown(base, Some(own), None).expect("root may");
    fs::set_permissions(base, fs::Permissions::from_mode(0o777)).expect("it is ours");
    start("everybody may write to the directory above");
    fs::set_permissions(base, fs::Permissions::from_mode(0o700)).expect("it is ours");
    fs::create_dir(base.join("theirs")).expect("it is ours");
    fs::remove_dir_all(base.join("papa")).ok();
    symlink(base.join("theirs"), base.join("papa")).expect("it is ours");
    start("a link in its place");
    fs::remove_file(base.join("papa")).expect("it is ours");
    fs::create_dir(base.join("papa")).expect("it is ours");
    chown(base.join("papa"), Some(NOBODY), None).expect("root may");
    start("the directory is another user's");
    assert!(scratch.processes().is_empty());
}

#[test]
fn a_pid_file_is_written_through_no_link_and_is_ours_alone() {
    let scratch = Scratch::new();
    let precious = scratch.path("precious");
    fs::write(&precious, "precious").expect("room");
    let pid_file = scratch.path("papa.pid");
    symlink(&precious, format!("{pid_file}.new")).expect("room");
    let port = free_port();
    let mut command = private_command(Path::new("sh"), scratch.directory());
    let mut child = command
        .args(["-c", "umask 0; exec \"$@\"", "sh"])
        .arg(binary("papa"))
        .args(["--pid-file", &pid_file, "--port", &port.to_string()])
        .args(["--log-file", &scratch.path("log")])
        .spawn()
        .expect("sh runs");
    let status = scratch.status(port);
    assert_eq!(fs::read_to_string(&precious).expect("there"), "precious");
    let text = fs::read_to_string(&pid_file).expect("there");
    assert_eq!(text.trim(), status["keeper"].to_string());
    let mode = fs::symlink_metadata(&pid_file)
        .expect("there")
        .permissions();
    assert_eq!(mode.mode() & 0o7777, 0o644);
    procfs::signal(i32::try_from(child.id()).expect("a pid"), Signal::SIGTERM);
    wait_until("the idle daemon has ended", || {
        child.try_wait().is_ok_and(|status| status.is_some())
    });
    assert!(!Path::new(&pid_file).exists());
}

#[test]
fn a_worker_of_another_user_is_not_served() {
    if !nobody_has_python() {
        return;
    }
    let kernel = Kernel::start();
    let port = kernel.port().to_string();
    let name = format!("@papa/{}/{port}", nix::unistd::geteuid());
    let argv = [PYTHON, "-c", CALLER, &port, &name];
    let heard = output_of(&kernel, &argv, json!({"uid": NOBODY, "env": path()}));
    assert_eq!(heard, "closed\nclosed\n");
    assert_nothing_forged(&kernel);
    // The same by a worker of the daemon's own user is served: it could as well use a debugger.
    let heard = output_of(&kernel, &argv, json!({"env": path()}));
    assert_eq!(heard, "served\nserved\n");
}

#[test]
fn a_port_taken_over_from_a_caller_that_has_gone_does_not_speak_for_it() {
    if !nobody_has_python() {
        return;
    }
    let mut kernel = Kernel::start();
    let pid = kernel.pid();
    // Callers wait to be accepted. The stranger says what it wants, and resets its connection.
    procfs::signal(pid, Signal::SIGSTOP);
    // A port that it bound is its alone; one the system chose may serve connections of others at
    // the same time.
    let program = "import socket, struct, sys\ns = socket.socket()\n\
                   s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n\
                   s.bind(('127.0.0.1', 0))\ns.connect(('127.0.0.1', int(sys.argv[1])))\n\
                   print(s.getsockname()[1])\ns.sendall(b'set forged 1\\n')\n\
                   s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))\ns.close()";
    // One of ours gets the same port, unless somebody on this machine was given it first.
    let ours = wait_for("a port that was a stranger's is ours", || {
        use nix::sys::socket::{
            AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket,
            sockopt::ReuseAddr,
        };
        let output = python(&AS_NOBODY, program, &[&kernel.port().to_string()]);
        let port: u16 = lines(&output)[0].parse().expect("a port");
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None).expect("a socket");
        setsockopt(&fd, ReuseAddr, &true).expect("a socket");
        let raw = std::os::fd::AsRawFd::as_raw_fd(&fd);
        bind(raw, &SockaddrIn::new(127, 0, 0, 1, port)).ok()?;
        connect(raw, &SockaddrIn::new(127, 0, 0, 1, kernel.port())).expect("it listens");
        Some(TcpStream::from(fd))
    });
    procfs::signal(pid, Signal::SIGCONT);
    let mut ours = Classic::over_tcp(ours);
    assert!(ours.read_to("> ").starts_with("Papa"), "ours is served");
    assert_eq!(ours.ask("list values"), "");
    assert_nothing_forged(&kernel);
}

#[test]
fn another_network_namespace_has_no_way_in() {
    let up = "ip link set lo up && exec \"$@\"";
    let inside = ["unshare", "--net", "sh", "-c", up, "sh"];
    let probe = [&inside[..], &[PYTHON, "-c", ""]].concat();
    if !can("a network namespace needs root and ip(8)", &probe) {
        return;
    }
    let kernel = Kernel::start();
    let port = kernel.port().to_string();
    let name = format!("@papa/{}/{port}", nix::unistd::geteuid());
    // Even as root: neither the port nor the name is there.
    let output = python(&inside, CALLER, &[&port, &name]);
    assert_eq!(lines(&output), ["refused", "refused"], "{output:?}");
    assert_eq!(lines(&python(&["env"], CALLER, &[&port])), ["served"]);
    // Nor is the port bound where a bridge between namespaces would lead.
    let hex = format!(":{:04X} ", kernel.port());
    for (table, loopback) in [
        ("/proc/net/tcp", "0100007F"),
        ("/proc/net/tcp6", "00000000000000000000000001000000"),
    ] {
        let table = fs::read_to_string(table).unwrap_or_default();
        let listening = table.lines().filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            let (local, _, state) = (words.next()?, words.next()?, words.next()?);
            let address = format!("{local} ");
            (state == "0A" && address.ends_with(&hex)).then(|| local.to_owned())
        });
        for local in listening {
            assert!(local.starts_with(loopback), "bound to {local}");
        }
    }
}

/// A program that enters a user namespace in which 65534 is our user 1000 (and whoever has no
/// number there shows as 65534 as well), becomes that user, and runs its arguments.
const IN_A_NAMESPACE: &str = "import ctypes, os, sys
ask, answer = os.pipe(), os.pipe()
me = os.getpid()
if os.fork() == 0:
    os.read(ask[0], 1)
    for kind in ('uid', 'gid'):
        with open(f'/proc/{me}/{kind}_map', 'w') as map: map.write('0 0 1\\n65534 1000 1\\n')
    os.write(answer[1], b'x')
    os._exit(0)
if ctypes.CDLL(None, use_errno=True).unshare(0x10000000) != 0: sys.exit('unshare')
os.write(ask[1], b'x')
os.read(answer[0], 1)
os.wait()
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
os.execvp(sys.argv[1], sys.argv[1:])
";

#[test]
fn users_that_a_namespace_does_not_know_are_nobody_in_it() {
    let probe = [PYTHON, "-c", IN_A_NAMESPACE, "true"];
    if !can("a user namespace needs root and python3", &probe) || !nobody_has_python() {
        return;
    }
    let scratch = Scratch::new();
    chown(scratch.directory(), Some(1000), Some(1000)).expect("root may");
    let program = scratch.path("papa-copy");
    papa_harness::copy_program(&binary("papa"), program.as_ref());
    let port = free_port();
    let mut command = private_command(Path::new(PYTHON), scratch.directory());
    let mut daemon = command
        .args(["-c", IN_A_NAMESPACE])
        .arg(&program)
        .args(["--port", &port.to_string()])
        .current_dir("/")
        .stderr(fs::File::create(scratch.path("log")).expect("room"))
        .spawn()
        .expect("python3 runs");
    let log = || fs::read_to_string(scratch.path("log")).unwrap_or_default();
    wait_until("it has made its socket, or ended", || {
        let ended = daemon.try_wait().is_ok_and(|status| status.is_some());
        assert!(!ended, "{}", log());
        scratch.socket_path(port).exists()
    });
    let (port, name) = (port.to_string(), format!("@papa/65534/{port}"));
    let where_to = [port.as_str(), name.as_str()];
    // Its own user, from outside: who it is cannot be told there from others who are not known.
    for (user, uid) in [
        ("another user", "--reuid=65534"),
        ("a third", "--reuid=1234"),
    ] {
        let output = python(&["setpriv", uid, "--clear-groups"], CALLER, &where_to);
        assert_eq!(lines(&output), ["closed", "closed"], "{user}\n{}", log());
    }
    assert!(log().contains("another user namespace"), "{}", log());
    // Root in there is served, which shows that refusing was no accident.
    assert_eq!(
        lines(&python(&["env"], CALLER, &where_to)),
        ["served", "served"],
        "{}",
        log()
    );
    // And so is its own user in its own namespace, on the unix socket.
    let pid = daemon.id().to_string();
    let inside = [
        "nsenter",
        "--user",
        "--target",
        &pid,
        "--setuid=65534",
        "--setgid=65534",
    ];
    assert_eq!(
        lines(&python(&inside, CALLER, &[&name])),
        ["served"],
        "{}",
        log()
    );
}

#[test]
fn two_users_on_one_port_are_told_whose_it_is_and_what_to_write() {
    if !nobody_has_python() {
        return;
    }
    // Not nobody, whose number also stands for users of other namespaces.
    const STRANGER: [&str; 4] = [
        "setpriv",
        "--reuid=12345",
        "--regid=12345",
        "--clear-groups",
    ];
    // The stranger at our kernel.
    let kernel = Kernel::start();
    let program = "import socket, sys\ns = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n\
                   s.sendall(b'json\\n')\nprint(s.makefile().read())";
    let output = python(&STRANGER, program, &[&kernel.port().to_string()]);
    let said = lines(&output).join("\n");
    for part in [
        "belongs to user root",
        "uid 12345",
        "papa_endpoint = tcp://",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // Our kernel at the stranger's port.
    let port = free_port();
    let program = "import socket, sys, time\ns = socket.socket()\ns.bind(('127.0.0.1', int(sys.argv[1])))\n\
                   s.listen(5)\nprint('there', flush=True)\ntime.sleep(1000)";
    let mut squatter = Command::new(STRANGER[0])
        .args(&STRANGER[1..])
        .args([PYTHON, "-c", program, &port.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .expect("setpriv can be run");
    let mut line = String::new();
    let out = squatter.stdout.take().expect("its output is piped");
    let _ = BufReader::new(out).read_line(&mut line);
    let scratch = Scratch::new();
    let output = private_command(&binary("papa"), scratch.directory())
        .args(["--port", &port.to_string()])
        .output();
    let _ = squatter.kill();
    let _ = squatter.wait();
    let output = output.expect("papa can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in ["taken by a program of uid 12345", "-p ", "papa_endpoint"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}
