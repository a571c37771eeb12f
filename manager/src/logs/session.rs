//! The connection to the kernel that turns output into log files.
//!
//! Owns a kernel session of its own, so that a slow disk delays neither requests nor stops, and the consumption of every logged
//! watcher's output. Leaves to others: whose output goes where (`routes`), what is written (`writer`), the held state's way to and from
//! the kernel (`held`), processes and their exits (`supervisor`).
//! Invariant: at most one process works on the state, whoever has a copy of its descriptor: it is locked. Output is acknowledged in the
//! order flush, then acknowledge.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use papa_protocol::client::{Client, ClientError, Options, Push, Pushes};
use papa_protocol::json::push::EventType;
use papa_protocol::json::reply::ErrorCode;
use papa_protocol::json::request as ops;
use papa_protocol::name::NamePattern;
use papa_protocol::process::Process as KernelProcess;
use papa_protocol::record::{Serial, Stream};
use tokio::sync::watch;

use crate::config::WatcherConfig;
use crate::logs::failpoint::{self, Step};
use crate::logs::held::{hold, open_state};
use crate::logs::layout::Kind;
use crate::logs::routes::{Table, Verdict};
use crate::logs::schedule::Now;
use crate::logs::thread::{LogSettings, Reports, Wanted};
use crate::logs::writer::{LogWriter, Process, Record};
use crate::state::held_logs;

/// Batches read ahead of the writing: enough to keep the kernel busy, few enough to stay small in memory.
const PUSHES_AHEAD: usize = 64;
/// Bytes taken in before they are flushed and acknowledged, so that a stream that never pauses is acknowledged too.
const FLUSH_AFTER_BYTES: usize = 4 * 1024 * 1024;
/// Acknowledgements per request.
const ACKS_PER_REQUEST: usize = 1024;
/// Processes asked for by number per request.
const SERIALS_PER_REQUEST: usize = 1024;
/// Pause between attempts at what should work soon: the kernel is restarting, a predecessor is dying.
pub(super) const TRY_AGAIN: Duration = Duration::from_millis(100);
/// How long the last acknowledgements may take when the manager ends.
pub(super) const FAREWELL: Duration = Duration::from_secs(2);
/// Processes remembered as none of ours; beyond that they are asked about again.
const MAX_STRANGERS: usize = 4096;

