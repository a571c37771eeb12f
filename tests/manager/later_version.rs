//! A log state that only a later version can read: nothing is written, whoever looks is told, and
//! not a line is lost once somebody comes who can read it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use serde_json::json;

use crate::stack::Stack;
use papa_harness::wait_until;

const INI: &str = "[watcher:w]\ncmd = sh -c 'echo one; until [ -e DIR/go ]; do sleep 0.05; done; echo two; exec sleep 1000'\ncopy_env = true\n\
    stdout_stream.class = FileStream\nstdout_stream.filename = DIR/logs/w.log\n";

#[test]
fn a_log_state_of_a_later_version_is_left_alone_and_no_line_is_lost() {
    let mut stack = Stack::start(INI);
    wait_until("the first line is written", || {
        stack.log("w.log") == b"one\n"
    });
    stack.kill_manager();
    let mut taken = stack.kernel.json();
    wait_until(
        "the kernel has noticed that the namespace is vacant",
        || {
            let claim = json!({"namespace": "circus", "holder": "the test"});
            taken.call("claim", claim).unwrap().is_ok()
        },
    );
    taken.ok("fetch", json!({"name": "circus.manager.logs"}));
    let state = File::from(taken.descriptor());
    drop(taken);
    let mut magic = [0; 8];
    state.read_exact_at(&mut magic, 0).unwrap();
    assert_eq!(&magic, b"PAPALOG1");
    state.write_all_at(b"PAPALOG2", 0).unwrap();

    stack.start_manager();
    let mut kernel = stack.kernel.json();
    let captured = |kernel: &mut papa_harness::Json| {
        let listed = kernel.ok("process.list", json!({"names": ["circus.w.1"]}));
        listed["processes"][0]["ledger"]["captured"].as_u64()
    };
    let before = captured(&mut kernel).unwrap();
    fs::write(stack.kernel.path("go"), "").unwrap();
    wait_until("the kernel has the second line", || {
        captured(&mut kernel) == Some(before + 4)
    });
    wait_until("it is said", || {
        stack.message("w").contains("later version")
    });
    let doctor = stack.ask("doctor", &json!({}));
    let told = doctor["findings"].as_array().unwrap().iter();
    let problems: Vec<String> = told
        .filter(|finding| finding["level"] == "problem")
        .map(ToString::to_string)
        .collect();
    assert!(
        problems.iter().any(|text| text.contains("later version")),
        "{problems:?}"
    );
    assert_eq!(stack.log("w.log"), b"one\n", "nothing is written meanwhile");
    state.read_exact_at(&mut magic, 0).unwrap();
    assert_eq!(&magic, b"PAPALOG2", "it is left as it is");

    // The later version has been here again and has put everything into a form that this one reads.
    state.write_all_at(b"PAPALOG1", 0).unwrap();
    wait_until("the second line is written", || {
        stack.log("w.log") == b"one\ntwo\n"
    });
    wait_until("nothing is in the way any more", || {
        stack.message("w").is_empty()
    });
}
