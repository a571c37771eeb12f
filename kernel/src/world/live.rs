//! What the running kernel holds for one process: pidfd, pipes, reel, and who reads.
//!
//! The table says what exists; everything here can be rebuilt from the keeper's descriptors.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use papa_protocol::limits::STALL_LIMIT;
use papa_protocol::process::{Ends, Ledger, Overflow};
use papa_protocol::record::Stream;

use crate::client::exchange::SessionId;
use crate::sys::poller;
use crate::world::reel::{Capture, Reel};

/// What a readiness report is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The process with this serial has ended.
    Pidfd(u64),
    /// One of its streams has something or is at its end.
    Pipe(u64, Stream),
    /// The keeper has sent a message or is gone.
    Keeper,
    /// A signal arrived.
    Signal,
    /// A deadline may have come.
    Alarm,
}

const KEEPER_TOKEN: u64 = u64::MAX;
const SIGNAL_TOKEN: u64 = u64::MAX - 1;
const ALARM_TOKEN: u64 = u64::MAX - 2;

/// Watches the descriptors of all processes through one, so that a process costs no task and no
/// entry in the runtime's own poll.
pub type Poller = poller::Poller<Source>;

impl poller::Token for Source {
    fn token(self) -> u64 {
        match self {
            Self::Pidfd(serial) => serial << 2,
            Self::Pipe(serial, stream) => serial << 2 | u64::from(stream.number()),
            Self::Keeper => KEEPER_TOKEN,
            Self::Signal => SIGNAL_TOKEN,
            Self::Alarm => ALARM_TOKEN,
        }
    }

    fn from_token(token: u64) -> Self {
        match (token, Stream::from_number(token & 3)) {
            (KEEPER_TOKEN, _) => Self::Keeper,
            (SIGNAL_TOKEN, _) => Self::Signal,
            (ALARM_TOKEN, _) => Self::Alarm,
            (token, Some(stream)) => Self::Pipe(token >> 2, stream),
            (token, None) => Self::Pidfd(token >> 2),
        }
    }
}

/// One reader of a process's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reader {
    /// Its session.
    pub session: SessionId,
    /// The subscription in that session.
    pub sub: u64,
}

/// Whether a full reel makes its writer wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    /// The oldest output goes instead.
    No,
    /// Until then.
    Until(Instant),
    /// As long as it takes.
    ForEver,
}

/// What the kernel holds for one process.
#[derive(Debug)]
pub struct Live {
    /// Its pidfd, until the exit is known.
    pub pidfd: Option<OwnedFd>,
    /// Read end of its standard output, until that ends.
    pub out: Option<OwnedFd>,
    /// Read end of its standard error, until that ends.
    pub err: Option<OwnedFd>,
    /// Where the streams ended.
    pub ends: Ends,
    /// Its output; none if nothing is captured.
    pub reel: Option<Reel>,
    /// This process is the parent, so it has to wait for the child.
    pub own_child: bool,
    /// The keeper is the parent and will report the exit.
    pub adopted: bool,
    /// Since when the kernel has been trying to find out how it ended.
    pub lookup_since: Option<Instant>,
    /// One of the pipes was made larger.
    pub large_pipe: bool,
    /// Where the output of a closed reel went.
    pub closed: Ledger,
    /// Has ended and not been waited for, so that its number stays taken.
    pub zombie: bool,
    /// Since the exit the pipes were found empty: what comes now is late
    /// output of others.
    pub drained: bool,
    /// First position no consumer was sent yet.
    pub delivered_to: u64,
    /// Bytes consumers were sent, each counted once.
    pub delivered: u64,
    /// Who reads.
    pub readers: Vec<Reader>,
    /// The one who acknowledges, where there is one.
    pub consumer: Option<Reader>,
    /// When a consumer last acknowledged, said that it is at work, or became the consumer. After a
    /// recovery: when that was, since the consumer may be on its way back.
    pub last_ack: Option<Instant>,
    /// When the reel was found full with the pipes unread.
    pub full_since: Option<Instant>,
    /// When it is looked whether its consumer has acknowledged meanwhile.
    pub stall_at: Option<Instant>,
    /// The consumer did not acknowledge in time; the oldest goes until it
    /// does.
    pub stalled: bool,
    /// The pipes are not watched.
    pub paused: bool,
    /// Why output could not be stored, since it last was.
    pub trouble: Option<Errno>,
    /// Why output could not be let go, since it last could.
    pub release_trouble: Option<Errno>,
}

impl Live {
    /// A process with these descriptors.
    #[must_use]
    pub fn new(
        pidfd: Option<OwnedFd>,
        out: Option<OwnedFd>,
        err: Option<OwnedFd>,
        reel: Option<Reel>,
    ) -> Self {
        let start = reel.as_ref().map_or(0, Reel::start);
        let kept_back = reel
            .as_ref()
            .map_or(0, |reel| reel.start() - reel.dropped());
        Self {
            pidfd,
            out,
            err,
            ends: Ends::default(),
            reel,
            own_child: true,
            adopted: false,
            lookup_since: None,
            large_pipe: false,
            closed: Ledger::default(),
            zombie: false,
            drained: false,
            delivered_to: start,
            delivered: kept_back,
            readers: Vec::new(),
            consumer: None,
            last_ack: None,
            full_since: None,
            stall_at: None,
            stalled: false,
            paused: false,
            trouble: None,
            release_trouble: None,
        }
    }

