//! Users and groups.
//!
//! Owns reading a name or number and checking that a name exists, so that a misspelt user is
//! reported with its line and not at the first start. Numbers pass as they are.
//! Source: Circus's `to_uid` and `to_gid`; a number 0 means "no change" there and here.

use std::collections::BTreeSet;
use std::ffi::OsString;

use nix::unistd::{Group, Uid, User};

use crate::environment::Environment;
use crate::fields::Fields;
use crate::types::Identity;

/// `uid`.
pub(super) fn user(fields: &mut Fields<'_>) -> Option<Identity> {
    identity(fields, "uid", |name| {
        matches!(User::from_name(name), Ok(Some(_)))
    })
}

/// Variables that tell a program who it runs as.
const ACCOUNT_VARIABLES: [&str; 4] = ["HOME", "USER", "LOGNAME", "SHELL"];

/// Sets the variables of `user` in `environment` but for those in `written`, which the file sets;
/// answers which. Of a number without an account nothing is known: the variables are removed,
/// because those of whoever started the manager would name a stranger's home.
pub(super) fn set_account(
    user: Option<&Identity>,
    written: &BTreeSet<OsString>,
    environment: &mut Environment,
) -> Vec<&'static str> {
    let account = match user {
        Some(Identity::Name(name)) => User::from_name(name),
        Some(Identity::Number(number)) => User::from_uid(Uid::from_raw(*number)),
        None => return Vec::new(),
    };
    let own = |name: &&str| !written.contains(std::ffi::OsStr::new(name));
    let Ok(Some(account)) = account else {
        for name in ACCOUNT_VARIABLES.iter().filter(|name| own(name)) {
            environment.remove(std::ffi::OsStr::new(name));
        }
        return Vec::new();
    };
    let values: [OsString; 4] = [
        account.dir.into(),
        account.name.clone().into(),
        account.name.into(),
        account.shell.into(),
    ];
    let mut set = Vec::new();
    for (name, value) in ACCOUNT_VARIABLES.into_iter().zip(values) {
        if own(&name) {
            environment.insert(name.into(), value);
            set.push(name);
        }
    }
    set
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
