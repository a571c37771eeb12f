//! What `down` ends where no manager can: workers that one left in the kernel, and orphans that a lost kernel left.
//!
//! Owns the order: claim the namespace, ask workers to end, kill what is left of them when their time is over, then give everything
//! back. Leaves to others: finding and signalling (`pidfd`, `tree`, `orphan`).
//! Invariant: only processes with a worker's name in the namespace, or with its mark, are ended; each is signalled through a pidfd.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use papa_protocol::client::{Address, ClientError};
use papa_protocol::json::reply::ErrorCode;
use papa_protocol::json::request as ops;
use papa_protocol::name::NamePattern;
use papa_protocol::process::{Overflow, Process};
use papa_protocol::record::Serial;

use crate::adopt::{Note, worker_of};
use crate::commands::CommandError;
use crate::commands::kernel::{block_on, connect, is_absent};
use crate::config::{Config, WatcherConfig};
use crate::control::message::LostOutput;
use crate::kernel_link::{KernelLink, LinkError};
use crate::mark::Lineage;
use crate::orphan::{self, Orphan, Search};
use crate::pidfd::{self, Whom};
use crate::tree::{self, Deed, Target, TargetId, TreeThread};

/// From one look at what still runs to the next.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long workers have whose watcher is not known; as long as a file gives them that says nothing.
const UNKNOWN_GRACE: Duration = Duration::from_secs(30);
/// How long what was killed may take to be gone.
const KILLED_PATIENCE: Duration = Duration::from_secs(5);

/// What was ended.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// For people, one sentence each.
    pub(super) said: Vec<String>,
    /// Output of workers that nobody had written.
    pub(super) lost: Vec<LostOutput>,
}

/// How a worker is asked to end.
struct Manner {
    signal: i32,
    whom: Whom,
    grace: Duration,
}

impl Manner {
    fn of(config: Option<&WatcherConfig>) -> Self {
        config.map_or(
            Self {
                signal: libc::SIGTERM,
                whom: Whom::Worker,
                grace: UNKNOWN_GRACE,
            },
            |config| Self {
                signal: config.stop_signal.number(),
                whom: if config.stop_children {
                    Whom::WorkerAndChildren
                } else {
                    Whom::Worker
                },
                grace: config.graceful_timeout,
            },
        )
    }
}

/// Ends everything that an earlier manager, or an earlier kernel, has left.
pub(super) fn end(
    addresses: &[Address],
    namespace: &str,
    config: Option<&Config>,
) -> Result<Ended, CommandError> {
    let (mut ended, spared) = end_workers(addresses, namespace, config)?.unwrap_or_default();
    let orphans = end_orphans(addresses, namespace, config, &spared);
    ended.said.extend(orphans);
    Ok(ended)
}

/// Ends the workers that a manager has left in the kernel at the first of `addresses` that answers, and gives up what was kept for
/// the next. Answers also which processes are the kernel's; none if no kernel answers.
fn end_workers(
    addresses: &[Address],
    namespace: &str,
    config: Option<&Config>,
) -> Result<Option<(Ended, Vec<i32>)>, CommandError> {
    block_on(async {
        for address in addresses {
            let client = match connect(address).await {
                Ok(client) => client,
                Err(error) if is_absent(address, &error) => continue,
                Err(error) => {
                    return Err(CommandError::Failed(format!("kernel {address}: {error}")));
                }
            };
            let link = KernelLink::new(client, vec![address.clone()], namespace.to_owned());
            let hello = link.client().hello();
            let kernel = [hello.pid, hello.keeper].into_iter();
            let kernel = kernel.filter_map(|pid| i32::try_from(pid).ok()).collect();
            let ended = end_all(&link, config).await?;
            return Ok(Some((ended, kernel)));
        }
        Ok(None)
    })?
}

