//! Messages of a manager that waits for a kernel: where it looks, why that fails, how to start one.

use papa_client::{Address, ClientError};

use crate::runtime_dir::DEFAULT_KERNEL_PORT;
use papa_control::kernel_search::is_absent;

/// Why there is no connection to a kernel, in one clause: no kernel runs at any address, or the first
/// address with another error.
pub(super) fn reason(addresses: &[Address], error: &ClientError) -> String {
    let attempts = match error {
        ClientError::Connect(attempts) => attempts.as_slice(),
        _ => &[],
    };
    let other = attempts
        .iter()
        .find(|(address, error)| !is_absent(address, error));
    match other {
        Some((address, error)) => format!("the kernel at {address} cannot be used: {error}"),
        None if attempts.is_empty() => error.to_string(),
        None => format!("no kernel runs at {}", place(addresses)),
    }
}

/// The command that starts a kernel at one of these addresses.
pub(super) fn command(addresses: &[Address]) -> String {
    match addresses.last() {
        Some(Address::Tcp(address)) if address.port() != DEFAULT_KERNEL_PORT => {
            format!("papa --daemonize --port {}", address.port())
        }
        Some(Address::Unix(_)) => {
            format!("papa --daemonize --unix-socket {}", place(addresses))
        }
        _ => "papa --daemonize".to_owned(),
    }
}

/// The place that `addresses` lead to: the last one; the others are further ways to it.
pub(super) fn place(addresses: &[Address]) -> String {
    match addresses.last() {
        Some(Address::Tcp(address)) if address.ip().is_loopback() => {
            format!("port {}", address.port())
        }
        Some(address) => address.to_string(),
        None => "any address".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn refused(kind: io::ErrorKind) -> ClientError {
        ClientError::Io(kind.into())
    }

    #[test]
    fn a_manager_that_waited_listed_raw_errors() {
        let parse = |text: &str| text.parse::<Address>().unwrap();
        let port = |port: u16| {
            vec![
                parse(&format!("unix:/run/papa/{port}.sock")),
                parse(&format!("@papa/0/{port}")),
                parse(&format!("127.0.0.1:{port}")),
            ]
        };
        let failed = |addresses: &[Address], kind| {
            let attempts = addresses.iter().cloned();
            ClientError::Connect(attempts.map(|address| (address, refused(kind))).collect())
        };
        for (addresses, place, program) in [
            (port(20202), "port 20202", "papa --daemonize"),
            (port(20203), "port 20203", "papa --daemonize --port 20203"),
            (
                vec![parse("unix:/tmp/k.sock")],
                "/tmp/k.sock",
                "papa --daemonize --unix-socket /tmp/k.sock",
            ),
        ] {
            let absent = failed(&addresses, io::ErrorKind::ConnectionRefused);
            assert_eq!(
                reason(&addresses, &absent),
                format!("no kernel runs at {place}")
            );
            assert_eq!(command(&addresses), program);
            let odd = failed(&addresses, io::ErrorKind::TimedOut);
            assert_eq!(
                reason(&addresses, &odd),
                format!("the kernel at {} cannot be used: timed out", addresses[0])
            );
        }
        assert_eq!(
            reason(&[], &ClientError::Closed),
            ClientError::Closed.to_string()
        );
    }
}
