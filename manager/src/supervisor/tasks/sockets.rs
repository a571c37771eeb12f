//! Sockets one by one: made, bound anew, removed, and why one cannot be made.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use papa_protocol::json::reply::ErrorCode;
use papa_test_hooks::failpoint;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::KERNEL_PATIENCE;
use super::exchange::close_aside;
use crate::config::{Config, SocketConfig, SocketType};
use crate::holder::{self, Sought};
use crate::kernel_link::{KernelLink, LinkError};
use crate::supervisor::Event;

/// Pause between attempts to make a socket that something else hinders: a port in use, a missing
/// directory.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// Pause between two looks at the paths of unix sockets.
const PATHS_AGAIN: Duration = Duration::from_secs(2);

/// Makes sockets. Answers why some could not be made, by name.
pub(super) async fn make_sockets(
    link: &KernelLink,
    sockets: &[SocketConfig],
) -> BTreeMap<String, String> {
    let mut failed = BTreeMap::new();
    for socket in sockets {
        if let Err(error) = link.make_socket(socket).await {
            let reason = hindrance(socket, &error).await;
            failed.insert(socket.name.clone(), reason);
        }
    }
    failed
}

/// Why a socket cannot be made, with the process that has its address.
pub(super) async fn hindrance(socket: &SocketConfig, error: &LinkError) -> String {
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

/// The text of `Bind failed on ADDRESS: [Errno N] text`.
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

/// What keeps a socket from being bound, as far as this process can see.
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

/// Tries again, after a pause, to make these sockets.
pub(in crate::supervisor) fn make_sockets_again(
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

/// Looks at the paths of unix sockets every [`PATHS_AGAIN`]: workers remove them as they end, and so
/// do cleaners of temporary directories. Ends with the supervisor.
pub(in crate::supervisor) fn watch_paths(
    events: mpsc::Sender<Event>,
    mut paths: watch::Receiver<Vec<(String, PathBuf)>>,
) {
    tokio::spawn(async move {
        loop {
            // Without unix sockets this waits for a change of the list.
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
pub(in crate::supervisor) fn ask_whose_path(
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
            // The next look asks again.
            Err(error) => {
                tracing::debug!(socket = socket.name, %error, "cannot ask whether the path leads to the socket");
            }
        }
    });
}

/// Binds a unix socket anew whose path is gone. Workers keep the old one until they are replaced.
pub(in crate::supervisor) fn bind_anew(
    link: KernelLink,
    socket: SocketConfig,
    events: mpsc::Sender<Event>,
) {
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

/// Removes sockets that are no longer in the file, and those that stood aside for the change. One
/// that cannot be removed stays.
pub(in crate::supervisor) fn remove_sockets(
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
        close_aside(&link).await;
        failpoint::reach("change.closed");
        let _ = events
            .send(Event::SocketsChanged {
                result: Ok(()),
                lost: BTreeMap::new(),
                made: Vec::new(),
            })
            .await;
    });
}

/// Removes the sockets that are not to outlive the manager. Those that stand aside for a change
/// stay: the next manager goes on with it, or closes them.
pub(in crate::supervisor) async fn remove_own_sockets(link: &KernelLink, config: &Config) {
    let removal = async {
        for socket in config.sockets.iter().filter(|socket| !socket.use_papa) {
            if let Err(error) = link.remove_socket(socket).await {
                tracing::warn!(socket = socket.name, %error, "cannot close the socket; the kernel keeps it");
            }
        }
    };
    if tokio::time::timeout(KERNEL_PATIENCE, removal)
        .await
        .is_err()
    {
        tracing::warn!("the kernel does not answer; sockets stay");
    }
}
