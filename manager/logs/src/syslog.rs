//! Lines to a syslog daemon, one datagram each.
//!
//! Owns the socket and the messages waiting for room in it. Leaves to others: what a message says
//! (`format`), positions (`store`).
//! Invariant: at most `MAX_QUEUE_BYTES` wait here; other output waits in the kernel, because only
//! messages that were sent are acknowledged. After a kill a message may be sent again (at least
//! once), and a UDP datagram may be lost on its way, since it has no receipt.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use papa_config::{SyslogAddress, SyslogConfig};

use crate::file::Suspended;
use crate::layout::{Delta, Source};
use crate::schedule::Now;
use crate::store::Store;
use crate::syslog_socket::SyslogSocket;

/// Messages that wait for the daemon to take them.
const MAX_QUEUE_BYTES: usize = 1024 * 1024;
/// Messages sent in one go: a flood to syslog must not delay everybody's files.
const SENT_AT_ONCE: usize = 512;
/// How soon a daemon that had no room is asked again.
const ROOM_AGAIN: Duration = Duration::from_millis(5);
/// First pause after the daemon could not be reached.
const RETRY_MIN: Duration = Duration::from_millis(250);
/// Longest pause: a daemon that is back is noticed within it.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// What is left of a message the daemon finds too long.
const SHORTENED_BYTES: usize = 1024;

/// One daemon.
#[derive(Debug)]
pub(super) struct Syslog {
    config: SyslogConfig,
    socket: Connection,
    queue: VecDeque<(Vec<u8>, Delta)>,
    queued_bytes: usize,
    trouble: Option<(String, Instant)>,
    retry_delay: Duration,
    /// When the queue is to be looked at again.
    room_at: Option<Instant>,
    /// More came than the queue holds: who offered it must offer it again.
    overflowed: bool,
}

#[derive(Debug)]
enum Connection {
    Closed,
    /// A name is being looked up, which may take long.
    Resolving(mpsc::Receiver<io::Result<SocketAddr>>),
    Open(SyslogSocket),
}

impl Syslog {
    pub(super) fn new(config: SyslogConfig) -> Self {
        Self {
            config,
            socket: Connection::Closed,
            queue: VecDeque::new(),
            queued_bytes: 0,
            trouble: None,
            retry_delay: RETRY_MIN,
            room_at: None,
            overflowed: false,
        }
    }

    pub(super) fn config(&self) -> &SyslogConfig {
        &self.config
    }

    pub(super) fn trouble(&self) -> Option<(&str, Instant)> {
        self.trouble.as_ref().map(|(text, at)| (text.as_str(), *at))
    }

    /// Whether something waits here: positions are then those of what was sent.
    pub(super) fn is_behind(&self) -> bool {
        // What it has refused is not in the queue, and its streams are told at the next flush.
        !self.queue.is_empty() || self.trouble.is_some() || self.overflowed
    }

    pub(super) fn next_look(&self) -> Option<Instant> {
        self.room_at
    }

    /// Adds a message; an empty one only moves the position.
    pub(super) fn append(&mut self, message: Vec<u8>, delta: Delta) -> Result<(), Suspended> {
        if self.trouble.is_some() || self.overflowed {
            return Err(Suspended);
        }
        if self.queued_bytes + message.len() > MAX_QUEUE_BYTES {
            self.overflowed = true;
            return Err(Suspended);
        }
        self.queued_bytes += message.len();
        self.queue.push_back((message, delta));
        Ok(())
    }

    /// Gives back what waits here of one stream, which is to go elsewhere. True if there was
    /// something.
    pub(super) fn withdraw(&mut self, from: Source) -> bool {
        let before = self.queue.len();
        self.queue.retain(|(_, delta)| delta.source != from);
        self.queued_bytes = self.queue.iter().map(|(message, _)| message.len()).sum();
        self.queue.len() < before
    }

    /// Sends what there is room for.
    pub(super) fn flush(&mut self, store: &mut Store, now: Now) -> Result<(), Suspended> {
        if self.trouble.is_none()
            && let Err(error) = self.drain(store, now)
        {
            self.suspend(&error, now);
        }
        if self.trouble.is_some() || self.overflowed {
            return Err(Suspended);
        }
        Ok(())
    }

    /// Goes on. True when it can take in again what it refused.
    pub(super) fn retry(&mut self, store: &mut Store, now: Now) -> bool {
        let retried = self.trouble.take_if(|(_, at)| *at <= now.at).is_some();
        if retried {
            match self.connect() {
                Ok(true) => {}
                Ok(false) => {
                    self.trouble = Some((
                        self.reason("its address is being looked up"),
                        now.at + RETRY_MIN,
                    ));
                    return false;
                }
                Err(error) => {
                    self.suspend(&error, now);
                    return false;
                }
            }
        }
        let due = self.room_at.is_some_and(|at| at <= now.at);
        if (due || retried) && self.trouble.is_none() {
            let _ = self.flush(store, now);
        }
        let caught_up = self.overflowed && self.queue.is_empty();
        if caught_up {
            self.overflowed = false;
        }
        self.trouble.is_none() && (retried || caught_up)
    }

