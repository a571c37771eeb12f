//! The rules of one watcher, with time as an argument.

use std::time::{Duration, Instant};

use papa_protocol::process::Exit;

use super::*;
use crate::config::{Surroundings, load};
use crate::control::message::WatcherState;

mod life;
mod replacing;

fn config(lines: &str) -> Arc<WatcherConfig> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.ini");
    std::fs::write(&path, format!("[watcher:w]\ncmd = true\n{lines}\n")).unwrap();
    let config = load(&path, &Surroundings::current().unwrap()).unwrap();
    Arc::new(config.watchers[0].clone())
}

struct Bench {
    watcher: Watcher,
    at: Moment,
    serial: u64,
}

impl Bench {
    fn new(lines: &str) -> Self {
        Self::with(lines, Kept::default())
    }

    fn with(lines: &str, kept: Kept) -> Self {
        let at = Moment {
            now: Instant::now(),
            epoch_ms: 1_000_000,
            jitter: 0,
        };
        let mut watcher = Watcher::new(config(lines), kept, &at);
        watcher.release();
        Self {
            watcher,
            at,
            serial: 0,
        }
    }

    fn later(&mut self, time: Duration) {
        self.at.now += time;
        self.at.epoch_ms += u64::try_from(time.as_millis()).unwrap();
    }

    /// Steps and has every start succeed; answers what was done.
    fn step(&mut self) -> Vec<Action> {
        let actions = self.watcher.step(&self.at);
        for action in &actions {
            if let Action::Start { wid, .. } = action {
                self.serial += 1;
                let process = Running {
                    serial: self.serial,
                    pid: 100,
                    started_us: self.serial,
                    started: self.at.now,
                };
                self.watcher.started(*wid, process, None, &self.at);
            }
        }
        actions
    }

    /// Ends, and leaves nothing behind.
    fn end(&mut self, serial: u64) {
        self.end_as(serial, Ended::Code(1));
    }

    fn end_as(&mut self, serial: u64, how: Ended) {
        assert!(self.watcher.ended(serial, how, &self.at).is_some());
        self.watcher.found_left(serial, &[], &self.at);
    }
}

fn starts(actions: &[Action]) -> Vec<u32> {
    let wid = |action: &Action| match action {
        Action::Start { wid, .. } => Some(*wid),
        _ => None,
    };
    actions.iter().filter_map(wid).collect()
}

fn stops(actions: &[Action]) -> Vec<u64> {
    let serial = |action: &Action| match action {
        Action::Stop(process) => Some(process.serial),
        _ => None,
    };
    actions.iter().filter_map(serial).collect()
}

#[test]
fn it_comes_up_and_replaces_who_ends_under_the_same_number() {
    let mut bench = Bench::new("numprocesses = 3");
    assert_eq!(bench.watcher.state(), WatcherState::Starting);
    assert_eq!(starts(&bench.step()), [1, 2, 3]);
    bench.step();
    assert_eq!(bench.watcher.state(), WatcherState::Active);
    bench.later(Duration::from_secs(60));
    bench.end(2);
    assert_eq!(starts(&bench.step()), [2]);
}

#[test]
fn one_that_loops_waits_longer_each_time_and_the_others_do_not() {
    let mut bench = Bench::new("numprocesses = 2");
    bench.step();
    bench.end(1);
    assert_eq!(starts(&bench.step()), [1], "the first quick end is free");
    bench.end(3);
    assert_eq!(starts(&bench.step()), [] as [u32; 0]);
    let pause = bench.watcher.deadline().unwrap() - bench.at.now;
    assert_eq!(pause, Duration::from_millis(100));
    bench.later(Duration::from_secs(20));
    bench.end(2);
    assert_eq!(
        starts(&bench.step()),
        [1, 2],
        "who ran long is started at once"
    );
    // A worker that has run for backoff_reset is well, and what failed before is no message any
    // more.
    assert!(bench.watcher.message().is_some());
    let well = bench.watcher.deadline().unwrap() - bench.at.now;
    assert_eq!(well, Duration::from_secs(10));
    bench.later(well);
    bench.step();
    assert_eq!(bench.watcher.message(), None);
    assert!(bench.watcher.deadline().is_none());
}

#[test]
fn a_pause_survives_the_manager() {
    let mut bench = Bench::new("");
    bench.step();
    for serial in 1..=4 {
        bench.end(serial);
        bench.step();
        bench.later(Duration::from_millis(u64::from(serial < 4) * 500));
        bench.step();
    }
    let kept = Kept::parse(bench.watcher.kept().to_value().as_bytes());
    let mut next = Bench::with("", kept);
    next.at = bench.at;
    assert_eq!(starts(&next.step()), [] as [u32; 0]);
    assert!(next.watcher.deadline().is_some());
}

