//! The kernel's role: recover, listen, serve.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use anyhow::{Context, Error};
use nix::errno::Errno;
use papa_protocol::failpoint;
use tokio::sync::mpsc;
use tokio::task::LocalSet;

use crate::keeper::link::KeeperLink;
use crate::keeper::wire::ToKeeper;
use crate::owner::{EVENT_QUEUE, Owner};
use crate::recover::{RecoverError, recover};
use crate::server::{Listener, Server};
use crate::sys::process;
use crate::sys::socket::local_port;
use crate::takeover::HandedOver;

/// Runs the kernel on what it was started with: the line to its keeper, or a
/// list that names it; returns only if it cannot.
#[must_use]
pub fn kernel(first: OwnedFd) -> Error {
    process::set_name(c"papa-kernel");
    let start = || -> anyhow::Result<Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the runtime")?;
        let local = LocalSet::new();
        let (socket, handed_over) = HandedOver::take(first).context("what was handed over")?;
        let link = KeeperLink::new(socket).context("the keeper's socket")?;
        if handed_over.is_some() {
            failpoint::reach("upgrade.executed");
        }
        let parts = match recover(link) {
            // Killed while this program was started anew. Ending now would
            // take every process's last holder away.
            Err(RecoverError::Fetch(Errno::EPIPE | Errno::ECONNRESET)) if handed_over.is_some() => {
                let errno = handed_over.map(|all| all.become_keeper());
                anyhow::bail!("cannot take the dead keeper's place: {errno:?}");
            }
            result => result?,
        };
        drop(handed_over);
        Ok(local.block_on(&runtime, serve(parts)))
    };
    start().unwrap_or_else(|error| error)
}

async fn serve(mut parts: crate::owner::Parts) -> Error {
    let resumption = std::mem::take(&mut parts.resumption);
    let start = || -> anyhow::Result<(Owner, Vec<Listener>)> {
        let owner = Owner::new(parts).context("watch what there is")?;
        let mut listeners = Vec::new();
        for (_, fd) in &owner.fixed.controls {
            let tcp = local_port(fd).is_ok_and(|port| port != 0);
            let copy = fd.try_clone().context("copy a listener")?;
            listeners.push(Listener::new(copy, tcp).context("listen")?);
        }
        Ok((owner, listeners))
    };
    let (mut owner, listeners) = match start() {
        Ok(started) => started,
        Err(error) => return error,
    };
    let (events, inbox) = mpsc::channel(EVENT_QUEUE);
    let server = Server::new(events, Rc::clone(&owner.budget));
    for listener in listeners {
        server.serve(listener);
    }
    failpoint::reach("recover.serving");
    let told = owner.link.tell(&ToKeeper::Serving);
    owner.check_keeper(told);
    failpoint::reach("recover.served");
    // From now on the one to start is the one that runs; until now it was the
    // one that had served before.
    if let Ok(program) = process::own_binary() {
        owner.fixed.binary = program;
    }
    owner.resume_sessions(&server, resumption);
    owner.config.update_pid_file(owner.keeper_pid);
    tracing::info!(
        port = owner.config.port,
        pid = std::process::id(),
        "serving"
    );
    // As a task beside the connections': an event then reaches it without a
    // detour through the runtime's own poll.
    match tokio::task::spawn_local(owner.run(server, inbox)).await {
        Ok(never) => match never {},
        Err(error) => anyhow::anyhow!("the event loop has ended: {error}"),
    }
}
