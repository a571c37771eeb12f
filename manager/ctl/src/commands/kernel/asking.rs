//! Asking the first kernel that answers, for every verb of `papactl kernel`.

use papa_client::{Address, Client, ClientError};
use papa_protocol::json::request::ops;
use papa_protocol::json::status::StatusReply;

use super::{KernelError, block_on, connect, is_absent};
use crate::commands::CommandError;

/// Does `work` with the first kernel that answers.
pub(super) fn with_kernel<T>(
    addresses: &[Address],
    work: &impl AsyncFn(&Client) -> Result<T, ClientError>,
) -> Result<(Address, T), CommandError> {
    let found = block_on(async {
        for address in addresses {
            let failed = |source| KernelError::Failed {
                address: address.clone(),
                source,
            };
            match connect(address).await {
                Ok(client) => {
                    let result = work(&client).await.map_err(failed)?;
                    return Ok(Some((address.clone(), result)));
                }
                Err(error) if is_absent(address, &error) => {}
                Err(source) => return Err(KernelError::at(address, source)),
            }
        }
        Ok(None)
    })
    .map_err(KernelError::from)??;
    found.ok_or_else(|| {
        let places: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        CommandError::Failed(format!(
            "no kernel runs (looked at {}); `papactl up FILE` starts one",
            places.join(", ")
        ))
    })
}

/// Asks for the kernel's state.
pub(super) fn ask_status(addresses: &[Address]) -> Result<(Address, StatusReply), CommandError> {
    with_kernel(addresses, &async |client: &Client| {
        client.call(ops::Status {}).await
    })
}
