//! Who reads what: watches, consumers, followers, changes.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use papa_protocol::json::ErrorCode;
use papa_protocol::json::request::{Delivery, FollowFrom};
use papa_protocol::limits::MAX_SUBSCRIPTIONS_PER_SESSION;
use papa_protocol::name::NamePattern;
use papa_protocol::record::Serial;
use papa_test_hooks::failpoint;

use super::held::duplicate_failed;
use super::{VerbError, fail, limit, not_recorded};
use crate::client::exchange::SessionId;
use crate::owner::Owner;
use crate::readers::session::{FIRST_BATCH_DELAY, SubKind, Subscription};
use crate::world::live::Reader;
use crate::world::table::{Entry, Matcher};

impl Owner {
    fn subscribe_session(
        &mut self,
        session: SessionId,
        kind: SubKind,
        patterns: Vec<NamePattern>,
    ) -> Result<u64, VerbError> {
        let Some(session) = self.sessions.get_mut(&session) else {
            return Err(fail(ErrorCode::Internal, "the session is gone"));
        };
        if session.subs.len() >= MAX_SUBSCRIPTIONS_PER_SESSION {
            return Err(limit(
                "subscriptions in this session",
                MAX_SUBSCRIPTIONS_PER_SESSION,
            ));
        }
        Ok(session.add_sub(Subscription::new(kind, patterns)))
    }

    /// Starts a classic watch of these processes. It acknowledges, unless
    /// their namespace is claimed by someone else or the transport is
    /// read-only: then it only looks.
    ///
    /// # Errors
    /// The session has too many subscriptions.
    pub(crate) fn watch(&mut self, session: SessionId, serials: &[u64]) -> Result<(), VerbError> {
        let sub = self.subscribe_session(session, SubKind::Watch, Vec::new())?;
        if let Some(session) = self.sessions.get_mut(&session) {
            session.hold_until = Some(Instant::now() + FIRST_BATCH_DELAY);
        }
        let reader = Reader { session, sub };
        for serial in serials {
            let start = self
                .world
                .live
                .get(serial)
                .map_or(0, crate::world::live::Live::start);
            let consume = self.watch_acknowledges(session, *serial)
                && self
                    .world
                    .live
                    .get(serial)
                    .is_some_and(|live| live.consumer.is_none());
            self.attach(reader, *serial, start, consume);
        }
        Ok(())
    }

    /// Whether a classic watcher's acknowledgement of this process counts.
    pub(crate) fn watch_acknowledges(&self, session: SessionId, serial: u64) -> bool {
        self.may_write(session).is_ok()
            && self
                .world
                .table
                .process(serial)
                .is_some_and(|row| !self.is_claimed_by_other(session, &row.make.name))
    }

    /// Makes a session the consumer of what matches, now and later.
    ///
    /// # Errors
    /// `claimed` when another session consumes one of them and `force` is not
    /// given, or when the namespace is someone else's.
    pub(crate) fn consume(
        &mut self,
        session: SessionId,
        patterns: Vec<NamePattern>,
        bytes: Delivery,
        force: bool,
    ) -> Result<u64, VerbError> {
        self.may_write(session)?;
        let serials = self.readable(&patterns);
        for serial in &serials {
            let Some(row) = self.world.table.process(*serial) else {
                continue;
            };
            self.may_change(session, &row.make.name, force)?;
            let other = self
                .world
                .live
                .get(serial)
                .and_then(|live| live.consumer)
                .filter(|consumer| consumer.session != session);
            if other.is_some() && !force {
                return Err(fail(
                    ErrorCode::Claimed,
                    &format!(
                        "the output of {} has a consumer; take over with force, or follow",
                        row.make.name
                    ),
                ));
            }
        }
        let sub = self.subscribe_session(session, SubKind::Consume(bytes), patterns)?;
        let reader = Reader { session, sub };
        for serial in serials {
            let start = self
                .world
                .live
                .get(&serial)
                .map_or(0, crate::world::live::Live::start);
            self.attach(reader, serial, start, true);
        }
        Ok(sub)
    }

    /// Has a session look at what matches, now and later.
    ///
    /// # Errors
    /// The session has too many subscriptions.
    pub(crate) fn follow(
        &mut self,
        session: SessionId,
        patterns: Vec<NamePattern>,
        from: FollowFrom,
    ) -> Result<u64, VerbError> {
        let serials = self.readable(&patterns);
        let kind = SubKind::Follow {
            from_start: from == FollowFrom::Start,
        };
        let sub = self.subscribe_session(session, kind, patterns)?;
        let reader = Reader { session, sub };
        for serial in serials {
            let position = self.world.live.get(&serial).map_or(0, |live| match from {
                FollowFrom::Now => live.committed(),
                FollowFrom::Start => live.start(),
            });
            self.attach(reader, serial, position, false);
        }
        Ok(sub)
    }

    /// Has a session told of changes.
    ///
    /// # Errors
    /// The session has too many subscriptions.
    pub(crate) fn subscribe_changes(
        &mut self,
        session: SessionId,
        patterns: Vec<NamePattern>,
    ) -> Result<u64, VerbError> {
        self.subscribe_session(session, SubKind::Changes, patterns)
    }

    /// Ends a subscription.
    ///
    /// # Errors
    /// `not_found` when the session has none of that number.
    pub(crate) fn stop_subscription(
        &mut self,
        session: SessionId,
        number: u64,
    ) -> Result<(), VerbError> {
        let sub = self
            .sessions
            .get_mut(&session)
            .and_then(|session| session.subs.remove(&number));
        let Some(sub) = sub else {
            return Err(fail(
                ErrorCode::NotFound,
                &format!("there is no subscription {number} in this session"),
            ));
        };
        self.detach(session, sub.cursors.into_keys());
        Ok(())
    }

