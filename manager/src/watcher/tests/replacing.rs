//! Reloads, their way back, ages, readiness: who comes before who goes.

use super::*;
use crate::config::{FlappingConfig, Readiness};
use crate::watcher::roll::SETTLE;

fn tuned(lines: &str, tune: impl FnOnce(&mut WatcherConfig)) -> Arc<WatcherConfig> {
    let mut config = config(lines).as_ref().clone();
    tune(&mut config);
    Arc::new(config)
}

fn bench(config: Arc<WatcherConfig>) -> Bench {
    let mut bench = Bench::new("");
    bench.watcher = Watcher::new(config, Kept::default(), &bench.at);
    bench.watcher.release();
    bench
}

/// A watcher of two that has run for a while.
fn two() -> (Bench, Arc<WatcherConfig>) {
    let config = config("numprocesses = 2");
    let mut bench = bench(config.clone());
    bench.step();
    bench.step();
    bench.later(Duration::from_secs(100));
    (bench, config)
}

/// A watcher of two whose reload fails when one of each generation serves; number 1 is started
/// anew.
fn half_replaced() -> (Bench, Arc<WatcherConfig>) {
    let (mut bench, before) = two();
    let after = tuned("numprocesses = 2", |config| {
        config.argv_template = vec!["other".to_owned()];
    });
    bench.watcher.reload(after, false);
    bench.step();
    bench.later(SETTLE);
    let actions = bench.step();
    assert_eq!((starts(&actions), stops(&actions)), (vec![4], vec![1]));
    bench.end(1);
    bench.end(4);
    // One old and one new serve. A second old one is started, and only then the new one goes.
    let actions = bench.step();
    assert_eq!((starts(&actions), stops(&actions)), (vec![1], vec![]));
    assert_eq!(bench.watcher.config(), &before);
    (bench, before)
}

#[test]
fn a_reload_starts_one_waits_for_it_and_stops_the_oldest() {
    let (mut bench, config) = two();
    assert!(bench.watcher.reload(config, false));
    let actions = bench.step();
    assert_eq!((starts(&actions), stops(&actions)), (vec![3], vec![]));
    assert_eq!(bench.step(), [], "the new one has proved nothing yet");
    assert_eq!(bench.watcher.state(), WatcherState::Active);
    assert_eq!(bench.watcher.deadline(), Some(bench.at.now + SETTLE));
    bench.later(SETTLE);
    let actions = bench.step();
    assert_eq!((starts(&actions), stops(&actions)), (vec![4], vec![1]));
    bench.later(SETTLE);
    assert_eq!(stops(&bench.step()), [2]);
    assert_eq!(
        bench.watcher.reload_outcome(bench.at.now),
        None,
        "old ones are ending"
    );
    bench.end(1);
    bench.end(2);
    bench.step();
    assert_eq!(bench.watcher.reload_outcome(bench.at.now), Some(Ok(())));
    assert!(bench.watcher.take_notices().contains(&Notice::Reloaded));
}

#[test]
fn a_new_one_that_ends_takes_the_reload_back() {
    let (mut bench, before) = two();
    let after = tuned("numprocesses = 2", |config| {
        config.argv_template = vec!["other".to_owned()];
    });
    bench.watcher.reload(after, false);
    assert_eq!(starts(&bench.step()), [3]);
    bench.end(3);
    assert_eq!(bench.step(), [], "the old ones stay");
    assert_eq!(bench.watcher.config(), &before);
    let outcome = bench.watcher.reload_outcome(bench.at.now).unwrap();
    assert!(outcome.unwrap_err().contains("worker 3 exited with 1"));
    assert!(bench.watcher.is_settled());
}

#[test]
fn what_was_replaced_already_comes_back_before_the_new_ones_go() {
    let (mut bench, _) = half_replaced();
    bench.later(SETTLE);
    assert_eq!(stops(&bench.step()), [3]);
    bench.end(3);
    bench.step();
    assert!(bench.watcher.is_settled());
    assert!(bench.watcher.reload_outcome(bench.at.now).unwrap().is_err());
    assert!(
        bench
            .watcher
            .workers()
            .values()
            .all(|worker| worker.generation == 0)
    );
}

#[test]
fn a_successor_goes_on_taking_a_reload_back() {
    let (mut bench, before) = half_replaced();
    // Three serve: two of before, and the new one that is to go when they have proved themselves.
    let workers: Vec<(u32, Running, u64)> = bench
        .watcher
        .workers()
        .iter()
        .map(|(wid, worker)| (*wid, *worker.process().unwrap(), worker.generation))
        .collect();
    assert_eq!(workers.len(), 3);
    let kept = bench.watcher.kept().clone();
    bench.watcher = Watcher::new(before, kept, &bench.at);
    bench.watcher.release();
    for (wid, process, generation) in workers {
        bench
            .watcher
            .adopt(wid, process, Some(generation), &bench.at);
    }
    let mut stopped = stops(&bench.step());
    bench.later(SETTLE);
    stopped.extend(stops(&bench.step()));
    assert_eq!(stopped, [3]);
    bench.end(3);
    assert_eq!(bench.step(), []);
    assert!(bench.watcher.is_settled());
}

