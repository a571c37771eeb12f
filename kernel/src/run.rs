//! The kernel's role: recover, listen, serve.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Error, anyhow, bail};
use nix::errno::Errno;
use papa_test_hooks::failpoint;
use tokio::io::unix::AsyncFd;
use tokio::runtime::LocalOptions;

use crate::change::recover::{Findings, Parts, Resumption, recover};
use crate::change::succession::{Predecessor, Stays};
use crate::change::takeover::Started;
use crate::client::server::{Listener, Server};
use crate::keeper::link::KeeperLink;
use crate::keeper::understudy::{kernel_may_go_on, may_go_on};
use crate::keeper::wire::{ABLE_TO_INHERIT, ToKeeper, ToKernel, Verdict};
use crate::owner::Owner;
use crate::owner::shared::Shared;
use crate::processes::exits::watch_recovered;
use crate::sys::process;
use crate::sys::runtime::watch;
use crate::sys::socket::local_port;
use crate::world::live::Poller;
use papa_test_hooks::patience::scaled;

/// How long the keeper may take for each part of what a program that was
/// started anew fetches, though it does nothing else that takes time.
const FETCH_LIMIT: Duration = Duration::from_secs(10);

/// Runs the kernel on what it was started with: the line to its keeper, or a
/// list that names it; returns only if it cannot.
#[must_use]
pub fn kernel(first: OwnedFd) -> Error {
    process::set_name(c"papa-kernel");
    process::prefer_short_slices();
    let start = || -> anyhow::Result<Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build_local(LocalOptions::default())
            .context("start the runtime")?;
        let parts = take_up(first)?;
        Ok(runtime.block_on(serve(parts)))
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
    let verdict = fetch(&link, &mut started)?;
    failpoint::reach("recover.fetched");
    let mut kept = started.kept;
    if !kernel_may_go_on(&mut kept, link.keeper()) {
        bail!("the keeper has died, and another process goes on");
    }
    let before = Predecessor::take(&mut kept);
    let is_new = before.is_some();
    if let Some(before) = before {
        // Told to the keeper of now, which tells it to the kernel that serves,
        // whichever that will be.
        let pass_on = |message| {
            let message = match message {
                ToKernel::Exit { serial, status } => ToKeeper::Exit { serial, status },
                ToKernel::Signal(number) => ToKeeper::Signal(number),
                _ => return,
            };
            // A keeper that has died is noticed when it is told that this one
            // serves.
            let _ = link.tell(&message);
        };
        before
            .dismiss(link.keeper(), pass_on)
            .map_err(|Stays| anyhow!("the keeper before goes on, and starts another kernel"))?;
    }
    let mut parts = recover(link, kept, verdict)?;
    if is_new {
        parts.findings.gone.extend(Predecessor::keys());
    }
    Ok(parts)
}

/// Fetches everything. A program that was started with it has it already: where
/// the keeper has died meanwhile, or stands still, it takes its place.
fn fetch(link: &KeeperLink, started: &mut Started) -> anyhow::Result<Option<Verdict>> {
    if !started.has_everything() {
        return link
            .fetch_into(&mut started.kept)
            .context("fetch from the keeper");
    }
    link.set_answer_limit(scaled(FETCH_LIMIT))?;
    let errno = loop {
        match link.fetch_into(&mut started.kept) {
            Ok(verdict) => {
                link.set_answer_limit(Duration::ZERO)?;
                return Ok(verdict);
            }
            Err(Errno::EAGAIN) if process::is_traced(link.keeper()) => {}
            Err(errno @ (Errno::EAGAIN | Errno::EPIPE | Errno::ECONNRESET)) => break errno,
            Err(errno) => return Err(errno).context("fetch from the keeper"),
        }
    };
    // Ending now would take every process's last holder away, unless there is
    // another one that goes on.
    link.end_keeper();
    if !may_go_on(&mut started.kept) {
        bail!("the keeper has died, and another process goes on");
    }
    let why = started.become_keeper();
    bail!("cannot take the place of the keeper ({errno}): {why}");
}

async fn serve(parts: Parts) -> Error {
    let Parts {
        world,
        findings,
        resumption,
    } = parts;
    let start = || -> anyhow::Result<(Owner, AsyncFd<Rc<Poller>>, Vec<Listener>)> {
        let owner = Owner::new(world).context("watch the keeper")?;
        let poller = watch(Rc::clone(&owner.world.poller)).context("watch the event poller")?;
        let mut listeners = Vec::new();
        for (_, fd) in &owner.world.fixed.controls {
            let tcp = local_port(fd).is_ok_and(|port| port != 0);
            let copy = fd.try_clone().context("copy a listener")?;
            listeners.push(Listener::new(copy, tcp).context("listen")?);
        }
        Ok((owner, poller, listeners))
    };
    let (owner, poller, listeners) = match start() {
        Ok(started) => started,
        Err(error) => return error,
    };
    let budget = Rc::clone(&owner.budget);
    let shared = Shared::new(owner);
    let server = Server::new(shared.events(), budget);
    for listener in listeners {
        server.serve(listener);
    }
    begin(&mut shared.borrow_mut(), server, findings, resumption);
    // As a task beside the connections': an event then reaches it without a
    // detour through the runtime's own poll.
    match tokio::task::spawn_local(shared.run(poller)).await {
        Ok(never) => match never {},
        Err(error) => anyhow::anyhow!("the event loop has ended: {error}"),
    }
}

/// Confirms to the keeper that this program serves, and goes on with what was
/// handed over.
fn begin(owner: &mut Owner, server: Server, findings: Findings, resumption: Resumption) {
    failpoint::reach("recover.serving");
    // Whatever it is told that cannot be: the sessions are for the next kernel then.
    let told = owner
        .world
        .link
        .tell(&ToKeeper::Able(ABLE_TO_INHERIT))
        .and_then(|()| owner.world.link.tell(&ToKeeper::Serving));
    owner.check_keeper_with(told, &resumption.kept);
    failpoint::reach("recover.served");
    // From now on the one to start is the one that runs; until now it was the
    // one that had served before.
    if let Ok(program) = process::own_binary() {
        owner.world.fixed.binary = program;
    }
    owner.confirm(findings, &resumption.kept);
    let change = owner.resume_sessions(&server, resumption);
    watch_recovered(&mut owner.world, &mut owner.readers);
    if let Some((change, verdict)) = change {
        owner.go_on_changing(&change, verdict);
    }
    owner.start(server);
    owner
        .world
        .config
        .update_pid_file(owner.world.link.keeper().as_raw());
    tracing::info!(
        port = owner.world.config.port,
        pid = std::process::id(),
        "serving"
    );
}
