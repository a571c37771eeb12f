//! What workers find of who runs them: the file mode mask, and the variables that name their user.

use std::collections::BTreeMap;

use crate::stack::Stack;
use papa_harness::{is_root, procfs, skipped};

fn umask(pid: i32) -> u32 {
    let mask = procfs::status_line(pid, "Umask").unwrap();
    u32::from_str_radix(&mask, 8).unwrap()
}

#[track_caller]
fn only_pid(stack: &Stack, name: &str) -> i32 {
    stack.wait_pids(name, 1)[&1]
}

fn variables(pid: i32) -> BTreeMap<String, String> {
    procfs::environment(pid)
        .into_iter()
        .filter_map(|variable| {
            let (name, value) = variable.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        })
        .collect()
}

#[test]
fn workers_had_the_kernels_umask_027() {
    let mut stack = Stack::start(
        "[watcher:plain]\ncmd = sleep 1000\n[watcher:own]\ncmd = sleep 1000\numask = 0077\n",
    );
    let ours = umask(std::process::id().cast_signed());
    assert_eq!(umask(only_pid(&stack, "plain")), ours, "that of who ran up");
    assert_eq!(umask(only_pid(&stack, "own")), 0o077, "the key umask");

    // A successor that somebody starts with another mask gives new workers the mask of their
    // siblings.
    stack.kill_manager();
    stack.start_manager_under_umask("0007");
    let before = only_pid(&stack, "plain");
    stack.request("restart", "plain");
    let after = only_pid(&stack, "plain");
    assert_ne!(before, after);
    assert_eq!(umask(after), ours);
    // Not even its own is a reason to replace workers.
    let plan = stack.ask("reloadconfig", &serde_json::json!({"plan": true}));
    assert!(!plan.to_string().contains("umask"), "{plan}");
}

#[test]
fn a_umask_for_all_watchers_and_one_that_is_set_at_run_time() {
    let stack = Stack::start(
        "[circus]\numask = 002\n[watcher:a]\ncmd = sleep 1000\n[watcher:b]\ncmd = sleep 1000\numask = 026\n",
    );
    assert_eq!(umask(only_pid(&stack, "a")), 0o002);
    assert_eq!(umask(only_pid(&stack, "b")), 0o026);
}

#[test]
fn a_worker_of_another_user_had_roots_home() {
    if !is_root() {
        return skipped("takes root to become another user");
    }
    let stack = Stack::start(
        "[watcher:copied]\ncmd = sleep 1000\nuid = nobody\ncopy_env = yes\n[watcher:bare]\ncmd = sleep 1000\nuid = 65534\n\
         [watcher:number]\ncmd = sleep 1000\nuid = 54321\ngid = 54321\ncopy_env = yes\n[env:number]\nUSER = guest\n\
         [watcher:told]\ncmd = sleep 1000\nuid = nobody\n[env:told]\nHOME = /srv/told\n[watcher:root]\ncmd = sleep 1000\ncopy_env = yes\n",
    );
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let home = nobody.dir.to_str().unwrap();
    let shell = nobody.shell.to_str().unwrap();
    for name in ["copied", "bare"] {
        let found = variables(only_pid(&stack, name));
        for (variable, value) in [
            ("HOME", home),
            ("USER", "nobody"),
            ("LOGNAME", "nobody"),
            ("SHELL", shell),
        ] {
            assert_eq!(
                found.get(variable).map(String::as_str),
                Some(value),
                "{name}: {variable}"
            );
        }
    }
    // A number without an account has no home, and not root's.
    let number = variables(only_pid(&stack, "number"));
    assert_eq!(number["USER"], "guest", "the file's word holds");
    for variable in ["HOME", "LOGNAME", "SHELL"] {
        assert_eq!(number.get(variable), None, "{variable}");
    }
    let told = variables(only_pid(&stack, "told"));
    assert_eq!(told["HOME"], "/srv/told", "the file's word holds");
    assert_eq!(told["USER"], "nobody");
    let root = variables(only_pid(&stack, "root"));
    assert_eq!(
        root.get("HOME").cloned(),
        std::env::var("HOME").ok(),
        "without uid nothing changes"
    );
}
