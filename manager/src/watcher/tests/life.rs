//! Every cell of both tables of `life`, tried on a watcher; and the page that shows them.

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::config::FlappingConfig;

const GRACE: Duration = Duration::from_secs(30);

fn at() -> Moment {
    Moment {
        now: Instant::now(),
        epoch_ms: 1_000_000,
        jitter: 0,
    }
}

fn process(serial: u64, at: &Moment) -> Running {
    Running {
        serial,
        pid: 100,
        started_us: serial,
        started: at.now,
    }
}

/// A watcher whose workers are ready after a delay, and whose ends are counted up to `attempts`.
fn watcher(
    lines: &str,
    attempts: u32,
    at: &Moment,
    tune: impl FnOnce(&mut WatcherConfig),
) -> Watcher {
    let mut config = config(lines).as_ref().clone();
    config.graceful_timeout = GRACE;
    config.ready = Some(Readiness::Delay(Duration::from_secs(3)));
    config.flapping = Some(FlappingConfig {
        attempts,
        window: Duration::from_secs(60),
        retry_in: Duration::from_secs(7),
        max_retry: None,
    });
    tune(&mut config);
    Watcher::new(Arc::new(config), Kept::default(), at)
}

/// A watcher whose worker 1, with serial 1, is in this state.
fn worker_at(stage: Stage, at: &Moment) -> Watcher {
    let mut watcher = watcher("", 9, at, |_| {});
    let step = |watcher: &mut Watcher| drop(watcher.step(at));
    let order = [
        Stage::Free,
        Stage::Starting,
        Stage::Waiting,
        Stage::Serving,
        Stage::Stopping,
        Stage::Left,
    ];
    if stage == Stage::Unwanted {
        watcher = worker_at(Stage::Starting, at);
        watcher.stop();
        step(&mut watcher);
    } else {
        for next in order.into_iter().take_while(|next| *next != stage) {
            match next {
                Stage::Free => {
                    watcher.release();
                    step(&mut watcher);
                }
                Stage::Starting => watcher.started(1, process(1, at), None, at),
                Stage::Waiting => watcher.ready(1),
                Stage::Serving => {
                    watcher.stop();
                    step(&mut watcher);
                }
                Stage::Stopping => assert!(watcher.ended(1, Ended::Code(0), at).is_some()),
                Stage::Unwanted | Stage::Left => unreachable!(),
            }
        }
    }
    assert_eq!(watcher.stage(1), stage);
    watcher
}

/// Has the event happen; answers what the watcher wants done about it.
fn happens_to_worker(watcher: &mut Watcher, event: WorkerEvent, at: &mut Moment) -> Vec<Action> {
    let asked = |process: Option<Running>| process.map(Action::Stop).into_iter().collect();
    match event {
        WorkerEvent::Begin => {
            watcher.release();
            return watcher.step(at);
        }
        WorkerEvent::Started => watcher.started(1, process(1, at), None, at),
        WorkerEvent::StartFailed => {
            watcher.start_failed(1, StartFailure::Refused("no such file".to_owned()), at);
        }
        WorkerEvent::Found => watcher.adopt(1, process(9, at), Some(0), at),
        WorkerEvent::Ready => watcher.ready(1),
        WorkerEvent::Late => return asked(watcher.not_ready(1, None, at)),
        WorkerEvent::Unwell => return asked(watcher.unwell(1, "no answer", at)),
        WorkerEvent::Stop => {
            watcher.stop();
            return watcher.step(at);
        }
        WorkerEvent::Hasten => {
            let ended = watcher.end_workers(None, None, Duration::from_secs(1), at);
            return ended.into_iter().map(Action::Stop).collect();
        }
        WorkerEvent::GraceOver => {
            at.now += GRACE;
            return watcher.step(at);
        }
        WorkerEvent::Ended => {
            let _ = watcher.ended(1, Ended::Code(1), at);
        }
        WorkerEvent::Cleared => {
            let _ = watcher.found_left(1, &[], at);
        }
    }
    Vec::new()
}

