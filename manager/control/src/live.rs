//! Output that is in no file: what the kernel keeps of it, then what comes.
//!
//! Owns a thread with the connection to the kernel and the cutting of output into lines. It only
//! looks: a follower acknowledges nothing, so that nobody's log changes. Leaves to others: which
//! lines are shown, and how.
//! Invariant: each byte is looked at once, also across a kernel that starts anew: what comes again
//! is recognised by its position.
//! Source: protocol/README.md, "Output".

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::{Duration, Instant};

use papa_client::{Address, Client, ClientError, Options, Push, Pushes};
use papa_config::worker_of;
use papa_protocol::json::push::{EventType, OutputHeader};
use papa_protocol::json::request::ops::{self, FollowFrom};
use papa_protocol::json::status::HelloReply;
use papa_protocol::name::NamePattern;
use papa_protocol::process::Process;
use papa_protocol::record::{Serial, Stream};
use tokio::time::timeout;

use crate::kernel_search::block_on;
use crate::sources::LiveSource;

/// Longest line held back until its end comes, in bytes.
pub const MAX_LINE_BYTES: usize = 1024 * 1024;
/// Batches waiting to be shown; a full queue leaves output in the kernel.
pub const QUEUED_NEWS: usize = 4;
/// Pushes taken from the connection ahead of what was shown; the others stay in the kernel.
const QUEUED_PUSHES: usize = 4;
/// Longest wait for what the kernel keeps, and for its answers.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long without output until the kernel is asked whether there is more of what it kept.
const QUIET: Duration = Duration::from_millis(50);

/// What the thread has to say.
#[derive(Debug)]
pub enum News {
    /// Lines, in the order of each worker's stream.
    Lines(Vec<Line>),
    /// Everything that the kernel had kept has come.
    Caught,
    /// Bytes that nobody will see: so many, of whom.
    Gap(u64, String),
    /// This process has ended, and what it wrote has come; what it left behind may write more.
    Ended(u64),
    /// The kernel cannot be asked; nothing more comes.
    Failed(String),
}

/// One line.
#[derive(Debug)]
pub struct Line {
    /// Lower-case name of the watcher.
    pub watcher: String,
    pub wid: u32,
    pub pid: u32,
    pub stream: Stream,
    /// When the kernel read its beginning, in microseconds since the epoch.
    pub stamp_us: i64,
    /// Without its newline.
    pub text: Vec<u8>,
    /// Whether the kernel had it when following began.
    pub kept: bool,
}

impl Line {
    /// As files name the streams.
    pub fn stream_name(&self) -> &'static str {
        match self.stream {
            Stream::Out => "stdout",
            Stream::Err => "stderr",
        }
    }
}

/// Whose output.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub addresses: Vec<Address>,
    pub namespace: String,
    pub watchers: BTreeMap<String, LiveSource>,
    /// Go on after what was kept.
    pub follow: bool,
}

/// Starts looking, on a thread of its own.
pub fn start(wanted: Wanted, news: SyncSender<News>) {
    let sender = news.clone();
    let spawned = thread::Builder::new()
        .name("live".to_owned())
        .spawn(move || {
            let failed = match block_on(run(wanted, &news)) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            // Whoever does not listen any more does not want to know.
            let _ = news.send(News::Failed(failed));
        });
    if let Err(error) = spawned {
        // A full queue is read by nobody yet, and must not be waited for.
        let _ = sender.try_send(News::Failed(error.to_string()));
    }
}

