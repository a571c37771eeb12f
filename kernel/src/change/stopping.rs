//! Connections are stopped between two lines, so that they can be written down
//! and another program can go on with them.
//!
//! Each is told and hands over what it has as soon as it awaits no answer. Who
//! comes meanwhile is stopped too, or waits with the system.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tracing::warn;

use crate::change::handover::Change;
use crate::change::upgrade::{Changing, Role, Stage};
use crate::client::connection::Frozen;
use crate::client::exchange::SessionId;
use crate::owner::Owner;
use crate::world::deadline::Deadline;

/// How long connections may take to stop, which is as long as what they asked
/// before takes. Then nothing is changed.
const FREEZE_LIMIT: Duration = Duration::from_secs(5);

/// The same where the keeper has died: until then one kill loses everything.
/// Who is not at rest by then has to connect anew.
const ORPHAN_FREEZE_LIMIT: Duration = Duration::from_millis(200);

/// How long connections may take to stop.
fn freeze_limit(role: Role) -> Duration {
    match role {
        Role::Kernel | Role::Keeper => FREEZE_LIMIT,
        Role::Orphan => ORPHAN_FREEZE_LIMIT,
    }
}

impl Owner {
    /// Has every connection stop; the change goes on when all have.
    pub(crate) fn freeze(&mut self, role: Role) {
        let Some(changing) = &mut self.change.under_way else {
            return;
        };
        if let Some(server) = &self.server {
            server.pause();
        }
        let asker = changing.change.asked.as_ref().map(|(session, _)| *session);
        for (id, session) in &self.readers.sessions {
            session.freeze(asker == Some(*id));
        }
        let until = Instant::now() + freeze_limit(role);
        changing.stage = Stage::Freezing {
            left: self.readers.sessions.keys().copied().collect(),
            frozen: BTreeMap::new(),
            until,
            role,
        };
        self.world.agenda.at(until, Deadline::Freeze);
    }

    /// The keeper is gone: connections stop, and then its place is taken. A
    /// change under way ends with that.
    pub(crate) fn freeze_orphaned(&mut self) {
        if let Some(changing) = &mut self.change.under_way {
            let change = std::mem::take(&mut changing.change);
            let reason = "the keeper has died meanwhile; nothing was changed, ask again";
            self.answer_change(&change, Err(reason.to_owned()));
        }
        if let Some(Changing {
            stage: Stage::Freezing { until, role, .. },
            ..
        }) = &mut self.change.under_way
        {
            *role = Role::Orphan;
            *until = (*until).min(Instant::now() + ORPHAN_FREEZE_LIMIT);
            self.world.agenda.at(*until, Deadline::Freeze);
            return;
        }
        let Ok(program) = self.world.fixed.binary.try_clone() else {
            self.take_keepers_place("it is gone", &[]);
        };
        self.change.under_way = Some(Changing {
            change: Change::default(),
            dry_run: false,
            force: false,
            program,
            tried_reels: BTreeSet::new(),
            stage: Stage::Trying,
        });
        self.freeze(Role::Orphan);
    }

    /// Whether connections are stopped or stopping: then nothing is sent.
    pub(crate) fn is_freezing(&self) -> bool {
        matches!(
            self.change.under_way,
            Some(Changing {
                stage: Stage::Freezing { .. },
                ..
            })
        )
    }

    /// A connection that was accepted before all were stopped.
    pub(crate) fn freeze_late(&mut self, id: SessionId) {
        if let Some(Changing {
            stage: Stage::Freezing { left, .. },
            ..
        }) = &mut self.change.under_way
            && let Some(session) = self.readers.sessions.get(&id)
        {
            session.freeze(false);
            left.insert(id);
        }
    }

    pub(crate) fn on_frozen(&mut self, id: SessionId, connection: Frozen) {
        if let Some(Changing {
            stage: Stage::Freezing { left, frozen, .. },
            ..
        }) = &mut self.change.under_way
        {
            left.remove(&id);
            frozen.insert(id, connection);
        } else if let Some(server) = &self.server {
            // Taken back meanwhile.
            server.thaw(connection);
        }
    }

    pub(crate) fn frozen_has_gone(&mut self, id: SessionId) {
        if let Some(Changing {
            stage: Stage::Freezing { left, frozen, .. },
            ..
        }) = &mut self.change.under_way
        {
            left.remove(&id);
            frozen.remove(&id);
        }
    }

    /// Goes on with the change once all connections have stopped.
    pub(crate) fn change_when_frozen(&mut self) {
        if self.world.link.is_lost() && self.change.under_way.is_none() {
            // Whatever came between: without a keeper there is no going on.
            self.freeze_orphaned();
        }
        if let Some(Changing {
            stage: Stage::Freezing { left, .. },
            ..
        }) = &self.change.under_way
            && left.is_empty()
        {
            self.change_now();
        }
    }

    /// Connections have had the time there is for stopping, and a turn since.
    pub(crate) fn on_freeze_limit(&mut self, now: Instant) {
        let Some(Changing {
            stage: Stage::Freezing {
                left, until, role, ..
            },
            ..
        }) = &self.change.under_way
        else {
            return;
        };
        if now < *until {
            // The deadline of one before.
            return;
        }
        if *role == Role::Orphan {
            warn!(
                sessions = left.len(),
                "not at rest in time; they are closed"
            );
            return self.change_now();
        }
        if let Some(changing) = self.change.under_way.take() {
            let limit = FREEZE_LIMIT.as_secs();
            let reason = format!("the clients did not come to rest within {limit} s");
            self.take_back(changing, &reason);
        }
    }
}
