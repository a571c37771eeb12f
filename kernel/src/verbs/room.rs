//! Room for descriptors, which is refused before the system refuses it.

use papa_protocol::json::ErrorCode;

use super::{VerbError, fail};
use crate::sys::process::descriptor_limit;

/// Descriptors left free so that clients still get in and the kernel can be
/// asked what uses them, as a part of the limit and at least.
const RESERVED: (u64, u64) = (16, 64);

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
