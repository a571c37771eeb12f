//! Verbs about the programs themselves: up, upgrade, kernel, quit, down.

use super::*;

#[test]
fn the_manager_starts_anew_and_the_workers_stay() {
    let stack = Stack::start(TWO);
    let pids = stack.wait_pids("web", 2);
    let reply = json(&stack, "upgrade");
    let manager = |when: &str| reply[when]["pid"].as_u64().unwrap();
    assert_eq!(manager("before"), manager("after"), "the same process");
    assert!(
        reply["before"]["started"] != reply["after"]["started"],
        "{reply}"
    );
    assert_eq!(stack.wait_pids("web", 2), pids);
}

#[test]
fn up_said_nothing_of_a_file_that_was_edited() {
    let stack = Stack::start(TWO);
    stack.wait_pids("web", 2);
    let endpoint = format!(
        "[circus]\npapa_endpoint = ipc:{}\n",
        stack.kernel.socket_path().display()
    );
    stack.rewrite(&format!(
        "{endpoint}{}",
        TWO.replace("numprocesses = 2", "numprocesses = 3")
    ));
    let output = run(&stack, "up stack.ini");
    let said = text(&output.stderr);
    assert!(said.contains("papactl reloadconfig --plan"), "{said}");
    stack.rewrite(TWO);
    let output = run(&stack, "up stack.ini");
    assert!(!text(&output.stderr).contains("changed"), "{output:?}");
}

#[test]
fn the_kernel_is_shown_dumped_and_started_anew() {
    let stack = Stack::start(TWO);
    let pids = stack.wait_pids("web", 2);
    let before = json(&stack, "kernel status")["kernel"]["incarnation"]
        .as_u64()
        .unwrap();
    assert!(done(&stack, "kernel status").contains("processes  3 running of 3"));
    assert!(done(&stack, "kernel upgrade").contains("3 of 3 processes run on"));
    let after = json(&stack, "kernel status")["kernel"]["incarnation"]
        .as_u64()
        .unwrap();
    assert!(after > before);
    // Tried, refused, forced by a relative path, and with the keeper.
    let tried = done(&stack, "kernel upgrade --dry-run");
    assert!(
        tried.contains("nothing was changed") && tried.contains("3 processes"),
        "{tried}"
    );
    let output = run(&stack, "kernel upgrade --binary /bin/false");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("/bin/false") && said.contains("serves on"),
        "{said}"
    );
    assert!(
        said.contains("`--force`") && !said.contains("`force`"),
        "{said}"
    );
    let before = json(&stack, "kernel status")["kernel"].clone();
    let keeper = &before["keeper"];
    let upgraded = json(&stack, "kernel upgrade --keeper")["kernel"].clone();
    assert_ne!(&upgraded["keeper"], keeper, "{upgraded}");
    assert_ne!(upgraded["pid"], before["pid"], "{upgraded}");
    assert_eq!(upgraded["check"]["unreadable_records"], 0, "{upgraded}");
    // The kernel is another process now, and nobody has connected anew.
    let pid = json(&stack, "kernel status")["kernel"]["pid"].clone();
    assert_eq!(pid, upgraded["pid"]);
    assert_eq!(json(&stack, "status")["manager"]["kernel_pid"], pid);
    let doctor = done(&stack, "doctor");
    assert!(doctor.contains(&format!("pid {pid}, version")), "{doctor}");
    let dump = json(&stack, "kernel dump");
    assert_eq!(dump["processes"].as_array().unwrap().len(), 3);
    assert_eq!(dump["sockets"][0]["name"], "circus.api");
    assert_eq!(stack.wait_pids("web", 2), pids);
}

#[test]
fn the_manager_is_found_or_looked_for() {
    let stack = Stack::start(TWO);
    // The one that runs is meant, also by its file and its name.
    for line in [
        "status",
        "status --namespace circus",
        "status --config stack.ini",
    ] {
        assert!(done(&stack, line).contains("Web"), "{line}");
    }
    let said = failed(&stack, "status --namespace other", 1);
    assert!(
        said.contains("other") && said.contains("papactl up"),
        "{said}"
    );
    // Another one beside it: now it must be said which.
    let ini = format!(
        "[circus]\nnamespace = second\npapa_endpoint = unix:{}\n[watcher:x]\ncmd = sleep 1000\n",
        stack.kernel.socket_path().display()
    );
    fs::write(stack.kernel.directory().join("second.ini"), ini).unwrap();
    assert!(done(&stack, "up second.ini").contains("x  active"));
    let said = failed(&stack, "status", 2);
    assert!(
        said.contains("circus, second") && said.contains("--namespace"),
        "{said}"
    );
    assert!(done(&stack, "list --namespace second").contains('x'));
    assert!(done(&stack, "quit --config second.ini").contains("1 worker runs on"));
    assert!(done(&stack, "status").contains("Web"));
}

#[test]
fn quit_leaves_the_workers_and_down_leaves_nothing() {
    let mut stack = Stack::start(TWO);
    let pids = stack.wait_pids("web", 2);
    assert_eq!(done(&stack, "quit"), "manager: ended; 3 workers run on\n");
    assert!(stack.wait_manager_end().success());
    assert!(failed(&stack, "status", 1).contains("papactl up FILE"));
    stack.start_manager();
    assert_eq!(stack.wait_pids("web", 2), pids);
    let reply = json(&stack, "down");
    assert_eq!(
        (&reply["status"], &reply["manager"]),
        (&json!("ok"), &json!("ended"))
    );
    assert!(pids.values().all(|pid| !procfs::alive(*pid)));
}
