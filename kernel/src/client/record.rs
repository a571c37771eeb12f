//! A connection that was stopped, as it is written down for the next program.
//!
//! One version writes this and another reads it: what is missing has a default.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::exchange::Expect;

/// A connection. Its bytes lie behind the JSON, input first, then what each
/// of `output` counts.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnectionRecord {
    /// The socket's number with the keeper.
    pub socket: u64,
    /// Bytes of unread input.
    pub input: usize,
    /// Descriptors that came with it: how far into it, and their numbers with
    /// the keeper.
    pub descriptors: Vec<(u64, u64)>,
    /// What is not written yet.
    pub output: Vec<OutputRecord>,
    /// What the next line is taken for; none while an answer is awaited.
    pub state: Option<Expect>,
    /// Nothing has been said yet.
    pub first_line: bool,
    /// Nothing more will come.
    pub end_of_input: bool,
    /// The bytes themselves, in order.
    #[serde(skip)]
    pub bytes: Vec<Bytes>,
}

/// One piece of unsent output.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct OutputRecord {
    /// How many bytes.
    pub length: usize,
    /// Number with the keeper of the descriptor that goes with the first.
    pub descriptor: Option<u64>,
    /// What comes next.
    pub next: Option<Expect>,
    /// It is a batch of output.
    pub batch: bool,
}
