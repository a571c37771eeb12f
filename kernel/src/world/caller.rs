//! Who asks for something, and what a claim allows it.

use std::collections::HashSet;

use papa_protocol::name::Name;

use super::World;
use crate::client::exchange::{Peer, SessionId};
use crate::config::TcpAccess;

/// The session behind a request.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// The session's number.
    pub session: SessionId,
    /// Who is at the other end; none if the session has gone meanwhile.
    pub peer: Option<Peer>,
    /// Namespaces that were claimed away from the session.
    pub lost: HashSet<Name>,
}

impl Caller {
    /// Whether the session's claim to `namespace` was taken over.
    pub(crate) fn has_lost(&self, namespace: &Name) -> bool {
        self.lost.contains(namespace)
    }

    /// Whether `session`, whose other end is `peer`, belongs to the same process. Sessions whose
    /// process is unknown belong to one process only if they are the same session.
    pub(crate) fn is_of_one_process(&self, session: SessionId, peer: Option<Peer>) -> bool {
        are_of_one_process((self.session, self.peer), (session, peer))
    }
}

/// As [`Caller::is_of_one_process`], for any two sessions and their other ends.
pub(crate) fn are_of_one_process(
    one: (SessionId, Option<Peer>),
    other: (SessionId, Option<Peer>),
) -> bool {
    one.0 == other.0
        || matches!(
            (one.1, other.1),
            (Some(one), Some(other)) if one.pid.is_some() && one == other
        )
}

impl World {
    /// Whether `caller` may change nothing at all: it came over a read-only transport.
    pub(crate) fn is_read_only_for(&self, caller: &Caller) -> bool {
        caller.peer.is_some_and(|peer| peer.tcp) && self.config.tcp == TcpAccess::ReadOnly
    }

    /// Whether `caller` holds the claim to `namespace`, itself or by another session of its
    /// process.
    pub(crate) fn is_held_by(&self, caller: &Caller, namespace: &Name) -> bool {
        self.claims
            .get(namespace)
            .is_some_and(|holder| caller.is_of_one_process(holder.session, Some(holder.peer)))
    }

    /// Whether `name` lies in a namespace that someone other than `caller` has claimed.
    pub(crate) fn is_claimed_by_other(&self, caller: &Caller, name: &str) -> bool {
        self.claim_of(name)
            .is_some_and(|(namespace, _)| !self.is_held_by(caller, namespace))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A caller on a unix socket.
    pub(crate) fn caller(session: SessionId, pid: Option<i32>) -> Caller {
        Caller {
            session,
            peer: Some(Peer {
                uid: 0,
                pid,
                tcp: false,
            }),
            lost: HashSet::new(),
        }
    }

    /// A caller on TCP.
    pub(crate) fn tcp_caller(session: SessionId) -> Caller {
        Caller {
            session,
            peer: Some(Peer {
                uid: 0,
                pid: None,
                tcp: true,
            }),
            lost: HashSet::new(),
        }
    }

    /// The same caller after its claim to the namespaces in `lost` was taken over.
    pub(crate) fn that_lost(caller: &Caller, lost: &HashSet<Name>) -> Caller {
        Caller {
            lost: lost.clone(),
            ..caller.clone()
        }
    }

    #[test]
    fn callers_without_a_process_number_are_not_one_process() {
        let (known, unknown) = (caller(1, Some(7)), caller(2, None));
        assert!(known.is_of_one_process(3, caller(3, Some(7)).peer));
        assert!(!known.is_of_one_process(3, caller(3, Some(8)).peer));
        assert!(!known.is_of_one_process(3, None));
        assert!(!unknown.is_of_one_process(3, caller(3, None).peer));
        assert!(unknown.is_of_one_process(2, None));
    }
}
