//! The sockets of a change of the configuration: made and replaced together, or not at all.
//!
//! A socket that is replaced stays open in the kernel, under a name that no file has, until the
//! change is over. If the change is rolled back, that socket takes its name back, with everything
//! that waits in its queue. Every step can be made twice, so that a successor goes on from wherever
//! its predecessor was killed.

use std::collections::BTreeMap;
use std::time::Duration;

use papa_protocol::json::reply::ErrorCode;
use papa_test_hooks::failpoint;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::KEPT_PATIENCE;
use super::sockets::hindrance;
use crate::config::SocketConfig;
use crate::kernel_link::{KernelLink, LinkError};
use crate::supervisor::Event;
use crate::supervisor::saves::Pass;

/// How long an address may stay taken after its socket was closed: the keeper closes its copy after
/// the kernel, and a worker as it ends.
const BIND_PATIENCE: Duration = Duration::from_secs(1);
/// Pause between two attempts to bind such an address.
const BIND_AGAIN: Duration = Duration::from_millis(20);

/// A socket that is closed and made again with other parameters.
#[derive(Debug)]
pub(in crate::supervisor) struct Replacement {
    /// The change differs in it. Another one is replaced only where a predecessor had replaced it.
    pub(in crate::supervisor) is_planned: bool,
    pub(in crate::supervisor) before: SocketConfig,
    pub(in crate::supervisor) after: SocketConfig,
    /// Watchers whose workers have it: their copies keep the address taken.
    pub(in crate::supervisor) held_by: Vec<String>,
}

/// What a change asks of the sockets.
#[derive(Debug)]
pub(in crate::supervisor) struct Exchange {
    /// No earlier manager has begun this change.
    pub(in crate::supervisor) is_fresh: bool,
    pub(in crate::supervisor) added: Vec<SocketConfig>,
    pub(in crate::supervisor) replaced: Vec<Replacement>,
    /// The change is rolled back: sockets that cannot be made are tried again later.
    pub(in crate::supervisor) undoing: bool,
}

/// Makes and replaces sockets. If one fails, it takes the others back and reports why.
pub(in crate::supervisor) fn change_sockets(
    link: KernelLink,
    exchange: Exchange,
    kept: Pass,
    events: mpsc::Sender<Event>,
) {
    tokio::spawn(async move {
        // The previous configuration is kept before the first socket changes.
        kept.wait(KEPT_PATIENCE).await;
        if exchange.is_fresh {
            close_aside(&link).await;
        }
        let mut lost = BTreeMap::new();
        let mut made = Vec::new();
        let result = match remaining(&link, &exchange.replaced).await {
            Err(reason) => Err(reason),
            Ok(replaced) => {
                made.extend(replaced.iter().map(|one| one.after.name.clone()));
                if exchange.undoing {
                    restore(&link, &exchange.added, &replaced, &mut lost).await
                } else {
                    exchange_all(&link, &exchange.added, &replaced, &mut lost).await
                }
            }
        };
        if result.is_err() && exchange.is_fresh {
            close_aside(&link).await;
        }
        failpoint::reach("change.sockets");
        let changed = Event::SocketsChanged { result, lost, made };
        let _ = events.send(changed).await;
    });
}

/// Closes the sockets of a change that nobody can go on with.
pub(in crate::supervisor) fn abandon_change(link: KernelLink) {
    tokio::spawn(async move { close_aside(&link).await });
}

/// The replacements that an earlier manager has not made yet.
async fn remaining<'a>(
    link: &KernelLink,
    replaced: &'a [Replacement],
) -> Result<Vec<&'a Replacement>, String> {
    let mut remaining = Vec::new();
    for replacement in replaced {
        let after = &replacement.after;
        let is_left = async {
            Ok(
                (replacement.is_planned || link.is_aside(&after.name).await?)
                    && !link.has_socket(after).await?,
            )
        };
        match is_left.await {
            Ok(true) => remaining.push(replacement),
            Ok(false) => {}
            Err::<_, LinkError>(error) => return Err(format!("socket {}: {error}", after.name)),
        }
    }
    Ok(remaining)
}

