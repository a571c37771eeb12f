//! Sockets in trouble: an address that somebody has, a path that somebody removes; and the flag
//! that workers inherit.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use serde_json::{Value, json};

use crate::journal::worker;
use crate::stack::Stack;
use papa_harness::{free_port, procfs, skipped, wait_until};

#[test]
fn a_taken_port_gave_its_watcher_up_and_named_nobody() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let own = std::process::id();
    let stack = Stack::start(&format!(
        "[watcher:web]\ncmd = sleep 1000\nuse_sockets = yes\nmax_retry = 0\n[socket:api]\nhost = 127.0.0.1\nport = {port}\n\
         [watcher:free]\ncmd = sleep 1000\n",
    ));
    stack.wait_pids("free", 1);
    wait_until("the holder is named", || {
        stack.message("web").contains(&format!("(pid {own})"))
    });
    let said = stack.message("web");
    let expected = format!("waits for socket api: 127.0.0.1:{port} is taken by ");
    assert!(said.starts_with(&expected), "{said}");
    assert_eq!(stack.state("web"), "starting");
    assert_eq!(stack.message("free"), "", "only those who use it wait");
    let listed = stack.request("listsockets", "");
    let trouble = listed["sockets"][0]["trouble"].as_str().unwrap_or_default();
    assert!(trouble.contains(&own.to_string()), "{listed}");
    let found = stack.request("doctor", "");
    assert!(found.to_string().contains("is taken by"), "{found}");
    drop(taken);
    // Not one attempt was counted: with max_retry = 0 a single one would have given it up.
    stack.wait_pids("web", 1);
    assert_eq!(stack.message("web"), "");
    let listed = stack.request("listsockets", "");
    assert!(listed["sockets"][0]["fd"].is_number(), "{listed}");
    assert!(!stack.request("doctor", "").to_string().contains("taken"));
}

/// Waits until a worker of `web` runs and the one of before is gone.
#[track_caller]
fn wait_replaced(stack: &Stack, before: &BTreeMap<u64, i32>) {
    wait_until("the worker is replaced", || {
        let pids = stack.pids("web");
        pids.len() == 1 && !before.values().any(|pid| procfs::alive(*pid))
    });
}

#[test]
fn a_held_socket_whose_path_was_removed_stayed_unreachable() {
    let stack = Stack::start(&format!(
        "[watcher:web]\ncmd = {}\ncopy_env = true\nuse_sockets = yes\nready = notify\n[socket:web]\npath = DIR/web.sock\n",
        worker("DIR/web 1 notify $(circus.sockets.web)"),
    ));
    let before = stack.wait_pids("web", 1);
    let path = stack.kernel.directory().join("web.sock");
    UnixStream::connect(&path).unwrap();
    fs::remove_file(&path).unwrap();
    wait_until("the path is back", || UnixStream::connect(&path).is_ok());
    // Who serves it now is another worker: the one before has a socket that nobody can reach.
    wait_replaced(&stack, &before);
    assert!(stack.manager_log().contains("somebody removed the path"));
}

#[test]
fn a_held_socket_whose_path_a_stranger_took_stayed_unreachable_in_silence() {
    let stack = Stack::start(&format!(
        "[watcher:web]\ncmd = {}\ncopy_env = true\nuse_sockets = yes\nready = notify\n[socket:web]\npath = DIR/web.sock\n",
        worker("DIR/web 1 notify $(circus.sockets.web)"),
    ));
    let before = stack.wait_pids("web", 1);
    let path = stack.kernel.directory().join("web.sock");
    let elsewhere = stack.kernel.directory().join("stranger.sock");
    let stranger = UnixListener::bind(&elsewhere).unwrap();
    stranger.set_nonblocking(true).unwrap();
    fs::rename(&elsewhere, &path).unwrap();
    let inode = fs::metadata(&path).unwrap().ino();
    let expected = format!("served by pid {}", std::process::id());
    wait_until("the stranger is named", || {
        stack.message("web").contains(&expected)
    });
    // Nothing is taken away: neither the path from the stranger, nor what there is from the
    // workers.
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    assert_eq!(stack.pids("web"), before);
    // Asked whether they serve, they had a connection that says nothing.
    while stranger.accept().is_ok() {}
    UnixStream::connect(&path).unwrap();
    drop(stranger);
    wait_replaced(&stack, &before);
    UnixStream::connect(&path).unwrap();
    assert_eq!(stack.message("web"), "");
}

