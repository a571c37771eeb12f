//! s6's readiness: a line written to a descriptor.
//!
//! Owns the pipe's making and the end of the wait: a newline, or the end of the stream after
//! something was written. The end without anything is a no. Bytes without a newline alone are not
//! taken for a yes, since the rest of the line would then meet a closed pipe and kill its writer.
//! Source: s6, "notifywhenup".

use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, tee};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::time::timeout;

use super::ProbeError;
use papa_system::sys;

/// A line is read so far; longer ones count as a yes without their end.
const MAX_LINE_BYTES: usize = 4096;
/// Systems before Linux 5.14 do not tell of a second write while the first is unread.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Our end and the worker's.
pub(super) fn make() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, its) = io::pipe()?;
    Ok((ours.into(), its.into()))
}

/// Waits for the line at our end of descriptor `number`. Nothing is taken out of the pipe, so that
/// another manager decides alike should this one be killed before the answer is kept.
pub(super) async fn wait(ours: OwnedFd, number: u32) -> Result<(), ProbeError> {
    let what = || ProbeError::io(format!("readiness pipe, descriptor {number}"));
    let ours = sys::watch(ours).map_err(what())?;
    loop {
        let ready = timeout(LOOK_AGAIN, ours.readable()).await;
        match look(ours.get_ref()).map_err(what())? {
            Content::Line => return Ok(()),
            Content::Nothing => {
                return Err(ProbeError::NotReady(format!(
                    "descriptor {number} was closed and nothing written to it"
                )));
            }
            Content::Unfinished => {
                if let Ok(guard) = ready {
                    guard.map_err(what())?.clear_ready();
                }
            }
        }
    }
}

/// What is in a pipe.
enum Content {
    /// A line, or the last words of somebody who closed it.
    Line,
    /// No line yet.
    Unfinished,
    /// Nothing, and nobody who could write.
    Nothing,
}

fn look(pipe: &OwnedFd) -> io::Result<Content> {
    // Asked first: what was written before the end is then seen.
    let mut look = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    poll(&mut look, PollTimeout::ZERO)?;
    let closed = look[0]
        .revents()
        .is_some_and(|found| found.contains(PollFlags::POLLHUP));
    let (mut copy, into) = io::pipe()?;
    let mut bytes = vec![0; MAX_LINE_BYTES];
    let length = match tee(pipe, &into, MAX_LINE_BYTES, SpliceFFlags::SPLICE_F_NONBLOCK) {
        Ok(0) | Err(Errno::EAGAIN) => 0,
        Ok(_) => copy.read(&mut bytes)?,
        Err(errno) => return Err(errno.into()),
    };
    let bytes = &bytes[..length];
    Ok(match length {
        0 if closed => Content::Nothing,
        1.. if closed || bytes.contains(&b'\n') || length == MAX_LINE_BYTES => Content::Line,
        _ => Content::Unfinished,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    async fn after(bytes: &[u8]) -> Result<(), ProbeError> {
        let (ours, its) = make().unwrap();
        std::fs::File::from(its).write_all(bytes).unwrap();
        timeout(SOON, wait(ours, 3)).await.unwrap()
    }

    #[tokio::test]
    async fn a_line_or_anything_before_the_end_is_a_yes() {
        after(b"\n").await.unwrap();
        after(b"READY\n").await.unwrap();
        after(b"x").await.unwrap();
        let error = after(b"").await.unwrap_err();
        assert!(error.to_string().contains("descriptor 3"), "{error}");
    }

    #[tokio::test]
    async fn half_a_line_is_waited_for() {
        let (ours, its) = make().unwrap();
        let copy = ours.try_clone().unwrap();
        let mut its = std::fs::File::from(its);
        its.write_all(b"REA").unwrap();
        let waiting = wait(ours, 3);
        tokio::pin!(waiting);
        assert!(
            timeout(Duration::from_millis(20), &mut waiting)
                .await
                .is_err()
        );
        its.write_all(b"DY\n").unwrap();
        // The manager was killed before it could keep the answer: its successor gets the same.
        timeout(SOON, wait(copy, 3)).await.unwrap().unwrap();
        timeout(SOON, waiting).await.unwrap().unwrap();
    }
}