    /// Acknowledges output as a consumer; without positions it is a sign of
    /// life.
    ///
    /// # Errors
    /// `not_found` for an unknown serial, `denied` for one that this session
    /// does not consume; the acknowledgements before it count.
    pub(crate) fn acknowledge_all(
        &mut self,
        session: SessionId,
        acks: BTreeMap<Serial, u64>,
    ) -> Result<(), VerbError> {
        if acks.is_empty() {
            self.hear_of(session);
        }
        let mut missed = None;
        for (Serial(serial), position) in acks {
            let Some(live) = self.world.live.get(&serial) else {
                // Forgotten meanwhile, output and all: nothing is lost.
                continue;
            };
            if live
                .consumer
                .is_some_and(|consumer| consumer.session == session)
            {
                self.acknowledge(serial, position);
            } else {
                missed = Some(serial);
            }
        }
        missed.map_or(Ok(()), |serial| {
            Err(fail(
                ErrorCode::Denied,
                &format!("process {serial}: only its consumer may acknowledge"),
            ))
        })
    }

    /// Notes that a consumer is at work though it has nothing to acknowledge
    /// yet: writers wait for it as if it had. It speaks for every session of
    /// its process, whose others may be held up by that very work, and for
    /// output nobody consumes in a namespace its process has claimed: there
    /// it is on its way.
    fn hear_of(&mut self, session: SessionId) {
        let now = Instant::now();
        let heard: Vec<u64> = self
            .world
            .live
            .iter()
            .filter(|(serial, live)| match live.consumer {
                Some(consumer) => self.is_same_process(consumer.session, session),
                None => self
                    .world
                    .table
                    .process(**serial)
                    .and_then(|row| self.world.claim_holder(&row.make.name))
                    .is_some_and(|holder| self.is_same_process(holder, session)),
            })
            .map(|(serial, _)| *serial)
            .collect();
        for serial in heard {
            if let Some(live) = self.world.live.get_mut(&serial) {
                live.last_ack = Some(now);
                live.stalled = false;
            }
        }
    }

    /// Acknowledges exits as a consumer; unknown serials are done already.
    ///
    /// # Errors
    /// `denied` for a process another client consumes or that still runs.
    pub(crate) fn acknowledge_exits(
        &mut self,
        session: SessionId,
        serials: Vec<Serial>,
    ) -> Result<(), VerbError> {
        for Serial(serial) in serials {
            let Some(row) = self.world.table.process(serial) else {
                continue;
            };
            if row.exit.is_none() {
                return Err(fail(
                    ErrorCode::Denied,
                    &format!("process {serial} has not ended"),
                ));
            }
            self.may_change(session, &row.make.name, false)?;
            let other = self
                .world
                .live
                .get(&serial)
                .and_then(|live| live.consumer)
                .is_some_and(|consumer| !self.is_same_process(consumer.session, session));
            if other {
                return Err(fail(
                    ErrorCode::Denied,
                    &format!("process {serial}: only its consumer may acknowledge"),
                ));
            }
            self.wait_for(serial);
            self.world.zombies.retain(|zombie| *zombie != serial);
            failpoint::reach("exit.waited");
            self.world
                .commit(Entry::ExitKnown { serial })
                .map_err(|error| not_recorded(&error))?;
            self.forget_if_done(serial);
        }
        Ok(())
    }

    /// A read-only copy of a reel's descriptor.
    ///
    /// # Errors
    /// `not_found`, or `unsupported` when nothing is captured.
    pub(crate) fn reel_descriptor(
        &self,
        session: SessionId,
        Serial(serial): Serial,
    ) -> Result<(OwnedFd, u64), VerbError> {
        let live = self
            .world
            .live
            .get(&serial)
            .ok_or_else(|| no_process(serial))?;
        let Some(reel) = &live.reel else {
            return Err(fail(
                ErrorCode::Unsupported,
                &format!("process {serial}: its output is not captured"),
            ));
        };
        if live
            .consumer
            .is_none_or(|consumer| consumer.session != session)
        {
            return Err(fail(
                ErrorCode::Denied,
                &format!("process {serial}: only its consumer may have its reel"),
            ));
        }
        let Some(data_offset) = reel.data_offset() else {
            return Err(fail(
                ErrorCode::Unsupported,
                &format!(
                    "process {serial}: the size of files is limited here (ulimit -f), its output is only sent"
                ),
            ));
        };
        let file = crate::sys::memfd::reopen_read_only(reel.as_fd().as_fd())
            .map_err(|errno| super::refused("open the reel for reading", errno))?;
        Ok((file, data_offset))
    }

    /// A copy of a process's handle.
    ///
    /// # Errors
    /// `not_found`.
    pub(crate) fn pidfd_descriptor(&self, Serial(serial): Serial) -> Result<OwnedFd, VerbError> {
        self.world
            .live
            .get(&serial)
            .and_then(|live| live.pidfd.as_ref())
            .ok_or_else(|| no_process(serial))?
            .try_clone()
            .map_err(|error| duplicate_failed(&error))
    }

    /// Serials whose output can be read and whose names match, listed or not
    /// named by number.
    fn readable(&self, patterns: &[NamePattern]) -> Vec<u64> {
        let matcher = Matcher::new(patterns);
        self.world
            .table
            .processes()
            .filter(|row| !row.removing && matcher.matches(&row.make.name))
            .map(|row| row.serial)
            .collect()
    }
}

pub(crate) fn no_process(serial: u64) -> VerbError {
    fail(
        ErrorCode::NotFound,
        &format!("there is no process with serial {serial}"),
    )
}