#[test]
fn every_cell_of_a_workers_life_is_what_happens() {
    for stage in Stage::ALL.iter().copied() {
        for event in WorkerEvent::ALL.iter().copied() {
            let mut at = at();
            let mut watcher = worker_at(stage, &at);
            let actions = happens_to_worker(&mut watcher, event, &mut at);
            let cell = stage.on(event);
            let what = format!("{event:?} in state {stage:?}: {cell:?}");
            let killed = actions.iter().any(|one| matches!(one, Action::Kill(_)));
            let asked = actions
                .iter()
                .any(|one| matches!(one, Action::Start { .. }));
            assert_eq!(killed, cell == WorkerCell::Kill, "{what}");
            assert_eq!(asked, cell == WorkerCell::Ask, "{what}");
            let next = match cell {
                WorkerCell::Never => continue,
                WorkerCell::Ask => Stage::Starting,
                WorkerCell::Up | WorkerCell::UpToGo => Stage::Waiting,
                WorkerCell::Fail | WorkerCell::Drop => Stage::Free,
                WorkerCell::Serve => Stage::Serving,
                WorkerCell::Unwant => Stage::Unwanted,
                WorkerCell::Stop | WorkerCell::Fault => Stage::Stopping,
                WorkerCell::Die | WorkerCell::DieAsked => Stage::Left,
                WorkerCell::Sooner | WorkerCell::Kill | WorkerCell::EndLeft | WorkerCell::Same => {
                    stage
                }
            };
            assert_eq!(watcher.stage(1), next, "{what}");
            let signalled = matches!(
                cell,
                WorkerCell::Stop | WorkerCell::Fault | WorkerCell::Sooner
            );
            assert_eq!(!stops(&actions).is_empty(), signalled, "{what}");
            let counts = matches!(cell, WorkerCell::Fail | WorkerCell::Fault | WorkerCell::Die);
            let counted = !watcher.ends.is_empty() || watcher.pauses.worst() > 0;
            assert_eq!(counted, counts, "{what}");
            let goes = watcher
                .workers
                .get(&1)
                .is_some_and(|worker| worker.retiring);
            assert_eq!(goes, cell == WorkerCell::UpToGo, "{what}");
        }
    }
}

#[test]
fn what_went_into_the_background_ends_with_a_stop() {
    let at = at();
    let mut watcher = worker_at(Stage::Serving, &at);
    watcher.ended(1, Ended::Code(0), &at).unwrap();
    let stays = Member {
        pid: 5,
        started: 5,
        command: "sleep".to_owned(),
    };
    watcher.found_left(1, std::slice::from_ref(&stays), &at);
    let left = *watcher.workers[&1].left().unwrap();
    assert!(left.is_background());
    assert_eq!(Stage::Left.on(WorkerEvent::Stop), WorkerCell::EndLeft);
    watcher.stop();
    watcher.step(&at);
    let left = *watcher.workers[&1].left().unwrap();
    assert!(left.asked && !left.is_background());
}

/// A watcher in this state, with workers where there may be some.
fn life_at(life: Life, on_demand: bool, at: &Moment) -> Watcher {
    let mut watcher = watcher("numprocesses = 2", 1, at, |config| {
        config.on_demand = on_demand;
        config.backoff.first = Duration::ZERO;
    });
    let start = |watcher: &mut Watcher| {
        watcher.release();
        watcher.demand();
        watcher.step(at);
        for wid in [1, 2] {
            watcher.started(wid, process(wid.into(), at), None, at);
        }
    };
    match life {
        Life::Dormant => {}
        Life::Stopped => watcher.stop(),
        Life::GivenUp => watcher.give_up("hopeless".to_owned(), at),
        Life::Stopping => {
            start(&mut watcher);
            watcher.stop();
        }
        Life::Restarting => {
            start(&mut watcher);
            watcher.restart();
        }
        Life::Running => start(&mut watcher),
        Life::Pausing => {
            start(&mut watcher);
            watcher.ended(1, Ended::Code(1), at).unwrap();
        }
    }
    assert_eq!(watcher.life(), life);
    watcher
}

fn happens_to_watcher(watcher: &mut Watcher, event: WatcherEvent, at: &mut Moment) {
    match event {
        WatcherEvent::Start => watcher.start(),
        WatcherEvent::Stop => watcher.stop(),
        WatcherEvent::Halt => watcher.halt(),
        WatcherEvent::Restart => watcher.restart(),
        WatcherEvent::Reload => {
            let _ = watcher.reload(watcher.config.clone(), false);
        }
        WatcherEvent::Demand => watcher.demand(),
        WatcherEvent::Found => watcher.adopt(7, process(70, at), Some(0), at),
        WatcherEvent::Flap => {
            let flapping = watcher.config.flapping.unwrap();
            watcher.flap(&flapping, "it ended", at);
        }
        WatcherEvent::PauseOver => {
            at.now += Duration::from_secs(7);
            watcher.step(at);
        }
        WatcherEvent::GiveUp => watcher.give_up("hopeless".to_owned(), at),
        WatcherEvent::Gone => {
            watcher.workers.clear();
            watcher.step(at);
        }
        WatcherEvent::Idle | WatcherEvent::Finish => watcher.follow(event),
    }
}

