//! Questions to workers and sockets while they are open: is it ready, is it well, does somebody
//! want it?
//!
//! Owns which questions are being asked at the moment; one task each. Leaves to others: how to ask
//! (`probe`), what an answer means (`watcher`). Invariant: a question is open only as long as the
//! state that asks for it lasts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::unistd::User;
use papa_protocol::process::Account;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::config::{HealthCheck, Readiness, WatcherConfig, socket_name};
use crate::kernel_link::KernelLink;
use crate::probe::ready::Gate;
use crate::probe::{ProbeError, demand, health};
use crate::supervisor::{Event, Supervisor, WatcherId};
use crate::watcher::{Action, TELL_WHY};
use crate::worker::{Running, State};

/// Pause before a socket that cannot be watched is tried again.
const DEMAND_AGAIN: Duration = Duration::from_secs(1);

/// What came out.
#[derive(Debug)]
pub enum Finding {
    /// The worker serves.
    Ready,
    /// It does not, and will not in time.
    NotReady(String),
    /// It has failed so many checks in a row, or none again; checking goes on.
    Failing(u32),
    /// It failed as many checks in a row as it may.
    Unwell(String),
}

/// What a task asks a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    Ready,
    Health,
}

/// One open question.
#[derive(Debug)]
struct Open {
    question: Question,
    /// With these settings.
    config: Arc<WatcherConfig>,
    task: AbortHandle,
}

impl Open {
    fn is(&self, question: Question, config: &Arc<WatcherConfig>) -> bool {
        let same = |other: &WatcherConfig| match question {
            Question::Ready => config.ready == other.ready,
            Question::Health => config.health == other.health,
        };
        self.question == question && (Arc::ptr_eq(&self.config, config) || same(&self.config))
    }
}

/// The questions that are open.
#[derive(Debug, Default)]
pub(super) struct Probes {
    /// By watcher and serial of the worker.
    workers: BTreeMap<(WatcherId, u64), Open>,
    demands: HashMap<WatcherId, Demand>,
    /// Sockets were being changed when demands were looked at.
    changing: bool,
    /// Readiness descriptors that are not needed any more.
    discards: Vec<Gate>,
}

/// Somebody waits for a connection to a watcher's sockets.
#[derive(Debug)]
struct Demand {
    /// With these settings.
    config: Arc<WatcherConfig>,
    task: AbortHandle,
}

impl Demand {
    fn is(&self, config: &Arc<WatcherConfig>) -> bool {
        Arc::ptr_eq(&self.config, config) || self.config.demand_sockets() == config.demand_sockets()
    }
}

impl Probes {
    /// Has a readiness descriptor given back to the kernel, once it is kept that the worker is ready.
    pub(super) fn discard(&mut self, gate: Gate) {
        self.discards.push(gate);
    }

    /// The watcher was wanted.
    pub(super) fn forget_demand(&mut self, watcher: WatcherId) {
        self.demands.remove(&watcher);
    }

    /// Closes everything.
    pub(super) fn clear(&mut self) {
        let workers = std::mem::take(&mut self.workers);
        let workers = workers.into_values().map(|open| open.task);
        for task in workers.chain(self.demands.drain().map(|(_, demand)| demand.task)) {
            task.abort();
        }
    }
}

impl Supervisor {
    /// Opens the questions the present state of the watchers touched asks for and closes the
    /// others.
    pub(super) fn tend_probes(&mut self, touched: &BTreeSet<WatcherId>, link: &KernelLink) {
        for id in touched {
            self.tend_workers(*id, link);
        }
        // Whoever waits has the sockets: those that are to be opened anew would find their address
        // taken, by one nobody serves.
        let changing = self.is_changing_sockets();
        if std::mem::replace(&mut self.probes.changing, changing) == changing {
            for id in touched {
                self.tend_demand(*id, changing, link);
            }
        } else {
            let all: Vec<WatcherId> = self.watchers.keys().copied().collect();
            for id in all.into_iter().chain(touched.iter().copied()) {
                self.tend_demand(id, changing, link);
            }
        }
    }

