//! One watcher: how many workers there should be, and which to start or stop for it.
//!
//! Owns wanted and actual state of one `[watcher:NAME]` and decides what to do next. Pure: it is
//! told what happened and what time it is, and answers with actions. Leaves to others: the kernel,
//! other watchers, probes, who asked.
//!
//! | module | what it owns |
//! |---|---|
//! | `steps` | what is to be done now: grow, replace, shrink, stop |
//! | `ends` | what an end, a failed start or a missed readiness means: back-off, flapping, giving up |
//! | `found` | workers that were there already: a predecessor's, or of a start whose answer was lost |
//! | `last_words` | how its latest workers ended, and what of that is said |
//! | `left` | what workers leave behind, and when their numbers are free again |
//! | `roll` | the rolling reload and its way back |
//! | `proof` | when a start is done, or has failed |
//! | `pauses` | when each worker may be started again |
//! | `view` | what others are told of it |
//!
//! Invariant: a worker number names at most one process; after `step` everything that can be done
//! now has been answered as an action, and `deadline` is the earliest moment at which there is
//! more.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::known::is_stream_key;
use crate::config::{Readiness, Release, SignalNumber, WatcherConfig};
use crate::last_words::Ends;
use crate::life::{Life, Stage, WatcherCell, WatcherEvent, WorkerCell, WorkerEvent};
use crate::state::{Kept, KeptCount, KeptRemoval};
use crate::tree::Member;
use crate::worker::{LeftDue, Running, State, Worker};

mod ends;
mod found;
mod last_words;
mod left;
mod pauses;
mod proof;
mod roll;
mod steps;
mod view;

pub use ends::Unseen;
pub use left::WENT_TO_BACKGROUND;
use pauses::Pauses;
use roll::Roll;

/// A probe that waits for a worker gets this much longer to say what is missing.
pub const TELL_WHY: Duration = Duration::from_secs(1);

/// Minimum time an adopted worker that is not ready yet gets to become ready.
const LATE_LOOK: Duration = Duration::from_secs(5);

/// The moment something happened, as the loop read it.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// For deadlines.
    pub now: Instant,
    /// For what is kept: milliseconds since the epoch.
    pub epoch_ms: u64,
    /// Any number, other each time.
    pub jitter: u64,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Ask the kernel for this worker.
    Start { wid: u32, generation: u64 },
    /// Send the stop signal.
    Stop(Running),
    /// Kill the tree.
    Kill(Running),
    /// Deal with what the worker of that process left behind.
    Left(Running, LeftDue),
}

/// What happened to a watcher that others may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A worker serves.
    Ready {
        /// Its number.
        wid: u32,
        /// Its process id.
        pid: i32,
    },
    /// A health check said no, often enough.
    Unwell {
        /// Its number.
        wid: u32,
        /// Its process id.
        pid: i32,
        /// What the check said.
        reason: String,
    },
    /// A reload is complete.
    Reloaded,
    /// A reload was undone.
    RolledBack(String),
    /// Its workers end too often; it pauses.
    Flapping(String),
    /// It was stopped because starting it has no prospect.
    GaveUp(String),
}

/// What the operator or the configuration asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Stopped,
    Running,
    /// Once everything has stopped, it is wanted running.
    Restarting,
}

/// How a process ended, for the log and the status line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With an exit code.
    Code(i32),
    /// By a signal.
    Signal {
        /// Which.
        signal: i32,
        /// It left a core dump.
        core: bool,
    },
    /// The kernel no longer knows it.
    Unknown,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with {code}"),
            Self::Signal {
                signal,
                core: false,
            } => write!(f, "was ended by signal {signal}"),
            Self::Signal { signal, core: true } => {
                write!(f, "was ended by signal {signal} (core dumped)")
            }
            Self::Unknown => f.write_str("is gone"),
        }
    }
}

/// Why a worker could not be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartFailure {
    /// The kernel did not answer: nothing is known, nothing is counted.
    Unanswered,
    /// A dead process has the number still; it is being cleared away.
    Occupied,
    /// The kernel refused.
    Refused(String),
    /// Its release was deleted, and nothing may take its place: waited for, and not counted.
    NoRelease(String),
}

