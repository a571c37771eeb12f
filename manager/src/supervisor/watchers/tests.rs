//! Who is touched by what, and whether the index follows.

use std::time::{Duration, Instant};

use super::*;
use crate::config::{Surroundings, load};
use crate::state::Kept;
use crate::watcher::{Action, Ended, Moment};
use crate::worker::Running;

/// The watchers of this file, none touched.
fn table(file: &str, at: &Moment) -> Watchers {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.ini");
    std::fs::write(&path, file).unwrap();
    let config = load(&path, &Surroundings::current().unwrap()).unwrap();
    let mut watchers = Watchers::default();
    for (number, config) in (0..).zip(config.watchers) {
        let mut watcher = Watcher::new(Arc::new(config), Kept::default(), at);
        watcher.release();
        watchers.insert(WatcherId(number), watcher);
    }
    for look in LOOKS {
        watchers.take(look);
    }
    // What comes and goes touches those next to it, also when the index follows later.
    watchers.refresh();
    watchers.take(Look::Gate);
    watchers
}

fn moment() -> Moment {
    Moment {
        now: Instant::now(),
        epoch_ms: 1_000_000,
        jitter: 0,
    }
}

fn ids<const N: usize>(numbers: [u32; N]) -> BTreeSet<WatcherId> {
    numbers.into_iter().map(WatcherId).collect()
}

/// Asks a watcher what to do, and starts its worker as this serial.
fn start(watchers: &mut Watchers, id: WatcherId, serial: u64, at: &Moment) {
    let actions = watchers.get_to_step(&id).unwrap().step(at);
    assert!(matches!(actions.as_slice(), [Action::Start { wid: 1, .. }]));
    let process = Running {
        serial,
        pid: 100,
        started_us: serial,
        started: at.now,
    };
    let watcher = watchers.get_mut(&id).unwrap();
    watcher.started(1, process, None, at);
}

const TWO: &str = "[watcher:a]\ncmd = true\n[watcher:b]\ncmd = true\n";
const CHAIN: &str = "[watcher:db]\ncmd = true\n[watcher:app]\ncmd = true\ndepends_on = db\n\
                     [watcher:web]\ncmd = true\ndepends_on = app\n[watcher:other]\ncmd = true\n";

/// The numbers of these names, in their order.
fn named<const N: usize>(watchers: &Watchers, names: [&str; N]) -> [WatcherId; N] {
    names.map(|name| {
        let mut all = watchers.iter();
        let found = all.find(|(_, watcher)| watcher.config().name == name);
        *found.unwrap().0
    })
}

#[test]
fn a_watcher_that_changes_is_touched_for_every_look_and_no_other_is() {
    let mut watchers = table(TWO, &moment());
    watchers.get_mut(&WatcherId(1)).unwrap().stop();
    for look in LOOKS {
        assert_eq!(watchers.take(look), ids([1]), "{look:?}");
        assert!(!watchers.is_touched(look), "taken twice");
    }
}

#[test]
fn asking_a_watcher_what_to_do_does_not_have_it_asked_again() {
    let mut watchers = table(TWO, &moment());
    watchers.get_to_step(&WatcherId(0)).unwrap();
    assert_eq!(watchers.take(Look::Step), ids([]));
    assert_eq!(watchers.take(Look::Save), ids([0]));
    watchers.take(Look::Announce);
    watchers.get_to_read(&WatcherId(0)).unwrap();
    assert!(!watchers.is_touched(Look::Announce));
}

#[test]
fn a_deadline_touches_its_watcher_when_it_has_come_and_not_before() {
    let at = moment();
    let mut watchers = table(
        "[watcher:a]\ncmd = true\nready = delay:1000\n[watcher:b]\ncmd = true\n",
        &at,
    );
    let [a] = named(&watchers, ["a"]);
    start(&mut watchers, a, 7, &at);
    watchers.take(Look::Step);
    let due = watchers
        .deadline()
        .expect("a worker that is to become ready");
    watchers.touch_due(due - Duration::from_millis(1));
    assert!(!watchers.is_touched(Look::Step));
    watchers.touch_due(due);
    assert_eq!(watchers.take(Look::Step), BTreeSet::from([a]));
}

