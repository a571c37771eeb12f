//! The async client of the JSON dialect: connects, passes descriptors, reconnects and takes up
//! again by itself.
//!
//! Owns one task per [`Client`] that alone touches the connection; handles talk to it over a
//! bounded queue and pushes come back over another. Leaves to its user what output means and what
//! to do about a kernel that is new.
//! Invariant: a request is sent at most once. One that was under way when the connection went fails
//! with [`ClientError::Lost`]; only claims and subscriptions, which say what should be rather than
//! what to do, are asked for again.
//! Source: protocol/README.md; what a caller may rely on is in protocol/client/README.md.
#![forbid(unsafe_code)]

mod address;
mod connection;
mod driver;
mod registry;
mod server_user;
mod transport;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::value::RawValue;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};

use papa_protocol::codec::DecodeError;
use papa_protocol::json::push::{End, Event, Exited, Lost, OutputHeader, Shutdown};
use papa_protocol::json::reply::{ErrorCode, Failure};
use papa_protocol::json::request::{ClaimList, Op, Operation};
use papa_protocol::json::status::HelloReply;
use papa_protocol::name::Name;

pub use address::{Address, AddressError};

/// Requests queued between handles and the connection's task; a full queue slows its callers.
const QUEUED_COMMANDS: usize = 256;

/// How a client behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Who it says it is, for the kernel's log.
    pub client: String,
    /// How long a call may take, waiting for a connection included. A connection on which the
    /// kernel leaves a request unanswered for some seconds longer is given up for a new one.
    pub call_timeout: Duration,
    /// Pushes queued for the user before the connection is read no further.
    pub push_capacity: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            client: format!("pid {}", std::process::id()),
            call_timeout: Duration::from_secs(30),
            push_capacity: 1024,
        }
    }
}

/// Why a call failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The kernel refused it.
    #[error("{0}")]
    Refused(Failure),
    /// The connection was lost while it was under way; whether it was done is unknown.
    #[error("the connection to the kernel was lost during the request")]
    Lost,
    /// No answer in time; whether it was or will be done is unknown.
    #[error("no answer from the kernel within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The client has been shut down.
    #[error("the connection to the kernel is closed")]
    Closed,
    /// No address could be connected to.
    #[error("cannot reach a kernel: {}", list(.0))]
    Connect(Vec<(Address, Self)>),
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The other side does not say what a kernel says.
    #[error("{0}")]
    Protocol(String),
    /// A reply that should carry a descriptor came without one.
    #[error("the reply came without its descriptor")]
    NoDescriptor,
    /// Descriptors pass over unix sockets only.
    #[error("descriptors cannot be passed over TCP")]
    Unsupported,
}

impl ClientError {
    /// The kernel's error code, if it was the kernel that refused.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused(failure) => Some(failure.code),
            _ => None,
        }
    }
}

impl From<DecodeError> for ClientError {
    fn from(error: DecodeError) -> Self {
        Self::Protocol(error.to_string())
    }
}

fn list(attempts: &[(Address, ClientError)]) -> String {
    let attempts: Vec<String> = attempts
        .iter()
        .map(|(address, error)| format!("{address}: {error}"))
        .collect();
    attempts.join("; ")
}

/// What comes without being asked for again.
#[derive(Clone)]
pub enum Push {
    /// Captured output; `bytes` is empty where the header is not inline.
    Output {
        /// Whose, from where to where, in which records.
        header: OutputHeader,
        /// The bytes.
        bytes: Bytes,
    },
    /// A stream ended.
    End(End),
    /// A process ended.
    Exit(Exited),
    /// Something changed. `seq` starts again with each connection.
    Event(Box<Event>),
    /// A claim was taken over; it is not asked for again.
    Lost(Lost),
    /// The kernel was asked to end.
    Shutdown(Shutdown),
    /// Something sent by [`Client::send`] was refused.
    Failed(Failure),
    /// The connection is gone; a new one is being made.
    Disconnected {
        /// Why.
        reason: String,
    },
    /// There is a new connection.
    Reconnected(Box<Reconnected>),
}

/// Output stays out of logs: only its length shows.
impl fmt::Debug for Push {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Output { header, bytes } => f
                .debug_struct("Output")
                .field("header", header)
                .field("bytes", &bytes.len())
                .finish(),
            Self::End(end) => f.debug_tuple("End").field(end).finish(),
            Self::Exit(exit) => f.debug_tuple("Exit").field(exit).finish(),
            Self::Event(event) => f.debug_tuple("Event").field(event).finish(),
            Self::Lost(lost) => f.debug_tuple("Lost").field(lost).finish(),
            Self::Shutdown(shutdown) => f.debug_tuple("Shutdown").field(shutdown).finish(),
            Self::Failed(failure) => f.debug_tuple("Failed").field(failure).finish(),
            Self::Disconnected { reason } => f
                .debug_struct("Disconnected")
                .field("reason", reason)
                .finish(),
            Self::Reconnected(new) => f.debug_tuple("Reconnected").field(new).finish(),
        }
    }
}

/// A new connection, with what was taken up again on it.
#[derive(Debug, Clone)]
pub struct Reconnected {
    /// Who is there now.
    pub hello: Arc<HelloReply>,
    /// The claims made again, with their new epochs.
    pub claims: Vec<(Name, u64)>,
    /// The claims that were refused and are given up.
    pub claims_refused: Vec<(Name, Failure)>,
    /// The subscriptions that were refused and are given up, by the numbers users know.
    pub subscriptions_refused: Vec<(u64, Failure)>,
}

