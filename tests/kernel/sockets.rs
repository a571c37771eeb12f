//! Sockets the kernel holds: families, types, stale paths, reuseport, file numbers, and who
//! inherits them.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};

use serde_json::json;

use papa_harness::{Classic, Kernel, PATIENCE, wait_until};

/// File numbers the kernel gives to sockets start here, so that they stay clear of what a worker
/// opens.
const FIRST_FILENO: u32 = 100;

/// Answers every connection on the descriptor given as the first argument with the second.
const SERVER: &str = "import socket, sys\n\
    listener = socket.socket(fileno=int(sys.argv[1]))\n\
    while True:\n\
    \x20connection, _ = listener.accept()\n\
    \x20connection.sendall(sys.argv[2].encode())\n\
    \x20connection.close()\n";

fn port(line: &str) -> u16 {
    Classic::field(line, "port")
        .parse()
        .expect("a port is a number")
}

fn fileno(line: &str) -> u32 {
    Classic::field(line, "fileno")
        .parse()
        .expect("a file number is a number")
}

fn answer(port: u16) -> String {
    let mut text = String::new();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the socket listens");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("a timeout can be set");
    let _ = stream.read_to_string(&mut text);
    text
}

#[test]
fn an_inet_socket_listens_at_once_on_a_number_from_100() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    let line = client.ask("make socket web");
    assert!(
        line.starts_with("web family=inet type=stream backlog=5 host=127.0.0.1 port="),
        "{line}"
    );
    assert_eq!(fileno(&line), FIRST_FILENO);
    TcpStream::connect(("127.0.0.1", port(&line))).expect("it listens");
    assert_eq!(client.ask("make socket web"), line);
    assert_eq!(client.ask("list sockets"), line);
    assert_eq!(fileno(&client.ask("make socket more")), FIRST_FILENO + 1);
    client.ask("remove sockets web");
    wait_until("the port is free again", || {
        TcpListener::bind(("127.0.0.1", port(&line))).is_ok()
    });
}

#[test]
fn every_family_and_type_can_be_made() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    let six = client.ask("make socket six family=inet6");
    assert!(
        six.contains("family=inet6 type=stream backlog=5 host=::1"),
        "{six}"
    );
    TcpStream::connect(("::1", port(&six))).expect("it listens");

    let datagram = client.ask("make socket datagram type=dgram");
    assert!(datagram.contains("type=dgram"), "{datagram}");
    UdpSocket::bind("127.0.0.1:0")
        .and_then(|socket| socket.send_to(b"hello", ("127.0.0.1", port(&datagram))))
        .expect("a datagram can be sent to it");

    let path = kernel.path("stream.sock");
    let unix = client.ask(&format!("make socket unix path={path}"));
    assert!(
        unix.contains(&format!("family=unix type=stream backlog=5 path={path}")),
        "{unix}"
    );
    UnixStream::connect(&path).expect("it listens");

    let path = kernel.path("packet.sock");
    let packet = client.ask(&format!("make socket packet type=seqpacket path={path}"));
    assert!(packet.contains("type=seqpacket"), "{packet}");
}

#[test]
fn a_socket_of_an_interface_listens_everywhere_on_it() {
    let kernel = Kernel::start();
    let line = kernel.classic().ask("make socket local interface=lo");
    if line.contains("ermitted") {
        papa_harness::skipped("this user may not bind to an interface");
        return;
    }
    assert!(
        line.contains("host=0.0.0.0") && line.contains("interface=lo"),
        "{line}"
    );
    TcpStream::connect(("127.0.0.1", port(&line))).expect("it listens on the interface");
}

#[test]
fn a_stale_unix_path_is_replaced_and_removal_unlinks() {
    let kernel = Kernel::start();
    let path = kernel.path("stale.sock");
    drop(UnixListener::bind(&path).unwrap());
    let mut client = kernel.classic();
    client.ask(&format!("make socket s path={path} umask=7"));
    UnixStream::connect(&path).expect("it listens");
    assert_eq!(
        client.ask_error(&format!("make socket t path={path}")),
        format!("Socket for {path} has already been created")
    );
    client.ask("remove sockets s");
    assert!(fs::symlink_metadata(&path).is_err(), "the path is gone");
}

#[test]
fn a_socket_file_that_somebody_served_was_unlinked() {
    let kernel = Kernel::start();
    let path = kernel.path("served.sock");
    let theirs = UnixListener::bind(&path).unwrap();
    let mut client = kernel.json();
    let make = json!({"name": "s", "path": path});
    let refusal = client
        .call("socket.make", make.clone())
        .unwrap()
        .unwrap_err();
    assert_eq!(refusal["code"], "bind_failed");
    let refusal = refusal["message"].as_str().unwrap();
    let pid = std::process::id();
    assert!(
        refusal.contains(&format!("{path} is served by pid {pid} (")),
        "{refusal}"
    );
    let _ = theirs.accept().expect("the question");
    let mut stream = UnixStream::connect(&path).expect("it is served as before");
    let (mut served, _) = theirs.accept().unwrap();
    stream.write_all(b"x").unwrap();
    served.read_exact(&mut [0]).unwrap();

    // Who asks for it gets the path; the socket that had it is not ours to take back.
    client.ok(
        "socket.make",
        json!({"name": "s", "path": path, "replace": true}),
    );
    let again = client.ok("socket.make", make);
    assert_eq!(again["created"], false, "replacing is no property of it");
    fs::remove_file(&path).unwrap();
    let _theirs = UnixListener::bind(&path).unwrap();
    client.ok("socket.remove", json!({"names": ["s"]}));
    UnixStream::connect(&path).expect("the path is another's by then and stays");
}

