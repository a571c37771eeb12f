//! What somebody hostile can do: in a browser, as another user of the machine, in a container, in a worker, or with a
//! descriptor they were given. `safety.rs` has what a careless caller can do; SECURITY.md says what is promised.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, SealFlag, fallocate, fcntl};
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::stat::Mode;
use serde_json::{Value, json};

use crate::harness::{
    Classic, Collector, Json, Kernel, PATIENCE, Scratch, binary, free_port, is_root,
    private_command, procfs, skipped, wait_for, wait_until,
};

/// The user that owns nothing.
const NOBODY: u32 = 65_534;
/// The system's: what root has on its own path may be out of another user's reach.
const PYTHON: &str = "/usr/bin/python3";
/// A user of every distribution (`uucp`) that no other test has processes of.
const BOMBER: u32 = 10;

/// A program that connects to each address it is given (a port, or `@` and an abstract name), asks for something to be
/// kept, and prints for each what it heard: `served` for a prompt.
const CALLER: &str = "import socket, sys
for where in sys.argv[1:]:
    try:
        if where.startswith('@'):
            s = socket.socket(socket.AF_UNIX)
            s.settimeout(10)
            s.connect('\\0' + where[1:])
        else:
            s = socket.create_connection(('127.0.0.1', int(where)), 10)
        s.sendall(b'set forged 1\\nquit\\n')
        heard = b''
        while True:
            piece = s.recv(4096)
            if not piece: break
            heard += piece
        print('served' if b'> ' in heard else 'closed')
    except ConnectionRefusedError: print('refused')
    except ConnectionError: print('closed')
";

/// Runs a Python program under a wrapper such as `setpriv` or `unshare`.
fn python(wrapper: &[&str], program: &str, arguments: &[&str]) -> Output {
    Command::new(wrapper[0])
        .args(&wrapper[1..])
        .args([PYTHON, "-c", program])
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .expect("the wrapper runs")
}

const AS_NOBODY: [&str; 4] = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
];

/// Whether this machine lets a test do what it needs, with the command that shows it.
fn can(what: &str, command: &[&str]) -> bool {
    let worked = is_root()
        && Command::new(command[0])
            .args(&command[1..])
            .stdin(Stdio::null())
            .output()
            .is_ok_and(|output| output.status.success());
    if !worked {
        skipped(what);
    }
    worked
}

fn nobody_has_python() -> bool {
    let command = [&AS_NOBODY[..], &[PYTHON, "-c", ""]].concat();
    can(
        "another user needs root, and python3 within its reach",
        &command,
    )
}

fn lines(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!text.is_empty(), "the caller said nothing: {output:?}");
    text.lines().map(str::to_owned).collect()
}

#[track_caller]
fn assert_nothing_forged(kernel: &Kernel) {
    assert_eq!(kernel.classic().ask("list values"), "");
}

/// A process's output once it has ended.
fn output_of(kernel: &Kernel, argv: &[&str], more: Value) -> String {
    let process = kernel.json().make_process("hostile", argv, more);
    let serial = process["serial"].as_u64().expect("a serial");
    let collected = Collector::new(&kernel.socket_path(), &["hostile"]).finish(serial);
    String::from_utf8_lossy(&collected.bytes).into_owned()
}

fn path() -> Value {
    json!({"PATH": "/usr/local/bin:/usr/bin:/bin"})
}

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
    // Two that listen and never accept, the second with a full queue; and one that does not even listen.
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
    // A port that it bound is its alone; one the system chose may serve connections of others at the same time.
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

