//! What `down` ends where no manager can: workers that one left in the kernel, and orphans that a
//! lost kernel left.
//!
//! Owns the order: claim the namespace, ask workers to end, kill what is left of them when their
//! time is over, then give everything back. Leaves to others: finding and signalling (`pidfd`,
//! `tree`, `orphan`).
//! Invariants: only processes with a worker's name in the namespace, with its mark, or known to a
//! manager as its workers are ended, each signalled through a pidfd. Nothing is waited for beyond
//! the deadline.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use papa_client::{Address, ClientError};
use papa_config::worker_of;
use papa_protocol::json::reply::ErrorCode;
use papa_protocol::json::request as ops;
use papa_protocol::name::NamePattern;
use papa_protocol::process::{Overflow, Process};
use papa_protocol::record::Serial;

use crate::commands::CommandError;
use crate::commands::kernel::{KernelError, block_on, connect, is_absent};
use papa_config::{Config, WatcherConfig};
use papa_control::message::{LostOutput, WatcherStatus};
use papa_control::namespace::{LinkError, Namespace};
use papa_control::note::Note;
use papa_processes::mark::{Lineage, Mark};
use papa_processes::orphan::{self, Known, Notes, Orphan, Search};
use papa_processes::pidfd::{self, Whom};
use papa_processes::tree::{self, Deed, Target, TargetId, TreeThread};
use papa_system::runtime_dir::RuntimeDir;

/// From one look at what still runs to the next.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long workers have whose watcher is not known; as long as a file gives them that says
/// nothing.
const UNKNOWN_GRACE: Duration = Duration::from_secs(30);
/// How long what was killed may take to be gone.
const KILLED_PATIENCE: Duration = Duration::from_secs(5);

/// From one kill of what survives it to the next.
const KILL_AGAIN: Duration = Duration::from_secs(1);
/// Most processes named one by one that are left.
const MAX_LEFT: usize = 20;

/// What was ended.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// For people, one sentence each.
    pub(super) said: Vec<String>,
    /// What runs still when the time was over, for people.
    pub(super) left: Vec<String>,
    /// Output of workers that nobody had written.
    pub(super) lost: Vec<LostOutput>,
}

/// What is to be ended, and until when.
#[derive(Debug)]
pub(super) struct Task<'a> {
    /// Where the kernel may answer.
    pub(super) addresses: &'a [Address],
    /// Whose workers they are.
    pub(super) namespace: &'a str,
    /// How each is to be ended.
    pub(super) config: Option<&'a Config>,
    /// Workers that a manager knew whose kernel is lost.
    pub(super) known: &'a [WatcherStatus],
    /// Nothing is waited for any longer.
    pub(super) deadline: Instant,
}

/// How a worker is asked to end.
#[derive(Clone, Copy)]
struct Manner {
    signal: i32,
    whom: Whom,
    grace: Duration,
}

