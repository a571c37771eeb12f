//! The sockets of a change: which are made and replaced, and what follows from that.
//!
//! Leaves to others: the requests to the kernel (`tasks::exchange`), and what comes after (`change`).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::{Config, SocketConfig, WatcherConfig};
use crate::control::message::{Errno, RequestError};
use crate::supervisor::change::{Change, Stage};
use crate::supervisor::compare::Next;
use crate::supervisor::tasks::Replacement;
use crate::supervisor::{Supervisor, tasks};

impl Supervisor {
    pub(in crate::supervisor) fn change_sockets(&mut self, mut change: Change, next: Next) {
        let find = |config: &Config, name: &String| {
            config
                .sockets
                .iter()
                .find(|socket| socket.name == *name)
                .cloned()
        };
        let added: Vec<SocketConfig> = next
            .plan
            .sockets
            .added
            .iter()
            .filter_map(|name| find(&next.config, name))
            .collect();
        let is_replaced = |name: &String| {
            let mut changed = next.plan.sockets.changed.iter();
            changed.any(|socket| socket.recreated && socket.name == *name)
        };
        // A predecessor may have led them to a configuration that is in no file any more.
        let replaced: Vec<Replacement> = next
            .config
            .sockets
            .iter()
            .filter(|socket| change.resumed || is_replaced(&socket.name))
            .filter_map(|socket| {
                Some(Replacement {
                    is_planned: is_replaced(&socket.name),
                    before: find(&next.from, &socket.name)?,
                    after: socket.clone(),
                    held_by: self.holders(&socket.name),
                })
            })
            .collect();
        let undoing = change.undoing.is_some();
        let link = self.connection.link().cloned();
        match link {
            Some(link) if !(added.is_empty() && replaced.is_empty()) => {
                let is_fresh = !change.resumed && !change.has_aside;
                change.has_aside = true;
                change.stage = Stage::Sockets(Box::new(next));
                self.change = Some(change);
                let exchange = tasks::Exchange {
                    is_fresh,
                    added,
                    replaced,
                    undoing,
                };
                let (kept, events) = (self.outbox.pass(), self.events.clone());
                tasks::change_sockets(link, exchange, kept, events);
            }
            _ => self.change_watchers(change, next),
        }
    }

    /// The sockets of a change are there, or something is in the way.
    pub(in crate::supervisor) fn sockets_changed(
        &mut self,
        result: Result<(), String>,
        lost: BTreeMap<String, String>,
        made: &[String],
    ) {
        // Their watchers wait instead of failing, and they are tried again.
        self.sockets.lost(lost);
        let Some(mut change) = self.change.take() else {
            return;
        };
        let mut next = match std::mem::replace(&mut change.stage, Stage::Reading) {
            Stage::Sockets(next) => next,
            Stage::Closing => return self.closed(change),
            other => {
                change.stage = other;
                self.change = Some(change);
                return;
            }
        };
        if let Err(error) = self.may_act() {
            return self.end_change(change, &Err(error));
        }
        if change.resumed {
            self.plan_users(&mut next.plan, &next.effective, made);
        }
        match result {
            Ok(()) => self.change_watchers(change, *next),
            Err(reason) if change.undoing.is_some() => {
                tracing::error!(reason, "cannot restore a socket yet");
                let why = change.undoing.take().unwrap_or_default();
                change.undoing = Some(format!("{why}; but {reason}"));
                self.change_watchers(change, *next);
            }
            // A predecessor has changed some of it.
            Err(reason) if change.resumed => {
                self.config = Arc::new(next.config);
                self.take_back(change, reason);
            }
            Err(reason) => {
                self.retry_sockets();
                let reason = format!("nothing was changed: {reason}");
                self.end_change(change, &Err(RequestError::new(Errno::Command, reason)));
            }
        }
    }

    /// Watchers that have workers with this socket.
    fn holders(&self, socket: &String) -> Vec<String> {
        let holds = |config: &WatcherConfig| {
            config.sockets.contains(socket) || config.stdin_socket.as_ref() == Some(socket)
        };
        self.watchers
            .values()
            .filter(|watcher| !watcher.workers().is_empty() && holds(watcher.config()))
            .map(|watcher| watcher.config().name.clone())
            .collect()
    }

    /// Sockets are being closed and opened again: nobody else may have them now.
    pub(in crate::supervisor) fn is_changing_sockets(&self) -> bool {
        matches!(
            self.change,
            Some(Change {
                stage: Stage::Sockets(_),
                ..
            })
        )
    }
}
