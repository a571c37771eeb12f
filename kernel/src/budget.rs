//! How much memory all sessions together may hold, and how many there may be.
//!
//! Owns the sums; a connection reports what it holds, and the one that holds
//! most goes when the budget is spent. Past the number of sessions the one
//! that has said nothing for longest goes: a caller that talks is never put
//! out by callers that do not.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use tokio::sync::Notify;

use crate::live::SessionId;

/// One session's account.
#[derive(Debug)]
struct Account {
    bytes: usize,
    spoken: bool,
    end: Rc<Notify>,
}

/// The accounts of all sessions.
#[derive(Debug)]
pub struct Budget {
    limit_bytes: usize,
    used: Cell<usize>,
    accounts: RefCell<BTreeMap<SessionId, Account>>,
}

impl Budget {
    /// A budget of so many bytes.
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

    /// Opens an account; the session ends when the returned bell rings.
    pub fn open(&self, session: SessionId) -> Rc<Notify> {
        let end = Rc::new(Notify::new());
        let account = Account {
            bytes: 0,
            spoken: false,
            end: Rc::clone(&end),
        };
        self.accounts.borrow_mut().insert(session, account);
        end
    }

    /// Reports what a session holds now.
    pub fn report(&self, session: SessionId, bytes: usize) {
        let mut accounts = self.accounts.borrow_mut();
        let Some(account) = accounts.get_mut(&session) else {
            return;
        };
        self.used.set(self.used.get() - account.bytes + bytes);
        account.bytes = bytes;
        if self.used.get() > self.limit_bytes
            && let Some((largest, account)) =
                accounts.iter().max_by_key(|(_, account)| account.bytes)
        {
            tracing::warn!(
                session = largest,
                bytes = account.bytes,
                "the budget of all sessions is spent; the largest goes"
            );
            account.end.notify_one();
        }
    }

    /// A session has said something.
    pub fn has_spoken(&self, session: SessionId) {
        if let Some(account) = self.accounts.borrow_mut().get_mut(&session) {
            account.spoken = true;
        }
    }

    /// Makes room for one more session: asks the longest silent one to go.
    /// False if all have spoken.
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
        // Its bytes are taken off now; its closing finds no account.
        if let Some(account) = accounts.remove(&session) {
            self.used.set(self.used.get() - account.bytes);
            account.end.notify_one();
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

    #[tokio::test]
    async fn the_largest_goes_when_the_budget_is_spent() {
        let budget = Budget::new(100);
        let (small, large) = (budget.open(1), budget.open(2));
        budget.report(1, 30);
        budget.report(2, 60);
        budget.report(1, 45);
        large.notified().await;
        budget.close(2);
        assert_eq!(budget.used(), 45);
        drop(small);
    }

    #[tokio::test]
    async fn only_the_silent_make_room() {
        let budget = Budget::new(100);
        let (_first, second) = (budget.open(1), budget.open(2));
        budget.has_spoken(1);
        assert!(budget.make_room(2));
        second.notified().await;
        assert!(budget.make_room(2));
        assert!(!budget.make_room(1));
    }
}
