//! Recoveries that fail: a record that kills two of them is left out; after three in a row the
//! keeper holds everything, says so, and takes the program an operator puts in place.
//!
//! Recovery is killed at a failpoint, which only builds with debug assertions have.

use std::io::Read;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::stuck::Load;
use papa_harness::{
    Failpoints, Kernel, KernelBuilder, PATIENCE, binary, procfs, wait_for, wait_until,
};

/// Where recoveries are killed.
struct Trap {
    points: Failpoints,
    directory: TempDir,
}

impl Trap {
    fn new() -> (Self, KernelBuilder) {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let variable = format!("PAPA_FAILPOINTS={}", directory.path().display());
        let trap = Self {
            points: Failpoints::at(directory.path()),
            directory,
        };
        (trap, Kernel::builder().wrapper(&["env", &variable]))
    }

    /// Kills the kernel, and so many recoveries in a row when they come to this place for the n-th
    /// time.
    #[track_caller]
    fn kill_recoveries(&self, kernel: &mut Kernel, times: usize, place: &str, nth: u64) {
        let mut victim = kernel.pid();
        for _ in 0..times {
            self.points.clear();
            self.points.arm(place, nth, "kernel");
            procfs::signal(victim, Signal::SIGKILL);
            victim = wait_for("the next one has come to that place", || {
                Some(self.points.hit(place)?.pid)
            });
        }
        self.points.clear();
        procfs::signal(victim, Signal::SIGKILL);
    }
}

fn pid(process: &Value) -> i32 {
    i32::try_from(process["pid"].as_i64().expect("a pid")).expect("a pid fits")
}

#[test]
fn a_record_that_kills_recovery_twice_is_left_out_and_nothing_else() {
    let (trap, builder) = Trap::new();
    let mut kernel = builder.start();
    let mut session = kernel.json();
    for number in 0..9 {
        session.ok(
            "value.set",
            json!({"name": format!("v.{number}"), "value": "x"}),
        );
    }
    let load = Load::start(&kernel);
    // The first record says that a kernel was started; one of the next is a value.
    trap.kill_recoveries(&mut kernel, 2, "recover.replaying", 6);
    let count = |kernel: &Kernel| {
        let values = kernel.json().ok("value.list", json!({}))["values"].clone();
        values.as_object().expect("values by name").len()
    };
    let status = kernel.status();
    assert_eq!(status["skipped_records"], 1, "{status}");
    assert_eq!(count(&kernel), 8);
    // It stays left out, and is counted once.
    kernel.kill_kernel();
    kernel.kill_keeper();
    assert_eq!(kernel.status()["skipped_records"], 1);
    assert_eq!(count(&kernel), 8);
    load.finish(&kernel);
}

#[test]
fn a_process_whose_record_is_left_out_runs_on() {
    let (trap, builder) = Trap::new();
    let mut kernel = builder.start();
    let lines = kernel.path("lines");
    let script = "while :; do echo out; echo x >> $0; sleep 0.02; done";
    let process = kernel.json().make_process(
        "p",
        &["/bin/sh", "-c", script, &lines],
        json!({"env": {"PATH": "/usr/bin:/bin"}}),
    );
    trap.kill_recoveries(&mut kernel, 2, "recover.replaying", 2);
    assert_eq!(kernel.status()["skipped_records"], 1);
    assert_eq!(kernel.json().process("p"), None);
    // Its pipes are still held: it writes, and does not die of it.
    let written = || std::fs::metadata(&lines).expect("it has written").len();
    let before = written();
    wait_until("it goes on", || written() > before + 10);
    assert!(procfs::alive(pid(&process)));
    // Others are made as before.
    let seen = kernel
        .json()
        .make_process("q", &["/bin/sleep", "1000"], json!({}));
    assert!(procfs::alive(pid(&seen)));
}

/// What a caller is told before the connection is closed.
fn told(mut connection: impl Read) -> Option<String> {
    let mut text = String::new();
    connection.read_to_string(&mut text).ok()?;
    Some(text)
}

fn by_tcp(kernel: &Kernel) -> Option<String> {
    let connection = TcpStream::connect(("127.0.0.1", kernel.port())).ok()?;
    connection.set_read_timeout(Some(PATIENCE)).ok()?;
    told(connection)
}

/// Puts a program in place of another, as an installation does.
fn install(program: &Path, from: &Path) {
    let draft = program.with_extension("draft");
    papa_harness::copy_program(from, &draft);
    std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o755))
        .expect("it can be made executable");
    std::fs::rename(draft, program).expect("the program can be replaced");
}

