//! Who asks for something, as far as verbs need to know.

use std::collections::{BTreeMap, HashSet};

use papa_protocol::name::Name;

use crate::client::exchange::{Peer, SessionId};
use crate::readers::session::Session;

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller<'a> {
    /// Its session.
    pub session: SessionId,
    /// Who is at the other end; none if the session has gone meanwhile.
    pub peer: Option<Peer>,
    /// Namespaces that were claimed away from it.
    lost: Option<&'a HashSet<Name>>,
}

impl<'a> Caller<'a> {
    /// The caller of the session with this number.
    pub(crate) fn of(sessions: &'a BTreeMap<SessionId, Session>, session: SessionId) -> Self {
        let found = sessions.get(&session);
        Self {
            session,
            peer: found.map(|session| session.peer),
            lost: found.map(|session| &session.lost),
        }
    }

    /// Whether its claim to `namespace` was taken over.
    pub(crate) fn has_lost(&self, namespace: &Name) -> bool {
        self.lost.is_some_and(|lost| lost.contains(namespace))
    }

    /// Whether `session`, whose other end is `peer`, is of the same process, as
    /// far as the system tells.
    pub(crate) fn is_of_one_process(&self, session: SessionId, peer: Option<Peer>) -> bool {
        self.session == session
            || matches!(
                (self.peer, peer),
                (Some(one), Some(other)) if one.pid.is_some() && one == other
            )
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Somebody on a unix socket.
    pub(crate) fn caller(session: SessionId, pid: Option<i32>) -> Caller<'static> {
        Caller {
            session,
            peer: Some(Peer {
                uid: 0,
                pid,
                tcp: false,
            }),
            lost: None,
        }
    }

    /// Somebody on TCP.
    pub(crate) fn tcp_caller(session: SessionId) -> Caller<'static> {
        Caller {
            session,
            peer: Some(Peer {
                uid: 0,
                pid: None,
                tcp: true,
            }),
            lost: None,
        }
    }

    /// The same caller, whose claim to the namespaces in `lost` was taken over.
    pub(crate) fn that_lost<'a>(caller: Caller<'_>, lost: &'a HashSet<Name>) -> Caller<'a> {
        Caller {
            session: caller.session,
            peer: caller.peer,
            lost: Some(lost),
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
