//! What those who are served, and workers, cannot do with what they send and are given.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, SealFlag, fallocate, fcntl};
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::stat::Mode;
use serde_json::json;

use papa_harness::{Classic, Collector, Json, Kernel, PATIENCE, procfs, wait_for, wait_until};

use super::{AS_NOBODY, PYTHON, lines, nobody_has_python, path};

/// A user of every distribution (`uucp`) that no other test has processes of.
const BOMBER: u32 = 10;

#[test]
fn a_flood_of_descriptors_is_bounded() {
    let mut kernel = Kernel::start();
    let before = procfs::open_descriptors(kernel.pid());
    let null = fs::File::open("/dev/null").expect("there");
    // More than one message is read with, and as many as one may carry.
    let many: Vec<OwnedFd> = (0..250)
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
    // Each flooder costs its session and the sixteen descriptors that may wait; and there is this
    // session.
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
        // `call` passes over the reply to the line; the next request shows that the session goes
        // on.
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

/// Processes of a user below a keeper, zombies included; another run of the same test does not
/// count.
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