/// A program that enters a user namespace in which 65534 is our user 1000 (and whoever has no number there shows as
/// 65534 as well), becomes that user, and runs its arguments.
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
    crate::harness::copy_program(&binary("papa"), program.as_ref());
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
fn a_flood_of_descriptors_is_bounded() {
    let mut kernel = Kernel::start();
    let before = procfs::open_descriptors(kernel.pid());
    let null = fs::File::open("/dev/null").expect("there");
    let many: Vec<OwnedFd> = (0..100)
        .map(|_| null.try_clone().expect("a descriptor").into())
        .collect();
    let numbers: Vec<i32> = many.iter().map(std::os::fd::AsRawFd::as_raw_fd).collect();
    let flooders: Vec<UnixStream> = (0..4)
        .map(|_| {
            let stream = UnixStream::connect(kernel.socket_path()).expect("it listens");
            stream.set_nonblocking(true).expect("a socket");
            for _ in 0..100 {
                let sent = sendmsg::<()>(
                    std::os::fd::AsRawFd::as_raw_fd(&stream),
                    &[std::io::IoSlice::new(b"x")],
                    &[ControlMessage::ScmRights(&numbers)],
                    MsgFlags::MSG_NOSIGNAL,
                    None,
                );
                if sent.is_err() {
                    break;
                }
            }
            stream
        })
        .collect();
    let mut session = kernel.json();
    // Each flooder costs its session and the sixteen descriptors that may wait; and there is this session.
    let limit = before + flooders.len() * 17 + 2;
    for _ in 0..20 {
        session.ok("value.set", json!({"name": "a", "value": "b"}));
        let now = procfs::open_descriptors(kernel.pid());
        assert!(now <= limit + 2, "{now} descriptors, {before} before");
    }
    // What was sent with a line that takes one still arrives.
    let (ours, _theirs) = UnixStream::pair().expect("a pair");
    session
        .call_with("hold", json!({"name": "h"}), ours.as_fd())
        .expect("it answers")
        .expect("it is held");
    drop(flooders);
    wait_until("all are given back", || {
        procfs::open_descriptors(kernel.pid()) <= before + 4
    });
}

#[test]
fn strange_descriptors_are_held_and_given_back_unharmed() {
    let mut kernel = Kernel::start();
    let mut session = kernel.json();
    let epoll = Epoll::new(EpollCreateFlags::empty()).expect("an epoll");
    let no_access = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let own = UnixStream::connect(kernel.socket_path()).expect("it listens");
    let strange: [(&str, OwnedFd, &str); 6] = [
        (
            "directory",
            fs::File::open("/").expect("there").into(),
            "directory",
        ),
        ("epoll", epoll.0, "other"),
        (
            "path",
            nix::fcntl::open("/etc/passwd", no_access, Mode::empty()).expect("there"),
            "file",
        ),
        (
            "listener",
            std::net::TcpListener::bind(("127.0.0.1", 0))
                .expect("a port")
                .into(),
            "socket",
        ),
        // The kernel would hold the other end of its own session.
        ("itself", own.into(), "socket"),
        (
            "device",
            fs::File::open("/dev/zero").expect("there").into(),
            "device",
        ),
    ];
    for (name, fd, _) in &strange {
        session
            .call_with("hold", json!({"name": name}), fd.as_fd())
            .expect("it answers")
            .unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    for round in ["at once", "after a kill"] {
        for (name, fd, kind) in &strange {
            session.ok("fetch", json!({"name": name}));
            let back = session.descriptor();
            let (was, is) = (inode(fd), inode(&back));
            assert_eq!(was, is, "{name} {round}");
            let list = session.ok("hold.list", json!({"names": [name]}));
            assert!(list.to_string().contains(kind), "{name}: {list}");
        }
        if round == "at once" {
            kernel.kill_kernel();
            session = kernel.json();
        }
    }
    session.ok("hold.drop", json!({"names": ["*"]}));
}

fn inode(fd: &OwnedFd) -> (u64, u64) {
    let stat = nix::sys::stat::fstat(fd).expect("an open descriptor");
    (stat.st_dev, stat.st_ino)
}

#[test]
fn a_reel_cannot_be_changed_by_who_reads_it() {
    let kernel = Kernel::start();
    let mut session = kernel.json();
    let argv = ["/bin/sh", "-c", "echo precious; exec sleep 60"];
    let process = session.make_process("p", &argv, json!({}));
    session.ok("output.consume", json!({"names": ["p"], "bytes": "reel"}));
    wait_for("there is output", || session.push().body("output").cloned());
    let serial = process["serial"].clone();
    let offset = session.ok("output.reel", json!({"serial": serial}))["data_offset"]
        .as_i64()
        .expect("an offset");
    let reel = session.descriptor();
    assert_eq!(
        nix::sys::uio::pwrite(&reel, b"forged", offset),
        Err(Errno::EBADF)
    );
    assert!(nix::unistd::ftruncate(&reel, 0).is_err());
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    assert_eq!(fallocate(&reel, punch, offset, 8), Err(Errno::EBADF));
    // A seal would keep the kernel from writing on.
    let sealed = fcntl(&reel, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE));
    assert_eq!(sealed, Err(Errno::EPERM));
    // Opened once more through /proc, by somebody it was passed to.
    if nobody_has_python() {
        let again = "import os\nfor mode in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_TRUNC):\n\
                     \x20try: os.open('/proc/self/fd/0', mode); print('opened')\n\
                     \x20except PermissionError: print('denied')";
        let output = Command::new(AS_NOBODY[0])
            .args(&AS_NOBODY[1..])
            .args([PYTHON, "-c", again])
            .stdin(reel.try_clone().expect("a descriptor"))
            .current_dir("/")
            .output()
            .expect("setpriv runs");
        assert_eq!(lines(&output), ["denied"; 3], "{output:?}");
    }
    let mut bytes = [0; 9];
    nix::sys::uio::pread(&reel, &mut bytes, offset).expect("it can be read");
    assert_eq!(&bytes, b"precious\n");
}