    /// Notes how letting output go went; an errno that was not said yet comes
    /// back, to be said once.
    pub fn note_release(&mut self, released: Result<u64, Errno>) -> Option<Errno> {
        let before = std::mem::replace(&mut self.release_trouble, released.err());
        released.err().filter(|errno| before != Some(*errno))
    }

    /// The read end of `stream`, while it is open.
    #[must_use]
    pub fn pipe(&self, stream: Stream) -> Option<BorrowedFd<'_>> {
        match stream {
            Stream::Out => self.out.as_ref(),
            Stream::Err => self.err.as_ref(),
        }
        .map(AsFd::as_fd)
    }

    /// Takes what one stream has into the reel: no more than there is room for
    /// if the writer `waits` when it is full.
    ///
    /// # Errors
    /// As [`Reel::capture`].
    pub fn capture(&mut self, stream: Stream, waits: bool, now_us: u64) -> Result<Capture, Errno> {
        let pipe = match stream {
            Stream::Out => self.out.as_ref(),
            Stream::Err => self.err.as_ref(),
        };
        match (pipe, &mut self.reel) {
            (Some(pipe), Some(reel)) => {
                let most = if waits {
                    reel.filling_step()
                } else {
                    reel.dropping_step()
                };
                reel.capture(pipe, stream, most, now_us)
            }
            _ => Ok(Capture::Empty),
        }
    }

    /// Position one past everything captured.
    #[must_use]
    pub fn committed(&self) -> u64 {
        self.reel.as_ref().map_or(0, Reel::committed)
    }

    /// Whether the writer waits once the reel is full, and if so until when:
    /// while a consumer acknowledges, and as long after it was last heard of
    /// (it may be on its way back).
    #[must_use]
    pub fn waits_until(&self, overflow: Overflow, now: Instant) -> Waits {
        let patience = match (overflow, self.last_ack) {
            (Overflow::Block, _) => return Waits::ForEver,
            (Overflow::DropOldest, _) => return Waits::No,
            (Overflow::Auto, _) if self.stalled => return Waits::No,
            (Overflow::Auto, None) => return Waits::No,
            (Overflow::Auto, Some(ack)) if self.consumer.is_none() => ack + STALL_LIMIT,
            // Acknowledging is due only from when it is full.
            (Overflow::Auto, Some(ack)) => self.full_since.unwrap_or(now).max(ack) + STALL_LIMIT,
        };
        if patience > now {
            Waits::Until(patience)
        } else {
            Waits::No
        }
    }

    /// First position still kept.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.reel.as_ref().map_or(0, Reel::start)
    }

    /// Whether both streams are at their end (or were never captured).
    #[must_use]
    pub fn streams_ended(&self) -> bool {
        self.out.is_none() && self.err.is_none()
    }

    /// Where the output went so far.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        let Some(reel) = &self.reel else {
            return self.closed;
        };
        let acknowledged = reel.start() - reel.dropped();
        Ledger {
            captured: reel.committed(),
            // What is acknowledged was delivered: by a kernel before us, which alone had counted
            // it, or as the reel itself.
            delivered: self.delivered.max(acknowledged),
            acknowledged,
            dropped: reel.dropped(),
        }
    }

    /// Closes the reel; what was not acknowledged counts as dropped.
    pub fn close_reel(&mut self) {
        let mut ledger = self.ledger();
        ledger.dropped = ledger.captured - ledger.acknowledged;
        self.closed = ledger;
        self.reel = None;
    }

    /// Counts bytes sent to a consumer, each once.
    pub fn count_delivered(&mut self, start: u64, end: u64) {
        let from = start.max(self.delivered_to);
        if end > from {
            self.delivered += end - from;
            self.delivered_to = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::poller::Token as _;
    use nix::fcntl::OFlag;

    #[test]
    fn tokens_read_back() {
        for source in [
            Source::Pidfd(0),
            Source::Pidfd(1 << 60),
            Source::Pipe(3, Stream::Out),
            Source::Pipe(3, Stream::Err),
            Source::Keeper,
            Source::Signal,
            Source::Alarm,
        ] {
            assert_eq!(Source::from_token(source.token()), source);
        }
    }

    #[test]
    fn output_that_could_not_be_let_go_was_logged_at_each_try() {
        let mut live = Live::new(None, None, None, None);
        let said = [
            Err(Errno::ENOSPC),
            Err(Errno::ENOSPC),
            Err(Errno::EIO),
            Ok(1),
            Err(Errno::EIO),
        ]
        .map(|released| live.note_release(released));
        let (nospc, io) = (Some(Errno::ENOSPC), Some(Errno::EIO));
        assert_eq!(said, [nospc, None, io, None, io]);
    }

    #[test]
    fn a_removed_pipe_reports_no_more_even_if_a_copy_stays_open() {
        let poller = Poller::new().unwrap();
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        let _copy = read.try_clone().unwrap();
        poller.add(&read, Source::Pipe(1, Stream::Out)).unwrap();
        nix::unistd::write(&write, b"x").unwrap();
        assert_eq!(poller.ready().unwrap(), [Source::Pipe(1, Stream::Out)]);
        poller.remove(&read);
        assert_eq!(poller.ready().unwrap(), []);
    }
}
