//! The user and the groups a process runs as.

use std::ffi::CString;

use nix::unistd::{Group, User};
use papa_protocol::classic::Error;
use papa_protocol::json::request::ProcessMake;
use papa_protocol::process::Account;

use super::VerbError;

/// Who a process runs as.
#[derive(Debug, Default)]
pub(crate) struct Identity {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub groups: Option<Vec<u32>>,
}

/// Looks up user and groups, and puts numbers in their place so that
/// equal requests compare equal.
///
/// # Errors
/// Names the user or group there is none of.
pub(crate) fn resolve_account(make: &mut ProcessMake) -> Result<Identity, VerbError> {
    let mut identity = Identity::default();
    let mut name = None;
    if let Some(account) = &make.uid {
        let user = match account {
            Account::Id(id) => User::from_uid((*id).into()).ok().flatten(),
            Account::Name(name) => User::from_name(name).ok().flatten(),
        };
        match (user, account) {
            (Some(user), _) => {
                identity.uid = Some(user.uid.as_raw());
                identity.gid = Some(user.gid.as_raw());
                name = CString::new(user.name).ok();
            }
            // A number nobody is listed under is a user of a container
            // image; then the group must be said too.
            (None, Account::Id(id)) if make.gid.is_some() => identity.uid = Some(*id),
            (None, account) if account.looks_numeric() => {
                return Err(Error::UserId(account.to_string()));
            }
            (None, account) => return Err(Error::UserName(account.to_string())),
        }
    }
    if let Some(account) = &make.gid {
        identity.gid = Some(match (account, &make.uid) {
            // Numbers for both need no entry anywhere: a container image often has none.
            (Account::Id(id), Some(Account::Id(_))) => *id,
            (account, _) => group_id(account)?,
        });
    }
    if let Some(groups) = &make.groups {
        identity.groups = Some(groups.iter().map(group_id).collect::<Result<_, _>>()?);
    } else if let (Some(name), Some(gid)) = (name, identity.gid)
        && nix::unistd::geteuid().is_root()
    {
        let groups = nix::unistd::getgrouplist(&name, gid.into()).unwrap_or_default();
        identity.groups = Some(groups.into_iter().map(nix::unistd::Gid::as_raw).collect());
    } else if let (Some(_), Some(gid)) = (identity.uid, identity.gid)
        && nix::unistd::geteuid().is_root()
    {
        // A user nobody knows has no groups of its own, least of all ours.
        identity.groups = Some(vec![gid]);
    }
    make.uid = identity.uid.map(Account::Id);
    make.gid = identity.gid.map(Account::Id);
    Ok(identity)
}

fn group_id(account: &Account) -> Result<u32, VerbError> {
    let group = match account {
        Account::Id(id) => return known_group(*id),
        Account::Name(name) => Group::from_name(name).ok().flatten(),
    };
    group
        .map(|group| group.gid.as_raw())
        .ok_or_else(|| Error::Group(account.to_string()))
}

fn known_group(id: u32) -> Result<u32, VerbError> {
    match Group::from_gid(id.into()) {
        Ok(Some(_)) => Ok(id),
        _ => Err(Error::Group(id.to_string())),
    }
}
