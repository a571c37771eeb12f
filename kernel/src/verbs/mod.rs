//! What requests do, once for both dialects.
//!
//! One file per kind of thing. Each verb checks, acts through `sys`, records
//! and returns typed results; texts are put together in `classic.rs` and
//! `json.rs`. Values, held descriptors, claims and sockets are functions of a `World` and
//! a `Caller`; the other kinds are still methods of the owner.

pub(crate) mod caller;
pub(crate) mod claim;
mod classic;
pub(crate) mod held;
mod json;
pub(crate) mod meta;
pub(crate) mod output;
mod pipes;
pub(crate) mod process;
pub(crate) mod process_plan;
pub(crate) mod room;
pub(crate) mod socket;
pub(crate) mod value;

use nix::errno::Errno;
use papa_protocol::classic::Error;
use papa_protocol::json::{ErrorCode, Failure};

use crate::world::journal::JournalError;

/// Why a verb failed. The texts of the classic dialect serve both.
pub(crate) type VerbError = Error;

/// A failure of `code` with these words.
#[must_use]
pub(crate) fn fail(code: ErrorCode, message: &str) -> VerbError {
    Failure::new(code, message).into()
}

/// A limit of the wire or the system that is reached.
#[must_use]
pub(crate) fn limit(what: &str, limit: usize) -> VerbError {
    fail(
        ErrorCode::Limit,
        &format!("there are {limit} {what}, which is the limit; remove some first"),
    )
}

/// A record that could not be written means that nothing was changed.
pub(crate) fn not_recorded(error: &JournalError) -> VerbError {
    fail(
        ErrorCode::Internal,
        &format!("the change could not be recorded, so it was not made: {error}"),
    )
}

/// A descriptor or memory the system refused.
pub(crate) fn refused(operation: &str, errno: Errno) -> VerbError {
    let code = match errno {
        Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOSPC => ErrorCode::Limit,
        _ => ErrorCode::Internal,
    };
    fail(code, &format!("{operation}: {}", words(errno)))
}

/// The system's words for an error, with its number as Python writes it.
pub(crate) fn words(errno: Errno) -> String {
    format!("[Errno {}] {}", errno as i32, errno.desc())
}
