//! What goes wrong is said once: not by the log and the program on one screen, and not by an error
//! and its cause in one line.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use papa_harness::{Scratch, Site, binary, private_command};

/// Shorter pieces of a line are names and numbers.
const SENTENCE_CHARS: usize = 12;

/// Has `line` fail in `directory`, and looks at everything it says there.
#[track_caller]
fn says_once(directory: &Path, runtime: &Path, line: &str) {
    let (program, arguments) = line.split_once(' ').unwrap_or((line, ""));
    let mut command = private_command(Path::new("timeout"), runtime);
    command
        .current_dir(directory)
        .env("XDG_RUNTIME_DIR", runtime);
    command.arg("20").arg(binary(program));
    let output = command.args(arguments.split_whitespace()).output().unwrap();
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    let said = String::from_utf8_lossy(&said);
    let code = output.status.code();
    assert!(matches!(code, Some(1 | 2)), "{line}: {code:?}: {said}");
    assert!(!said.trim().is_empty(), "{line} says nothing");
    let mut known = BTreeSet::new();
    let pieces = said
        .split(['\n', '"', '\\'])
        .flat_map(|line| line.split(": "))
        .flat_map(|piece| piece.split("; "))
        .map(str::trim)
        .filter(|piece| piece.chars().count() >= SENTENCE_CHARS);
    for piece in pieces {
        // A path or a name may be in several sentences.
        let is_sentence = piece.contains(' ') && !piece.ends_with("error=");
        assert!(
            !is_sentence || known.insert(piece),
            "{line} says {piece:?} twice:\n{said}"
        );
    }
}

#[test]
fn errors_were_printed_twice() {
    let scratch = Scratch::new();
    let base = scratch.directory();
    let place = base.display();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let file = |name: &str, text: &str| fs::write(base.join(name), text).unwrap();
    let web = "[watcher:web]\ncmd = sleep 1000\n";
    file(
        "bad.ini",
        "[watcher:web]\ncmd = sleep 1000\nnumprocesses = many\n",
    );
    file("worse.ini", "nonsense\n");
    let endpoint = |name: &str| format!("[circus]\npapa_endpoint = unix:{place}/{name}\n");
    file("nowhere.ini", &format!("{}{web}", endpoint("none/k.sock")));
    file(
        "tcp.ini",
        &format!("[circus]\npapa_endpoint = tcp://127.0.0.1:{port}\n{web}"),
    );
    file(
        "pid.ini",
        &format!("{}pidfile = /proc/nope\n{web}", endpoint("p.sock")),
    );
    file(
        "log.ini",
        &format!("{}logoutput = /proc/nope/x\n{web}", endpoint("l.sock")),
    );
    file("good.ini", &format!("{}{web}", endpoint("g.sock")));
    for name in ["plain", "open", "own"] {
        fs::create_dir(base.join(name)).unwrap();
    }
    file("afile", "");
    let mode = |name: &str, mode| {
        fs::set_permissions(base.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("open", 0o777);
    mode("plain", 0o700);
    let taken_port = format!("papa --port {port}");
    let lines = [
        ("plain", "papactl check bad.ini"),
        ("plain", "papactl up nofile.ini"),
        ("plain", "papactl up --foreground nofile.ini"),
        ("plain", "papactl up bad.ini"),
        ("plain", "papactl up worse.ini"),
        ("plain", "papactl up nowhere.ini"),
        ("plain", "papactl up --foreground nowhere.ini"),
        ("plain", "papactl up tcp.ini"),
        ("plain", "papactl up pid.ini"),
        ("plain", "papactl up --foreground pid.ini"),
        ("plain", "papactl up log.ini"),
        ("plain", "papactl up --foreground log.ini"),
        ("plain", "papactl --nope"),
        ("plain", "papactl status"),
        ("plain", "papactl stop web"),
        ("plain", "papactl doctor --nope"),
        ("plain", "papactl kernel status"),
        ("plain", "papa-manager nofile.ini"),
        ("plain", "papa-manager bad.ini"),
        ("plain", "papa-manager pid.ini"),
        ("plain", "papa-manager log.ini"),
        ("plain", "papa-manager --check log.ini"),
        ("plain", "papa-manager --kernel nope good.ini"),
        ("plain", "papa --nope"),
        ("plain", "papa --port 99999"),
        ("plain", &taken_port),
        ("plain", "papa --port 0 --log-file /proc/nope"),
        ("plain", "papa --port 0 --pid-file /proc/nope"),
        ("plain", "papa --port 0 --daemonize --log-file /proc/nope"),
        (
            "plain",
            "papa --port 0 --daemonize --pid-file /proc/nope --log-file klog",
        ),
    ];
    for (runtime, line) in lines {
        says_once(base, &base.join(runtime), line);
    }
    for runtime in ["afile", "missing", "open"] {
        for line in [
            "papactl status",
            "papactl up good.ini",
            "papa-manager good.ini",
        ] {
            says_once(base, &base.join(runtime), line);
        }
    }
    for runtime in ["afile", "open"] {
        says_once(base, &base.join(runtime), "papa --port 0");
    }
    for socket in ["p.sock", "l.sock", "g.sock"] {
        assert!(!base.join(socket).exists(), "a kernel runs on at {socket}");
    }
    // In its log and on the screen, once each.
    let log = base.join("own/log");
    let line = "papa-manager --log-file own/log good.ini";
    says_once(base, &base.join("missing"), line);
    let logged = fs::read_to_string(log).unwrap();
    assert_eq!(logged.matches("No such file").count(), 1, "{logged}");
}

#[test]
fn a_refused_claim_was_explained_twice_in_one_line() {
    let site = Site::new("[watcher:web]\ncmd = sleep 1000\n");
    site.done("up site.ini");
    let base = site.scratch.directory();
    fs::create_dir(base.join("other")).unwrap();
    fs::set_permissions(base.join("other"), fs::Permissions::from_mode(0o700)).unwrap();
    let same = base.to_owned();
    let other = base.join("other");
    for (runtime, line) in [
        (&same, "papa-manager site.ini"),
        (&other, "papa-manager site.ini"),
        (&other, "papactl up site.ini"),
        (&other, "papactl up --foreground site.ini"),
        (&same, "papactl start nope"),
        (&same, "papactl logs nope"),
        (&same, "papactl set web nope 1"),
        (&same, "papactl set web numprocesses many"),
        (&same, "papactl add web sleep 1"),
    ] {
        says_once(base, runtime, line);
    }
    fs::write(base.join("site.ini"), "nonsense\n").unwrap();
    for line in [
        "papactl reloadconfig",
        "papactl restart",
        "papactl up site.ini",
    ] {
        says_once(base, &same, line);
    }
}
