//! The task that owns the connection: requests out, replies and pushes in, reconnection.
//!
//! Owns what is under way and what is parked. Pushes the user has not taken yet stay in a queue of
//! bounded size; beyond it the connection is read only while somebody waits for a reply, and only
//! up to [`PARKED_BYTES`].

use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep};

use papa_protocol::codec::Item;
use papa_protocol::json::push::Push as WirePush;
use papa_protocol::json::reply::{ErrorCode, Failure, Subscribed};
use papa_protocol::json::request::{Id, Op, OutputStop};
use papa_protocol::json::status::HelloReply;

use crate::address::Address;
use crate::connection::Connection;
use crate::registry::{Change, Registry, Resumed};
use crate::{Answer, ClientError, Command, Options, Push, Reconnected};

/// Output held for a user who waits for a reply instead of taking pushes.
const PARKED_BYTES: usize = 64 << 20;

/// Requests waiting for their replies; beyond it handles wait.
const PENDING_CALLS: usize = 1024;

/// Bytes of requests not written yet beyond which handles wait.
const OUTGOING_BYTES: usize = 1 << 20;

/// Waits between attempts to connect: the first after a crash is as short as a recovery, the
/// longest is what a person does not mind.
const FIRST_BACKOFF: Duration = Duration::from_millis(10);
const LONGEST_BACKOFF: Duration = Duration::from_secs(2);

/// How long the kernel gets, beyond the time a call may take, before a connection on which it does
/// not answer is given up: this process may have stood still, and the answer wait in the socket.
const LATE_ANSWER: Duration = Duration::from_secs(2);

/// What an entry of a queue costs besides its output, for the count of what is parked.
const PUSH_OVERHEAD_BYTES: usize = 256;

/// Connects to the first address that answers.
pub(super) async fn open_any(
    addresses: &[Address],
    client: &str,
) -> Result<(Connection, HelloReply), ClientError> {
    let mut attempts = Vec::new();
    for address in addresses {
        match Connection::open(address, client).await {
            Ok((connection, mut hello)) => {
                if hello.place.is_empty() {
                    hello.place = address.place();
                }
                return Ok((connection, hello));
            }
            Err(error) => attempts.push((address.clone(), error)),
        }
    }
    Err(ClientError::Connect(attempts))
}

pub(super) struct Driver {
    addresses: Vec<Address>,
    client: String,
    commands: mpsc::Receiver<Command>,
    pushes: mpsc::Sender<Push>,
    hello: watch::Sender<Arc<HelloReply>>,
    registry: Registry,
    /// By number, the oldest first.
    pending: BTreeMap<u64, Pending>,
    last_id: u64,
    /// How long an answer may take.
    answer_timeout: Duration,
    /// When the last one came.
    answered: Instant,
    parked: VecDeque<Push>,
    parked_bytes: usize,
    resuming: Option<Resuming>,
}

/// A request waiting for its reply.
struct Pending {
    waiter: Waiter,
    gives_descriptor: bool,
    asked: Instant,
}

enum Waiter {
    Call(oneshot::Sender<Result<Answer, ClientError>>, Change),
    Resume(Resumed),
}

/// What is known so far of a new connection whose claims and subscriptions are being asked for.
struct Resuming {
    outstanding: usize,
    news: Reconnected,
    /// Pushes of the new connection, to be told after the news of it.
    early: VecDeque<Push>,
}

/// How serving a connection ended.
enum Ended {
    /// Every handle is gone.
    Closed,
    /// The connection is gone.
    Lost(ClientError),
}

impl Driver {
    pub(super) fn new(
        addresses: Vec<Address>,
        options: &Options,
        commands: mpsc::Receiver<Command>,
        pushes: mpsc::Sender<Push>,
        hello: watch::Sender<Arc<HelloReply>>,
    ) -> Self {
        Self {
            addresses,
            client: options.client.clone(),
            answer_timeout: options.call_timeout,
            answered: Instant::now(),
            commands,
            pushes,
            hello,
            registry: Registry::default(),
            pending: BTreeMap::new(),
            last_id: 0,
            parked: VecDeque::new(),
            parked_bytes: 0,
            resuming: None,
        }
    }

    pub(super) async fn run(mut self, mut connection: Connection) {
        loop {
            let error = match self.serve(&mut connection).await {
                Ended::Closed => return,
                Ended::Lost(error) => error,
            };
            drop(connection);
            self.connection_lost(&error);
            match self.reconnect().await {
                Some(new) => connection = new,
                None => return,
            }
        }
    }

