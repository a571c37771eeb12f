//! How many connections the control socket serves, and which one goes when there are too many.
//!
//! Owns the budget: connections that ask, and apart from them those that listen, so that neither
//! keeps the other out. Where there is no room, a connection that nobody waits for is closed: first
//! one that never said anything, then the one that has been quiet longest.
//! Leaves to others: what is said on a connection (`server`).
//! Invariant: a connection with a request under way is never closed for another one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::AbortHandle;

use papa_system::sys;

/// Connections served at once, without those that listen.
const MAX_CONNECTIONS: usize = 128;
/// Connections that listen at once.
pub(super) const MAX_LISTENERS: usize = 128;

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Doing {
    /// It has not said anything yet.
    Nothing,
    /// It has its answers; since this turn.
    Quiet(u64),
    /// A request is under way.
    Asking,
    /// It gets events.
    Listening,
}

#[derive(Debug, Default)]
struct Open {
    sessions: BTreeMap<u64, (Doing, Option<AbortHandle>)>,
    /// Rises with everything that happens, and so tells older from newer.
    turn: u64,
}

/// All connections.
#[derive(Debug, Clone, Default)]
pub(super) struct Sessions(Arc<Mutex<Open>>);

/// A connection's place among them, given up when it is dropped.
#[derive(Debug)]
pub(super) struct Session {
    all: Sessions,
    number: u64,
}

/// The same where there are few descriptors.
fn most_listeners() -> usize {
    (sys::descriptor_limit() / 8).clamp(1, MAX_LISTENERS)
}

/// The same where there are few descriptors.
fn most_connections() -> usize {
    (sys::descriptor_limit() / 8).clamp(1, MAX_CONNECTIONS)
}

impl Sessions {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a new connection; none while every other one has a request under way.
    pub(super) fn enter(&self) -> Option<Session> {
        let mut open = self.open();
        let asking = open
            .sessions
            .values()
            .filter(|(doing, _)| *doing != Doing::Listening)
            .count();
        if asking >= most_connections() {
            let quiet = open
                .sessions
                .iter()
                .filter(|(_, (doing, _))| *doing < Doing::Asking)
                .min_by_key(|(number, (doing, _))| (*doing, **number))
                .map(|(number, _)| *number)?;
            if let Some((_, Some(task))) = open.sessions.remove(&quiet) {
                task.abort();
            }
        }
        open.turn += 1;
        let number = open.turn;
        open.sessions.insert(number, (Doing::Nothing, None));
        Some(Session {
            all: self.clone(),
            number,
        })
    }

    /// The task that serves a connection, which may be ended to make room.
    pub(super) fn set_task(&self, number: u64, task: AbortHandle) {
        if let Some((_, known)) = self.open().sessions.get_mut(&number) {
            *known = Some(task);
        }
    }
}

impl Session {
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    fn set(&self, doing: Doing) {
        if let Some((known, _)) = self.all.open().sessions.get_mut(&self.number) {
            *known = doing;
        }
    }

    /// A request is under way.
    pub(super) fn asks(&self) {
        self.set(Doing::Asking);
    }

    /// It has its answer.
    pub(super) fn is_answered(&self) {
        let turn = {
            let mut open = self.all.open();
            open.turn += 1;
            open.turn
        };
        self.set(Doing::Quiet(turn));
    }

    /// It gets events from now on. False if too many do.
    pub(super) fn listens(&self) -> bool {
        let mut open = self.all.open();
        let listening = open
            .sessions
            .values()
            .filter(|(doing, _)| *doing == Doing::Listening)
            .count();
        if listening >= most_listeners() {
            return false;
        }
        if let Some((doing, _)) = open.sessions.get_mut(&self.number) {
            *doing = Doing::Listening;
        }
        true
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.all.open().sessions.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_connections_and_listeners_kept_everybody_out() {
        let sessions = Sessions::default();
        let mut places: Vec<Session> = (0..MAX_CONNECTIONS)
            .map(|_| sessions.enter().unwrap())
            .collect();
        let there = |session: &Session| sessions.open().sessions.contains_key(&session.number);
        // The second has spoken, so the first goes, then the third.
        places[1].asks();
        places[1].is_answered();
        let new = sessions.enter().unwrap();
        assert!(!there(&places[0]) && there(&places[1]));
        new.asks();
        let next = sessions.enter().unwrap();
        assert!(!there(&places[2]) && there(&new));
        // Those that wait for an answer stay; with nobody else there is no room.
        next.asks();
        for place in &places[3..] {
            place.asks();
        }
        let last = sessions.enter().unwrap();
        assert!(!there(&places[1]), "quiet, so it went");
        last.asks();
        assert!(sessions.enter().is_none());
        // Who listens takes nobody's place.
        assert!(places[5].listens());
        let asks = sessions.enter().unwrap();
        asks.asks();
        assert!(sessions.enter().is_none());
        drop(places.pop());
        assert!(sessions.enter().is_some());
    }
}
