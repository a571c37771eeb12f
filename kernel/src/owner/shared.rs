//! The owner, shared by the tasks of its thread.
//!
//! A task sends an event ([`Shared::events`]) and the owner handles it at once: one handler at a
//! time runs to completion, none waits, and none calls back into a task. So a request is answered
//! without a detour through a queue.

use std::cell::{RefCell, RefMut};
use std::convert::Infallible;
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;

use tokio::io::unix::AsyncFd;
use tokio::task::yield_now;

use super::Owner;
use crate::client::event::{Events, Incoming, Sender};
use crate::client::exchange::SessionId;
use crate::world::live::Poller;

/// The owner; clones lead to the same.
#[derive(Clone)]
pub struct Shared(Rc<RefCell<Owner>>);

impl fmt::Debug for Shared {
    /// The owner refers to itself through its senders, so nothing of it is shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}

impl Shared {
    /// Makes `owner` reachable.
    #[must_use]
    pub fn new(owner: Owner) -> Self {
        let shared = Self(Rc::new(RefCell::new(owner)));
        let receiver = shared.clone();
        let examined = Sender::new(move |examined| {
            receiver.handle(|owner| owner.on_examined(examined));
        });
        shared.borrow_mut().change.examined = Some(examined);
        shared
    }

    /// Where connections send what happens.
    #[must_use]
    pub fn events(&self) -> Events {
        let receiver = self.clone();
        Sender::new(move |(session, event)| receiver.tell(session, event))
    }

    /// The owner itself, for what is not an event. It must not be held across an await.
    #[must_use]
    pub fn borrow_mut(&self) -> RefMut<'_, Owner> {
        self.0.borrow_mut()
    }

    /// Handles what happened on a session, and what follows from it.
    fn tell(&self, session: SessionId, event: Incoming) {
        self.handle(|owner| owner.on_incoming(session, event));
    }

    /// Handles what the poller reports until the kernel is to end.
    pub async fn run(self, poller: AsyncFd<Rc<Poller>>) -> Infallible {
        self.handle(|_| ());
        loop {
            let ready = poll_fn(|context| poller.poll_read_ready(context)).await;
            let rings = self.handle(Owner::on_ready);
            let is_done = poller.get_ref().ready().is_ok_and(|left| left.is_empty());
            if let Ok(mut guard) = ready
                && is_done
            {
                // The poller is level-triggered: asking again finds what is left.
                guard.clear_ready();
            }
            if rings || !is_done {
                // Callers get a turn, however much output there is. What they have sent is handled
                // before a deadline acts because it has not come.
                yield_now().await;
            }
            if rings {
                self.handle(Owner::on_alarm);
            }
        }
    }

    fn handle<T>(&self, handler: impl FnOnce(&mut Owner) -> T) -> T {
        let _end = CrashOnly;
        let mut owner = self.0.borrow_mut();
        let result = handler(&mut owner);
        owner.end_turn();
        result
    }
}

/// Ends the process when a handler panics, so that recovery takes over from the journal instead of
/// a state that is half changed. The runtime would only end the task.
struct CrashOnly;

impl Drop for CrashOnly {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}
