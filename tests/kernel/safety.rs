//! Who gets in, and what one caller can do to the others: nothing.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::json;

use papa_harness::{Classic, Kernel, free_port, is_root, procfs, skipped, wait_until};

/// What the kernel process may use beyond its budget for unread input and unsent output.
const OVERHEAD_KIB: u64 = 32 << 10;

/// Bytes a session may keep unread and unsent, with all others together.
fn budget_kib(kernel: &Kernel) -> u64 {
    let status = kernel.json().ok("status", json!({}));
    status["memory"]["budget_bytes"].as_u64().expect("a budget") >> 10
}

#[track_caller]
fn assert_memory_bounded(kernel: &mut Kernel) {
    let used = procfs::pss_kib(kernel.pid()).expect("the kernel's memory can be read");
    let limit = budget_kib(kernel) + OVERHEAD_KIB;
    assert!(used <= limit, "{used} KiB of {limit}");
}

#[test]
fn a_web_page_cannot_post_a_command() {
    let kernel = Kernel::start();
    for request in [
        "POST / HTTP/1.1\r\nHost: localhost\r\n\r\nset forged 1\n",
        "GET /list HTTP/1.0\n\nset forged 1\n",
        "set forged HTTP/1.1\nset forged 1\n",
    ] {
        let mut client = Classic::tcp_silent(kernel.port());
        client.send_bytes(request.as_bytes()).unwrap();
        client.read_to_end();
    }
    assert_eq!(kernel.classic().ask("list values"), "");
}

#[test]
fn a_session_that_starts_with_control_bytes_is_closed() {
    let kernel = Kernel::start();
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\nset forged 1\n"[..],
        b"set \x00forged 1\nset forged 1\n",
        b"\x1b[A\nset forged 1\n",
    ] {
        let mut client = Classic::tcp_silent(kernel.port());
        let _ = client.send_bytes(bytes);
        client.read_to_end();
    }
    assert_eq!(kernel.classic().ask("list values"), "");
}

#[test]
fn an_endless_line_ends_the_session_within_the_budget() {
    let mut kernel = Kernel::start();
    let mut other = kernel.classic();
    let mut client = TcpStream::connect(("127.0.0.1", kernel.port())).unwrap();
    client
        .set_write_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let piece = vec![b'x'; 1 << 20];
    let closed = (0..100).any(|_| client.write_all(&piece).is_err());
    assert!(closed, "100 MiB without a line end were taken");
    assert_eq!(other.ask("get a"), "");
    assert_memory_bounded(&mut kernel);
}

#[test]
fn a_million_words_and_a_value_of_100_mib_are_refused() {
    let mut kernel = Kernel::start();
    let mut client = Classic::tcp_silent(kernel.port());
    let line = format!("set a {}\n", "x ".repeat(1_000_000));
    client.send_bytes(line.as_bytes()).unwrap();
    client.read_to("\n> ");
    assert!(client.read_to("\n").starts_with("Error: "));

    let mut session = kernel.json();
    let value = "x".repeat(100 << 20);
    let reply = session.call("value.set", json!({"name": "a", "value": value}));
    assert!(!matches!(reply, Ok(Ok(_))), "it was taken");
    assert_eq!(kernel.classic().ask("list values"), "");
    let big = "x".repeat(2 << 20);
    let code = kernel
        .json()
        .error("value.set", json!({"name": "a", "value": big}));
    assert!(["invalid", "limit"].contains(&code.as_str()), "{code}");
    assert_memory_bounded(&mut kernel);
}

#[test]
fn names_that_would_forge_lines_are_refused() {
    let kernel = Kernel::start();
    let mut session = kernel.json();
    for name in ["a:b", "a\nb running=True", "\u{1b}[2J", "", "*", "a*"] {
        for (op, mut fields) in [
            ("process.make", json!({"argv": ["/bin/true"]})),
            ("socket.make", json!({})),
            ("value.set", json!({"value": "x"})),
        ] {
            fields["name"] = json!(name);
            assert_eq!(session.error(op, fields), "invalid", "{op} {name:?}");
        }
    }
}

#[test]
fn an_argument_cannot_forge_a_line_of_the_listing() {
    let kernel = Kernel::start();
    kernel.json().make_process(
        "p",
        &["/bin/sleep", "60", "x\nq pid=1 running=True\u{1b}[2J"],
        json!({}),
    );
    let listed = kernel.classic().ask("list processes");
    assert_eq!(listed.lines().count(), 1, "{listed:?}");
    assert!(!listed.contains('\u{1b}'), "{listed:?}");
}

#[test]
fn secrets_and_output_stay_out_of_the_log() {
    let kernel = Kernel::builder().argument("--debug").start();
    let mut session = kernel.json();
    let process = session.make_process(
        "p",
        &["/bin/sh", "-c", "echo $TOKEN\u{1b}[31m"],
        json!({"env": {"TOKEN": "hunter2"}}),
    );
    papa_harness::Collector::new(&kernel.socket_path(), &["p"])
        .finish(process["serial"].as_u64().unwrap());
    let log = kernel.log();
    assert!(!log.contains("hunter2"), "{log}");
    assert!(!log.contains('\u{1b}'), "{log}");
}

/// Runs a Python program as the user nobody, in a directory it may enter.
fn as_nobody(program: &str, arguments: &[&str]) -> Option<Output> {
    if !is_root() {
        skipped("another user needs root");
        return None;
    }
    let output = Command::new("setpriv")
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "/usr/bin/env",
            "python3",
            "-c",
            program,
        ])
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .expect("setpriv runs");
    Some(output)
}

