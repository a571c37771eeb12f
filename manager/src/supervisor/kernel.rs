//! What the kernel tells and what becomes of it: adoption, exits, starts, what ended workers leave
//! behind.

use std::collections::BTreeSet;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use papa_client::Push;
use papa_config::worker_of;
use papa_logs::thread::{LogSettings, LogThread};
use papa_protocol::json::push::{Event as KernelEvent, EventType};
use papa_protocol::json::reply::ErrorCode;
use papa_protocol::process::{Exit, Process};
use papa_test_hooks::failpoint;

use crate::config::change::{Given, with_options};
use crate::config::{Config, Release, WatcherConfig};
use crate::control::events::EventKind;
use crate::error::ManagerError;
use crate::kernel_link::{Inventory, KernelLink, settings};
use crate::note::Note;
use crate::state::{self, Kept};
use crate::supervisor::resume::Resumed;
use crate::supervisor::{Event, Look, Supervisor, WatcherId, tasks};
use crate::watcher::{Ended, Moment, StartFailure, Unseen};
use crate::worker::Running;

impl Supervisor {
    pub(super) fn attached(&mut self, link: KernelLink, mut inventory: Inventory) {
        let change = inventory.change.take();
        let resumed = change
            .as_ref()
            .and_then(|kept| Resumed::read(kept, &self.config));
        let is_unreadable = change.is_some() && resumed.is_none();
        if is_unreadable {
            let name = state::change_value(link.namespace());
            self.keep(name, None);
        }
        let (resumed, config) = resumed.unzip();
        if let Some(config) = &config {
            self.config = config.clone();
        }
        self.pin_releases(&mut inventory);
        self.insert_all(&mut inventory.kept, &inventory.processes, resumed.as_ref());
        self.orphans_of_kernels.look_anew(Instant::now());
        self.connection.attached(link);
        self.settle_umask(inventory.umask);
        self.retry_sockets();
        self.take_over(inventory.added, inventory.kept);
        self.know_before_rolls(resumed.as_ref());
        self.take_over_left(inventory.left);
        self.take_over_ends(inventory.ends);
        self.start_logs();
        let outlived = self.with_sockets_of_before(&inventory.processes);
        self.dead.set_words(inventory.words);
        self.reconcile(inventory.processes);
        self.dead.forget_words();
        failpoint::reach("adopt.reconciled");
        self.start_order.set(self.by_priority());
        self.ending.attached();
        if let (Some(resumed), Some(config)) = (resumed, config) {
            self.resume_change(resumed, &config);
        }
        if is_unreadable && let Some(link) = self.connection.link() {
            tasks::abandon_change(link.clone());
        }
        self.replace_workers(outlived);
        self.ask_early();
    }

    pub(super) fn start_logs(&mut self) {
        let watchers = self.logged();
        let any = watchers.iter().any(|watcher| watcher.is_logged());
        let settings = LogSettings {
            addresses: self.startup.addresses.clone(),
            namespace: self.config.namespace.clone(),
            watchers,
        };
        let events = self.events.clone();
        let report = move |report| events.try_send(Event::Logs(report)).is_ok();
        match LogThread::start(settings, report) {
            Ok(thread) => {
                self.output.started(thread, any, Instant::now());
            }
            Err(error) => {
                tracing::error!(%error, "cannot start the log thread; output stays in the kernel");
                self.output.told(vec![format!("logs: {error}")]);
            }
        }
    }

    /// Compares what there is with what we know: after a start of ours, or of the kernel.
    pub(super) fn reconcile(&mut self, processes: Vec<Process>) {
        let listed: HashSet<u64> = processes.iter().map(|process| process.serial.0).collect();
        let known_until = self.connection.known_until();
        let at = self.moment();
        for watcher in self.watchers.values_mut() {
            let gone: Vec<u64> = watcher
                .workers()
                .values()
                .filter_map(|worker| Some(worker.process()?.serial))
                // One that was started after the list was asked for is not on it.
                .filter(|serial| !listed.contains(serial) && *serial <= known_until)
                .collect();
            for serial in gone {
                watcher.ended(serial, Ended::Unknown, &at);
            }
            watcher.forget_ended(|serial| listed.contains(&serial));
        }
        self.dead.retain(&listed);
        self.orphans_of_kernels.retain_workers(&listed, known_until);
        self.keep_undrained(&listed);
        let mut foreign = 0;
        for process in processes {
            let worker = worker_of(&self.config.namespace, &process.name)
                .and_then(|(key, wid)| Some((*self.keys.get(key)?, wid)));
            match worker {
                Some((id, wid)) => self.reconcile_one(id, wid, &process),
                None if self.undrained.has_worker(process.serial.0) => {}
                None => foreign += 1,
            }
        }
        if foreign > 0 {
            tracing::warn!(
                foreign,
                "processes of no known watcher are in our namespace and are left alone"
            );
        }
    }

