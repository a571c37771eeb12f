//! The ends of the manager: quit, which leaves the workers, and shutdown, which leaves nothing.
//!
//! Owns the phase of the manager and its outcome. Invariant: the phase never goes back.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::config::SignalNumber;
use crate::control::message::{Errno, Reply, Request, RequestError, ShutdownReply};
use crate::control::server::now as epoch_seconds;
use crate::error::ManagerError;
use crate::pidfd::Whom;
use crate::supervisor::tickets::refuse;
use crate::supervisor::{Outcome, Supervisor, tasks};

/// How long trailing output may take to reach the log files when everything is shut down.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// The same where all of it goes to files that are known not to take it.
const BROKEN_DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// How long a signal to stop everything waits for a kernel: one that was killed is back sooner.
const KERNEL_PATIENCE: Duration = Duration::from_secs(10);

/// Phase of the manager's life cycle.
#[derive(Debug)]
enum Phase {
    /// The namespace is not claimed yet, or the kernel has not told what it keeps.
    Attaching,
    /// The normal state.
    Managing,
    /// The watchers that must not outlive the manager are being stopped.
    Quitting,
    /// All watchers are being stopped.
    ShuttingDown {
        answer: Askers,
        drained_by: Option<Instant>,
        cleaning: bool,
    },
    Done,
}

/// Requests to shut down that wait for their answer.
type Askers = Vec<(Request, oneshot::Sender<Reply>)>;

/// Where the manager is in its life, and how it ends.
#[derive(Debug)]
pub(super) struct Ending {
    phase: Phase,
    /// A signal asked to stop everything, which waits for a kernel until then.
    stop_by: Option<Instant>,
    result: Result<Outcome, ManagerError>,
}

impl Ending {
    /// The life of a manager that attaches to a kernel.
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::Attaching,
            stop_by: None,
            result: Ok(Outcome::Ended),
        }
    }

    /// The kernel has told what it keeps.
    pub(super) fn attached(&mut self) {
        if self.is_attaching() {
            self.phase = Phase::Managing;
        }
    }

    /// Whether what the kernel keeps is not known yet.
    pub(super) fn is_attaching(&self) -> bool {
        matches!(self.phase, Phase::Attaching)
    }

    /// Whether everything is being stopped.
    pub(super) fn is_shutting_down(&self) -> bool {
        matches!(self.phase, Phase::ShuttingDown { .. })
    }

    /// Whether the loop is to end.
    pub(super) fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }

    /// Whether watchers may still be given something to do.
    ///
    /// # Errors
    /// The manager is ending.
    pub(super) fn may_act(&self) -> Result<(), RequestError> {
        match self.phase {
            Phase::Attaching | Phase::Managing => Ok(()),
            Phase::Quitting | Phase::ShuttingDown { .. } | Phase::Done => {
                Err(RequestError::new(Errno::Command, "the manager is ending"))
            }
        }
    }

    /// Ends the loop with this outcome.
    pub(super) fn end(&mut self, outcome: Outcome) {
        self.result = Ok(outcome);
        self.phase = Phase::Done;
    }

    /// Ends the loop with an error: workers are not touched any more.
    pub(super) fn fail(&mut self, error: ManagerError) {
        self.result = Err(error);
        self.phase = Phase::Done;
    }

    /// How the manager ends, as far as it is known.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        self.result.as_ref().ok().copied()
    }

    /// How the manager has ended.
    ///
    /// # Errors
    /// What [`Self::fail`] was told.
    pub(super) fn into_result(self) -> Result<Outcome, ManagerError> {
        self.result
    }

    /// Takes those who wait for the shutdown: nobody can answer them.
    pub(super) fn take_askers(&mut self) -> Askers {
        match &mut self.phase {
            Phase::ShuttingDown { answer, .. } => std::mem::take(answer),
            _ => Vec::new(),
        }
    }

    /// Whether somebody waits for the shutdown.
    pub(super) fn has_askers(&self) -> bool {
        matches!(&self.phase, Phase::ShuttingDown { answer, .. } if !answer.is_empty())
    }

    /// When the manager stops waiting for output, or for a kernel.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let drained_by = match &self.phase {
            Phase::ShuttingDown {
                drained_by,
                cleaning: false,
                ..
            } => *drained_by,
            _ => None,
        };
        drained_by.into_iter().chain(self.stop_by).min()
    }
}

impl Supervisor {
    /// Takes the next step of the end, if what it waits for has happened.
    pub(super) fn advance_end(&mut self, now: Instant) {
        match &self.ending.phase {
            Phase::Quitting if self.watchers.leaving_are_stopped() => {
                self.ending.phase = Phase::Done;
            }
            Phase::ShuttingDown { .. } => self.advance_shutdown(now),
            Phase::Attaching | Phase::Managing | Phase::Quitting | Phase::Done => {}
        }
    }

