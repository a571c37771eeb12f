//! What workers that ended have left behind: who looks for it, and who is told.
//!
//! Owns the orders to the thread that looks (`tree`), and when the kernel may forget a worker:
//! after somebody has looked, because until then its number is its own. Leaves to others: what is
//! due when (`watcher`), finding and signalling (`tree`).
//! Invariant: an exit is acknowledged exactly when its worker's number is free, or it is kept what
//! it left.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::oneshot;

use papa_test_hooks::failpoint;

use crate::pidfd;
use crate::state::{self, KeptLeft, MAX_LEFT};
use crate::supervisor::probes::{gate, held_gate};
use crate::supervisor::{Event, Supervisor, WatcherId, tasks};
use crate::tree::{Answer, Deed, Order, Target, TargetId, TreeThread};
use crate::worker::{LeftDue, Running};

impl Supervisor {
    /// The thread that looks, started when it is first needed.
    fn trees(&mut self) -> Option<TreeThread> {
        if self.threads.trees.is_none() {
            let events = self.events.clone();
            let report = move |answers| {
                // The loop is gone only when the manager ends.
                let _ = events.blocking_send(Event::Left(answers));
            };
            match TreeThread::start(report) {
                Ok(thread) => self.threads.trees = Some(thread),
                Err(error) => {
                    tracing::error!(%error, "cannot look for processes; what workers leave behind runs on");
                }
            }
        }
        self.threads.trees.clone()
    }

    /// Its readiness descriptor is of no use any more.
    pub(super) fn discard_gate(&mut self, id: WatcherId, wid: u32) {
        if let (Some(link), Some(watcher)) = (self.connection.link(), self.watchers.get(&id))
            && held_gate(watcher.config())
        {
            self.probes.discard(gate(link, watcher.config(), wid));
        }
    }

    /// A worker has ended: its exit is acknowledged when somebody has looked what it left.
    pub(super) fn dealt_with(&mut self, id: WatcherId, serial: u64) {
        let left = self
            .watchers
            .get(&id)
            .and_then(|watcher| watcher.left(serial));
        if left.is_none() {
            self.forget_tree(id, serial);
            self.acknowledge(id, serial);
        } else {
            self.dead.await_look(serial);
        }
    }

    fn forget_tree(&mut self, id: WatcherId, serial: u64) {
        if let Some(trees) = &self.threads.trees {
            trees.order(Order {
                target: Target {
                    id: target_id(id, serial),
                    leader: 0,
                    leads: false,
                    known: Vec::new(),
                    cgroup: None,
                    mark: Vec::new(),
                },
                deed: Deed::Forget,
                kernel: None,
            });
        }
    }

    /// Somebody has looked.
    pub(super) fn left_found(&mut self, answers: Vec<Answer>) {
        let at = self.moment();
        for answer in answers {
            let id = WatcherId(answer.id.owner);
            let serial = answer.id.serial;
            let Some(watcher) = self.watchers.get_mut(&id) else {
                continue;
            };
            if watcher.left(serial).is_none() {
                continue;
            }
            let action = watcher.found_left(serial, &answer.members, &at);
            if let (Some(action), Some(link)) = (action, self.connection.link().cloned()) {
                self.perform(id, action, &link);
            }
            // From here on it is kept what it left, or nothing is.
            if self.dead.looked(serial) {
                self.acknowledge(id, serial);
            }
        }
    }

    /// Numbers of workers that are free now.
    pub(super) fn tell_freed(&mut self, touched: &BTreeSet<WatcherId>) {
        for id in touched.iter().copied() {
            let freed = self
                .watchers
                .get_to_read(&id)
                .map(crate::watcher::Watcher::take_freed);
            for serial in freed.unwrap_or_default() {
                if self.dead.looked(serial) {
                    self.acknowledge(id, serial);
                }
                self.forget_tree(id, serial);
            }
        }
    }