    pub(super) fn reconcile_one(&mut self, id: WatcherId, wid: u32, process: &Process) {
        let at = self.moment();
        let Some(watcher) = self.watchers.get_mut(&id) else {
            return;
        };
        let running = running(process, &at);
        if process.running {
            tracing::debug!(
                watcher = watcher.config().name,
                wid,
                pid = running.pid,
                "found running"
            );
            let known = watcher.workers().values().any(|worker| {
                worker
                    .process()
                    .is_some_and(|there| there.serial == running.serial)
            });
            let note = Note::of(process);
            let generation = note.as_ref().map(|note| note.generation);
            let noted = note.and_then(|note| note.settings);
            let namespace = &self.config.namespace;
            let is_other = |config: &Arc<WatcherConfig>| {
                !known && noted.is_some() && noted != settings(config, namespace, wid)
            };
            let outdated = is_other(watcher.config());
            let outdated_before = watcher.config_before_roll().is_some_and(is_other);
            watcher.adopt(wid, running, generation, &at);
            if self.dead.take_early_ready(running.serial) {
                watcher.ready(running.serial);
            }
            if outdated {
                watcher.mark_outdated(running.serial);
            }
            if outdated_before {
                watcher.mark_outdated_before_roll(running.serial);
            }
            if !known {
                self.publish_spawn(id, wid, &running);
            }
            self.note_worker(id, wid, process);
            return;
        }
        self.orphans_of_kernels.forget_worker(running.serial);
        let how = process.exit.as_ref().map_or(Ended::Unknown, ended);
        let exit = process.exit.as_ref();
        let end = self.note_end(running.serial, exit);
        self.dead.stop_hearing(running.serial);
        let Some(watcher) = self.watchers.get_mut(&id) else {
            return;
        };
        let worker = watcher.ended(running.serial, how, &at);
        if let Some((wid, _)) = worker {
            if let Some(end) = end {
                self.publish(id, &EventKind::Reap(Box::new(end)));
            }
            self.discard_gate(id, wid);
        } else {
            let ran = process
                .exit
                .as_ref()
                .map_or(0, |exit| exit.stamp_us.saturating_sub(process.started_us));
            let Some(watcher) = self.watchers.get_mut(&id) else {
                return;
            };
            if !watcher.knows_end(running.serial) {
                let lines = self.dead.take_words(running.serial);
                let end = running.end(wid, exit, false, lines);
                watcher.note_last_words(end);
            }
            let unseen = Unseen {
                wid,
                serial: running.serial,
                process: running,
                generation: Note::of(process).map_or(0, |note| note.generation),
                ran: Duration::from_micros(ran),
                how,
            };
            watcher.ended_unseen(&unseen, &at);
        }
        self.dealt_with(id, running.serial);
    }

    pub(super) fn told(&mut self, push: Push) {
        match push {
            Push::Event(event) => self.kernel_event(*event),
            Push::Disconnected { reason } => {
                tracing::warn!(reason, "the kernel is gone; waiting for it");
                self.connection.lost(&reason, Instant::now());
            }
            Push::Reconnected(new) => {
                tracing::info!(incarnation = new.hello.incarnation, "the kernel is back");
                self.orphans_of_kernels.look(Instant::now());
                if !self.connection.back(new.hello.clone()) {
                    self.forget_kernel();
                }
                let workers = self
                    .watchers
                    .values()
                    .flat_map(|known| known.workers().values());
                let serials = workers.filter_map(|worker| Some(worker.process()?.serial));
                let known_until = serials.max().unwrap_or(0);
                self.connection.ask_list(known_until);
                // Should this be another kernel, it keeps nothing yet.
                self.outbox.tell_all_again();
                self.watchers.touch_all_for(Look::Save);
                if let Some(link) = self.connection.link() {
                    // Refused perhaps because of our own old connection, which the kernel still
                    // takes for alive.
                    let claim = !new.claims_refused.is_empty();
                    let subscribe = !new.subscriptions_refused.is_empty();
                    tasks::list_again(
                        self.connection.reconnections(),
                        link.clone(),
                        self.config.clone(),
                        claim,
                        subscribe,
                        self.events.clone(),
                    );
                }
            }
            Push::Lost(lost) => {
                self.ending.fail(ManagerError::TakenOver {
                    namespace: lost.namespace.to_string(),
                    by: lost.by,
                });
            }
            Push::Shutdown(shutdown) => {
                tracing::warn!(
                    signal = shutdown.signal,
                    "the kernel was asked to end; it stays for our workers' sake"
                );
            }
            // What was to be forgotten was not there.
            Push::Failed(failure) if failure.code == ErrorCode::NotFound => {
                tracing::debug!(%failure, "the kernel refused a request");
            }
            Push::Failed(failure) => tracing::warn!(%failure, "the kernel refused a request"),
            Push::Output { .. } | Push::End(_) | Push::Exit(_) => {}
        }
    }

