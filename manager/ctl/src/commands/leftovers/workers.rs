//! Ending the workers that a manager has left in the kernel.
//!
//! Owns the order: claim the namespace, send stop signals, kill what is left when a grace period is
//! over, remove what was kept for the next manager. A worker counts as ended when everything it
//! started has ended.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Instant;

use nix::libc;
use papa_client::ClientError;
use papa_config::{Config, worker_of};
use papa_control::message::LostOutput;
use papa_control::namespace::{LinkError, Namespace};
use papa_control::note::Note;
use papa_processes::pidfd::{self, Whom};
use papa_processes::tree::{self, Deed, Target, TargetId, TreeThread};
use papa_protocol::json::reply::ErrorCode;
use papa_protocol::json::request as ops;
use papa_protocol::name::NamePattern;
use papa_protocol::process::{Overflow, Process};
use papa_protocol::record::Serial;

use super::task::{Ended, KILLED_PATIENCE, LOOK_AGAIN, Manner, Task, left};
use crate::commands::CommandError;
use crate::commands::kernel::{KernelError, block_on, connect, is_absent};

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

impl Ending {
    /// What is done to the processes of a worker that has ended: they get its stop signal once, and
    /// are killed when its grace period is over.
    fn next_deed(&mut self, now: Instant) -> Deed {
        let asked = std::mem::replace(&mut self.asked, true);
        if now >= self.kill_at {
            Deed::Kill(None)
        } else if asked {
            Deed::Look
        } else {
            Deed::Signal(self.manner.signal)
        }
    }
}

/// Ends the workers that a manager has left in the kernel at the first of `addresses` that answers,
/// and gives up what was kept for the next. Answers also which processes are the kernel's; none if
/// no kernel answers.
pub(super) fn end_workers(task: &Task<'_>) -> Result<Option<(Ended, Vec<i32>)>, CommandError> {
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
    claim(link).await?;
    let mut ended = Ended::default();
    let mut trees = Trees::start()?;
    let mut open = ask_to_end(link, config).await.map_err(failed)?;
    let kernel = i32::try_from(link.client().hello().pid).ok();
    while !open.is_empty() {
        let now = Instant::now();
        let running = running(link, config).await.map_err(failed)?;
        let mut gone = Vec::new();
        for (serial, one) in &mut open {
            let over = now >= deadline.min(one.kill_at + KILLED_PATIENCE);
            if let Some(process) = running.get(serial) {
                if over {
                    ended.left.extend(left(one.target.leader, None));
                    gone.push(*serial);
                } else if now >= one.kill_at {
                    signal(link, process, libc::SIGKILL, Whom::Tree)
                        .await
                        .map_err(failed)?;
                }
                continue;
            }
            let deed = one.next_deed(now);
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

/// Claims the namespace for as long as its workers are ended.
async fn claim(link: &Namespace) -> Result<(), CommandError> {
    let holder = format!("papactl down, pid {}", std::process::id());
    let Err(error) = link.claim(&holder).await else {
        return Ok(());
    };
    Err(CommandError::Failed(match error.code() {
        Some(ErrorCode::Claimed) => format!(
            "{error}; a manager that is not found here runs, perhaps with another XDG_RUNTIME_DIR: run `papactl down` there"
        ),
        _ => format!("the kernel: {error}"),
    }))
}

/// Sends every running worker its stop signal. Returns them by serial.
async fn ask_to_end(
    link: &Namespace,
    config: Option<&Config>,
) -> Result<BTreeMap<u64, Ending>, LinkError> {
    let mut open = BTreeMap::new();
    for (serial, process) in running(link, config).await? {
        let (key, wid) = worker_of(link.name(), &process.name).unwrap_or_default();
        let manner = Manner::of(config.and_then(|config| config.watcher(key)));
        let pid = i32::try_from(process.pid).unwrap_or(0);
        let mark = link.mark(key, wid).await?.variables();
        let descendants = tree::descendants(pid);
        let target = Target {
            id: TargetId { owner: 0, serial },
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
        signal(link, &process, manner.signal, manner.whom).await?;
        let one = Ending {
            target,
            manner,
            kill_at: Instant::now() + manner.grace,
            asked: false,
            said: format!("worker {wid} of {key}, pid {pid}: ended"),
        };
        open.insert(serial, one);
    }
    Ok(open)
}

/// The workers that run, by serial.
async fn running(
    link: &Namespace,
    config: Option<&Config>,
) -> Result<BTreeMap<u64, Process>, LinkError> {
    let workers = workers(link, config).await?.into_iter();
    let running = workers.filter(|process| process.running);
    Ok(running.map(|process| (process.serial.0, process)).collect())
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
