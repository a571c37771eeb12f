//! The variables that tell a worker who it runs as.

use std::collections::BTreeSet;
use std::ffi::OsString;

use nix::unistd::{Uid, User};
use papa_protocol::process::Account;

use crate::environment::Environment;

/// Variables that tell a program who it runs as.
const ACCOUNT_VARIABLES: [&str; 4] = ["HOME", "USER", "LOGNAME", "SHELL"];

/// Sets the variables of `user` in `environment` but for those in `written`, which the file sets;
/// answers which. Of a number without an account nothing is known: the variables are removed,
/// because those of whoever started the manager would name a stranger's home.
pub(super) fn set_account(
    user: Option<&Account>,
    written: &BTreeSet<OsString>,
    environment: &mut Environment,
) -> Vec<&'static str> {
    let account = match user {
        Some(Account::Name(name)) => User::from_name(name),
        Some(Account::Id(number)) => User::from_uid(Uid::from_raw(*number)),
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
