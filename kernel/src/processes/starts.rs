//! What follows when a process runs, or could not be started.

use std::os::fd::OwnedFd;

use papa_protocol::json::push::EventType;
use papa_protocol::record::Stream;
use papa_test_hooks::failpoint;
use tracing::{error, info};

use crate::client::exchange::SessionId;
use crate::readers::Readers;
use crate::sys::process::move_up;
use crate::sys::spawn::Started;
use crate::world::World;
use crate::world::live::{Live, Source};
use crate::world::reel::Reel;
use crate::world::table::Entry;

/// The kernel's ends of a process's output.
#[derive(Debug)]
pub(crate) struct Streams {
    /// Read end of the standard output, if it is captured.
    pub out: Option<OwnedFd>,
    /// Read end of the standard error, if it is captured.
    pub err: Option<OwnedFd>,
    /// Where the output is kept.
    pub reel: Option<Reel>,
}

/// Records a process that runs, watches it, and tells those who subscribe to changes.
pub(crate) fn started(
    world: &mut World,
    readers: &mut Readers,
    session: SessionId,
    serial: u64,
    started: Started,
    streams: Streams,
) {
    let pid = started.pid.unsigned_abs();
    failpoint::reach("spawn.executed");
    if let (Some(errno), Some(groups)) = (started.outside, &mut world.cgroups) {
        groups.note_failure(errno);
    }
    world.commit_fact(Entry::Started { serial, pid });
    let Some(row) = world.table.process(serial) else {
        return;
    };
    info!(session, serial, pid, name = %row.make.name, "process made");
    let Streams { out, err, reel } = streams;
    let reel = reel.filter(|_| !row.removing);
    let live = Live::new(Some(move_up(started.pidfd)), out, err, reel);
    watch(world, serial, &live);
    world.live.insert(serial, live);
    readers.include_new(world, serial);
    readers.announce(world, serial, EventType::Made);
    failpoint::reach("spawn.started");
}

/// Has the poller report the end and the output of a process.
fn watch(world: &World, serial: u64, live: &Live) {
    let mut result = Ok(());
    if let Some(pidfd) = &live.pidfd {
        result = result.and(world.poller.add(pidfd, Source::Pidfd(serial)));
    }
    for stream in Stream::ALL {
        if let Some(pipe) = live.pipe(stream) {
            result = result.and(world.poller.add(pipe, Source::Pipe(serial, stream)));
        }
    }
    if let Err(errno) = result {
        error!(serial, %errno, "cannot watch a process for its end");
    }
}