    fn drain(&mut self, store: &mut Store, now: Now) -> io::Result<()> {
        self.room_at = None;
        let mut sent: Vec<(Source, u64)> = Vec::new();
        let mut result = Ok(());
        for _ in 0..SENT_AT_ONCE {
            let Some((message, delta)) = self.queue.front() else {
                break;
            };
            let delta = *delta;
            if !message.is_empty() {
                match self.connect() {
                    Ok(true) => {}
                    Ok(false) => {
                        result = Err(io::ErrorKind::NotConnected.into());
                        break;
                    }
                    Err(error) => {
                        result = Err(error);
                        break;
                    }
                }
                let message = self.queue.front().map_or(&[][..], |(message, _)| message);
                match self.send(message) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) if no_room(&error) => {
                        self.room_at = Some(now.at + ROOM_AGAIN);
                        break;
                    }
                    Err(error) => {
                        result = Err(error);
                        break;
                    }
                }
            }
            if let Some((message, _)) = self.queue.pop_front() {
                self.queued_bytes -= message.len();
            }
            match sent.iter_mut().find(|(source, _)| *source == delta.source) {
                Some((_, position)) => *position = delta.position,
                None => sent.push((delta.source, delta.position)),
            }
        }
        if (!self.queue.is_empty() || self.overflowed) && result.is_ok() {
            self.room_at.get_or_insert(now.at + ROOM_AGAIN);
        }
        for (source, position) in sent {
            self.retry_delay = RETRY_MIN;
            store.set_done(Delta { source, position })?;
        }
        result
    }

    fn send(&self, message: &[u8]) -> io::Result<()> {
        let send = |message: &[u8]| match &self.socket {
            Connection::Open(socket) => socket.send(message),
            Connection::Closed | Connection::Resolving(_) => {
                Err(io::ErrorKind::NotConnected.into())
            }
        };
        match send(message) {
            Err(error) if error.raw_os_error() == Some(nix::libc::EMSGSIZE) => {
                let short = message.get(..SHORTENED_BYTES).unwrap_or(message);
                send(short)
            }
            other => other,
        }
    }

    /// True when there is a connection; false while an address is being looked up.
    fn connect(&mut self) -> io::Result<bool> {
        if let Connection::Resolving(answer) = &self.socket {
            let address = match answer.try_recv() {
                Err(mpsc::TryRecvError::Empty) => return Ok(false),
                Ok(Ok(address)) => Ok(address),
                Ok(Err(error)) => Err(error),
                Err(mpsc::TryRecvError::Disconnected) => Err(io::Error::other("the thread died")),
            };
            self.socket = Connection::Closed;
            self.socket = Connection::Open(SyslogSocket::udp(address?)?);
        }
        if !matches!(self.socket, Connection::Closed) {
            return Ok(true);
        }
        match &self.config.address {
            SyslogAddress::Unix(path) => {
                self.socket = Connection::Open(SyslogSocket::unix(path)?);
                Ok(true)
            }
            SyslogAddress::Udp(host, port) => {
                if let Ok(address) = host.parse() {
                    let socket = SyslogSocket::udp(SocketAddr::new(address, *port))?;
                    self.socket = Connection::Open(socket);
                    return Ok(true);
                }
                let (sender, receiver) = mpsc::channel();
                let (host, port) = (host.clone(), *port);
                std::thread::Builder::new()
                    .name("resolve".to_owned())
                    .spawn(move || {
                        let found = (host.as_str(), port).to_socket_addrs().and_then(|mut all| {
                            all.next().ok_or_else(|| io::ErrorKind::NotFound.into())
                        });
                        let _ = sender.send(found);
                    })?;
                self.socket = Connection::Resolving(receiver);
                Ok(false)
            }
        }
    }

    fn suspend(&mut self, error: &io::Error, now: Now) {
        if self.retry_delay == RETRY_MIN {
            tracing::warn!(address = %self.config.address, %error, "cannot reach the syslog daemon; its output waits in the kernel");
        }
        if !matches!(self.socket, Connection::Resolving(_)) {
            self.socket = Connection::Closed;
        }
        self.queue.clear();
        self.queued_bytes = 0;
        self.room_at = None;
        self.trouble = Some((self.reason(&error.to_string()), now.at + self.retry_delay));
        self.retry_delay = (self.retry_delay * 2).min(RETRY_MAX);
    }

    fn reason(&self, text: &str) -> String {
        format!("syslog {}: {text}", self.config.address)
    }
}

fn no_room(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(nix::libc::ENOBUFS)
}
