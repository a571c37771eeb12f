//! Where a manager may be that is not found in the runtime directory.
//!
//! `sudo`, `su` and cron start `papactl` with the runtime directory of another user, or with none.
//! Owns what is said then: the kernel knows who holds its namespaces, the usual directories are
//! few, and the port says whose kernel is there. Only looks; nothing found here is talked to.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::Uid;
use papa_protocol::json::request::ops;
use papa_system::printable::printable;

use crate::cli::Common;
use crate::commands::kernel::{self, account, block_on};
use crate::commands::{CommandError, loaded, namespace as namespace_of};
use papa_config::KernelEndpoint;
use papa_control::client::ManagerError;
use papa_system::holder::{self, Holder, Sought};
use papa_system::runtime_dir::{self, DEFAULT_KERNEL_PORT, RuntimeDir};

/// How long the kernel is asked: this is help beside an error that is known already.
const PATIENCE: Duration = Duration::from_secs(1);
/// How a manager introduces itself to the kernel.
const MANAGER: &str = "papa-manager ";
/// What stands before the directory in that introduction.
const DIRECTORY: &str = ", runtime directory ";

/// `error`, with where the manager is instead and how to reach it, as far as that can be found out.
pub(super) fn explain(common: &Common, error: ManagerError) -> CommandError {
    let namespace = match &error {
        ManagerError::NotRunning { namespace, .. } => namespace.clone(),
        ManagerError::RuntimeDir(_) => namespace_of(common).unwrap_or_default(),
        _ => return error.into(),
    };
    let named = common.namespace.is_some() || common.config.is_some();
    let wanted = |other: &str| !named || other == namespace;
    let own = RuntimeDir::locate();
    let config = common.config.as_deref().and_then(loaded);
    let endpoint = config.as_ref().and_then(|config| config.kernel.as_ref());
    let found = claimed(&own, endpoint, wanted)
        .or_else(|| answering(&own, wanted))
        .or_else(|| of_another_user(&own, endpoint));
    let Some(found) = found else {
        return error.into();
    };
    let cause = match &error {
        ManagerError::NotRunning { .. } => format!(
            "no manager answers for namespace {namespace:?} in the runtime directory {}{}",
            own.path().display(),
            runtime_dir::oddity()
        ),
        other => other.to_string(),
    };
    CommandError::Elsewhere(format!("{cause}; {}", printable(&found)))
}

/// The manager that holds a namespace in a kernel of ours.
fn claimed(
    own: &RuntimeDir,
    endpoint: Option<&KernelEndpoint>,
    wanted: impl Fn(&str) -> bool,
) -> Option<String> {
    let addresses = kernel::candidates(own, endpoint).ok()?;
    let search = async {
        for address in &addresses {
            let Ok(client) = kernel::connect(address).await else {
                continue;
            };
            let claims = client.call(ops::ClaimList {}).await.ok()?.claims;
            let mut holders = claims
                .into_iter()
                .filter(|claim| claim.live && wanted(claim.namespace.as_str()))
                .map(|claim| claim.holder)
                .filter(|holder| holder.starts_with(MANAGER));
            return holders.next();
        }
        None
    };
    let found = block_on(async { tokio::time::timeout(PATIENCE, search).await });
    let holder = found.ok()?.ok()??;
    Some(format!(
        "the kernel says that one runs: {holder}{}",
        reach(&holder)
    ))
}

/// How to reach a manager that told the kernel this of itself; nothing if it did not say where it
/// is.
pub(super) fn reach(holder: &str) -> String {
    holder
        .rsplit_once(DIRECTORY)
        .map(|(_, path)| {
            format!(
                "; reach it with `{}papactl status`",
                setting(Path::new(path))
            )
        })
        .unwrap_or_default()
}

/// A manager that answers in one of the directories that a user of ours has by default.
fn answering(own: &RuntimeDir, wanted: impl Fn(&str) -> bool) -> Option<String> {
    usual(Uid::effective())
        .into_iter()
        .filter(|directory| directory != own && directory.verify().is_ok())
        .find_map(|directory| {
            let namespace = directory.managers().into_iter().find(|name| wanted(name))?;
            Some(format!(
                "one for namespace {namespace:?} answers in {}; reach it with `{}papactl status`",
                directory.path().display(),
                setting(directory.path())
            ))
        })
}

/// The kernel of another user at the port, and how root gets at its manager.
fn of_another_user(own: &RuntimeDir, endpoint: Option<&KernelEndpoint>) -> Option<String> {
    let holder = holder_of_port(endpoint);
    let port_of = holder.and_then(|holder| holder.uid);
    let others = |uid: &u32| *uid != Uid::effective().as_raw();
    // The directory we were given may tell as well.
    let uid = port_of.or_else(|| own.owner()).filter(others)?;
    let who = account(uid);
    let as_user = nix::unistd::User::from_uid(Uid::from_raw(uid)).ok()??.name;
    if !Uid::effective().is_root() {
        return None;
    }
    let directory = usual(Uid::from_raw(uid))
        .into_iter()
        .chain([own.clone()])
        .find(|directory| !directory.managers().is_empty())?;
    Some(format!(
        "a manager of {who} answers in {}; reach it with `sudo -u {as_user} {}papactl status`",
        directory.path().display(),
        setting(directory.path())
    ))
}

/// Who listens at the port where the kernel would.
fn holder_of_port(endpoint: Option<&KernelEndpoint>) -> Option<Holder> {
    let port = match endpoint {
        None => DEFAULT_KERNEL_PORT,
        Some(KernelEndpoint::Tcp(_, port)) => *port,
        Some(_) => return None,
    };
    holder::of_address(&Sought {
        address: Some(Ipv4Addr::LOCALHOST.into()),
        port,
        datagram: false,
    })
}

/// The runtime directories that a user has in a session, and without one.
fn usual(uid: Uid) -> [RuntimeDir; 2] {
    let session = PathBuf::from(format!("/run/user/{uid}"));
    [
        RuntimeDir::locate_for(uid, Some(session.as_os_str())),
        RuntimeDir::locate_for(uid, None),
    ]
}

/// What to write before a command so that it looks in `directory`.
fn setting(directory: &Path) -> String {
    let mut text = String::new();
    let by_default = directory == Path::new("/run/papa")
        || directory
            .to_string_lossy()
            .strip_prefix("/tmp/papa-")
            .is_some_and(|uid| uid.parse::<u32>().is_ok());
    if by_default {
        text.push_str("env -u XDG_RUNTIME_DIR ");
    } else if let Some(parent) = directory.parent() {
        // Writing to a String cannot fail.
        let _ = write!(text, "XDG_RUNTIME_DIR={} ", shell_word(parent));
    }
    text
}

/// A path as a shell takes it.
fn shell_word(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    if text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_leads_to_the_directory() {
        for (directory, text) in [
            ("/run/papa", "env -u XDG_RUNTIME_DIR "),
            ("/tmp/papa-1001", "env -u XDG_RUNTIME_DIR "),
            ("/run/user/7/papa", "XDG_RUNTIME_DIR=/run/user/7 "),
            ("/tmp/papa-x/papa", "XDG_RUNTIME_DIR=/tmp/papa-x "),
            ("/a b'c/papa", r"XDG_RUNTIME_DIR='/a b'\''c' "),
        ] {
            assert_eq!(setting(Path::new(directory)), text);
        }
    }
}
