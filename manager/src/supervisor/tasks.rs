//! What the supervisor has others do meanwhile: requests to the kernel, each on a tokio task that answers with an event.
//!
//! Owns no state. Invariant: every task ends by itself, and a request the kernel did not answer is asked again only where repeating it
//! is harmless.

use std::sync::Arc;
use std::time::Duration;

use papa_protocol::client::{Address, Client, Options, Pushes};
use papa_protocol::json::reply::ErrorCode;
use papa_protocol::json::request as ops;
use papa_protocol::name::NamePattern;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::config::{Config, WatcherConfig};
use crate::error::ManagerError;
use crate::kernel_link::{Inventory, KernelLink, LinkError};
use crate::pidfd;
use crate::state;
use crate::supervisor::{Event, WatcherId};
use crate::watcher::StartFailure;
use crate::worker::Running;

/// First pause between attempts to reach the kernel.
const CONNECT_AGAIN_MIN: Duration = Duration::from_millis(50);
/// Longest pause: a person who starts a kernel does not wait longer for us.
const CONNECT_AGAIN_MAX: Duration = Duration::from_secs(1);
/// A predecessor that was killed may still seem alive to the kernel for so long.
const CLAIM_PATIENCE: Duration = Duration::from_secs(5);
/// Pause between attempts at what somebody else has to make possible: a port in use, a directory missing.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// A signal whose way was cut by a dying kernel is sent again, so often.
const SIGNAL_ATTEMPTS: usize = 5;

/// Connects, claims the namespace, makes the sockets, lists what there is; then passes on what the kernel says.
pub(super) fn attach(config: Arc<Config>, addresses: Vec<Address>, events: mpsc::Sender<Event>) {
    tokio::spawn(async move {
        let (link, mut pushes) = connect(&config, &addresses, &events).await;
        if let Err(error) = claim(&link, &config).await {
            let _ = events.send(Event::Fatal(error)).await;
            return;
        }
        let inventory = settle(&link, &config, &events, true).await;
        let _ = events
            .send(Event::Attached(Box::new(link), inventory))
            .await;
        while let Some(push) = pushes.recv().await {
            if events.send(Event::Kernel(push)).await.is_err() {
                return;
            }
        }
    });
}

/// Makes the sockets and lists what there is, after a reconnection; with `claim` the namespace is to be claimed again first.
pub(super) fn list_again(
    link: KernelLink,
    config: Arc<Config>,
    claim: bool,
    events: mpsc::Sender<Event>,
) {
    tokio::spawn(async move {
        if claim && let Err(error) = self::claim(&link, &config).await {
            let _ = events.send(Event::Fatal(error)).await;
            return;
        }
        let inventory = settle(&link, &config, &events, false).await;
        let _ = events.send(Event::Listed(inventory)).await;
    });
}