    async fn serve(&mut self, connection: &mut Connection) -> Ended {
        // A permit borrows its sender; with one of its own the loop stays free to change everything
        // else.
        let pushes = self.pushes.clone();
        let mut open = true;
        // Rings when an answer may be late; set anew only then, as that costs less than for each
        // request.
        let mut answers = pin!(sleep(self.answer_timeout));
        // The request whose answer was found to be late when it last rang.
        let mut late = None;
        loop {
            self.deliver();
            if let Err(error) = connection.flush() {
                return Ended::Lost(error.into());
            }
            if !open && self.pending.is_empty() && connection.outgoing_bytes() == 0 {
                return Ended::Closed;
            }
            let reads = self.parked.is_empty()
                || (!self.pending.is_empty() && self.parked_bytes < PARKED_BYTES);
            let writes = connection.outgoing_bytes() > 0;
            let takes = open
                && self.resuming.is_none()
                && self.pending.len() < PENDING_CALLS
                && connection.outgoing_bytes() < OUTGOING_BYTES;
            tokio::select! {
                command = self.commands.recv(), if takes => match command {
                    Some(command) => self.ask(connection, command),
                    // What was asked is still sent and answered; nobody takes pushes any more.
                    None => open = false,
                },
                permit = pushes.reserve(), if !self.parked.is_empty() => match permit {
                    Ok(permit) => {
                        if let Some(push) = self.parked.pop_front() {
                            self.parked_bytes -= cost(&push);
                            permit.send(push);
                        }
                    }
                    Err(_) => self.deliver(),
                },
                ready = connection.ready(reads), if reads || writes => match ready {
                    Ok(ready) if reads && (ready.is_readable() || ready.is_read_closed()) => {
                        if let Err(error) = self.read(connection) {
                            return Ended::Lost(error);
                        }
                    }
                    // Writing is at the head of the loop.
                    Ok(_) => {}
                    Err(error) => return Ended::Lost(error.into()),
                },
                () = &mut answers, if !self.pending.is_empty() => {
                    let now = Instant::now();
                    if reads && late.is_some() && self.overdue(now) == late {
                        // The answer may have come while this process stood still.
                        if let Err(error) = self.read(connection) {
                            return Ended::Lost(error);
                        }
                        if self.overdue(now) == late {
                            return Ended::Lost(self.unanswered());
                        }
                    }
                    // While nothing is read, the delay is not the kernel's.
                    late = self.overdue(now).filter(|_| reads);
                    let due = self.answer_due().unwrap_or(now + self.answer_timeout);
                    answers.as_mut().reset(due.max(now + LATE_ANSWER));
                }
            }
        }
    }

    /// When the next answer is late. The kernel answers one request of a connection after the
    /// other: as long as answers come, those behind them only wait their turn.
    fn answer_due(&self) -> Option<Instant> {
        let (_, oldest) = self.pending.first_key_value()?;
        Some(oldest.asked.max(self.answered) + self.answer_timeout)
    }

    /// The oldest request, if its answer is late.
    fn overdue(&self, now: Instant) -> Option<u64> {
        let due = self.answer_due().filter(|due| *due <= now);
        due.and(self.pending.first_key_value().map(|(id, _)| *id))
    }

    /// Why a connection is given up on which no answer comes any more.
    fn unanswered(&self) -> ClientError {
        let limit = (self.answer_timeout + LATE_ANSWER).as_secs();
        let text = format!("the kernel has not answered a request within {limit} s");
        std::io::Error::new(std::io::ErrorKind::TimedOut, text).into()
    }

    /// Sends a request, or answers at once what cannot be sent.
    fn ask(&mut self, connection: &mut Connection, command: Command) {
        let Command {
            mut op,
            descriptor,
            reply,
        } = command;
        let change = Change::of(&op);
        let passes = descriptor.is_some() || op.gives_descriptor();
        let refusal = if passes && !connection.passes_descriptors() {
            Some(ClientError::Unsupported)
        } else if op.takes_descriptor() && descriptor.is_none() {
            Some(ClientError::NoDescriptor)
        } else if let Op::OutputStop(OutputStop { sub }) = &mut op {
            match self.registry.remote(*sub) {
                Some(remote) => {
                    *sub = remote;
                    None
                }
                None => {
                    let message = format!("subscription {sub} not found");
                    Some(ClientError::Refused(Failure::new(
                        ErrorCode::NotFound,
                        &message,
                    )))
                }
            }
        } else {
            None
        };
        let Some(reply) = reply else {
            match refusal {
                None => connection.push(None, &op, descriptor),
                Some(error) => self.park(Push::Failed(Failure::new(
                    ErrorCode::Invalid,
                    &error.to_string(),
                ))),
            }
            return;
        };
        match refusal {
            // A caller who no longer waits does not need to know.
            Some(error) => drop(reply.send(Err(error))),
            None => self.enqueue(connection, &op, descriptor, Waiter::Call(reply, change)),
        }
    }

