//! A stopped connection: writing it down, and going on with it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use super::{Connection, State};
use crate::client::exchange::{Order, Outgoing};
use crate::client::inbox::{Inbox, Next};
use crate::client::record::{ConnectionRecord, OutputRecord};

/// A connection that has stopped, with the orders it has not seen.
#[derive(Debug)]
pub struct Frozen {
    /// The connection.
    pub connection: Connection,
    /// Orders it has not seen.
    pub inbox: Rc<Inbox>,
}

impl Connection {
    /// Writes the connection's state down. `keep` gives a descriptor to the keeper and returns its
    /// number there.
    ///
    /// # Errors
    /// Those of `keep`.
    pub fn record<E>(
        &self,
        mut keep: impl FnMut(BorrowedFd<'_>) -> Result<u64, E>,
    ) -> Result<ConnectionRecord, E> {
        let mut record = ConnectionRecord {
            socket: keep(self.transport.as_fd())?,
            input: self.input.len(),
            state: match self.state {
                State::Ready(expect) => Some(expect),
                State::Waiting => None,
            },
            first_line: self.first_line,
            end_of_input: self.end_of_input,
            bytes: vec![Bytes::copy_from_slice(&self.input)],
            ..ConnectionRecord::default()
        };
        for (at, fd) in &self.fds {
            let at = at.saturating_sub(self.taken);
            record.descriptors.push((at, keep(fd.as_fd())?));
        }
        for writing in &self.output {
            let mut bytes = BytesMut::new();
            for piece in &writing.pieces {
                bytes.extend_from_slice(piece);
            }
            let descriptor = writing.descriptor.as_ref().map(AsFd::as_fd);
            record.output.push(OutputRecord {
                length: bytes.len(),
                descriptor: descriptor.map(&mut keep).transpose()?,
                next: writing.next,
                batch: writing.batch,
            });
            record.bytes.push(bytes.freeze());
        }
        Ok(record)
    }

    /// Restores the state that was written down; `take` finds a descriptor by its number with the
    /// keeper.
    pub fn restore(
        &mut self,
        record: ConnectionRecord,
        mut take: impl FnMut(u64) -> Option<OwnedFd>,
    ) {
        let mut bytes = record.bytes.into_iter();
        self.input = BytesMut::from(&bytes.next().unwrap_or_default()[..]);
        self.received = self.input.len() as u64;
        for (at, number) in record.descriptors {
            self.fds.extend(take(number).map(|fd| (at, fd)));
        }
        for (output, bytes) in record.output.into_iter().zip(bytes) {
            self.queue(Outgoing {
                pieces: vec![bytes],
                descriptor: output.descriptor.and_then(&mut take),
                next: output.next,
                batch: output.batch,
            });
        }
        self.state = record.state.map_or(State::Waiting, State::Ready);
        self.first_line = record.first_line;
        self.end_of_input = record.end_of_input;
        self.note_spoken();
    }

    /// A session that has spoken before it was stopped counts as one that has spoken.
    pub fn note_spoken(&self) {
        if !self.first_line {
            self.budget.has_spoken(self.id);
        }
    }

    /// Takes the orders it has not seen yet.
    pub fn catch_up(&mut self, inbox: &Inbox) {
        while let Next::Order(order) = inbox.next() {
            match order {
                Order::Write(outgoing) => self.queue(outgoing),
                Order::Freeze { .. } => {}
            }
        }
    }
}
