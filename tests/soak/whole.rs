//! The checks themselves: they hold for an installation that is well, and see what is not.

use std::fs;
use std::io::Write;

use nix::sys::signal::Signal;

use papa_harness::whole::{Role, Whole};
use papa_harness::{procfs, wait_until};

#[track_caller]
fn assert_well(whole: &mut Whole, after: &str) {
    if let Err(wrong) = whole.check() {
        panic!("after {after}:\n{}", wrong.join("\n"));
    }
}

/// What the check finds, as one text.
#[track_caller]
fn found(whole: &mut Whole) -> String {
    whole.check().expect_err("something is wrong").join("\n")
}

#[test]
fn whoever_is_killed_nothing_is_wrong() {
    let mut whole = Whole::start();
    assert_well(&mut whole, "the start");
    for role in Role::ALL {
        whole.kill(role);
        assert_well(&mut whole, &format!("the kill of the {role}"));
    }
    let life = &whole.living("web")[0];
    life.order(whole.kernel.directory(), "exit 3").unwrap();
    wait_until("it is replaced", || whole.lives().len() == 5);
    assert_well(&mut whole, "an exit");
    let reply = whole
        .ask(
            "reload",
            &serde_json::json!({"name": "web", "waiting": true}),
        )
        .unwrap();
    assert_eq!(reply["status"], "ok", "{reply}");
    assert_well(&mut whole, "a reload");
    assert!(whole.lines_read() > 100, "{}", whole.lines_read());
}

#[test]
fn what_is_wrong_is_found() {
    let mut whole = Whole::start();
    assert_well(&mut whole, "the start");
    let logs = whole.logs();
    let life = whole.living("steady")[0].clone();
    let source = life.source();
    let mut log = fs::File::options()
        .append(true)
        .open(logs.join("web.err"))
        .unwrap();
    writeln!(log, "{source}.out 0 again;\nhalf").unwrap();
    let wrong = found(&mut whole);
    assert!(
        wrong.contains(&format!("line 0 of {source}.out comes again")),
        "{wrong}"
    );
    assert!(wrong.contains("torn line \"half\""), "{wrong}");
    // The life is a line and its bytes longer in the logs than it was.
    assert!(wrong.contains(&format!("{source} wrote")), "{wrong}");

    procfs::signal(life.pid, Signal::SIGKILL);
    wait_until("it is replaced", || whole.living("steady").len() == 3);
    let wrong = found(&mut whole);
    assert!(wrong.contains(&format!("{source} died")), "{wrong}");
}