/// Connects to a TCP port or (with `@`) an abstract socket, sends a line, prints what comes.
const CONNECT: &str = "import socket, sys\n\
    where = sys.argv[1]\n\
    if where.startswith('@'):\n\
    \x20s = socket.socket(socket.AF_UNIX); s.connect('\\0' + where[1:])\n\
    elif where.startswith('/'):\n\
    \x20s = socket.socket(socket.AF_UNIX); s.connect(where)\n\
    else:\n\
    \x20s = socket.create_connection(('127.0.0.1', int(where)))\n\
    s.settimeout(10)\n\
    try:\n\
    \x20s.sendall(b'set forged 1\\nquit\\n')\n\
    except OSError: pass\n\
    heard = b''\n\
    while True:\n\
    \x20try: piece = s.recv(4096)\n\
    \x20except ConnectionResetError: break\n\
    \x20if not piece: break\n\
    \x20heard += piece\n\
    sys.stdout.buffer.write(b'heard:' + heard)\n";

#[test]
fn another_user_is_refused_on_every_transport() {
    let kernel = Kernel::start();
    let port = kernel.port().to_string();
    // So that the refusal is the kernel's, not the scratch folder's.
    fs::set_permissions(kernel.directory(), fs::Permissions::from_mode(0o755)).unwrap();
    let Some(output) = as_nobody(CONNECT, &[&port]) else {
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if text.is_empty() && String::from_utf8_lossy(&output.stderr).contains("python3") {
        return skipped("the user nobody has no python3");
    }
    assert!(!text.contains("> "), "no prompt for another user: {text}");

    let abstract_name = format!("@papa/0/{port}");
    let output = as_nobody(CONNECT, &[&abstract_name]).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.starts_with("heard:"),
        "the abstract socket is there: {output:?}"
    );
    assert!(!text.contains("> "), "no prompt for another user: {text}");

    let path = kernel.socket_path();
    let output = as_nobody(CONNECT, &[path.to_str().unwrap()]).unwrap();
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("PermissionError"),
        "{output:?}"
    );
    let mode = fs::metadata(kernel.runtime_dir())
        .unwrap()
        .permissions()
        .mode()
        & 0o777;
    assert_eq!(mode, 0o700);
    assert_eq!(kernel.classic().ask("list values"), "");
}

#[test]
fn root_and_the_owner_are_served_on_the_abstract_socket() {
    let kernel = Kernel::start();
    let name = format!("papa/{}/{}", nix::unistd::geteuid(), kernel.port());
    let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
    UnixStream::connect_addr(&address).expect("the abstract socket is there");
}

#[test]
fn silent_connections_do_not_keep_the_others_from_working() {
    let mut kernel = Kernel::start();
    let mut working = kernel.json();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], kernel.port()));
    let mut silent = Vec::new();
    // As many as the machine and the backlog let through, up to ten thousand.
    while silent.len() < 10_000 {
        match TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            Ok(stream) => silent.push(stream),
            Err(_) => break,
        }
    }
    println!("{} silent connections", silent.len());
    assert!(silent.len() > 100);
    working.ok("value.set", json!({"name": "a", "value": "b"}));
    working.make_process("p", &["/bin/true"], json!({}));
    assert_memory_bounded_by(&mut kernel, &mut working);
    drop(silent);
    wait_until("a newcomer is served", || {
        TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok_and(|stream| {
            let mut client = Classic::over_tcp(stream);
            client
                .read_within(Duration::from_secs(2))
                .starts_with("Papa")
        })
    });
}

#[track_caller]
fn assert_memory_bounded_by(kernel: &mut Kernel, session: &mut papa_harness::Json) {
    let status = session.ok("status", json!({}));
    let pid = i32::try_from(status["pid"].as_i64().expect("a pid")).expect("a pid fits");
    let limit = (status["memory"]["budget_bytes"].as_u64().expect("a budget") >> 10) + OVERHEAD_KIB;
    let used = procfs::pss_kib(pid).expect("the kernel's memory can be read");
    assert!(
        used <= limit,
        "{used} KiB of {limit}; port {}",
        kernel.port()
    );
}

#[test]
fn a_reader_that_never_reads_costs_itself() {
    let mut kernel = Kernel::start();
    let mut session = kernel.json();
    let value = "x".repeat(1 << 20);
    session.ok("value.set", json!({"name": "big", "value": value}));
    let mut greedy: Vec<TcpStream> = (0..4)
        .map(|_| {
            let stream = TcpStream::connect(("127.0.0.1", kernel.port())).unwrap();
            stream
                .set_write_timeout(Some(Duration::from_millis(500)))
                .unwrap();
            stream
        })
        .collect();
    let requests = "get big\n".repeat(2000);
    for stream in &mut greedy {
        // Either everything is taken, or the kernel stops reading, or it closes: all fine.
        let _ = stream.write_all(requests.as_bytes());
    }
    for _ in 0..20 {
        session.ok("value.set", json!({"name": "small", "value": "y"}));
        assert_memory_bounded_by(&mut kernel, &mut session);
    }
    assert_eq!(kernel.classic().ask("get small"), "y");
}

#[test]
fn a_port_taken_by_another_program_is_an_error_not_a_wait() {
    let port = free_port();
    let _taken = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let scratch = papa_harness::Scratch::new();
    let output = scratch
        .papa()
        .args(["--port", &port.to_string()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains(&port.to_string()), "{text}");
}
