//! The connection to the kernel: whether there is one, since when not, and what is known of the
//! kernel behind it.
//!
//! Owns the handle that others use to ask the kernel. Leaves to others: making the connection
//! (`kernel_link`, the client of the protocol), and what a loss means for workers (`kernel`).
//! Invariant: the handle stays when the connection is lost, because the client reconnects by
//! itself; `is_connected` says whether it is of use now.

use std::sync::Arc;
use std::time::Instant;

use papa_protocol::json::status::HelloReply;

use crate::kernel_link::KernelLink;

/// See the module.
#[derive(Debug)]
pub(super) struct Connection {
    link: Option<KernelLink>,
    /// The kernel of now, or the last one.
    hello: Option<Arc<HelloReply>>,
    /// Since when there is no connection; none: there is one.
    lost_since: Option<Instant>,
    /// Reconnections so far; what was listed after an earlier one is out of date.
    reconnections: u64,
    /// A kernel that is back has not said yet what it has.
    listing: bool,
    /// Highest serial that was known when the list under way was asked for. A process with a higher
    /// one may be missing on the list although it runs.
    known_until: u64,
    /// What is wrong with the connection or the kernel, for people.
    trouble: Option<String>,
}

impl Connection {
    /// There has been none yet.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            link: None,
            hello: None,
            lost_since: Some(now),
            reconnections: 0,
            listing: false,
            known_until: 0,
            trouble: Some("the kernel is not connected yet".to_owned()),
        }
    }

    /// The first connection is there, and the kernel has said what it has.
    pub(super) fn attached(&mut self, link: KernelLink) {
        let hello = link.client().hello();
        self.link = Some(link);
        self.connected(hello);
        self.listing = false;
    }

    fn connected(&mut self, hello: Arc<HelloReply>) -> Option<Arc<HelloReply>> {
        self.trouble = None;
        self.lost_since = None;
        self.hello.replace(hello)
    }

    /// The connection is lost.
    pub(super) fn lost(&mut self, reason: &str, now: Instant) {
        self.trouble = Some(format!("the kernel is not connected: {reason}"));
        self.lost_since.get_or_insert(now);
    }

    /// There is a connection again. Answers false if it leads to a kernel that knows nothing of the
    /// one before.
    pub(super) fn back(&mut self, hello: Arc<HelloReply>) -> bool {
        self.listing = true;
        self.reconnections += 1;
        let before = self.connected(hello);
        let (Some(before), Some(now)) = (before, &self.hello) else {
            return true;
        };
        now.continues(&before)
    }

    /// The kernel is asked what it has; `known_until` is the highest serial of a worker known now.
    pub(super) fn ask_list(&mut self, known_until: u64) {
        self.listing = true;
        self.known_until = known_until;
    }

    /// The kernel has said what it has, after the reconnection with this number. Answers false if
    /// that is out of date: workers that were started since may be missing on the list.
    pub(super) fn listed(&mut self, reconnection: u64) -> bool {
        let is_latest = reconnection == self.reconnections;
        self.listing &= !is_latest;
        is_latest
    }

    /// The number of the latest reconnection.
    pub(super) fn reconnections(&self) -> u64 {
        self.reconnections
    }

    /// Something at the kernel is not as it should be, or is again.
    pub(super) fn set_trouble(&mut self, trouble: Option<String>) {
        self.trouble = trouble;
    }

    /// What is wrong, for people.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// The handle, once there has been a connection.
    pub(super) fn link(&self) -> Option<&KernelLink> {
        self.link.as_ref()
    }

    /// The handle to change.
    pub(super) fn link_mut(&mut self) -> Option<&mut KernelLink> {
        self.link.as_mut()
    }

    /// The handle, if nothing is wrong with the kernel.
    pub(super) fn sound_link(&self) -> Option<&KernelLink> {
        self.link.as_ref().filter(|_| self.trouble.is_none())
    }

    /// Whether a kernel is connected.
    pub(super) fn is_connected(&self) -> bool {
        self.link.is_some() && self.lost_since.is_none()
    }

    /// Whether it may be told what to keep: a kernel that is back has to know first that the
    /// namespace is ours.
    pub(super) fn takes_saves(&self) -> bool {
        self.is_connected() && !self.listing
    }

    /// Since when there is no connection; none: there is one.
    pub(super) fn lost_since(&self) -> Option<Instant> {
        self.lost_since
    }

    /// Serials up to this one are on the latest list if their processes are there.
    pub(super) fn known_until(&self) -> u64 {
        self.known_until
    }

    /// What the kernel of now, or the last one, says of itself.
    pub(super) fn hello(&self) -> Option<&Arc<HelloReply>> {
        self.hello.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn hello(lineage: u64, incarnation: u64) -> Arc<HelloReply> {
        let hello = serde_json::json!({
            "papa": "0.1.0",
            "protocol": 1,
            "pid": 2,
            "keeper": 1,
            "incarnation": incarnation,
            "lineage": lineage,
            "features": [],
            "limits": {},
        });
        Arc::new(serde_json::from_value(hello).unwrap())
    }

    #[test]
    fn the_first_loss_counts_until_there_is_a_connection_again() {
        let now = Instant::now();
        let mut connection = Connection::new(now);
        assert!(!connection.is_connected());
        connection.back(hello(1, 1));
        assert_eq!(
            (connection.lost_since(), connection.trouble()),
            (None, None)
        );
        connection.lost("reset", now);
        connection.lost("refused", now + Duration::from_secs(1));
        assert_eq!(connection.lost_since(), Some(now));
        let trouble = "the kernel is not connected: refused";
        assert_eq!(connection.trouble(), Some(trouble));
    }

    #[test]
    fn a_kernel_that_knows_nothing_of_the_one_before_is_another() {
        let mut connection = Connection::new(Instant::now());
        assert!(connection.back(hello(1, 1)), "there was none before");
        assert!(connection.back(hello(1, 2)), "it was started again");
        connection.ask_list(7);
        assert_eq!(connection.known_until(), 7);
        let latest = connection.reconnections();
        assert!(!connection.listed(latest - 1), "it may lack workers");
        assert!(connection.listing);
        assert!(connection.listed(latest));
        assert!(!connection.listing);
        assert!(!connection.back(hello(2, 1)));
    }
}
