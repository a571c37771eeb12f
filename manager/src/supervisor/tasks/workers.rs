//! Single workers: start, stop, signal, kill, and the search for the processes that belong to one.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use papa_client::ClientError;
use papa_protocol::json::reply::ErrorCode;
use papa_protocol::process::Process;
use papa_test_hooks::failpoint;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::sleep;

use super::{KEPT_PATIENCE, KERNEL_AGAIN};
use crate::config::{Place, Release, WatcherConfig, inspect};
use crate::kernel_link::{KernelLink, LinkError};
use crate::pidfd::{self, Whom};
use crate::probe::ProbeError;
use crate::probe::ready::Means;
use crate::supervisor::probes::{gate, held_gate};
use crate::supervisor::saves::Pass;
use crate::supervisor::{Event, WatcherId};
use crate::tree::{self, Deed, Leader, Target, TreeThread};
use crate::watcher::StartFailure;
use crate::worker::Running;
use papa_system::sys;

/// How long a stop signal waits until the processes of the worker are noted.
const NOTE_PATIENCE: Duration = Duration::from_secs(1);
/// How long the kernel may take to tell its process id.
const STATUS_PATIENCE: Duration = Duration::from_millis(500);
/// Attempts to send a signal while the kernel does not answer.
const SIGNAL_ATTEMPTS: usize = 5;
/// How long the file system may take to say whether a release exists.
const LOOK_PATIENCE: Duration = Duration::from_secs(2);
/// Signals sent at once; each needs a descriptor while it is sent.
const MAX_SIGNALS_AT_ONCE: usize = 64;

/// The worker to be started.
#[derive(Debug, Clone, Copy)]
pub(in crate::supervisor) struct Order {
    pub(in crate::supervisor) watcher: WatcherId,
    pub(in crate::supervisor) wid: u32,
    pub(in crate::supervisor) generation: u64,
}

/// Starts one worker, once the stop signals in `signals` are sent and `kept` is over: a reload never
/// has more workers than it may, and until `kept` is over an ended worker may still have the name.
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
        await_signals(signals).await;
        let (moved, result) = match place(&config, failed).await {
            Ok(placed) => (
                moved(&config, &placed, order.wid),
                launch(&link, &config, &placed, order, kept).await,
            ),
            Err(failure) => (None, Err(failure)),
        };
        let Order { watcher, wid, .. } = order;
        let started = Event::Started {
            watcher,
            wid,
            moved,
            result,
        };
        let _ = events.send(started).await;
    });
}

/// Waits until these signals are sent, for [`NOTE_PATIENCE`].
async fn await_signals(signals: Vec<oneshot::Receiver<()>>) {
    let sent = async {
        for signal in signals {
            // A task that has ended sends nothing any more.
            let _ = signal.await;
        }
    };
    let _ = tokio::time::timeout(NOTE_PATIENCE, sent).await;
}

/// The settings of a worker with the release it starts in: its own, or another if that was deleted.
async fn place(
    config: &Arc<WatcherConfig>,
    failed: Option<Release>,
) -> Result<Arc<WatcherConfig>, StartFailure> {
    let own = config.clone();
    let looked = tokio::task::spawn_blocking(move || own.place(failed.as_ref()));
    match tokio::time::timeout(LOOK_PATIENCE, looked).await {
        Ok(Ok(Place::Moved(placed))) => Ok(Arc::new(*placed)),
        Ok(Ok(Place::Nowhere(reason))) => Err(StartFailure::NoRelease(reason)),
        // Where the file system does not answer, the kernel finds out.
        Ok(Ok(Place::Own) | Err(_)) | Err(_) => Ok(config.clone()),
    }
}

/// The release that a worker starts in instead of its own.
fn moved(config: &WatcherConfig, placed: &WatcherConfig, wid: u32) -> Option<Release> {
    let release = placed.release().filter(|_| placed != config)?;
    tracing::warn!(
        watcher = config.name,
        wid,
        release = release.describe(),
        "starting a worker in another release: its own was deleted"
    );
    Some(release)
}

/// Has the kernel start a worker as soon as `kept` is over.
async fn launch(
    link: &KernelLink,
    config: &Arc<WatcherConfig>,
    placed: &WatcherConfig,
    order: Order,
    kept: Pass,
) -> Result<Process, StartFailure> {
    let Order {
        wid, generation, ..
    } = order;
    let prepared = if kept.wait(KEPT_PATIENCE).await {
        prepare(link, config, wid).await
    } else {
        // The kernel was not asked; the watcher starts the worker again.
        Err(StartFailure::Unanswered)
    };
    let result = match prepared {
        Ok(means) => {
            let started = link.start(config, placed, wid, generation, means).await;
            started.map_err(|error| match error.is_unanswered() {
                true => StartFailure::Unanswered,
                false => StartFailure::Refused(error.to_string()),
            })
        }
        Err(failure) => Err(failure),
    };
    let result = match result {
        Err(StartFailure::Refused(reason)) => Err(explained(link, config, reason).await),
        result => result,
    };
    failpoint::reach("spawn.answered");
    result
}

/// A refused start, with the interpreter that the program lacks if that is the reason.
async fn explained(link: &KernelLink, config: &Arc<WatcherConfig>, reason: String) -> StartFailure {
    let (config, namespace) = (config.clone(), link.namespace().to_owned());
    let hint =
        tokio::task::spawn_blocking(move || inspect::missing_interpreter(&config, &namespace));
    StartFailure::Refused(match hint.await {
        Ok(Some(hint)) => format!("{reason}; {hint}"),
        _ => reason,
    })
}

