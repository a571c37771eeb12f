//! What was seen of a worker's processes: who has lost parent and mark since is still its own.
//!
//! Invariant: a session counts as long as somebody of ours was seen in it at every look; a number
//! that went to a stranger never does.

use std::collections::{BTreeMap, BTreeSet};

use crate::tree::scan::Stat;
use crate::tree::{Identity, Target};

/// Of more processes of one worker the rest is found by parent, session and mark only.
const MAX_KNOWN: usize = 4096;

/// What is known of one worker's processes.
#[derive(Debug, Default)]
pub(super) struct Memory {
    known: BTreeSet<Identity>,
    /// Sessions led by the worker or a process of it.
    sessions: BTreeSet<i32>,
}

impl Memory {
    pub(super) fn of(target: &Target) -> Self {
        Self {
            known: target.known.iter().copied().collect(),
            sessions: BTreeSet::from([target.leader]),
        }
    }

    /// Processes that were seen before.
    pub(super) fn known(&self) -> impl Iterator<Item = &Identity> {
        self.known.iter()
    }

    /// Sessions whose members belong to the worker.
    pub(super) fn sessions(&self) -> impl Iterator<Item = &i32> {
        self.sessions.iter()
    }

    pub(super) fn has_session(&self, session: i32) -> bool {
        self.sessions.contains(&session)
    }

    /// A session's number cannot be taken while it has members: one whose leader is a stranger is
    /// not ours, nor one that nobody is in any more. (In the worker's own there may be somebody who
    /// was missed.)
    ///
    /// `is_used` says whether somebody alive is in a session.
    pub(super) fn drop_reused_sessions(
        &mut self,
        target: &Target,
        all: &BTreeMap<i32, Stat>,
        is_used: impl Fn(i32) -> bool,
    ) {
        let known = &self.known;
        self.sessions.retain(|session| {
            let own = *session == target.leader;
            let stranger = all.get(session).is_some_and(|leader| {
                !leader.is_zombie() && !known.contains(&(*session, leader.started))
            });
            (own && target.leads) || ((own || is_used(*session)) && !stranger)
        });
    }

    pub(super) fn remember(&mut self, found: &BTreeMap<i32, Stat>) {
        for (pid, stat) in found {
            if self.known.len() < MAX_KNOWN {
                self.known.insert((*pid, stat.started));
            }
            if stat.session == *pid {
                self.sessions.insert(*pid);
            }
        }
        if self.known.len() >= MAX_KNOWN {
            self.known.retain(|(pid, started)| {
                found.get(pid).is_some_and(|stat| stat.started == *started)
            });
        }
    }
}
