//! The owner loop: wanted state against actual state.
//!
//! Owns the order in which watchers start, who waits for what, and the end of the manager. Events
//! come in from the kernel, the control socket, signals and finished tasks; each handler runs to
//! completion, then the watchers it touched, and those whose deadline has come, are asked what to
//! do next.
//!
//! | part | what it owns |
//! |---|---|
//! | `watchers` | every watcher, and which of them there may be something to do for |
//! | `connection` | the connection to the kernel, and what is known of that |
//! | `sockets` | which sockets are missing or being made again |
//! | `dead` | workers that have ended, until the kernel has forgotten them |
//! | `undrained` | watchers that are gone, while their output is still on its way |
//! | `signals` | signals on their way to workers |
//! | `start_order` | whose turn to start has not come |
//! | `output` | the log thread |
//! | `outbox` | what the kernel is to keep, and the answers that wait for that |
//! | `probes` | questions to workers that are open |
//! | `open_requests` | requests that wait for the kernel or for watchers |
//! | `change` | the change of the configuration under way |
//! | `ending` | the phase of the manager, and its outcome |
//! | `startup` | what the manager was started with |
//!
//! Leaves to others: a watcher's decisions (`watcher`), talking to the kernel (`tasks`, on tokio
//! tasks that answer with an event), log files (`logs`, on a thread).
//! Invariant: state changes only here; nothing here waits, so a slow stop of one watcher delays no
//! other and no request.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use papa_logs::thread::LogReport;
use tokio::sync::{mpsc, oneshot};

use crate::config::{Config, WatcherConfig};
use crate::control::events::{EventKind, EventLog};
use crate::control::message::{Reply, Request, WatcherLogs};
use crate::control::server::now as epoch_seconds;
use crate::error::ManagerError;
use crate::kernel_link::KernelLink;
use crate::orphan::Notes;
use crate::pidfd::Whom;
use crate::procinfo::Statistics;
use crate::state::Kept;
use crate::tree::TreeThread;
use crate::watcher::{Action, Moment, Watcher};
use crate::worker::Running;

mod announce;
mod back;
mod change;
mod compare;
mod connection;
mod console;
mod dead;
pub(crate) mod doctor;
mod ending;
mod event;
mod gates;
mod inspect;
mod keeping;
mod kernel;
mod last_words;
mod left;
mod lost;
mod membership;
mod noting;
mod open_requests;
mod orphans;
mod outbox;
mod output;
mod plan;
mod probes;
mod queries;
mod removal;
mod requests;
mod resume;
mod saves;
mod shown_options;
mod signals;
mod sockets;
mod start_order;
mod startup;
mod tasks;
#[cfg(test)]
mod testing;
mod tickets;
mod undrained;
mod upgrade;
mod watchers;

use announce::Announcements;
use change::Change;
use connection::Connection;
use dead::Dead;
use ending::Ending;
pub use event::{Event, Outcome, Setup, WatcherId};
use open_requests::OpenRequests;
use outbox::Outbox;
use output::Output;
pub use probes::Finding;
use probes::Probes;
use signals::Signals;
use sockets::Sockets;
use start_order::StartOrder;
use startup::Startup;
use tasks::Order;
use undrained::Undrained;
pub use upgrade::{Checked, own_program};
use watchers::{Look, Watchers};

/// Events waiting for the loop; a full queue slows its senders.
const EVENTS: usize = 1024;
/// How long the kernel gets to take what it was told last.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Events handled before watchers are asked what to do: a burst of exits is one decision.
const EVENTS_PER_TURN: usize = 256;

/// Times a watcher is asked what to do next in one turn: each answer may give it, or one that
/// depends on it, something more to do. What is left then is done in the next turn.
const PASSES_PER_TURN: usize = 16;
/// With more watchers than that, builds for debugging do not check those that are not touched.
#[cfg(debug_assertions)]
const CHECKED_WATCHERS: usize = 200;

/// Threads that read `/proc`, each started when it is first needed.
#[derive(Debug, Default)]
struct Threads {
    /// Looks for workers' processes and ends them.
    trees: Option<TreeThread>,
    /// Kills that wait in `trees`.
    kills: tasks::Kills,
    /// Measures processes.
    statistics: Option<Statistics>,
}

