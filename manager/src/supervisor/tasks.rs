//! What the supervisor has others do meanwhile: requests to the kernel, each on a tokio task that
//! answers with an event.
//!
//! Owns no state. Invariant: every task ends by itself, and a request the kernel did not answer is
//! asked again only where repeating it is harmless.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use papa_client::{Address, Client, Options, Pushes};
use papa_config::worker_of;
use papa_protocol::json::reply::ErrorCode;
use papa_protocol::json::request as ops;
use papa_protocol::name::NamePattern;
use papa_protocol::process::Overflow;
use papa_protocol::record::Serial;
use papa_test_hooks::failpoint;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use crate::commands::kernel::is_elsewhere;
use crate::config::{Config, SocketConfig, SocketType};
use crate::error::ManagerError;
use crate::holder::{self, Sought};
use crate::kernel_link::{Inventory, KernelLink, LinkError};
use crate::probe::ready;
use crate::runtime_dir::RuntimeDir;
use crate::state;
use crate::supervisor::Event;
use crate::supervisor::saves::Pass;

mod saving;
mod waiting;
mod workers;

pub(super) use saving::send_saves;
pub(super) use workers::{Order, kill, order_tree, signal, start, stop, stop_reach};

/// First pause between attempts to reach the kernel.
const CONNECT_AGAIN_MIN: Duration = Duration::from_millis(50);
/// Longest pause: a person who starts a kernel does not wait longer for us.
const CONNECT_AGAIN_MAX: Duration = Duration::from_secs(1);
/// How often a kernel is found whose process is not, before it counts as one of another process
/// namespace.
const MAX_ELSEWHERE: u32 = 4;
/// A predecessor that was killed may still seem alive to the kernel for so long.
const CLAIM_PATIENCE: Duration = Duration::from_secs(5);
/// Pause between attempts at what somebody else has to make possible: a port in use, a directory
/// missing.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// How long a change of the sockets waits until the way back is kept.
const KEPT_PATIENCE: Duration = Duration::from_secs(5);
/// How long an address may stay taken that was closed a moment ago, by a trial or by a change that
/// is taken back: the keeper closes its copy after the kernel, and a worker as it ends.
const BIND_PATIENCE: Duration = Duration::from_secs(1);
/// Pause between two attempts to bind such an address.
const BIND_AGAIN: Duration = Duration::from_millis(20);
/// Pause between two looks at the paths of unix sockets.
const PATHS_AGAIN: Duration = Duration::from_secs(2);

