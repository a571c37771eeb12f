//! The ends of the manager: quit, which leaves the workers, and shutdown, which leaves nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::config::SignalNumber;
use crate::control::message::{Reply, Request, ShutdownReply};
use crate::control::server::now as epoch_seconds;
use crate::error::ManagerError;
use crate::pidfd::Whom;
use crate::supervisor::{Outcome, Phase, Supervisor, tasks};

/// How long trailing output may take to reach the log files when everything is shut down.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// The same where all of it goes to files that are known not to take it.
const BROKEN_DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// How long a signal to stop everything waits for a kernel: one that was killed is back sooner.
const KERNEL_PATIENCE: Duration = Duration::from_secs(10);

impl Supervisor {
    /// TERM. The second one does not wait for what the first has asked to stop.
    pub(super) fn quit_on_signal(&mut self) {
        if matches!(self.phase, Phase::Quitting) {
            tracing::warn!("second signal to quit; leaving workers that are still stopping");
            self.phase = Phase::Done;
        } else {
            self.quit();
        }
    }

    pub(super) fn quit(&mut self) {
        match self.phase {
            Phase::Attaching | Phase::Managing => {}
            // Without a kernel nothing may ever be stopped.
            Phase::Quitting | Phase::ShuttingDown { .. } if self.connection.trouble().is_some() => {
                tracing::warn!(
                    "asked again to quit, and the kernel is in trouble; what is left runs on"
                );
                self.phase = Phase::Done;
                return;
            }
            Phase::Quitting | Phase::ShuttingDown { .. } | Phase::Done => return,
        }
        tracing::info!("quitting; workers stay in the kernel");
        for watcher in self.watchers.values_mut() {
            watcher.forget_giving_up();
        }
        for watcher in self
            .watchers
            .values_mut()
            .filter(|watcher| !watcher.config().use_papa)
        {
            watcher.halt();
        }
        self.start_order.clear();
        self.give_up_change("the manager is ending");
        self.phase = Phase::Quitting;
    }

    /// TERM where everything ends with us. The second one kills what the first has asked to stop.
    pub(super) fn stop_on_signal(&mut self) {
        if matches!(self.phase, Phase::ShuttingDown { .. }) && self.connection.is_connected() {
            return self.hurry();
        }
        match self.phase {
            Phase::Quitting => self.quit_on_signal(),
            Phase::Done => {}
            Phase::Attaching | Phase::Managing | Phase::ShuttingDown { .. } => {
                if self.stop_by.is_some() || matches!(self.phase, Phase::ShuttingDown { .. }) {
                    return self.give_up_stopping();
                }
                self.stop_by = Some(Instant::now() + KERNEL_PATIENCE);
            }
        }
    }

    /// Begins to stop everything once there is a kernel; without one, nothing can be stopped.
    pub(super) fn stop_once_connected(&mut self, now: Instant) {
        let Some(stop_by) = self.stop_by else {
            return;
        };
        if self.connection.is_connected() {
            self.stop_by = None;
            self.outcome = Outcome::Stopped;
            self.stop_everything(Vec::new());
        } else if now >= stop_by {
            self.give_up_stopping();
        }
    }

    fn give_up_stopping(&mut self) {
        self.stop_by = None;
        self.failure = Some(ManagerError::NotStopped {
            reason: self.connection.trouble().unwrap_or_default().to_owned(),
        });
        self.phase = Phase::Done;
    }

    /// Ends the patience with everybody who was asked to stop.
    fn hurry(&mut self) {
        let Some(link) = self.connection.link().cloned() else {
            return;
        };
        tracing::warn!("asked again to stop; killing what is left");
        let at = self.moment();
        let kill = SignalNumber::KILL;
        let mut asked = Vec::new();
        for (id, watcher) in self.watchers.iter_mut() {
            let workers = watcher.end_workers(None, Some(kill), Duration::ZERO, &at);
            asked.extend(workers.into_iter().map(|process| (*id, process)));
        }
        for (id, process) in asked {
            self.send_stop(id, process, kill.number(), Whom::Tree, &link);
        }
    }

    pub(super) fn shut_down(&mut self, request: Request, reply: oneshot::Sender<Reply>) {
        if let Phase::ShuttingDown { answer, .. } = &mut self.phase {
            answer.push((request, reply));
            return;
        }
        self.stop_everything(vec![(request, reply)]);
    }

    fn stop_everything(&mut self, answer: Vec<(Request, oneshot::Sender<Reply>)>) {
        tracing::info!("shutting everything down");
        self.orphans_of_kernels.look(Instant::now());
        for watcher in self.watchers.values_mut() {
            watcher.halt();
        }
        self.start_order.clear();
        self.give_up_change("the manager is ending");
        self.phase = Phase::ShuttingDown {
            answer,
            drained_by: None,
            cleaning: false,
        };
    }

    pub(super) fn advance_shutdown(&mut self, now: Instant) {
        if !self.watchers.are_stopped() || self.awaits_orphans(now) {
            return;
        }
        let drained = self.dead.draining().is_empty() && self.console.is_quiet();
        let broken = !drained && self.only_waits_for_broken_logs();
        let Phase::ShuttingDown {
            drained_by,
            cleaning,
            ..
        } = &mut self.phase
        else {
            return;
        };
        let limit = drained_by.get_or_insert(now + DRAIN_LIMIT);
        if broken {
            *limit = (*limit).min(now + BROKEN_DRAIN_LIMIT);
        }
        let limit = *limit;
        if *cleaning || !(drained || now >= limit) {
            return;
        }
        // A value that is on its way would be there again after everything was forgotten.
        if !self.outbox.close() {
            return;
        }
        *cleaning = true;
        match self.connection.link().cloned() {
            Some(link) => {
                let left = self.dead.draining().iter().copied().collect();
                tasks::clean_up(link, self.config.clone(), left, self.events.clone());
            }
            None => self.finish_shutdown(&BTreeMap::new()),
        }
    }

    /// Everything is given back; `lost` are bytes of output that nobody took, by lower-case name of
    /// a watcher.
    pub(super) fn finish_shutdown(&mut self, lost: &BTreeMap<String, u64>) {
        let body = ShutdownReply {
            lost: self.describe_lost(lost),
        };
        if let Phase::ShuttingDown { answer, .. } = std::mem::replace(&mut self.phase, Phase::Done)
        {
            for (request, reply) in answer {
                let _ = reply.send(Reply::ok(request.id, epoch_seconds(), &body));
            }
        }
    }
}