    pub(super) fn kernel_event(&mut self, event: KernelEvent) {
        let Some(serial) = event.serial.map(|serial| serial.0) else {
            return;
        };
        match event.kind {
            EventType::Exited => {
                if let Some(exit) = event.process.and_then(|process| process.exit) {
                    self.exited(serial, exit);
                }
            }
            EventType::Removed => self.forgotten(serial),
            EventType::Made
            | EventType::SocketMade
            | EventType::SocketRemoved
            | EventType::Unknown => {}
        }
    }

    pub(super) fn exited(&mut self, serial: u64, exit: Exit) {
        failpoint::reach("exit.noticed");
        if let Some(watcher) = self.owner_mut(serial) {
            watcher.ending(serial, &exit);
        }
        if !self.hear_first(serial, &exit) {
            self.ended_now(serial, exit);
        }
    }

    /// What follows from an exit.
    pub(super) fn ended_now(&mut self, serial: u64, exit: Exit) {
        let at = self.moment();
        self.orphans_of_kernels.forget_worker(serial);
        let end = self.note_end(serial, Some(&exit));
        let owner = self.watchers.owner(serial);
        let found = owner.and_then(|id| {
            let watcher = self.watchers.get_mut(&id)?;
            Some((id, watcher.ended(serial, ended(&exit), &at)?))
        });
        match found {
            Some((id, (wid, worker))) => {
                if worker.retiring {
                    failpoint::reach("reload.gone");
                }
                if let Some(end) = end {
                    self.publish(id, &EventKind::Reap(Box::new(end)));
                }
                self.discard_gate(id, wid);
                self.dealt_with(id, serial);
            }
            // Perhaps of a start whose answer is still on its way.
            None => self.dead.keep_early(serial, exit),
        }
    }

    /// Keeper and kernel are gone together, and with them everything they knew.
    fn forget_kernel(&mut self) {
        tracing::error!(
            "the kernel was lost with everything it held; what it had started runs on as orphans"
        );
        self.orphans_of_kernels.lose_workers();
        self.orphans_of_kernels.look_anew(Instant::now());
        self.sockets.lose();
        if let Some(link) = self.connection.link() {
            link.forget_sockets();
        }
        for watcher in self.watchers.values_mut() {
            watcher.forget_kernel();
        }
        self.dead.forget_kernel();
        self.console.forget_all();
        let done = self.undrained.retain(&HashSet::new());
        self.drained(&done);
        self.outbox.forget_exits();
        self.probes.clear();
    }

    /// The kernel has forgotten an ended process.
    fn forgotten(&mut self, serial: u64) {
        self.dead.drained(serial);
        self.console.forget(serial);
        let done = self.undrained.forget(serial);
        self.drained(done.as_slice());
        if let Some(watcher) = self.owner_mut(serial)
            && watcher.kept().ended.contains(&serial)
        {
            watcher.forget_ended(|known| known != serial);
        }
    }

    /// Watchers of which there is something stay with the release they had: a link that moved is a
    /// difference to be applied, and may lead to a release that failed.
    fn pin_releases(&mut self, inventory: &mut Inventory) {
        let namespace = self.config.namespace.clone();
        let there = inventory.processes.iter();
        let there = there.filter_map(|process| worker_of(&namespace, &process.name));
        let there: BTreeSet<String> = there.map(|(key, _)| key.to_owned()).collect();
        for (key, kept) in &mut inventory.kept {
            if kept.failed_release.is_none() && !there.contains(key) {
                kept.release = None;
            }
        }
        let mut config = self.config.as_ref().clone();
        for watcher in &mut config.watchers {
            let kept = inventory.kept.get(&watcher.key);
            if let Some(release) = kept.and_then(|kept| kept.release.as_ref()) {
                watcher.pin(release);
            }
        }
        self.config = Arc::new(config);
    }

