//! The kernel's process id, shared by many callers.
//!
//! `status` costs the kernel time in proportion to its processes, and each worker that is stopped
//! needs the answer a few times. Callers that wait at the same moment share one request.
//! Invariant: a caller's answer comes from a request that was sent after the call.

use std::time::Instant;

use tokio::sync::Mutex;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<Option<Told>>);

#[derive(Debug, Clone, Copy)]
struct Told {
    /// When the question was sent.
    asked: Instant,
    pid: i32,
}

impl Shared {
    /// The process id. `ask` is called unless another caller sends a request after this call.
    pub(super) async fn get(&self, ask: impl AsyncFnOnce() -> i32) -> i32 {
        let wanted = Instant::now();
        let mut told = self.0.lock().await;
        if let Some(told) = told.filter(|told| wanted <= told.asked) {
            return told.pid;
        }
        let asked = Instant::now();
        let pid = ask().await;
        *told = Some(Told { asked, pid });
        pid
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::{Context, Waker};

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn those_who_ask_while_a_question_is_under_way_share_the_next_one() {
        let shared = Arc::new(Shared::default());
        let (answer, answered) = oneshot::channel();
        let (sent, is_sent) = oneshot::channel();
        let asker = shared.clone();
        let first = tokio::spawn(async move {
            let ask = async || {
                sent.send(()).unwrap();
                answered.await.unwrap()
            };
            asker.get(ask).await
        });
        is_sent.await.unwrap();
        let questions = Arc::new(Mutex::new(0));
        let others = (0..100).map(|_| {
            let (questions, shared) = (questions.clone(), shared.clone());
            async move {
                let ask = async || {
                    *questions.lock().await += 1;
                    2
                };
                shared.get(ask).await
            }
        });
        let mut others: Vec<_> = others.map(Box::pin).collect();
        let mut context = Context::from_waker(Waker::noop());
        for other in &mut others {
            assert!(other.as_mut().poll(&mut context).is_pending());
        }
        answer.send(1).unwrap();
        assert_eq!(first.await.unwrap(), 1);
        for other in others {
            assert_eq!(other.await, 2, "what was asked before is too old");
        }
        assert_eq!(*questions.lock().await, 1);
    }
}
