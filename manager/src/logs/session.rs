//! The thread that turns the kernel's output into log files.
//!
//! Owns a kernel session of its own, so that a slow disk delays neither requests nor stops; the consumption of every logged watcher's
//! output; and the held state's way to and from the kernel. Leaves to others: what is written where (`writer`), processes and their
//! exits (`supervisor`).
//! Invariant: at most one process works on the state, whoever has a copy of its descriptor: it is locked. Output is acknowledged in the
//! order flush, then acknowledge.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use papa_protocol::client::{Address, Client, ClientError, Options, Push, Pushes};
use papa_protocol::json::push::EventType;
use papa_protocol::json::reply::ErrorCode;
use papa_protocol::json::request as ops;
use papa_protocol::name::NamePattern;
use papa_protocol::process::Process as KernelProcess;
use papa_protocol::record::{Serial, Stream};
use tokio::sync::mpsc;

use crate::config::{StreamConfig, WatcherConfig};
use crate::kernel_link::is_logged;
use crate::logs::file::Limits;
use crate::logs::held::{hold, open_state};
use crate::logs::layout::Kind;
use crate::logs::writer::{LogWriter, Process, Record, Route, Routes};
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
const FAREWELL: Duration = Duration::from_secs(2);
/// Orders waiting for the thread.
const ORDERS: usize = 16;
/// Where `StdoutStream` goes: wherever the manager's own output goes.
const OWN_STDOUT: &str = "/dev/stdout";

/// Everything the thread has to know.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// Where the kernel is.
    pub addresses: Vec<Address>,
    /// Ours.
    pub namespace: String,
    /// Whose output goes where.
    pub watchers: Vec<Arc<WatcherConfig>>,
}

/// What the thread is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Reopen,
    Finish,
}

/// The running thread.
#[derive(Debug)]
pub struct LogThread {
    orders: mpsc::Sender<Order>,
    handle: JoinHandle<()>,
}

impl LogThread {
    /// Starts the thread. `report` is called with what is wrong, for people, whenever that changes; empty means all is well, and the
    /// first time also that output is being consumed.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(
        settings: LogSettings,
        report: impl Fn(Vec<String>) + Send + 'static,
    ) -> io::Result<Self> {
        let (orders, receiver) = mpsc::channel(ORDERS);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = std::thread::Builder::new()
            .name("logs".to_owned())
            .spawn(move || {
                runtime.block_on(run(&settings, receiver, &report));
            })?;
        Ok(Self { orders, handle })
    }

    /// Closes all log files, so that the next line opens them by their paths.
    pub fn reopen(&self) {
        if self.orders.try_send(Order::Reopen).is_err() {
            tracing::warn!("the log thread is busy; send the signal again");
        }
    }

    /// Writes and acknowledges what has arrived, then ends the thread. Blocks for that time.
    pub fn finish(self) {
        // A full queue or a dead thread both mean that nothing more can be asked of it.
        if self.orders.blocking_send(Order::Finish).is_ok() && self.handle.join().is_err() {
            tracing::error!("the log thread panicked");
        }
    }
}

async fn run(
    settings: &LogSettings,
    mut orders: mpsc::Receiver<Order>,
    report: &dyn Fn(Vec<String>),
) {
    loop {
        let attempt = Session::open(settings);
        let opened = tokio::select! {
            opened = attempt => opened,
            order = orders.recv() => match order {
                Some(Order::Reopen) => continue,
                Some(Order::Finish) | None => return,
            },
        };
        match opened {
            Ok(session) => {
                report(Vec::new());
                return session.serve(&mut orders, report).await;
            }
            Err(error) => {
                report(vec![format!("logs: {error}")]);
                tokio::time::sleep(TRY_AGAIN).await;
            }
        }
    }
}

struct Session<'a> {
    settings: &'a LogSettings,
    client: Client,
    pushes: Pushes,
    writer: LogWriter,
    subscriptions: Vec<u64>,
    unsettled: Unsettled,
    /// When to try again to settle it.
    settle_at: Option<Instant>,
    taken_bytes: usize,
}