/// What other watchers have to say to this one's start and stop.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Gate {
    /// It waits for this watcher to serve before it is started.
    pub start_after: Option<String>,
    /// It waits for a socket: which, and what is in its way, for people.
    pub socket: Option<String>,
    /// Watchers that depend on it are still stopping.
    pub stop_later: bool,
    /// What an earlier kernel's workers that still run have to do with its start, for people.
    pub orphans: Option<String>,
    /// It is not known yet whether there are such.
    pub orphans_unknown: bool,
}

/// One watcher.
#[derive(Debug, Clone)]
pub struct Watcher {
    config: Arc<WatcherConfig>,
    wanted: Wanted,
    /// Starting is allowed: those of higher priority have been started.
    released: bool,
    gate: Gate,
    /// Waits for the first connection.
    dormant: bool,
    workers: BTreeMap<u32, Worker>,
    /// By serial of a worker that has ended: who was found of what it left.
    left_members: BTreeMap<u64, Vec<Member>>,
    /// Serials of workers of which nothing is left any more, not told yet.
    freed: Vec<u64>,
    pauses: Pauses,
    /// The pause between two starts ends here.
    next_start: Option<Instant>,
    /// Unexpected ends within the flapping window, oldest first; at most `attempts` of them.
    ends: VecDeque<Instant>,
    /// It flapped, and pauses until then.
    flapping_until: Option<Instant>,
    /// Starts the kernel refused in a row.
    refused: u32,
    /// By number of a worker: how often in a row it failed before it had shown that it stays.
    early: BTreeMap<u32, u32>,
    /// How its latest workers ended that nobody had asked to.
    last_ends: Ends,
    /// Serial of the one that `message` is about.
    about: Option<u64>,
    /// Starting it has no prospect; a person has to look.
    gave_up: bool,
    /// All wanted workers served at once since the last start.
    came_up: bool,
    /// Serials of workers that were found running with other settings than they would get now.
    outdated: BTreeSet<u64>,
    roll: Option<Roll>,
    /// What became of the last reload.
    rolled: Result<(), String>,
    message: Option<String>,
    /// Why no worker can be started although it is tried: its release was deleted.
    no_release: Option<String>,
    notices: Vec<Notice>,
    kept: Kept,
}

impl Watcher {
    /// A watcher nothing is known of yet, wanted as `kept` says, else as `autostart` says.
    #[must_use]
    pub fn new(config: Arc<WatcherConfig>, kept: Kept, at: &Moment) -> Self {
        let stopped = kept.stopped.unwrap_or(!config.autostart) || kept.gave_up;
        let flapping_ms = kept.flapping.until_ms.saturating_sub(at.epoch_ms);
        // A clock that was set back must not pause it for ever.
        let longest = config
            .flapping
            .map_or(Duration::ZERO, |flapping| flapping.retry_in);
        let flapping_left = Duration::from_millis(flapping_ms).min(longest);
        let mut watcher = Self {
            wanted: match stopped {
                true => Wanted::Stopped,
                false if kept.restarting => Wanted::Restarting,
                false => Wanted::Running,
            },
            released: false,
            gate: Gate::default(),
            dormant: config.on_demand && !kept.demanded,
            workers: BTreeMap::new(),
            left_members: BTreeMap::new(),
            freed: Vec::new(),
            pauses: Pauses::from_kept(&kept.backoff, &config.backoff, at),
            next_start: None,
            ends: ends::kept_ends(&kept.flapping, at),
            flapping_until: (!flapping_left.is_zero()).then(|| at.now + flapping_left),
            refused: 0,
            early: BTreeMap::new(),
            last_ends: Ends::new(),
            about: None,
            gave_up: kept.gave_up && kept.stopped != Some(true),
            came_up: kept.came_up,
            outdated: BTreeSet::new(),
            roll: kept.roll.as_ref().map(Roll::resumed),
            rolled: Ok(()),
            message: kept.message.clone(),
            no_release: None,
            notices: Vec::new(),
            config,
            kept: Kept::default(),
        };
        watcher.resume_left(&kept, at);
        watcher.kept = kept;
        watcher.kept.release = watcher.config.release();
        watcher
    }

