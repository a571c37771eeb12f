//! Signals on their way to workers: the stops a later start has to wait for, and the SIGHUPs of
//! reloads that are no more than that.
//!
//! Owns who was sent what and has not got it yet. Leaves to others: sending (`tasks`), what a
//! signal is for (`watcher`, `requests`).
//! Invariant: a signal is forgotten when it is out, or when the task that sends it has gone.

use std::collections::HashMap;

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use crate::supervisor::WatcherId;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Signals {
    /// Stop signals of each watcher's workers.
    stops: HashMap<WatcherId, Vec<oneshot::Receiver<()>>>,
    hangups: HashMap<WatcherId, Hangups>,
}

/// Signals that tell workers to read their settings again.
#[derive(Debug, Default)]
pub(super) struct Hangups {
    /// Those on their way.
    open: Vec<oneshot::Receiver<Result<(), String>>>,
    /// Why some were not sent, for people.
    failures: Vec<String>,
}

impl Signals {
    /// A stop signal is on its way; `sent` is told when it is out.
    pub(super) fn stop(&mut self, id: WatcherId, sent: oneshot::Receiver<()>) {
        self.settle(id);
        self.stops.entry(id).or_default().push(sent);
    }

    /// The stop signals a start has to wait for; they are not waited for by anybody else then.
    pub(super) fn take_stops(&mut self, id: WatcherId) -> Vec<oneshot::Receiver<()>> {
        self.stops.remove(&id).unwrap_or_default()
    }

    /// Whether a stop signal is on its way, as far as [`Self::settle`] knows.
    pub(super) fn are_stopping(&self, id: WatcherId) -> bool {
        self.stops.contains_key(&id)
    }

    /// The SIGHUPs of a reload, in place of those of an earlier one.
    pub(super) fn hang_up(
        &mut self,
        id: WatcherId,
        sent: Vec<oneshot::Receiver<Result<(), String>>>,
    ) {
        let hangups = Hangups {
            open: sent,
            failures: Vec::new(),
        };
        self.hangups.insert(id, hangups);
    }

    /// Whether all SIGHUPs of the last reload were sent, which holds if there were none; none while
    /// that is open.
    pub(super) fn hangup_outcome(&self, id: WatcherId) -> Option<Result<(), String>> {
        self.hangups.get(&id).map_or(Some(Ok(())), Hangups::outcome)
    }

    /// The last reload was another one.
    pub(super) fn forget_hangups(&mut self, id: WatcherId) {
        self.hangups.remove(&id);
    }

    /// The watcher is gone.
    pub(super) fn forget(&mut self, id: WatcherId) {
        self.stops.remove(&id);
        self.hangups.remove(&id);
    }

    /// Looks which signals of a watcher are out.
    pub(super) fn settle(&mut self, id: WatcherId) {
        if let Some(stops) = self.stops.get_mut(&id) {
            stops.retain_mut(|sent| sent.try_recv() == Err(TryRecvError::Empty));
            if stops.is_empty() {
                self.stops.remove(&id);
            }
        }
        if let Some(hangups) = self.hangups.get_mut(&id) {
            hangups.settle();
        }
    }
}

impl Hangups {
    fn settle(&mut self) {
        let failures = &mut self.failures;
        self.open.retain_mut(|one| match one.try_recv() {
            Err(TryRecvError::Empty) => true,
            Ok(Ok(())) | Err(TryRecvError::Closed) => false,
            Ok(Err(failure)) => {
                failures.push(failure);
                false
            }
        });
    }

    /// Whether all were sent; none while that is open.
    fn outcome(&self) -> Option<Result<(), String>> {
        match (self.open.is_empty(), self.failures.is_empty()) {
            (false, _) => None,
            (true, true) => Some(Ok(())),
            (true, false) => Some(Err(self.failures.join("; "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: WatcherId = WatcherId(1);

    #[test]
    fn a_stop_signal_is_waited_for_until_it_is_out() {
        let mut signals = Signals::default();
        let (sent, receiver) = oneshot::channel();
        signals.stop(ID, receiver);
        signals.settle(ID);
        assert!(signals.are_stopping(ID) && !signals.are_stopping(WatcherId(2)));
        sent.send(()).unwrap();
        signals.settle(ID);
        assert!(!signals.are_stopping(ID));
        assert!(signals.take_stops(ID).is_empty());
    }

    #[test]
    fn a_signal_whose_task_has_gone_holds_nobody_up() {
        let mut signals = Signals::default();
        let (sent, receiver) = oneshot::channel();
        signals.stop(ID, receiver);
        let (told, hangup) = oneshot::channel::<Result<(), String>>();
        signals.hang_up(ID, vec![hangup]);
        drop((sent, told));
        signals.settle(ID);
        assert!(!signals.are_stopping(ID));
        assert_eq!(signals.hangup_outcome(ID), Some(Ok(())));
    }

    #[test]
    fn signals_that_are_out_do_not_pile_up() {
        let mut signals = Signals::default();
        for _ in 0..10 {
            let (sent, receiver) = oneshot::channel();
            signals.stop(ID, receiver);
            sent.send(()).unwrap();
        }
        assert_eq!(signals.take_stops(ID).len(), 1);
    }

    #[test]
    fn a_reload_is_over_when_every_hangup_is_and_says_which_failed() {
        let mut signals = Signals::default();
        assert_eq!(signals.hangup_outcome(ID), Some(Ok(())), "there was none");
        let (first, one) = oneshot::channel();
        let (second, two) = oneshot::channel();
        signals.hang_up(ID, vec![one, two]);
        first.send(Err("worker 1 is gone".to_owned())).unwrap();
        signals.settle(ID);
        assert_eq!(signals.hangup_outcome(ID), None);
        second.send(Ok(())).unwrap();
        signals.settle(ID);
        let failed = Some(Err("worker 1 is gone".to_owned()));
        assert_eq!(signals.hangup_outcome(ID), failed);
        signals.forget_hangups(ID);
        assert_eq!(signals.hangup_outcome(ID), Some(Ok(())));
    }
}
