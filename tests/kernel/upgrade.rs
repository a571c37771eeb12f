//! Another program in the kernel's place: processes, output, listeners and client sessions go on,
//! whatever becomes of it.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use nix::sys::signal::Signal;

use papa_harness::{
    Classic, Collector, Failpoints, Hit, Json, Kernel, assert_same_bytes, binary, procfs, wait_for,
    wait_until,
};

const NUMBERED: &str = "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i; [ $((i % 20)) = 0 ] && sleep 0.02; done; exit 7";

fn numbered() -> Vec<u8> {
    let lines = (1..=2000).map(|i| format!("line {i}\n"));
    lines.collect::<String>().into_bytes()
}

/// A copy of our program at a path of its own, as an installation would put it.
fn another(kernel: &Kernel) -> PathBuf {
    let path = PathBuf::from(kernel.path("papa-next"));
    papa_harness::copy_program(&binary("papa"), &path);
    path
}

/// A program that is something else.
fn script(kernel: &Kernel, name: &str, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = PathBuf::from(kernel.path(name));
    std::fs::write(&path, text).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
    path
}

fn upgrade(path: &Path) -> Value {
    json!({ "binary": path.to_str().expect("a path in UTF-8") })
}

fn with(mut request: Value, key: &str) -> Value {
    request[key] = json!(true);
    request
}

/// Clients of every kind, each in the middle of something.
struct Clients {
    asker: Json,
    collector: Collector,
    follower: Json,
    watcher: Classic,
    half_typed: Classic,
    claimer: Json,
    epoch: u64,
    worker: Value,
}

impl Clients {
    fn new(kernel: &Kernel) -> Self {
        let mut asker = kernel.json();
        let worker = asker.make_process("w", &["/bin/sh", "-c", NUMBERED], json!({}));
        let mut collector = Collector::new(&kernel.socket_path(), &["w"]);
        collector.step(std::time::Duration::from_secs(20));
        let mut follower = kernel.json();
        follower.ok("output.follow", json!({ "names": ["chatter"] }));
        let mut watcher = kernel.classic();
        asker.make_process("quiet", &["/bin/sleep", "1000"], json!({}));
        watcher.send("watch processes quiet");
        assert_eq!(watcher.read_to("\n"), "Watching 1\n");
        let mut half_typed = kernel.classic();
        half_typed.ask("set before 1");
        half_typed.send_bytes(b"get bef").expect("sent");
        let mut claimer = kernel.json();
        let claim = claimer.ok("claim", json!({ "namespace": "mine", "holder": "me" }));
        claimer.ok("subscribe", json!({ "names": ["news*"] }));
        Self {
            asker,
            collector,
            follower,
            watcher,
            half_typed,
            claimer,
            epoch: claim["epoch"].as_u64().expect("an epoch"),
            worker,
        }
    }

    /// All of them go on as if nothing had been.
    fn check(mut self, kernel: &Kernel) {
        // What was typed before and after the change is one line.
        self.half_typed.send_bytes(b"ore\r\n").expect("sent");
        assert!(self.half_typed.read_until("> ").contains('1'));
        // The claim is still held by the very same session.
        self.claimer
            .ok("value.set", json!({ "name": "mine.x", "value": "1" }));
        // Over TCP nobody is taken for the process that holds it.
        let mut stranger = Json::tcp(kernel.port()).expect("served");
        let error = stranger.error("value.set", json!({ "name": "mine.x", "value": "2" }));
        assert_eq!(error, "claimed");
        let claims = self.asker.ok("claim.list", json!({}));
        assert_eq!(claims["claims"][0]["epoch"], self.epoch);
        assert_eq!(claims["claims"][0]["live"], true);
        // Subscriptions: changes, a follower, a classic watch.
        self.asker.make_process("news", &["/bin/true"], json!({}));
        assert_eq!(self.claimer.push_of("event")["name"], "news");
        self.asker
            .make_process("chatter", &["/bin/echo", "hello"], json!({}));
        let heard = self.follower.push();
        assert!(
            format!("{heard:?}").contains("hello") || heard.body("output").is_some(),
            "{heard:?}"
        );
        let quiet = self.asker.process("quiet").expect("it is there");
        procfs::signal(
            i32::try_from(quiet["pid"].as_i64().expect("a pid")).expect("fits"),
            nix::sys::signal::Signal::SIGTERM,
        );
        assert!(self.watcher.read_until("] ").contains("closed:quiet"));
        // The output of a worker that wrote all the time, on one connection.
        let serial = self.worker["serial"].as_u64().expect("a serial");
        self.collector.run_until(
            "the worker has ended",
            std::time::Duration::from_secs(120),
            |all| all.finished(serial),
        );
        assert_eq!(
            self.collector.connections, 1,
            "the consumer had to connect again"
        );
        let found = self.collector.finish(serial);
        assert_same_bytes("output of w", &numbered(), &found.stream(1));
    }
}