#[test]
fn workers_kept_a_dead_socket_when_the_manager_was_killed_while_it_was_bound_anew() {
    let mut stack = Stack::start(&format!(
        "[watcher:web]\ncmd = {}\ncopy_env = true\nuse_sockets = yes\nready = notify\n[socket:web]\npath = DIR/web.sock\n\
         [watcher:other]\ncmd = sleep 1000\n",
        worker("DIR/web 1 notify $(circus.sockets.web)"),
    ));
    let path = stack.kernel.directory().join("web.sock");
    let other = stack.wait_pids("other", 1);
    for place in ["socket.unbound", "socket.bound"] {
        let before = stack.wait_pids("web", 1);
        stack.kill_manager();
        stack.start_manager_to_stop_at(place, 1);
        stack.wait_attached();
        fs::remove_file(&path).unwrap();
        let failpoints = stack.failpoints();
        wait_until(place, || failpoints.hit(place).is_some());
        stack.kill_manager();
        failpoints.clear();
        stack.start_manager();
        wait_replaced(&stack, &before);
        // To the end of the answer: the worker would end by itself if nobody read it.
        let mut answer = String::new();
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.read_to_string(&mut answer).unwrap();
    }
    // One manager later nobody is replaced again, and who has no socket never was.
    let before = stack.wait_pids("web", 1);
    stack.kill_manager();
    stack.start_manager();
    assert_eq!(stack.pids("web"), before);
    assert_eq!(stack.pids("other"), other);
    let log = stack.manager_log();
    assert_eq!(log.matches("bound anew since").count(), 2);
}

#[test]
fn workers_kept_a_dead_socket_when_its_directory_was_removed() {
    let stack = Stack::start(&format!(
        "[watcher:web]\ncmd = {}\ncopy_env = true\nuse_sockets = yes\nready = notify\n[socket:web]\npath = DIR/run/web.sock\n",
        worker("DIR/web 1 notify $(circus.sockets.web)"),
    ));
    // The directory is missing at first, too: the watcher waits for it.
    let directory = stack.kernel.directory().join("run");
    wait_until("the watcher waits", || {
        stack.message("web").starts_with("waits for socket web")
    });
    fs::create_dir(&directory).unwrap();
    let before = stack.wait_pids("web", 1);
    fs::remove_dir_all(&directory).unwrap();
    wait_until("the trouble is told", || {
        stack
            .message("web")
            .contains("starts no more workers without socket web")
    });
    fs::create_dir(&directory).unwrap();
    wait_replaced(&stack, &before);
    UnixStream::connect(directory.join("web.sock")).unwrap();
}

/// Whether somebody at `path` answers; to the end, since a worker would end by itself if nobody
/// read what it says.
fn answers(path: &Path) -> bool {
    let mut answer = String::new();
    UnixStream::connect(path)
        .and_then(|mut stream| stream.read_to_string(&mut answer))
        .is_ok()
}

#[test]
fn a_socket_in_trouble_kept_watchers_of_other_sockets_from_starting() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let section = |name: &str| {
        format!(
            "[watcher:{name}]\ncmd = {}\ncopy_env = true\nuse_sockets = yes\nready = notify\n",
            worker(&format!("DIR/{name} 1 notify $(circus.sockets.{name})"))
        )
    };
    let stack = Stack::start(&format!(
        "[socket:api]\nport = {port}\n[socket:web]\npath = DIR/web.sock\n{}{}\
         [watcher:all]\ncmd = sleep 1000\nuse_sockets = yes\n",
        section("api"),
        section("web"),
    ));
    let web = stack.wait_pids("web", 1);
    let path = stack.kernel.directory().join("web.sock");
    assert!(answers(&path));
    // The one names it; the other names none, and so may use any of them.
    for name in ["api", "all"] {
        wait_until("it waits for its socket", || {
            stack.message(name).starts_with("waits for socket api")
        });
    }
    assert_eq!(stack.message("web"), "");
    drop(taken);
    stack.wait_pids("api", 1);
    let api = stack.wait_pids("all", 1);
    assert_eq!(stack.pids("web"), web, "nobody else is replaced");

    // A path that is bound anew replaces those who serve it, or may, and nobody else.
    let before = stack.pids("api");
    fs::remove_file(&path).unwrap();
    wait_until("the path is back", || answers(&path));
    wait_replaced(&stack, &web);
    wait_until("who may serve it is replaced", || {
        let pids = stack.pids("all");
        pids.len() == 1 && pids != api
    });
    assert_eq!(stack.pids("api"), before);
}