    fn enqueue(
        &mut self,
        connection: &mut Connection,
        op: &Op,
        descriptor: Option<std::os::fd::OwnedFd>,
        waiter: Waiter,
    ) {
        self.last_id += 1;
        connection.push(Some(&Id::Number(self.last_id)), op, descriptor);
        let pending = Pending {
            waiter,
            gives_descriptor: op.gives_descriptor(),
            asked: Instant::now(),
        };
        self.pending.insert(self.last_id, pending);
    }

    fn read(&mut self, connection: &mut Connection) -> Result<(), ClientError> {
        let descriptors = self
            .pending
            .values()
            .any(|pending| pending.gives_descriptor);
        let more = connection.read(descriptors)?;
        while let Some(item) = connection.decode()? {
            match item {
                Item::Output(mut header, bytes) => {
                    // Output of a subscription stopped meanwhile is nobody's.
                    if let Some(local) = self.registry.local(header.sub) {
                        header.sub = local;
                        self.park(Push::Output { header, bytes });
                    }
                }
                Item::Push(push) => self.pushed(push),
                Item::Reply {
                    id: Some(Id::Number(id)),
                    result,
                } => self.answered(connection, id, result),
                Item::Reply {
                    id: None,
                    result: Err(failure),
                } => self.park(Push::Failed(failure)),
                // Nothing of ours: ids are numbers, and a success without one is not asked for.
                Item::Reply { .. } => {}
            }
        }
        if more {
            Ok(())
        } else {
            Err(std::io::Error::new(
                std::io::ErrorKind::UnexpectedEof,
                "the kernel closed the connection",
            )
            .into())
        }
    }

    fn pushed(&mut self, push: WirePush) {
        let registry = &self.registry;
        let push = match push {
            WirePush::End(mut end) => registry.local(end.sub).map(|local| {
                end.sub = local;
                Push::End(end)
            }),
            WirePush::Exit(mut exit) => registry.local(exit.sub).map(|local| {
                exit.sub = local;
                Push::Exit(exit)
            }),
            WirePush::Event(mut event) => registry.local(event.sub).map(|local| {
                event.sub = local;
                Push::Event(event)
            }),
            WirePush::Lost(lost) => {
                self.registry
                    .forget(&Resumed::Claim(lost.namespace.clone()));
                Some(Push::Lost(lost))
            }
            WirePush::Shutdown(shutdown) => Some(Push::Shutdown(shutdown)),
        };
        if let Some(push) = push {
            self.park(push);
        }
    }

    fn answered(
        &mut self,
        connection: &mut Connection,
        id: u64,
        result: Result<Box<serde_json::value::RawValue>, Failure>,
    ) {
        let Some(Pending {
            waiter,
            gives_descriptor,
            ..
        }) = self.pending.remove(&id)
        else {
            return;
        };
        self.answered = Instant::now();
        let descriptor = if gives_descriptor && result.is_ok() {
            connection.take_descriptor()
        } else {
            None
        };
        match waiter {
            Waiter::Resume(what) => self.resumed(&what, result),
            Waiter::Call(reply, change) => {
                let result = match result {
                    Ok(ok) => self
                        .succeeded(ok, change)
                        .map(|ok| Answer { ok, descriptor }),
                    Err(failure) => Err(ClientError::Refused(failure)),
                };
                // A caller who no longer waits does not need to know.
                drop(reply.send(result));
            }
        }
    }

    /// Records a success, and gives the user's number in place of the connection's.
    fn succeeded(
        &mut self,
        ok: Box<serde_json::value::RawValue>,
        change: Change,
    ) -> Result<Box<serde_json::value::RawValue>, ClientError> {
        let remote = match &change {
            Change::Subscribe(_) => Some(subscribed(&ok)?),
            _ => None,
        };
        match self.registry.apply(change, remote) {
            Some(sub) => serde_json::value::to_raw_value(&Subscribed { sub })
                .map_err(|error| ClientError::Protocol(error.to_string())),
            None => Ok(ok),
        }
    }

    /// Fails what was under way; whether it was done is unknown.
    fn connection_lost(&mut self, error: &ClientError) {
        for pending in std::mem::take(&mut self.pending).into_values() {
            if let Waiter::Call(reply, _) = pending.waiter {
                // A caller who no longer waits does not need to know.
                drop(reply.send(Err(ClientError::Lost)));
            }
        }
        // A connection that went while it was being taken up was never announced, and is not taken
        // back.
        match self.resuming.take() {
            Some(resuming) => resuming
                .early
                .iter()
                .for_each(|push| self.parked_bytes -= cost(push)),
            None => self.park(Push::Disconnected {
                reason: error.to_string(),
            }),
        }
    }

