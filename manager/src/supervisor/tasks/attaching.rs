//! The way to the kernel: connect, claim the namespace, make the sockets, list what there is.

use std::sync::Arc;
use std::time::Duration;

use papa_client::{Address, Client, Options, Pushes};
use papa_test_hooks::failpoint;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::exchange::close_aside;
use super::sockets::make_sockets;
use super::{KERNEL_AGAIN, KERNEL_PATIENCE, waiting};
use crate::config::Config;
use crate::error::ManagerError;
use crate::kernel_link::{Inventory, KernelLink};
use crate::runtime_dir::RuntimeDir;
use crate::supervisor::Event;
use papa_control::kernel_search::{KernelElsewhere, is_elsewhere};

/// Longest pause between attempts to connect: somebody who starts a kernel waits no longer.
const CONNECT_AGAIN_MAX: Duration = Duration::from_secs(1);
/// Kernels found without a visible process before the kernel counts as one of another process
/// namespace. One that was killed a moment ago is not visible either.
const MAX_ELSEWHERE: u32 = 4;

/// Connects, claims the namespace, makes the sockets and lists what there is; then passes on the
/// kernel's events.
pub(in crate::supervisor) fn attach(
    config: Arc<Config>,
    addresses: Vec<Address>,
    events: mpsc::Sender<Event>,
) {
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
        if inventory.change.is_none() {
            // What was left by a change that nobody is to go on with.
            close_aside(&link).await;
        }
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

/// Makes the sockets and lists what there is, after the reconnection with this number. `claim`
/// claims the namespace again first, `subscribe` renews the subscription.
pub(in crate::supervisor) fn list_again(
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
    let mut pause = KERNEL_AGAIN;
    let mut waiting = false;
    let mut elsewhere = 0;
    loop {
        let options = Options {
            client: holder(config),
            ..Options::default()
        };
        match Client::connect(addresses.to_vec(), options).await {
            Ok((client, _)) if is_elsewhere(client.hello().pid) => {
                elsewhere += 1;
                if elsewhere >= MAX_ELSEWHERE {
                    return Err(KernelElsewhere {
                        address: waiting::place(addresses),
                        pid: client.hello().pid.into(),
                    }
                    .into());
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
    let patience = Instant::now() + KERNEL_PATIENCE;
    loop {
        match link.ours().claim(&holder(config)).await {
            Ok(epoch) => {
                tracing::info!(namespace = config.namespace, epoch, "claimed the namespace");
                return Ok(());
            }
            Err(error) if error.is_unanswered() || Instant::now() < patience => {
                sleep(KERNEL_AGAIN).await;
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

/// Names this manager to others that the kernel refuses the namespace.
fn holder(config: &Config) -> String {
    format!(
        "papa-manager pid {}, {}, runtime directory {}",
        std::process::id(),
        config.path.display(),
        RuntimeDir::locate().path().display()
    )
}

/// Makes the sockets, and lists what there is until the kernel answers.
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
                sleep(KERNEL_AGAIN).await;
            }
        }
    }
}