#[test]
fn another_program_takes_over_and_no_session_notices() {
    let mut kernel = Kernel::start();
    let path = another(&kernel);
    let mut clients = Clients::new(&kernel);
    let before = kernel.status();
    let told = clients.asker.ok("kernel.upgrade", upgrade(&path));
    assert_eq!(told["after"]["path"], path.to_str().unwrap());
    assert_eq!(told["pid"], before["pid"], "the process changed");
    assert_eq!(told["keeper"], before["keeper"]);
    assert_eq!(told["dry_run"], false);
    assert!(told["check"]["records"].as_u64().unwrap() > 0, "{told}");
    assert_eq!(told["check"]["processes"], 2, "{told}");
    let pid = i32::try_from(before["pid"].as_i64().unwrap()).unwrap();
    assert_eq!(
        std::fs::read_link(format!("/proc/{pid}/exe")).unwrap(),
        path
    );
    // And it is the one that is started from now on.
    kernel.kill_kernel();
    let pid = kernel.pid();
    assert_eq!(
        std::fs::read_link(format!("/proc/{pid}/exe")).unwrap(),
        path
    );
    drop(clients);
}

#[test]
fn sessions_go_on_over_a_change_of_program() {
    let mut kernel = Kernel::start();
    let mut clients = Clients::new(&kernel);
    let before = kernel.status();
    for _ in 0..3 {
        clients.asker.ok("kernel.upgrade", json!({}));
    }
    assert_eq!(kernel.status()["pid"], before["pid"]);
    clients.check(&kernel);
}

#[test]
fn sessions_go_on_over_a_change_of_the_keeper() {
    let mut kernel = Kernel::start();
    let path = another(&kernel);
    let mut clients = Clients::new(&kernel);
    let before = kernel.status();
    let told = clients
        .asker
        .ok("kernel.upgrade", with(upgrade(&path), "keeper"));
    assert_eq!(
        told["keeper"], before["pid"],
        "the kernel took the keeper's place"
    );
    assert_ne!(told["pid"], before["pid"]);
    for key in ["pid", "keeper"] {
        let exe = std::fs::read_link(format!("/proc/{}/exe", told[key])).unwrap();
        assert_eq!(exe, path, "{key}");
    }
    wait_until("the old keeper is gone", || {
        !procfs::alive(i32::try_from(before["keeper"].as_i64().unwrap()).unwrap())
    });
    kernel.status();
    clients.check(&kernel);
}

#[test]
fn sessions_go_on_over_the_death_of_the_keeper() {
    let mut kernel = Kernel::start();
    let clients = Clients::new(&kernel);
    for _ in 0..2 {
        kernel.kill_keeper();
    }
    clients.check(&kernel);
}