/// What the worker is given to report that it is ready.
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

/// The processes that get the stop signal.
pub(in crate::supervisor) fn stop_reach(stop_children: bool) -> Whom {
    if stop_children {
        Whom::WorkerAndChildren
    } else {
        Whom::Worker
    }
}

/// Sends a stop signal, once the processes of the worker are noted and it is kept that it is to end.
/// The receiver answers when the signal is sent.
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
            // Processes that are not noted in time are found later by parent, session and mark.
            let _ = tokio::time::timeout(NOTE_PATIENCE, noted).await;
        }
        // A worker is stopped even if nothing can be kept.
        kept.wait(KEPT_PATIENCE).await;
        // Errors are logged; a worker that gets no signal is killed after its grace period.
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

/// Has the thread for process trees look for the processes of a worker, and act on them.
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

/// The environment entries that mark a worker's processes; empty if the kernel does not answer.
async fn mark(link: &KernelLink, (key, wid): &(String, u32)) -> Vec<Vec<u8>> {
    let asked = tokio::time::timeout(STATUS_PATIENCE, link.ours().mark(key, *wid)).await;
    let Ok(Ok(mark)) = asked else {
        return Vec::new();
    };
    let entry = |(name, value)| format!("{name}={value}").into_bytes();
    mark.variables().into_iter().map(entry).collect()
}

/// Sends a signal to one process, or to others of its tree. The receiver answers when the signal is
/// sent, or why it is not.
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

/// Kills under way, one for each worker at most: one that cannot end is ordered to again and again.
#[derive(Debug, Clone, Default)]
pub(in crate::supervisor) struct Kills(Arc<Mutex<BTreeSet<u64>>>);

/// A kill under way; over when dropped.
#[derive(Debug)]
struct Kill {
    kills: Kills,
    serial: u64,
}

impl Kills {
    /// None if there is one under way for this worker.
    fn begin(&self, serial: u64) -> Option<Kill> {
        let mut under_way = self.0.lock().ok()?;
        under_way.insert(serial).then(|| Kill {
            kills: self.clone(),
            serial,
        })
    }
}

impl Drop for Kill {
    fn drop(&mut self) {
        if let Ok(mut under_way) = self.kills.0.lock() {
            under_way.remove(&self.serial);
        }
    }
}

/// Kills one worker and everything it started, unless that is under way. With a `mark`, that of this
/// watcher's worker with this number, also what only that tells of. Its descriptor is counted until
/// the thread has done it: [`send`] bounds those under way, and here those that wait in the thread's
/// queue.
pub(in crate::supervisor) fn kill(
    link: KernelLink,
    trees: TreeThread,
    kills: &Kills,
    mut target: Target,
    mark: Option<(String, u32)>,
    process: Running,
) {
    static AT_ONCE: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(at_once()));
    let Some(kill) = kills.begin(process.serial) else {
        return;
    };
    tokio::spawn(async move {
        let turn = AT_ONCE.clone().acquire_owned().await.ok();
        let mut held = Some(Box::new((kill, turn)));
        if let Some(worker) = mark {
            target.mark = self::mark(&link, &worker).await;
        }
        let kernel = Some(link.process_now(STATUS_PATIENCE).await);
        let _ = send(&link, process, |pidfd| {
            if let Some(held) = held.take() {
                trees.order(tree::Order {
                    target: target.clone(),
                    deed: Deed::Kill(Some(Leader { pidfd, held })),
                    kernel,
                });
            }
            Ok(())
        })
        .await;
    });
}

/// As many turns as processes may be signalled, or killed, at once.
fn at_once() -> Semaphore {
    Semaphore::new((sys::descriptor_limit() / 16).clamp(1, MAX_SIGNALS_AT_ONCE))
}

/// Acts on the pidfd of a process, unless that has ended. The error is logged, and is for people.
async fn send(
    link: &KernelLink,
    process: Running,
    mut act: impl FnMut(std::os::fd::OwnedFd) -> std::io::Result<()>,
) -> Result<(), String> {
    static AT_ONCE: LazyLock<Semaphore> = LazyLock::new(at_once);
    // A descriptor that arrives when the process has no number left for it breaks the connection.
    let _turn = AT_ONCE.acquire().await;
    for _ in 0..SIGNAL_ATTEMPTS {
        let sent = match link.ours().pidfd(process.serial, process.pid).await {
            Ok(fd) => act(fd).map_err(LinkError::from),
            Err(error) => Err(error),
        };
        match sent {
            Ok(()) => return Ok(()),
            // It has ended; its exit is under way.
            Err(error) if error.code() == Some(ErrorCode::NotFound) => return Ok(()),
            Err(error) if error.is_unanswered() => sleep(KERNEL_AGAIN).await,
            Err(error) => {
                tracing::warn!(pid = process.pid, %error, "cannot signal a worker");
                return Err(format!("pid {} cannot be signalled: {error}", process.pid));
            }
        }
    }
    tracing::warn!(
        pid = process.pid,
        "cannot signal a worker: the kernel does not answer"
    );
    Err(format!(
        "pid {} cannot be signalled: the kernel does not answer",
        process.pid
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_cannot_end_is_killed_once_at_a_time() {
        let kills = Kills::default();
        let first = kills.begin(7);
        assert!(first.is_some() && kills.begin(8).is_some());
        assert!(kills.begin(7).is_none(), "it waits for the first");
        drop(first);
        assert!(kills.begin(7).is_some());
    }
}
