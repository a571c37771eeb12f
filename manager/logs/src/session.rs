//! The connection to the kernel that turns output into log files.
//!
//! Owns a kernel session of its own, so that a slow disk delays neither requests nor stops, and the
//! consumption of every logged watcher's output. Leaves to others: whose output goes where
//! (`routes`), what is written (`writer`), the held state's way to and from the kernel (`held`),
//! processes and their exits (`supervisor`).
//! Invariant: at most one process works on the state, whoever has a copy of its descriptor: it is
//! locked. Output is acknowledged in the order flush, then acknowledge.

mod processes;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use papa_client::{Client, Options, Push, Pushes};
use papa_config::WatcherConfig;
use papa_protocol::json::push::{EventType, OutputHeader};
use papa_protocol::json::request as ops;
use papa_protocol::name::NamePattern;
use papa_protocol::record::Serial;
use papa_test_hooks::failpoint;
use tokio::sync::watch;

use crate::exchange::{FAREWELL, LogSettings, Orders, Reports, SessionError, TRY_AGAIN};
use crate::held::open_state;
use crate::pulse::Pulse;
use crate::reels::Reels;
use crate::routes::{Table, Verdict};
use crate::schedule::Now;
use crate::writer::LogWriter;

/// Batches read ahead of the writing: enough to keep the kernel busy, few enough to stay small in
/// memory.
const PUSHES_AHEAD: usize = 64;
/// Bytes taken in before they are flushed and acknowledged: what a reel holds, so that its writer
/// goes on while others are served.
const FLUSH_AFTER_BYTES: usize = 1024 * 1024;
/// Files are flushed for so long before what is out is acknowledged: on a slow disk no process
/// waits for the files of all others.
const FLUSH_FOR: Duration = Duration::from_millis(100);
/// Acknowledgements per request.
const ACKS_PER_REQUEST: usize = 1024;
/// One connection to the kernel, with all that hangs on it.
pub(super) struct Session<'a> {
    settings: &'a LogSettings,
    table: Table,
    client: Client,
    pushes: Pushes,
    writer: LogWriter,
    reels: Reels,
    /// How output is to come.
    delivery: ops::Delivery,
    /// What is being consumed: name prefix and number.
    subscriptions: HashMap<String, u64>,
    /// Subscriptions whose output no longer counts, still to be stopped.
    lapsed: Vec<u64>,
    /// Processes whose output we get because of their name, and which are no worker of ours.
    strangers: HashSet<u64>,
    unsettled: Unsettled,
    /// When to try again to settle it.
    settle_at: Option<Instant>,
    taken_bytes: usize,
}

/// What a change or a connection that failed has left undone.
#[derive(Debug, Default)]
struct Unsettled {
    /// Whether the kernel is the one we knew.
    kernel: bool,
    /// What processes it has.
    processes: bool,
    /// Not everything is being consumed that should be, or something that should not.
    consumption: bool,
}

impl<'a> Session<'a> {
    pub(super) async fn open(
        settings: &'a LogSettings,
        wanted: &Orders,
        reports: &mut Reports,
    ) -> Result<Self, SessionError> {
        let options = Options {
            client: format!("papa-manager {} logs", std::process::id()),
            push_capacity: PUSHES_AHEAD,
            ..Options::default()
        };
        let (client, pushes) = Client::connect(settings.addresses.clone(), options).await?;
        let writer = open_state(&client, settings, reports).await?;
        failpoint::reach("adopt.state");
        let mut session = Self {
            settings,
            table: Table::new(&settings.namespace, wanted.watchers.clone()),
            client,
            pushes,
            writer,
            reels: Reels::default(),
            delivery: ops::Delivery::Auto,
            subscriptions: HashMap::new(),
            lapsed: Vec::new(),
            strangers: HashSet::new(),
            unsettled: Unsettled::default(),
            settle_at: None,
            taken_bytes: 0,
        };
        let names = vec![NamePattern::new(&format!("{}.*", settings.namespace))];
        session.client.call(ops::Subscribe { names }).await?;
        session.list().await?;
        failpoint::reach("adopt.consuming");
        session.consume().await?;
        failpoint::reach("adopt.consumed");
        Ok(session)
    }

