//! What workers that ended have left behind: it gets the same signal and the same time as they had.
//!
//! Owns who is left of which worker and when that is killed, and keeps both for a successor. Leaves to others: finding and signalling
//! (`pidfd`). Invariant: nobody is signalled but members of a worker's session, and descendants that were seen to leave it.

use std::time::{Duration, Instant};

use nix::libc::SIGKILL;

use crate::pidfd;
use crate::state::{self, KeptLeft, KeptSession, MAX_LEFT, MAX_LEFT_MEMBERS};
use crate::supervisor::probes::{gate, held_gate};
use crate::supervisor::{Supervisor, WatcherId, tasks};
use crate::watcher::Moment;
use crate::worker::{State, Worker};

impl Supervisor {
    /// A worker that was asked to end may leave processes behind: they are asked too, and killed when its grace period is over.
    pub(super) fn sweep(&mut self, id: WatcherId, wid: u32, worker: &Worker) {
        if let (Some(link), Some(watcher)) = (&self.link, self.watchers.get(&id))
            && held_gate(watcher.config())
        {
            self.discards.push(gate(link, watcher.config(), wid));
        }
        if let (
            State::Stopping {
                process, kill_at, ..
            },
            Some(watcher),
        ) = (&worker.state, self.watchers.get(&id))
        {
            let signal = worker.own_signal.unwrap_or(watcher.config().stop_signal);
            self.leave(process.pid, signal.number(), *kill_at);
        }
    }

    /// Notes who of the workers that were just asked to end has left its worker's session: the signals go out after this. One look at
    /// all processes serves all of them.
    pub(super) fn note_escaped(&mut self) {
        if !self.asked_to_end.is_empty() {
            let found = pidfd::escaped(&std::mem::take(&mut self.asked_to_end));
            self.escaped.extend(found);
        }
    }

    /// Kills what workers left behind, where the grace period is over by `limit`.
    pub(super) fn kill_orphans(&mut self, limit: Instant) {
        while let Some((kill_at, leader)) = self.orphans.pop_first() {
            if kill_at > limit {
                self.orphans.insert((kill_at, leader));
                return;
            }
            if let Some(members) = self.escaped.remove(&leader) {
                pidfd::signal_members(&members, SIGKILL);
            }
            // The session's number is ours only as long as one of those found in it lives.
            if let Some(members) = self.orphan_members.remove(&leader)
                && pidfd::any_lives(&members)
            {
                self.sweeps.insert(leader, SIGKILL);
            }
        }
    }

    /// One look at all processes serves all sessions that ended since the last.
    pub(super) fn send_sweeps(&mut self) {
        if !self.sweeps.is_empty() {
            let found = pidfd::signal_orphans(&std::mem::take(&mut self.sweeps));
            self.orphan_members.extend(found);
        }
    }

    /// Its session gets this signal now, and is killed then.
    fn leave(&mut self, leader: i32, signal: i32, kill_at: Instant) {
        self.sweeps.insert(leader, signal);
        if let Some(members) = self.escaped.get(&leader) {
            pidfd::signal_members(members, signal);
        }
        self.orphans.insert((kill_at, leader));
    }

    /// A worker a predecessor asked to end has ended unseen: what it left is asked, too.
    pub(super) fn sweep_unseen(&mut self, id: WatcherId, serial: u64, pid: i32, at: &Moment) {
        let Some(watcher) = self.watchers.get(&id) else {
            return;
        };
        if let Some(kill_at_ms) = watcher.kept().stopping.get(&serial) {
            let left = Duration::from_millis(kill_at_ms.saturating_sub(at.epoch_ms));
            let own = watcher.kept().own_signal(serial);
            let signal = own.unwrap_or(watcher.config().stop_signal).number();
            let longest = watcher.config().graceful_timeout;
            self.leave(pid, signal, at.now + left.min(longest));
        }
    }

    /// What ended workers of a predecessor have left behind.
    pub(super) fn take_over_left(&mut self, left: KeptLeft) {
        let at = self.moment();
        self.saved_left = left.clone();
        for (leader, session) in left.sessions.into_iter().take(MAX_LEFT) {
            if !pidfd::any_lives(&session.members) && !pidfd::any_lives(&session.escaped) {
                continue;
            }
            let left = Duration::from_millis(session.kill_at_ms.saturating_sub(at.epoch_ms));
            // A clock that was set back must not keep it for ever.
            let longest = self.watchers.values();
            let longest = longest.map(|watcher| watcher.config().graceful_timeout);
            let left = left.min(longest.max().unwrap_or(left));
            self.orphans.insert((at.now + left, leader));
            self.orphan_members.insert(leader, session.members);
            self.escaped.insert(leader, session.escaped);
        }
    }

    /// Has the kernel keep who is left, if that is others than before.
    pub(super) fn keep_left(&mut self) {
        if self.orphans.is_empty() && self.saved_left.sessions.is_empty() {
            return;
        }
        let at = self.moment();
        let members = |all: &pidfd::Members, leader: &i32| -> Vec<(i32, u64)> {
            let all = all.get(leader).into_iter().flatten();
            all.take(MAX_LEFT_MEMBERS).copied().collect()
        };
        let mut left = KeptLeft::default();
        for (kill_at, leader) in self.orphans.iter().take(MAX_LEFT) {
            let session = KeptSession {
                // The first reckoning counts: read again, the clocks would differ by a little each time.
                kill_at_ms: self.saved_left.sessions.get(leader).map_or_else(
                    || {
                        let left = kill_at.saturating_duration_since(at.now).as_millis();
                        let left = u64::try_from(left).unwrap_or(u64::MAX);
                        at.epoch_ms.saturating_add(left)
                    },
                    |known| known.kill_at_ms,
                ),
                members: members(&self.orphan_members, leader),
                escaped: members(&self.escaped, leader),
            };
            if !(session.members.is_empty() && session.escaped.is_empty()) {
                left.sessions.insert(*leader, session);
            }
        }
        if left == self.saved_left {
            return;
        }
        if let Some(link) = &self.link {
            let text = serde_json::to_string(&left).ok();
            let text = text.filter(|_| !left.sessions.is_empty());
            tasks::keep_own(link.clone(), state::left_value(link.namespace()), text);
            self.saved_left = left;
        }
    }
}
