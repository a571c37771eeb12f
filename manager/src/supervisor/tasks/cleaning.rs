//! The end of a shutdown: everything is given back to the kernel.

use std::collections::BTreeMap;
use std::sync::Arc;

use papa_config::worker_of;
use papa_protocol::json::request as ops;
use papa_protocol::name::NamePattern;
use papa_protocol::process::Overflow;
use papa_protocol::record::Serial;
use tokio::sync::mpsc;

use super::KERNEL_PATIENCE;
use super::exchange::close_aside;
use crate::config::Config;
use crate::kernel_link::KernelLink;
use crate::probe::ready;
use crate::state;
use crate::supervisor::Event;

/// Gives everything back to the kernel: the ended processes in `left` with their output, sockets,
/// kept values, held descriptors and the namespace.
pub(in crate::supervisor) fn clean_up(
    link: KernelLink,
    config: Arc<Config>,
    left: Vec<u64>,
    events: mpsc::Sender<Event>,
) {
    tokio::spawn(async move {
        let lost = untaken(&link, &left).await;
        for serial in left {
            if let Err(error) = link.ours().acknowledge_exit(serial, true).await {
                tracing::warn!(serial, %error, "cannot remove an ended process from the kernel");
            }
        }
        for socket in &config.sockets {
            if let Err(error) = link.remove_socket(socket).await {
                tracing::warn!(socket = socket.name, %error, "cannot close the socket; the kernel keeps it");
            }
        }
        if tokio::time::timeout(KERNEL_PATIENCE, close_aside(&link))
            .await
            .is_err()
        {
            tracing::warn!("the kernel does not answer; sockets of before the change stay");
        }
        // The kernel answers `not_found` where nothing was kept.
        if let Err(error) = link.client().call(kept_values(&config.namespace)).await {
            tracing::debug!(%error, "cannot remove the kept values");
        }
        if let Err(error) = link.client().call(held(&config.namespace)).await {
            tracing::debug!(%error, "cannot drop the held descriptors");
        }
        if let Err(error) = link.ours().release().await {
            tracing::warn!(%error, "the namespace stays claimed");
        }
        let _ = events.send(Event::CleanedUp(lost)).await;
    });
}

/// Everything a manager keeps in the kernel for its successor.
fn kept_values(namespace: &str) -> ops::ValueRemove {
    let all = [state::watcher_value, state::added_value, state::ends_value]
        .map(|name| format!("{}*", name(namespace, "")));
    let single = [state::change_value, state::left_value, state::umask_value];
    let single = single.map(|name| name(namespace));
    let names = all.iter().chain(&single);
    ops::ValueRemove {
        names: names.map(|name| NamePattern::new(name)).collect(),
    }
}

/// Descriptors that a manager leaves with the kernel.
fn held(namespace: &str) -> ops::HoldDrop {
    let logs = NamePattern::new(&papa_logs::held_logs(namespace));
    ops::HoldDrop {
        names: vec![logs, ready::held(namespace)],
    }
}

/// Bytes of output of these ended processes that no consumer has acknowledged, by lower-case name of
/// the watcher.
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
            tracing::debug!(%error, "cannot ask for output that was not written");
            return untaken;
        }
    };
    // A worker without a log has no consumer, and loses nothing.
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
