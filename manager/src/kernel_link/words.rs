//! The last lines of output of a process that has ended.
//!
//! Owns reading them from the kernel without taking them from the log. Leaves to others: how many
//! lines are kept (`last_words`).

use std::time::Duration;

use papa_client::{Client, Options, Push};
use papa_protocol::json::request as ops;
use papa_protocol::json::request::ops::FollowFrom;
use papa_protocol::name::NamePattern;
use papa_protocol::process::Process;
use papa_protocol::record::Serial;
use tokio::time::timeout;

use super::{KernelLink, LinkError};
use crate::last_words::lines_of;

/// Most output that is read for the sake of its last lines: more than is kept of a worker without a
/// log. A process with more than this waiting has a log that is stuck, and gets there in the end.
const MAX_FOLLOWED_BYTES: u64 = 1024 * 1024;

/// Silence after which the process is listed again, to see what was acknowledged or dropped
/// meanwhile: such output does not come any more, and the kernel does not say so.
const QUIET: Duration = Duration::from_millis(100);

impl KernelLink {
    /// The last lines of an ended process that no consumer has acknowledged. They are complete: the
    /// kernel empties the pipes before it reports the end.
    ///
    /// # Errors
    /// The kernel did not answer, or refused.
    pub async fn last_lines_of(&self, serial: u64) -> Result<Vec<String>, LinkError> {
        let list = ops::ProcessList {
            names: Vec::new(),
            serials: vec![Serial(serial)],
        };
        match self.client().call(list).await?.processes.first() {
            Some(process) if has_words(process) => self.last_lines(process).await,
            _ => Ok(Vec::new()),
        }
    }

    /// Reads as a follower, on a connection of its own: the manager's own subscription must not see
    /// this output twice. The caller sets the time limit.
    pub(super) async fn last_lines(&self, process: &Process) -> Result<Vec<String>, LinkError> {
        let end = process.ledger.captured;
        let oldest = gone(process);
        if end - oldest > MAX_FOLLOWED_BYTES {
            return Ok(Vec::new());
        }
        let options = Options {
            client: format!("papa-manager {} last words", std::process::id()),
            ..Options::default()
        };
        let (client, mut pushes) = Client::connect(self.addresses.clone(), options).await?;
        client
            .call(ops::OutputFollow {
                names: vec![NamePattern::new(process.name.as_ref())],
                from: FollowFrom::Start,
            })
            .await?;
        let mut words = Words::after(oldest);
        while words.position < end {
            match timeout(QUIET, pushes.recv()).await {
                Ok(Some(Push::Output { header, bytes })) if header.serial == process.serial => {
                    words.take(header.start, &bytes);
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => {
                    let list = ops::ProcessList {
                        names: Vec::new(),
                        serials: vec![process.serial],
                    };
                    let listed = self.client().call(list).await?.processes;
                    let Some(listed) = listed.first() else {
                        break;
                    };
                    words.skip_to(gone(listed));
                }
            }
        }
        Ok(lines_of(&words.bytes, words.start > 0))
    }
}

/// Whether a process has ended with output that no consumer has acknowledged.
pub(super) fn has_words(process: &Process) -> bool {
    !process.running && process.ledger.captured > gone(process)
}

/// The first position of a process's output that the kernel still has.
fn gone(process: &Process) -> u64 {
    let ledger = &process.ledger;
    ledger.acknowledged.saturating_add(ledger.dropped)
}

/// Output as it is read: the bytes from `start` to `position`.
#[derive(Debug)]
struct Words {
    start: u64,
    position: u64,
    bytes: Vec<u8>,
}

impl Words {
    fn after(position: u64) -> Self {
        Self {
            start: position,
            position,
            bytes: Vec::new(),
        }
    }

    /// Takes what is new of `bytes`, which begin at `at`. After a reconnection the kernel sends
    /// everything it still has again, cut in other places.
    fn take(&mut self, at: u64, bytes: &[u8]) {
        self.skip_to(at);
        let known = usize::try_from(self.position - at).unwrap_or(usize::MAX);
        let new = bytes.get(known..).unwrap_or_default();
        self.bytes.extend_from_slice(new);
        self.position += new.len() as u64;
    }

    /// Output before `position` that has not come was acknowledged or dropped; lines begin anew
    /// there.
    fn skip_to(&mut self, position: u64) {
        if position > self.position {
            *self = Self::after(position);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_that_comes_twice_counts_once_and_nothing_spans_a_gap() {
        for (pieces, start, expected) in [
            (&[(10, "ab"), (12, "cd")][..], 10, "abcd"),
            (&[(10, "abc"), (10, "ab"), (12, "cde")], 10, "abcde"),
            (&[(10, "ab"), (10, "a")], 10, "ab"),
            (&[(10, "ab"), (20, "cd")], 20, "cd"),
            (&[], 10, ""),
        ] {
            let mut words = Words::after(10);
            for (at, bytes) in pieces {
                words.take(*at, bytes.as_bytes());
            }
            assert_eq!(
                (words.start, words.bytes.as_slice()),
                (start, expected.as_bytes())
            );
            assert_eq!(words.position, start + expected.len() as u64, "{pieces:?}");
        }
    }
}