/// A handle to the connection; cheap to clone. The connection closes when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    hello: watch::Receiver<Arc<HelloReply>>,
    call_timeout: Duration,
}

/// Where pushes arrive.
#[derive(Debug)]
pub struct Pushes(mpsc::Receiver<Push>);

impl Pushes {
    /// The next push; `None` once every [`Client`] is gone.
    ///
    /// # Cancel safety
    /// Cancel safe: a push is taken only when it is returned.
    pub async fn recv(&mut self) -> Option<Push> {
        self.0.recv().await
    }

    /// The next push, if one is there already.
    pub fn try_recv(&mut self) -> Option<Push> {
        self.0.try_recv().ok()
    }
}

/// A request on its way to the connection's task.
#[derive(Debug)]
struct Command {
    op: Op,
    descriptor: Option<OwnedFd>,
    /// Where the answer goes; without it the request carries no id.
    reply: Option<oneshot::Sender<Result<Answer, ClientError>>>,
}

/// A success.
#[derive(Debug)]
struct Answer {
    ok: Box<RawValue>,
    descriptor: Option<OwnedFd>,
}

impl Client {
    /// Connects to the first of `addresses` where a kernel answers, and keeps connected.
    ///
    /// Must be called on a tokio runtime with I/O and time enabled; one task is spawned.
    ///
    /// # Errors
    /// No address answers; the error holds what became of each.
    pub async fn connect(
        addresses: Vec<Address>,
        options: Options,
    ) -> Result<(Self, Pushes), ClientError> {
        let (connection, hello) = driver::open_any(&addresses, &options.client).await?;
        let (commands, command_receiver) = mpsc::channel(QUEUED_COMMANDS);
        let (push_sender, pushes) = mpsc::channel(options.push_capacity.max(1));
        let (hello_sender, hello_receiver) = watch::channel(Arc::new(hello));
        let driver = driver::Driver::new(
            addresses,
            &options,
            command_receiver,
            push_sender,
            hello_sender,
        );
        tokio::spawn(driver.run(connection));
        let client = Self {
            commands,
            hello: hello_receiver,
            call_timeout: options.call_timeout,
        };
        Ok((client, Pushes(pushes)))
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// The kernel refuses, the connection goes, or time runs out.
    ///
    /// # Cancel safety
    /// Dropping the call does not take the request back.
    pub async fn call<O: Operation>(&self, op: O) -> Result<O::Reply, ClientError> {
        let answer = self.exchange(op.into(), None).await?;
        decode(&answer)
    }

    /// As [`Self::call`], sending a descriptor along.
    ///
    /// # Errors
    /// As [`Self::call`]; over TCP always.
    pub async fn call_with_descriptor<O: Operation>(
        &self,
        op: O,
        descriptor: OwnedFd,
    ) -> Result<O::Reply, ClientError> {
        let answer = self.exchange(op.into(), Some(descriptor)).await?;
        decode(&answer)
    }

    /// As [`Self::call`], for requests that are answered with a descriptor.
    ///
    /// # Errors
    /// As [`Self::call`]; over TCP always.
    pub async fn call_for_descriptor<O: Operation>(
        &self,
        op: O,
    ) -> Result<(O::Reply, OwnedFd), ClientError> {
        let answer = self.exchange(op.into(), None).await?;
        let reply = decode::<O::Reply>(&answer)?;
        Ok((reply, answer.descriptor.ok_or(ClientError::NoDescriptor)?))
    }

    /// Asks without waiting: a success says nothing, a failure comes as [`Push::Failed`]. What is
    /// sent while there is no connection goes out on the next one; what was under way when it went
    /// is lost.
    ///
    /// # Errors
    /// The queue stays full for the time a call may take.
    pub async fn send<O: Operation>(&self, op: O) -> Result<(), ClientError> {
        let command = Command {
            op: op.into(),
            descriptor: None,
            reply: None,
        };
        match tokio::time::timeout(self.call_timeout, self.commands.send(command)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(ClientError::Closed),
            Err(_) => Err(ClientError::Timeout(self.call_timeout)),
        }
    }

    /// Waits until everything sent before has been acted on.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn barrier(&self) -> Result<(), ClientError> {
        // Any question will do; this one has the shortest answer.
        self.call(ClaimList {}).await.map(drop)
    }

    /// Who answered when the present connection was made, or the last one if there is none.
    #[must_use]
    pub fn hello(&self) -> Arc<HelloReply> {
        self.hello.borrow().clone()
    }

    async fn exchange(&self, op: Op, descriptor: Option<OwnedFd>) -> Result<Answer, ClientError> {
        let (reply, answer) = oneshot::channel();
        let command = Command {
            op,
            descriptor,
            reply: Some(reply),
        };
        let exchange = async {
            self.commands
                .send(command)
                .await
                .map_err(|_| ClientError::Closed)?;
            answer.await.map_err(|_| ClientError::Closed)?
        };
        tokio::time::timeout(self.call_timeout, exchange)
            .await
            .unwrap_or(Err(ClientError::Timeout(self.call_timeout)))
    }
}

fn decode<T: serde::de::DeserializeOwned>(answer: &Answer) -> Result<T, ClientError> {
    serde_json::from_str(answer.ok.get())
        .map_err(|error| ClientError::Protocol(format!("the reply is not understood: {error}")))
}