/// One worker on its way out.
struct Ending {
    target: Target,
    manner: Manner,
    kill_at: Instant,
    /// What it has left was asked to end.
    asked: bool,
    /// For people, once it has ended.
    said: String,
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
pub(super) fn end(task: &Task<'_>) -> Result<Ended, CommandError> {
    let notes = Notes::new(RuntimeDir::locate(), task.namespace);
    let noted = notes.read();
    let (mut ended, spared) = end_workers(task)?.unwrap_or_default();
    end_orphans(task, &noted, &spared, &mut ended);
    let lives = |known: &Known| pidfd::any_lives(&[(known.pid, known.started)]);
    let left: Vec<Known> = noted.into_iter().filter(lives).collect();
    if let Err(error) = notes.write(&left) {
        tracing::warn!(path = %notes.path().display(), %error, "cannot note what is left");
    }
    Ok(ended)
}

/// Ends the workers that a manager has left in the kernel at the first of `addresses` that answers,
/// and gives up what was kept for the next. Answers also which processes are the kernel's; none if
/// no kernel answers.
fn end_workers(task: &Task<'_>) -> Result<Option<(Ended, Vec<i32>)>, CommandError> {
    block_on(async {
        for address in task.addresses {
            let client = match connect(address).await {
                Ok(client) => client,
                Err(error) if is_absent(address, &error) => continue,
                Err(error) => return Err(KernelError::at(address, error).into()),
            };
            let link = Namespace::new(client, task.namespace.to_owned());
            let hello = link.client().hello();
            let kernel = [hello.pid, hello.keeper].into_iter();
            let kernel = kernel.filter_map(|pid| i32::try_from(pid).ok()).collect();
            let ended = end_all(&link, task.config, task.deadline).await?;
            return Ok(Some((ended, kernel)));
        }
        Ok(None)
    })?
}

async fn end_all(
    link: &Namespace,
    config: Option<&Config>,
    deadline: Instant,
) -> Result<Ended, CommandError> {
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
    let mut open: BTreeMap<u64, Ending> = BTreeMap::new();
    for process in workers.iter().filter(|process| process.running) {
        let (key, wid) = worker_of(link.name(), &process.name).unwrap_or_default();
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
        let one = Ending {
            target,
            manner,
            kill_at: Instant::now() + manner.grace,
            asked: false,
            said: format!("worker {wid} of {key}, pid {pid}: ended"),
        };
        open.insert(process.serial.0, one);
    }
    let kernel = i32::try_from(link.client().hello().pid).ok();
    while !open.is_empty() {
        let now = Instant::now();
        let running: BTreeMap<u64, Process> = self::workers(link, config)
            .await
            .map_err(failed)?
            .into_iter()
            .filter(|process| process.running)
            .map(|process| (process.serial.0, process))
            .collect();
        let mut gone = Vec::new();
        for (serial, one) in &mut open {
            let late = now >= one.kill_at;
            let over = now >= deadline.min(one.kill_at + KILLED_PATIENCE);
            if let Some(process) = running.get(serial) {
                if over {
                    ended.left.extend(left(one.target.leader, None));
                    gone.push(*serial);
                } else if late {
                    signal(link, process, libc::SIGKILL, Whom::Tree)
                        .await
                        .map_err(failed)?;
                }
                continue;
            }
            // The worker has ended: what it has left gets the same signal once, and the rest of the
            // time.
            let deed = match (late, one.asked) {
                (true, _) => Deed::Kill(None),
                (false, false) => Deed::Signal(one.manner.signal),
                (false, true) => Deed::Look,
            };
            one.asked = true;
            let members = trees.ask(one.target.clone(), deed, kernel, deadline);
            if members.is_empty() {
                ended.said.push(std::mem::take(&mut one.said));
                gone.push(*serial);
            } else if over {
                let members = members.iter();
                let members = members.filter_map(|one| left(one.pid, Some(one.started)));
                ended.left.extend(members);
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
    if !ended.left.is_empty() {
        // The kernel keeps what is known of them, for the next attempt.
        link.release().await.map_err(failed)?;
        return Ok(ended);
    }
    give_back(link, config, &mut ended).await.map_err(failed)?;
    Ok(ended)
}

/// Every process of a manager's worker, ended or not.
async fn workers(link: &Namespace, config: Option<&Config>) -> Result<Vec<Process>, LinkError> {
    let list = ops::ProcessList {
        names: vec![NamePattern::new(&format!("{}.*", link.name()))],
        serials: Vec::new(),
    };
    let mut processes = link.client().call(list).await?.processes;
    // Others may keep processes under names that look alike.
    processes.retain(|process| {
        worker_of(link.name(), &process.name).is_some_and(|(key, _)| {
            Note::of(process).is_some()
                || config.is_some_and(|config| config.watcher(key).is_some())
        })
    });
    Ok(processes)
}

async fn signal(
    link: &Namespace,
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
    link: &Namespace,
    config: Option<&Config>,
    ended: &mut Ended,
) -> Result<(), LinkError> {
    let mut lost: BTreeMap<String, u64> = BTreeMap::new();
    for process in workers(link, config).await? {
        let bytes = process.ledger.untaken();
        if let Some((key, _)) = worker_of(link.name(), &process.name)
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
    let of = |rest: &str| vec![NamePattern::new(&format!("{}.{rest}", link.name()))];
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

    fn ask(
        &mut self,
        target: Target,
        deed: Deed,
        kernel: Option<i32>,
        deadline: Instant,
    ) -> Vec<tree::Member> {
        self.thread.order(tree::Order {
            target,
            deed,
            kernel,
        });
        let patience = deadline.saturating_duration_since(Instant::now());
        let answers = self.answers.recv_timeout(patience.min(KILLED_PATIENCE));
        let answers = answers.unwrap_or_default().into_iter();
        answers.flat_map(|answer| answer.members).collect()
    }
}

/// Ends the orphans that kernels at these places have left; `spared` are the processes of one that
/// lives.
fn end_orphans(task: &Task<'_>, noted: &[Known], spared: &[i32], ended: &mut Ended) {
    for place in places(task.addresses) {
        let lineage = Lineage {
            started_us: 0,
            place,
        };
        let search = Search {
            namespace: task.namespace.to_owned(),
            known: known(task, noted, &lineage),
            lineage,
            users: users(task.config),
            spared: spared.to_vec(),
        };
        end_found(task, search, ended);
    }
}

fn end_found(task: &Task<'_>, mut search: Search, ended: &mut Ended) {
    let found = search.run();
    let manner = |key: &str| Manner::of(task.config.and_then(|config| config.watcher(key)));
    let begun = Instant::now();
    let mut open: BTreeMap<String, Instant> = BTreeMap::new();
    for orphan in &found {
        search.remember(orphan);
        let key = &orphan.mark.watcher;
        open.insert(key.clone(), begun + manner(key).grace);
    }
    let mut kill_at = open.clone();
    let mut seen = found.clone();
    let mut asked: BTreeSet<tree::Identity> = BTreeSet::new();
    while !open.is_empty() {
        let now = Instant::now();
        for key in open.keys() {
            let manner = manner(key);
            let mut of = seen.clone();
            of.retain(|orphan| orphan.mark.watcher == *key);
            for orphan in orphan::asked_to_end(&of, manner.whom == Whom::WorkerAndChildren) {
                // Once each; what lives on without its parent is asked as well.
                if asked.insert((orphan.pid, orphan.started)) {
                    orphan.signal(manner.signal);
                }
            }
        }
        let due = kill_at.iter().filter(|(_, at)| **at <= now);
        let due: BTreeSet<String> = due.map(|(key, _)| key.clone()).collect();
        if !due.is_empty() {
            search.kill_all(&due);
            kill_at.retain(|key, _| open.contains_key(key));
            for key in due {
                kill_at.insert(key, now + KILL_AGAIN);
            }
        }
        let lived = seen.len();
        seen.retain(Orphan::lives);
        if seen.len() < lived {
            // What they started meanwhile.
            seen = search.run();
            for orphan in &seen {
                search.remember(orphan);
            }
        }
        open.retain(|key, grace_ends| {
            let over = now >= task.deadline.min(*grace_ends + KILLED_PATIENCE);
            !over && seen.iter().any(|orphan| orphan.mark.watcher == *key)
        });
        kill_at.retain(|key, _| open.contains_key(key));
        if !open.is_empty() {
            thread::sleep(LOOK_AGAIN);
        }
    }
    for orphan in found.iter().filter(|orphan| orphan.top) {
        if !orphan.lives() {
            ended.said.push(format!(
                "orphan of {}, worker {}, pid {} ({}): ended",
                orphan.mark.watcher, orphan.mark.wid, orphan.pid, orphan.command
            ));
        }
    }
    let left = search.run();
    let left = left
        .iter()
        .filter_map(|orphan| left_of(&orphan.mark, orphan));
    ended.left.extend(left);
}

/// The workers that a manager knew when it lost its kernel, or had noted before it ended.
fn known(task: &Task<'_>, noted: &[Known], lineage: &Lineage) -> Vec<Known> {
    let all = task.known.iter().flat_map(|watcher| {
        let key = watcher.name.to_lowercase();
        let workers = watcher.workers.iter();
        workers.filter_map(move |worker| {
            Some(Known {
                pid: i32::try_from(worker.pid).ok()?,
                started: worker.started_ticks?,
                mark: Mark {
                    namespace: task.namespace.to_owned(),
                    watcher: key.clone(),
                    wid: worker.wid,
                    lineage: lineage.clone(),
                },
            })
        })
    });
    all.chain(noted.iter().cloned()).collect()
}

/// What people are told of those that are left; none if there are none.
pub(super) fn tell_left(left: &[String]) -> Option<String> {
    let (first, more) = left.split_at(left.len().min(MAX_LEFT));
    if first.is_empty() {
        return None;
    }
    let mut text = format!("not ended: {}", first.join("; "));
    if !more.is_empty() {
        // Writing to a string does not fail.
        let _ = write!(text, "; and {} more", more.len());
    }
    text.push_str(
        "; try again with a longer --timeout, or see what they wait for (state D: a device or file system that does not answer)",
    );
    Some(text)
}

fn left_of(mark: &Mark, orphan: &Orphan) -> Option<String> {
    let left = left(orphan.pid, Some(orphan.started))?;
    Some(format!("{left}, orphan of {}", mark.watcher))
}

/// A process that runs still, for people.
fn left(pid: i32, started: Option<u64>) -> Option<String> {
    let stat = tree::stat(pid)?;
    if stat.is_zombie() || started.is_some_and(|started| started != stat.started) {
        return None;
    }
    let state = char::from(stat.state);
    Some(format!("pid {pid} ({}), state {state}", stat.command))
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