    fn tend_workers(&mut self, id: WatcherId, link: &KernelLink) {
        let mut open: HashMap<u64, Question> = HashMap::new();
        let watcher = self.watchers.get(&id);
        let asks = |config: &WatcherConfig| config.ready.is_some() || config.health.is_some();
        if let Some(watcher) = watcher.filter(|watcher| asks(watcher.config())) {
            let config = watcher.config();
            for (wid, worker) in watcher.workers() {
                let (question, process, limit) = match worker.state {
                    State::Waiting {
                        process,
                        settles: None,
                        limit,
                    } => (Question::Ready, process, limit),
                    State::Serving(process) if config.health.is_some() => {
                        (Question::Health, process, process.started)
                    }
                    _ => continue,
                };
                open.insert(process.serial, question);
                let asked = self.probes.workers.get(&(id, process.serial));
                if asked.is_some_and(|asked| asked.is(question, config)) {
                    continue;
                }
                let to = Worker {
                    link: link.clone(),
                    config: config.clone(),
                    watcher: id,
                    wid: *wid,
                    process,
                    events: self.events.clone(),
                };
                let task = match question {
                    Question::Ready => to.ask_ready(limit),
                    Question::Health => {
                        let failures = watcher.kept().failures.get(&process.serial);
                        to.ask_health(failures.copied().unwrap_or(0))
                    }
                };
                let now = Open {
                    question,
                    config: config.clone(),
                    task,
                };
                if let Some(old) = self.probes.workers.insert((id, process.serial), now) {
                    old.task.abort();
                }
            }
        }
        let of_watcher = self.probes.workers.range((id, 0)..=(id, u64::MAX));
        let closed: Vec<(WatcherId, u64)> = of_watcher
            .filter(|((_, serial), asked)| open.get(serial) != Some(&asked.question))
            .map(|(key, _)| *key)
            .collect();
        for key in closed {
            if let Some(asked) = self.probes.workers.remove(&key) {
                asked.task.abort();
            }
        }
    }

    fn tend_demand(&mut self, id: WatcherId, changing: bool, link: &KernelLink) {
        let watcher = self.watchers.get(&id);
        let watcher = watcher.filter(|watcher| !changing && watcher.is_dormant());
        if let Some(demand) = self.probes.demands.get(&id)
            && !watcher.is_some_and(|watcher| demand.is(watcher.config()))
        {
            demand.task.abort();
            self.probes.demands.remove(&id);
        }
        let Some(watcher) = watcher else { return };
        if self.probes.demands.contains_key(&id) {
            return;
        }
        let namespace = &self.config.namespace;
        let sockets = watcher.config().demand_sockets();
        let names = sockets
            .iter()
            .map(|name| socket_name(namespace, name))
            .collect();
        let task = wait_for_demand(link.clone(), id, names, self.events.clone());
        let config = watcher.config().clone();
        self.probes.demands.insert(id, Demand { config, task });
    }

    /// A question was answered.
    pub(super) fn found(&mut self, id: WatcherId, wid: u32, serial: u64, finding: Finding) {
        if let Finding::Failing(failures) = finding {
            if let Some(watcher) = self.watchers.get_mut(&id) {
                watcher.note_failures(serial, failures);
            }
            return;
        }
        // The task has ended; should the state stay, it is asked anew.
        let question = match finding {
            Finding::Ready | Finding::NotReady(_) => Question::Ready,
            Finding::Failing(_) | Finding::Unwell(_) => Question::Health,
        };
        if self
            .probes
            .workers
            .get(&(id, serial))
            .is_some_and(|open| open.question == question)
        {
            self.probes.workers.remove(&(id, serial));
        }
        let at = self.moment();
        let Some(watcher) = self.watchers.get_mut(&id) else {
            return;
        };
        match finding {
            Finding::Ready => {
                watcher.ready(serial);
                if let Some(link) = self.connection.link()
                    && held_gate(watcher.config())
                {
                    let gate = gate(link, watcher.config(), wid);
                    self.probes.discards.push(gate);
                }
            }
            Finding::NotReady(reason) => {
                let asked = watcher.not_ready(serial, Some(&reason), &at);
                self.stop_now(id, asked);
            }
            Finding::Failing(_) => {}
            Finding::Unwell(reason) => {
                let asked = watcher.unwell(serial, &reason, &at);
                self.stop_now(id, asked);
            }
        }
    }

    /// What a predecessor of ready workers was told with is given back, after it is kept that they
    /// are ready.
    pub(super) fn send_discards(&mut self) {
        for gate in self.probes.discards.drain(..) {
            tokio::spawn(async move {
                if let Err(error) = gate.discard().await {
                    tracing::debug!(%error, "a readiness descriptor stays in the kernel");
                }
            });
        }
    }

