//! The change of program that is under way: which program, and how far it has come.
//!
//! The program is tried first. Then all connections are stopped between two lines, so that they can
//! be written down and the next program can go on with them: each is told, and hands over what it
//! has as soon as it awaits no answer. Callers that connect meanwhile are stopped too, or wait with
//! the system. What is done at each step is the owner's; here is only how far it is.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::dry_run::Tried;
use super::handover::Change;
use crate::client::connection::Frozen;
use crate::client::event::Sender;
use crate::client::exchange::SessionId;
use crate::readers::session::Session;
use crate::world::reel::ReelKind;

/// How long connections may take to stop, which is as long as their last requests take. Then
/// nothing is changed.
pub(crate) const FREEZE_LIMIT: Duration = Duration::from_secs(5);

/// The same where the keeper has died: until this process has taken its place, one kill loses
/// everything. A connection that has not stopped by then is closed.
const ORPHAN_FREEZE_LIMIT: Duration = Duration::from_millis(200);

/// What is known of changes of the program.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// The one that is under way.
    pub under_way: Option<Changing>,
    /// Where the task of a dry run sends what it found.
    pub examined: Option<Sender<Examined>>,
    /// The program this one has replaced, until the keeper is replaced too.
    pub before: Option<OwnedFd>,
}

/// A change of program under way.
#[derive(Debug)]
pub(crate) struct Changing {
    /// Which program, and who asked.
    pub change: Change,
    /// The program is only tried.
    pub dry_run: bool,
    /// The program is changed although its dry run fails.
    pub force: bool,
    /// The program's file.
    pub program: OwnedFd,
    /// Kinds of reels there were when the program was tried.
    pub tried_reels: BTreeSet<ReelKind>,
    /// How far the change is.
    pub stage: Stage,
}

impl Changing {
    /// A change that need not be tried: this process becomes the keeper with its own program.
    pub(crate) fn of_role(change: Change, program: OwnedFd) -> Self {
        Self {
            change,
            dry_run: false,
            force: false,
            program,
            tried_reels: BTreeSet::new(),
            stage: Stage::Trying,
        }
    }
}

/// What this process becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The kernel, of another program.
    Kernel,
    /// The keeper, of this program.
    Keeper,
    /// The keeper, of this program, because the keeper has died.
    Orphan,
}

/// How far a change is.
#[derive(Debug)]
pub(crate) enum Stage {
    /// The program is being tried.
    Trying,
    /// Connections are being stopped.
    Freezing {
        /// Sessions that have not stopped yet.
        left: BTreeSet<SessionId>,
        /// Those that have, with what they handed over.
        frozen: BTreeMap<SessionId, Frozen>,
        /// When the others are not waited for any more.
        until: Instant,
        /// What this process becomes.
        role: Role,
    },
}

/// A dry run has ended with this result.
#[derive(Debug)]
pub(crate) struct Examined(pub(crate) Tried);

impl Changes {
    /// Tells every connection to stop; returns until when they may take. None if no change is under
    /// way.
    pub(crate) fn freeze(
        &mut self,
        sessions: &BTreeMap<SessionId, Session>,
        role: Role,
    ) -> Option<Instant> {
        let changing = self.under_way.as_mut()?;
        let asker = changing.change.asked.as_ref().map(|(session, _)| *session);
        for (id, session) in sessions {
            session.freeze(asker == Some(*id));
        }
        let limit = match role {
            Role::Kernel | Role::Keeper => FREEZE_LIMIT,
            Role::Orphan => ORPHAN_FREEZE_LIMIT,
        };
        let until = Instant::now() + limit;
        changing.stage = Stage::Freezing {
            left: sessions.keys().copied().collect(),
            frozen: BTreeMap::new(),
            until,
            role,
        };
        Some(until)
    }

    /// The keeper has died while connections are being stopped: they get less time. Returns until
    /// when, or none if they are not being stopped.
    pub(crate) fn hurry_orphaned(&mut self) -> Option<Instant> {
        let Stage::Freezing { until, role, .. } = &mut self.under_way.as_mut()?.stage else {
            return None;
        };
        *role = Role::Orphan;
        *until = (*until).min(Instant::now() + ORPHAN_FREEZE_LIMIT);
        Some(*until)
    }

    /// Whether connections are stopped or stopping: then nothing is sent.
    pub(crate) fn is_freezing(&self) -> bool {
        let stage = self.under_way.as_ref().map(|changing| &changing.stage);
        matches!(stage, Some(Stage::Freezing { .. }))
    }