#[test]
fn a_worker_is_found_by_its_serial_until_the_kernel_has_forgotten_it() {
    let at = moment();
    let mut watchers = table(TWO, &at);
    let id = WatcherId(1);
    assert_eq!(watchers.owner(7), None);
    start(&mut watchers, id, 7, &at);
    assert_eq!(watchers.owner(7), Some(id));
    let watcher = watchers.get_mut(&id).unwrap();
    watcher.ended(7, Ended::Code(1), &at);
    assert_eq!(watchers.owner(7), Some(id), "its end is kept still");
    watchers.get_mut(&id).unwrap().forget_ended(|_| false);
    assert_eq!(watchers.owner(7), None);
    assert!(watchers.is_index_right());
}

#[test]
fn a_change_concerns_those_that_depend_on_it_and_those_it_depends_on() {
    let mut watchers = table(CHAIN, &moment());
    let [db, app, web, other] = named(&watchers, ["db", "app", "web", "other"]);
    watchers.get_mut(&app).unwrap().stop();
    assert_eq!(watchers.take_for_gates(), BTreeSet::from([db, app, web]));
    watchers.get_mut(&other).unwrap().stop();
    assert_eq!(watchers.take_for_gates(), BTreeSet::from([other]));
}

#[test]
fn a_watcher_that_goes_touches_those_that_waited_for_it() {
    let mut watchers = table(CHAIN, &moment());
    let [db, app] = named(&watchers, ["db", "app"]);
    assert!(watchers.remove(&db).is_some());
    assert!(watchers.take_for_gates().contains(&app));
    assert!(watchers.remove(&db).is_none());
    assert!(watchers.is_index_right());
}

#[test]
fn other_dependencies_touch_the_old_ones_too() {
    let mut watchers = table(CHAIN, &moment());
    let [db, app] = named(&watchers, ["db", "app"]);
    let mut config = watchers.get(&app).unwrap().config().as_ref().clone();
    config.depends_on.clear();
    let changes = watchers.config_changes();
    watchers.get_mut(&app).unwrap().configure(Arc::new(config));
    assert!(watchers.take_for_gates().contains(&db));
    assert_eq!(watchers.config_changes(), changes + 1);
    assert!(watchers.is_index_right());
}

#[test]
fn who_is_needed_and_whether_all_are_stopped_follows_from_workers() {
    let at = moment();
    let mut watchers = table(CHAIN, &at);
    let [db, app] = named(&watchers, ["db", "app"]);
    start(&mut watchers, app, 7, &at);
    assert!(!watchers.is_needed("db"));
    for watcher in watchers.values_mut() {
        watcher.halt();
    }
    assert!(watchers.is_needed("db"), "app has a worker still");
    assert!(!watchers.are_stopped());
    assert!(watchers.leaving_are_stopped(), "all of them may stay");
    let ended = watchers.get_mut(&app).unwrap();
    ended.ended(7, Ended::Code(0), &at);
    ended.found_left(7, &[], &at);
    assert!(!watchers.is_needed("db"));
    assert!(watchers.are_stopped());
    assert!(watchers.get(&db).unwrap().is_stopped());
}

#[test]
fn an_event_costs_as_much_as_the_watchers_it_concerns_and_not_as_all() {
    let at = moment();
    let file: String = (0..3000)
        .map(|number| format!("[watcher:w{number}]\ncmd = true\n"))
        .collect();
    let mut watchers = table(&file, &at);
    for number in 0..3000 {
        start(&mut watchers, WatcherId(number), u64::from(number) + 1, &at);
        // Every look sees this one watcher, and the index follows by one.
        assert_eq!(watchers.stale.len(), 1);
        assert_eq!(
            watchers.owner(u64::from(number) + 1),
            Some(WatcherId(number))
        );
        for look in LOOKS {
            assert_eq!(watchers.take(look), ids([number]));
        }
    }
    assert!(watchers.is_index_right());
}
