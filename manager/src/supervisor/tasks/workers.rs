//! Requests about single workers: start, signal, kill, and who belongs to one.

use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use papa_client::ClientError;
use papa_protocol::json::reply::ErrorCode;
use papa_test_hooks::failpoint;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::sleep;

use super::CONNECT_AGAIN_MIN;
use crate::config::{Place, Release, WatcherConfig, inspect};
use crate::kernel_link::{KernelLink, LinkError};
use crate::pidfd::{self, Whom};
use crate::probe::ProbeError;
use crate::probe::ready::Means;
use crate::supervisor::probes::{gate, held_gate};
use crate::supervisor::saves::Pass;
use crate::supervisor::{Event, WatcherId};
use crate::tree::{self, Deed, Target, TreeThread};
use crate::watcher::StartFailure;
use crate::worker::Running;
use papa_system::sys;

/// How long a stop signal waits until it is noted who belongs to the worker.
const NOTE_PATIENCE: Duration = Duration::from_secs(1);
/// How long the kernel gets to say which process it is.
const STATUS_PATIENCE: Duration = Duration::from_millis(500);
/// How long a start or a stop waits until what it follows from is kept; more than something refused
/// is waited for.
const KEPT_PATIENCE: Duration = Duration::from_secs(5);
/// A signal whose way was cut by a dying kernel is sent again, so often.
const SIGNAL_ATTEMPTS: usize = 5;

/// How long the file system may take to say whether a release is there; one that hangs is left to
/// the kernel.
const LOOK_PATIENCE: Duration = Duration::from_secs(2);

/// Signals sent at once; each takes a descriptor for a moment.
const MAX_SIGNALS_AT_ONCE: usize = 64;

/// Which worker is to be started, and for whom.
#[derive(Debug, Clone, Copy)]
pub(in crate::supervisor) struct Order {
    pub(in crate::supervisor) watcher: WatcherId,
    pub(in crate::supervisor) wid: u32,
    pub(in crate::supervisor) generation: u64,
}

/// Starts one worker.
///
/// First the stop signals in `signals` go out: a reload would otherwise have one more worker there
/// than it may. And first `kept` is over: until then the name may belong to a worker that has
/// ended.
pub(in crate::supervisor) fn start(
    link: KernelLink,
    config: Arc<WatcherConfig>,
    order: Order,
    failed: Option<Release>,
    signals: Vec<oneshot::Receiver<()>>,
    kept: Pass,
    events: mpsc::Sender<Event>,
) {
    tokio::spawn(async move {
        let sent = async {
            for signal in signals {
                // An error means that the task has ended, which is as good.
                let _ = signal.await;
            }
        };
        let _ = tokio::time::timeout(NOTE_PATIENCE, sent).await;
        let Order {
            watcher,
            wid,
            generation,
        } = order;
        let looked = {
            let config = config.clone();
            tokio::task::spawn_blocking(move || config.place(failed.as_ref()))
        };
        let looked = tokio::time::timeout(LOOK_PATIENCE, looked).await;
        let placed = match looked {
            Ok(Ok(Place::Moved(placed))) => Arc::new(*placed),
            Ok(Ok(Place::Nowhere(reason))) => {
                let started = Event::Started {
                    watcher,
                    wid,
                    moved: None,
                    result: Err(StartFailure::NoRelease(reason)),
                };
                let _ = events.send(started).await;
                return;
            }
            // Without an answer the kernel's has to do.
            Ok(Ok(Place::Own) | Err(_)) | Err(_) => config.clone(),
        };
        let moved = (*placed != *config).then(|| placed.release()).flatten();
        if let Some(release) = &moved {
            let (watcher, release) = (&config.name, release.describe());
            tracing::warn!(
                watcher,
                wid,
                release,
                "starting a worker in another release: its own was deleted"
            );
        }
        let prepared = if kept.wait(KEPT_PATIENCE).await {
            prepare(&link, &config, wid).await
        } else {
            // Nothing was asked; the watcher asks again.
            Err(StartFailure::Unanswered)
        };
        let result = match prepared {
            Ok(means) => link
                .start(&config, &placed, wid, generation, means)
                .await
                .map_err(|error| {
                    if error.is_unanswered() {
                        StartFailure::Unanswered
                    } else {
                        StartFailure::Refused(error.to_string())
                    }
                }),
            Err(failure) => Err(failure),
        };
        let result = match result {
            Err(StartFailure::Refused(reason)) => {
                let namespace = link.namespace().to_owned();
                let hint = tokio::task::spawn_blocking(move || {
                    inspect::missing_interpreter(&config, &namespace)
                });
                Err(StartFailure::Refused(match hint.await {
                    Ok(Some(hint)) => format!("{reason}; {hint}"),
                    _ => reason,
                }))
            }
            result => result,
        };
        failpoint::reach("spawn.answered");
        let started = Event::Started {
            watcher,
            wid,
            moved,
            result,
        };
        let _ = events.send(started).await;
    });
}

/// What the worker needs to say that it is ready.
async fn prepare(
    link: &KernelLink,
    config: &WatcherConfig,
    wid: u32,
) -> Result<Means, StartFailure> {
    match &config.ready {
        Some(ready) if held_gate(config) => {
            gate(link, config, wid)
                .prepare(ready)
                .await
                .map_err(|error| match error {
                    ProbeError::Client(error) if !matches!(error, ClientError::Refused(_)) => {
                        StartFailure::Unanswered
                    }
                    error => StartFailure::Refused(error.to_string()),
                })
        }
        _ => Ok(Means::default()),
    }
}

