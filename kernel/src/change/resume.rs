//! After a change of program: goes on with the sessions where they stopped.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use papa_test_hooks::failpoint;
use tracing::{error, info, warn};

use crate::change::handover::{Change, HandOver, SessionRecord, SubRecord};
use crate::change::recover::Resumption;
use crate::change::upgrade::own_file;
use crate::client::exchange::SessionId;
use crate::client::server::Server;
use crate::keeper::wire::{Key, Kind, Verdict};
use crate::owner::Owner;
use crate::readers::session::{FIRST_BATCH_DELAY, Session, Subscription};
use crate::sys::pidfd::Outcome;
use crate::world::Holder;
use crate::world::live::Reader;

/// How long the keeper may go back to the program before, with time to spare.
const PROBATION: Duration = Duration::from_secs(30);

impl Owner {
    /// Takes what was handed over and goes on with it; answers the change that
    /// led to it. Called once, when the keeper knows that this program serves,
    /// and before any output is taken, so that all of it is told.
    pub(crate) fn resume_sessions(
        &mut self,
        server: &Server,
        handed: Resumption,
    ) -> Option<(Change, Option<Verdict>)> {
        self.server = Some(server.clone());
        if handed.kept.is_empty() {
            return None;
        }
        // Before anything is said or heard: whoever comes after us must not
        // say it again.
        let keys: Vec<Key> = handed.kept.iter().map(|(key, _)| *key).collect();
        let told = self.world.link.drop_keys(&keys);
        self.check_keeper_with(told, &handed.kept);
        failpoint::reach("upgrade.taken");
        let (mut record, mut descriptors) = (None, HashMap::new());
        for (key, fd) in handed.kept {
            match key.kind {
                Kind::HANDOVER => record = Some(HandOver::read(fd)),
                Kind::BINARY => {
                    self.change.before = Some(fd);
                    self.world.older_may_return = Some(Instant::now() + PROBATION);
                }
                _ => {
                    descriptors.insert(key.id, fd);
                }
            }
        }
        let record = match record {
            None => return None,
            Some(Ok(record)) => record,
            Some(Err(errno)) => {
                error!(%errno, "cannot read the handed-over sessions; closing them");
                return None;
            }
        };
        for delivered in &record.processes {
            if let Some(live) = self.world.live.get_mut(&delivered.serial) {
                live.delivered_to = live.delivered_to.max(delivered.to.min(live.committed()));
                live.delivered = live.delivered.max(delivered.bytes);
            }
        }
        if record.left_out > 0 {
            let sessions = record.left_out;
            warn!(
                sessions,
                "cannot be understood by this version; they are closed"
            );
        }
        let count = record.sessions.len();
        for session in record.sessions {
            self.resume_session(server, session, &mut descriptors);
        }
        for delivered in record.processes {
            let consumer = delivered
                .consumer
                .map(|(session, sub)| Reader { session, sub });
            if let Some(live) = self.world.live.get_mut(&delivered.serial)
                && let Some(reader) = consumer
                && live.readers.contains(&reader)
            {
                live.consumer = Some(reader);
            }
        }
        info!(sessions = count, "sessions go on");
        Some((record.change, handed.verdict))
    }

    fn resume_session(
        &mut self,
        server: &Server,
        record: SessionRecord,
        descriptors: &mut HashMap<u64, OwnedFd>,
    ) {
        let id = record.id;
        let Some(socket) = descriptors.remove(&record.connection.socket) else {
            warn!(
                session = id,
                "socket of a session is missing; closing the session"
            );
            return;
        };
        let take = |number| descriptors.remove(&number);
        let outbox = match server.resume(id, socket, record.peer.tcp, record.connection, take) {
            Ok(outbox) => outbox,
            Err(error) => {
                warn!(session = id, %error, "cannot resume a session after the change of program; closing it");
                return;
            }
        };
        let mut session = Session::new(id, record.peer, outbox);
        session.client = record.client;
        session.json = record.json;
        session.busy = record.busy;
        session.queued = record.queued;
        session.next_sub = record.next_sub.max(1);
        session.hold_until = record.held_back.then(|| Instant::now() + FIRST_BATCH_DELAY);
        session.watch_batch = record.watch_batch;
        session.lost = record.lost.into_iter().collect();
        for namespace in record.claims {
            let peer = record.peer;
            let holder = Holder { session: id, peer };
            self.world.claims.insert(namespace, holder);
        }
        session.subs = record
            .subs
            .into_iter()
            .map(|(number, sub)| (number, self.resume_sub(id, number, sub)))
            .collect();
        session.end_watch_of_nothing();
        self.readers.sessions.insert(id, session);
        self.readers.ready.insert(id);
    }

    fn resume_sub(&mut self, session: SessionId, number: u64, record: SubRecord) -> Subscription {
        let mut sub = Subscription::new(record.kind, record.patterns);
        sub.seq = record.seq;
        for (serial, cursor) in record.cursors {
            let Some(live) = self.world.live.get_mut(&serial) else {
                continue;
            };
            live.readers.push(Reader {
                session,
                sub: number,
            });
            sub.cursors.insert(serial, cursor);
            sub.mark(serial);
        }
        sub
    }

    /// The program has changed, or has not: answers, or goes on to the keeper.
    pub(crate) fn go_on_changing(&mut self, change: &Change, verdict: Option<Verdict>) {
        if *change == Change::default() {
            // The keeper died, and nobody had asked for anything.
            self.change.before = None;
            return;
        }
        let before = self.world.link.keeper().as_raw() == change.keeper_before;
        let failed = match verdict {
            Some(Verdict::Late) => Some("did not serve in time".to_owned()),
            Some(Verdict::Ended(Outcome::Code(code))) => {
                Some(format!("exited with code {code} before it served"))
            }
            Some(Verdict::Ended(Outcome::Signal { number, .. })) => {
                Some(format!("was ended by signal {number} before it served"))
            }
            // A keeper of an earlier version does not say why.
            None if own_file() != Some(change.to) || (change.succession && before) => {
                Some("did not serve".to_owned())
            }
            None => None,
        };
        if let Some(reason) = failed {
            let reason = if change.succession {
                format!(
                    "the kernel has changed to {}, but what was to take the keeper's place {reason}; the keeper before goes on, and the log says more",
                    change.to_path
                )
            } else {
                format!(
                    "{} {reason}; the program before goes on, and the log says more",
                    change.to_path
                )
            };
            return self.answer_change(change, Err(reason));
        }
        if let Some(path) = &change.path {
            self.remember_program(path);
        }
        if change.keeper && before {
            if let Err(reason) = self.begin_with_keeper(change.clone()) {
                self.answer_change(change, Err(reason));
            }
            return;
        }
        self.answer_change(change, Ok(false));
    }
}