/// One connection to the kernel, with all that hangs on it.
pub(super) struct Session<'a> {
    settings: &'a LogSettings,
    table: Table,
    client: Client,
    pushes: Pushes,
    writer: LogWriter,
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
        wanted: &Wanted,
        reports: &mut Reports,
    ) -> Result<Self, SessionError> {
        let options = Options {
            client: format!("papa-manager {} logs", std::process::id()),
            push_capacity: PUSHES_AHEAD,
            ..Options::default()
        };
        let (client, pushes) = Client::connect(settings.addresses.clone(), options).await?;
        let writer = open_state(&client, settings, reports).await?;
        let mut session = Self {
            settings,
            table: Table::new(&settings.namespace, wanted.watchers.clone()),
            client,
            pushes,
            writer,
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
        session.consume().await?;
        Ok(session)
    }

    pub(super) async fn serve(
        mut self,
        wanted: &mut watch::Receiver<Wanted>,
        reports: &mut Reports,
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
                    Some(push) => self.take_all(push).await,
                    None => return,
                },
                () = sleep_until(retry) => self.retry().await,
                changed = wanted.changed() => {
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
                self.taken_bytes += bytes.len();
                let records = header.records.iter().map(|record| Record {
                    end: record.end,
                    stream: kind(record.stream),
                    stamp_us: i64::try_from(record.stamp_us).unwrap_or(i64::MAX),
                });
                self.writer
                    .output(header.serial.0, header.start, records, &bytes, Now::read());
            }
            Push::End(end) => {
                if self.know(end.serial).await? {
                    self.writer.end(end.serial.0, kind(end.stream), Now::read());
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
                // Nothing is taken in before it is clear which kernel this is: another one counts serials from the start.
                self.lapse();
                self.strangers.clear();
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

    async fn flush(&mut self) -> Result<(), SessionError> {
        let positions = self.writer.flush(Now::read());
        for chunk in positions.chunks(ACKS_PER_REQUEST) {
            let acks: BTreeMap<Serial, u64> = chunk
                .iter()
                .map(|(serial, position)| (Serial(*serial), *position))
                .collect();
            failpoint::reach(Step::BeforeAcknowledge);
            self.client.send(ops::OutputAck { acks }).await?;
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
                tracing::warn!(%error, "the last acknowledgements did not get through");
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

    /// Is this still the kernel that holds our state?
    async fn recognise(&mut self) -> Result<(), SessionError> {
        let name = held_logs(&self.settings.namespace);
        let list = ops::HoldList {
            names: vec![NamePattern::new(&name)],
        };
        if self.client.call(list).await?.held.is_empty() {
            // A new kernel counts serials from the start: what we know belongs to processes of the old one. Forgotten before the state is
            // held there: a successor would take it for this kernel's. Nothing was taken in from the new kernel yet, however often this
            // is repeated.
            self.writer.retain(|_| false)?;
            hold(&self.client, &name, self.writer.store()).await?;
        }
        Ok(())
    }

    /// Learns of all processes, forgets those that are gone.
    async fn list(&mut self) -> Result<(), SessionError> {
        let names = vec![NamePattern::new(&format!("{}.*", self.settings.namespace))];
        let list = ops::ProcessList {
            names,
            serials: Vec::new(),
        };
        let mut processes = self.client.call(list).await?.processes;
        let mut listed: HashSet<u64> = processes.iter().map(|process| process.serial.0).collect();
        // A process whose name has gone to its successor is listed by its number alone.
        let unnamed: Vec<Serial> = self
            .writer
            .serials()
            .filter(|serial| !listed.contains(serial))
            .map(Serial)
            .collect();
        for serials in unnamed.chunks(SERIALS_PER_REQUEST) {
            let list = ops::ProcessList {
                names: Vec::new(),
                serials: serials.to_vec(),
            };
            processes.extend(self.client.call(list).await?.processes);
        }
        listed.extend(processes.iter().map(|process| process.serial.0));
        self.writer.retain(|serial| listed.contains(&serial))?;
        for process in &processes {
            self.add(process);
        }
        Ok(())
    }

    /// Output may overtake the news of its process. False for one that is no worker of ours: what it writes is the kernel's to keep.
    async fn know(&mut self, serial: Serial) -> Result<bool, SessionError> {
        if self.writer.knows(serial.0) {
            return Ok(true);
        }
        if self.strangers.contains(&serial.0) {
            return Ok(false);
        }
        let list = ops::ProcessList {
            names: Vec::new(),
            serials: vec![serial],
        };
        for process in self.client.call(list).await?.processes {
            // What was pushed begins at the start, or with a gap from there.
            self.insert(&process, 0, 0);
        }
        if !self.writer.knows(serial.0) {
            if self.strangers.len() >= MAX_STRANGERS {
                self.strangers.clear();
            }
            self.strangers.insert(serial.0);
        }
        Ok(self.writer.knows(serial.0))
    }

    fn add(&mut self, process: &KernelProcess) {
        if !self.writer.knows(process.serial.0) {
            self.insert(process, process.ledger.acknowledged, process.ledger.dropped);
        }
    }

    fn insert(&mut self, process: &KernelProcess, acknowledged: u64, dropped: u64) {
        let Verdict::Logged {
            routes,
            watcher,
            wid,
        } = self.table.verdict(&process.name)
        else {
            return;
        };
        let process = Process {
            serial: process.serial.0,
            name: process.name.to_string(),
            watcher: watcher.to_owned(),
            wid,
            pid: i32::try_from(process.pid).unwrap_or(0),
            reel_bytes: process.reel_bytes,
            acknowledged,
            dropped,
        };
        self.writer.add(&process, routes);
    }

    /// Asks for the output of everybody whose output is wanted, from the first byte not acknowledged, where that is not under way; and
    /// takes over from a predecessor that is not quite dead.
    async fn consume(&mut self) -> Result<(), SessionError> {
        let wanted = self
            .table
            .prefixes(self.writer.names().map(|(_, name)| name));
        let (kept, gone) = std::mem::take(&mut self.subscriptions)
            .into_iter()
            .partition(|(prefix, _)| wanted.contains(prefix));
        self.subscriptions = kept;
        self.lapsed
            .extend(HashMap::<String, u64>::into_values(gone));
        while let Some(sub) = self.lapsed.last().copied() {
            match self.client.call(ops::OutputStop { sub }).await {
                Err(error) if error.code() == Some(ErrorCode::NotFound) => {}
                other => drop(other?),
            }
            self.lapsed.pop();
        }
        for prefix in wanted {
            if self.subscriptions.contains_key(&prefix) {
                continue;
            }
            let consume = ops::OutputConsume {
                names: vec![NamePattern::new(&format!("{prefix}*"))],
                bytes: ops::Delivery::Inline,
                force: true,
            };
            let sub = self.client.call(consume).await?.sub;
            self.subscriptions.insert(prefix, sub);
        }
        Ok(())
    }
}

fn kind(stream: Stream) -> Kind {
    match stream {
        Stream::Out => Kind::Out,
        Stream::Err => Kind::Err,
    }
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{0}")]
    Name(String),
}