#[test]
fn a_path_that_cannot_be_bound_was_not_named() {
    let stack = Stack::start(
        "[watcher:web]\ncmd = sleep 1000\nuse_sockets = yes\n[socket:web]\npath = DIR/run/web.sock\n",
    );
    let directory = stack.kernel.directory().join("run");
    let path = directory.join("web.sock");
    let says = |what: &str| {
        let shown = path.display();
        wait_until("the reason is told", || {
            let said = stack.message("web");
            said.starts_with(&format!("waits for socket web: {shown} cannot be bound: "))
                && said.contains(what)
        });
    };
    says("there is no directory");
    fs::create_dir(&directory).unwrap();
    let served = stack.wait_pids("web", 1);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "somebody's").unwrap();
    wait_until("what is there is told", || {
        stack
            .message("web")
            .contains("a file that is no socket is there")
    });
    assert_eq!(fs::read_to_string(&path).unwrap(), "somebody's");
    fs::remove_file(&path).unwrap();
    wait_replaced(&stack, &served);
}

#[test]
fn a_socket_that_could_not_be_put_back_was_lost() {
    let (before, after) = (free_port(), free_port());
    let file = |port: u16, how: &str| {
        format!(
            "[watcher:web]\ncmd = {}\ncopy_env = true\nuse_sockets = yes\nready = notify\nready_timeout = 10\n[socket:web]\nport = {port}\n\
             [watcher:other]\ncmd = {how}\nmax_retry = 0\n",
            worker("DIR/web 1 notify $(circus.sockets.web)"),
        )
    };
    let stack = Stack::start(&file(before, "sleep 1000"));
    let served = stack.wait_pids("web", 1);
    stack.wait_pids("other", 1);
    stack.rewrite(&file(after, "/no/such/program"));
    let reply = stack.ask("reloadconfig", &json!({"waiting": true}));
    assert_eq!(reply["status"], "error", "{reply}");
    // The kernel has kept the port of before, whoever else has it; at no time is another one given
    // out for it.
    let web = stack.pids("web");
    for pid in served.values().chain(web.values()) {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(*pid),
            nix::sys::signal::Signal::SIGKILL,
        );
    }
    wait_until("the port of before is served", || {
        let mut answer = String::new();
        TcpStream::connect(("127.0.0.1", before))
            .and_then(|mut stream| stream.read_to_string(&mut answer))
            .is_ok_and(|read| read > 0)
    });
    wait_until("no trouble is left", || {
        let listed = stack.request("listsockets", "");
        listed["sockets"][0]["trouble"].is_null()
    });
    let listed = stack.request("listsockets", "");
    assert!(listed.to_string().contains(&before.to_string()), "{listed}");
    TcpStream::connect(("127.0.0.1", after)).unwrap_err();
    assert!(!stack.manager_log().contains("Socket circus.web not found"));
}

#[test]
fn workers_inherited_blocking_sockets_which_circus_does_not_give() {
    let stack = Stack::start(
        "[watcher:w]\ncmd = sleep 1000\nuse_sockets = yes\n[socket:a]\nhost = 127.0.0.1\nport = 0\n\
         [socket:b]\nhost = 127.0.0.1\nport = 0\nblocking = yes\n",
    );
    let pid = stack.wait_pids("w", 1)[&1];
    let listed = stack.request("listsockets", "");
    for (name, nonblocking) in [("a", true), ("b", false)] {
        let sockets = listed["sockets"].as_array().unwrap();
        let entry = sockets.iter().find(|entry| entry["name"] == name).unwrap();
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", entry["fd"])).unwrap();
        let flags = info
            .lines()
            .find_map(|line| line.strip_prefix("flags:"))
            .unwrap();
        let flags = u32::from_str_radix(flags.trim(), 8).unwrap();
        assert_eq!(flags & 0o4000 != 0, nonblocking, "{name}: {flags:o}");
    }
    assert!(procfs::alive(pid));
}

#[test]
fn both_wildcards_on_one_port_left_one_in_trouble() {
    if TcpListener::bind("[::]:0").is_err() {
        return skipped("there is no IPv6");
    }
    let port = free_port();
    let stack = Stack::start(&format!(
        "[watcher:w]\ncmd = sleep 1000\nuse_sockets = yes\n[socket:six]\nhost = ::\nport = {port}\n\
         [socket:four]\nhost = 0.0.0.0\nport = {port}\n",
    ));
    stack.wait_pids("w", 1);
    for address in [format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
        TcpStream::connect(&address).unwrap_or_else(|error| panic!("{address}: {error}"));
    }
    let listed = stack.kernel.json().ok("socket.list", json!({}));
    let sockets = listed["sockets"].as_array().unwrap();
    let v6only = |name: &str| {
        let socket = sockets.iter().find(|socket| socket["name"] == name);
        socket.unwrap()["v6only"].clone()
    };
    assert_eq!(v6only("circus.six"), true);
    assert_eq!(v6only("circus.four"), Value::Null);
}
