//! Users and groups.
//!
//! Owns reading a name or number and checking that a name exists, so that a misspelt user is reported with its line
//! and not at the first start. Numbers pass as they are.
//! Source: Circus's `to_uid` and `to_gid`; a number 0 means "no change" there and here.

use nix::unistd::{Group, User};

use crate::config::fields::Fields;
use crate::config::types::Identity;

/// `uid`.
pub(super) fn user(fields: &mut Fields<'_>) -> Option<Identity> {
    identity(fields, "uid", |name| {
        matches!(User::from_name(name), Ok(Some(_)))
    })
}

/// `gid`.
pub(super) fn group(fields: &mut Fields<'_>) -> Option<Identity> {
    identity(fields, "gid", |name| {
        matches!(Group::from_name(name), Ok(Some(_)))
    })
}

fn identity(fields: &mut Fields<'_>, key: &str, exists: impl Fn(&str) -> bool) -> Option<Identity> {
    fields.filled(key)?;
    let kind = if key == "uid" { "user" } else { "group" };
    let identity = fields.parsed(key, |text| {
        let text = text.trim();
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text
                .parse()
                .ok()
                // The highest number means "nobody in particular" to the system calls.
                .filter(|number| *number != u32::MAX)
                .map(Identity::Number)
                .ok_or_else(|| format!("expected a {kind}'s name or number"));
        }
        if exists(text) {
            Ok(Identity::Name(text.to_owned()))
        } else {
            Err(format!(
                "expected the name or number of a {kind} of this system"
            ))
        }
    })?;
    (identity != Identity::Number(0)).then_some(identity)
}
