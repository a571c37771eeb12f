//! Starting the kernel, and ending what its workers have hidden.
//!
//! Leaves to others: finding it (`kernel_search`), and the verbs of `papactl kernel` (`verbs`).

use std::time::Duration;

use papa_client::Address;
use papa_protocol::json::request::ops;

use crate::commands::CommandError;
use crate::commands::programs::Background;
use papa_config::KernelEndpoint;
use papa_processes::tree::{Member, strays};
use papa_system::runtime_dir::{DEFAULT_KERNEL_PORT, RuntimeDir};

pub(super) use papa_control::kernel_search::{
    Examined, Kernel, KernelError, account, block_on, candidates, connect, connect_for,
    end_if_idle, examine, find, holder_of, is_absent, is_elsewhere, parse,
};

mod asking;
mod outcome;
mod upgrade;
pub(super) mod verbs;

/// Starts a kernel for `endpoint` and waits until it serves.
pub(super) fn start(
    directory: &RuntimeDir,
    endpoint: Option<&KernelEndpoint>,
    patience: Duration,
) -> Result<Kernel, CommandError> {
    let mut arguments = vec!["--daemonize".to_owned()];
    let port = match endpoint {
        Some(KernelEndpoint::Tcp(_, port)) => {
            arguments.extend(["--port".to_owned(), port.to_string()]);
            *port
        }
        Some(KernelEndpoint::Unix(path)) => {
            arguments.extend([
                "--unix-socket".to_owned(),
                path.to_string_lossy().into_owned(),
            ]);
            DEFAULT_KERNEL_PORT
        }
        Some(KernelEndpoint::Abstract(_)) | None => DEFAULT_KERNEL_PORT,
    };
    let log = directory.kernel_log(port);
    arguments.extend(["--log-file".to_owned(), log.to_string_lossy().into_owned()]);
    Background::start("papa", arguments, &log)?.wait(patience)?;
    let addresses = candidates(directory, endpoint)?;
    find(&addresses)?.ok_or_else(|| {
        let places: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        CommandError::Failed(format!(
            "papa was started but does not answer at any of {}",
            places.join(", ")
        ))
    })
}

/// Ends what workers have started and hidden, where the kernel at the first of `addresses` that
/// answers has no process any more. Answers who was ended.
pub(super) fn end_strays(addresses: &[Address]) -> Result<Vec<Member>, KernelError> {
    let found = block_on(async {
        for address in addresses {
            let Ok(client) = connect(address).await else {
                continue;
            };
            let status = client.call(ops::Status {}).await.ok()?;
            let pid = |number: u32| i32::try_from(number).unwrap_or(0);
            let found = strays::find(pid(status.pid), pid(status.keeper));
            // Asked after the look: whoever was seen is a process of nobody's, and who is started
            // from now on was not seen.
            let status = client.call(ops::Status {}).await.ok()?;
            return (status.counts.processes == 0).then_some(found);
        }
        None
    })?;
    let found = found.unwrap_or_default();
    strays::end(&found);
    Ok(found.iter().map(strays::Stray::member).collect())
}