/// What a connection that failed has left undone.
#[derive(Debug, Default)]
struct Unsettled {
    /// Whether the kernel is the one we knew, and what processes it has.
    kernel: bool,
    /// Not everything is being consumed, or not from the right position.
    consumption: bool,
}

impl<'a> Session<'a> {
    async fn open(settings: &'a LogSettings) -> Result<Self, SessionError> {
        let options = Options {
            client: format!("papa-manager {} logs", std::process::id()),
            push_capacity: PUSHES_AHEAD,
            ..Options::default()
        };
        let (client, pushes) = Client::connect(settings.addresses.clone(), options).await?;
        let writer = open_state(&client, settings).await?;
        let mut session = Self {
            settings,
            client,
            pushes,
            writer,
            subscriptions: Vec::new(),
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

    async fn serve(mut self, orders: &mut mpsc::Receiver<Order>, report: &dyn Fn(Vec<String>)) {
        let mut reported = Vec::new();
        loop {
            let retry = self.writer.next_retry().into_iter();
            let retry = retry.chain(self.settle_at).min();
            let result = tokio::select! {
                push = self.pushes.recv() => match push {
                    Some(push) => self.take_all(push).await,
                    None => return,
                },
                () = sleep_until(retry) => self.retry().await,
                order = orders.recv() => match order {
                    Some(Order::Reopen) => {
                        self.writer.reopen();
                        Ok(())
                    }
                    Some(Order::Finish) | None => return self.finish().await,
                },
            };
            if let Err(error) = result {
                // The client reconnects by itself, and then everything unacknowledged comes again.
                tracing::warn!(%error, "a request of the log thread failed");
            }
            let troubles = self.writer.troubles();
            if troubles != reported {
                report(troubles.clone());
                reported = troubles;
            }
        }
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
            Push::Output { header, .. } if !self.subscriptions.contains(&header.sub) => {}
            Push::End(end) if !self.subscriptions.contains(&end.sub) => {}
            Push::Output { header, bytes } => {
                self.know(header.serial).await?;
                self.taken_bytes += bytes.len();
                let records = header.records.iter().map(|record| Record {
                    end: record.end,
                    stream: kind(record.stream),
                    stamp_us: i64::try_from(record.stamp_us).unwrap_or(i64::MAX),
                });
                self.writer.output(
                    header.serial.0,
                    header.start,
                    records,
                    &bytes,
                    Instant::now(),
                );
            }
            Push::End(end) => {
                self.know(end.serial).await?;
                self.writer
                    .end(end.serial.0, kind(end.stream), Instant::now());
            }
            Push::Event(event) => match (event.kind, event.process, event.serial) {
                (EventType::Made, Some(process), _) => self.add(&process),
                (EventType::Removed, _, Some(serial)) => self.writer.forget(serial.0)?,
                _ => {}
            },
            Push::Reconnected(new) => {
                tracing::info!(
                    incarnation = new.hello.incarnation,
                    "the log thread is connected again"
                );
                self.unsettled.kernel = true;
                // Refused where our claim has not been made again yet; and one that is lost halfway is asked for by nobody else.
                self.unsettled.consumption |= !new.subscriptions_refused.is_empty();
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
        let positions = self.writer.flush(Instant::now());
        for chunk in positions.chunks(ACKS_PER_REQUEST) {
            let acks: BTreeMap<Serial, u64> = chunk
                .iter()
                .map(|(serial, position)| (Serial(*serial), *position))
                .collect();
            self.client.send(ops::OutputAck { acks }).await?;
        }
        Ok(())
    }

    /// A suspended file may work again: then what it missed is asked for once more.
    async fn retry(&mut self) -> Result<(), SessionError> {
        let now = Instant::now();
        if self.writer.retry(now) {
            self.unsettled.consumption = true;
            return self.settle().await;
        }
        match self.settle_at {
            Some(at) if at <= now => self.settle().await,
            _ => Ok(()),
        }
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

    /// Does what is still to do after a reconnection, or a failure of just this.
    async fn settle(&mut self) -> Result<(), SessionError> {
        self.settle_at = Some(Instant::now() + TRY_AGAIN);
        if self.unsettled.kernel {
            self.recognise().await?;
            self.list().await?;
            self.unsettled.kernel = false;
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
            // A new kernel counts serials from the start: what we know belongs to processes of the old one.
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

    /// Output may overtake the news of its process.
    async fn know(&mut self, serial: Serial) -> Result<(), SessionError> {
        if self.writer.knows(serial.0) {
            return Ok(());
        }
        let list = ops::ProcessList {
            names: Vec::new(),
            serials: vec![serial],
        };
        for process in self.client.call(list).await?.processes {
            self.add_fresh(&process);
        }
        Ok(())
    }

    fn add(&mut self, process: &KernelProcess) {
        if !self.writer.knows(process.serial.0) {
            self.insert(process, process.ledger.acknowledged, process.ledger.dropped);
        }
    }

    /// A process first heard of through its output: what was pushed begins at the start, or with a gap from there.
    fn add_fresh(&mut self, process: &KernelProcess) {
        self.insert(process, 0, 0);
    }

    fn insert(&mut self, process: &KernelProcess, acknowledged: u64, dropped: u64) {
        let settings = self.settings;
        let watcher = settings.watchers.iter().find(|watcher| {
            watcher
                .worker_number(&settings.namespace, &process.name)
                .is_some()
        });
        let routes = watcher.map(|watcher| Routes {
            out: route(&watcher.stdout),
            err: route(&watcher.stderr),
        });
        let process = Process {
            serial: process.serial.0,
            name: process.name.to_string(),
            pid: i32::try_from(process.pid).unwrap_or(0),
            reel_bytes: process.reel_bytes,
            acknowledged,
            dropped,
        };
        self.writer.add(&process, &routes.unwrap_or_default());
    }

    /// Asks for everything unacknowledged, and whatever comes. Takes over from a predecessor that is not quite dead.
    async fn consume(&mut self) -> Result<(), SessionError> {
        for sub in std::mem::take(&mut self.subscriptions) {
            match self.client.call(ops::OutputStop { sub }).await {
                Err(error) if error.code() == Some(ErrorCode::NotFound) => {}
                other => drop(other?),
            }
        }
        for prefix in prefixes(self.settings) {
            let consume = ops::OutputConsume {
                names: vec![NamePattern::new(&format!("{prefix}*"))],
                bytes: ops::Delivery::Inline,
                force: true,
            };
            self.subscriptions
                .push(self.client.call(consume).await?.sub);
        }
        Ok(())
    }
}

/// What the names of logged workers begin with. A name that begins with another is covered by it: a watcher `web` and one `web.api`
/// would otherwise both be asked for the latter.
fn prefixes(settings: &LogSettings) -> Vec<String> {
    let mut all: Vec<String> = settings
        .watchers
        .iter()
        .filter(|watcher| is_logged(watcher))
        .map(|watcher| format!("{}.{}.", settings.namespace, watcher.key))
        .collect();
    all.sort_unstable();
    let mut kept: Vec<String> = Vec::new();
    for prefix in all {
        if !kept.iter().any(|known| prefix.starts_with(known.as_str())) {
            kept.push(prefix);
        }
    }
    kept
}

fn route(stream: &StreamConfig) -> Option<Route> {
    match stream {
        StreamConfig::Unset | StreamConfig::Null => None,
        StreamConfig::Stdout => Some(Route {
            path: OWN_STDOUT.into(),
            limits: Limits::default(),
            time_format: None,
        }),
        StreamConfig::File(file) => Some(Route {
            path: file.filename.clone(),
            limits: Limits {
                max_bytes: file.max_bytes,
                backup_count: file.backup_count,
                watch_path: file.watch_path,
            },
            time_format: file.time_format.clone(),
        }),
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