    /// TERM. The second one does not wait for what the first has asked to stop.
    pub(super) fn quit_on_signal(&mut self) {
        if matches!(self.ending.phase, Phase::Quitting) {
            tracing::warn!("second signal to quit; leaving workers that are still stopping");
            self.ending.phase = Phase::Done;
        } else {
            self.quit();
        }
    }

    pub(super) fn quit(&mut self) {
        match self.ending.phase {
            Phase::Attaching | Phase::Managing => {}
            // Without a kernel nothing may ever be stopped.
            Phase::Quitting | Phase::ShuttingDown { .. } if self.connection.trouble().is_some() => {
                tracing::warn!(
                    "asked again to quit, and the kernel is in trouble; what is left runs on"
                );
                self.ending.phase = Phase::Done;
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
        self.ending.phase = Phase::Quitting;
    }

    /// TERM where everything ends with us. The second one kills what the first has asked to stop.
    pub(super) fn stop_on_signal(&mut self) {
        if matches!(self.ending.phase, Phase::ShuttingDown { .. }) && self.connection.is_connected()
        {
            return self.hurry();
        }
        match self.ending.phase {
            Phase::Quitting => self.quit_on_signal(),
            Phase::Done => {}
            Phase::Attaching | Phase::Managing | Phase::ShuttingDown { .. } => {
                if self.ending.stop_by.is_some()
                    || matches!(self.ending.phase, Phase::ShuttingDown { .. })
                {
                    return self.give_up_stopping();
                }
                self.ending.stop_by = Some(Instant::now() + KERNEL_PATIENCE);
            }
        }
    }

    /// Begins to stop everything once there is a kernel; without one, nothing can be stopped.
    pub(super) fn stop_once_connected(&mut self, now: Instant) {
        let Some(stop_by) = self.ending.stop_by.filter(|_| !self.ending.is_done()) else {
            return;
        };
        if self.connection.is_connected() {
            self.ending.stop_by = None;
            self.ending.result = Ok(Outcome::Stopped);
            self.stop_everything(Vec::new());
        } else if now >= stop_by {
            self.give_up_stopping();
        }
    }

    fn give_up_stopping(&mut self) {
        self.ending.stop_by = None;
        self.ending.fail(ManagerError::NotStopped {
            reason: self.connection.trouble().unwrap_or_default().to_owned(),
        });
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
        // It may have lost its namespace, or another program is about to take its place.
        if self.ending.is_done() {
            let ending = RequestError::new(Errno::Command, "the manager is ending");
            return refuse(request, reply, &ending);
        }
        if let Phase::ShuttingDown { answer, .. } = &mut self.ending.phase {
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
        self.ending.phase = Phase::ShuttingDown {
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
        } = &mut self.ending.phase
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
        if let Phase::ShuttingDown { answer, .. } =
            std::mem::replace(&mut self.ending.phase, Phase::Done)
        {
            for (request, reply) in answer {
                let _ = reply.send(Reply::ok(request.id, epoch_seconds(), &body));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_acts_until_it_is_ending() {
        let quitting = Phase::Quitting;
        let shutting_down = Phase::ShuttingDown {
            answer: Vec::new(),
            drained_by: None,
            cleaning: false,
        };
        for (phase, acts) in [
            (Phase::Attaching, true),
            (Phase::Managing, true),
            (quitting, false),
            (shutting_down, false),
            (Phase::Done, false),
        ] {
            let mut ending = Ending::new();
            ending.phase = phase;
            assert_eq!(ending.may_act().is_ok(), acts, "{ending:?}");
            ending.attached();
            assert_eq!(ending.may_act().is_ok(), acts, "{ending:?}");
            assert!(!ending.is_attaching());
        }
    }

    #[test]
    fn a_failure_or_an_outcome_ends_the_loop() {
        let mut ending = Ending::new();
        assert_eq!(ending.outcome(), Some(Outcome::Ended));
        ending.end(Outcome::Again);
        assert!(ending.is_done());
        assert_eq!(ending.into_result().unwrap(), Outcome::Again);
        let mut ending = Ending::new();
        let reason = "no kernel".to_owned();
        ending.fail(ManagerError::NotStopped { reason });
        assert!(ending.is_done() && ending.outcome().is_none());
        assert!(ending.into_result().is_err());
    }

    #[test]
    fn output_is_waited_for_until_the_clean_up_begins() {
        let now = Instant::now();
        for (cleaning, expected) in [(false, Some(now)), (true, None)] {
            let mut ending = Ending::new();
            ending.phase = Phase::ShuttingDown {
                answer: Vec::new(),
                drained_by: Some(now),
                cleaning,
            };
            assert_eq!(ending.deadline(), expected);
        }
    }
}