#[test]
fn json_that_is_meant_to_hurt_is_an_error() {
    let mut kernel = Kernel::start();
    let before = kernel.pid();
    let deep =
        |open: &str, close: &str| format!("{}{}", open.repeat(200_000), close.repeat(200_000));
    let make = |more: &str| format!("{{\"id\":99,\"op\":\"process.make\",\"name\":\"p\",{more}}}");
    let lines = [
        deep("[", "]"),
        deep("{\"a\":", "}"),
        format!("{{\"id\":{},\"op\":\"hello\"}}", deep("[", "]")),
        format!(
            "{{\"id\":99,\"op\":\"hello\",\"unknown\":{}}}",
            "[".repeat(1_000_000)
        ),
        make(&format!(
            "\"argv\":[\"/bin/true\"],\"tag\":{}",
            deep("[", "]")
        )),
        make("\"argv\":[\"/bin/true\\u0000x\"]"),
        make("\"argv\":[[47,98,105,110,0]]"),
        make("\"argv\":[\"/bin/true\"],\"env\":{\"A\":\"x\\u0000y\"}"),
        make("\"argv\":[\"/bin/true\"],\"env\":{\"A\\u0000B\":\"x\"}"),
        make("\"argv\":[\"/bin/true\"],\"env\":{\"A=B\":\"x\"}"),
        make("\"argv\":[\"/bin/true\"],\"working_dir\":\"/\\u0000\""),
        make("\"argv\":[\"\\ud800\"]"),
        make("\"argv\":[256]"),
        make("\"argv\":[]"),
        make("\"argv\":[\"/bin/true\"],\"nice\":1e999"),
        make("\"argv\":[\"/bin/true\"],\"uid\":-1"),
        make("\"argv\":[\"/bin/true\"],\"uid\":4294967295"),
        make("\"argv\":[\"/bin/true\"],\"argv\":[\"/bin/sh\"]"),
        "{\"id\":99,\"op\":\"hello\",\"op\":\"shutdown\"}".to_owned(),
        "{\"id\":99,\"op\":\"value.set\",\"name\":\"a/\u{202e}\",\"value\":7}".to_owned(),
        "\u{feff}{\"id\":99,\"op\":\"hello\"}".to_owned(),
        "null".to_owned(),
        "9".repeat(1_000_000),
    ];
    for line in &lines {
        let shown = line.get(..60).unwrap_or(line);
        let mut session = kernel.json();
        // `call` passes over the reply to the line; the next request shows that the session goes on.
        session.send_line(line).expect("it is taken");
        let reply = session.call("value.get", json!({"name": "none"}));
        assert!(matches!(reply, Ok(Ok(_))), "{shown}: {reply:?}");
    }
    assert_eq!(kernel.pid(), before, "the kernel is the same process");
    let list = kernel.json().ok("process.list", json!({}));
    assert_eq!(list["processes"], json!([]), "nothing was started");
}

