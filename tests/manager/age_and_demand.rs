//! `max_age` and `on_demand` across managers: a deadline stays where it was, what a connection has
//! started stays started, and what none has starts with the first.

use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::journal::{count, extremes, open_gate, port, set_mode, site, visit, wait_up};
use crate::stack::{SUCCESSIONS, Stack};
use papa_harness::{procfs, wait_for, wait_until};

/// Pid and start of a watcher's only worker, the start in microseconds since the epoch.
fn only(stack: &Stack, name: &str) -> Option<(u64, u64)> {
    let status = stack.ask("status", &json!({"name": name}));
    let [worker] = &status["watchers"][0]["workers"].as_array()?[..] else {
        return None;
    };
    Some((worker["pid"].as_u64()?, worker["started_us"].as_u64()?))
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_micros()).unwrap()
}

#[test]
fn an_age_is_counted_from_the_start_of_the_worker_not_of_the_manager() {
    const AGE_US: u64 = 5_000_000;
    for how in SUCCESSIONS {
        let mut stack = Stack::start(
            "[watcher:old]\ncmd = sleep 1000\nmax_age = 5\nmax_age_variance = 0\nwarmup_delay = 0\n",
        );
        let (pid, started) = wait_for("it runs", || only(&stack, "old"));
        wait_until("half of its time is over", || {
            now_us() >= started + AGE_US / 2
        });
        let replaced = now_us();
        stack.replace_manager(how);
        let next = wait_for("another has its place", || {
            only(&stack, "old").filter(|(now, _)| *now != pid)
        });
        assert!(
            next.1 >= started + AGE_US,
            "{how:?}: {} us too early",
            started + AGE_US - next.1
        );
        // That is half its time for the machine to be slow in.
        assert!(
            next.1 < replaced + AGE_US,
            "{how:?}: the deadline began anew with the manager, {} us ago",
            next.1 - replaced
        );
    }
}

#[test]
fn a_replacement_for_age_under_way_goes_on() {
    for how in SUCCESSIONS {
        let more = "max_age = 2\nmax_age_variance = 0";
        let mut stack = Stack::start(&site("web", "notify", "notify", more));
        wait_up(&stack, "web");
        let before = stack.wait_pids("web", 2);
        set_mode(&stack, "web", "gate");
        wait_until("a newcomer runs", || count(&stack, "web", "start") == 3);
        stack.replace_manager(how);
        let now = stack.pids("web");
        assert!(
            before.iter().all(|(wid, pid)| now.get(wid) == Some(pid)),
            "{how:?}: the old ones wait for it: {before:?}, {now:?}"
        );
        open_gate(&stack, "web");
        wait_until("the old ones are gone", || {
            before.values().all(|pid| !procfs::alive(*pid))
        });
        let (least, most) = extremes(&stack, "web", 2);
        assert_eq!((least, most), (2, 3), "{how:?}: least serving, most there");
    }
}

#[test]
fn who_grew_too_old_while_nobody_looked_is_replaced_by_the_next_manager() {
    let more = "max_age = 2\nmax_age_variance = 0";
    let mut stack = Stack::start(&site("web", "notify", "notify", more));
    wait_up(&stack, "web");
    let before = stack.wait_pids("web", 2);
    stack.kill_manager();
    let born = now_us();
    wait_until("they are too old", || now_us() >= born + 2_100_000);
    for pid in before.values() {
        assert!(procfs::alive(*pid));
    }
    stack.start_manager();
    wait_until("they are replaced", || {
        before.values().all(|pid| !procfs::alive(*pid))
    });
    assert_eq!(extremes(&stack, "web", 2).0, 2, "by others that serve");
}

#[test]
fn what_a_connection_has_started_stays_started_and_the_rest_waits() {
    for how in SUCCESSIONS {
        let demand = |name: &str| site(name, "notify", "notify", "on_demand = true");
        let mut stack = Stack::start(&[demand("one"), demand("two")].concat());
        let ports = ["one", "two"].map(|name| port(&stack, name));
        visit(ports[1]).unwrap();
        wait_up(&stack, "two");
        let before = stack.wait_pids("two", 2);
        stack.replace_manager(how);
        assert_eq!(stack.pids("two"), before, "{how:?}");
        wait_until("it serves", || stack.state("two") == "active");
        // Nobody connects; it is to have two all the same.
        procfs::signal(before[&1], Signal::SIGKILL);
        wait_until("who has ended is replaced", || {
            let now = stack.pids("two");
            now.len() == 2 && now[&2] == before[&2] && now[&1] != before[&1]
        });
        assert_eq!(stack.state("one"), "stopped");
        assert!(stack.message("one").contains("first connection"));
        assert_eq!(count(&stack, "one", "start"), 0, "{how:?}: nobody came");
        visit(ports[0]).unwrap();
        wait_up(&stack, "one");
        assert_eq!(stack.wait_pids("one", 2).len(), 2);
    }
}

#[test]
fn who_was_to_be_replaced_when_its_manager_died_needs_no_connection() {
    let ini = site("one", "notify", "notify", "on_demand = true\nmax_surge = 0")
        .replace("numprocesses = 2", "numprocesses = 1");
    let mut stack = Stack::start(&ini);
    visit(port(&stack, "one")).unwrap();
    wait_up(&stack, "one");
    let before = stack.wait_pids("one", 1)[&1];
    // It is asked to end, and does when nobody is there to see it.
    procfs::signal(before, Signal::SIGSTOP);
    // Of two signals that wait, the lower number comes first.
    wait_until("it stands still", || {
        procfs::stat(before).is_some_and(|stat| stat.state == 'T')
    });
    stack.request_now("reload", "one");
    wait_until("that it is to end is kept", || {
        stack.kept("one")["stopping"].is_object()
    });
    wait_until("it was asked to end", || {
        procfs::has_pending(before, Signal::SIGTERM)
    });
    stack.kill_manager();
    procfs::signal(before, Signal::SIGCONT);
    wait_until("it has ended", || !procfs::alive(before));
    stack.start_manager();
    wait_up(&stack, "one");
    assert_ne!(stack.wait_pids("one", 1)[&1], before);
    // Who ends by itself is waited for by nobody, then as now.
    let after = stack.wait_pids("one", 1)[&1];
    stack.kill_manager();
    procfs::signal(after, Signal::SIGTERM);
    wait_until("it has ended, too", || !procfs::alive(after));
    stack.start_manager();
    wait_until("it waits for a connection", || {
        stack.message("one").contains("first connection")
    });
    assert_eq!(stack.state("one"), "stopped");
    assert_eq!(count(&stack, "one", "start"), 2);
}
