//! The record of a stopped connection for the next program.
//!
//! One version writes it and another reads it, so fields that are missing have a default.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::exchange::Expect;

/// A connection. Its bytes follow the JSON: input first, then the length of each of `output`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnectionRecord {
    /// The socket's number with the keeper.
    pub socket: u64,
    /// Bytes of unread input.
    pub input: usize,
    /// Descriptors that came with the input: after how many bytes of it, and their numbers with the
    /// keeper.
    pub descriptors: Vec<(u64, u64)>,
    /// What is not written yet.
    pub output: Vec<OutputRecord>,
    /// What the next line is taken for; none while an answer is awaited.
    pub state: Option<Expect>,
    /// No line has come yet.
    pub first_line: bool,
    /// The caller has closed its sending side.
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
    /// Number with the keeper of the descriptor that goes with the first byte.
    pub descriptor: Option<u64>,
    /// What the next line is taken for.
    pub next: Option<Expect>,
    /// It is a batch of output.
    pub batch: bool,
}
