//! What a client has claimed and subscribed to, so that a new connection can take it up again.
//!
//! Owns the mapping between the subscription numbers users know, which never change, and those of
//! the present connection. Pure: sends nothing.

use std::collections::{BTreeMap, HashMap};

use papa_protocol::json::request::{Claim, Op, OutputConsume, OutputFollow, Subscribe};
use papa_protocol::name::Name;

/// A request that makes a subscription.
#[derive(Debug, Clone)]
pub(super) enum Subscription {
    Consume(OutputConsume),
    Follow(OutputFollow),
    Events(Subscribe),
}

impl Subscription {
    fn op(&self) -> Op {
        match self {
            Self::Consume(op) => op.clone().into(),
            Self::Follow(op) => op.clone().into(),
            Self::Events(op) => op.clone().into(),
        }
    }
}

/// What a success of a request changes here.
#[derive(Debug, Clone)]
pub(super) enum Change {
    None,
    Claim(Claim),
    Release(Name),
    Subscribe(Subscription),
    Stop(u64),
}

impl Change {
    /// What a success of `op` will change.
    pub(super) fn of(op: &Op) -> Self {
        match op {
            Op::Claim(claim) => Self::Claim(claim.clone()),
            Op::ClaimRelease(release) => Self::Release(release.namespace.clone()),
            Op::OutputConsume(consume) => Self::Subscribe(Subscription::Consume(consume.clone())),
            Op::OutputFollow(follow) => Self::Subscribe(Subscription::Follow(follow.clone())),
            Op::Subscribe(subscribe) => Self::Subscribe(Subscription::Events(subscribe.clone())),
            Op::OutputStop(stop) => Self::Stop(stop.sub),
            _ => Self::None,
        }
    }
}

/// One thing to ask for on a new connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Resumed {
    Claim(Name),
    Subscription(u64),
}

#[derive(Debug, Default)]
pub(super) struct Registry {
    claims: BTreeMap<Name, Claim>,
    /// By the number users know.
    subscriptions: BTreeMap<u64, Subscription>,
    /// From the present connection's number to the users'.
    local_by_remote: HashMap<u64, u64>,
    last_local: u64,
}

impl Registry {
    /// Records a success; for a subscription `remote` is its number and the number for users comes
    /// back.
    pub(super) fn apply(&mut self, change: Change, remote: Option<u64>) -> Option<u64> {
        match change {
            Change::None => None,
            Change::Claim(claim) => {
                // Force was for the holder of that moment; a new connection must not throw out
                // another.
                self.claims.insert(
                    claim.namespace.clone(),
                    Claim {
                        force: false,
                        ..claim
                    },
                );
                None
            }
            Change::Release(namespace) => {
                self.claims.remove(&namespace);
                None
            }
            Change::Subscribe(mut subscription) => {
                let remote = remote?;
                if let Subscription::Consume(consume) = &mut subscription {
                    consume.force = false;
                }
                self.last_local += 1;
                self.subscriptions.insert(self.last_local, subscription);
                self.local_by_remote.insert(remote, self.last_local);
                Some(self.last_local)
            }
            Change::Stop(local) => {
                self.subscriptions.remove(&local);
                self.local_by_remote.retain(|_, known| *known != local);
                None
            }
        }
    }

    /// The number users know for the connection's `remote`; none if it was stopped.
    pub(super) fn local(&self, remote: u64) -> Option<u64> {
        self.local_by_remote.get(&remote).copied()
    }

    /// The connection's number for the users' `local`.
    pub(super) fn remote(&self, local: u64) -> Option<u64> {
        self.local_by_remote
            .iter()
            .find(|(_, known)| **known == local)
            .map(|(remote, _)| *remote)
    }

    /// Forgets the connection; what to ask for on the next one, claims first since they decide what
    /// is allowed.
    pub(super) fn resume(&mut self) -> Vec<(Resumed, Op)> {
        self.local_by_remote.clear();
        let claims = self
            .claims
            .iter()
            .map(|(namespace, claim)| (Resumed::Claim(namespace.clone()), claim.clone().into()));
        let subscriptions = self
            .subscriptions
            .iter()
            .map(|(local, subscription)| (Resumed::Subscription(*local), subscription.op()));
        claims.chain(subscriptions).collect()
    }

    /// Records that a subscription goes on under a new number.
    pub(super) fn resumed(&mut self, local: u64, remote: u64) {
        self.local_by_remote.insert(remote, local);
    }

    /// Gives up what could not be taken up again, or was lost.
    pub(super) fn forget(&mut self, what: &Resumed) {
        match what {
            Resumed::Claim(namespace) => {
                self.claims.remove(namespace);
            }
            Resumed::Subscription(local) => {
                self.subscriptions.remove(local);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use papa_protocol::name::NamePattern;

    fn consume() -> Change {
        Change::of(&Op::from(OutputConsume {
            names: vec![NamePattern::new("*")],
            bytes: papa_protocol::json::request::Delivery::Inline,
            force: true,
        }))
    }

    #[test]
    fn numbers_stay_across_connections_and_force_does_not() {
        let mut registry = Registry::default();
        assert_eq!(registry.apply(consume(), Some(7)), Some(1));
        assert_eq!((registry.local(7), registry.remote(1)), (Some(1), Some(7)));
        let again = registry.resume();
        assert_eq!(registry.local(7), None);
        assert!(
            matches!(&again[..], [(Resumed::Subscription(1), Op::OutputConsume(op))] if !op.force)
        );
        registry.resumed(1, 3);
        assert_eq!((registry.local(3), registry.remote(1)), (Some(1), Some(3)));
        assert_eq!(registry.apply(consume(), Some(4)), Some(2));
        registry.apply(Change::Stop(1), None);
        assert_eq!(registry.resume().len(), 1);
    }

    #[test]
    fn claims_come_first_and_a_release_ends_them() {
        let mut registry = Registry::default();
        let namespace = Name::new("circus").unwrap();
        registry.apply(consume(), Some(1));
        registry.apply(
            Change::Claim(Claim {
                namespace: namespace.clone(),
                holder: "me".into(),
                force: true,
            }),
            None,
        );
        assert_eq!(registry.resume()[0].0, Resumed::Claim(namespace.clone()));
        registry.apply(Change::Release(namespace), None);
        assert_eq!(registry.resume().len(), 1);
    }
}
