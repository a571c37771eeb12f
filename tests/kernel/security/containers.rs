//! Containers: user namespaces that call somebody root, on our network and on their own, and a
//! network that leads to our loopback.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use nix::unistd::geteuid;

use papa_harness::{Kernel, is_root, skipped};

use super::{AS_NOBODY, PYTHON, can, lines, nobody_has_python, python};

/// Tries every way in, given a port, an abstract name, a socket's path and the number to pose as;
/// prints for each what came of it.
const WAYS: &str = "import os, socket, struct, sys
port, name, path, pose = int(sys.argv[1]), '\\0' + sys.argv[2], sys.argv[3], int(sys.argv[4])

def plain(family, kind=0):
    return lambda: socket.socket(family, socket.SOCK_STREAM, kind)

def given_away():
    # What a socket says of its owner can be changed, by those who may.
    s = socket.socket()
    for owner in (pose, 0):
        try: os.fchown(s.fileno(), owner, owner)
        except OSError: pass
    return s

def posing(s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    said = b'set forged 1\\n'
    for who in (pose, 0):
        told = struct.pack('3i', os.getpid(), who, who)
        try: s.sendmsg([said], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, told)])
        except PermissionError: pass

def say(s): s.sendall(b'set forged 1\\n')

local = socket.AF_UNIX
for way, make, where, speak in [
    ('tcp', plain(socket.AF_INET), ('127.0.0.1', port), say),
    ('tcp6', plain(socket.AF_INET6), ('::1', port), say),
    ('chowned', given_away, ('127.0.0.1', port), say),
    ('mptcp', plain(socket.AF_INET, 262), ('127.0.0.1', port), say),
    ('abstract', plain(local), name, say),
    ('credentials', plain(local), name, posing),
    ('path', plain(local), path, say),
]:
    try:
        s = make()
        s.settimeout(20)
        s.connect(where)
        speak(s)
        s.sendall(b'quit\\n')
        heard = b''
        while True:
            piece = s.recv(4096)
            if not piece: break
            heard += piece
        print(way, 'served' if b'> ' in heard else 'closed')
    except ConnectionRefusedError: print(way, 'refused')
    except ConnectionError: print(way, 'closed')
    except OSError as error: print(way, 'impossible', error.errno)
";

/// Enters a user namespace with the map it is given, as the user it calls 0, then runs its
/// arguments. Those who make such maps are root or have `newuidmap`.
const MAPPED: &str = "import ctypes, os, sys
ask, answer = os.pipe(), os.pipe()
me = os.getpid()
if os.fork() == 0:
    os.read(ask[0], 1)
    for kind in ('uid', 'gid'):
        with open(f'/proc/{me}/{kind}_map', 'w') as map: map.write(sys.argv[1])
    os.write(answer[1], b'x')
    os._exit(0)
if ctypes.CDLL(None, use_errno=True).unshare(0x10000000) != 0: sys.exit('unshare')
os.write(ask[1], b'x')
os.read(answer[0], 1)
os.wait()
os.setgroups([])
os.setresgid(0, 0, 0)
os.setresuid(0, 0, 0)
os.execvp(sys.argv[2], sys.argv[2:])
";

const NEEDED: &str = "a user namespace of another user's needs root and that the system allows it";

/// What came of each way, for whoever runs under this wrapper and poses as this user.
#[track_caller]
fn tried(kernel: &Kernel, wrapper: &[&str], pose: u32) -> Vec<(String, String)> {
    let port = kernel.port().to_string();
    let owner = fs::metadata(format!("/proc/{}", kernel_pid(kernel))).expect("it runs");
    let name = format!(
        "papa/{}/{port}",
        std::os::unix::fs::MetadataExt::uid(&owner)
    );
    let path = kernel.socket_path();
    let arguments = [
        &port,
        &name,
        path.to_str().expect("UTF-8"),
        &pose.to_string(),
    ]
    .map(str::to_owned);
    let output = python(wrapper, WAYS, &arguments.each_ref().map(String::as_str));
    let split = |line: String| {
        let (way, what) = line.split_once(' ').expect("two words");
        (way.to_owned(), what.to_owned())
    };
    let found: Vec<_> = lines(&output).into_iter().map(split).collect();
    assert_eq!(found.len(), 7, "{output:?}");
    found
}

fn kernel_pid(kernel: &Kernel) -> u64 {
    let status = kernel.try_status().expect("the kernel answers");
    status["pid"].as_u64().expect("a pid")
}

/// Forgets what those who are served have said.
fn forget(kernel: &Kernel) {
    let all = serde_json::json!({"names": ["forged*"]});
    kernel.json().ok("value.remove", all);
}

#[track_caller]
fn assert_kept_out(kernel: &Kernel, who: &str, wrapper: &[&str], pose: u32) {
    for (way, what) in tried(kernel, wrapper, pose) {
        assert_ne!(what, "served", "{who}, {way}\n{}", kernel.log());
    }
    let values = kernel.json().ok("value.list", serde_json::json!({}));
    assert_eq!(values["values"], serde_json::json!({}), "{who}");
}

/// The sockets' folder as a careless operator, or a bind mount into a container, would open it:
/// only who asks counts then.
fn open_wide(kernel: &Kernel) {
    for path in [kernel.directory().to_owned(), kernel.runtime_dir()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("it is ours");
    }
    let everybody = fs::Permissions::from_mode(0o777);
    fs::set_permissions(kernel.socket_path(), everybody).expect("it is ours");
}