#[test]
fn strange_names_stay_names() {
    let mut kernel = Kernel::start();
    let long = "n".repeat(255);
    let names = [
        "../../etc/passwd",
        "/",
        "..",
        ".",
        "a b",
        "é\u{4e2d}\u{1f980}",
        "\u{202e}gnp",
        "-rf",
        &long,
    ];
    for name in names {
        let mut session = kernel.json();
        session.make_process(name, &["/bin/sleep", "60"], json!({}));
        session.ok("value.set", json!({"name": name, "value": "v"}));
    }
    assert_eq!(
        kernel
            .json()
            .error("value.set", json!({"name": "n".repeat(256), "value": "v"})),
        "invalid"
    );
    kernel.kill_kernel();
    let listed = kernel.classic().ask("list processes");
    assert_eq!(listed.lines().count(), names.len(), "{listed}");
    assert!(!listed.contains('\u{202e}'), "{listed}");
    for name in names {
        assert!(kernel.json().process(name).is_some(), "{name}");
    }
    let entries = fs::read_dir(kernel.runtime_dir()).expect("there").count();
    assert_eq!(entries, 1, "names make no files");
}

#[test]
fn a_socket_file_is_removed_only_while_it_is_one() {
    let kernel = Kernel::start();
    let path = kernel.path("s.sock");
    let mut session = kernel.json();
    session.ok(
        "socket.make",
        json!({"name": "s", "family": "unix", "path": path}),
    );
    // Somebody who may write there has put something else in its place.
    fs::remove_file(&path).expect("there");
    fs::write(&path, "precious").expect("room");
    session.ok("socket.remove", json!({"names": ["s"]}));
    assert_eq!(fs::read_to_string(&path).expect("there"), "precious");
    let refused = json!({"name": "s", "family": "unix", "path": path});
    let reply = session.call("socket.make", refused).expect("it answers");
    assert!(reply.is_err(), "a file is in the way: {reply:?}");
    assert_eq!(fs::read_to_string(&path).expect("there"), "precious");
}

#[test]
fn a_worker_may_do_with_its_output_what_it_likes() {
    let kernel = Kernel::start();
    let script = "echo one; exec 5>&1 1>&-; echo two >&5; echo three >/proc/self/fd/5; exec 1>&5 5>&-; echo four; \
                  exec 2>&-; (setsid sh -c 'sleep 0.3; echo late' &) ; printf '\\033]0;title\\007\\000\\377\\n'";
    let argv = ["/bin/sh", "-c", script];
    let process = kernel
        .json()
        .make_process("p", &argv, json!({"env": path()}));
    let serial = process["serial"].as_u64().expect("a serial");
    let collected = Collector::new(&kernel.socket_path(), &["p"]).finish(serial);
    let expected = b"one\ntwo\nthree\nfour\n\x1b]0;title\x07\0\xff\nlate\n";
    assert_eq!(
        String::from_utf8_lossy(&collected.bytes),
        String::from_utf8_lossy(expected)
    );
    // Whoever looks by hand sees no control characters in what the kernel says of it.
    let listed = kernel.classic().ask("list processes");
    assert!(!listed.contains('\u{1b}'), "{listed:?}");
}

#[test]
fn a_fork_bomb_stays_within_its_limit_and_leaves_nothing() {
    if !nobody_has_python() {
        return;
    }
    // Everything it makes goes on like it, and ends by itself after two seconds.
    let bomb = "import os, time\nend = time.monotonic() + 2\nwhile time.monotonic() < end:\n\
                \x20try:\n\x20 if os.fork() == 0: os.setsid()\n\
                \x20except OSError: time.sleep(0.01)\n\
                \x20time.sleep(0.002)\n";
    let mut kernel = Kernel::start();
    let keeper = kernel.keeper();
    let mut session = kernel.json();
    session.make_process(
        "bomb",
        &[PYTHON, "-c", bomb],
        json!({"uid": BOMBER, "env": path(), "rlimits": {"nproc": 40}, "working_dir": "/"}),
    );
    let mut most = 0;
    for round in 0..20 {
        most = most.max(of_user(keeper, BOMBER).len());
        session.ok("value.set", json!({"name": "a", "value": "b"}));
        let name = format!("bystander.{round}");
        session.make_process(&name, &["/bin/true"], json!({}));
    }
    wait_until("its processes have ended", || {
        let pids = of_user(keeper, BOMBER);
        most = most.max(pids.len());
        !pids.iter().any(|pid| procfs::alive(*pid))
    });
    assert!(most <= 40, "{most} processes");
    // Of what was asked for, the zombies stay until it is removed.
    let mut names = vec!["bomb".to_owned()];
    names.extend((0..20).map(|round| format!("bystander.{round}")));
    session.ok("process.remove", json!({"names": names, "force": true}));
    wait_until("the keeper has waited for all it adopted", || {
        let children = procfs::children(keeper);
        of_user(keeper, BOMBER).is_empty() && children.iter().all(|pid| procfs::alive(*pid))
    });
    assert_eq!(kernel.keeper(), keeper, "nobody was replaced");
}

