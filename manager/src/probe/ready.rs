//! A worker says, or is found, to serve.
//!
//! Owns what a worker is given to say so with, and the wait for it. `notify` and `fd:N` need
//! something that outlives the manager: a socket, or a pipe, made for one start of one worker and
//! held by the kernel until the worker is ready or gone. What is said while no manager runs is read
//! by the next one.
//!
//! Held no longer than that on purpose. A datagram socket nobody reads makes its senders wait once
//! a few messages are queued (`net.unix.max_dgram_qlen`, often 10), so a worker that reports its
//! status now and then would hang while no manager runs. With the socket gone, sending fails at
//! once, which every library takes for "nobody is interested".
//!
//! Invariant: `wait` on a fetched descriptor gives the same answer whichever manager asks, and
//! however often one was killed in between, as long as nobody called `discard`.
//! Source: `sd_notify(3)`; s6's `notifywhenup`; protocol/README.md, `hold`.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use papa_client::{Client, ClientError};
use papa_protocol::json::reply::ErrorCode;
use papa_protocol::json::request as ops;
use papa_protocol::name::{Name, NamePattern};

use super::{ProbeError, for_worker, http, notify, pipe, tcp};
use crate::config::Readiness;

/// First pause between two questions.
const ASK_AGAIN_MIN: Duration = Duration::from_millis(100);
/// Longest pause.
const ASK_AGAIN_MAX: Duration = Duration::from_secs(1);
/// One question takes no longer, so that a lost packet does not cost the whole time.
const QUESTION_TIME: Duration = Duration::from_secs(5);

/// What a worker has to be started with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Means {
    /// A variable for its environment.
    pub variable: Option<(&'static str, String)>,
    /// The held descriptor it gets, and at which number: an entry of `descriptors`.
    pub descriptor: Option<(u32, Name)>,
}

/// The readiness of one worker.
#[derive(Debug, Clone)]
pub struct Gate {
    client: Client,
    worker: String,
    wid: u32,
    /// Names our end, and the worker's, are held under.
    ours: String,
    its: String,
}

/// The pattern of everything gates hold in `namespace`.
#[must_use]
pub fn held(namespace: &str) -> NamePattern {
    NamePattern::new(&format!("{namespace}.manager.ready*"))
}

impl Gate {
    /// Of the worker that is, or will be, `worker` in the kernel, with number `wid`.
    #[must_use]
    pub fn new(client: Client, namespace: &str, worker: &str, wid: u32) -> Self {
        let rest = worker
            .strip_prefix(namespace)
            .and_then(|rest| rest.strip_prefix('.'))
            .unwrap_or(worker);
        Self {
            client,
            worker: worker.to_owned(),
            wid,
            ours: format!("{namespace}.manager.ready.{rest}"),
            its: format!("{namespace}.manager.ready-end.{rest}"),
        }
    }

    /// Makes what the worker will say it with, right before its start. Repeated while the worker
    /// runs, after a start whose answer was lost, it gives what that worker has; otherwise
    /// something new, so that nothing an earlier worker said is taken for this one's.
    ///
    /// # Errors
    /// The kernel refused, is reached over TCP, or did not answer.
    pub async fn prepare(&self, ready: &Readiness) -> Result<Means, ProbeError> {
        let mut means = Means::default();
        match ready {
            Readiness::Notify => {
                let address = match self.of_running().await? {
                    Some(socket) => notify::address(&socket),
                    None => {
                        let made = notify::make();
                        let (socket, address) = made.map_err(ProbeError::io("notify socket"))?;
                        self.hold(&self.ours, socket).await?;
                        Ok(address)
                    }
                };
                let address = address.map_err(ProbeError::io("notify socket"))?;
                means.variable = Some(("NOTIFY_SOCKET", address));
            }
            Readiness::Fd(number) => {
                if self.of_running().await?.is_none() {
                    let (ours, its) = pipe::make().map_err(ProbeError::io("readiness pipe"))?;
                    // Its end first: ours being there means that both are.
                    self.hold(&self.its, its).await?;
                    self.hold(&self.ours, ours).await?;
                }
                means.descriptor = Some((*number, Name::new(&self.its)?));
            }
            Readiness::Tcp(_) | Readiness::Http(_) | Readiness::Log(_) | Readiness::Delay(_) => {}
        }
        Ok(means)
    }