#[test]
fn who_is_root_in_a_container_is_who_it_is_outside() {
    let rooted = [&AS_NOBODY[..], &["unshare", "--user", "--map-root-user"]].concat();
    let probe = [&rooted[..], &["true"]].concat();
    if !nobody_has_python() || !can(NEEDED, &probe) {
        return;
    }
    let kernel = Kernel::start();
    open_wide(&kernel);
    // Root outside gets in by every way the system has, so that it is not the ways that fail below.
    for (way, what) in tried(&kernel, &["env"], 0) {
        let missing = ["tcp6", "mptcp"].contains(&way.as_str()) && what.starts_with("impossible");
        assert!(what == "served" || missing, "root, {way}: {what}");
    }
    forget(&kernel);
    let nameless = [&AS_NOBODY[..], &["unshare", "--user"]].concat();
    let with_net = [&rooted[..], &["--net"]].concat();
    let remapped = [PYTHON, "-c", MAPPED, "0 100000 65536"];
    let remapped_net = [&["unshare", "--net"][..], &remapped].concat();
    for (who, wrapper) in [
        ("nobody, who is root in there", &rooted[..]),
        ("nobody, whom the namespace does not know", &nameless),
        ("nobody, who is root there and has a network", &with_net),
        ("a container of numbers of its own", &remapped),
        ("the same with a network of its own", &remapped_net),
    ] {
        assert_kept_out(&kernel, who, wrapper, geteuid().as_raw());
    }
    // A namespace whose root is root is root.
    let same = [PYTHON, "-c", MAPPED, "0 0 1"];
    let tcp = &tried(&kernel, &same, 0)[0];
    assert_eq!(tcp.1, "served");
}

#[test]
fn a_container_has_no_use_for_calling_somebody_by_our_number() {
    // The daemon is the user 65534. So is, in its own namespace, a user that it does not know, and
    // everybody whom nobody knows.
    let third = [
        "setpriv",
        "--reuid=1234",
        "--regid=1234",
        "--clear-groups",
        "unshare",
    ];
    let named = [&third[..], &["--map-user=65534"]].concat();
    let probe = [&named[..], &["true"]].concat();
    if !nobody_has_python() || !can(NEEDED, &probe) {
        return;
    }
    let kernel = Kernel::builder().nobody().start();
    open_wide(&kernel);
    let own: Vec<String> = tried(&kernel, &AS_NOBODY, 65_534)
        .into_iter()
        .filter(|(way, _)| !["tcp6", "mptcp"].contains(&way.as_str()))
        .map(|(_, what)| what)
        .collect();
    assert_eq!(own, ["served"; 5], "its own user");
    forget(&kernel);
    let nameless = [&third[..], &["--user"]].concat();
    for (who, wrapper) in [("by name", &named), ("unknown", &nameless)] {
        assert_kept_out(&kernel, who, wrapper, 65_534);
    }
}

/// A network namespace that lives as long as this.
struct Network {
    holder: Child,
    pid: String,
}

impl Network {
    fn new() -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo there; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare runs");
        let mut line = String::new();
        let stdout = holder.stdout.take().expect("it is piped");
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("it says something");
        assert_eq!(line, "there\n");
        let pid = holder.id().to_string();
        Self { holder, pid }
    }

    fn wrapper(&self) -> [&str; 4] {
        ["nsenter", "--net", "--target", &self.pid]
    }

    #[track_caller]
    fn sh(&self, script: &str) {
        let [first, rest @ ..] = self.wrapper();
        let output = Command::new(first)
            .args(rest)
            .args(["sh", "-ec", script])
            .output()
            .expect("nsenter runs");
        assert!(output.status.success(), "{script}: {output:?}");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Connects from one address to each of the others and prints what it heard.
const FROM: &str = "import socket, sys
for where in sys.argv[3:]:
    s = socket.socket()
    s.settimeout(20)
    try:
        s.bind((sys.argv[1], 0))
        s.connect((where, int(sys.argv[2])))
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

#[test]
fn a_network_that_leads_to_our_loopback_leads_nowhere() {
    let probe = "ip link add outer type veth peer name inner && test -e /proc/sys/net/ipv4/conf/outer/route_localnet";
    if !is_root() {
        return skipped("a network of one's own needs root");
    }
    if !can(
        "a pair of virtual interfaces needs root and ip(8)",
        &["unshare", "--net", "sh", "-c", probe],
    ) {
        return;
    }
    let (host, container) = (Network::new(), Network::new());
    // As kube-proxy and others have it: what comes from a container for 127.0.0.1 is let through.
    host.sh(&format!(
        "ip link set lo up; ip link add outer type veth peer name inner netns {}; ip addr add 10.99.0.1/24 dev outer; \
         ip link set outer up; echo 1 > /proc/sys/net/ipv4/conf/outer/route_localnet",
        container.pid
    ));
    container.sh(
        "ip addr add 10.99.0.2/24 dev inner; ip link set inner up; echo 1 > /proc/sys/net/ipv4/conf/inner/route_localnet; \
         ip route add 127.0.0.0/8 via 10.99.0.1 dev inner",
    );
    let kernel = Kernel::builder().wrapper(&host.wrapper()).start();
    let port = kernel.port().to_string();
    let there = python(&host.wrapper(), FROM, &["127.0.0.1", &port, "127.0.0.1"]);
    assert_eq!(lines(&there), ["served"], "{}", kernel.log());
    let values = || kernel.json().ok("value.list", serde_json::json!({}))["values"].clone();
    kernel
        .json()
        .ok("value.remove", serde_json::json!({"names": ["forged"]}));
    // The packets arrive, which a stranger's port would show by refusing; but nobody here has the
    // other end of that connection.
    let output = python(
        &container.wrapper(),
        FROM,
        &["10.99.0.2", &port, "127.0.0.1", "10.99.0.1"],
    );
    assert_eq!(lines(&output), ["closed", "refused"], "{}", kernel.log());
    assert_eq!(values(), serde_json::json!({}));
}
