//! Claims: one manager's right to a namespace.
//!
//! An epoch rises with every claim; whoever had it before is told, and its
//! later changes fail. A lost connection leaves the claim vacant, not void:
//! others still may not change anything, but anyone may claim it.

use papa_protocol::json::ErrorCode;
use papa_protocol::json::reply::ClaimInfo;
use papa_protocol::limits::MAX_CLAIMS;
use papa_protocol::name::Name;
use tracing::info;

use super::{VerbError, fail, limit, not_recorded};
use crate::client::exchange::SessionId;
use crate::world::caller::Caller;
use crate::world::table::Entry;
use crate::world::{Holder, World};

/// Whether `caller` may change things called `name`.
///
/// # Errors
/// `claimed` with the holder's words, `stale_epoch` for a holder whose
/// claim was taken over, `denied` over a read-only transport.
pub(crate) fn may_change(
    world: &World,
    caller: &Caller,
    name: &str,
    force: bool,
) -> Result<(), VerbError> {
    may_write(world, caller)?;
    let Some((namespace, holder)) = world.claim_of(name) else {
        return Ok(());
    };
    if world.is_held_by(caller, namespace) {
        return Ok(());
    }
    if caller.has_lost(namespace) {
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

/// Whether `caller` may change anything at all.
///
/// # Errors
/// `denied` over TCP when that is read-only.
pub(crate) fn may_write(world: &World, caller: &Caller) -> Result<(), VerbError> {
    if world.is_read_only_for(caller) {
        return Err(fail(
            ErrorCode::Denied,
            "TCP is read-only here (--tcp read-only); use the unix socket",
        ));
    }
    Ok(())
}

/// Claims a namespace and returns the new epoch, and the session it was taken
/// from.
///
/// # Errors
/// `claimed` while another session holds it and `force` is not given.
pub(crate) fn claim(
    world: &mut World,
    caller: &Caller,
    namespace: &Name,
    holder: String,
    force: bool,
) -> Result<(u64, Option<SessionId>), VerbError> {
    may_write(world, caller)?;
    let row = world.table.claims.get(namespace);
    if row.is_none() && world.table.claims.len() >= MAX_CLAIMS {
        return Err(limit("claims", MAX_CLAIMS));
    }
    let epoch = row.map_or(0, |row| row.epoch) + 1;
    let old = world
        .claims
        .get(namespace)
        .map(|old| old.session)
        .filter(|old| *old != caller.session);
    if old.is_some() && !force {
        let by = row
            .and_then(|row| row.holder.as_deref())
            .unwrap_or("another session");
        return Err(fail(
            ErrorCode::Claimed,
            &format!("{namespace} is claimed by {by}; stop it first, or claim with force"),
        ));
    }
    let session = caller.session;
    info!(session, %namespace, holder = ?holder, epoch, "claimed");
    world
        .commit(Entry::Claim {
            namespace: namespace.clone(),
            holder,
            epoch,
        })
        .map_err(|error| not_recorded(&error))?;
    // A session that has gone holds nothing.
    if let Some(peer) = caller.peer {
        world
            .claims
            .insert(namespace.clone(), Holder { session, peer });
    }
    Ok((epoch, old))
}

/// Gives a claim back.
///
/// # Errors
/// `not_found` when nobody has it, `claimed` when someone else does.
pub(crate) fn release(
    world: &mut World,
    caller: &Caller,
    namespace: &Name,
) -> Result<(), VerbError> {
    may_write(world, caller)?;
    let held = world
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
    if world
        .claims
        .get(namespace)
        .is_some_and(|holder| holder.session != caller.session)
    {
        return Err(fail(
            ErrorCode::Claimed,
            &format!("{namespace} is claimed by another session"),
        ));
    }
    world
        .commit(Entry::Release {
            namespace: namespace.clone(),
        })
        .map_err(|error| not_recorded(&error))?;
    world.claims.remove(namespace);
    Ok(())
}

/// All claims in force, by namespace.
pub(crate) fn list(world: &World) -> Vec<ClaimInfo> {
    world
        .table
        .claims
        .iter()
        .filter_map(|(namespace, row)| {
            Some(ClaimInfo {
                namespace: namespace.clone(),
                holder: row.holder.clone()?,
                epoch: row.epoch,
                live: world.claims.contains_key(namespace),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::config::TcpAccess;
    use crate::world::caller::tests::{caller, tcp_caller, that_lost};
    use crate::world::tests::{empty_world, recovered};

    fn ns() -> Name {
        Name::new("ns").unwrap()
    }

    fn code(result: Result<(), VerbError>) -> Option<ErrorCode> {
        let failure = papa_protocol::json::Failure::from(result.err()?);
        Some(failure.code)
    }

    /// Why `caller` may not change what is called `ns.x`.
    fn refusal(world: &World, caller: &Caller, force: bool) -> Option<ErrorCode> {
        code(may_change(world, caller, "ns.x", force))
    }

    #[test]
    fn a_claim_that_is_taken_over_is_stale_for_the_one_before() {
        let (mut world, _keeper, file) = empty_world();
        let (one, other) = (caller(1, Some(10)), caller(2, Some(20)));
        assert_eq!(
            claim(&mut world, &one, &ns(), "one".into(), false),
            Ok((1, None))
        );
        claim(&mut world, &other, &ns(), "other".into(), false).unwrap_err();
        assert_eq!(
            claim(&mut world, &other, &ns(), "other".into(), true),
            Ok((2, Some(1)))
        );
        let lost = HashSet::from([ns()]);
        let one = that_lost(&one, &lost);
        assert_eq!(refusal(&world, &one, false), Some(ErrorCode::StaleEpoch));
        assert_eq!(refusal(&world, &one, true), Some(ErrorCode::StaleEpoch));
        assert_eq!(
            refusal(&world, &caller(3, None), false),
            Some(ErrorCode::Claimed)
        );
        assert_eq!(refusal(&world, &caller(3, None), true), None);
        assert_eq!(refusal(&world, &other, false), None);
        assert_eq!(recovered(&file).claims[&ns()].epoch, 2);
    }

    #[test]
    fn a_vacant_claim_still_keeps_others_out_and_can_be_taken() {
        let (mut world, _keeper, _file) = empty_world();
        let (one, other) = (caller(1, Some(10)), caller(2, Some(20)));
        claim(&mut world, &one, &ns(), "one".into(), false).unwrap();
        // Its connection is lost.
        world.claims.clear();
        let denied = refusal(&world, &other, false);
        assert_eq!(denied, Some(ErrorCode::Claimed));
        assert!(!list(&world)[0].live);
        assert_eq!(
            claim(&mut world, &other, &ns(), "other".into(), false),
            Ok((2, None))
        );
        assert_eq!(
            code(release(&mut world, &one, &ns())),
            Some(ErrorCode::Claimed)
        );
        release(&mut world, &other, &ns()).unwrap();
        assert_eq!(
            code(release(&mut world, &other, &ns())),
            Some(ErrorCode::NotFound)
        );
        assert_eq!(may_change(&world, &one, "ns.x", false), Ok(()));
        // The epoch is never used again.
        assert_eq!(
            claim(&mut world, &one, &ns(), "one".into(), false),
            Ok((3, None))
        );
    }

    #[test]
    fn of_nested_namespaces_the_innermost_counts() {
        let (mut world, _keeper, _file) = empty_world();
        let (one, other) = (caller(1, Some(10)), caller(2, Some(20)));
        let inner = Name::new("ns.in").unwrap();
        claim(&mut world, &one, &ns(), "one".into(), false).unwrap();
        claim(&mut world, &other, &inner, "other".into(), false).unwrap();
        assert_eq!(world.claim_holder("ns.in.x"), Some(2));
        assert_eq!(world.claim_holder("ns.x"), Some(1));
        assert_eq!(world.claim_holder("nsx"), None);
        assert!(world.is_claimed_by_other(&one, "ns.in.x"));
        assert!(!world.is_claimed_by_other(&caller(3, Some(20)), "ns.in.x"));
    }

    #[test]
    fn read_only_tcp_changes_nothing_anywhere() {
        let (mut world, _keeper, _file) = empty_world();
        let remote = tcp_caller(1);
        assert_eq!(may_change(&world, &remote, "free", false), Ok(()));
        world.config.tcp = TcpAccess::ReadOnly;
        let denied = Some(ErrorCode::Denied);
        assert_eq!(code(may_change(&world, &remote, "free", true)), denied);
        let claimed = claim(&mut world, &remote, &ns(), "me".into(), true);
        assert_eq!(code(claimed.map(drop)), denied);
        assert_eq!(code(release(&mut world, &remote, &ns())), denied);
        assert_eq!(may_change(&world, &caller(2, None), "free", false), Ok(()));
    }
}