/// The manager.
#[derive(Debug)]
pub struct Supervisor {
    config: Arc<Config>,
    startup: Startup,
    watchers: Watchers,
    /// Their numbers by lower-case name.
    keys: HashMap<String, WatcherId>,
    next_id: u32,
    start_order: StartOrder,
    connection: Connection,
    output: Output,
    ending: Ending,
    open_requests: OpenRequests,
    change: Option<Change>,
    /// Changes that wait for the one under way.
    changes: VecDeque<(Request, oneshot::Sender<Reply>)>,
    probes: Probes,
    /// What the gates of all watchers were last set by.
    gated_by: gates::World,
    /// What earlier kernels left running.
    orphans_of_kernels: orphans::Orphans,
    /// The same and the workers, in a file for the next manager.
    noting: noting::Noting,
    /// Workers that have ended.
    dead: Dead,
    threads: Threads,
    sockets: Sockets,
    /// Signals on their way to workers.
    signals: Signals,
    announcements: Announcements,
    events: mpsc::Sender<Event>,
    receiver: mpsc::Receiver<Event>,
    /// Watchers that are gone and whose ended workers the kernel still lists.
    undrained: Undrained,
    /// Where watchers that went lately wrote, and how their workers ended.
    gone: VecDeque<WatcherLogs>,
    /// What the kernel is to keep, and the answers that wait for that.
    outbox: Outbox,
    jitter: RandomState,
    /// Prints what is in no file.
    console: console::Output,
}