    fn stop_now(&mut self, id: WatcherId, process: Option<Running>) {
        if let (Some(process), Some(link)) = (process, self.connection.link().cloned()) {
            self.perform(id, Action::Stop(process), &link);
        }
    }
}

/// Whether a worker of this watcher says itself that it is ready, by something the kernel holds.
pub(super) fn held_gate(config: &WatcherConfig) -> bool {
    matches!(config.ready, Some(Readiness::Notify | Readiness::Fd(_)))
}

/// The readiness of worker `wid`.
pub(super) fn gate(link: &KernelLink, config: &WatcherConfig, wid: u32) -> Gate {
    let namespace = link.namespace();
    let worker = config.worker_name(namespace, wid);
    Gate::new(link.client().clone(), namespace, &worker, wid)
}

/// The worker a question goes to.
struct Worker {
    link: KernelLink,
    config: Arc<WatcherConfig>,
    watcher: WatcherId,
    wid: u32,
    process: Running,
    events: mpsc::Sender<Event>,
}

impl Worker {
    fn ask_ready(self, limit: Instant) -> AbortHandle {
        let task = tokio::spawn(async move {
            // The log thread tells of lines.
            let Some(ready) = self
                .config
                .ready
                .clone()
                .filter(|ready| !matches!(ready, Readiness::Log(_)))
            else {
                return std::future::pending().await;
            };
            let deadline = limit.checked_sub(TELL_WHY).unwrap_or(limit);
            let gate = gate(&self.link, &self.config, self.wid);
            let finding = match gate.wait(&ready, self.uid().await, deadline).await {
                Ok(()) => Finding::Ready,
                Err(error @ ProbeError::NotPrepared(_)) => {
                    tracing::warn!(watcher = self.config.name, %error, "cannot ask whether the worker is ready; treating it as ready");
                    Finding::Ready
                }
                Err(error) => Finding::NotReady(error.to_string()),
            };
            self.tell(finding).await;
        });
        task.abort_handle()
    }

    /// `failures`: as many as a predecessor has seen in a row.
    fn ask_health(self, failures: u32) -> AbortHandle {
        let task = tokio::spawn(async move {
            let Some(check) = self.config.health.clone() else {
                return;
            };
            let reason = self.fail_checks(&check, failures).await;
            self.tell(Finding::Unwell(reason)).await;
        });
        task.abort_handle()
    }

    /// Checks until as many in a row have failed as may; answers what the last one said.
    async fn fail_checks(&self, check: &HealthCheck, mut failures: u32) -> String {
        loop {
            tokio::time::sleep(check.interval).await;
            let pid = self.process.pid.unsigned_abs();
            match health(&check.probe, &self.config, self.wid, pid, check.timeout).await {
                Ok(()) if failures == 0 => {}
                Ok(()) => {
                    failures = 0;
                    self.tell(Finding::Failing(0)).await;
                }
                Err(error) => {
                    failures += 1;
                    tracing::warn!(watcher = self.config.name, pid, failures, %error, "health check failed");
                    if failures >= check.retries.max(1) {
                        return error.to_string();
                    }
                    self.tell(Finding::Failing(failures)).await;
                }
            }
        }
    }

    async fn tell(&self, finding: Finding) {
        let event = Event::Found {
            watcher: self.watcher,
            wid: self.wid,
            serial: self.process.serial,
            finding,
        };
        let _ = self.events.send(event).await;
    }

    /// Who the worker runs as, if that was asked for. Looking a name up may take its time.
    async fn uid(&self) -> Option<u32> {
        match self.config.uid.clone()? {
            Account::Id(uid) => Some(uid),
            Account::Name(name) => {
                let found = tokio::task::spawn_blocking(move || User::from_name(&name)).await;
                found.ok()?.ok()?.map(|user| user.uid.as_raw())
            }
        }
    }
}

fn wait_for_demand(
    link: KernelLink,
    watcher: WatcherId,
    sockets: Vec<String>,
    events: mpsc::Sender<Event>,
) -> AbortHandle {
    let task = tokio::spawn(async move {
        loop {
            match demand::wait(link.client(), &sockets).await {
                Ok(_) => {
                    let _ = events.send(Event::Demanded(watcher)).await;
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot watch the sockets of an on_demand watcher");
                    tokio::time::sleep(DEMAND_AGAIN).await;
                }
            }
        }
    });
    task.abort_handle()
}