#[test]
fn after_three_failed_recoveries_everything_is_held_until_an_operator_puts_another_program_in_place()
 {
    let (trap, builder) = Trap::new();
    let programs = tempfile::tempdir().expect("a temporary directory can be made");
    let program: PathBuf = programs.path().join("papa");
    install(&program, &binary("papa"));
    let mut kernel = builder.program(&program).start();
    let keeper = kernel.keeper();
    let mut session = kernel.json();
    let made = session.ok("socket.make", json!({"name": "web"}));
    let web = u16::try_from(made["socket"]["port"].as_u64().expect("a port")).expect("it fits");
    session.ok("value.set", json!({"name": "v", "value": "kept"}));
    let short = session.make_process(
        "short",
        &["/bin/sh", "-c", "echo last words; read x < $0; exit 5", &{
            let path = kernel.path("go");
            nix::unistd::mkfifo(path.as_str(), nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
            path
        }],
        json!({}),
    );
    let load = Load::start(&kernel);
    trap.kill_recoveries(&mut kernel, 3, "recover.fetched", 1);

    let line = wait_for("callers are told", || {
        by_tcp(&kernel).filter(|line| !line.is_empty())
    });
    for part in [
        "papa: no kernel: 3 in a row",
        "2 processes",
        &format!("SIGUSR2 to process {keeper}"),
        // They were killed, as by a system without memory: no program is to blame.
        "dmesg",
    ] {
        assert!(line.contains(part), "{part:?} in {line:?}");
    }
    assert_eq!(line.matches('\n').count(), 1, "{line:?}");
    let socket = UnixStream::connect(kernel.socket_path()).expect("it is listened on");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    assert!(told(socket).expect("a line").starts_with("papa: no kernel"));
    // Listeners are held, and processes; one that ends meanwhile is not forgotten.
    TcpStream::connect(("127.0.0.1", web)).expect("the listener is held");
    std::fs::write(kernel.path("go"), "x\n").expect("it reads");
    wait_until("it has ended", || !procfs::alive(pid(&short)));

    // A program that does not work is left again for the one before, which does not work either.
    install(&program, Path::new("/bin/false"));
    trap.points.arm("recover.fetched", 1, "kernel");
    procfs::signal(keeper, Signal::SIGUSR2);
    let victim = wait_for("the one before is tried once more", || {
        trap.points.hit("recover.fetched")
    });
    let log = kernel.log();
    assert!(
        log.contains("the program that was tried exited with code 1"),
        "{log}"
    );
    trap.points.clear();
    procfs::signal(victim.pid, Signal::SIGKILL);
    wait_for("callers are told of it", || {
        by_tcp(&kernel).filter(|line| line.starts_with("papa: no kernel: "))
    });

    install(&program, &binary("papa"));
    procfs::signal(keeper, Signal::SIGUSR2);
    let status = kernel.status();
    assert_eq!(status["keeper"], keeper);
    let serving = pid(&status);
    assert_eq!(
        std::fs::read_link(format!("/proc/{serving}/exe")).expect("it runs"),
        program
    );
    let mut session = kernel.json();
    assert_eq!(
        session.ok("socket.list", json!({}))["sockets"][0],
        made["socket"]
    );
    assert_eq!(
        session.ok("value.get", json!({"name": "v"}))["value"],
        "kept"
    );
    let seen = papa_harness::Collector::new(&kernel.socket_path(), &["short"])
        .finish(short["serial"].as_u64().expect("a serial"));
    assert_eq!(seen.bytes, b"last words\n");
    assert_eq!(seen.exit.expect("it is known")["code"], 5);
    load.finish(&kernel);
}

#[test]
fn what_was_in_the_way_may_go_by_itself() {
    let (trap, _) = Trap::new();
    let directory = trap.directory.path().display().to_string();
    let mut kernel = Kernel::builder()
        .wrapper(&[
            "env",
            &format!("PAPA_FAILPOINTS={directory}"),
            "PAPA_TEST_PATIENCE_MS=1000",
        ])
        .start();
    let load = Load::start(&kernel);
    trap.kill_recoveries(&mut kernel, 3, "recover.fetched", 1);
    // Without anybody doing anything.
    let status = wait_for("a kernel serves", || kernel.try_status());
    assert_eq!(status["skipped_records"], 0);
    let log = kernel.log();
    assert!(log.contains("no kernel: 3 in a row did not serve"), "{log}");
    load.finish(&kernel);
}
