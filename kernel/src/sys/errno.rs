//! Texts of system errors.

use nix::errno::Errno;

/// The system's words for an error, with its number as Python writes it: the classic dialect's
/// clients expect that form.
#[must_use]
pub fn words(errno: Errno) -> String {
    format!("[Errno {}] {}", errno as i32, errno.desc())
}