    /// Tries until there is a connection; `None` once every handle is gone.
    async fn reconnect(&mut self) -> Option<Connection> {
        let mut backoff = FIRST_BACKOFF;
        loop {
            self.deliver();
            if self.commands.is_closed() && self.commands.is_empty() {
                return None;
            }
            if let Ok((mut connection, hello)) = open_any(&self.addresses, &self.client).await {
                self.resume(&mut connection, hello);
                return Some(connection);
            }
            sleep(backoff).await;
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    /// Asks for the claims and subscriptions there were.
    fn resume(&mut self, connection: &mut Connection, hello: HelloReply) {
        let hello = Arc::new(hello);
        self.hello.send_replace(hello.clone());
        let wanted = self.registry.resume();
        self.resuming = Some(Resuming {
            outstanding: wanted.len(),
            news: Reconnected {
                hello,
                claims: Vec::new(),
                claims_refused: Vec::new(),
                subscriptions_refused: Vec::new(),
            },
            early: VecDeque::new(),
        });
        for (what, op) in wanted {
            self.enqueue(connection, &op, None, Waiter::Resume(what));
        }
        self.announce();
    }

    fn resumed(
        &mut self,
        what: &Resumed,
        result: Result<Box<serde_json::value::RawValue>, Failure>,
    ) {
        let Some(resuming) = &mut self.resuming else {
            return;
        };
        resuming.outstanding = resuming.outstanding.saturating_sub(1);
        let news = &mut resuming.news;
        let not_understood =
            |error: &dyn std::fmt::Display| Failure::new(ErrorCode::Unknown, &error.to_string());
        match what {
            Resumed::Claim(namespace) => {
                let epoch = result.and_then(|ok| {
                    serde_json::from_str::<papa_protocol::json::reply::Claimed>(ok.get())
                        .map_err(|error| not_understood(&error))
                });
                match epoch {
                    Ok(claimed) => news.claims.push((namespace.clone(), claimed.epoch)),
                    Err(failure) => {
                        news.claims_refused.push((namespace.clone(), failure));
                        self.registry.forget(what);
                    }
                }
            }
            Resumed::Subscription(local) => {
                match result.and_then(|ok| subscribed(&ok).map_err(|error| not_understood(&error)))
                {
                    Ok(remote) => self.registry.resumed(*local, remote),
                    Err(failure) => {
                        news.subscriptions_refused.push((*local, failure));
                        self.registry.forget(what);
                    }
                }
            }
        }
        self.announce();
    }

    /// Tells of the new connection once everything asked for on it is answered.
    fn announce(&mut self) {
        if let Some(resuming) = self.resuming.take_if(|resuming| resuming.outstanding == 0) {
            self.park(Push::Reconnected(Box::new(resuming.news)));
            // Counted when they came.
            self.parked.extend(resuming.early);
        }
    }

    fn park(&mut self, push: Push) {
        self.parked_bytes += cost(&push);
        match &mut self.resuming {
            Some(resuming) => resuming.early.push_back(push),
            None => self.parked.push_back(push),
        }
    }

    /// Hands over what the user's queue has room for; drops everything if there is no user of
    /// pushes.
    fn deliver(&mut self) {
        if let Some(resuming) = &mut self.resuming
            && self.parked_bytes >= PARKED_BYTES
        {
            // More than may be kept arrived before everything asked for was answered: better told
            // out of order.
            self.parked.append(&mut resuming.early);
        }
        while let Some(push) = self.parked.pop_front() {
            let bytes = cost(&push);
            match self.pushes.try_send(push) {
                Ok(()) => self.parked_bytes -= bytes,
                Err(mpsc::error::TrySendError::Full(push)) => {
                    self.parked.push_front(push);
                    return;
                }
                Err(mpsc::error::TrySendError::Closed(_)) => self.parked_bytes -= bytes,
            }
        }
    }
}

fn subscribed(ok: &serde_json::value::RawValue) -> Result<u64, ClientError> {
    serde_json::from_str::<Subscribed>(ok.get())
        .map(|subscribed| subscribed.sub)
        .map_err(|error| ClientError::Protocol(format!("the reply is not understood: {error}")))
}

fn cost(push: &Push) -> usize {
    let bytes = match push {
        Push::Output { header, bytes } => {
            Bytes::len(bytes)
                + header.records.len() * std::mem::size_of::<papa_protocol::record::Record>()
        }
        _ => 0,
    };
    bytes + PUSH_OVERHEAD_BYTES
}
