//! The thread that looks for workers' processes and signals them.
//!
//! Owns what was seen of each worker. All orders that wait are served by one pass over `/proc`.
//! Invariant: every order is answered, in at most the bound of `end` after those before it; orders
//! are at most a few for each worker.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::mpsc;

use tokio::sync::oneshot;

use crate::tree::end::{Doomed, HUNT, end, hunt, signal_exactly};
use crate::tree::memory::Memory;
use crate::tree::scan::Snapshot;
use crate::tree::{Member, Target, TargetId};

/// What is to be done with a worker's processes.
#[derive(Debug)]
pub enum Deed {
    /// Nothing: they are only looked for. Whoever waits is told when that is done.
    Note(oneshot::Sender<()>),
    /// They are looked for, and those found are answered.
    Look,
    /// The same, and each gets this signal.
    Signal(i32),
    /// All are frozen and killed, the leader first where there is one; those that are left are
    /// answered.
    Kill(Option<Leader>),
    /// They are nobody's concern any more.
    Forget,
}

/// The worker itself, among its processes.
#[derive(Debug)]
pub struct Leader {
    /// Its pidfd.
    pub pidfd: OwnedFd,
    /// Dropped with the descriptor: so whoever orders kills bounds how many wait.
    pub held: Box<dyn std::fmt::Debug + Send>,
}

/// Something to do.
#[derive(Debug)]
pub struct Order {
    /// With whose processes.
    pub target: Target,
    /// What.
    pub deed: Deed,
    /// The kernel's process, if there is one.
    pub kernel: Option<i32>,
}

/// Who was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Whose.
    pub id: TargetId,
    /// Those that were found, or are left; without the leader while it is not being killed.
    pub members: Vec<Member>,
}

/// The thread; it ends when the last handle is dropped. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TreeThread(mpsc::Sender<Order>);

impl TreeThread {
    /// Starts the thread; `report` is called on it for every look, signal and kill, and may wait.
    ///
    /// # Errors
    /// The system has no room for a thread.
    pub fn start(report: impl Fn(Vec<Answer>) + Send + 'static) -> std::io::Result<Self> {
        let (sender, orders) = mpsc::channel();
        std::thread::Builder::new()
            .name("trees".to_owned())
            .spawn(move || serve(&orders, report))?;
        Ok(Self(sender))
    }

    /// Has something done. The answer goes to `report`.
    pub fn order(&self, order: Order) {
        // It ends only with the process.
        let _ = self.0.send(order);
    }
}

fn serve(orders: &mpsc::Receiver<Order>, report: impl Fn(Vec<Answer>)) {
    let mut memories: BTreeMap<TargetId, Memory> = BTreeMap::new();
    while let Ok(first) = orders.recv() {
        let batch: Vec<Order> = std::iter::once(first).chain(orders.try_iter()).collect();
        let answers = carry_out(batch, &mut memories);
        if !answers.is_empty() {
            report(answers);
        }
    }
}

fn carry_out(batch: Vec<Order>, memories: &mut BTreeMap<TargetId, Memory>) -> Vec<Answer> {
    let kernel = batch.iter().rev().find_map(|order| order.kernel);
    let mut answers = Vec::new();
    let mut doomed: Vec<(Target, Memory, Option<OwnedFd>)> = Vec::new();
    let mut held = Vec::new();
    let mut noted = Vec::new();
    let mut snapshot: Option<Snapshot> = None;
    let mut empty: Vec<Target> = Vec::new();
    for Order { target, deed, .. } in batch {
        let id = target.id;
        let memory = match deed {
            Deed::Forget => {
                memories.remove(&id);
                continue;
            }
            _ => memories.entry(id).or_insert_with(|| Memory::of(&target)),
        };
        if let Deed::Kill(leader) = deed {
            let memory = std::mem::take(memory);
            let leader = leader.map(|Leader { pidfd, held }| (pidfd, held));
            let (pidfd, kept) = leader.unzip();
            held.extend(kept);
            doomed.push((target, memory, pidfd));
            continue;
        }
        let snapshot = snapshot.get_or_insert_with(|| Snapshot::take(kernel));
        let members = snapshot.members(&target, memory);
        if let Deed::Signal(signal) = deed {
            for (pid, stat) in &members {
                signal_exactly(*pid, stat, signal);
            }
        }
        if let Deed::Note(told) = deed {
            noted.push(told);
            continue;
        }
        if members.is_empty() {
            empty.push(target);
            continue;
        }
        let members = members.iter().map(|(pid, stat)| stat.member(*pid));
        answers.push(Answer {
            id,
            members: members.collect(),
        });
    }
    if let Some(snapshot) = &snapshot {
        answers.extend(make_sure(&empty, memories, snapshot));
    }
    for told in noted {
        // Whoever waited may have lost patience.
        let _ = told.send(());
    }
    if !doomed.is_empty() {
        let mut trees: Vec<Doomed<'_>> = doomed
            .iter_mut()
            .map(|(target, memory, leader)| Doomed {
                target,
                memory,
                leader: leader.take(),
                left: Vec::new(),
            })
            .collect();
        end(&mut trees, kernel);
        for tree in trees {
            answers.push(Answer {
                id: tree.target.id,
                members: tree.left,
            });
        }
        for (target, memory, _) in doomed {
            memories.insert(target.id, memory);
        }
    }
    answers
}

/// Of these nobody was found; somebody who forks away may have been missed.
fn make_sure(
    targets: &[Target],
    memories: &BTreeMap<TargetId, Memory>,
    snapshot: &Snapshot,
) -> Vec<Answer> {
    let mut met: BTreeMap<TargetId, Member> = BTreeMap::new();
    if snapshot.moved() {
        let trees: Vec<(&Target, &Memory)> = targets
            .iter()
            .filter_map(|target| Some((target, memories.get(&target.id)?)))
            .collect();
        hunt(&trees, snapshot, HUNT, |target, pid, stat| {
            met.insert(target.id, stat.member(pid));
            met.len() < trees.len()
        });
    }
    let answer = |target: &Target| Answer {
        id: target.id,
        members: met.get(&target.id).cloned().into_iter().collect(),
    };
    targets.iter().map(answer).collect()
}