#[test]
fn a_program_that_does_not_serve_is_left_again_with_the_reason() {
    let mut kernel = Kernel::start();
    let mut clients = Clients::new(&kernel);
    let before = kernel.status();
    let ask = |clients: &mut Clients, request: Value| {
        let answer = clients.asker.call("kernel.upgrade", request).unwrap();
        let error = answer.expect_err("it must not succeed");
        error["message"].as_str().unwrap().to_owned()
    };
    let fails = script(&kernel, "fails", "#!/bin/sh\necho no good >&2\nexit 9\n");
    // The dry run finds out, and nothing is touched.
    let reason = ask(&mut clients, upgrade(Path::new("/bin/false")));
    assert!(
        reason.contains("dry run ended with exit status: 1"),
        "{reason}"
    );
    assert_eq!(kernel.status()["incarnation"], before["incarnation"]);
    // A script has no program to be opened behind the descriptor once that is closed.
    let reason = ask(&mut clients, with(upgrade(&fails), "force"));
    assert!(reason.contains("could not be started"), "{reason}");
    assert_eq!(kernel.status()["incarnation"], before["incarnation"]);
    // Forced, it runs and ends; the program before is back.
    let reason = ask(
        &mut clients,
        with(upgrade(Path::new("/bin/false")), "force"),
    );
    assert!(
        reason.contains("/bin/false exited with code 1 before it served"),
        "{reason}"
    );
    let after = kernel.status();
    assert_ne!(after["incarnation"], before["incarnation"]);
    assert_eq!(after["keeper"], before["keeper"]);
    for (path, expected) in [
        ("/etc/passwd", "not executable"),
        ("/tmp", "not a regular file"),
        ("/no/such/program", "No such file"),
    ] {
        let reason = ask(&mut clients, upgrade(Path::new(path)));
        assert!(
            reason.starts_with(path) && reason.contains(expected),
            "{reason}"
        );
    }
    let reason = ask(&mut clients, json!({ "binary": "papa" }));
    assert!(reason.contains("absolute"), "{reason}");
    clients.check(&kernel);
}

#[test]
fn a_dry_run_only_looks() {
    let mut kernel = Kernel::start();
    let mut client = kernel.json();
    client.make_process("p", &["/bin/sleep", "1000"], json!({}));
    let before = kernel.status();
    let told = client.ok("kernel.upgrade", json!({ "dry_run": true }));
    assert_eq!(told["dry_run"], true);
    assert_eq!(told["check"]["unknown_records"], 0);
    assert_eq!(told["check"]["processes"], 1);
    assert_eq!(told["check"]["reels"], 1);
    assert_eq!(told["after"]["version"], told["before"]["version"]);
    assert_eq!(kernel.status()["incarnation"], before["incarnation"]);
    let program = binary("papa");
    let pid = kernel.pid();
    assert_eq!(
        std::fs::read_link(format!("/proc/{pid}/exe")).unwrap(),
        program
    );
}

#[test]
fn callers_are_served_throughout() {
    let mut kernel = Kernel::start();
    let path = kernel.socket_path();
    let stop = AtomicBool::new(false);
    let served = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut served = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let mut client = Json::unix(&path).expect("nobody is refused");
                        client.ok("status", json!({}));
                        served += 1;
                    }
                    served
                })
            })
            .collect();
        let mut client = kernel.json();
        for round in 0..10 {
            let keeper = round % 3 == 2;
            client.ok("kernel.upgrade", json!({ "keeper": keeper }));
        }
        stop.store(true, Ordering::Relaxed);
        callers
            .into_iter()
            .map(|caller| caller.join().expect("no caller failed"))
            .sum::<u32>()
    });
    assert!(served > 10, "{served}");
    kernel.status();
}

#[test]
fn a_caller_that_has_said_all_gets_all_answers_over_a_change() {
    const LINES: usize = 20_000;
    let kernel = Kernel::start();
    let asked = "get nothing\n".repeat(LINES);
    std::thread::scope(|scope| {
        let asker = scope.spawn(|| {
            let mut caller = kernel.classic();
            caller.send_bytes(asked.as_bytes()).expect("it is read");
            caller.finish_sending();
            caller.read_to_end()
        });
        let mut client = kernel.json();
        while !asker.is_finished() {
            client.ok("kernel.upgrade", json!({}));
        }
        let answers = asker.join().expect("the caller is answered");
        assert_eq!(answers.matches("> ").count(), LINES, "{}", answers.len());
    });
}

