//! Room for descriptors: a request that would use the last ones is refused before the system
//! refuses it.

use papa_protocol::json::ErrorCode;

use super::{VerbError, fail};
use crate::sys::process::descriptor_limit;

/// Descriptors left free so that clients still get in and can ask the kernel what uses them: the
/// limit divided by the first number, and at least the second.
const RESERVED: (u64, u64) = (16, 64);

/// What the kernel uses beyond what the world and the readers count.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// Room for descriptors.
    pub room: Room,
    /// Bytes that all sessions together keep in memory.
    pub session_bytes: usize,
}

/// How much room for descriptors there is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// Descriptors in use, estimated.
    pub in_use: u64,
}

impl Room {
    /// Refuses what would use up the descriptors that are kept for clients.
    ///
    /// # Errors
    /// `limit` if `wanted` more do not fit.
    pub(crate) fn check(self, wanted: u64) -> Result<(), VerbError> {
        let limit = descriptor_limit();
        let reserved = (limit / RESERVED.0).max(RESERVED.1);
        if self.in_use + wanted + reserved > limit {
            return Err(fail(
                ErrorCode::Limit,
                &format!(
                    "too many open files: about {} of {limit} descriptors are in use and {reserved} are reserved; raise the limit (ulimit -n) before starting papa",
                    self.in_use
                ),
            ));
        }
        Ok(())
    }
}