    /// Its section of the configuration, as its next worker will have it.
    #[must_use]
    pub fn config(&self) -> &Arc<WatcherConfig> {
        &self.config
    }

    /// What must survive the manager.
    #[must_use]
    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Its workers by number.
    #[must_use]
    pub fn workers(&self) -> &BTreeMap<u32, Worker> {
        &self.workers
    }

    /// Asked to run: by the operator, who is remembered, or by the start-up.
    pub fn start(&mut self) {
        self.kept.stopped = Some(false);
        self.kept.finished.clear();
        self.kept.failed.clear();
        self.forgive();
        self.released = true;
        self.follow(WatcherEvent::Start);
    }

    /// Asked to stop by the operator; it stays stopped when the manager is started again.
    pub fn stop(&mut self) {
        self.kept.stopped = Some(true);
        self.gave_up = false;
        self.message = None;
        self.kept.gave_up = false;
        self.end(WatcherEvent::Stop);
    }

    /// Stops for the time being: the manager ends, or starting it has no prospect.
    pub fn halt(&mut self) {
        self.end(WatcherEvent::Halt);
    }

    fn end(&mut self, event: WatcherEvent) {
        self.follow(event);
        self.came_up = false;
        self.cancel_roll();
    }

    /// Asked to stop and start.
    pub fn restart(&mut self) {
        self.start();
        self.cancel_roll();
        self.follow(WatcherEvent::Restart);
        if self.wanted == Wanted::Restarting {
            self.came_up = false;
        }
    }

    /// Its turn in the start order has come.
    pub fn release(&mut self) {
        self.released = true;
    }

    /// The first connection came.
    pub fn demand(&mut self) {
        self.follow(WatcherEvent::Demand);
    }

    /// What others have to say to its start and stop.
    pub fn set_gate(&mut self, gate: Gate) {
        self.gate = gate;
    }

    /// What others said last.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// How many workers are wanted from now on; remembered until the file says another number.
    pub fn set_count(&mut self, count: u32) {
        let count = if self.config.singleton {
            count.min(1)
        } else {
            count
        };
        self.kept.count = (count != self.config.numprocesses).then_some(KeptCount {
            file: self.config.numprocesses,
            now: count,
        });
    }

    /// How many workers are wanted, those that ended for good included.
    #[must_use]
    pub fn count(&self) -> u32 {
        match self.kept.count {
            Some(count) if count.file == self.config.numprocesses => count.now,
            _ => self.config.numprocesses,
        }
    }

    /// Options set at run time from now on; they are in the configuration already.
    pub fn set_options(
        &mut self,
        set: BTreeMap<String, String>,
        env: Option<BTreeMap<String, String>>,
    ) {
        self.kept.set = set;
        self.kept.env = env;
    }

    /// Stops for good, because no file names it any more; should we die, our successor goes on with
    /// it.
    pub fn remove(&mut self) {
        self.stop();
        self.kept.removing = Some(KeptRemoval {
            name: self.config.name.clone(),
            stop_signal: self.config.stop_signal.number(),
            stop_children: self.config.stop_children,
            graceful_timeout: self.config.graceful_timeout.as_secs_f64().to_string(),
            streams: self
                .config
                .entries
                .iter()
                .filter(|entry| is_stream_key(&entry.key))
                .map(|entry| (entry.key.clone(), entry.value.clone()))
                .collect(),
        });
    }

    /// It is wanted after all, with these settings; what it has still is stopped first.
    pub fn come_back(&mut self, config: Arc<WatcherConfig>) {
        self.kept.removing = None;
        self.configure(config);
        self.start();
    }

    /// A person ends the manager: whoever starts another asks for another attempt.
    pub fn forget_giving_up(&mut self) {
        self.kept.gave_up = false;
    }