/// Processes of a user below a keeper, zombies included; another run of the same test does not count.
fn of_user(keeper: i32, uid: u32) -> Vec<i32> {
    let wanted = format!("{uid} {uid} {uid} {uid}");
    let mut pids = procfs::descendants(keeper);
    pids.retain(|pid| procfs::status_line(*pid, "Uid").as_deref() == Some(&wanted));
    pids
}

#[test]
fn callers_that_drip_are_put_out_by_those_that_talk() {
    let kernel = Kernel::builder()
        .wrapper(&["prlimit", "--nofile=256:256"])
        .start();
    let address = ("127.0.0.1", kernel.port());
    let mut dripping = Vec::new();
    for _ in 0..300 {
        let Ok(mut stream) = TcpStream::connect(address) else {
            break;
        };
        let _ = stream.write_all(b"list processes --and-no-line-end");
        dripping.push(stream);
    }
    assert!(dripping.len() > 64, "only {} connected", dripping.len());
    wait_until("a newcomer is served", || {
        let Ok(stream) = TcpStream::connect(address) else {
            return false;
        };
        let mut client = Classic::over_tcp(stream);
        client
            .read_within(Duration::from_secs(2))
            .starts_with("Papa")
    });
    let mut session = Json::unix(&kernel.socket_path()).expect("the unix socket serves");
    session.ok("value.set", json!({"name": "a", "value": "b"}));
}

#[test]
fn reading_only_means_that_no_op_changes_anything() {
    let kernel = Kernel::builder()
        .argument("--tcp")
        .argument("read-only")
        .start();
    let mut inside = kernel.json();
    let argv = ["/bin/sh", "-c", "echo kept; exec sleep 60"];
    let process = inside.make_process("p", &argv, json!({}));
    let serial = process["serial"].as_u64().expect("a serial");
    inside.ok("value.set", json!({"name": "v", "value": "kept"}));
    inside.ok("socket.make", json!({"name": "s"}));
    let null = fs::File::open("/dev/null").expect("there");
    inside
        .call_with("hold", json!({"name": "h"}), null.as_fd())
        .expect("it answers")
        .expect("it is held");
    let mut outside = Json::tcp(kernel.port()).expect("it speaks JSON");
    for (op, fields) in [
        ("claim", json!({"namespace": "n", "holder": "h"})),
        ("process.make", json!({"name": "q", "argv": ["/bin/true"]})),
        ("process.remove", json!({"names": ["p"], "force": true})),
        ("socket.make", json!({"name": "t"})),
        ("socket.remove", json!({"names": ["*"]})),
        ("value.set", json!({"name": "v", "value": "x"})),
        ("value.remove", json!({"names": ["v"]})),
        ("hold.drop", json!({"names": ["*"]})),
        ("output.consume", json!({"names": ["p"]})),
        ("exit.ack", json!({"serials": [serial]})),
        ("kernel.exit", json!({})),
    ] {
        let reply = outside.call(op, fields).expect("it answers");
        assert_eq!(
            reply.as_ref().map_err(|error| error["code"].clone()),
            Err(json!("denied")),
            "{op}"
        );
    }
    let mut typed = kernel.classic();
    for line in ["exit-if-idle", "remove processes p", "remove sockets *"] {
        typed.ask_error(line);
    }
    // Watching only looks: Enter asks for more, and takes nothing away.
    typed.send("watch p");
    assert!(typed.read_to("] ").contains("kept"));
    typed.send("");
    typed.send("q");
    assert_eq!(
        inside.ok("value.get", json!({"name": "v"}))["value"],
        "kept"
    );
    let mut collector = Collector::new(&kernel.socket_path(), &["p"]);
    collector.run_until("the output is still there", PATIENCE, |collector| {
        let seen = collector.seen.get(&serial);
        seen.is_some_and(|seen| seen.bytes == b"kept\n")
    });
}
