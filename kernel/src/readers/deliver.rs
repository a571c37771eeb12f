//! When output goes to whom: pushed, in batches, one under way in each session.
//!
//! Sessions with something to send are queued; a session that has written its last batch gets the
//! next, as large as what has come meanwhile. A reader costs only its position: the bytes stay in
//! the reel.

use std::time::Instant;

use papa_protocol::classic;
use papa_protocol::limits::MAX_BATCH_BYTES;

use super::Readers;
use super::batch::Batch;
use super::session::{Session, SubKind, WatchBatch};
use crate::client::exchange::{Expect, SessionId};
use crate::world::World;
use crate::world::deadline::Deadline;
use crate::world::live::{Live, Reader};

/// Most bytes a session without a consumer is sent at once: followers may be many and slow.
const FOLLOWER_BATCH_BYTES: usize = 256 * 1024;

impl Readers {
    /// Sends what is due to every session that can take it.
    pub(crate) fn deliver(&mut self, world: &mut World) {
        for id in std::mem::take(&mut self.ready) {
            if let Some(session) = self.sessions.get_mut(&id) {
                deliver_to(world, id, session);
            }
        }
    }
}

fn deliver_to(world: &mut World, id: SessionId, session: &mut Session) {
    if session.busy {
        return;
    }
    if let Some(until) = session.hold_until {
        if Instant::now() < until {
            world.agenda.at(until, Deadline::FirstBatch(id));
            return;
        }
        session.hold_until = None;
    }
    let only_looks = session
        .subs
        .values()
        .all(|sub| matches!(sub.kind, SubKind::Follow { .. } | SubKind::Changes));
    let mut batch = Batch::new(if only_looks {
        FOLLOWER_BATCH_BYTES
    } else {
        MAX_BATCH_BYTES
    });
    let marks = fill(world, id, session, &mut batch);
    if batch.broken {
        session.close();
        return;
    }
    if let Some(marks) = marks {
        batch
            .text
            .extend_from_slice(classic::WATCH_BATCH_END.as_bytes());
        session.watch_batch = Some(marks);
        session.send_batch(batch.finish(), Some(Expect::Acknowledgement));
    } else if !batch.is_empty() {
        session.send_batch(batch.finish(), None);
    }
}

/// Puts what the subscriptions of a session have to send into `batch`. What a classic watch's
/// answer will acknowledge is returned.
fn fill(
    world: &mut World,
    id: SessionId,
    session: &mut Session,
    batch: &mut Batch,
) -> Option<WatchBatch> {
    let mut watched = None;
    for (number, sub) in &mut session.subs {
        match sub.kind {
            SubKind::Changes => {}
            SubKind::Watch if session.watch_batch.is_some() => {}
            SubKind::Watch => {
                let mut marks = WatchBatch::new();
                batch.gather(sub, |batch, sub, serial| {
                    let (Some(row), Some(live)) =
                        (world.table.process(serial), world.live.get_mut(&serial))
                    else {
                        return false;
                    };
                    let consumer = is_consumer(live, id, *number);
                    batch.frames(sub, row, live, consumer, &mut marks)
                });
                if !marks.is_empty() {
                    watched = Some(marks);
                }
            }
            SubKind::Consume(_) | SubKind::Follow { .. } => {
                batch.gather(sub, |batch, sub, serial| {
                    let (Some(row), Some(live)) =
                        (world.table.process(serial), world.live.get_mut(&serial))
                    else {
                        return false;
                    };
                    let consumer = is_consumer(live, id, *number);
                    batch.messages(*number, sub, row, live, consumer)
                });
            }
        }
    }
    watched
}

fn is_consumer(live: &Live, session: SessionId, sub: u64) -> bool {
    live.consumer == Some(Reader { session, sub })
}