#[test]
fn a_new_one_that_is_never_ready_takes_the_reload_back() {
    let ready = |config: &mut WatcherConfig| config.ready = Some(Readiness::Tcp("x:1".into()));
    let config = tuned("numprocesses = 1", ready);
    let mut bench = bench(config.clone());
    bench.step();
    assert!(!bench.watcher.is_up());
    bench.watcher.ready(1);
    bench.step();
    assert!(bench.watcher.is_up());
    assert_eq!(bench.watcher.kept().ready, [1].into());
    bench.watcher.reload(config, false);
    assert_eq!(starts(&bench.step()), [2]);
    bench.later(Duration::from_secs(30) + TELL_WHY);
    assert_eq!(stops(&bench.step()), [2]);
    bench.end(2);
    assert_eq!(bench.step(), []);
    let outcome = bench.watcher.reload_outcome(bench.at.now).unwrap();
    assert!(outcome.unwrap_err().contains("not ready within 30 s"));
}

#[test]
fn a_second_reload_that_fails_leads_back_to_what_was_before_the_first() {
    let (mut bench, before) = two();
    let other = |word: &str| {
        let word = word.to_owned();
        tuned("numprocesses = 2", |config| {
            config.argv_template = vec![word];
        })
    };
    bench.watcher.reload(other("one"), false);
    bench.step();
    bench.later(SETTLE);
    bench.step();
    bench.end(1);
    bench.watcher.reload(other("two"), false);
    assert_eq!(stops(&bench.step()), [4], "it had proved nothing yet");
    let newest = bench.serial;
    bench.end(newest);
    for _ in 0..4 {
        bench.step();
        bench.later(SETTLE);
        let going = stops(&bench.step());
        going.into_iter().for_each(|serial| bench.end(serial));
        if bench
            .watcher
            .workers()
            .values()
            .any(|worker| worker.process().unwrap().serial == 4)
        {
            bench.end(4);
        }
    }
    assert_eq!(bench.watcher.config(), &before);
    assert!(bench.watcher.is_settled());
    assert!(
        bench
            .watcher
            .workers()
            .values()
            .all(|worker| worker.generation == 0)
    );
}

#[test]
fn sequentially_one_goes_before_one_comes() {
    let (mut bench, config) = two();
    bench.watcher.reload(config, true);
    let actions = bench.step();
    assert_eq!((starts(&actions), stops(&actions)), (vec![], vec![1]));
    assert_eq!(bench.step(), []);
    bench.end(1);
    assert_eq!(starts(&bench.step()), [1]);
    assert_eq!(bench.step(), []);
    bench.later(SETTLE);
    assert_eq!(stops(&bench.step()), [2]);
    bench.end(2);
    bench.step();
    bench.later(SETTLE);
    bench.step();
    assert_eq!(bench.watcher.reload_outcome(bench.at.now), Some(Ok(())));
}

#[test]
fn a_singleton_is_never_there_twice() {
    let config = config("singleton = true");
    let mut bench = bench(config.clone());
    bench.step();
    bench.watcher.reload(config, false);
    let actions = bench.step();
    assert_eq!((starts(&actions), stops(&actions)), (vec![], vec![1]));
    bench.end(1);
    assert_eq!(starts(&bench.step()), [1]);
}

#[test]
fn a_surge_of_all_replaces_all_at_once() {
    let config = tuned("numprocesses = 3", |config| config.max_surge = 3);
    let mut bench = bench(config.clone());
    bench.step();
    bench.watcher.reload(config, false);
    assert_eq!(starts(&bench.step()), [4, 5, 6]);
    bench.later(SETTLE);
    assert_eq!(stops(&bench.step()), [1, 2, 3]);
}

#[test]
fn a_reload_survives_the_manager() {
    let (mut bench, config) = two();
    bench.watcher.reload(config.clone(), false);
    bench.step();
    let kept = Kept::parse(bench.watcher.kept().to_value().as_bytes());
    let workers: Vec<_> = bench
        .watcher
        .workers()
        .iter()
        .map(|(wid, worker)| (*wid, *worker.process().unwrap(), worker.generation))
        .collect();
    bench.watcher = Watcher::new(config, kept, &bench.at);
    bench.watcher.release();
    for (wid, process, generation) in workers {
        bench
            .watcher
            .adopt(wid, process, Some(generation), &bench.at);
    }
    assert_eq!(bench.step(), [], "the new one has proved nothing yet");
    bench.later(SETTLE);
    let actions = bench.step();
    assert_eq!((starts(&actions), stops(&actions)), (vec![4], vec![1]));
}

