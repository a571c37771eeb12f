//! The kernel's role: recover, listen, serve.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use anyhow::{Context, Error, anyhow, bail};
use nix::errno::Errno;
use papa_protocol::failpoint;
use tokio::sync::mpsc;
use tokio::task::LocalSet;

use crate::keeper::link::KeeperLink;
use crate::keeper::wire::ToKeeper;
use crate::owner::{EVENT_QUEUE, Owner, Parts};
use crate::recover::recover;
use crate::server::{Listener, Server};
use crate::succession::{Predecessor, Stays};
use crate::sys::process;
use crate::sys::socket::local_port;
use crate::takeover::Started;

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
        let parts = take_up(first)?;
        Ok(local.block_on(&runtime, serve(parts)))
    };
    start().unwrap_or_else(|error| error)
}

/// Fetches everything from the keeper, dismisses the one before it if that is
/// still there, and puts together what there is.
fn take_up(first: OwnedFd) -> anyhow::Result<Parts> {
    let mut started = Started::take(first).context("what was handed over")?;
    let line = started.line.try_clone().context("the keeper's socket")?;
    let link = KeeperLink::new(line).context("the keeper's socket")?;
    if started.is_anew() {
        failpoint::reach("upgrade.executed");
    }
    let verdict = match link.fetch_into(&mut started.kept) {
        // Killed while this program was started anew. Ending now would take
        // every process's last holder away.
        Err(Errno::EPIPE | Errno::ECONNRESET) if started.is_anew() => {
            let errno = started.become_keeper();
            bail!("cannot take the dead keeper's place: {errno}");
        }
        result => result.context("fetch from the keeper")?,
    };
    failpoint::reach("recover.fetched");
    let mut kept = started.kept;
    let said = match Predecessor::take(&mut kept) {
        None => Vec::new(),
        Some(before) => before
            .dismiss(link.keeper())
            .map_err(|Stays| anyhow!("the keeper before goes on, and starts another kernel"))?,
    };
    let mut parts = recover(link, kept, verdict)?;
    parts.findings.gone.extend(Predecessor::keys());
    parts.findings.said = said;
    Ok(parts)
}

async fn serve(mut parts: Parts) -> Error {
    let resumption = std::mem::take(&mut parts.resumption);
    let findings = std::mem::take(&mut parts.findings);
    let start = || -> anyhow::Result<(Owner, Vec<Listener>)> {
        let owner = Owner::new(parts).context("watch the keeper")?;
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
    if let Err(errno) = owner.link.tell(&ToKeeper::Serving) {
        // With the sessions, which are for the next kernel then.
        owner.check_keeper_with(Err(errno), &resumption.into_kept());
        return anyhow!("the keeper cannot be told that this kernel serves: {errno}");
    }
    failpoint::reach("recover.served");
    // From now on the one to start is the one that runs; until now it was the
    // one that had served before.
    if let Ok(program) = process::own_binary() {
        owner.fixed.binary = program;
    }
    owner.confirm(&findings.entries, &findings.gone);
    let change = owner.resume_sessions(&server, resumption);
    owner.watch_recovered();
    for message in &findings.said {
        owner.on_told(message);
    }
    if let Some((change, verdict)) = change {
        owner.go_on_changing(&change, verdict);
    }
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