async fn connect(
    config: &Config,
    addresses: &[Address],
    events: &mpsc::Sender<Event>,
) -> (KernelLink, Pushes) {
    let mut pause = CONNECT_AGAIN_MIN;
    loop {
        let options = Options {
            client: holder(config),
            ..Options::default()
        };
        match Client::connect(addresses.to_vec(), options).await {
            Ok((client, pushes)) => {
                return (KernelLink::new(client, config.namespace.clone()), pushes);
            }
            Err(error) => {
                tracing::debug!(%error, "no kernel yet");
                let _ = events.send(Event::Trouble(Some(error.to_string()))).await;
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(CONNECT_AGAIN_MAX);
    }
}

async fn claim(link: &KernelLink, config: &Config) -> Result<(), ManagerError> {
    let patience = Instant::now() + CLAIM_PATIENCE;
    loop {
        match link.claim(&holder(config)).await {
            Ok(epoch) => {
                tracing::info!(namespace = config.namespace, epoch, "the namespace is ours");
                return Ok(());
            }
            Err(error) if error.is_unanswered() || Instant::now() < patience => {
                sleep(CONNECT_AGAIN_MIN).await;
            }
            Err(source) => {
                return Err(ManagerError::Claim {
                    namespace: config.namespace.clone(),
                    source,
                });
            }
        }
    }
}

/// Who we are, for whoever is refused because of us.
fn holder(config: &Config) -> String {
    format!(
        "papa-manager pid {}, {}",
        std::process::id(),
        config.path.display()
    )
}

async fn settle(
    link: &KernelLink,
    config: &Arc<Config>,
    events: &mpsc::Sender<Event>,
    subscribe: bool,
) -> Inventory {
    let failed = make_sockets(link, config).await;
    if !failed.is_empty() {
        keep_making_sockets(link.clone(), config.clone(), events.clone(), failed);
    }
    loop {
        let listed = async {
            if subscribe {
                link.subscribe().await?;
            }
            link.inventory().await
        };
        match listed.await {
            Ok(inventory) => return inventory,
            Err(error) => {
                tracing::warn!(%error, "the kernel does not tell what it has");
                sleep(CONNECT_AGAIN_MIN).await;
            }
        }
    }
}

/// Makes all sockets; answers what hindered those that could not be made.
async fn make_sockets(link: &KernelLink, config: &Config) -> Vec<String> {
    let mut failed = Vec::new();
    for socket in &config.sockets {
        if let Err(error) = link.make_socket(socket).await {
            tracing::warn!(socket = socket.name, %error, "the socket cannot be made");
            failed.push(format!("socket {}: {error}", socket.name));
        }
    }
    failed
}

fn keep_making_sockets(
    link: KernelLink,
    config: Arc<Config>,
    events: mpsc::Sender<Event>,
    mut failed: Vec<String>,
) {
    tokio::spawn(async move {
        while !failed.is_empty() {
            if events
                .send(Event::Trouble(Some(failed.join("; "))))
                .await
                .is_err()
            {
                return;
            }
            sleep(TRY_AGAIN).await;
            failed = make_sockets(&link, &config).await;
        }
        let _ = events.send(Event::Trouble(None)).await;
    });
}

/// Which worker is to be started, and for whom.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order {
    pub(super) watcher: WatcherId,
    pub(super) wid: u32,
    pub(super) generation: u64,
}

/// Starts one worker.
pub(super) fn start(
    link: KernelLink,
    config: Arc<WatcherConfig>,
    order: Order,
    events: mpsc::Sender<Event>,
) {
    tokio::spawn(async move {
        let Order {
            watcher,
            wid,
            generation,
        } = order;
        let result = link.start(&config, wid, generation).await.map_err(|error| {
            if error.is_unanswered() {
                StartFailure::Unanswered
            } else {
                StartFailure::Refused(error.to_string())
            }
        });
        let started = Event::Started {
            watcher,
            wid,
            result,
        };
        let _ = events.send(started).await;
    });
}

/// Sends a signal to one process, and its children if asked.
pub(super) fn signal(link: KernelLink, process: Running, signal: i32, children: bool) {
    tokio::spawn(async move {
        send(&link, process, |fd| {
            pidfd::signal(fd, process.pid, signal, children)
        })
        .await;
    });
}

/// Kills one process and everything it started.
pub(super) fn kill(link: KernelLink, process: Running) {
    tokio::spawn(async move {
        send(&link, process, |fd| pidfd::kill_tree(fd, process.pid)).await;
    });
}

async fn send(
    link: &KernelLink,
    process: Running,
    act: impl Fn(std::os::fd::OwnedFd) -> std::io::Result<()>,
) {
    for _ in 0..SIGNAL_ATTEMPTS {
        let sent = match link.pidfd(process.serial, process.pid).await {
            Ok(fd) => act(fd).map_err(LinkError::from),
            Err(error) => Err(error),
        };
        match sent {
            Ok(()) => return,
            // Its exit is on the way to us.
            Err(error) if error.code() == Some(ErrorCode::NotFound) => return,
            Err(error) if error.is_unanswered() => sleep(CONNECT_AGAIN_MIN).await,
            Err(error) => {
                tracing::warn!(pid = process.pid, %error, "a worker cannot be signalled");
                return;
            }
        }
    }
}

/// Tells the kernel that an exit is dealt with.
pub(super) fn acknowledge(link: KernelLink, serial: u64, discard: bool) {
    tokio::spawn(async move {
        if let Err(error) = link.acknowledge_exit(serial, discard).await {
            // It stays listed as ended, and is acknowledged when the list is read again.
            tracing::debug!(serial, %error, "an exit could not be acknowledged");
        }
    });
}

/// Has the kernel keep a watcher's state.
pub(super) fn keep(link: KernelLink, key: String, kept: state::Kept) {
    tokio::spawn(async move {
        if let Err(error) = link.keep(&key, &kept).await {
            tracing::warn!(watcher = key, %error, "a watcher's state cannot be kept");
        }
    });
}

/// Removes the sockets that are not to outlive the manager.
pub(super) async fn remove_own_sockets(link: &KernelLink, config: &Config) {
    let removal = async {
        for socket in config.sockets.iter().filter(|socket| !socket.use_papa) {
            if let Err(error) = link.remove_socket(socket).await {
                tracing::warn!(socket = socket.name, %error, "the socket stays");
            }
        }
    };
    if tokio::time::timeout(CLAIM_PATIENCE, removal).await.is_err() {
        tracing::warn!("the kernel does not answer; sockets stay");
    }
}

/// Gives everything back: processes whose output nobody waits for any more, sockets, what was kept, the namespace.
pub(super) fn clean_up(
    link: KernelLink,
    config: Arc<Config>,
    left: Vec<u64>,
    events: mpsc::Sender<Event>,
) {
    tokio::spawn(async move {
        for serial in left {
            if let Err(error) = link.acknowledge_exit(serial, true).await {
                tracing::warn!(serial, %error, "an ended process stays in the kernel");
            }
        }
        for socket in &config.sockets {
            if let Err(error) = link.remove_socket(socket).await {
                tracing::warn!(socket = socket.name, %error, "the socket stays");
            }
        }
        let kept = NamePattern::new(&format!("{}*", state::watcher_value(&config.namespace, "")));
        let forget = ops::ValueRemove { names: vec![kept] };
        let drop_logs = ops::HoldDrop {
            names: vec![NamePattern::new(&state::held_logs(&config.namespace))],
        };
        // Both answer `not_found` where there was nothing.
        for result in [
            link.client().call(forget).await.map(drop),
            link.client().call(drop_logs).await.map(drop),
        ] {
            if let Err(error) = result {
                tracing::debug!(%error, "nothing was kept");
            }
        }
        if let Err(error) = link.release().await {
            tracing::warn!(%error, "the namespace stays claimed");
        }
        let _ = events.send(Event::CleanedUp).await;
    });
}