async fn end_all(link: &KernelLink, config: Option<&Config>) -> Result<Ended, CommandError> {
    let failed = |error: LinkError| CommandError::Failed(format!("the kernel: {error}"));
    let holder = format!("papactl down, pid {}", std::process::id());
    if let Err(error) = link.claim(&holder).await {
        return Err(CommandError::Failed(match error.code() {
            Some(ErrorCode::Claimed) => format!(
                "{error}; a manager that is not found here runs, perhaps with another XDG_RUNTIME_DIR: run `papactl down` there"
            ),
            _ => format!("the kernel: {error}"),
        }));
    }
    let mut ended = Ended::default();
    let workers = workers(link, config).await.map_err(failed)?;
    let mut trees = Trees::start()?;
    let mut open: BTreeMap<u64, (Target, Manner, Instant, bool)> = BTreeMap::new();
    for process in workers.iter().filter(|process| process.running) {
        let (key, wid) = worker_of(link.namespace(), &process.name).unwrap_or_default();
        let manner = Manner::of(config.and_then(|config| config.watcher(key)));
        let pid = i32::try_from(process.pid).unwrap_or(0);
        let mark = link.mark(key, wid).await.map_err(failed)?.variables();
        let descendants = tree::descendants(pid);
        let target = Target {
            id: TargetId {
                owner: 0,
                serial: process.serial.0,
            },
            leader: pid,
            leads: false,
            known: descendants
                .iter()
                .map(|(pid, stat)| (*pid, stat.started))
                .collect(),
            cgroup: None,
            mark: mark
                .into_iter()
                .map(|(name, value)| format!("{name}={value}").into_bytes())
                .collect(),
        };
        signal(link, process, manner.signal, manner.whom)
            .await
            .map_err(failed)?;
        ended
            .said
            .push(format!("worker {wid} of {key}, pid {pid}: ended"));
        let kill_at = Instant::now() + manner.grace;
        open.insert(process.serial.0, (target, manner, kill_at, false));
    }
    let kernel = i32::try_from(link.client().hello().pid).ok();
    while !open.is_empty() {
        let now = Instant::now();
        let running: BTreeSet<u64> = self::workers(link, config)
            .await
            .map_err(failed)?
            .iter()
            .filter(|process| process.running)
            .map(|process| process.serial.0)
            .collect();
        let mut gone = Vec::new();
        for (serial, (target, manner, kill_at, asked)) in &mut open {
            let late = now >= *kill_at;
            if running.contains(serial) {
                if late && let Some(process) = workers.iter().find(|one| one.serial.0 == *serial) {
                    signal(link, process, libc::SIGKILL, Whom::Tree)
                        .await
                        .map_err(failed)?;
                }
                continue;
            }
            // The worker has ended: what it has left gets the same signal once, and the rest of the time.
            let deed = match (late, *asked) {
                (true, _) => Deed::Kill(None),
                (false, false) => Deed::Signal(manner.signal),
                (false, true) => Deed::Look,
            };
            *asked = true;
            let left = trees.ask(target.clone(), deed, kernel);
            if left.is_empty() || now >= *kill_at + KILLED_PATIENCE {
                if !left.is_empty() {
                    let left = tree::describe(&left);
                    ended.said.push(format!("cannot be ended: {left}"));
                }
                gone.push(*serial);
            }
        }
        for serial in gone {
            open.remove(&serial);
        }
        if !open.is_empty() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
    give_back(link, config, &mut ended).await.map_err(failed)?;
    Ok(ended)
}

/// Every process of a manager's worker, ended or not.
async fn workers(link: &KernelLink, config: Option<&Config>) -> Result<Vec<Process>, LinkError> {
    let list = ops::ProcessList {
        names: vec![NamePattern::new(&format!("{}.*", link.namespace()))],
        serials: Vec::new(),
    };
    let mut processes = link.client().call(list).await?.processes;
    // Others may keep processes under names that look alike.
    processes.retain(|process| {
        worker_of(link.namespace(), &process.name).is_some_and(|(key, _)| {
            Note::of(process).is_some()
                || config.is_some_and(|config| config.watcher(key).is_some())
        })
    });
    Ok(processes)
}

async fn signal(
    link: &KernelLink,
    process: &Process,
    signal: i32,
    whom: Whom,
) -> Result<(), LinkError> {
    let pid = i32::try_from(process.pid).unwrap_or(0);
    match link.pidfd(process.serial.0, pid).await {
        Ok(fd) => Ok(pidfd::signal(fd, pid, signal, whom)?),
        Err(error) if error.code() == Some(ErrorCode::NotFound) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Forgets the workers, and what was kept for the next manager, sockets among it.
async fn give_back(
    link: &KernelLink,
    config: Option<&Config>,
    ended: &mut Ended,
) -> Result<(), LinkError> {
    let mut lost: BTreeMap<String, u64> = BTreeMap::new();
    for process in workers(link, config).await? {
        let bytes = process.ledger.untaken();
        if let Some((key, _)) = worker_of(link.namespace(), &process.name)
            && bytes > 0
            && process.overflow != Overflow::DropOldest
        {
            *lost.entry(key.to_owned()).or_insert(0) += bytes;
        }
        let Serial(serial) = process.serial;
        link.acknowledge_exit(serial, true).await?;
    }
    ended.lost = lost
        .into_iter()
        .map(|(watcher, bytes)| LostOutput {
            files: Vec::new(),
            watcher,
            bytes,
            reason: "no manager runs that writes it".to_owned(),
        })
        .collect();
    let client = link.client();
    let of = |rest: &str| vec![NamePattern::new(&format!("{}.{rest}", link.namespace()))];
    let sockets = ops::SocketRemove {
        names: of("*"),
        force: false,
    };
    found(client.call(sockets).await)?;
    let names = of("manager.*");
    found(client.call(ops::ValueRemove { names }).await)?;
    let names = of("manager.*");
    found(client.call(ops::HoldDrop { names }).await)?;
    link.release().await
}

/// That there was nothing is no error.
fn found<T>(result: Result<T, ClientError>) -> Result<(), ClientError> {
    match result {
        Err(error) if error.code() == Some(ErrorCode::NotFound) => Ok(()),
        other => other.map(drop),
    }
}

/// The thread that looks for processes, asked one question after the other.
struct Trees {
    thread: TreeThread,
    answers: mpsc::Receiver<Vec<tree::Answer>>,
}

impl Trees {
    fn start() -> Result<Self, CommandError> {
        let (sender, answers) = mpsc::channel();
        let thread = TreeThread::start(move |answer| {
            // We are gone: nobody asks any more.
            let _ = sender.send(answer);
        })?;
        Ok(Self { thread, answers })
    }

    fn ask(&mut self, target: Target, deed: Deed, kernel: Option<i32>) -> Vec<tree::Member> {
        self.thread.order(tree::Order {
            target,
            deed,
            kernel,
        });
        let answers = self.answers.recv_timeout(KILLED_PATIENCE);
        let answers = answers.unwrap_or_default().into_iter();
        answers.flat_map(|answer| answer.members).collect()
    }
}

/// Ends the orphans that kernels at these places have left; `spared` are the processes of one that lives.
fn end_orphans(
    addresses: &[Address],
    namespace: &str,
    config: Option<&Config>,
    spared: &[i32],
) -> Vec<String> {
    let mut said = Vec::new();
    for place in places(addresses) {
        let lineage = Lineage {
            started_us: 0,
            place,
        };
        let search = Search {
            namespace,
            lineage: &lineage,
            users: &users(config),
            spared,
        };
        let found = search.run();
        let keys: BTreeSet<String> = found.iter().map(|one| one.mark.watcher.clone()).collect();
        let manner = |key: &str| Manner::of(config.and_then(|config| config.watcher(key)));
        for orphan in found.iter().filter(|orphan| orphan.top) {
            let manner = manner(&orphan.mark.watcher);
            orphan.signal(manner.signal, manner.whom);
        }
        let begun = Instant::now();
        for key in keys {
            let kill_at = begun + manner(&key).grace;
            let mut ours: Vec<Orphan> = found.clone();
            ours.retain(|orphan| orphan.mark.watcher == key);
            while ours.iter().any(Orphan::lives) && Instant::now() < kill_at {
                thread::sleep(LOOK_AGAIN);
            }
            // Also what they started meanwhile.
            search.kill_all(&key);
            let killed = Instant::now();
            while ours.iter().any(Orphan::lives) && killed.elapsed() < KILLED_PATIENCE {
                thread::sleep(LOOK_AGAIN);
            }
            for orphan in ours.iter().filter(|orphan| orphan.top) {
                let end = if orphan.lives() {
                    "cannot be ended"
                } else {
                    "ended"
                };
                said.push(format!(
                    "orphan of {key}, worker {}, pid {} ({}): {end}",
                    orphan.mark.wid, orphan.pid, orphan.command
                ));
            }
        }
    }
    said
}

/// The places of kernels, as workers know them.
fn places(addresses: &[Address]) -> BTreeSet<String> {
    let places = addresses.iter().filter_map(|address| match address {
        Address::Unix(path) => Some(path.display().to_string()),
        Address::Tcp(place) => Some(place.port().to_string()),
        Address::Abstract(_) => None,
    });
    places.collect()
}

fn users(config: Option<&Config>) -> BTreeSet<u32> {
    let watchers = config.into_iter().flat_map(|config| &config.watchers);
    orphan::users(watchers.filter_map(|watcher| watcher.uid.as_ref()))
}
