//! Limits the memory of all sessions together, and their number.
//!
//! Owns the sums; each connection reports what it holds. When the memory limit is reached, the
//! largest session is closed; sessions that stand still count as larger. When there are too many
//! sessions, the one that has been silent for longest is closed, so that a caller that talks is
//! never closed because of callers that do not.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::client::exchange::SessionId;
use crate::client::inbox::Inbox;

/// A session stands still when it has read and written nothing for this long.
const STILL_AFTER: Duration = Duration::from_secs(1);
/// A session that stands still counts as this many times its size when one must be closed: it is
/// closed before a larger one that moves, but many small ones are not.
const STILL_WEIGHT: usize = 16;

/// One session's account.
#[derive(Debug)]
struct Account {
    bytes: usize,
    /// When it last read or wrote a byte.
    moved: Instant,
    spoken: bool,
    inbox: Rc<Inbox>,
}

/// The accounts of all sessions.
#[derive(Debug)]
pub struct Budget {
    limit_bytes: usize,
    used: Cell<usize>,
    accounts: RefCell<BTreeMap<SessionId, Account>>,
}

impl Budget {
    /// A budget of this many bytes.
    #[must_use]
    pub fn new(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            used: Cell::new(0),
            accounts: RefCell::new(BTreeMap::new()),
        }
    }

    /// Bytes held by all sessions.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.get()
    }

    /// Opens an account; the session is ended by its inbox.
    pub fn open(&self, session: SessionId, inbox: Rc<Inbox>, now: Instant) {
        let account = Account {
            bytes: 0,
            moved: now,
            spoken: false,
            inbox,
        };
        self.accounts.borrow_mut().insert(session, account);
    }

    /// Reports what a session holds now, and whether a byte was read or
    /// written since it last did.
    pub fn report(&self, session: SessionId, bytes: usize, moved: bool, now: Instant) {
        let mut accounts = self.accounts.borrow_mut();
        let Some(account) = accounts.get_mut(&session) else {
            return;
        };
        self.used.set(self.used.get() - account.bytes + bytes);
        account.bytes = bytes;
        if moved {
            account.moved = now;
        }
        if self.used.get() <= self.limit_bytes {
            return;
        }
        let weight = |account: &Account| {
            let still = now.saturating_duration_since(account.moved) >= STILL_AFTER;
            account.bytes * if still { STILL_WEIGHT } else { 1 }
        };
        let heaviest = accounts
            .iter()
            .max_by_key(|(_, account)| weight(account))
            .map(|(session, _)| *session);
        // Its bytes are taken off now, so that only one session is closed; when it closes there is
        // no account left.
        if let Some(session) = heaviest
            && let Some(account) = accounts.remove(&session)
        {
            tracing::warn!(
                session,
                bytes = account.bytes,
                "session memory limit reached; closing the largest session"
            );
            self.used.set(self.used.get() - account.bytes);
            account.inbox.end();
        }
    }

    /// A session has said something.
    pub fn has_spoken(&self, session: SessionId) {
        if let Some(account) = self.accounts.borrow_mut().get_mut(&session) {
            account.spoken = true;
        }
    }

    /// Makes room for one more session by closing the one that has been silent for longest. False
    /// if every session has spoken.
    #[must_use]
    pub fn make_room(&self, most: usize) -> bool {
        let mut accounts = self.accounts.borrow_mut();
        if accounts.len() < most {
            return true;
        }
        let silent = accounts
            .iter()
            .find(|(_, account)| !account.spoken)
            .map(|(session, _)| *session);
        let Some(session) = silent else {
            return false;
        };
        // Its bytes are taken off now; when it closes there is no account left.
        if let Some(account) = accounts.remove(&session) {
            self.used.set(self.used.get() - account.bytes);
            account.inbox.end();
        }
        true
    }

    /// Closes an account.
    pub fn close(&self, session: SessionId) {
        if let Some(account) = self.accounts.borrow_mut().remove(&session) {
            self.used.set(self.used.get() - account.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::inbox::Next;

    fn open(budget: &Budget, session: SessionId, now: Instant) -> Rc<Inbox> {
        let inbox = Rc::new(Inbox::default());
        budget.open(session, Rc::clone(&inbox), now);
        inbox
    }

    fn has_ended(inbox: &Inbox) -> bool {
        matches!(inbox.next(), Next::End)
    }

    #[test]
    fn the_largest_goes_when_the_budget_is_spent() {
        let now = Instant::now();
        let budget = Budget::new(100);
        let (small, large) = (open(&budget, 1, now), open(&budget, 2, now));
        budget.report(1, 30, true, now);
        budget.report(2, 60, true, now);
        budget.report(1, 45, true, now);
        assert!(has_ended(&large));
        assert_eq!(budget.used(), 45);
        // What it reports until it is closed does not count.
        budget.report(2, 70, true, now);
        budget.close(2);
        assert_eq!(budget.used(), 45);
        assert!(!has_ended(&small));
    }

    #[test]
    fn one_that_stands_still_goes_before_a_larger_one_that_moves() {
        let now = Instant::now();
        let later = now + STILL_AFTER;
        let budget = Budget::new(100);
        let (moving, still) = (open(&budget, 1, now), open(&budget, 2, now));
        budget.report(2, 20, true, now);
        budget.report(1, 70, true, later);
        budget.report(1, 90, true, later);
        assert!(has_ended(&still));
        assert_eq!(budget.used(), 90);
        // A session that holds next to nothing is not closed.
        let tiny = open(&budget, 3, now);
        budget.report(3, 1, true, now);
        budget.report(1, 101, true, later);
        assert!(has_ended(&moving));
        assert_eq!(budget.used(), 1);
        assert!(!has_ended(&tiny));
    }

    #[test]
    fn only_the_silent_make_room() {
        let now = Instant::now();
        let budget = Budget::new(100);
        let (first, second) = (open(&budget, 1, now), open(&budget, 2, now));
        budget.has_spoken(1);
        assert!(budget.make_room(2));
        assert!(has_ended(&second));
        assert!(budget.make_room(2));
        assert!(!budget.make_room(1));
        assert!(!has_ended(&first));
    }
}