    /// Waits until the worker, which has been started, is ready. `uid` is who it runs as, if that
    /// was asked for. `log` and `delay` are not waited for here: they count as ready at once.
    ///
    /// # Errors
    /// It was not by `deadline`, or said that it will not be; `NotPrepared` when there is nothing
    /// it could say it with.
    ///
    /// # Cancel safety
    /// Cancel safe: what leads to an answer is not consumed.
    pub async fn wait(
        &self,
        ready: &Readiness,
        uid: Option<u32>,
        deadline: Instant,
    ) -> Result<(), ProbeError> {
        let mut last = None;
        let waited = tokio::time::timeout_at(
            deadline.into(),
            self.wait_for_ever(ready, uid, deadline, &mut last),
        );
        match waited.await {
            Ok(answer) => answer,
            Err(_) => Err(ProbeError::NotReady(
                last.unwrap_or_else(|| "no sign of it".to_owned()),
            )),
        }
    }

    /// Gives back what is held: the worker is ready and that is kept, or it is gone or not wanted.
    /// Repeating it is harmless.
    ///
    /// # Errors
    /// The kernel refused or did not answer.
    pub async fn discard(&self) -> Result<(), ProbeError> {
        self.drop_held(&[&self.ours, &self.its]).await
    }

    async fn wait_for_ever(
        &self,
        ready: &Readiness,
        uid: Option<u32>,
        deadline: Instant,
        last: &mut Option<String>,
    ) -> Result<(), ProbeError> {
        match ready {
            Readiness::Notify => {
                let socket = self.fetch(last).await?;
                notify::wait(socket, uid, last).await
            }
            Readiness::Fd(number) => {
                let pipe = self.fetch(last).await?;
                // The worker has its end now. As long as the kernel has it too, the worker's
                // closing it would go unseen.
                self.drop_held(&[&self.its]).await?;
                *last = Some(format!("no line was written to descriptor {number}"));
                pipe::wait(pipe, *number).await
            }
            Readiness::Tcp(address) => {
                let address = for_worker(address, self.wid);
                ask(deadline, last, |time| tcp(&address, time)).await
            }
            Readiness::Http(url) => {
                let url = for_worker(url, self.wid);
                ask(deadline, last, |time| http(&url, time)).await
            }
            Readiness::Log(_) | Readiness::Delay(_) => Ok(()),
        }
    }

    /// What is held for the worker, if a process of its name runs and so has the other end.
    async fn of_running(&self) -> Result<Option<OwnedFd>, ProbeError> {
        let list = ops::ProcessList {
            names: vec![NamePattern::new(&self.worker)],
            serials: Vec::new(),
        };
        let processes = self.client.call(list).await?.processes;
        if !processes.iter().any(|process| process.running) {
            return Ok(None);
        }
        match self.fetch_once().await {
            Ok(fd) => Ok(Some(fd)),
            Err(ProbeError::NotPrepared(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Our end. A kernel that does not answer, being started again, is asked again.
    async fn fetch(&self, last: &mut Option<String>) -> Result<OwnedFd, ProbeError> {
        let mut pause = ASK_AGAIN_MIN;
        loop {
            match self.fetch_once().await {
                Err(ProbeError::Client(error @ (ClientError::Lost | ClientError::Timeout(_)))) => {
                    *last = Some(error.to_string());
                }
                other => return other,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(ASK_AGAIN_MAX);
        }
    }

    async fn fetch_once(&self) -> Result<OwnedFd, ProbeError> {
        let fetch = ops::Fetch {
            name: Name::new(&self.ours)?,
        };
        match self.client.call_for_descriptor(fetch).await {
            Ok((_, fd)) => Ok(fd),
            Err(error) if error.code() == Some(ErrorCode::NotFound) => {
                Err(ProbeError::NotPrepared(self.worker.clone()))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn hold(&self, name: &str, fd: OwnedFd) -> Result<(), ProbeError> {
        let hold = ops::Hold {
            name: Name::new(name)?,
        };
        self.client.call_with_descriptor(hold, fd).await?;
        Ok(())
    }

    async fn drop_held(&self, names: &[&str]) -> Result<(), ProbeError> {
        let names = names.iter().map(|name| NamePattern::new(name)).collect();
        match self.client.call(ops::HoldDrop { names }).await {
            Err(error) if error.code() != Some(ErrorCode::NotFound) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// Asks until the answer is yes.
async fn ask<Q: Future<Output = Result<(), ProbeError>>>(
    deadline: Instant,
    last: &mut Option<String>,
    question: impl Fn(Duration) -> Q,
) -> Result<(), ProbeError> {
    let mut pause = ASK_AGAIN_MIN;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match question(left.min(QUESTION_TIME)).await {
            // Nothing will change that.
            Err(error @ ProbeError::Target(_)) => return Err(error),
            Err(error) => *last = Some(error.to_string()),
            Ok(()) => return Ok(()),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(ASK_AGAIN_MAX);
    }
}
