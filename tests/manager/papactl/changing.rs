//! Verbs that change what runs: stop, start, reload, incr, set, add, kill and their kind.

use super::*;

#[test]
fn watchers_are_stopped_started_and_restarted() {
    let stack = Stack::start(TWO);
    let first = stack.wait_pids("web", 2);
    let stopped = done(&stack, "stop WEB");
    assert_eq!(
        stopped.split_whitespace().collect::<Vec<_>>(),
        ["Web", "stopped", "0/2"]
    );
    assert!(first.values().all(|pid| !procfs::alive(*pid)));
    assert!(done(&stack, "start w(e|o)b$ --match regex").starts_with("Web  active"));
    let second = stack.wait_pids("web", 2);
    assert_eq!(
        json(&stack, "restart web --waiting")["statuses"]["Web"],
        "active"
    );
    let third = stack.wait_pids("web", 2);
    assert!(
        third
            .values()
            .all(|pid| !second.values().any(|old| old == pid))
    );
    assert!(failed(&stack, "stop w* --match simple", 1).contains("w*"));
    assert!(failed(&stack, "stop nope", 1).contains("not found"));
    assert!(failed(&stack, "stop ( --match regex", 1).contains("regular expression"));
}

#[test]
fn workers_are_reloaded_counted_signalled_and_killed() {
    let stack = Stack::start(TWO);
    let mut pids = stack.wait_pids("web", 2);
    for line in [
        "reload web",
        "reload web --sequential",
        "reload web --terminate",
    ] {
        assert!(done(&stack, line).starts_with("Web "), "{line}");
        let new = stack.wait_pids("web", 2);
        assert!(
            new.values().all(|pid| !pids.values().any(|old| old == pid)),
            "{line}"
        );
        pids = new;
    }
    assert_eq!(done(&stack, "incr web 2"), "4\n");
    stack.wait_pids("web", 4);
    assert_eq!(json(&stack, "decr web 3")["numprocesses"], 1);
    let pid = *stack.wait_pids("web", 1).values().next().unwrap();
    assert_eq!(done(&stack, "kill web --graceful-timeout 5"), "ok\n");
    wait_until("the killed worker is replaced", || {
        let pids = stack.pids("web");
        pids.len() == 1 && pids.values().all(|new| *new != pid)
    });
    let pid = *stack.pids("web").values().next().unwrap();
    assert_eq!(done(&stack, &format!("signal web {pid} KILL")), "ok\n");
    wait_until("the signalled worker is replaced", || {
        let pids = stack.pids("web");
        pids.len() == 1 && pids.values().all(|new| *new != pid)
    });
    for line in [
        "reload nope",
        "incr nope",
        "decr nope",
        "signal nope HUP",
        "kill nope",
    ] {
        assert!(failed(&stack, line, 1).contains("not found"), "{line}");
    }
}

#[test]
fn watchers_are_changed_added_and_removed() {
    let stack = Stack::start(TWO);
    stack.wait_pids("web", 2);
    assert_eq!(
        done(&stack, "set web numprocesses 3 graceful_timeout 4"),
        "ok\n"
    );
    assert_eq!(
        done(&stack, "get web numprocesses graceful_timeout"),
        "graceful_timeout: 4\nnumprocesses: 3\n"
    );
    assert!(
        done(&stack, "reloadconfig --plan").contains("keep"),
        "what was set is shown"
    );
    assert!(done(&stack, "add --start new -o numprocesses=2 sleep 1000").starts_with("new "));
    stack.wait_pids("new", 2);
    let printed = done(&stack, "doctor");
    assert!(
        printed.contains("watcher:new  was added at run time"),
        "{printed}"
    );
    assert!(printed.contains("is as it was read"), "{printed}");
    assert!(failed(&stack, "add new sleep 5", 1).contains("exists"));
    assert_eq!(done(&stack, "rm new"), "ok\n");
    assert_eq!(done(&stack, "list"), "web,worker\n");
    assert!(failed(&stack, "rm new", 1).contains("not found"));
    // Back to what the file says, and on to what it says then.
    assert_eq!(done(&stack, "set web numprocesses 2"), "ok\n");
    let path = stack.kernel.directory().join("stack.ini");
    let ini = fs::read_to_string(&path).unwrap();
    fs::write(&path, ini.replace("[watcher:worker]", "[watcher:other]")).unwrap();
    let plan = done(&stack, "reloadconfig --plan");
    assert!(
        plan.contains("add      watcher:other") && plan.contains("remove   watcher:worker"),
        "{plan}"
    );
    assert_eq!(done(&stack, "list"), "web,worker\n", "a plan does nothing");
    done(&stack, "reloadconfig");
    assert_eq!(done(&stack, "list"), "other,web\n");
    fs::write(&path, "nonsense\n").unwrap();
    assert!(failed(&stack, "reloadconfig", 1).contains("stack.ini:1"));
}

