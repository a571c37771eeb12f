//! systemd's readiness datagrams.
//!
//! Owns the socket's making, its address, and what the datagrams mean. The address is abstract, so
//! that workers of any user and in any directory reach it, and random, so that no other worker's
//! messages ever arrive there. Who sends is checked: the worker's user, ours or root.
//! Source: `sd_notify(3)`.

use std::fs::File;
use std::io::{self, IoSliceMut, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, UnixAddr, UnixCredentials, recvmsg, setsockopt, sockopt,
};
use tokio::io::Interest;

use super::{ProbeError, shown};

/// Longest message read; systemd's own limit.
const MAX_MESSAGE_BYTES: usize = 4096;

/// A socket, and its address as `NOTIFY_SOCKET` has it.
pub(super) fn make() -> io::Result<(OwnedFd, String)> {
    let mut random = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    let name = format!("papa-notify-{:032x}", u128::from_ne_bytes(random));
    let address = SocketAddr::from_abstract_name(&name)?;
    let socket = UnixDatagram::bind_addr(&address)?;
    // Only ever ours and the kernel's: the flag disturbs nobody.
    socket.set_nonblocking(true)?;
    setsockopt(&socket, sockopt::PassCred, &true)?;
    Ok((socket.into(), format!("@{name}")))
}

/// The address of such a socket.
pub(super) fn address(socket: &OwnedFd) -> io::Result<String> {
    let socket = UnixDatagram::from(socket.try_clone()?);
    let address = socket.local_addr()?;
    let name = address
        .as_abstract_name()
        .and_then(|name| std::str::from_utf8(name).ok())
        .ok_or_else(|| io::Error::other("expected an abstract address"))?;
    Ok(format!("@{name}"))
}

/// Waits for `READY=1`; `last` is what there is to say if that does not come. What decides is left
/// in the socket, so that another manager decides alike should this one be killed before the answer
/// is kept.
pub(super) async fn wait(
    socket: OwnedFd,
    uid: Option<u32>,
    last: &mut Option<String>,
) -> Result<(), ProbeError> {
    let what = || ProbeError::io("notify socket");
    let socket = tokio::net::UnixDatagram::from_std(socket.into()).map_err(what())?;
    *last = Some("READY=1 was not sent to NOTIFY_SOCKET".to_owned());
    loop {
        let received = socket
            .async_io(Interest::READABLE, || receive(&socket, MsgFlags::MSG_PEEK))
            .await;
        let (bytes, sender) = received.map_err(what())?;
        if is_trusted(sender, uid) {
            let message = Message::parse(&bytes);
            if message.ready {
                return Ok(());
            }
            if message.stopping {
                return Err(ProbeError::NotReady(
                    "the worker says that it is stopping".to_owned(),
                ));
            }
            if let Some(status) = message.status {
                *last = Some(format!(
                    "READY=1 was not sent to NOTIFY_SOCKET, the last status was {status:?}"
                ));
            }
        } else {
            tracing::warn!(?sender, "ignoring a readiness message of another user");
        }
        // The one just looked at; nobody else receives here.
        receive(&socket, MsgFlags::empty()).map_err(what())?;
    }
}

fn receive(
    socket: &tokio::net::UnixDatagram,
    flags: MsgFlags,
) -> io::Result<(Vec<u8>, Option<u32>)> {
    let mut bytes = vec![0; MAX_MESSAGE_BYTES];
    // Room for who sent it, none for descriptors: those are closed by the system, which is all that
    // `BARRIER=1` asks for.
    let mut space = nix::cmsg_space!(UnixCredentials);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut space),
        flags | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let length = received.bytes;
    let sender = received.cmsgs().ok().and_then(|mut messages| {
        messages.find_map(|message| match message {
            ControlMessageOwned::ScmCredentials(sender) => Some(sender.uid()),
            _ => None,
        })
    });
    bytes.truncate(length);
    Ok((bytes, sender))
}

fn is_trusted(sender: Option<u32>, worker: Option<u32>) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    sender.is_some_and(|uid| uid == 0 || uid == own || Some(uid) == worker)
}

/// What one datagram says, as far as it matters.
#[derive(Debug, PartialEq, Eq, Default)]
struct Message {
    ready: bool,
    stopping: bool,
    status: Option<String>,
}

impl Message {
    fn parse(bytes: &[u8]) -> Self {
        let mut message = Self::default();
        for line in bytes.split(|byte| *byte == b'\n') {
            match line {
                b"READY=1" => message.ready = true,
                b"STOPPING=1" => message.stopping = true,
                _ => {
                    if let Some(status) = line.strip_prefix(b"STATUS=") {
                        message.status = Some(shown(status));
                    }
                }
            }
        }
        message
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn send(address: &str, bytes: &[u8]) -> io::Result<usize> {
        let name = SocketAddr::from_abstract_name(address.strip_prefix('@').unwrap())?;
        UnixDatagram::unbound()?.send_to_addr(bytes, &name)
    }

    #[tokio::test]
    async fn ready_is_heard_by_whoever_has_the_socket() {
        let (socket, address) = make().unwrap();
        let successor = socket.try_clone().unwrap();
        assert_eq!(super::address(&successor).unwrap(), address);
        let mut last = None;
        let waiting = wait(socket, None, &mut last);
        assert!(timeout(Duration::from_millis(20), waiting).await.is_err());
        send(&address, b"STATUS=half way\n").unwrap();
        let mut last = None;
        let waiting = wait(successor.try_clone().unwrap(), None, &mut last);
        assert!(timeout(Duration::from_millis(20), waiting).await.is_err());
        assert!(last.unwrap().contains("half way"));
        // Said while nobody listened.
        send(&address, b"STATUS=up\nREADY=1").unwrap();
        wait(successor.try_clone().unwrap(), None, &mut None)
            .await
            .unwrap();
        // Whoever heard it was killed before it could keep that: it is heard again.
        wait(successor, None, &mut None).await.unwrap();
        let error = send(&address, b"WATCHDOG=1").unwrap_err();
        assert_eq!(
            error.kind(),
            io::ErrorKind::ConnectionRefused,
            "senders never wait for nobody"
        );
    }

    #[tokio::test]
    async fn a_worker_that_stops_is_not_ready() {
        let (socket, address) = make().unwrap();
        send(&address, b"STOPPING=1").unwrap();
        let error = timeout(SOON, wait(socket, None, &mut None)).await.unwrap();
        assert!(error.unwrap_err().to_string().contains("stopping"));
    }

    #[test]
    fn only_whole_lines_count() {
        assert!(Message::parse(b"READY=1").ready);
        assert!(!Message::parse(b"READY=10\nXREADY=1\nready=1").ready);
        assert_eq!(Message::parse(b"STATUS=a\x1bb").status.unwrap(), "a\\x1bb");
    }

    #[test]
    fn strangers_are_not_trusted() {
        let own = nix::unistd::geteuid().as_raw();
        assert!(is_trusted(Some(0), None) && is_trusted(Some(own), None));
        assert!(is_trusted(Some(65_534), Some(65_534)));
        assert!(!is_trusted(Some(65_534), Some(1)) && !is_trusted(None, None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_some_message(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let status = Message::parse(&bytes).status;
            prop_assert!(status.is_none_or(|status| status.len() < 2000));
        }
    }
}