#[test]
fn what_is_asked_as_the_keeper_dies_is_done() {
    const ROUNDS: usize = 9;
    let mut kernel = Kernel::start();
    let mut idle = kernel.json();
    let file = std::fs::File::open("/dev/zero").expect("there is one");
    for round in 0..ROUNDS {
        let name = format!("made.{round}");
        let mut requests = [
            (
                "process.make",
                json!({"name": name, "argv": ["/bin/sleep", "1000"]}),
                None,
            ),
            ("hold", json!({"name": name}), Some(file.as_fd())),
            ("socket.make", json!({"name": name}), None),
        ];
        requests.rotate_left(round % 3);
        let mut askers = [kernel.json(), kernel.json(), kernel.json()];
        let (pid, keeper) = (kernel.pid(), kernel.keeper());
        // What finds it is one of these: nothing else is read before.
        procfs::signal(pid, Signal::SIGSTOP);
        procfs::signal(keeper, Signal::SIGKILL);
        let asked = askers.iter_mut().zip(requests);
        let asked: Vec<u64> = asked
            .map(|(asker, (op, fields, descriptor))| {
                let id = asker.ask(op, fields, descriptor);
                id.expect("it is read later")
            })
            .collect();
        procfs::signal(pid, Signal::SIGCONT);
        for (asker, id) in askers.iter_mut().zip(asked) {
            let answer = asker.reply(id).expect("the session goes on");
            answer.expect("it is done");
        }
        wait_until("another keeper's kernel serves", || {
            kernel
                .try_status()
                .is_some_and(|status| status["keeper"] != keeper)
        });
    }
    let made = |client: &mut Json| {
        ["process.list", "hold.list", "socket.list"].map(|op| client.ok(op, json!({})))
    };
    let before = made(&mut idle);
    for (listed, what) in before.iter().zip(["processes", "held", "sockets"]) {
        assert_eq!(
            listed[what].as_array().map(Vec::len),
            Some(ROUNDS),
            "{listed}"
        );
    }
    for process in before[0]["processes"].as_array().into_iter().flatten() {
        assert_eq!(process["running"], true, "{process}");
    }
    // The keeper there is now has it all.
    kernel.kill_kernel();
    assert_eq!(made(&mut kernel.json()), before);
}

#[test]
fn a_program_that_hangs_is_left_again() {
    // Ten seconds of patience become a quarter of one.
    let mut kernel = Kernel::builder()
        .environment("PAPA_TEST_PATIENCE_MS", "250")
        .start();
    let clients = Clients::new(&kernel);
    let mut client = kernel.json();
    // It takes the port, its only argument, for a number of seconds.
    let sleep = with(upgrade(Path::new("/bin/sleep")), "force");
    let answer = client.call("kernel.upgrade", sleep).unwrap();
    let error = answer.expect_err("it does not serve");
    let reason = error["message"].as_str().unwrap();
    assert!(
        reason.contains("/bin/sleep did not serve in time"),
        "{reason}"
    );
    kernel.status();
    clients.check(&kernel);
}

#[test]
fn a_program_that_ends_soon_after_it_served_is_left_again() {
    ends_soon_after(upgrade);
}

#[test]
fn so_is_one_that_has_replaced_the_keeper_too() {
    ends_soon_after(|path| with(upgrade(path), "keeper"));
}

#[track_caller]
fn ends_soon_after(request: impl Fn(&Path) -> Value) {
    let mut kernel = Kernel::start();
    let before = PathBuf::from(format!("/proc/{}/exe", kernel.pid()));
    let before = std::fs::read_link(before).expect("its program can be read");
    let path = another(&kernel);
    let mut client = kernel.json();
    let worker = client.make_process("w", &["/bin/sleep", "1000"], json!({}));
    client.ok("kernel.upgrade", request(&path));
    let first = kernel.pid();
    procfs::signal(first, nix::sys::signal::Signal::SIGABRT);
    wait_until("the program before is back", || {
        kernel.try_status().is_some_and(|status| {
            let exe = std::fs::read_link(format!("/proc/{}/exe", status["pid"]));
            exe.is_ok_and(|exe| exe == before)
        })
    });
    assert_eq!(
        kernel.json().process("w").expect("it is listed")["pid"],
        worker["pid"]
    );
    kernel.status();
}