/// Ends when nobody listens, or when everything kept has come and no more is wanted.
async fn run(wanted: Wanted, news: &SyncSender<News>) -> Result<(), ClientError> {
    let options = Options {
        client: format!("papactl logs {}", std::process::id()),
        call_timeout: PATIENCE,
        push_capacity: QUEUED_PUSHES,
    };
    let connected = async {
        let (client, pushes) = Client::connect(wanted.addresses.clone(), options.clone()).await?;
        // Questions have a connection of their own: their answers must not wait behind output that
        // nobody has taken.
        let (asking, _) = Client::connect(wanted.addresses.clone(), options).await?;
        Ok::<_, ClientError>((client, pushes, asking))
    };
    let (client, mut pushes, asking) = timeout(PATIENCE, connected)
        .await
        .map_err(|_| ClientError::Timeout(PATIENCE))??;
    let mut live = Live {
        kernel: client.hello(),
        wanted,
        asking,
        workers: HashMap::new(),
        missing: BTreeSet::new(),
    };
    let names = live.names();
    client
        .call(ops::Subscribe {
            names: names.clone(),
        })
        .await?;
    for process in live.list(names.clone()).await? {
        live.begin(&process);
    }
    client
        .call(ops::OutputFollow {
            names,
            from: FollowFrom::Start,
        })
        .await?;
    live.catch_up(&mut pushes, news).await?;
    if live.wanted.follow {
        while let Some(push) = pushes.recv().await {
            if !live.push(push, news).await? {
                break;
            }
        }
    }
    Ok(())
}

#[derive(Debug)]
struct Live {
    wanted: Wanted,
    asking: Client,
    /// The kernel whose serials `workers` has.
    kernel: std::sync::Arc<HelloReply>,
    workers: HashMap<u64, Worker>,
    /// Those of whose kept output some has not come yet.
    missing: BTreeSet<u64>,
}

impl Live {
    fn names(&self) -> Vec<NamePattern> {
        let prefix = |key| NamePattern::Prefix(format!("{}.{key}.", self.wanted.namespace));
        self.wanted.watchers.keys().map(prefix).collect()
    }

    async fn list(&self, names: Vec<NamePattern>) -> Result<Vec<Process>, ClientError> {
        let list = ops::ProcessList {
            names,
            ..ops::ProcessList::default()
        };
        Ok(self.asking.call(list).await?.processes)
    }

    /// A process as it was listed before following began.
    fn begin(&mut self, process: &Process) {
        let Some(mut worker) = self.worker(process) else {
            return;
        };
        let kept_from = gone(process);
        worker.next = Some(kept_from);
        worker.kept_until = process.ledger.captured;
        if kept_from < worker.kept_until {
            self.missing.insert(process.serial.0);
        }
        self.workers.insert(process.serial.0, worker);
    }

    fn worker(&self, process: &Process) -> Option<Worker> {
        let (watcher, wid) = worker_of(&self.wanted.namespace, process.name.as_str())?;
        let source = self.wanted.watchers.get(watcher)?;
        if !source.wids.is_empty() && !source.wids.contains(&wid) {
            return None;
        }
        Some(Worker {
            watcher: watcher.to_owned(),
            wid,
            pid: process.pid,
            name: process.name.to_string(),
            shown: [source.stdout, source.stderr],
            consumed: process.consumer || !(source.stdout && source.stderr),
            next: None,
            kept_until: 0,
            partial: [None, None],
            ends_at: None,
        })
    }

    /// Takes what was kept.
    async fn catch_up(
        &mut self,
        pushes: &mut Pushes,
        news: &SyncSender<News>,
    ) -> Result<(), ClientError> {
        let deadline = Instant::now() + PATIENCE;
        while !self.missing.is_empty() && Instant::now() < deadline {
            match timeout(QUIET, pushes.recv()).await {
                Ok(Some(push)) => {
                    if !self.push(push, news).await? {
                        return Ok(());
                    }
                }
                Ok(None) => break,
                // What was acknowledged or removed meanwhile does not come.
                Err(_) => {
                    let there: HashMap<u64, u64> = self
                        .list(self.names())
                        .await?
                        .iter()
                        .map(|process| (process.serial.0, gone(process)))
                        .collect();
                    let workers = &self.workers;
                    self.missing.retain(|serial| {
                        workers.get(serial).is_some_and(|worker| {
                            there
                                .get(serial)
                                .is_some_and(|gone| *gone < worker.kept_until)
                        })
                    });
                }
            }
        }
        if !self.wanted.follow {
            let mut lines = Vec::new();
            for worker in self.workers.values_mut() {
                for stream in Stream::ALL {
                    worker.flush(stream, &mut lines);
                }
            }
            if !lines.is_empty() && news.send(News::Lines(lines)).is_err() {
                return Ok(());
            }
        }
        // Whoever does not listen any more does not want to know.
        let _ = news.send(News::Caught);
        Ok(())
    }