/// Closes those whose address another one is to have: they cannot stay open until the change is
/// over. True if there are any.
async fn vacate(link: &KernelLink, replaced: &[&Replacement]) -> Result<bool, LinkError> {
    let mut any = false;
    for one in replaced {
        let is_wanted = |other: &&Replacement| {
            other.after.name != one.before.name
                && share_address(&other.after, &one.before)
                && share_host(&other.after, &one.before)
        };
        if replaced.iter().any(is_wanted) {
            link.remove_socket(&one.before).await?;
            any = true;
        }
    }
    Ok(any)
}

/// Restores the previous sockets, which the kernel has kept open if it can. One that it could not
/// keep, and whose address is taken by now, is `lost` until it can be bound; its replacement is
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
    if let Err(error) = vacate(link, replaced).await {
        tracing::warn!(%error, "a socket keeps the address of another one");
    }
    for Replacement { before, after, .. } in replaced {
        let restored = match link.exchange_socket(after).await {
            Err(error) if error.code().is_some() => remake(link, before, after).await,
            other => other,
        };
        if let Err(error) = restored {
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

/// Makes and replaces all of them, or none.
async fn exchange_all(
    link: &KernelLink,
    added: &[SocketConfig],
    replaced: &[&Replacement],
    lost: &mut BTreeMap<String, String>,
) -> Result<(), String> {
    // A socket that workers have cannot be made again once it is closed, so all replacements are
    // tried before the first is closed.
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
    let mut vacated = false;
    if result.is_ok() {
        match vacate(link, replaced).await {
            Ok(any) => vacated = any,
            Err(error) => result = Err(error.to_string()),
        }
        for replacement in replaced.iter().filter(|_| result.is_ok()) {
            closed.push(replacement);
            if let Err(error) = replace(link, &replacement.before, &replacement.after).await {
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
        if vacated {
            closed = replaced.to_vec();
        }
        for Replacement { before, after, .. } in closed.into_iter().rev() {
            let restored = match vacated {
                true => remake(link, after, before).await,
                false => replace(link, after, before).await,
            };
            if let Err(error) = restored {
                tracing::error!(socket = before.name, %error, "cannot restore the socket");
                lost.insert(before.name.clone(), hindrance(before, &error).await);
            }
        }
    }
    result
}

/// Checks that the new socket can be made while workers have the old one.
async fn try_out(link: &KernelLink, replacement: &Replacement) -> Result<(), String> {
    let Replacement {
        before,
        after,
        held_by,
        ..
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

/// Puts the socket `after` in the place of `before`, which stays open until the change is over.
/// Where both cannot be open at once, and where the kernel is too old for it, `before` is closed
/// first.
async fn replace(
    link: &KernelLink,
    before: &SocketConfig,
    after: &SocketConfig,
) -> Result<(), LinkError> {
    let until = Instant::now() + BIND_PATIENCE;
    loop {
        match link.exchange_socket(after).await {
            Err(error)
                if error.code() == Some(ErrorCode::Exists)
                    || (error.code() == Some(ErrorCode::BindFailed)
                        && share_address(before, after)) =>
            {
                return remake(link, before, after).await;
            }
            // The socket that was tried out may not be closed everywhere yet.
            Err(error) if error.code() == Some(ErrorCode::BindFailed) && Instant::now() < until => {
                sleep(BIND_AGAIN).await;
            }
            result => return result,
        }
    }
}

/// Whether both may want the same path or port.
fn share_address(one: &SocketConfig, other: &SocketConfig) -> bool {
    match (&one.path, &other.path) {
        (Some(path), Some(other)) => path == other,
        (None, None) => one.port == other.port && one.port.is_some_and(|port| port != 0),
        _ => false,
    }
}

/// Whether both may be at the same address of this machine.
fn share_host(one: &SocketConfig, other: &SocketConfig) -> bool {
    let is_any = |host: &Option<String>| {
        let host = host.as_deref();
        host.is_none_or(|host| ["", "0.0.0.0", "::"].contains(&host))
    };
    one.host == other.host || is_any(&one.host) || is_any(&other.host)
}

/// Closes the previous sockets that the kernel has kept open for a change that is over.
pub(super) async fn close_aside(link: &KernelLink) {
    if let Err(error) = link.close_aside().await {
        tracing::warn!(%error, "a socket of before the change stays open");
    }
}

/// Closes one socket and makes the other, which may need the same address.
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
