//! Bytes to lines, and to lines with the output behind them, incrementally.
//!
//! Owns finding boundaries in a buffer somebody else fills, under the bound on a line; what a line
//! means is `classic`'s or `json`'s. Both decoders give the same items however the stream is cut
//! into reads.
//! Invariant: a decoder never asks its caller to buffer more than [`MAX_LINE_BYTES`] of line or
//! [`MAX_BATCH_BYTES`] of output.

use bytes::{Bytes, BytesMut};
use thiserror::Error;

use crate::json::push::{OutputHeader, Push};
use crate::json::reply::{Failure, Message};
use crate::json::request::Id;
use crate::limits::{MAX_BATCH_BYTES, MAX_LINE_BYTES};

/// A line that does not end within the limit; the stream cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a line of more than {limit_bytes} bytes")]
pub struct LineTooLong {
    /// The limit that was reached.
    pub limit_bytes: usize,
}

/// Finds lines in a buffer.
#[derive(Debug, Clone)]
pub struct LineDecoder {
    /// Bytes at the front of the buffer known to hold no newline.
    scanned: usize,
    limit_bytes: usize,
}

impl Default for LineDecoder {
    fn default() -> Self {
        Self::new(MAX_LINE_BYTES)
    }
}

impl LineDecoder {
    /// A decoder for lines of at most `limit_bytes`, newline excluded.
    #[must_use]
    pub fn new(limit_bytes: usize) -> Self {
        Self {
            scanned: 0,
            limit_bytes,
        }
    }

    /// Takes the next line off the front of `buffer`, newline (and a carriage return before it)
    /// removed.
    ///
    /// `Ok(None)` means that more bytes are needed. Between calls `buffer` may only grow at its
    /// end.
    ///
    /// # Errors
    /// More bytes than the limit without a newline. The buffer is left as it is.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Bytes>, LineTooLong> {
        let Some(taken) = self.find(buffer)? else {
            return Ok(None);
        };
        let mut line = buffer.split_to(taken).freeze();
        line.truncate(content(&line).len());
        Ok(Some(line))
    }

    /// How many bytes at the front of `buffer` are the next line, newline included; see
    /// [`content`].
    ///
    /// As [`Self::decode`], but takes nothing: the caller does.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn find(&mut self, buffer: &[u8]) -> Result<Option<usize>, LineTooLong> {
        let too_long = LineTooLong {
            limit_bytes: self.limit_bytes,
        };
        // One byte beyond the limit is looked at: there the newline of the longest line may be.
        let window = buffer.len().min(self.limit_bytes + 1);
        let start = self.scanned.min(window);
        let Some(offset) = find_newline(&buffer[start..window]) else {
            self.scanned = window;
            return if buffer.len() > self.limit_bytes {
                Err(too_long)
            } else {
                Ok(None)
            };
        };
        self.scanned = 0;
        Ok(Some(start + offset + 1))
    }
}

/// A line that was found, without its newline and a carriage return before it.
#[must_use]
pub fn content(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// What the kernel sends on a JSON session, output with its bytes.
#[derive(Debug)]
pub enum Item {
    /// An answer.
    Reply {
        /// The request it answers; none for the greeting and for failures of requests without one.
        id: Option<Id>,
        /// Its result, the success still as text.
        result: Result<Box<serde_json::value::RawValue>, Failure>,
    },
    /// Captured output. The bytes are empty if the header is not inline.
    Output(OutputHeader, Bytes),
    /// Anything else pushed.
    Push(Push),
}

/// Why a JSON session's stream cannot be read on.
#[derive(Debug, Error)]
pub enum DecodeError {
    /// A line does not end.
    #[error(transparent)]
    Line(#[from] LineTooLong),
    /// A line is not what the kernel sends.
    #[error("a line that is not understood: {0}")]
    Json(#[from] serde_json::Error),
    /// A header announces more than the kernel sends at once.
    #[error("output of {0} bytes announced: at most {MAX_BATCH_BYTES} are sent at once")]
    TooMuch(u64),
    /// A header's records do not add up to its length.
    #[error("output whose records do not add up to its length")]
    Records,
}

/// Takes a JSON session's stream apart: lines, and behind an inline header exactly its bytes.
#[derive(Debug, Default)]
pub struct PushDecoder {
    lines: LineDecoder,
    /// A header whose bytes are still arriving.
    pending: Option<(OutputHeader, usize)>,
}

impl PushDecoder {
    /// Takes the next item off the front of `buffer`; output is split off without copying.
    ///
    /// `Ok(None)` means that more bytes are needed. Between calls `buffer` may only grow at its
    /// end.
    ///
    /// # Errors
    /// The stream is not what a kernel sends; it cannot be read on.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Item>, DecodeError> {
        loop {
            if let Some((_, length)) = &self.pending {
                if buffer.len() < *length {
                    return Ok(None);
                }
                if let Some((header, length)) = self.pending.take() {
                    return Ok(Some(Item::Output(header, buffer.split_to(length).freeze())));
                }
            }
            let Some(line) = self.lines.decode(buffer)? else {
                return Ok(None);
            };
            match Message::parse(&line)? {
                Message::Reply { id, result } => return Ok(Some(Item::Reply { id, result })),
                Message::Push(push) => return Ok(Some(Item::Push(push))),
                Message::Unknown => {}
                Message::Output(header) => {
                    check_records(&header)?;
                    let length = usize::try_from(header.payload_bytes())
                        .ok()
                        .filter(|length| *length <= MAX_BATCH_BYTES)
                        .ok_or(DecodeError::TooMuch(header.length))?;
                    self.pending = Some((header, length));
                }
            }
        }
    }

    /// How many more bytes the pending output needs, so that the caller can make room for them at
    /// once.
    #[must_use]
    pub fn wanted_bytes(&self, buffered: usize) -> usize {
        self.pending
            .as_ref()
            .map_or(0, |(_, length)| length.saturating_sub(buffered))
    }
}

/// Records must be in order and end where the bytes do, so that whoever splits by them stays
/// inside.
fn check_records(header: &OutputHeader) -> Result<(), DecodeError> {
    let end = header
        .start
        .checked_add(header.length)
        .ok_or(DecodeError::Records)?;
    let mut position = header.start;
    for record in &header.records {
        if record.end < position {
            return Err(DecodeError::Records);
        }
        position = record.end;
    }
    if position == end {
        Ok(())
    } else {
        Err(DecodeError::Records)
    }
}

fn find_newline(bytes: &[u8]) -> Option<usize> {
    // `BufRead` for slices searches a word at a time; a plain iterator goes byte by byte.
    let mut rest = bytes;
    let length = std::io::BufRead::skip_until(&mut rest, b'\n').ok()?;
    (length > 0 && bytes[length - 1] == b'\n').then(|| length - 1)
}