/// Connects, claims the namespace, makes the sockets, lists what there is; then passes on what the
/// kernel says.
pub(super) fn attach(config: Arc<Config>, addresses: Vec<Address>, events: mpsc::Sender<Event>) {
    tokio::spawn(async move {
        let (link, mut pushes) = match connect(&config, &addresses, &events).await {
            Ok(connected) => connected,
            Err(error) => {
                let _ = events.send(Event::Fatal(error)).await;
                return;
            }
        };
        if let Err(error) = claim(&link, &config).await {
            let _ = events.send(Event::Fatal(error)).await;
            return;
        }
        failpoint::reach("adopt.claimed");
        let inventory = settle(&link, &config, &events, true).await;
        failpoint::reach("adopt.listed");
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

/// Makes the sockets and lists what there is, after the reconnection with this number. With `claim`
/// the namespace is to be claimed again first, with `subscribe` the subscription was lost.
pub(super) fn list_again(
    number: u64,
    link: KernelLink,
    config: Arc<Config>,
    claim: bool,
    subscribe: bool,
    events: mpsc::Sender<Event>,
) {
    tokio::spawn(async move {
        if claim && let Err(error) = self::claim(&link, &config).await {
            let _ = events.send(Event::Fatal(error)).await;
            return;
        }
        let inventory = settle(&link, &config, &events, subscribe).await;
        failpoint::reach("adopt.listed_again");
        let _ = events.send(Event::Listed(number, inventory)).await;
    });
}

async fn connect(
    config: &Config,
    addresses: &[Address],
    events: &mpsc::Sender<Event>,
) -> Result<(KernelLink, Pushes), ManagerError> {
    let mut pause = CONNECT_AGAIN_MIN;
    let mut waiting = false;
    let mut elsewhere = 0;
    loop {
        let options = Options {
            client: holder(config),
            ..Options::default()
        };
        match Client::connect(addresses.to_vec(), options).await {
            // One that was killed since it said its number is not there either.
            Ok((client, _)) if is_elsewhere(client.hello().pid) => {
                elsewhere += 1;
                if elsewhere >= MAX_ELSEWHERE {
                    return Err(ManagerError::Elsewhere {
                        address: waiting::place(addresses),
                        pid: client.hello().pid.into(),
                    });
                }
            }
            Ok((client, pushes)) => {
                if waiting {
                    tracing::info!(pid = client.hello().pid, "connected to the kernel");
                }
                let namespace = config.namespace.clone();
                let link = KernelLink::new(client, addresses.to_vec(), namespace);
                return Ok((link, pushes));
            }
            Err(error) => {
                tracing::debug!(%error, "no kernel yet");
                let reason = waiting::reason(addresses, &error);
                if !std::mem::replace(&mut waiting, true) {
                    tracing::warn!(
                        "{reason}; waiting for one: `papactl up {}` or `{}` starts it",
                        config.path.display(),
                        waiting::command(addresses)
                    );
                }
                let _ = events.send(Event::Trouble(Some(reason))).await;
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
        "papa-manager pid {}, {}, runtime directory {}",
        std::process::id(),
        config.path.display(),
        RuntimeDir::locate().path().display()
    )
}

async fn settle(
    link: &KernelLink,
    config: &Arc<Config>,
    events: &mpsc::Sender<Event>,
    subscribe: bool,
) -> Inventory {
    if let Err(error) = link.forget_trial().await {
        tracing::debug!(%error, "a socket made on trial may be left");
    }
    let failed = make_sockets(link, &config.sockets).await;
    let _ = events.send(Event::Sockets(failed)).await;
    loop {
        let listed = async {
            if subscribe {
                link.subscribe().await?;
                failpoint::reach("adopt.subscribed");
            }
            link.inventory().await
        };
        match listed.await {
            Ok(inventory) => return inventory,
            Err(error) => {
                tracing::warn!(%error, "cannot list what the kernel holds; trying again");
                sleep(CONNECT_AGAIN_MIN).await;
            }
        }
    }
}

/// Makes sockets; answers what hindered those that could not be made, by name.
async fn make_sockets(link: &KernelLink, sockets: &[SocketConfig]) -> BTreeMap<String, String> {
    let mut failed = BTreeMap::new();
    for socket in sockets {
        if let Err(error) = link.make_socket(socket).await {
            let reason = hindrance(socket, &error).await;
            failed.insert(socket.name.clone(), reason);
        }
    }
    failed
}

/// Why a socket cannot be made, with whoever has its address.
async fn hindrance(socket: &SocketConfig, error: &LinkError) -> String {
    let place = socket.place();
    match error.code() {
        Some(ErrorCode::BindFailed) => {
            let asked = socket.clone();
            let found = tokio::task::spawn_blocking(move || in_the_way(&asked));
            match found.await {
                Ok(Some(reason)) => format!("{place} {reason}"),
                _ => format!(
                    "{place} cannot be bound: {}",
                    without_prefix(&error.to_string())
                ),
            }
        }
        // A kernel refuses a whole request for a member that it does not know.
        Some(ErrorCode::Invalid) if socket.v6only.is_some() => format!(
            "{place} needs v6only, which a kernel of an older version does not know ({error}); `papactl kernel upgrade` helps"
        ),
        _ => error.to_string(),
    }
}

/// `Bind failed on ADDRESS: [Errno N] text` without what is said already.
fn without_prefix(text: &str) -> &str {
    let rest = text
        .strip_prefix("Bind failed")
        .and_then(|rest| rest.split_once(": "));
    let rest = rest.map_or(text, |(_, rest)| rest);
    match rest
        .strip_prefix("[Errno ")
        .and_then(|rest| rest.split_once("] "))
    {
        Some((_, rest)) => rest,
        None => rest,
    }
}

/// What keeps a socket from being bound, as far as it can be seen from here. Who serves a path the
/// kernel says itself.
fn in_the_way(socket: &SocketConfig) -> Option<String> {
    if let Some(path) = &socket.path {
        return holder::of_path(path);
    }
    let address = socket.host.as_ref().and_then(|host| host.parse().ok());
    let sought = Sought {
        address,
        port: socket.port.filter(|port| *port > 0)?,
        datagram: socket.kind == SocketType::Dgram,
    };
    holder::of_address(&sought)
        .map(|holder| format!("is taken by {holder}"))
        .or_else(|| holder::of_connection(&sought))
        .or_else(|| holder::not_here(address?))
}

/// Tries in a moment again to make these sockets.
pub(super) fn make_sockets_again(
    link: KernelLink,
    sockets: Vec<SocketConfig>,
    events: mpsc::Sender<Event>,
) {
    tokio::spawn(async move {
        sleep(TRY_AGAIN).await;
        let failed = make_sockets(&link, &sockets).await;
        let tried = sockets.into_iter().map(|socket| socket.name).collect();
        let _ = events.send(Event::SocketsAgain { tried, failed }).await;
    });
}

/// Looks every now and then whether the paths of the unix sockets are there: workers remove them as
/// they end, and so do cleaners of temporary directories. Ends with the supervisor.
pub(super) fn watch_paths(
    events: mpsc::Sender<Event>,
    mut paths: watch::Receiver<Vec<(String, PathBuf)>>,
) {
    tokio::spawn(async move {
        loop {
            // Without a unix socket nothing wakes up.
            let watched = paths.wait_for(|paths| !paths.is_empty()).await;
            let Ok(watched) = watched.map(|paths| paths.clone()) else {
                return;
            };
            sleep(PATHS_AGAIN).await;
            for (name, path) in watched {
                let event = match tokio::fs::symlink_metadata(&path).await {
                    Ok(file) => Event::PathThere(name, (file.dev(), file.ino())),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        Event::PathGone(name)
                    }
                    Err(_) => continue,
                };
                if events.send(event).await.is_err() {
                    return;
                }
            }
        }
    });
}

/// Asks the kernel whether the file at the path of a unix socket is that socket.
pub(super) fn ask_whose_path(
    link: KernelLink,
    socket: SocketConfig,
    file: (u64, u64),
    events: mpsc::Sender<Event>,
) {
    tokio::spawn(async move {
        match link.is_at_its_path(&socket).await {
            Ok(own) => {
                let _ = events.send(Event::PathTold(socket.name, file, own)).await;
            }
            // It is asked again at the next look.
            Err(error) => {
                tracing::debug!(socket = socket.name, %error, "whose path it is stays open");
            }
        }
    });
}

/// Has the kernel bind a unix socket anew whose path is gone. Workers that have the old one keep it
/// until they are replaced.
pub(super) fn bind_anew(link: KernelLink, socket: SocketConfig, events: mpsc::Sender<Event>) {
    tokio::spawn(async move {
        let bound = async {
            link.remove_socket(&socket).await?;
            failpoint::reach("socket.unbound");
            link.make_socket(&socket).await?;
            failpoint::reach("socket.bound");
            Ok(())
        };
        let result = match bound.await {
            Ok(()) => Ok(()),
            Err(error) => Err(hindrance(&socket, &error).await),
        };
        let _ = events.send(Event::BoundAnew(socket.name, result)).await;
    });
}

/// A socket that is to be closed and opened again.
#[derive(Debug)]
pub(super) struct Replacement {
    pub(super) before: SocketConfig,
    pub(super) after: SocketConfig,
    /// Watchers whose workers have it: they keep its address taken after the kernel has closed it.
    pub(super) held_by: Vec<String>,
}

/// What a change asks of the sockets.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) added: Vec<SocketConfig>,
    pub(super) replaced: Vec<Replacement>,
    /// The change is being taken back: what can be made is made, and the rest is tried again.
    pub(super) undoing: bool,
}

/// Makes sockets that are new, and makes others anew; or undoes what it did and says why.
pub(super) fn change_sockets(
    link: KernelLink,
    exchange: Exchange,
    kept: Pass,
    events: mpsc::Sender<Event>,
) {
    tokio::spawn(async move {
        // The way back is kept before the first step is taken.
        kept.wait(KEPT_PATIENCE).await;
        let mut lost = BTreeMap::new();
        let result = match remaining(&link, &exchange.replaced).await {
            Err(reason) => Err(reason),
            Ok(replaced) if exchange.undoing => {
                restore(&link, &exchange.added, &replaced, &mut lost).await
            }
            Ok(replaced) => exchange_all(&link, &exchange.added, &replaced, &mut lost).await,
        };
        let _ = events.send(Event::SocketsChanged { result, lost }).await;
    });
}

/// Those that a predecessor has not replaced yet.
async fn remaining<'a>(
    link: &KernelLink,
    replaced: &'a [Replacement],
) -> Result<Vec<&'a Replacement>, String> {
    let mut remaining = Vec::new();
    for replacement in replaced {
        let after = &replacement.after;
        match link.has_socket(after).await {
            Ok(true) => {}
            Ok(false) => remaining.push(replacement),
            Err(error) => return Err(format!("socket {}: {error}", after.name)),
        }
    }
    Ok(remaining)
}

/// Goes back to the sockets of before. One whose address is taken by now, by workers that still
/// serve there or by somebody else, is `lost` until it can be bound; the one that took its place is
/// closed all the same.
async fn restore(
    link: &KernelLink,
    added: &[SocketConfig],
    replaced: &[&Replacement],
    lost: &mut BTreeMap<String, String>,
) -> Result<(), String> {
    for socket in added {
        if let Err(error) = link.make_socket(socket).await {
            lost.insert(socket.name.clone(), hindrance(socket, &error).await);
        }
    }
    for Replacement { before, after, .. } in replaced {
        if let Err(error) = remake(link, before, after).await {
            lost.insert(after.name.clone(), hindrance(after, &error).await);
        }
    }
    let told = lost.iter();
    let told: Vec<_> = told
        .map(|(name, reason)| format!("socket {name}: {reason}; it is bound as soon as it can be"))
        .collect();
    if told.is_empty() {
        Ok(())
    } else {
        Err(told.join("; "))
    }
}

async fn exchange_all(
    link: &KernelLink,
    added: &[SocketConfig],
    replaced: &[&Replacement],
    lost: &mut BTreeMap<String, String>,
) -> Result<(), String> {
    // Before anything is closed: what workers have could not be opened again if the new one then
    // fails.
    for replacement in replaced {
        try_out(link, replacement).await?;
    }
    let mut made: Vec<&SocketConfig> = Vec::new();
    let mut closed: Vec<&Replacement> = Vec::new();
    let mut result = Ok(());
    for socket in added {
        match link.make_socket(socket).await {
            Ok(()) => made.push(socket),
            Err(error) => {
                let reason = hindrance(socket, &error).await;
                result = Err(format!("socket {}: {reason}", socket.name));
                break;
            }
        }
    }
    if result.is_ok() {
        for replacement in replaced {
            closed.push(replacement);
            if let Err(error) = remake(link, &replacement.before, &replacement.after).await {
                let reason = hindrance(&replacement.after, &error).await;
                result = Err(format!("socket {}: {reason}", replacement.after.name));
                break;
            }
        }
    }
    if result.is_err() {
        for socket in made {
            if let Err(error) = link.remove_socket(socket).await {
                tracing::error!(socket = socket.name, %error, "cannot close the socket; the kernel keeps it");
            }
        }
        for Replacement { before, after, .. } in closed {
            if let Err(error) = remake(link, after, before).await {
                tracing::error!(socket = before.name, %error, "cannot restore the socket");
                lost.insert(before.name.clone(), hindrance(before, &error).await);
            }
        }
    }
    result
}

/// Whether the new socket can be opened while workers have the old one.
async fn try_out(link: &KernelLink, replacement: &Replacement) -> Result<(), String> {
    let Replacement {
        before,
        after,
        held_by,
    } = replacement;
    if held_by.is_empty() {
        return Ok(());
    }
    let tried = if after.path.is_some() && after.path == before.path {
        Err("its path stays the same".to_owned())
    } else {
        link.try_socket(after)
            .await
            .map_err(|error| error.to_string())
    };
    tried.map_err(|reason| {
        format!(
            "socket {}: {reason}; as long as workers of {} have it, it can be opened anew only at a free address: stop them first",
            after.name,
            held_by.join(", ")
        )
    })
}

async fn remake(
    link: &KernelLink,
    before: &SocketConfig,
    after: &SocketConfig,
) -> Result<(), LinkError> {
    link.remove_socket(before).await?;
    let until = Instant::now() + BIND_PATIENCE;
    loop {
        match link.make_socket(after).await {
            Err(error) if error.code() == Some(ErrorCode::BindFailed) && Instant::now() < until => {
                sleep(BIND_AGAIN).await;
            }
            result => return result,
        }
    }
}

/// Removes sockets nobody needs any more; one that cannot be removed stays.
pub(super) fn remove_sockets(
    link: KernelLink,
    sockets: Vec<SocketConfig>,
    events: mpsc::Sender<Event>,
) {
    tokio::spawn(async move {
        for socket in sockets {
            if let Err(error) = link.remove_socket(&socket).await {
                tracing::warn!(socket = socket.name, %error, "cannot close the socket; the kernel keeps it");
            }
        }
        let _ = events
            .send(Event::SocketsChanged {
                result: Ok(()),
                lost: BTreeMap::new(),
            })
            .await;
    });
}

/// Removes the sockets that are not to outlive the manager.
pub(super) async fn remove_own_sockets(link: &KernelLink, config: &Config) {
    let removal = async {
        for socket in config.sockets.iter().filter(|socket| !socket.use_papa) {
            if let Err(error) = link.remove_socket(socket).await {
                tracing::warn!(socket = socket.name, %error, "cannot close the socket; the kernel keeps it");
            }
        }
    };
    if tokio::time::timeout(CLAIM_PATIENCE, removal).await.is_err() {
        tracing::warn!("the kernel does not answer; sockets stay");
    }
}

/// Bytes of output that nobody has taken of these ended processes, by lower-case name of the
/// watcher.
async fn untaken(link: &KernelLink, ended: &[u64]) -> BTreeMap<String, u64> {
    let mut untaken = BTreeMap::new();
    if ended.is_empty() {
        return untaken;
    }
    let list = ops::ProcessList {
        names: Vec::new(),
        serials: ended.iter().copied().map(Serial).collect(),
    };
    let processes = match link.client().call(list).await {
        Ok(reply) => reply.processes,
        Err(error) => {
            tracing::debug!(%error, "what was not written is not known");
            return untaken;
        }
    };
    // What nobody was to take is not lost.
    for process in processes
        .iter()
        .filter(|process| process.overflow != Overflow::DropOldest)
    {
        let bytes = process.ledger.untaken();
        if let Some((key, _)) = worker_of(link.namespace(), &process.name).filter(|_| bytes > 0) {
            *untaken.entry(key.to_owned()).or_insert(0) += bytes;
        }
    }
    untaken
}

/// Gives everything back: processes whose output nobody waits for any more, sockets, what was kept,
/// the namespace.
pub(super) fn clean_up(
    link: KernelLink,
    config: Arc<Config>,
    left: Vec<u64>,
    events: mpsc::Sender<Event>,
) {
    tokio::spawn(async move {
        let lost = untaken(&link, &left).await;
        for serial in left {
            if let Err(error) = link.acknowledge_exit(serial, true).await {
                tracing::warn!(serial, %error, "cannot remove an ended process from the kernel");
            }
        }
        for socket in &config.sockets {
            if let Err(error) = link.remove_socket(socket).await {
                tracing::warn!(socket = socket.name, %error, "cannot close the socket; the kernel keeps it");
            }
        }
        let kept = NamePattern::new(&format!("{}*", state::watcher_value(&config.namespace, "")));
        let forget = ops::ValueRemove { names: vec![kept] };
        let added = NamePattern::new(&format!("{}*", state::added_value(&config.namespace, "")));
        let forget_added = ops::ValueRemove { names: vec![added] };
        let ends = NamePattern::new(&format!("{}*", state::ends_value(&config.namespace, "")));
        let forget_ends = ops::ValueRemove { names: vec![ends] };
        let own = [state::change_value, state::left_value, state::umask_value]
            .map(|name| NamePattern::new(&name(&config.namespace)));
        let forget_own = ops::ValueRemove { names: own.into() };
        let drop_logs = ops::HoldDrop {
            names: vec![NamePattern::new(&papa_logs::held_logs(&config.namespace))],
        };
        let drop_gates = ops::HoldDrop {
            names: vec![ready::held(&config.namespace)],
        };
        // All answer `not_found` where there was nothing.
        for result in [
            link.client().call(forget).await.map(drop),
            link.client().call(forget_added).await.map(drop),
            link.client().call(forget_ends).await.map(drop),
            link.client().call(forget_own).await.map(drop),
            link.client().call(drop_logs).await.map(drop),
            link.client().call(drop_gates).await.map(drop),
        ] {
            if let Err(error) = result {
                tracing::debug!(%error, "nothing was kept");
            }
        }
        if let Err(error) = link.release().await {
            tracing::warn!(%error, "the namespace stays claimed");
        }
        let _ = events.send(Event::CleanedUp(lost)).await;
    });
}
