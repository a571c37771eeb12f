//! One connection to a kernel: the handshake, what is on its way out, what has come in.
//!
//! Owns the socket and both buffers; knows nothing of who asked for what.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{Interest, Ready};

use papa_protocol::classic::BANNER;
use papa_protocol::codec::{DecodeError, Item, PushDecoder};
use papa_protocol::json::SWITCH_WORD;
use papa_protocol::json::request::{Hello, Id, Op};
use papa_protocol::json::status::HelloReply;
use papa_protocol::text::escape_control_bytes;

use crate::ClientError;
use crate::address::Address;
use crate::transport::Transport;

/// How long connecting and the exchange of greetings may take; a kernel recovering from a crash
/// needs a fraction.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Room made for a read: what a pipe's worth of output and its header need, several times.
const READ_BYTES: usize = 256 << 10;

/// Most of a foreign greeting that is quoted.
const QUOTED_BYTES: usize = 200;

#[derive(Debug)]
pub(super) struct Connection {
    transport: Transport,
    decoder: PushDecoder,
    incoming: BytesMut,
    outgoing: BytesMut,
    /// Bytes written so far.
    written: u64,
    /// Descriptors to send, each with the byte at this count of bytes written.
    descriptors_out: VecDeque<(u64, OwnedFd)>,
    descriptors_in: VecDeque<OwnedFd>,
}

impl Connection {
    /// Connects, switches to JSON and reads the kernel's greeting.
    pub(super) async fn open(
        address: &Address,
        client: &str,
    ) -> Result<(Self, HelloReply), ClientError> {
        let attempt = async {
            let transport = Transport::connect(address).await?;
            let mut connection = Self {
                transport,
                decoder: PushDecoder::default(),
                incoming: BytesMut::new(),
                outgoing: BytesMut::new(),
                written: 0,
                descriptors_out: VecDeque::new(),
                descriptors_in: VecDeque::new(),
            };
            let hello = connection.greet(client).await?;
            connection.transport.check_server()?;
            Ok((connection, hello))
        };
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, attempt).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no greeting in time").into()),
        }
    }

    async fn greet(&mut self, client: &str) -> Result<HelloReply, ClientError> {
        self.outgoing.extend_from_slice(SWITCH_WORD.as_bytes());
        self.outgoing.extend_from_slice(b"\n");
        let hello = Hello {
            client: Some(client.to_owned()),
        };
        self.push(None, &Op::from(hello), None);
        let mut banner_seen = false;
        loop {
            match self.flush() {
                // Whoever hung up may have said why; reading tells.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.outgoing.clear(),
                result => result?,
            }
            if !banner_seen {
                banner_seen = self.take_banner()?;
            }
            if banner_seen && self.incoming.starts_with(b"Error:") {
                return Err(ClientError::Protocol(
                    "the kernel is too old: it does not speak JSON".to_owned(),
                ));
            }
            if banner_seen && let Some(item) = self.decode()? {
                return match item {
                    Item::Reply {
                        id: None,
                        result: Ok(hello),
                    } => serde_json::from_str(hello.get()).map_err(|error| {
                        ClientError::Protocol(format!("the greeting is not understood: {error}"))
                    }),
                    Item::Reply {
                        result: Err(failure),
                        ..
                    } => Err(ClientError::Refused(failure)),
                    Item::Reply { .. } | Item::Output(..) | Item::Push(_) => Err(
                        ClientError::Protocol("something else came before the greeting".to_owned()),
                    ),
                };
            }
            let ready = self.ready(true).await?;
            if ready.is_readable() && !self.read(false)? {
                let said =
                    escape_control_bytes(&self.incoming[..self.incoming.len().min(QUOTED_BYTES)]);
                let error = io::Error::new(
                    io::ErrorKind::ConnectionAborted,
                    format!("closed before the greeting; it said \"{said}\""),
                );
                return Err(error.into());
            }
        }
    }

    fn take_banner(&mut self) -> Result<bool, ClientError> {
        let banner = BANNER.as_bytes();
        let arrived = self.incoming.len().min(banner.len());
        if self.incoming[..arrived] != banner[..arrived] {
            let said =
                escape_control_bytes(&self.incoming[..self.incoming.len().min(QUOTED_BYTES)]);
            return Err(ClientError::Protocol(format!(
                "this is no papa kernel; it said \"{said}\""
            )));
        }
        if arrived < banner.len() {
            return Ok(false);
        }
        self.incoming.advance(banner.len());
        Ok(true)
    }

    pub(super) fn passes_descriptors(&self) -> bool {
        self.transport.passes_descriptors()
    }

    /// Queues a request, the descriptor to go with its first byte.
    pub(super) fn push(&mut self, id: Option<&Id>, op: &Op, descriptor: Option<OwnedFd>) {
        if let Some(descriptor) = descriptor {
            let at = self.written + self.outgoing.len() as u64;
            self.descriptors_out.push_back((at, descriptor));
        }
        op.encode(id, &mut self.outgoing);
    }

    /// Bytes not written yet.
    pub(super) fn outgoing_bytes(&self) -> usize {
        self.outgoing.len()
    }

    /// Writes until the socket takes no more.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while !self.outgoing.is_empty() {
            let result = match self.descriptors_out.front() {
                Some((at, descriptor)) if *at == self.written => {
                    let bytes = self.until_descriptor(1);
                    self.transport
                        .try_write_with_descriptor(bytes, descriptor.as_fd())
                }
                _ => self.transport.try_write(self.until_descriptor(0)),
            };
            match result {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    if self
                        .descriptors_out
                        .front()
                        .is_some_and(|(at, _)| *at == self.written)
                    {
                        self.descriptors_out.pop_front();
                    }
                    self.outgoing.advance(count);
                    self.written += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The bytes up to where the next descriptor, `skip` of them left out, has to go.
    fn until_descriptor(&self, skip: usize) -> &[u8] {
        let end = self
            .descriptors_out
            .get(skip)
            .and_then(|(at, _)| usize::try_from(at - self.written).ok())
            .unwrap_or(self.outgoing.len());
        &self.outgoing[..end]
    }

    /// Waits until the socket can be read (where `read` says so) or written (where there is
    /// something to write).
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is consumed.
    pub(super) async fn ready(&self, read: bool) -> io::Result<Ready> {
        let interest = match (read, self.outgoing.is_empty()) {
            (true, true) => Interest::READABLE,
            (true, false) => Interest::READABLE | Interest::WRITABLE,
            (false, _) => Interest::WRITABLE,
        };
        self.transport.ready(interest).await
    }

    /// Reads once; `false` is the end. `descriptors` says whether a reply on its way may carry one.
    pub(super) fn read(&mut self, descriptors: bool) -> io::Result<bool> {
        let room = self
            .decoder
            .wanted_bytes(self.incoming.len())
            .max(READ_BYTES);
        if self.incoming.capacity() - self.incoming.len() < room / 2 {
            self.incoming.reserve(room);
        }
        let result = if descriptors {
            self.transport
                .try_read_with_descriptors(&mut self.incoming, &mut self.descriptors_in)
        } else {
            self.transport.try_read(&mut self.incoming)
        };
        match result {
            Ok(count) => Ok(count > 0),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    /// The next item that has arrived in full.
    pub(super) fn decode(&mut self) -> Result<Option<Item>, DecodeError> {
        self.decoder.decode(&mut self.incoming)
    }

    /// The descriptor that came with the reply just decoded: they arrive in the order of the
    /// replies.
    pub(super) fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors_in.pop_front()
    }
}
