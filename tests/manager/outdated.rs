//! A file that was changed while no manager ran: workers stay as they are, which is shown, and
//! `reloadconfig` replaces them.

use std::fs;

use serde_json::json;

use crate::stack::Stack;

fn rewrite(stack: &Stack, from: &str, to: &str) {
    let path = stack.kernel.directory().join("stack.ini");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace(from, to)).unwrap();
}

#[test]
fn workers_of_an_earlier_file_are_shown_and_replaced_when_asked() {
    let mut stack = Stack::start(
        "[watcher:old]\ncmd = sleep 1000\nnumprocesses = 2\n[watcher:same]\ncmd = sleep 1000\n",
    );
    let before = (stack.wait_pids("old", 2), stack.wait_pids("same", 1));
    stack.kill_manager();
    rewrite(
        &stack,
        "sleep 1000\nnumprocesses",
        "sleep 2000\nnumprocesses",
    );
    stack.start_manager();
    assert_eq!(stack.pids("old"), before.0, "nobody is replaced unasked");
    let status = stack.request("status", "old");
    let message = status["watchers"][0]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        message.starts_with("2 with settings of an earlier file"),
        "{message}"
    );
    let plan = stack.ask("reloadconfig", &json!({"plan": true}));
    let steps = plan["plan"].as_array().unwrap();
    assert_eq!(steps.len(), 1, "{plan}");
    assert_eq!(steps[0]["what"], "watcher:old");
    assert_eq!(steps[0]["action"], "roll");
    let reply = stack.ask("reloadconfig", &json!({"waiting": true}));
    assert_eq!(reply["status"], "ok", "{reply}");
    let after = stack.wait_pids("old", 2);
    assert!(
        after
            .values()
            .all(|pid| !before.0.values().any(|old| old == pid))
    );
    assert_eq!(stack.pids("same"), before.1);
    let plan = stack.ask("reloadconfig", &json!({"plan": true}));
    assert_eq!(plan["plan"], json!([]), "{plan}");
}