    /// Looks for what a worker left behind, and does what is due about it.
    pub(super) fn order_left(&mut self, id: WatcherId, process: Running, due: LeftDue) {
        let Some(watcher) = self.watchers.get(&id) else {
            return;
        };
        let Some((wid, known)) = watcher.left(process.serial) else {
            return;
        };
        let deed = match due {
            LeftDue::Look => Deed::Look,
            LeftDue::Signal => Deed::Signal(watcher.left_signal(process.serial)),
            LeftDue::Kill => {
                tracing::warn!(
                    watcher = watcher.config().name,
                    wid,
                    "Killing what a worker has left behind"
                );
                failpoint::reach("left.killing");
                Deed::Kill(None)
            }
            LeftDue::GiveUp => return,
        };
        let target = Target {
            id: target_id(id, process.serial),
            leader: process.pid,
            leads: false,
            known,
            cgroup: None,
            mark: Vec::new(),
        };
        let worker = Some((watcher.config().key.clone(), wid));
        self.order(target, worker, deed);
    }

    fn order(&mut self, target: Target, worker: Option<(String, u32)>, deed: Deed) {
        let (Some(trees), Some(link)) = (self.trees(), self.connection.link().cloned()) else {
            return;
        };
        tasks::order_tree(trees, link, target, worker, deed);
    }

    /// The whole of a worker that runs, as its processes are looked for. None if no such worker is
    /// there.
    fn target_of(&self, id: WatcherId, process: &Running) -> Option<(Target, (String, u32))> {
        let watcher = self.watchers.get(&id)?;
        let mut workers = watcher.workers().iter();
        let (wid, _) = workers.find(|(_, worker)| {
            worker
                .process()
                .is_some_and(|known| known.serial == process.serial)
        })?;
        let target = Target {
            id: target_id(id, process.serial),
            leader: process.pid,
            leads: true,
            known: Vec::new(),
            cgroup: None,
            mark: Vec::new(),
        };
        Some((target, (watcher.config().key.clone(), *wid)))
    }

    /// Has it noted who belongs to a worker that is about to be asked to end: some would not be
    /// recognised afterwards. The signal goes out when the answer is told.
    pub(super) fn note_tree(
        &mut self,
        id: WatcherId,
        process: &Running,
    ) -> Option<oneshot::Receiver<()>> {
        if self.watchers.get(&id)?.config().leave_children {
            return None;
        }
        let (target, worker) = self.target_of(id, process)?;
        let (told, noted) = oneshot::channel();
        self.order(target, Some(worker), Deed::Note(told));
        Some(noted)
    }

    /// Kills a worker and everything it started.
    pub(super) fn kill_tree(&mut self, id: WatcherId, process: Running) {
        let (Some((target, worker)), Some(trees)) = (self.target_of(id, &process), self.trees())
        else {
            return;
        };
        // What an earlier worker of this number has left running on purpose has the same mark.
        let leaves = self
            .watchers
            .get(&id)
            .is_some_and(|watcher| watcher.config().leave_children);
        let mark = (!leaves).then_some(worker);
        if let Some(link) = self.connection.link().cloned() {
            tasks::kill(link, trees, &self.threads.kills, target, mark, process);
        }
    }

    /// What ended workers of a predecessor that knew no better have left behind: it is killed when
    /// its time is over.
    pub(super) fn take_over_left(&mut self, left: KeptLeft) {
        if left.sessions.is_empty() {
            return;
        }
        let at = self.moment();
        let longest = self.watchers.values();
        let longest = longest
            .map(|watcher| watcher.config().graceful_timeout)
            .max();
        for (leader, session) in left.sessions.into_iter().take(MAX_LEFT) {
            let known = [session.members, session.escaped].concat();
            if !pidfd::any_lives(&known) {
                continue;
            }
            let time = Duration::from_millis(session.kill_at_ms.saturating_sub(at.epoch_ms));
            // A clock that was set back must not keep it for ever.
            let time = time.min(longest.unwrap_or(time));
            let target = Target {
                // No watcher has this number.
                id: TargetId {
                    owner: u32::MAX,
                    serial: u64::from(leader.unsigned_abs()),
                },
                leader,
                leads: false,
                known,
                cgroup: None,
                mark: Vec::new(),
            };
            if let (Some(trees), Some(link)) = (self.trees(), self.connection.link().cloned()) {
                tokio::spawn(async move {
                    tokio::time::sleep(time).await;
                    tasks::order_tree(trees, link, target, None, Deed::Kill(None));
                });
            }
        }
        self.keep(state::left_value(&self.config.namespace), None);
    }
}

fn target_id(id: WatcherId, serial: u64) -> TargetId {
    TargetId {
        owner: id.0,
        serial,
    }
}