#[test]
fn a_stop_survives_the_manager_with_its_deadline() {
    let mut bench = Bench::new("graceful_timeout = 30");
    bench.step();
    let process = *bench.watcher.workers()[&1].process().unwrap();
    bench.watcher.restart();
    assert_eq!(stops(&bench.step()), [1]);
    let kept = bench.watcher.kept().clone();
    bench.later(Duration::from_secs(20));
    bench.watcher = Watcher::new(config("graceful_timeout = 30"), kept, &bench.at);
    bench.watcher.release();
    bench.watcher.adopt(1, process, Some(0), &bench.at);
    assert_eq!(
        bench.step(),
        [Action::Stop(process)],
        "perhaps it was never sent"
    );
    bench.later(Duration::from_secs(10));
    assert_eq!(bench.step(), [Action::Kill(process)]);
    bench.end(1);
    assert_eq!(starts(&bench.step()), [1], "it was a restart");
}

#[test]
fn an_end_is_counted_once_however_often_the_manager_starts() {
    let mut bench = Bench::new("");
    for _ in 0..3 {
        let how = Ended::Code(1);
        let unseen = Unseen {
            wid: 1,
            serial: 7,
            process: gone(7, &bench.at),
            generation: 0,
            ran: Duration::ZERO,
            how,
        };
        bench.watcher.ended_unseen(&unseen, &bench.at);
        let kept = bench.watcher.kept().clone();
        bench.watcher = Watcher::new(config(""), kept, &bench.at);
    }
    assert_eq!(bench.watcher.kept().backoff[&1].record.failures(), 1);
    bench.watcher.forget_ended(|_| false);
    assert!(bench.watcher.kept().ended.is_empty());
}

#[test]
fn who_is_too_old_is_replaced_when_another_serves() {
    let config = config("max_age = 60\nmax_age_variance = 0");
    let mut bench = bench(config);
    bench.step();
    assert_eq!(
        bench.watcher.deadline(),
        Some(bench.at.now + Duration::from_secs(60))
    );
    bench.later(Duration::from_secs(60));
    let actions = bench.step();
    assert_eq!((starts(&actions), stops(&actions)), (vec![2], vec![]));
    bench.later(SETTLE);
    assert_eq!(stops(&bench.step()), [1]);
}

#[test]
fn the_variance_of_an_age_does_not_change_with_the_time_of_day() {
    let config = tuned("", |config| {
        config.max_age = Some(Duration::from_secs(60));
        config.max_age_variance = Duration::from_secs(60);
    });
    let mut bench = bench(config);
    bench.step();
    let first = bench.watcher.deadline().unwrap();
    let age = first - bench.at.now;
    assert!(
        age >= Duration::from_secs(60) && age <= Duration::from_secs(120),
        "{age:?}"
    );
    bench.later(Duration::from_secs(1));
    bench.step();
    assert_eq!(bench.watcher.deadline(), Some(first));
}

#[test]
fn who_flaps_pauses_and_is_given_up_at_last() {
    let config = tuned("", |config| {
        config.backoff.first = Duration::ZERO;
        config.flapping = Some(FlappingConfig {
            attempts: 2,
            window: Duration::from_secs(1),
            retry_in: Duration::from_secs(7),
            max_retry: Some(1),
        });
    });
    let mut bench = bench(config);
    for serial in [1, 2] {
        assert_eq!(starts(&bench.step()), [1]);
        bench.end(serial);
    }
    assert_eq!(bench.step(), []);
    assert_eq!(
        bench.watcher.deadline(),
        Some(bench.at.now + Duration::from_secs(7))
    );
    let kept = bench.watcher.kept().clone();
    assert_eq!(kept.flapping.pauses, 1);
    bench.later(Duration::from_secs(7));
    for serial in [3, 4] {
        assert_eq!(starts(&bench.step()), [1]);
        bench.end(serial);
    }
    bench.step();
    assert_eq!(bench.watcher.state(), WatcherState::Stopped);
    assert!(bench.watcher.start_outcome(bench.at.now).unwrap().is_err());
}

#[test]
fn commanded_ends_are_no_flapping() {
    let config = tuned("numprocesses = 3", |config| {
        config.flapping = Some(FlappingConfig {
            attempts: 2,
            window: Duration::from_secs(60),
            retry_in: Duration::from_secs(7),
            max_retry: Some(0),
        });
    });
    let mut bench = bench(config);
    bench.step();
    let asked = bench
        .watcher
        .end_workers(None, None, Duration::from_secs(1), &bench.at);
    assert_eq!(asked.len(), 3);
    for serial in 1..=3 {
        bench.end(serial);
    }
    assert_eq!(starts(&bench.step()), [1, 2, 3]);
}