#[test]
fn a_restart_stops_everything_before_it_starts_anything() {
    let mut bench = Bench::new("numprocesses = 2");
    bench.step();
    bench.watcher.restart();
    assert_eq!(stops(&bench.step()), [1, 2]);
    assert_eq!(bench.watcher.state(), WatcherState::Stopping);
    bench.end(1);
    assert_eq!(bench.step(), []);
    bench.end(2);
    assert_eq!(starts(&bench.step()), [1, 2]);
}

#[test]
fn a_stop_during_a_start_is_not_forgotten() {
    let mut bench = Bench::new("");
    assert_eq!(starts(&bench.watcher.step(&bench.at)), [1]);
    bench.watcher.stop();
    assert_eq!(bench.watcher.step(&bench.at), []);
    let process = Running {
        serial: 9,
        pid: 1,
        started_us: 1,
        started: bench.at.now,
    };
    bench.watcher.started(1, process, None, &bench.at);
    assert_eq!(stops(&bench.step()), [9]);
    bench.end(9);
    bench.step();
    assert!(bench.watcher.is_stopped());
    assert_eq!(bench.watcher.kept().stopped, Some(true));
}

#[test]
fn surplus_workers_are_stopped_the_newest_stay() {
    let mut bench = Bench::new("numprocesses = 1");
    for (wid, serial) in [(1, 5), (2, 7), (3, 6)] {
        let process = Running {
            serial,
            pid: 1,
            started_us: serial,
            started: bench.at.now,
        };
        bench.watcher.adopt(wid, process, None, &bench.at);
    }
    assert_eq!(stops(&bench.step()), [5, 6]);
}

#[test]
fn starts_keep_their_distance() {
    let mut bench = Bench::new("numprocesses = 2\nwarmup_delay = 3");
    assert_eq!(starts(&bench.step()), [1]);
    assert!(!bench.watcher.is_launched());
    assert_eq!(
        bench.watcher.deadline(),
        Some(bench.at.now + Duration::from_secs(3))
    );
    bench.later(Duration::from_secs(3));
    assert_eq!(starts(&bench.step()), [2]);
    assert!(bench.watcher.is_launched());
}

#[test]
fn what_cannot_be_started_is_given_up_and_can_be_started_again() {
    let mut bench = Bench::new("max_retry = 2");
    for _ in 0..3 {
        bench.later(Duration::from_secs(60));
        assert_eq!(starts(&bench.watcher.step(&bench.at)), [1]);
        let refused = StartFailure::Refused("no such file".to_owned());
        bench.watcher.start_failed(1, refused, &bench.at);
    }
    assert_eq!(bench.watcher.state(), WatcherState::Stopped);
    assert!(
        bench
            .watcher
            .start_outcome(bench.at.now)
            .is_some_and(|outcome| outcome.is_err())
    );
    assert_eq!(
        bench.watcher.kept().stopped,
        None,
        "the next manager tries again"
    );
    bench.watcher.start();
    assert_eq!(starts(&bench.step()), [1]);
}

#[test]
fn an_unanswered_start_is_asked_again_and_not_counted() {
    let mut bench = Bench::new("max_retry = 0");
    bench.watcher.step(&bench.at);
    bench
        .watcher
        .start_failed(1, StartFailure::Unanswered, &bench.at);
    bench.later(ends::ASK_AGAIN);
    assert_eq!(starts(&bench.step()), [1]);
}

#[test]
fn who_is_not_respawned_is_remembered() {
    let mut bench = Bench::new("respawn = false\nnumprocesses = 2");
    bench.step();
    bench.end(1);
    assert_eq!(bench.step(), []);
    bench.end(2);
    bench.step();
    assert_eq!(bench.watcher.state(), WatcherState::Stopped);
    let kept = bench.watcher.kept().clone();
    let mut next = Bench::with("respawn = false\nnumprocesses = 2", kept);
    assert_eq!(next.step(), []);
    assert!(next.watcher.is_stopped());
}

#[test]
fn one_that_waits_for_its_own_workers_holds_nobody_up() {
    let mut bench = Bench::new("graceful_timeout = 60");
    bench.step();
    bench.watcher.restart();
    bench.step();
    assert!(bench.watcher.is_launched(), "it restarts");
    bench.end(1);
    assert!(!bench.watcher.is_launched() || !starts(&bench.step()).is_empty());

    let mut bench = Bench::new("numprocesses = 3\nready_timeout = 60");
    bench.step();
    let config = bench.watcher.config().clone();
    bench.watcher.reload(config, false);
    assert!(!bench.watcher.is_launched(), "there is room for one more");
    assert_eq!(starts(&bench.step()).len(), 1);
    assert!(bench.watcher.is_launched(), "it rolls");

    let mut bench = Bench::new("singleton = true");
    bench.step();
    bench
        .watcher
        .end_workers(None, None, Duration::from_secs(60), &bench.at);
    assert!(starts(&bench.step()).is_empty());
    assert!(bench.watcher.is_launched(), "its only worker is ending");
}