    pub(super) fn started(
        &mut self,
        id: WatcherId,
        wid: u32,
        moved: Option<Release>,
        result: Result<Process, StartFailure>,
    ) {
        let at = self.moment();
        let Some(watcher) = self.watchers.get_mut(&id) else {
            return;
        };
        match result {
            Ok(process) if process.running => {
                let serial = process.serial.0;
                tracing::info!(
                    watcher = watcher.config().name,
                    wid,
                    pid = process.pid,
                    "worker started"
                );
                let running = running(&process, &at);
                let noted = Note::of(&process).map(|note| note.generation);
                watcher.started(wid, running, noted, &at);
                watcher.started_in(moved);
                if self.dead.take_early_ready(serial) {
                    watcher.ready(serial);
                }
                if watcher.is_rolling() {
                    failpoint::reach("reload.started");
                }
                self.publish_spawn(id, wid, &running);
                self.note_worker(id, wid, &process);
                if let Some(exit) = self.dead.take_early(serial) {
                    self.exited(serial, exit);
                }
            }
            Ok(process) => {
                // One that has ended and still had the name.
                watcher.start_failed(wid, StartFailure::Occupied, &at);
                self.acknowledge(id, process.serial.0);
            }
            Err(failure) => watcher.start_failed(wid, failure, &at),
        }
        // Nobody is left whose exit may have come before the answer to its start.
        if self.dead.has_early() && !self.watchers.are_starting() {
            self.dead.forget_early();
        }
    }

    /// The exit is dealt with: the kernel may forget the process once its output is written too.
    /// Told to the kernel only after it keeps what follows from the exit: killed in between, we see
    /// the exit again.
    pub(super) fn acknowledge(&mut self, id: WatcherId, serial: u64) {
        self.dead.acknowledge(id, serial);
    }

    pub(super) fn queue_acknowledgements(&mut self) {
        for (id, serial) in self.dead.take_unacknowledged() {
            let watcher = self.watchers.get(&id);
            let discard = watcher.is_some_and(|watcher| !watcher.config().is_logged());
            let key = watcher.map(|watcher| watcher.config().key.as_str());
            if discard
                && let Some(key) = key
                && self.console.awaits(id, key, serial, Instant::now())
            {
                continue;
            }
            self.outbox.acknowledge(serial, discard);
        }
    }

    /// The console, which has held back the acknowledgement of an ended process, does not need it
    /// any more.
    pub(super) fn forget_shown(&mut self, id: WatcherId, serial: u64) {
        let watcher = self.watchers.get(&id);
        let discard = watcher.is_none_or(|watcher| !watcher.config().is_logged());
        self.outbox.acknowledge(serial, discard);
    }
}

/// The file's settings with what was set at run time, as far as that fits the file still.
pub(super) fn with_what_was_set(
    base: &Config,
    config: &Arc<WatcherConfig>,
    mut kept: Kept,
) -> (Arc<WatcherConfig>, Kept) {
    if kept.set.is_empty() && kept.env.is_none() {
        return (config.clone(), kept);
    }
    let given = Given {
        options: &kept.set,
        env: kept.env.as_ref(),
    };
    match with_options(base, &config.name, given) {
        Ok(changed) => (Arc::new(changed), kept),
        Err(errors) => {
            tracing::warn!(watcher = config.name, %errors, "discarding a setting made at run time that the file no longer allows");
            kept.set.clear();
            kept.env = None;
            (config.clone(), kept)
        }
    }
}

fn running(process: &Process, at: &Moment) -> Running {
    let age_us = at
        .epoch_ms
        .saturating_mul(1000)
        .saturating_sub(process.started_us);
    let age = Duration::from_micros(age_us);
    Running {
        serial: process.serial.0,
        pid: i32::try_from(process.pid).unwrap_or(0),
        started_us: process.started_us,
        started: at.now.checked_sub(age).unwrap_or(at.now),
    }
}

fn ended(exit: &Exit) -> Ended {
    match (exit.code, exit.signal) {
        (_, Some(signal)) => Ended::Signal {
            signal,
            core: exit.core,
        },
        (Some(code), None) => Ended::Code(code),
        (None, None) => Ended::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::testing;
    use papa_logs::thread::LogReport;
    use serde_json::json;

    #[test]
    fn a_worker_that_was_ready_before_its_start_was_answered_is_ready() {
        let mut supervisor = testing::supervisor("[watcher:w]\ncmd = true\nready = log:^serving\n");
        let id = supervisor.keys["w"];
        let at = supervisor.moment();
        let watcher = supervisor.watchers.get_mut(&id).unwrap();
        watcher.release();
        watcher.step(&at);
        let process = serde_json::from_value(json!({
            "serial": 7, "name": "circus.w.1", "pid": 100, "running": true, "started_us": 1, "argv": ["true"],
            "ends": {}, "ledger": { "captured": 0, "delivered": 0, "acknowledged": 0, "dropped": 0 }, "overflow": "block", "reel_bytes": 4096, "consumer": false,
        }));
        supervisor.handle(Event::Logs(LogReport::LineMatched { serial: 7 }));
        supervisor.handle(Event::Started {
            watcher: id,
            wid: 1,
            moved: None,
            result: Ok(process.unwrap()),
        });
        let watcher = supervisor.watchers.get(&id).unwrap();
        assert!(watcher.workers()[&1].is_serving());
    }
}
