//! Sends one parcel of values and acknowledgements to the kernel.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use papa_client::ClientError;
use papa_protocol::json::reply::ErrorCode;
use papa_test_hooks::failpoint;
use tokio::sync::mpsc;

use crate::kernel_link::{KernelLink, LinkError};
use crate::supervisor::Event;
use crate::supervisor::saves::{Fate, Key, Parcel, What};

/// Sends a parcel; `Event::Saved` tells what became of each entry.
pub(in crate::supervisor) fn send_saves(
    link: KernelLink,
    parcel: Parcel,
    reload: bool,
    events: mpsc::Sender<Event>,
) {
    tokio::spawn(async move {
        let entries = parcel.entries;
        if entries.iter().any(|(key, _)| matches!(key, Key::Exit(_))) {
            failpoint::reach("exit.kept");
        }
        let sent = entries.into_iter().map(|(key, what)| {
            let link = link.clone();
            async move {
                let fate = fate(send(&link, &key, what).await);
                (key, fate)
            }
        });
        let fates = all(sent.collect()).await;
        if reload {
            failpoint::reach("reload.kept");
        }
        let _ = events.send(Event::Saved(fates)).await;
    });
}

async fn send(link: &KernelLink, key: &Key, what: What) -> Result<(), LinkError> {
    match (key, what) {
        (Key::Value(name), What::Keep(text)) => link.keep(name, Some(text)).await,
        (Key::Value(name), _) => link.keep(name, None).await,
        (Key::Exit(serial), what) => {
            let discard = what == What::Acknowledge { discard: true };
            link.ours().acknowledge_exit(*serial, discard).await
        }
    }
}

fn fate(result: Result<(), LinkError>) -> Fate {
    match result {
        Ok(()) => Fate::Done,
        // The value or process to be removed does not exist.
        Err(error) if error.code() == Some(ErrorCode::NotFound) => Fate::Done,
        Err(LinkError::Client(ClientError::Lost | ClientError::Closed)) => Fate::Lost,
        Err(error) => Fate::Refused(error.to_string()),
    }
}

/// Waits for all of them. Requests go out in the order of `futures`, which are polled in that order.
async fn all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut waiting: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    let mut results: Vec<Option<F::Output>> = waiting.iter().map(|_| None).collect();
    poll_fn(|context| {
        for (future, result) in waiting.iter_mut().zip(&mut results) {
            if result.is_none()
                && let Poll::Ready(output) = future.as_mut().poll(context)
            {
                *result = Some(output);
            }
        }
        if results.iter().all(Option::is_some) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    results.into_iter().flatten().collect()
}