#[test]
fn after_a_change_that_failed_the_kernel_still_hears_signals() {
    let mut kernel = Kernel::start();
    let mut client = kernel.json();
    client.ok("kernel.upgrade", json!({}));
    let fails = script(&kernel, "fails", "#!/bin/sh\nexit 9\n");
    let request = with(upgrade(&fails), "force");
    assert_eq!(client.error("kernel.upgrade", request), "denied");
    let incarnation = kernel.status()["incarnation"].clone();
    kernel.upgrade();
    assert_ne!(kernel.status()["incarnation"], incarnation);
    // The very same session goes on meanwhile.
    client.ok("status", json!({}));
}

/// Who ends everything (`pkill papa`) hits the old keeper and the next one, which is still asked
/// once.
#[test]
fn one_request_to_end_during_a_change_of_keeper_is_one() {
    let (mut kernel, points, _directory) = with_failpoints();
    let mut holder = kernel.json();
    holder.ok("claim", json!({"namespace": "app", "holder": "a test"}));
    let worker = holder.make_process("app.1", &["/bin/sleep", "1000"], json!({}));
    let (old, next) = (kernel.keeper(), kernel.pid());
    points.arm("succession.dismiss", 1, "kernel");
    let mut asker = kernel.json();
    asker
        .send("kernel.upgrade", json!({"keeper": true}))
        .expect("sent");
    let hit = wait_for("the next kernel stands still", || {
        let hit = points.hit("succession.dismiss")?;
        (procfs::stat(hit.pid)?.state == 'T').then_some(hit)
    });
    for pid in [old, next, hit.pid] {
        procfs::signal(pid, Signal::SIGTERM);
    }
    procfs::signal(hit.pid, Signal::SIGCONT);
    assert_eq!(holder.push_of("shutdown")["signal"], 15);
    holder.ok("status", json!({}));
    assert_eq!(kernel.status()["keeper"], next);
    let listed = holder.process("app.1").expect("it is listed");
    assert_eq!(listed["pid"], worker["pid"]);
}

#[test]
fn the_next_version_is_looked_for_where_this_one_was_started_from() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let path = |name: &str| directory.path().join(name);
    let install = |name: &str| papa_harness::copy_program(&binary("papa"), &path(name));
    install("papa-1");
    std::os::unix::fs::symlink("papa-1", path("papa")).expect("a link");
    let mut kernel = Kernel::builder().program(&path("papa")).start();
    let mut client = kernel.json();
    let mut upgraded = |request: Value, kernel: &mut Kernel| {
        client.ok("kernel.upgrade", request);
        std::fs::read_link(format!("/proc/{}/exe", kernel.pid())).expect("it runs")
    };
    // The link is turned to another file.
    install("papa-2");
    std::fs::remove_file(path("papa")).expect("the link");
    std::os::unix::fs::symlink("papa-2", path("papa")).expect("a link");
    assert_eq!(upgraded(json!({}), &mut kernel), path("papa-2"));
    // The file itself is moved away, and another takes its place.
    std::fs::remove_file(path("papa")).expect("the link");
    std::fs::rename(path("papa-2"), path("papa.old")).expect("moved");
    install("papa");
    assert_eq!(upgraded(json!({}), &mut kernel), path("papa"));
    // One that is named is where the next will be, also for the kernels to come.
    install("other");
    let named = upgrade(&path("other"));
    assert_eq!(upgraded(named, &mut kernel), path("other"));
    kernel.kill_kernel();
    std::fs::rename(path("other"), path("other.old")).expect("moved");
    install("other");
    drop(kernel.json().ok("kernel.upgrade", json!({})));
    let exe = std::fs::read_link(format!("/proc/{}/exe", kernel.pid())).expect("it runs");
    assert_eq!(exe, path("other"));
}