    /// It is to be forgotten once it has stopped.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.kept.removing.is_some()
    }

    /// The kernel that knew our workers is gone, and another has their names: nothing that was is
    /// any more.
    pub fn forget_kernel(&mut self) {
        self.workers.retain(|_, worker| worker.left().is_some());
        self.cancel_roll();
        for serials in [
            &mut self.kept.finished,
            &mut self.kept.failed,
            &mut self.kept.ended,
            &mut self.kept.ready,
        ] {
            serials.clear();
        }
        self.kept.stopping.clear();
        self.kept.signals.clear();
    }

    /// Other settings that need no other processes.
    pub fn configure(&mut self, config: Arc<WatcherConfig>) {
        if self
            .kept
            .count
            .is_some_and(|count| count.file != config.numprocesses)
        {
            self.kept.count = None;
        }
        if !config.on_demand {
            self.follow(WatcherEvent::Demand);
        }
        self.no_release = None;
        let release = config.release();
        if release != self.kept.release {
            self.kept.failed_release = None;
            self.kept.moved = None;
            self.kept.release = release;
        }
        self.config = config;
    }

    /// A worker was started in another release than the watcher's, which was deleted; none: in its
    /// own.
    pub fn started_in(&mut self, moved: Option<Release>) {
        self.kept.moved = moved;
    }

    /// The reload to this release failed, here or at another watcher of the same change.
    pub fn note_failed_release(&mut self, failed: Release) {
        // What serves in place of a deleted release works.
        if self.kept.release.as_ref() != Some(&failed) && self.kept.moved.as_ref() != Some(&failed)
        {
            self.kept.failed_release = Some(failed);
        }
    }

    /// The kernel has started worker `wid`.
    pub fn started(&mut self, wid: u32, process: Running, noted: Option<u64>, at: &Moment) {
        self.refused = 0;
        self.no_release = None;
        if let (Some(worker), Some(noted)) = (self.workers.get_mut(&wid), noted)
            && worker.generation != noted
        {
            // It was there already, started by another reload.
            worker.generation = noted;
            worker.retiring = self.kept.roll.as_ref().is_some_and(|roll| roll.to != noted);
        }
        let generation = self.workers.get(&wid).map(|worker| worker.generation);
        let stage = self.stage(wid);
        match stage.on(WorkerEvent::Started) {
            // Nothing can have been kept of a process that is new.
            WorkerCell::Up if stage == Stage::Starting => {
                let state = self.first_state(process, generation.unwrap_or(0), at);
                if let Some(worker) = self.workers.get_mut(&wid) {
                    worker.state = state;
                }
            }
            WorkerCell::Up | WorkerCell::UpToGo => self.adopt(wid, process, generation, at),
            _ => {}
        }
    }

    /// A worker says, or was found, to serve.
    pub fn ready(&mut self, serial: u64) {
        let found = self
            .workers
            .iter_mut()
            .find(|(_, worker)| worker.process().is_some_and(|known| known.serial == serial));
        if let Some((wid, worker)) = found
            && worker.ended.is_none()
            && worker.serve()
            && let Some(process) = worker.process()
        {
            self.notices.push(Notice::Ready {
                wid: *wid,
                pid: process.pid,
            });
        }
    }

    /// What there was to tell since the last time.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// The signal the worker of this serial was asked to end with, if that is not the configured
    /// one.
    #[must_use]
    pub fn own_signal(&self, serial: u64) -> Option<SignalNumber> {
        let mut workers = self.workers.values();
        let is_it = |worker: &&Worker| worker.process().is_some_and(|known| known.serial == serial);
        workers.find(is_it)?.own_signal
    }

    /// Asks workers to end, all or the one with this pid; they are replaced. Answers those to send
    /// a signal to now: this one, or the configured one.
    pub fn end_workers(
        &mut self,
        pid: Option<i32>,
        signal: Option<SignalNumber>,
        grace: Duration,
        at: &Moment,
    ) -> Vec<Running> {
        let mut asked = Vec::new();
        for worker in self.workers.values_mut() {
            let meant = worker
                .process()
                .is_some_and(|process| pid.is_none_or(|pid| pid == process.pid));
            if let Some(process) = meant.then(|| worker.hasten(grace, at.now)).flatten() {
                // Noted down again below, with the deadline there is now.
                self.kept.stopping.remove(&process.serial);
                self.kept.signals.remove(&process.serial);
                worker.own_signal = signal;
                asked.push(process);
            }
        }
        self.sync_kept(at);
        asked
    }

    fn first_state(&self, process: Running, generation: u64, at: &Moment) -> State {
        match &self.config.ready {
            // Until now nothing says that it can serve; that it has not ended at once has to do.
            None if self.is_replacing(generation) => State::Waiting {
                process,
                settles: Some(process.started + roll::SETTLE),
                limit: at.now + self.config.ready_timeout.max(roll::SETTLE),
            },
            None => State::Serving(process),
            Some(Readiness::Delay(delay)) => State::Waiting {
                process,
                settles: Some(process.started + *delay),
                limit: at.now + self.config.ready_timeout.max(*delay),
            },
            Some(_) => State::Waiting {
                process,
                settles: None,
                // Whoever waits for it knows why it is late, and says so in time.
                limit: self.ready_limit(&process, at) + TELL_WHY,
            },
        }
    }

    /// When a worker has to be ready: so long after its start, whoever has waited for it meanwhile.
    /// A manager that comes late looks nevertheless, what it said without us being what counts.
    fn ready_limit(&self, process: &Running, at: &Moment) -> Instant {
        let timeout = self.config.ready_timeout;
        (process.started + timeout).max(at.now + LATE_LOOK.min(timeout))
    }

    /// Its state, as the table of its life has it.
    #[must_use]
    pub fn life(&self) -> Life {
        match self.wanted {
            Wanted::Stopped if !self.workers.is_empty() => Life::Stopping,
            Wanted::Stopped if self.has_given_up() => Life::GivenUp,
            Wanted::Stopped => Life::Stopped,
            Wanted::Restarting => Life::Restarting,
            Wanted::Running if self.dormant => Life::Dormant,
            Wanted::Running if self.flapping_until.is_some() => Life::Pausing,
            Wanted::Running => Life::Running,
        }
    }

    /// State of a worker's number.
    fn stage(&self, wid: u32) -> Stage {
        self.workers.get(&wid).map_or(Stage::Free, Worker::stage)
    }

    /// Goes on to the state that the table of its life names. Data that belongs to the new state,
    /// such as the end of a pause, is the caller's.
    fn follow(&mut self, event: WatcherEvent) {
        let life = self.life();
        match life.on(event) {
            WatcherCell::Again if !self.workers.is_empty() => self.set_wanted(Wanted::Restarting),
            WatcherCell::Begin | WatcherCell::Again => {
                self.dormant = self.config.on_demand && self.workers.is_empty();
                self.set_wanted(Wanted::Running);
            }
            WatcherCell::Wake => {
                self.dormant = false;
                self.set_wanted(Wanted::Running);
            }
            WatcherCell::End => self.set_wanted(Wanted::Stopped),
            WatcherCell::Sleep => self.dormant = true,
            // Which workers there should be is the same as before.
            WatcherCell::Roll | WatcherCell::Pause | WatcherCell::Same => {}
            WatcherCell::Never => debug_assert!(false, "{event:?} happens in state {life:?}"),
        }
    }

    fn set_wanted(&mut self, wanted: Wanted) {
        self.wanted = wanted;
        self.kept.restarting = wanted == Wanted::Restarting;
    }

    /// Forgets what went wrong, because a person asked for another attempt.
    fn forgive(&mut self) {
        self.message = None;
        self.about = None;
        self.refused = 0;
        self.gave_up = false;
        self.kept.gave_up = false;
        self.pauses.clear();
        self.early.clear();
        self.ends.clear();
        self.flapping_until = None;
        self.kept.flapping = crate::state::KeptFlapping::default();
        self.next_start = None;
        self.keep_pauses();
    }

    fn keep_pauses(&mut self) {
        self.kept.backoff = self.pauses.to_kept();
    }
}

#[cfg(test)]
mod tests;
