//! The queue of orders for a connection's task, and what wakes the task.
//!
//! Both ends live on one thread, so nothing is locked. A task that runs is not woken, since it
//! looks here before it waits. The sender bounds the queue: one answer, one batch and
//! [`MAX_QUEUED_PUSHES`](crate::client::exchange::MAX_QUEUED_PUSHES).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Waker};

use super::exchange::Order;

/// Orders for one connection.
#[derive(Debug, Default)]
pub struct Inbox {
    orders: RefCell<VecDeque<Order>>,
    /// No order follows those that are there.
    closed: Cell<bool>,
    /// The orders in the queue do not count any more.
    ended: Cell<bool>,
    waits: Cell<bool>,
    task: RefCell<Option<Waker>>,
}

/// The next thing in the queue.
#[derive(Debug)]
pub enum Next {
    /// An order.
    Order(Order),
    /// Nothing for now.
    Nothing,
    /// No order will follow.
    End,
}

impl Inbox {
    /// The next order.
    pub fn next(&self) -> Next {
        self.waits.set(false);
        if self.ended.get() {
            return Next::End;
        }
        match self.orders.borrow_mut().pop_front() {
            Some(order) => Next::Order(order),
            None if self.closed.get() => Next::End,
            None => Next::Nothing,
        }
    }

    /// Has the task of `context` woken when there is something.
    pub fn wait(&self, context: &Context<'_>) {
        self.waits.set(true);
        let mut task = self.task.borrow_mut();
        if !task
            .as_ref()
            .is_some_and(|task| task.will_wake(context.waker()))
        {
            *task = Some(context.waker().clone());
        }
    }

    /// Ends the connection, whatever orders are in the queue.
    pub fn end(&self) {
        self.ended.set(true);
        self.wake();
    }

    fn wake(&self) {
        if self.waits.replace(false)
            && let Some(task) = &*self.task.borrow()
        {
            task.wake_by_ref();
        }
    }
}

/// The owner's end of an [`Inbox`]: when it is dropped no order follows.
#[derive(Debug)]
pub struct Outbox(Rc<Inbox>);

impl Outbox {
    /// The end that goes with `inbox`.
    #[must_use]
    pub fn new(inbox: &Rc<Inbox>) -> Self {
        Self(Rc::clone(inbox))
    }

    /// Sends an order. A connection that has gone reports that by itself.
    pub fn send(&self, order: Order) {
        self.0.orders.borrow_mut().push_back(order);
        self.0.wake();
    }

    /// Sends an order that comes before all others.
    pub fn send_first(&self, order: Order) {
        self.0.orders.borrow_mut().push_front(order);
        self.0.wake();
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.0.closed.set(true);
        self.0.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;
    use crate::client::exchange::Order;

    #[derive(Default)]
    struct Bell(AtomicUsize);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn freeze() -> Order {
        Order::Freeze { unanswered: false }
    }

    #[test]
    fn who_waits_is_woken_once_and_who_runs_is_not() {
        let bell = Arc::new(Bell::default());
        let waker = Waker::from(Arc::clone(&bell));
        let inbox = Rc::new(Inbox::default());
        let outbox = Outbox::new(&inbox);
        outbox.send(freeze());
        assert!(matches!(inbox.next(), Next::Order(_)));
        assert!(matches!(inbox.next(), Next::Nothing));
        inbox.wait(&Context::from_waker(&waker));
        assert_eq!(bell.0.load(Ordering::Relaxed), 0);
        outbox.send(freeze());
        outbox.send(freeze());
        assert_eq!(bell.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn what_was_ordered_is_done_before_the_end_but_not_after_being_ended() {
        let inbox = Rc::new(Inbox::default());
        let outbox = Outbox::new(&inbox);
        outbox.send(freeze());
        outbox.send(freeze());
        drop(outbox);
        assert!(matches!(inbox.next(), Next::Order(_)));
        inbox.end();
        assert!(matches!(inbox.next(), Next::End));
    }
}