    pub(super) async fn serve(
        mut self,
        wanted: &mut watch::Receiver<Orders>,
        reports: &mut Reports,
        pulse: &Pulse,
    ) {
        let mut reopenings = wanted.borrow().reopenings;
        loop {
            reports.troubles(self.writer.troubles());
            reports.matched(self.writer.take_matched());
            let say_again = (!reports.send()).then(|| Instant::now() + TRY_AGAIN);
            let retry = self.writer.next_retry(Now::read()).into_iter();
            let retry = retry.chain(self.settle_at).chain(say_again).min();
            let result = tokio::select! {
                push = self.pushes.recv() => match push {
                    Some(push) => {
                        let _at_work = pulse.work();
                        self.take_all(push).await
                    }
                    None => return,
                },
                () = sleep_until(retry) => {
                    let _at_work = pulse.work();
                    self.retry().await
                }
                changed = wanted.changed() => {
                    let _at_work = pulse.work();
                    let now = wanted.borrow_and_update().clone();
                    if changed.is_err() || now.finish {
                        return self.finish().await;
                    }
                    if now.reopenings != reopenings {
                        reopenings = now.reopenings;
                        self.writer.reopen();
                    }
                    self.update(now.watchers).await
                }
            };
            if let Err(error) = result {
                // The client reconnects by itself, and then everything unacknowledged comes again.
                tracing::warn!(%error, "a request of the log thread failed");
            }
        }
    }

    /// Goes on under another configuration.
    async fn update(&mut self, watchers: Arc<[Arc<WatcherConfig>]>) -> Result<(), SessionError> {
        self.table = Table::new(&self.settings.namespace, watchers);
        self.strangers.clear();
        let known: Vec<(u64, String)> = self
            .writer
            .names()
            .map(|(serial, name)| (serial, name.to_owned()))
            .collect();
        let mut again = false;
        self.writer.begin_update();
        for (serial, name) in known {
            match self.table.verdict(&name) {
                Verdict::Logged { routes, .. } => {
                    again |= self.writer.reroute(serial, routes, Now::read());
                }
                Verdict::NotLogged => self.writer.drop_book(serial),
                // Of a watcher that is gone: written as before until it ends.
                Verdict::Unknown => {}
            }
        }
        self.writer.end_update();
        if again {
            self.lapse();
        }
        self.unsettled.processes = true;
        self.unsettled.consumption = true;
        self.settle().await
    }

    /// Takes a push and those that are there already, then flushes once for all of them.
    async fn take_all(&mut self, first: Push) -> Result<(), SessionError> {
        self.taken_bytes = 0;
        let mut next = Some(first);
        let mut result = Ok(());
        while let Some(push) = next {
            result = self.take(push).await;
            next = if result.is_ok() && self.taken_bytes < FLUSH_AFTER_BYTES {
                self.pushes.try_recv()
            } else {
                None
            };
        }
        // Whatever went wrong with the last one: what was taken before is written.
        self.flush().await.and(result)
    }

    async fn take(&mut self, push: Push) -> Result<(), SessionError> {
        match push {
            // Of a subscription that has ended: asked for anew, it comes again, and
            // taken out of its turn it would look like a gap.
            Push::Output { header, .. } if !self.counts(header.sub) => {}
            Push::End(end) if !self.counts(end.sub) => {}
            Push::Output { header, bytes } => {
                if !self.know(header.serial).await? {
                    return Ok(());
                }
                if !header.inline {
                    return self.take_from_reel(&header).await;
                }
                self.taken_bytes += bytes.len();
                let records = header.records.iter().copied();
                self.writer
                    .output(header.serial.0, header.start, records, &bytes, Now::read());
            }
            Push::End(end) => {
                if self.know(end.serial).await? {
                    self.writer
                        .end(end.serial.0, end.stream.into(), Now::read());
                }
            }
            Push::Event(event) => match (event.kind, event.process, event.serial) {
                (EventType::Made, Some(process), _) => self.add(&process),
                (EventType::Removed, _, Some(serial)) => self.forget(serial.0).await?,
                _ => {}
            },
            Push::Reconnected(new) => {
                tracing::info!(
                    incarnation = new.hello.incarnation,
                    "the log thread is connected again"
                );
                // Nothing is taken in before it is clear which kernel this is: another one counts
                // serials from the start.
                self.lapse();
                self.strangers.clear();
                self.reels.clear();
                self.delivery = ops::Delivery::Auto;
                self.unsettled = Unsettled {
                    kernel: true,
                    processes: true,
                    consumption: true,
                };
                self.settle().await?;
            }
            // An acknowledgement for a process that was forgotten meanwhile, at worst.
            Push::Failed(failure) => {
                tracing::debug!(%failure, "the kernel refused an acknowledgement");
            }
            Push::Disconnected { reason } => {
                tracing::info!(reason, "the log thread lost the kernel");
            }
            Push::Exit(_) | Push::Lost(_) | Push::Shutdown(_) => {}
        }
        Ok(())
    }

