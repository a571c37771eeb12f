//! Waiting for the first connection to a socket nobody serves.
//!
//! Owns looking at listeners without touching them: nothing is accepted, and no flag is changed,
//! because all holders of a socket share its flags.
//! Invariant: no wake-up without a reason is passed on, and none is repeated: readiness that has
//! gone is waited for anew.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use papa_client::Client;
use papa_protocol::json::request as ops;
use papa_protocol::name::Name;

use super::ProbeError;
use papa_system::sys;

/// Waits until one of the sockets, named as in the kernel, has a connection (or datagram) to be
/// taken; answers its index. One that waits already counts at once: after a start that did not take
/// it, pause before asking again.
///
/// # Errors
/// The kernel has no such socket, has none of its own to give (`so_reuseport`: every worker gets
/// another), or is reached over TCP.
///
/// # Cancel safety
/// Cancel safe: nothing is taken.
pub async fn wait(client: &Client, sockets: &[String]) -> Result<usize, ProbeError> {
    let mut fds = Vec::with_capacity(sockets.len());
    for name in sockets {
        let fetch = ops::SocketFetch {
            name: Name::new(name)?,
        };
        fds.push(client.call_for_descriptor(fetch).await?.1);
    }
    readable(fds).await.map_err(ProbeError::io("sockets"))
}

/// Waits until one of `fds` is readable and answers its index; for ever if there are none.
///
/// # Errors
/// A descriptor cannot be waited for: it is a file, or the system has no room.
///
/// # Cancel safety
/// Cancel safe.
pub async fn readable(fds: Vec<OwnedFd>) -> io::Result<usize> {
    let watched = fds
        .into_iter()
        .map(sys::watch)
        .collect::<io::Result<Vec<_>>>()?;
    std::future::poll_fn(|context| {
        for (index, fd) in watched.iter().enumerate() {
            // What is told is that something came, once. Whether it is there still has to be looked
            // up, since a worker may have been quicker; and only then may it be waited for again.
            while let std::task::Poll::Ready(guard) = fd.poll_read_ready(context) {
                match guard.map(|mut guard| {
                    let there = is_readable(fd.get_ref());
                    if matches!(there, Ok(false)) {
                        guard.clear_ready();
                    }
                    there
                }) {
                    Ok(Ok(true)) => return std::task::Poll::Ready(Ok(index)),
                    Ok(Ok(false)) => {}
                    Ok(Err(error)) | Err(error) => return std::task::Poll::Ready(Err(error)),
                }
            }
        }
        std::task::Poll::Pending
    })
    .await
}

fn is_readable(fd: &OwnedFd) -> io::Result<bool> {
    let mut look = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut look, PollTimeout::ZERO)?;
    Ok(look[0].any().unwrap_or(true))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::time::Duration;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);
    const NOT_YET: Duration = Duration::from_millis(20);

    fn copy(socket: &impl AsFd) -> OwnedFd {
        socket.as_fd().try_clone_to_owned().unwrap()
    }

    #[tokio::test]
    async fn a_connection_is_seen_and_left_to_others() {
        let quiet = TcpListener::bind("127.0.0.1:0").unwrap();
        let busy = TcpListener::bind("127.0.0.1:0").unwrap();
        let waiting = readable(vec![copy(&quiet), copy(&busy)]);
        tokio::pin!(waiting);
        assert!(timeout(NOT_YET, &mut waiting).await.is_err());
        let _client = TcpStream::connect(busy.local_addr().unwrap()).unwrap();
        assert_eq!(timeout(SOON, &mut waiting).await.unwrap().unwrap(), 1);
        // Level-triggered: it waits still, and it is still there for whoever accepts.
        let again = readable(vec![copy(&busy)]);
        assert_eq!(timeout(SOON, again).await.unwrap().unwrap(), 0);
        let flags = OFlag::from_bits_retain(fcntl(&busy, FcntlArg::F_GETFL).unwrap());
        assert!(!flags.contains(OFlag::O_NONBLOCK), "the flags were changed");
        busy.accept().unwrap();
        assert!(
            timeout(NOT_YET, readable(vec![copy(&busy)])).await.is_err(),
            "nobody is there any more"
        );
    }

    #[tokio::test]
    async fn one_that_somebody_else_took_is_waited_for_anew() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = socket.local_addr().unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let waiting = readable(vec![copy(&socket)]);
        tokio::pin!(waiting);
        assert!(timeout(NOT_YET, &mut waiting).await.is_err());
        client.send_to(b"x", to).unwrap();
        // Taken before we are polled.
        socket.recv(&mut [0; 8]).unwrap();
        assert!(timeout(NOT_YET, &mut waiting).await.is_err());
        client.send_to(b"y", to).unwrap();
        assert_eq!(timeout(SOON, &mut waiting).await.unwrap().unwrap(), 0);
    }
}