impl Supervisor {
    /// A supervisor that has not begun.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        let (events, receiver) = mpsc::channel(EVENTS);
        let config = Arc::new(setup.config);
        let mut supervisor = Self {
            config: config.clone(),
            announcements: Announcements::new(EventLog::new(format!(
                "{:x}-{}",
                epoch_ms(),
                std::process::id()
            ))),
            startup: Startup {
                addresses: setup.addresses,
                program: setup.program,
                arguments: setup.arguments,
                umask: setup.umask,
                at: epoch_seconds(),
            },
            watchers: Watchers::default(),
            keys: HashMap::new(),
            next_id: 0,
            start_order: StartOrder::default(),
            connection: Connection::new(Instant::now()),
            output: Output::default(),
            ending: Ending::new(),
            open_requests: OpenRequests::new(Instant::now()),
            change: None,
            changes: VecDeque::new(),
            probes: Probes::default(),
            gated_by: gates::World::default(),
            orphans_of_kernels: orphans::Orphans::default(),
            noting: noting::Noting::new(Notes::new(setup.directory, &config.namespace)),
            dead: Dead::default(),
            threads: Threads::default(),
            sockets: Sockets::default(),
            signals: Signals::default(),
            events,
            receiver,
            undrained: Undrained::default(),
            gone: VecDeque::new(),
            outbox: Outbox::default(),
            jitter: RandomState::new(),
            console: console::Output::new(setup.console),
        };
        // Until the kernel has told what it keeps, nothing is known but the configuration.
        for watcher in &config.watchers {
            supervisor.insert(Arc::new(watcher.clone()), Kept::default());
        }
        supervisor
    }

    /// Takes a watcher in.
    fn insert(&mut self, config: Arc<WatcherConfig>, kept: Kept) -> WatcherId {
        let id = WatcherId(self.next_id);
        self.next_id += 1;
        self.insert_as(id, config, kept);
        id
    }

    fn insert_as(&mut self, id: WatcherId, config: Arc<WatcherConfig>, kept: Kept) {
        self.keys.insert(config.key.clone(), id);
        let config = match &kept.release {
            Some(release) => {
                let mut pinned = config.as_ref().clone();
                pinned.pin(release);
                Arc::new(pinned)
            }
            None => config,
        };
        let watcher = Watcher::new(config, kept, &self.moment());
        self.watchers.insert(id, watcher);
    }

    /// The watcher whose worker has this serial.
    fn owner_mut(&mut self, serial: u64) -> Option<&mut Watcher> {
        let id = self.watchers.owner(serial)?;
        self.watchers.get_mut(&id)
    }

    /// Every watcher, higher priority first, then by name.
    fn by_priority(&self) -> Vec<WatcherId> {
        let mut order: Vec<WatcherId> = self.watchers.keys().copied().collect();
        order.sort_by_key(|id| {
            self.watchers.get(id).map(|watcher| {
                let config = watcher.config();
                (std::cmp::Reverse(config.priority), config.name.clone())
            })
        });
        order
    }

    /// Where others put events.
    #[must_use]
    pub fn events(&self) -> mpsc::Sender<Event> {
        self.events.clone()
    }

    /// Runs until the manager is to end. Workers that can be left are left.
    ///
    /// # Errors
    /// The namespace belongs to somebody else.
    pub async fn run(mut self) -> Result<Outcome, ManagerError> {
        self.orphans_of_kernels.recall(self.noting.read());
        tasks::watch_paths(self.events.clone(), self.sockets.watch_paths());
        tasks::attach(
            self.config.clone(),
            self.startup.addresses.clone(),
            self.events.clone(),
        );
        while !self.ending.is_done() {
            let deadline = self.deadline();
            tokio::select! {
                event = self.receiver.recv() => match event {
                    Some(event) => self.handle(event),
                    None => break,
                },
                () = sleep_until(deadline) => {}
            }
            // Whoever has something to say at the same moment says it before the decision: looking
            // at every watcher is one piece of work for many answers.
            tokio::task::yield_now().await;
            for _ in 0..EVENTS_PER_TURN {
                match self.receiver.try_recv() {
                    Ok(event) => self.handle(event),
                    Err(_) => break,
                }
            }
            self.advance();
        }
        self.probes.clear();
        let outcome = self.ending.outcome();
        if outcome.is_some()
            && let Some(link) = self.connection.link()
        {
            if outcome != Some(Outcome::Again) {
                tasks::remove_own_sockets(link, &self.config).await;
            }
            // What was asked of the kernel last goes out before the connection does: this question
            // comes behind it.
            let link = link.clone();
            self.flush_saves(&link, LAST_WORDS).await;
            let client = link.client().clone();
            let last = tokio::spawn(async move { client.barrier().await });
            let _ = tokio::time::timeout(LAST_WORDS, last).await;
        }
        if outcome.is_some() {
            self.note_known_last().await;
        }
        self.outbox.pass_answers(Instant::now());
        if let Some(logs) = self.output.take() {
            // It ends within a bound of its own; the loop has nothing else to do any more.
            let _ = tokio::task::spawn_blocking(move || logs.finish()).await;
        }
        self.ending.into_result()
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Attached(link, inventory) => self.attached(*link, inventory),
            Event::Trouble(trouble) => self.connection.set_trouble(trouble),
            Event::Sockets(troubles) => {
                self.sockets.made();
                self.sockets_told(troubles);
            }
            Event::SocketsAgain { tried, failed } => self.sockets_tried(&tried, failed),
            Event::PathGone(name) => {
                self.path_gone(&name, "somebody removed the path of the socket");
            }
            Event::PathThere(name, file) => self.path_there(&name, file),
            Event::PathTold(name, file, own) => self.path_told(name, file, own),
            Event::BoundAnew(name, result) => self.bound_anew(&name, result),
            Event::Heard { serial, lines } => self.heard(serial, lines),
            Event::Listed(number, inventory) => self.listed(number, inventory),
            Event::Kernel(push) => self.told(push),
            Event::Started {
                watcher,
                wid,
                moved,
                result,
            } => self.started(watcher, wid, moved, result),
            Event::Logs(LogReport::LineMatched { serial }) => match self.owner_mut(serial) {
                Some(watcher) => watcher.ready(serial),
                None => self.dead.keep_early_ready(serial),
            },
            Event::Logs(LogReport::Troubles(troubles)) => {
                self.output.told(troubles);
            }
            Event::Asked(asked) => self.asked(asked),
            Event::Quit => self.quit_on_signal(),
            Event::Stop => self.stop_on_signal(),
            Event::Shown(serial) => self.shown(serial),
            Event::ReopenLogs => self.output.reopen(),
            Event::Fatal(error) => self.ending.fail(error),
            Event::CleanedUp(lost) => self.finish_shutdown(&lost),
            // The loop goes round: somebody may wait for it.
            Event::SignalSent => {}
            Event::Found {
                watcher,
                wid,
                serial,
                finding,
            } => self.found(watcher, wid, serial, finding),
            Event::Demanded(id) => {
                self.probes.forget_demand(id);
                if let Some(watcher) = self.watchers.get_mut(&id) {
                    tracing::info!(
                        watcher = watcher.config().name,
                        "starting on demand: a client connects"
                    );
                    watcher.demand();
                }
            }
            Event::Read(read) => self.read(*read),
            Event::SocketsChanged { result, lost, made } => {
                self.sockets_changed(result, lost, &made);
            }
            Event::Left(answers) => self.left_found(answers),
            Event::OrphansFound(look, found) => self.orphans_found(look, found),
            Event::KnownNoted(result) => self.known_noted(result),
            Event::Saved(fates) => self.saves_told(fates),
            Event::ReloadAll => self.reload_all(),
            Event::Upgrade => self.ask_for_upgrade(None),
            Event::UpgradeExamined(fits, asker) => self.upgrade_examined(fits, *asker),
        }
    }

    /// Asks those who may have something to do what it is, and does it.
    fn advance(&mut self) {
        let now = Instant::now();
        self.open_requests.judge_at(now);
        self.refuse_late(now);
        self.tend_orphans(now);
        // What a change of the configuration does next gives watchers something to do, and the
        // other way round.
        loop {
            if let Some(link) = self.connection.link().cloned() {
                self.turn(&link, now);
            }
            self.announce();
            if !self.advance_change() {
                break;
            }
        }
        self.settle_tickets();
        self.outbox.pass_answers(now);
        self.stop_once_connected(now);
        self.note_known(now);
        self.advance_end(now);
    }

    fn turn(&mut self, link: &KernelLink, now: Instant) {
        // First what follows from an exit is kept, then the exit is acknowledged, then its name is
        // used again.
        self.save();
        // Before a start may leave another descriptor under the same name.
        self.send_discards();
        self.queue_acknowledgements();
        self.tell_paths();
        self.tell_console(now);
        self.set_gates();
        self.update_logs();
        self.release(now);
        self.watchers.touch_due(now);
        for _ in 0..PASSES_PER_TURN {
            for id in self.watchers.take(Look::Step) {
                self.step(id, link);
            }
            // One that serves now, or has stopped, may be what others have waited for.
            self.set_gates();
            if !self.watchers.is_touched(Look::Step) {
                break;
            }
        }
        let touched = self.watchers.take(Look::Tend);
        self.tell_freed(&touched);
        self.drop_removed(&touched);
        self.update_logs();
        self.tend_probes(&touched, link);
        self.save();
        #[cfg(debug_assertions)]
        self.check_untouched(now);
        self.send_saves(link, now);
    }

    fn step(&mut self, id: WatcherId, link: &KernelLink) {
        let at = self.moment();
        let Some(watcher) = self.watchers.get_to_step(&id) else {
            return;
        };
        let before = watcher.outline();
        let mut actions = watcher.step(&at);
        // One step may be what makes the next one possible.
        if !actions.is_empty() || watcher.outline() != before {
            self.watchers.touch_for(Look::Step, id);
        }
        // Whoever is to go is asked before somebody new comes.
        actions.sort_by_key(|action| matches!(action, Action::Start { .. }));
        for action in actions {
            self.perform(id, action, link);
        }
    }

    /// Panics if a watcher that is not touched has something to do: it would wait for an event that
    /// may not come.
    #[cfg(debug_assertions)]
    fn check_untouched(&mut self, now: Instant) {
        if self.watchers.len() > CHECKED_WATCHERS || self.watchers.is_touched(Look::Step) {
            return;
        }
        assert!(self.watchers.is_index_right(), "the index is out of date");
        let at = Moment {
            now,
            ..self.moment()
        };
        let ids: Vec<WatcherId> = self.watchers.keys().copied().collect();
        for id in ids {
            let gate = self.gate_of(id);
            let Some(watcher) = self.watchers.get(&id) else {
                continue;
            };
            let name = &watcher.config().name;
            if !self.watchers.is_touched(Look::Gate) {
                assert_eq!(Some(watcher.gate()), gate.as_ref(), "gate of {name}");
            }
            if watcher.deadline().is_none_or(|deadline| deadline > now) {
                let mut copy = watcher.clone();
                assert_eq!(copy.step(&at), Vec::new(), "{name} has something to do");
                assert_eq!(copy.kept(), watcher.kept(), "{name} has something to keep");
                assert_eq!(copy.outline(), watcher.outline(), "{name} has changed");
            }
            if !self.outbox.is_closed() {
                assert_eq!(
                    self.outbox.told_of(id),
                    Some(watcher.kept()),
                    "{name} is saved"
                );
            }
        }
    }

    /// Has one action done.
    fn perform(&mut self, id: WatcherId, action: Action, link: &KernelLink) {
        let Some(config) = self
            .watchers
            .get(&id)
            .map(|watcher| watcher.config().clone())
        else {
            return;
        };
        match action {
            Action::Start { wid, generation } => {
                let order = Order {
                    watcher: id,
                    wid,
                    generation,
                };
                let watcher = self.watchers.get(&id);
                let failed = watcher.and_then(|watcher| watcher.kept().failed_release.clone());
                let signals = self.signals.take_stops(id);
                let kept = self.outbox.pass();
                tasks::start(
                    link.clone(),
                    config,
                    order,
                    failed,
                    signals,
                    kept,
                    self.events.clone(),
                );
            }
            Action::Stop(process) => {
                let own = self.watchers.get(&id);
                let own = own.and_then(|watcher| watcher.own_signal(process.serial));
                let stop_signal = own.unwrap_or(config.stop_signal);
                let signal = stop_signal.number();
                let pid = process.pid.unsigned_abs();
                self.publish(id, &EventKind::Kill { pid, signal });
                tracing::info!(watcher = config.name, pid = process.pid, signal = %stop_signal, "stopping worker");
                let reach = tasks::stop_reach(config.stop_children);
                self.send_stop(id, process, signal, reach, link);
            }
            Action::Left(process, due) => self.order_left(id, process, due),
            Action::Kill(process) => {
                let (pid, signal) = (process.pid.unsigned_abs(), nix::libc::SIGKILL);
                self.publish(id, &EventKind::Kill { pid, signal });
                tracing::warn!(
                    watcher = config.name,
                    pid = process.pid,
                    "killing worker and everything it started"
                );
                self.kill_tree(id, process);
            }
        }
    }

    /// Sends a stop signal, once it is noted who belongs to the worker.
    fn send_stop(
        &mut self,
        id: WatcherId,
        process: Running,
        signal: i32,
        reach: Whom,
        link: &KernelLink,
    ) {
        let noted = self.note_tree(id, &process);
        let sent = tasks::stop(
            link.clone(),
            process,
            signal,
            reach,
            noted,
            self.outbox.pass(),
            self.events.clone(),
        );
        self.signals.stop(id, sent);
    }

    /// Lets watchers start in the order of their priority, each when the one before has been
    /// started.
    fn release(&mut self, now: Instant) {
        let unready = self.start_order.is_paused(now) || self.output.is_awaited(now);
        if self.connection.link().is_none() || unready || !self.orphans_of_kernels.is_known() {
            return;
        }
        self.output.stop_waiting();
        let link = self.connection.link().cloned();
        while let Some(id) = self.start_order.first() {
            let (Some(watcher), Some(link)) = (self.watchers.get_mut(&id), &link) else {
                // It was removed meanwhile.
                self.start_order.pop();
                continue;
            };
            let idle = watcher.is_launched();
            watcher.release();
            self.step(id, link);
            if !self.watchers.get(&id).is_none_or(Watcher::is_launched) {
                return;
            }
            self.start_order.pop();
            // A watcher that was there already, or is not to run, holds nobody up.
            if !idle && !self.config.warmup_delay.is_zero() {
                self.start_order.pause(now + self.config.warmup_delay);
                return;
            }
        }
    }

    fn deadline(&mut self) -> Option<Instant> {
        let saves = self
            .outbox
            .sends_at()
            .filter(|_| self.connection.is_connected());
        let watchers = if self.connection.link().is_none() {
            None
        } else if self.watchers.is_touched(Look::Step) || self.watchers.is_touched(Look::Gate) {
            Some(Instant::now())
        } else {
            self.watchers.deadline()
        };
        watchers
            .into_iter()
            .chain(self.start_order.deadline())
            .chain(self.output.deadline())
            .chain(self.ending.deadline())
            .chain(self.orphans_of_kernels.deadline())
            .chain(self.noting.deadline(Instant::now()))
            .chain(self.late_deadline())
            .chain(self.outbox.answers_at())
            .chain(saves)
            .chain(self.proof_deadline())
            .chain(self.console.deadline())
            .min()
    }

    fn moment(&self) -> Moment {
        let now = Instant::now();
        Moment {
            now,
            epoch_ms: epoch_ms(),
            jitter: self.jitter.hash_one(now),
        }
    }
}

fn epoch_ms() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}