#[test]
fn a_start_is_done_when_every_worker_has_run_for_a_moment() {
    let mut bench = Bench::new("numprocesses = 2");
    bench.step();
    assert_eq!(bench.watcher.start_outcome(bench.at.now), None);
    assert!(bench.watcher.status(bench.at.now).settling);
    let proven = bench.at.now + Duration::from_secs(1);
    assert_eq!(bench.watcher.proves_at(bench.at.now), Some(proven));
    bench.later(Duration::from_millis(900));
    bench.end(2);
    bench.step();
    bench.later(Duration::from_millis(900));
    assert_eq!(bench.watcher.start_outcome(bench.at.now), None, "a new one");
    bench.later(Duration::from_millis(100));
    let outcome = bench.watcher.start_outcome(bench.at.now);
    assert_eq!(outcome, Some(Ok(())));
    assert_eq!(bench.watcher.proves_at(bench.at.now), None);
    assert!(!bench.watcher.status(bench.at.now).settling);
}

#[test]
fn a_worker_that_says_that_it_is_ready_needs_no_moment() {
    let mut bench = Bench::new("ready = notify");
    bench.step();
    bench.later(Duration::from_secs(5));
    assert_eq!(bench.watcher.start_outcome(bench.at.now), None);
    bench.watcher.ready(1);
    bench.step();
    let outcome = bench.watcher.start_outcome(bench.at.now);
    assert_eq!(outcome, Some(Ok(())));
}

#[test]
fn a_start_fails_when_one_worker_fails_three_times_before_it_has_run_for_a_moment() {
    // With a short `backoff_reset` no pause says so.
    let mut bench = Bench::new("numprocesses = 2\nbackoff_reset = 0.1");
    bench.step();
    for serial in 2..5 {
        assert_eq!(bench.watcher.start_outcome(bench.at.now), None, "{serial}");
        bench.later(Duration::from_millis(500));
        bench.end(serial);
        bench.step();
    }
    assert!(bench.watcher.start_outcome(bench.at.now).unwrap().is_err());
    // One that comes up after all is up.
    bench.later(Duration::from_secs(1));
    let outcome = bench.watcher.start_outcome(bench.at.now);
    assert_eq!(outcome, Some(Ok(())));
}

#[test]
fn old_failures_of_one_worker_do_not_fail_the_start_of_another() {
    let mut bench = Bench::new("numprocesses = 1");
    bench.step();
    for serial in 1..4 {
        bench.end(serial);
        bench.later(Duration::from_millis(900));
        bench.step();
    }
    bench.later(Duration::from_secs(2));
    bench.watcher.set_count(2);
    bench.step();
    assert_eq!(bench.watcher.start_outcome(bench.at.now), None);
    bench.later(Duration::from_secs(1));
    let outcome = bench.watcher.start_outcome(bench.at.now);
    assert_eq!(outcome, Some(Ok(())));
}

#[test]
fn a_job_is_done_when_it_ends_with_0_and_has_failed_when_it_does_not() {
    for (code, message) in [(0, None), (3, Some("worker 1 exited with 3, ran 0.0 s"))] {
        let mut bench = Bench::new("respawn = false\nnumprocesses = 2");
        bench.step();
        bench.end_as(1, Ended::Code(code));
        bench.end_as(2, Ended::Code(0));
        bench.step();
        let outcome = bench.watcher.start_outcome(bench.at.now).unwrap();
        assert_eq!(outcome.err().as_deref(), message);
        let kept = bench.watcher.kept().clone();
        let mut next = Bench::with("respawn = false\nnumprocesses = 2", kept);
        next.step();
        assert_eq!(next.watcher.status(next.at.now).done, code == 0);
    }
}

#[test]
fn a_worker_whose_last_words_were_read_for_long_was_said_to_stay() {
    for lines in ["respawn = no", "respawn = no\nready = notify"] {
        let mut bench = Bench::new(lines);
        bench.watcher.start();
        bench.step();
        let exit = Exit {
            stamp_us: 1 + 20_000,
            code: Some(1),
            signal: None,
            core: false,
            rusage: None,
        };
        bench.watcher.ending(1, &exit);
        bench.later(Duration::from_secs(2));
        bench.step();
        bench.watcher.ready(1);
        assert_eq!(bench.watcher.start_outcome(bench.at.now), None);
        assert_eq!(
            bench.watcher.deadline(),
            None,
            "nobody has to wake up for it"
        );
        bench.end(1);
        let message = bench.watcher.message().unwrap();
        assert!(message.contains("ran 0.0 s"), "{message}");
    }
}