#[test]
fn who_waits_for_a_connection_is_started_by_it_and_waits_again() {
    let config = tuned("", |config| config.on_demand = true);
    let mut bench = bench(config);
    assert_eq!(bench.step(), []);
    assert_eq!(bench.watcher.state(), WatcherState::Stopped);
    assert_eq!(bench.watcher.start_outcome(bench.at.now), Some(Ok(())));
    bench.watcher.demand();
    assert_eq!(starts(&bench.step()), [1]);
    bench.later(Duration::from_secs(60));
    bench.end(1);
    assert_eq!(bench.step(), []);
    assert!(bench.watcher.is_dormant());
}

#[test]
fn a_gate_holds_the_start_and_the_stop() {
    let mut bench = Bench::new("");
    bench.watcher.set_gate(Gate {
        orphans: None,
        orphans_unknown: false,
        start_after: Some("db".into()),
        socket: None,
        stop_later: false,
    });
    assert_eq!(bench.step(), []);
    assert!(bench.watcher.is_launched(), "it holds nobody else up");
    assert_eq!(
        bench.watcher.status(bench.at.now).message.as_deref(),
        Some("waits for db")
    );
    bench.watcher.set_gate(Gate::default());
    assert_eq!(starts(&bench.step()), [1]);
    bench.watcher.stop();
    bench.watcher.set_gate(Gate {
        orphans: None,
        orphans_unknown: false,
        start_after: None,
        socket: None,
        stop_later: true,
    });
    assert_eq!(bench.step(), []);
    bench.watcher.set_gate(Gate::default());
    assert_eq!(stops(&bench.step()), [1]);
}

#[test]
fn a_number_asked_for_counts_until_the_file_says_another() {
    let mut bench = Bench::new("numprocesses = 1");
    bench.step();
    bench.watcher.set_count(3);
    assert_eq!(starts(&bench.step()), [2, 3]);
    let kept = bench.watcher.kept().clone();
    let same = Bench::with("numprocesses = 1", kept.clone());
    assert_eq!(same.watcher.count(), 3);
    let other = Bench::with("numprocesses = 2", kept);
    assert_eq!(other.watcher.count(), 2);
    bench.watcher.set_count(1);
    assert_eq!(stops(&bench.step()), [1, 2]);
    assert_eq!(bench.watcher.kept().count, None);
}

#[test]
fn a_successor_waits_for_readiness_no_longer_than_was_promised() {
    let tune = |watcher: &mut WatcherConfig| {
        watcher.ready = Some(Readiness::Tcp("127.0.0.1:1".to_owned()));
        watcher.ready_timeout = Duration::from_secs(60);
    };
    // How long it has run when it is found, and how long it then has.
    for (age, left) in [(0, 60), (50, 10), (58, 5), (600, 5)] {
        let mut bench = bench(tuned("", tune));
        let process = Running {
            serial: 7,
            pid: 100,
            started_us: 7,
            started: bench.at.now,
        };
        bench.later(Duration::from_secs(age));
        bench.watcher.adopt(1, process, Some(0), &bench.at);
        bench.step();
        let deadline = bench.watcher.deadline().unwrap();
        let expected = Duration::from_secs(left) + TELL_WHY;
        assert_eq!(deadline - bench.at.now, expected, "found after {age} s");
    }
}

#[test]
fn ends_counted_before_us_count() {
    let lines =
        "backoff_reset = 0\nflapping.attempts = 3\nflapping.window = 60\nflapping.retry_in = 60";
    let mut bench = bench(config(lines));
    bench.step();
    for serial in [1, 2] {
        bench.end(serial);
        bench.step();
    }
    let kept = Kept::parse(bench.watcher.kept().to_value().as_bytes());
    assert_eq!(kept.flapping.ends_ms.len(), 2);
    for (later, flaps) in [(10, true), (100, false)] {
        let mut at = bench.at;
        at.now += Duration::from_secs(later);
        at.epoch_ms += later * 1000;
        let mut next = Watcher::new(config(lines), kept.clone(), &at);
        next.ended_unseen(
            &Unseen {
                wid: 1,
                serial: 3,
                process: gone(3, &at),
                generation: 0,
                ran: Duration::from_secs(1),
                how: Ended::Code(1),
            },
            &at,
        );
        assert_eq!(next.kept().flapping.until_ms > 0, flaps, "{later} s later");
    }
}

fn gone(serial: u64, at: &Moment) -> Running {
    Running {
        serial,
        pid: 100,
        started_us: serial,
        started: at.now,
    }
}
