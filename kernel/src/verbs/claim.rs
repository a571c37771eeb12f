//! Claims: one manager's right to a namespace.
//!
//! An epoch rises with every claim; whoever had it before is told, and its
//! later changes fail. A lost connection leaves the claim vacant, not void:
//! others still may not change anything, but anyone may claim it.

use bytes::BytesMut;
use papa_protocol::json::ErrorCode;
use papa_protocol::json::push::{Lost, Push};
use papa_protocol::json::reply::ClaimInfo;
use papa_protocol::limits::MAX_CLAIMS;
use papa_protocol::name::Name;
use tracing::info;

use super::{VerbError, fail, limit, not_recorded};
use crate::client::exchange::SessionId;
use crate::owner::Owner;
use crate::world::table::Entry;

impl Owner {
    /// The claimed namespace `name` lies in, with its holder.
    fn claim_of(&self, name: &str) -> Option<(&Name, &str)> {
        // Of nested namespaces the innermost counts.
        name.rmatch_indices('.').find_map(|(at, _)| {
            let (namespace, row) = self.world.table.claims.get_key_value(&name[..at])?;
            Some((namespace, row.holder.as_deref()?))
        })
    }

    /// The session that holds the claim `name` lies in.
    pub(crate) fn claim_holder(&self, name: &str) -> Option<SessionId> {
        let (namespace, _) = self.claim_of(name)?;
        self.claims.get(namespace).copied()
    }

    /// Whether `name` lies in a namespace that someone other than `session`
    /// has claimed.
    pub(crate) fn is_claimed_by_other(&self, session: SessionId, name: &str) -> bool {
        self.claim_of(name)
            .is_some_and(|(namespace, _)| !self.holds(session, namespace))
    }

    /// Whether `session` speaks for the live holder of a claim: it is the one
    /// that claimed, or another of the same process.
    fn holds(&self, session: SessionId, namespace: &Name) -> bool {
        self.claims
            .get(namespace)
            .is_some_and(|holder| self.is_same_process(session, *holder))
    }

    /// Whether two sessions are of one process, as far as the system tells.
    pub(crate) fn is_same_process(&self, one: SessionId, other: SessionId) -> bool {
        let peer = |id| self.sessions.get(&id).map(|session| session.peer);
        one == other
            || matches!(
                (peer(one), peer(other)),
                (Some(one), Some(other)) if one.pid.is_some() && one == other
            )
    }

    /// Whether `session` may change things called `name`.
    ///
    /// # Errors
    /// `claimed` with the holder's words, `stale_epoch` for a holder whose
    /// claim was taken over, `denied` over a read-only transport.
    pub(crate) fn may_change(
        &self,
        session: SessionId,
        name: &str,
        force: bool,
    ) -> Result<(), VerbError> {
        self.may_write(session)?;
        let Some((namespace, holder)) = self.claim_of(name) else {
            return Ok(());
        };
        if self.holds(session, namespace) {
            return Ok(());
        }
        let lost = self
            .sessions
            .get(&session)
            .is_some_and(|session| session.lost.contains(namespace));
        if lost {
            return Err(fail(
                ErrorCode::StaleEpoch,
                &format!("the claim to {namespace} was taken over by {holder}"),
            ));
        }
        if force {
            return Ok(());
        }
        Err(fail(
            ErrorCode::Claimed,
            &format!(
                "{namespace} is claimed by {holder}; ask it, or force the change in the JSON dialect"
            ),
        ))
    }

    /// Whether `session` may change anything at all.
    ///
    /// # Errors
    /// `denied` over TCP when that is read-only.
    pub(crate) fn may_write(&self, session: SessionId) -> Result<(), VerbError> {
        let tcp = self
            .sessions
            .get(&session)
            .is_some_and(|session| session.peer.tcp);
        if tcp && self.world.config.tcp == crate::config::TcpAccess::ReadOnly {
            return Err(fail(
                ErrorCode::Denied,
                "TCP is read-only here (--tcp read-only); use the unix socket",
            ));
        }
        Ok(())
    }

    /// Claims a namespace and returns the new epoch.
    ///
    /// # Errors
    /// `claimed` while another session holds it and `force` is not given.
    pub(crate) fn claim(
        &mut self,
        session: SessionId,
        namespace: &Name,
        holder: String,
        force: bool,
    ) -> Result<u64, VerbError> {
        self.may_write(session)?;
        let row = self.world.table.claims.get(namespace);
        if row.is_none() && self.world.table.claims.len() >= MAX_CLAIMS {
            return Err(limit("claims", MAX_CLAIMS));
        }
        let epoch = row.map_or(0, |row| row.epoch) + 1;
        let old = self
            .claims
            .get(namespace)
            .copied()
            .filter(|old| *old != session);
        if old.is_some() && !force {
            let by = row
                .and_then(|row| row.holder.as_deref())
                .unwrap_or("another session");
            return Err(fail(
                ErrorCode::Claimed,
                &format!("{namespace} is claimed by {by}; stop it first, or claim with force"),
            ));
        }
        info!(session, %namespace, holder = ?holder, epoch, "claimed");
        self.world
            .commit(Entry::Claim {
                namespace: namespace.clone(),
                holder: holder.clone(),
                epoch,
            })
            .map_err(|error| not_recorded(&error))?;
        self.claims.insert(namespace.clone(), session);
        if let Some(session) = self.sessions.get_mut(&session) {
            session.lost.remove(namespace);
        }
        if let Some(old) = old {
            if let Some(session) = self.sessions.get_mut(&old) {
                session.lost.insert(namespace.clone());
            }
            let mut line = BytesMut::new();
            Push::Lost(Lost {
                namespace: namespace.clone(),
                by: holder,
            })
            .encode(&mut line);
            self.push(old, line);
        }
        Ok(epoch)
    }

    /// Gives a claim back.
    ///
    /// # Errors
    /// `not_found` when nobody has it, `claimed` when someone else does.
    pub(crate) fn release_claim(
        &mut self,
        session: SessionId,
        namespace: &Name,
    ) -> Result<(), VerbError> {
        self.may_write(session)?;
        let held = self
            .world
            .table
            .claims
            .get(namespace)
            .is_some_and(|row| row.holder.is_some());
        if !held {
            return Err(fail(
                ErrorCode::NotFound,
                &format!("{namespace} is not claimed"),
            ));
        }
        // A vacant claim may be ended by whoever could as well take it.
        if self
            .claims
            .get(namespace)
            .is_some_and(|holder| *holder != session)
        {
            return Err(fail(
                ErrorCode::Claimed,
                &format!("{namespace} is claimed by another session"),
            ));
        }
        self.world
            .commit(Entry::Release {
                namespace: namespace.clone(),
            })
            .map_err(|error| not_recorded(&error))?;
        self.claims.remove(namespace);
        Ok(())
    }

    /// All claims in force, by namespace.
    pub(crate) fn list_claims(&self) -> Vec<ClaimInfo> {
        self.world
            .table
            .claims
            .iter()
            .filter_map(|(namespace, row)| {
                Some(ClaimInfo {
                    namespace: namespace.clone(),
                    holder: row.holder.clone()?,
                    epoch: row.epoch,
                    live: self.claims.contains_key(namespace),
                })
            })
            .collect()
    }
}