#[test]
fn the_umask_is_octal_in_json_text() {
    let kernel = Kernel::start();
    let path = kernel.path("masked.sock");
    let made = kernel.json().ok(
        "socket.make",
        json!({"name": "m", "path": path, "umask": "027"}),
    );
    assert_eq!(made["created"], true);
    let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o750, "{mode:o}");
}

#[test]
fn other_parameters_under_the_same_name_are_refused() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    let line = client.ask("make socket s");
    assert_eq!(
        client.ask_error("make socket s backlog=6"),
        format!("Socket for s has already been created - {line}")
    );
    let busy = client.ask_error(&format!("make socket t port={}", port(&line)));
    assert!(
        busy.starts_with(&format!("Bind failed on 127.0.0.1:{}: ", port(&line))),
        "{busy}"
    );
    assert_eq!(
        kernel
            .json()
            .error("socket.make", json!({"name": "s", "backlog": 6})),
        "exists"
    );
}

#[test]
fn sockets_are_named_by_file_number_too_but_names_win() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    let line = client.ask("make socket s");
    let number = fileno(&line);
    assert_eq!(client.ask(&format!("list sockets {number}")), line);
    let other = client.ask(&format!("make socket {number}"));
    assert_eq!(client.ask(&format!("list sockets {number}")), other);
    client.ask(&format!("remove sockets {number}"));
    assert_eq!(client.ask("list sockets"), line);
    client.ask(&format!("remove sockets {number}"));
    assert_eq!(client.ask("list sockets"), "");
}

#[test]
fn a_bare_remove_is_refused() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    let line = client.ask("make socket s");
    client.ask_error("remove sockets");
    assert_eq!(client.ask("list sockets"), line);
}

#[test]
fn two_processes_share_a_reuseport_socket() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    let line = client.ask("make socket shared reuseport=1");
    assert!(line.ends_with(" reuseport=1"), "{line}");
    let script = kernel.path("server.py");
    fs::write(&script, SERVER).unwrap();
    for name in ["one", "two"] {
        let made = client.ask(&format!(
            "make process {name} /usr/bin/env python3 {script} $(socket.shared.fileno) {name}"
        ));
        assert!(made.starts_with(&format!("{name} pid=")), "{made}");
    }
    let port = port(&line);
    let mut heard = std::collections::HashSet::new();
    wait_until("both processes have answered", || {
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
            let mut text = String::new();
            let _ = stream.set_read_timeout(Some(PATIENCE));
            let _ = stream.read_to_string(&mut text);
            heard.insert(text);
        }
        heard.contains("one") && heard.contains("two")
    });
}

#[test]
fn classic_processes_inherit_every_socket_at_its_own_number() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    let named = client.ask("make socket named");
    let unnamed = client.ask("make socket unnamed");
    let script = kernel.path("server.py");
    fs::write(&script, SERVER).unwrap();
    let number = fileno(&unnamed);
    client.ask(&format!(
        "make process by.number /usr/bin/env python3 {script} {number} number"
    ));
    client.ask(&format!(
        "make process by.name /usr/bin/env python3 {script} $(socket.named.fileno) name"
    ));
    assert_eq!(answer(port(&unnamed)), "number");
    assert_eq!(answer(port(&named)), "name");
}

#[test]
fn json_processes_get_the_sockets_they_name_and_no_other() {
    let kernel = Kernel::start();
    let mut session = kernel.json();
    session.ok("socket.make", json!({"name": "web"}));
    session.ok("socket.make", json!({"name": "secret"}));
    let process = session.make_process(
        "w",
        &["sleep", "60"],
        json!({"sockets": ["web"], "env": {"PATH": "/usr/bin:/bin"}}),
    );
    let pid = i32::try_from(process["pid"].as_i64().unwrap()).unwrap();
    wait_until("the worker runs its own program", || {
        papa_harness::procfs::descriptors(pid).len() == 4
    });
    let numbers: Vec<i32> = papa_harness::procfs::descriptors(pid)
        .into_iter()
        .map(|(number, _)| number)
        .collect();
    assert_eq!(numbers, [0, 1, 2, 100]);
}

#[test]
fn listen_fds_are_given_only_where_asked_for() {
    let kernel = Kernel::start();
    let mut session = kernel.json();
    session.ok("socket.make", json!({"name": "web"}));
    let mut collector = papa_harness::Collector::new(&kernel.socket_path(), &["*"]);
    let program = [
        "/bin/sh",
        "-c",
        "echo $LISTEN_FDS $LISTEN_FDNAMES $((LISTEN_PID == $$)); test -S /proc/self/fd/3 && echo socket",
    ];
    let with = session.make_process("with", &program, json!({"listen_fds": ["web"]}));
    let without = session.make_process("without", &program, json!({}));
    let with = collector.finish(with["serial"].as_u64().unwrap());
    assert_eq!(String::from_utf8_lossy(&with.bytes), "1 web 1\nsocket\n");
    let without = collector.finish(without["serial"].as_u64().unwrap());
    assert_eq!(String::from_utf8_lossy(&without.bytes), "0\n");
}

#[test]
fn a_socket_is_fetched_over_the_unix_socket() {
    let kernel = Kernel::start();
    let mut session = kernel.json();
    let made = session.ok("socket.make", json!({"name": "web"}));
    let port = u16::try_from(made["socket"]["port"].as_u64().unwrap()).unwrap();
    session.ok("socket.fetch", json!({"name": "web"}));
    let listener = TcpListener::from(session.descriptor());
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    accepted.write_all(b"hello").unwrap();
    drop(accepted);
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    assert_eq!(
        session.error("socket.fetch", json!({"name": "none"})),
        "not_found"
    );
}