#[test]
fn every_cell_of_a_watchers_life_is_what_happens() {
    for on_demand in [false, true] {
        for life in Life::ALL.iter().copied() {
            for event in WatcherEvent::ALL.iter().copied() {
                if life == Life::Dormant && !on_demand {
                    continue;
                }
                let cell = life.on(event);
                let mut at = at();
                let mut watcher = life_at(life, on_demand, &at);
                if cell == WatcherCell::Never {
                    let forced = catch_unwind(AssertUnwindSafe(|| watcher.follow(event)));
                    assert_eq!(
                        forced.is_err(),
                        cfg!(debug_assertions),
                        "{event:?}, {life:?}"
                    );
                    continue;
                }
                let had_workers = !watcher.workers.is_empty();
                happens_to_watcher(&mut watcher, event, &mut at);
                let runs = match watcher.flapping_until {
                    Some(_) => Life::Pausing,
                    None => Life::Running,
                };
                let begins = match on_demand && watcher.workers.is_empty() {
                    true => Life::Dormant,
                    false => runs,
                };
                let next = match cell {
                    WatcherCell::Begin => begins,
                    WatcherCell::Again if had_workers => Life::Restarting,
                    WatcherCell::Again => begins,
                    WatcherCell::End if !watcher.workers.is_empty() => Life::Stopping,
                    WatcherCell::End if watcher.gave_up => Life::GivenUp,
                    WatcherCell::End => Life::Stopped,
                    WatcherCell::Roll if had_workers => Life::Running,
                    WatcherCell::Wake => runs,
                    WatcherCell::Sleep => Life::Dormant,
                    WatcherCell::Pause if life == Life::Running => Life::Pausing,
                    WatcherCell::Roll
                    | WatcherCell::Pause
                    | WatcherCell::Same
                    | WatcherCell::Never => life,
                };
                let what =
                    format!("{event:?} in state {life:?} (on demand: {on_demand}): {cell:?}");
                assert_eq!(watcher.life(), next, "{what}");
                let rolls = cell == WatcherCell::Roll && had_workers;
                assert_eq!(watcher.is_rolling(), rolls, "{what}");
            }
        }
    }
}

/// Two tables in Markdown, each with what its words mean.
fn page() -> String {
    let mut page = String::from("\n");
    let words = |page: &mut String, title: &str, words: &[(String, &str)]| {
        let _ = writeln!(page, "{title}:\n\n| word | meaning |\n|---|---|");
        for (word, text) in words {
            let _ = writeln!(page, "| {word} | {text} |");
        }
        page.push('\n');
    };
    macro_rules! table {
        ($title:literal, $state:ident, $event:ident, $cell:ident) => {
            let states = $state::ALL.iter().map(|state| format!(" {state:?} |"));
            let states: String = states.collect();
            let rule = "---|".repeat($state::ALL.len());
            let _ = writeln!(page, "{}\n\n| event |{states}\n|---|{rule}", $title);
            for event in $event::ALL {
                let cells = $state::ALL.iter().map(|state| match state.on(*event) {
                    $cell::Never => " |".to_owned(),
                    $cell::Same => " – |".to_owned(),
                    cell => format!(" {cell:?} |"),
                });
                let cells: String = cells.collect();
                let _ = writeln!(page, "| {} |{cells}", event.text());
            }
            page.push('\n');
            let states = $state::ALL.iter();
            let states: Vec<_> = states.map(|one| (format!("{one:?}"), one.text())).collect();
            words(&mut page, "States", &states);
            let cells = $cell::ALL.iter().map(|cell| match cell {
                $cell::Never => ("(empty)".to_owned(), cell.text()),
                $cell::Same => ("–".to_owned(), cell.text()),
                cell => (format!("{cell:?}"), cell.text()),
            });
            words(&mut page, "What follows", &cells.collect::<Vec<_>>());
        };
    }
    table!("**A watcher**", Life, WatcherEvent, WatcherCell);
    table!("**One of its workers**", Stage, WorkerEvent, WorkerCell);
    page
}

#[test]
fn the_page_shows_the_tables_of_the_code() {
    const BEGIN: &str = "<!-- lives, written by UPDATE_README=1 cargo test -->\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/lives.md");
    let shown = std::fs::read_to_string(path).unwrap();
    let from = shown.find(BEGIN).expect("the marker") + BEGIN.len();
    let length = shown[from..].find("<!-- end -->").expect("its end");
    let mut expected = shown.clone();
    expected.replace_range(from..from + length, &page());
    if std::env::var_os("UPDATE_README").is_some() {
        std::fs::write(path, expected).unwrap();
        return;
    }
    assert!(
        shown == expected,
        "manager/docs/lives.md differs from the tables; UPDATE_README=1 writes it anew"
    );
}