    /// Takes in output that was too much to be sent.
    async fn take_from_reel(&mut self, header: &OutputHeader) -> Result<(), SessionError> {
        let serial = header.serial;
        if !self.reels.has(serial.0)
            && let Err(error) = self.open_reel(serial).await
        {
            return self.go_inline(&error).await;
        }
        let mut result = Ok(());
        let (mut position, end) = (header.start, header.start + header.length);
        while position < end {
            let part = match self.reels.read(serial.0, position..end) {
                Ok(part) => part,
                Err(error) => return self.go_inline(&error.into()).await,
            };
            position = part.end();
            self.taken_bytes += part.bytes.len();
            let records = part.records(&header.records);
            self.writer
                .output(serial.0, part.start, records, part.bytes, Now::read());
            if self.taken_bytes >= FLUSH_AFTER_BYTES && position < end {
                self.taken_bytes = 0;
                // Whatever comes of it: what was announced is taken in to its end, or the rest
                // would look like a gap.
                result = result.and(self.flush().await);
            }
        }
        result
    }

    async fn flush(&mut self) -> Result<(), SessionError> {
        let mut files = Some(0);
        while let Some(first) = files {
            let (positions, rest) = self.writer.flush_some(first, FLUSH_FOR, Now::read());
            files = rest;
            for chunk in positions.chunks(ACKS_PER_REQUEST) {
                let acks: BTreeMap<Serial, u64> = chunk
                    .iter()
                    .map(|(serial, position)| (Serial(*serial), *position))
                    .collect();
                failpoint::reach("log.before_acknowledge");
                self.client.send(ops::OutputAck { acks }).await?;
            }
            // Lets the acknowledgements go out before more is taken in.
            tokio::task::yield_now().await;
        }
        let serials: Vec<Serial> = self
            .writer
            .take_unsettled()
            .into_iter()
            .map(Serial)
            .collect();
        if serials.is_empty() {
            return Ok(());
        }
        let list = ops::ProcessList {
            names: Vec::new(),
            serials,
        };
        for process in self.client.call(list).await?.processes {
            let ledger = &process.ledger;
            self.writer
                .settle_gap(process.serial.0, ledger.acknowledged, ledger.dropped);
        }
        Ok(())
    }

    /// A suspended file may work again: then what it missed is asked for once more.
    async fn retry(&mut self) -> Result<(), SessionError> {
        let now = Instant::now();
        let resumed = self.writer.retry(Now::read());
        // What waited here and is out by now.
        self.flush().await?;
        if resumed {
            self.lapse();
            self.unsettled.consumption = true;
            return self.settle().await;
        }
        match self.settle_at {
            Some(at) if at <= now => self.settle().await,
            _ => Ok(()),
        }
    }

    fn counts(&self, sub: u64) -> bool {
        self.subscriptions.values().any(|known| *known == sub)
    }

    /// What is being consumed counts no longer, and is asked for anew.
    fn lapse(&mut self) {
        self.lapsed
            .extend(self.subscriptions.drain().map(|(_, sub)| sub));
    }

    async fn forget(&mut self, serial: u64) -> Result<(), SessionError> {
        self.strangers.remove(&serial);
        let retired = self
            .writer
            .name(serial)
            .is_some_and(|name| matches!(self.table.verdict(name), Verdict::Unknown));
        self.reels.close(serial);
        self.writer.forget(serial)?;
        if retired {
            // Perhaps the last of a watcher that is gone.
            self.unsettled.consumption = true;
            self.settle().await?;
        }
        Ok(())
    }

    async fn finish(mut self) {
        let farewell = async {
            while let Some(push) = self.pushes.try_recv() {
                self.take(push).await?;
            }
            self.flush().await?;
            self.client.barrier().await?;
            Ok::<(), SessionError>(())
        };
        match tokio::time::timeout(FAREWELL, farewell).await {
            Ok(Ok(())) => {}
            // Unacknowledged output comes again, and the state says what of it is written.
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot send the last acknowledgements");
            }
            Err(_) => tracing::warn!("the last acknowledgements took too long"),
        }
    }

    /// Does what is still to do after a change, a reconnection, or a failure of just this.
    async fn settle(&mut self) -> Result<(), SessionError> {
        self.settle_at = Some(Instant::now() + TRY_AGAIN);
        if self.unsettled.kernel {
            self.recognise().await?;
            self.unsettled.kernel = false;
        }
        if self.unsettled.processes {
            self.list().await?;
            self.unsettled.processes = false;
        }
        if self.unsettled.consumption {
            self.consume().await?;
            self.unsettled.consumption = false;
        }
        self.settle_at = None;
        Ok(())
    }
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}