    /// Takes one push. False once nobody listens.
    async fn push(&mut self, push: Push, news: &SyncSender<News>) -> Result<bool, ClientError> {
        let mut lines = Vec::new();
        let mut ended = None;
        match push {
            Push::Event(event) => {
                if let (EventType::Made, Some(process)) = (event.kind, &event.process) {
                    let worker = self.worker(process);
                    let known = self.workers.contains_key(&process.serial.0);
                    if let (Some(mut worker), false) = (worker, known) {
                        worker.next = Some(0);
                        self.workers.insert(process.serial.0, worker);
                    }
                }
                if let (EventType::Removed, Some(serial)) = (event.kind, event.serial) {
                    self.missing.remove(&serial.0);
                    if let Some(mut worker) = self.workers.remove(&serial.0) {
                        for stream in Stream::ALL {
                            worker.flush(stream, &mut lines);
                        }
                    }
                }
            }
            Push::Output { header, bytes } => {
                self.learn(header.serial).await?;
                let Some(worker) = self.workers.get_mut(&header.serial.0) else {
                    return Ok(true);
                };
                let lost = worker.output(&header, &bytes, &mut lines);
                ended = worker.has_ended().then_some(header.serial.0);
                if header.end() >= worker.kept_until {
                    self.missing.remove(&header.serial.0);
                }
                if lost > 0
                    && !worker.consumed
                    && news.send(News::Gap(lost, worker.name.clone())).is_err()
                {
                    return Ok(false);
                }
            }
            Push::End(end) => {
                if let Some(worker) = self.workers.get_mut(&end.serial.0) {
                    worker.flush(end.stream, &mut lines);
                }
            }
            Push::Reconnected(new) => {
                if !new.hello.continues(&self.kernel) {
                    // Another kernel altogether: its numbers mean other processes.
                    self.workers.clear();
                    self.missing.clear();
                }
                self.kernel = new.hello;
            }
            Push::Exit(exited) => {
                let end = self.captured(exited.serial).await?;
                if let (Some(worker), Some(end)) = (self.workers.get_mut(&exited.serial.0), end) {
                    worker.ends_at = Some(end);
                    ended = worker.has_ended().then_some(exited.serial.0);
                }
            }
            Push::Lost(_) | Push::Shutdown(_) | Push::Failed(_) | Push::Disconnected { .. } => {}
        }
        if !lines.is_empty() && news.send(News::Lines(lines)).is_err() {
            return Ok(false);
        }
        Ok(ended.is_none_or(|serial| news.send(News::Ended(serial)).is_ok()))
    }