/// A kernel that can be had stand still.
fn with_failpoints() -> (Kernel, Failpoints, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let points = Failpoints::at(directory.path());
    let kernel = Kernel::builder()
        .environment(
            Failpoints::VARIABLE,
            directory.path().to_str().expect("UTF-8"),
        )
        .start();
    (kernel, points, directory)
}

/// Asks for a change of program, and has the kernel stand still at a place on the way. The asker
/// gets the answer.
fn stopped_at(kernel: &Kernel, points: &Failpoints, place: &str) -> (Hit, Json) {
    points.arm(place, 1, "kernel");
    let mut asker = kernel.json();
    asker.send("kernel.upgrade", json!({})).expect("sent");
    let hit = wait_for("it stands still there", || {
        let hit = points.hit(place)?;
        let state = procfs::stat(hit.pid)?.state;
        (state == 'T').then_some(hit)
    });
    (hit, asker)
}

#[test]
fn a_program_that_is_only_tried_writes_nothing() {
    let (mut kernel, points, _directory) = with_failpoints();
    kernel
        .json()
        .make_process("w", &["/bin/sleep", "1000"], json!({}));
    let before = kernel.status()["incarnation"].as_u64().expect("a number");
    // It has recovered and is about to say that it serves.
    let (hit, _asker) = stopped_at(&kernel, &points, "recover.serving");
    procfs::signal(hit.pid, Signal::SIGKILL);
    wait_until("the program before serves", || {
        kernel
            .try_status()
            .is_some_and(|status| status["pid"].as_i64() != Some(hit.pid.into()))
    });
    // Only those that served are counted.
    assert_eq!(kernel.status()["incarnation"], before + 1);
    assert_eq!(kernel.json().process("w").expect("listed")["running"], true);
}

#[test]
fn output_begun_while_a_program_was_tried_went_to_one_that_might_not_read_it() {
    let (kernel, points, _directory) = with_failpoints();
    let mut client = kernel.json();
    client.make_process("small", &["/bin/sleep", "1000"], json!({}));
    let large = json!({"reel_bytes": 16 << 20});
    let asked_while = |program: &dyn Fn(&mut Json)| {
        points.clear();
        points.arm("check.looked", 1, "check");
        let mut asker = kernel.json();
        let id = asker.ask("kernel.upgrade", json!({}), None).expect("sent");
        let hit = wait_for("the program has looked", || {
            let hit = points.hit("check.looked")?;
            (procfs::stat(hit.pid)?.state == 'T').then_some(hit)
        });
        program(&mut kernel.json());
        procfs::signal(hit.pid, Signal::SIGCONT);
        asker.reply(id).expect("answered")
    };
    // The first reel of a kind that earlier versions do not know.
    let refused = asked_while(&|client| {
        client.make_process("large", &["/bin/sleep", "1000"], large.clone());
    });
    let reason = refused.expect_err("nothing is changed");
    let reason = reason["message"].as_str().unwrap();
    assert!(
        reason.contains("a process was started while") && reason.contains("ask again"),
        "{reason}"
    );
    // Another of that kind, which the program has seen.
    let changed = asked_while(&|client| {
        client.make_process("more", &["/bin/sleep", "1000"], large.clone());
    });
    assert_eq!(changed.expect("it is changed")["check"]["reels"], 2);
}

#[test]
fn a_change_with_most_descriptors_in_use() {
    let mut kernel = Kernel::builder()
        .wrapper(&["prlimit", "--nofile=400:400"])
        .start();
    let mut client = kernel.json();
    for number in 0..70 {
        client.make_process(&format!("p{number}"), &["/bin/sleep", "1000"], json!({}));
    }
    let in_use = procfs::open_descriptors(kernel.pid());
    assert!(in_use > 280, "{in_use}");
    client.ok("kernel.upgrade", json!({}));
    client.ok("kernel.upgrade", json!({"keeper": true}));
    let status = kernel.status();
    let listed = client.ok("process.list", json!({}));
    assert_eq!(listed["processes"].as_array().map(Vec::len), Some(70));
    assert!(procfs::open_descriptors(kernel.pid()) <= in_use + 2);
    assert_eq!(status["keeper"], kernel.keeper());
}