#[test]
fn several_names_all_and_single_workers_are_understood() {
    let stack = Stack::start(TWO);
    let web = stack.wait_pids("web", 2);
    let worker = stack.wait_pids("worker", 1)[&1];
    let names = |printed: &str| -> Vec<String> {
        let firsts = printed
            .lines()
            .filter_map(|line| line.split_whitespace().next());
        firsts.map(str::to_owned).collect()
    };
    assert_eq!(names(&done(&stack, "status worker web")), ["Web", "worker"]);
    for line in ["status all", "ps", "ls", "status *"] {
        assert_eq!(names(&done(&stack, line)), ["Web", "worker"], "{line}");
    }
    let one = done(&stack, "status web:2");
    assert!(one.contains(&web[&2].to_string()) && !one.contains(&web[&1].to_string()));
    assert_eq!(done(&stack, "list web:2"), format!("{}\n", web[&2]));
    assert_eq!(
        done(&stack, "list worker web"),
        format!("worker: {worker}\nWeb: {},{}\n", web[&1], web[&2])
    );
    // One worker is ended and replaced; the other stays.
    done(&stack, "restart web:2");
    let pids = wait_for("another worker in its place", || {
        let pids = stack.pids("web");
        (pids.len() == 2 && !pids.values().any(|pid| *pid == web[&2])).then_some(pids)
    });
    assert_eq!(pids[&1], web[&1]);
    assert!(failed(&stack, "stop web:1", 2).contains("papactl kill Web:1"));
    done(&stack, "stop web worker");
    assert!(stack.pids("web").is_empty() && stack.pids("worker").is_empty());
    done(&stack, "start all");
    stack.wait_pids("web", 2);
    assert_eq!(done(&stack, "scale web 3"), "3\n");
    stack.wait_pids("web", 3);
    assert_eq!(done(&stack, "incr web worker 1"), "Web: 4\nworker: 2\n");
    assert!(done(&stack, "version").contains("kernel   "));
    assert!(
        done(&stack, "reread").contains("numprocesses"),
        "what was set at run time"
    );
    assert_eq!(
        json(&stack, "options web worker")["watchers"]["worker"]["options"]["cmd"],
        "sleep 1000"
    );
}

#[test]
fn one_watcher_without_workers_kept_the_others_from_what_all_were_to_get() {
    let stack = Stack::start(
        "[watcher:early]\ncmd = /no/such/program\nmax_retry = 0\n\
         [watcher:late]\ncmd = sleep 1000\ngraceful_timeout = 1\n\
         [watcher:slow]\ncmd = sleep 1000\nready = tcp:127.0.0.1:1\nready_timeout = 1000\n",
    );
    stack.wait_pids("late", 1);
    stack.wait_pids("slow", 1);
    wait_until("it is given up", || {
        stack.message("early").starts_with("given up")
    });
    let before = stack.pids("late")[&1];
    let said = failed(&stack, "signal early late TERM", 1);
    assert!(said.contains("early has no workers"), "{said}");
    wait_until("the other got the signal", || {
        stack.pids("late").get(&1).is_some_and(|pid| *pid != before)
    });
    assert_eq!(done(&stack, "set lat* numprocesses 2"), "ok\n");
    stack.wait_pids("late", 2);
    let said = failed(&stack, "status nope", 1);
    assert!(said.contains("papactl list"), "{said}");
    let said = failed(&stack, "scale late many", 2);
    assert!(said.contains("papactl scale web 4"), "{said}");
    // What has nothing to say says so.
    let silent = text(&run(&stack, "logs slow").stderr);
    assert!(silent.contains("nothing is there to show"), "{silent}");
    let status = done(&stack, "status slow");
    assert!(status.contains("not ready yet"), "{status}");
}