    /// How much of a process's output the kernel has read; none when it knows the process no more.
    async fn captured(&self, serial: Serial) -> Result<Option<u64>, ClientError> {
        let list = ops::ProcessList {
            serials: vec![serial],
            ..ops::ProcessList::default()
        };
        match self.asking.call(list).await {
            Ok(found) => Ok(found
                .processes
                .first()
                .map(|process| process.ledger.captured)),
            Err(ClientError::Refused(_) | ClientError::Lost) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks who a process is that was made while there was no connection.
    async fn learn(&mut self, serial: Serial) -> Result<(), ClientError> {
        if self.workers.contains_key(&serial.0) {
            return Ok(());
        }
        let list = ops::ProcessList {
            serials: vec![serial],
            ..ops::ProcessList::default()
        };
        let found = match self.asking.call(list).await {
            Ok(found) => found.processes,
            // It has gone again, or the kernel has; then it comes again.
            Err(ClientError::Refused(_) | ClientError::Lost) => Vec::new(),
            Err(error) => return Err(error),
        };
        for process in found {
            if let Some(worker) = self.worker(&process) {
                self.workers.insert(process.serial.0, worker);
            }
        }
        Ok(())
    }
}

/// The first position that the kernel still has.
fn gone(process: &Process) -> u64 {
    let ledger = &process.ledger;
    ledger.acknowledged.saturating_add(ledger.dropped)
}

/// One process and how far it was looked at.
#[derive(Debug)]
struct Worker {
    watcher: String,
    wid: u32,
    pid: u32,
    /// In the kernel.
    name: String,
    /// Which of the two streams are in no file.
    shown: [bool; 2],
    /// Somebody else takes the output: what is gone was not lost, but went where it belongs.
    consumed: bool,
    /// The next position; none: wherever it begins.
    next: Option<u64>,
    kept_until: u64,
    /// Per stream, a line whose end has not come, and when it began.
    partial: [Option<(i64, Vec<u8>)>; 2],
    /// How much there was when it was told that it ended; none: that was not told, or all of it has
    /// come.
    ends_at: Option<u64>,
}

impl Worker {
    /// Cuts what is new of `bytes` into lines; says how many bytes before it are lost.
    fn output(&mut self, header: &OutputHeader, bytes: &[u8], lines: &mut Vec<Line>) -> u64 {
        let next = self.next.unwrap_or(header.start);
        let lost = header.start.saturating_sub(next);
        let mut at = header.start;
        for record in &header.records {
            let from = at.max(next);
            at = record.end.max(at);
            let place = |position: u64| usize::try_from(position.saturating_sub(header.start)).ok();
            let new = place(from).zip(place(at));
            let new = new
                .and_then(|(from, to)| bytes.get(from..to))
                .unwrap_or_default();
            self.chunk(
                record.stream,
                i64::try_from(record.stamp_us).unwrap_or(i64::MAX),
                at <= self.kept_until,
                new,
                lines,
            );
        }
        self.next = Some(header.end().max(next));
        lost
    }

    fn chunk(
        &mut self,
        stream: Stream,
        stamp_us: i64,
        kept: bool,
        bytes: &[u8],
        lines: &mut Vec<Line>,
    ) {
        let index = usize::from(stream == Stream::Err);
        if !self.shown.get(index).is_some_and(|shown| *shown) {
            return;
        }
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (_, text) = self.partial[index].get_or_insert_with(|| (stamp_us, Vec::new()));
            text.extend_from_slice(piece);
            if piece.ends_with(b"\n") || text.len() > MAX_LINE_BYTES {
                self.cut(stream, kept, lines);
            }
        }
    }

    /// Whether it has ended and everything up to then has come; said once.
    fn has_ended(&mut self) -> bool {
        let ended = self.ends_at.is_some_and(|end| self.next >= Some(end));
        if ended {
            self.ends_at = None;
        }
        ended
    }

    /// Gives out a line without its end: there will be none.
    fn flush(&mut self, stream: Stream, lines: &mut Vec<Line>) {
        let kept = self.next.is_some_and(|next| next <= self.kept_until);
        self.cut(stream, kept, lines);
    }

    fn cut(&mut self, stream: Stream, kept: bool, lines: &mut Vec<Line>) {
        let index = usize::from(stream == Stream::Err);
        let Some((stamp_us, mut text)) = self.partial[index].take() else {
            return;
        };
        if text.ends_with(b"\n") {
            text.pop();
        }
        lines.push(Line {
            watcher: self.watcher.clone(),
            wid: self.wid,
            pid: self.pid,
            stream,
            stamp_us,
            text,
            kept,
        });
    }
}
