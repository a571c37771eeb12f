//! A start is done when what was started has run for a moment, and has failed when it has not:
//! never by chance.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use papa_harness::{Site, wait_until};

fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&text).into_owned()
}

/// It fails, with this on the screen.
#[track_caller]
pub(crate) fn fails(site: &Site, line: &str, wanted: &[&str]) -> String {
    let output = site.papactl(line);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "papactl {line}: {said}");
    for text in wanted {
        assert!(
            said.contains(text),
            "papactl {line}: no {text:?} in\n{said}"
        );
    }
    said
}

const BAD: &str = "[watcher:atonce]\ncmd = sh -c 'exit 7'\ncopy_env = true\n\
    [watcher:soon]\ncmd = sh -c 'sleep 0.05; exit 8'\ncopy_env = true\n\
    [watcher:good]\ncmd = sleep 1000\ncopy_env = true\n";

#[test]
fn what_dies_soon_is_never_reported_as_up() {
    let site = Site::new(BAD);
    fails(
        &site,
        "up site.ini",
        &["not up: atonce, soon", "exited with 7"],
    );
    for verb in ["start", "restart"] {
        for (name, code) in [("atonce", "exited with 7"), ("soon", "exited with 8")] {
            fails(&site, &format!("{verb} {name}"), &[name, code]);
        }
        site.done(&format!("{verb} good"));
    }
    // Also while it happens to run.
    fails(&site, "up site.ini", &["not up: atonce, soon"]);
    site.done("scale good 3");
    fails(&site, "incr soon", &["exited with 8"]);
}

#[test]
fn what_fails_once_and_then_stays_is_up() {
    let site = Site::new(
        "[watcher:second]\ncmd = sh -c 'test -e DIR/tried || { touch DIR/tried; exit 1; }; exec sleep 1000'\ncopy_env = true\n",
    );
    site.done("up site.ini");
    site.wait_pids("second", 1);
    fs::remove_file(site.scratch.directory().join("tried")).unwrap();
    site.done("restart second");
    site.wait_pids("second", 1);
}

#[test]
fn a_job_that_ends_well_is_a_success_and_one_that_does_not_is_none() {
    let job = |code| {
        format!("[watcher:job]\ncmd = sh -c 'exit {code}'\nrespawn = false\ncopy_env = true\n")
    };
    let site = Site::new(&job(0));
    site.done("up site.ini");
    site.done("start job");
    site.done("restart job");
    drop(site);
    let site = Site::new(&job(3));
    fails(&site, "up site.ini", &["not up: job", "exited with 3"]);
    fails(&site, "start job", &["job: worker 1 exited with 3, ran"]);
}

#[test]
fn a_watcher_that_comes_with_the_file_and_dies_takes_the_change_back() {
    let site = Site::new("[watcher:good]\ncmd = sleep 1000\ncopy_env = true\n");
    site.done("up site.ini");
    let file = site.scratch.directory().join("site.ini");
    let before = fs::read_to_string(&file).unwrap();
    fs::write(
        &file,
        format!("{before}[watcher:new]\ncmd = sh -c 'sleep 0.05; exit 9'\ncopy_env = true\n"),
    )
    .unwrap();
    fails(&site, "reloadconfig", &["exited with 9"]);
    wait_until("it is gone again", || !site.done("list").contains("new"));
}

#[test]
fn who_does_not_wait_is_answered_at_once() {
    let site = Site::new(BAD);
    site.done("up site.ini --no-wait");
    site.done("start soon --no-wait");
}

#[test]
fn a_script_without_its_interpreter_was_said_not_to_exist_itself() {
    let site = Site::new("[watcher:web]\ncmd = DIR/serve.py\nmax_retry = 0\n");
    let script = site.scratch.path("serve.py");
    fs::write(&script, "#!/nope/pythn3 -u\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    fails(&site, "up site.ini", &["web"]);
    // Not from the screen, whose lines are broken anywhere.
    let status = site.status().to_string();
    assert!(
        status.contains("its interpreter") && status.contains("/nope/pythn3"),
        "{status}"
    );
}