    /// Stops a connection that was accepted before all were stopped.
    pub(crate) fn freeze_late(&mut self, id: SessionId, session: &Session) {
        if let Some((left, _)) = self.freezing() {
            session.freeze(false);
            left.insert(id);
        }
    }

    /// Notes that a connection has stopped. It comes back if the change was given up meanwhile.
    #[must_use]
    pub(crate) fn note_frozen(&mut self, id: SessionId, connection: Frozen) -> Option<Frozen> {
        let Some((left, frozen)) = self.freezing() else {
            return Some(connection);
        };
        left.remove(&id);
        frozen.insert(id, connection);
        None
    }

    /// Forgets a session that is gone.
    pub(crate) fn forget(&mut self, id: SessionId) {
        if let Some((left, frozen)) = self.freezing() {
            left.remove(&id);
            frozen.remove(&id);
        }
    }

    /// Whether all connections have stopped, so that the change can go on.
    pub(crate) fn is_frozen(&self) -> bool {
        let stage = self.under_way.as_ref().map(|changing| &changing.stage);
        matches!(stage, Some(Stage::Freezing { left, .. }) if left.is_empty())
    }

    /// Sessions that have not stopped in time, and what this process was to become. None while
    /// there is time left.
    pub(crate) fn late(&self, now: Instant) -> Option<(usize, Role)> {
        match &self.under_way.as_ref()?.stage {
            Stage::Freezing {
                left, until, role, ..
            } if now >= *until => Some((left.len(), *role)),
            _ => None,
        }
    }

    fn freezing(&mut self) -> Option<(&mut BTreeSet<SessionId>, &mut BTreeMap<SessionId, Frozen>)> {
        match &mut self.under_way.as_mut()?.stage {
            Stage::Freezing { left, frozen, .. } => Some((left, frozen)),
            Stage::Trying => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::client::exchange::{Order, Peer};
    use crate::client::inbox::{Inbox, Next, Outbox};

    fn session(id: SessionId) -> (Session, Rc<Inbox>) {
        let inbox = Rc::new(Inbox::default());
        let peer = Peer {
            uid: 0,
            pid: None,
            tcp: false,
        };
        (Session::new(id, peer, Outbox::new(&inbox)), inbox)
    }

    fn asked_by(session: SessionId) -> Changes {
        let change = Change {
            asked: Some((session, None)),
            ..Change::default()
        };
        let program = std::fs::File::open("/dev/null").unwrap().into();
        Changes {
            under_way: Some(Changing::of_role(change, program)),
            ..Changes::default()
        }
    }

    #[test]
    fn the_session_that_asked_stops_although_its_answer_is_awaited() {
        let mut changes = asked_by(2);
        let (one, told_one) = session(1);
        let (two, told_two) = session(2);
        assert!(!changes.is_freezing() && !changes.is_frozen());
        let sessions = BTreeMap::from([(1, one), (2, two)]);
        changes.freeze(&sessions, Role::Kernel).unwrap();
        for (inbox, expected) in [(told_one, false), (told_two, true)] {
            let Next::Order(Order::Freeze { unanswered }) = inbox.next() else {
                panic!("not told to stop");
            };
            assert_eq!(unanswered, expected);
        }
        assert!(changes.is_freezing() && !changes.is_frozen());
        changes.forget(1);
        changes.forget(2);
        assert!(changes.is_frozen());
    }

    #[test]
    fn without_a_keeper_connections_get_less_time_to_stop() {
        let mut changes = asked_by(2);
        assert_eq!(changes.hurry_orphaned(), None);
        let (one, _told) = session(1);
        let sessions = BTreeMap::from([(1, one)]);
        let until = changes.freeze(&sessions, Role::Kernel).unwrap();
        let sooner = changes.hurry_orphaned().unwrap();
        assert!(sooner < until);
        assert_eq!(changes.late(Instant::now()), None);
        assert_eq!(changes.late(sooner), Some((1, Role::Orphan)));
    }

    #[test]
    fn a_caller_that_comes_late_is_waited_for_too() {
        let mut changes = asked_by(2);
        let (late, told) = session(3);
        changes.freeze_late(3, &late);
        assert!(matches!(told.next(), Next::Nothing));
        changes.freeze(&BTreeMap::new(), Role::Keeper).unwrap();
        assert!(changes.is_frozen());
        changes.freeze_late(3, &late);
        assert!(matches!(told.next(), Next::Order(Order::Freeze { .. })));
        assert!(!changes.is_frozen());
    }
}
