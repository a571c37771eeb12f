//! Values of `uid` and `gid`.
//!
//! A name is looked up, so that a misspelt one is reported with its line and not at the first
//! start. Numbers pass as they are; 0 means "no change".
//! Source: Circus's `to_uid` and `to_gid`.

use nix::unistd::{Group, User};
use papa_protocol::process::Account;

/// A user.
pub(crate) fn user(text: &str) -> Result<Option<Account>, String> {
    identity(text, "user", |name| {
        matches!(User::from_name(name), Ok(Some(_)))
    })
}

/// A group.
pub(crate) fn group(text: &str) -> Result<Option<Account>, String> {
    identity(text, "group", |name| {
        matches!(Group::from_name(name), Ok(Some(_)))
    })
}

fn identity(
    text: &str,
    kind: &str,
    exists: impl Fn(&str) -> bool,
) -> Result<Option<Account>, String> {
    let text = text.trim();
    let identity = if text.is_empty() {
        return Ok(None);
    } else if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse()
            .ok()
            // The highest number means "nobody in particular" to the system calls.
            .filter(|number| *number != u32::MAX)
            .map(Account::Id)
            .ok_or_else(|| format!("expected a {kind}'s name or number"))?
    } else if exists(text) {
        Account::Name(text.to_owned())
    } else {
        return Err(format!(
            "expected the name or number of a {kind} of this system"
        ));
    };
    Ok(Some(identity).filter(|identity| *identity != Account::Id(0)))
}