/// Who gets the stop signal.
pub(in crate::supervisor) fn stop_reach(stop_children: bool) -> Whom {
    if stop_children {
        Whom::WorkerAndChildren
    } else {
        Whom::Worker
    }
}

/// Asks a worker to end, once it is noted who belongs to it and kept that it is to end. What it
/// answers is told when the signal is out.
pub(in crate::supervisor) fn stop(
    link: KernelLink,
    process: Running,
    signal: i32,
    whom: Whom,
    noted: Option<oneshot::Receiver<()>>,
    kept: Pass,
    events: mpsc::Sender<Event>,
) -> oneshot::Receiver<()> {
    let (sent, receiver) = oneshot::channel();
    tokio::spawn(async move {
        if let Some(noted) = noted {
            // Who cannot be told in time is recognised by parent, session and mark afterwards.
            let _ = tokio::time::timeout(NOTE_PATIENCE, noted).await;
        }
        // A stop is not refused because nothing can be kept.
        kept.wait(KEPT_PATIENCE).await;
        // What goes wrong is logged; whoever is still there is killed in the end.
        let _ = send(&link, process, |fd| {
            pidfd::signal(fd, process.pid, signal, whom)
        })
        .await;
        let _ = sent.send(());
        let _ = events.send(Event::SignalSent).await;
        failpoint::reach("reload.stopping");
    });
    receiver
}

/// Has processes looked for and dealt with.
pub(in crate::supervisor) fn order_tree(
    trees: TreeThread,
    link: KernelLink,
    mut target: Target,
    worker: Option<(String, u32)>,
    deed: Deed,
) {
    tokio::spawn(async move {
        if let Some(worker) = worker {
            target.mark = mark(&link, &worker).await;
        }
        let groups = &link.client().hello().cgroups;
        let serial = target.id.serial.to_string();
        target.cgroup = groups.as_ref().map(|path| Path::new(path).join(serial));
        let kernel = Some(link.process_now(STATUS_PATIENCE).await);
        trees.order(tree::Order {
            target,
            deed,
            kernel,
        });
    });
}

/// What a worker's environment has and nobody else's; nothing where the kernel does not say which
/// it is.
async fn mark(link: &KernelLink, (key, wid): &(String, u32)) -> Vec<Vec<u8>> {
    let asked = tokio::time::timeout(STATUS_PATIENCE, link.mark(key, *wid)).await;
    let Ok(Ok(mark)) = asked else {
        return Vec::new();
    };
    let entry = |(name, value)| format!("{name}={value}").into_bytes();
    mark.variables().into_iter().map(entry).collect()
}

/// Sends a signal to one process, or to others of its tree. What it answers is told when the signal
/// is out, or why it is not.
pub(in crate::supervisor) fn signal(
    link: KernelLink,
    process: Running,
    signal: i32,
    whom: Whom,
    events: mpsc::Sender<Event>,
) -> oneshot::Receiver<Result<(), String>> {
    let (told, receiver) = oneshot::channel();
    tokio::spawn(async move {
        let sent = send(&link, process, |fd| {
            pidfd::signal(fd, process.pid, signal, whom)
        })
        .await;
        let _ = told.send(sent);
        let _ = events.send(Event::SignalSent).await;
        failpoint::reach("reload.stopping");
    });
    receiver
}

/// Kills one worker and everything it started.
pub(in crate::supervisor) fn kill(
    link: KernelLink,
    trees: TreeThread,
    mut target: Target,
    worker: (String, u32),
    process: Running,
) {
    tokio::spawn(async move {
        target.mark = mark(&link, &worker).await;
        let kernel = Some(link.process_now(STATUS_PATIENCE).await);
        let _ = send(&link, process, |leader| {
            trees.order(tree::Order {
                target: target.clone(),
                deed: Deed::Kill(Some(leader)),
                kernel,
            });
            Ok(())
        })
        .await;
    });
}

/// Has something done with the pidfd of a process, unless that has ended. What goes wrong is
/// logged, and told to people.
async fn send(
    link: &KernelLink,
    process: Running,
    act: impl Fn(std::os::fd::OwnedFd) -> std::io::Result<()>,
) -> Result<(), String> {
    static AT_ONCE: LazyLock<Semaphore> = LazyLock::new(|| {
        Semaphore::new((sys::descriptor_limit() / 16).clamp(1, MAX_SIGNALS_AT_ONCE))
    });
    // A descriptor that arrives where there is no number left for it costs the connection.
    let _turn = AT_ONCE.acquire().await;
    for _ in 0..SIGNAL_ATTEMPTS {
        let sent = match link.pidfd(process.serial, process.pid).await {
            Ok(fd) => act(fd).map_err(LinkError::from),
            Err(error) => Err(error),
        };
        match sent {
            Ok(()) => return Ok(()),
            // Its exit is on the way to us.
            Err(error) if error.code() == Some(ErrorCode::NotFound) => return Ok(()),
            Err(error) if error.is_unanswered() => sleep(CONNECT_AGAIN_MIN).await,
            Err(error) => {
                tracing::warn!(pid = process.pid, %error, "cannot signal a worker");
                return Err(format!("pid {} cannot be signalled: {error}", process.pid));
            }
        }
    }
    tracing::warn!(
        pid = process.pid,
        "a worker cannot be signalled: the kernel does not answer"
    );
    Err(format!(
        "pid {} cannot be signalled: the kernel does not answer",
        process.pid
    ))
}
