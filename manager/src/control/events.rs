//! What happened to watchers and workers, for whoever listens.
//!
//! Owns a ring of the latest events, their numbers, and the listeners that wait for the next one. A
//! listener fetches: it says which event it saw last and gets those that came after, at most
//! `BATCH_EVENTS` at a time, or waits until there is one. So nobody who reads slowly can hold
//! anything up; who falls behind the ring is told how many events it missed.
//! Leaves to others: when something is worth an event (`supervisor`), the connection (`server`).
//! Invariant: numbers rise by one for as long as the manager lives, and start at 1; the ring holds
//! at most `RING_EVENTS`.
//! Source: Circus's event topics and payloads.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use crate::control::reply::Reply;
use crate::control::request::{Listen, Request, Since};
use crate::last_words::End;
use papa_control::message::EventsReply;

/// Events kept for those who come back: minutes of a busy manager, some 10 MiB at the very most.
const RING_EVENTS: usize = 4096;
/// Most events in one answer to a listener.
const BATCH_EVENTS: usize = 256;
/// Longest reason in an event, in bytes.
const MAX_REASON_BYTES: usize = 512;

/// What can happen. The first nine are Circus's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// A watcher was added by a request.
    Add,
    /// A watcher was removed by a request.
    Remove,
    /// A worker runs that we did not know.
    Spawn {
        /// Its process.
        pid: u32,
        /// Its number within the watcher.
        wid: u32,
    },
    /// The watcher is active.
    Start,
    /// The watcher is stopped.
    Stop,
    /// A signal was sent to end a worker.
    Kill {
        /// Its process.
        pid: u32,
        /// Which.
        signal: i32,
    },
    /// A worker has ended.
    Reap(Box<End>),
    /// A reload is complete.
    Reload,
    /// An option was set.
    Updated {
        /// Which.
        option: String,
    },
    /// A worker serves.
    Ready {
        /// Its process.
        pid: u32,
        /// Its number within the watcher.
        wid: u32,
    },
    /// A worker failed its health checks and is replaced.
    Unhealthy {
        /// Its process.
        pid: u32,
        /// Its number within the watcher.
        wid: u32,
        /// What the check said.
        reason: String,
    },
    /// A reload was taken back.
    RolledBack {
        /// Why.
        reason: String,
    },
    /// Workers end so often that the watcher pauses.
    Flapping {
        /// How often, and for how long.
        reason: String,
    },
    /// The watcher was stopped because going on had no prospect.
    GaveUp {
        /// Why.
        reason: String,
        /// The end that decided it, if it was one.
        end: Option<Box<End>>,
    },
}

impl EventKind {
    /// Last part of the topic.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Spawn { .. } => "spawn",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Kill { .. } => "kill",
            Self::Reap(_) => "reap",
            Self::Reload => "reload",
            Self::Updated { .. } => "updated",
            Self::Ready { .. } => "ready",
            Self::Unhealthy { .. } => "unhealthy",
            Self::RolledBack { .. } => "rolled_back",
            Self::Flapping { .. } => "flapping",
            Self::GaveUp { .. } => "gave_up",
        }
    }

    fn fields(&self) -> Value {
        match self {
            Self::Add | Self::Remove | Self::Start | Self::Stop | Self::Reload => json!({}),
            Self::Spawn { pid, wid } | Self::Ready { pid, wid } => {
                json!({"process_pid": pid, "wid": wid})
            }
            Self::Kill { pid, signal } => json!({"process_pid": pid, "signum": signal}),
            Self::Reap(end) => {
                let mut fields = of_end(end);
                fields["process_pid"] = end.pid.into();
                fields
            }
            Self::Updated { option } => json!({ "option": shortened(option) }),
            Self::Unhealthy { pid, wid, reason } => {
                json!({"process_pid": pid, "wid": wid, "reason": shortened(reason)})
            }
            Self::RolledBack { reason } | Self::Flapping { reason } => {
                json!({ "reason": shortened(reason) })
            }
            Self::GaveUp { reason, end } => {
                let mut fields = end.as_ref().map_or_else(|| json!({}), |end| of_end(end));
                fields["reason"] = shortened(reason).into();
                fields
            }
        }
    }
}

/// How a worker ended. `exit_code` is negative for a signal, and null when nobody saw the end;
/// `ran` is in seconds.
fn of_end(end: &End) -> Value {
    let ran = end.ran_ms.map(|ms| Duration::from_millis(ms).as_secs_f64());
    json!({
        "wid": end.wid,
        "exit_code": end.signal.map(|signal| -signal).or(end.code),
        "core": end.core,
        "asked": end.asked,
        "ran": ran,
        "tail": end.tail(),
    })
}

fn shortened(text: &str) -> &str {
    let mut end = text.len().min(MAX_REASON_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[derive(Debug)]
struct Recorded {
    topic: String,
    event: Map<String, Value>,
}

/// A listener that has seen everything there is.
#[derive(Debug)]
struct Waiter {
    id: Value,
    topics: Vec<String>,
    reply: oneshot::Sender<Reply>,
}

/// The latest events and who waits for the next.
#[derive(Debug)]
pub struct EventLog {
    incarnation: String,
    /// Number of the newest event; 0 before the first.
    newest: u64,
    ring: VecDeque<Recorded>,
    waiters: Vec<Waiter>,
}

impl EventLog {
    /// A log without events, of a manager's life that nobody else calls `incarnation`.
    #[must_use]
    pub fn new(incarnation: String) -> Self {
        Self {
            incarnation,
            newest: 0,
            ring: VecDeque::new(),
            waiters: Vec::new(),
        }
    }

    /// Adds an event of `watcher`, which happened at `time`, in seconds since the epoch.
    pub fn publish(&mut self, watcher: &str, kind: &EventKind, time: f64) {
        let topic = format!(
            "watcher.{}.{}",
            watcher.to_lowercase().replace(' ', "_"),
            kind.name()
        );
        self.newest += 1;
        let mut event = Map::new();
        event.insert("seq".to_owned(), self.newest.into());
        event.insert("topic".to_owned(), topic.as_str().into());
        event.insert("watcher".to_owned(), watcher.into());
        event.insert("time".to_owned(), time.into());
        if let Value::Object(fields) = kind.fields() {
            event.extend(fields);
        }

        if self.ring.len() == RING_EVENTS {
            self.ring.pop_front();
        }
        self.tell(&topic, &event, time);
        self.ring.push_back(Recorded { topic, event });
    }

    fn tell(&mut self, topic: &str, event: &Map<String, Value>, time: f64) {
        if self.waiters.is_empty() {
            return;
        }
        let wanted = |waiter: &mut Waiter| waiter.reply.is_closed() || wants(&waiter.topics, topic);
        let told: Vec<Waiter> = self.waiters.extract_if(.., wanted).collect();
        for waiter in told {
            let body = EventsReply {
                incarnation: self.incarnation.clone(),
                seq: self.newest,
                missed: Some(0),
                events: vec![event.clone()],
            };
            // It may have gone; then nobody wants the answer.
            let _ = waiter.reply.send(Reply::ok(waiter.id, time, &body));
        }
    }

    /// Answers a listener: with what it has not seen, or, if it waits (`request.waiting`), as soon
    /// as there is something.
    ///
    /// The number of listeners is bounded by that of connections.
    pub fn fetch(
        &mut self,
        listen: &Listen,
        request: &Request,
        reply: oneshot::Sender<Reply>,
        time: f64,
    ) {
        let body = self.after(listen);
        if request.waiting && body.events.is_empty() && body.missed == Some(0) {
            self.waiters.retain(|waiter| !waiter.reply.is_closed());
            self.waiters.push(Waiter {
                id: request.id.clone(),
                topics: listen.topics.clone(),
                reply,
            });
            return;
        }
        let _ = reply.send(Reply::ok(request.id.clone(), time, &body));
    }

    fn after(&self, listen: &Listen) -> EventsReply {
        // The number before the first in the ring.
        let floor = self.newest - self.ring.len() as u64;
        let (from, missed) = match &listen.since {
            None => (self.newest, Some(0)),
            Some(Since { incarnation, seq }) => {
                let ours = incarnation
                    .as_ref()
                    .is_none_or(|told| *told == self.incarnation);
                if ours && *seq <= self.newest {
                    (floor.max(*seq), Some(floor.saturating_sub(*seq)))
                } else {
                    // Of an earlier life: how many events it had after that one, nobody knows any
                    // more.
                    (floor, None)
                }
            }
        };
        let skipped = usize::try_from(from - floor).unwrap_or(usize::MAX);
        let mut seq = from;
        let mut events = Vec::new();
        for recorded in self.ring.iter().skip(skipped) {
            if events.len() == BATCH_EVENTS {
                break;
            }
            seq += 1;
            if wants(&listen.topics, &recorded.topic) {
                events.push(recorded.event.clone());
            }
        }
        EventsReply {
            incarnation: self.incarnation.clone(),
            seq,
            missed,
            events,
        }
    }
}

fn wants(topics: &[String], topic: &str) -> bool {
    topics.is_empty() || topics.iter().any(|start| topic.starts_with(start.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::request::Command;

    fn fetch(log: &mut EventLog, listen: &Listen, waiting: bool) -> oneshot::Receiver<Reply> {
        let (sender, receiver) = oneshot::channel();
        let mut request = Request::accepted(Command::Listen(listen.clone()));
        request.waiting = waiting;
        log.fetch(listen, &request, sender, 1.0);
        receiver
    }

    fn answer(receiver: &mut oneshot::Receiver<Reply>) -> EventsReply {
        receiver.try_recv().unwrap().body().unwrap()
    }

    fn since(incarnation: Option<&str>, seq: u64) -> Listen {
        Listen {
            topics: Vec::new(),
            since: Some(Since {
                incarnation: incarnation.map(str::to_owned),
                seq,
            }),
        }
    }

    fn numbers(reply: &EventsReply) -> Vec<u64> {
        let number = |event: &Map<String, Value>| event["seq"].as_u64().unwrap();
        reply.events.iter().map(number).collect()
    }

    #[test]
    fn events_have_circus_topics_and_fields() {
        let mut log = EventLog::new("a".into());
        log.publish("My Web", &EventKind::Spawn { pid: 7, wid: 1 }, 2.5);
        let reply = answer(&mut fetch(&mut log, &since(None, 0), false));
        assert_eq!(
            Value::Object(reply.events[0].clone()),
            json!({"seq":1,"topic":"watcher.my_web.spawn","watcher":"My Web","time":2.5,"process_pid":7,"wid":1})
        );
    }

    #[test]
    fn a_listener_gets_what_came_after_or_waits_for_it() {
        let mut log = EventLog::new("a".into());
        log.publish("w", &EventKind::Start, 1.0);
        let first = answer(&mut fetch(&mut log, &Listen::default(), false));
        assert_eq!((first.seq, numbers(&first)), (1, vec![]));
        let mut next = fetch(&mut log, &since(Some("a"), 1), true);
        let filtered = Listen {
            topics: vec!["watcher.other.".into()],
            ..since(None, 1)
        };
        let mut other = fetch(&mut log, &filtered, true);
        assert!(next.try_recv().is_err(), "nothing has happened");
        log.publish("w", &EventKind::Stop, 1.0);
        assert_eq!(numbers(&answer(&mut next)), [2]);
        assert!(other.try_recv().is_err(), "not its topic");
        log.publish("other", &EventKind::Stop, 1.0);
        let reply = answer(&mut other);
        assert_eq!(
            (reply.seq, numbers(&reply), reply.missed),
            (3, vec![3], Some(0))
        );
    }

    #[test]
    fn who_falls_behind_or_comes_from_an_earlier_life_is_told() {
        let mut log = EventLog::new("b".into());
        let count = RING_EVENTS as u64 + 10;
        for _ in 0..count {
            log.publish("w", &EventKind::Start, 1.0);
        }
        let reply = answer(&mut fetch(&mut log, &since(Some("b"), 3), true));
        assert_eq!(reply.missed, Some(7));
        assert_eq!(
            numbers(&reply),
            (11..11 + BATCH_EVENTS as u64).collect::<Vec<_>>()
        );
        assert_eq!(reply.seq, 10 + BATCH_EVENTS as u64);
        for earlier in [since(Some("a"), 3), since(None, count + 1)] {
            let reply = answer(&mut fetch(&mut log, &earlier, true));
            assert_eq!((reply.missed, numbers(&reply)[0]), (None, 11));
        }
    }

    #[test]
    fn waiters_that_went_are_forgotten() {
        let mut log = EventLog::new("a".into());
        for _ in 0..3 {
            drop(fetch(&mut log, &since(None, 0), true));
        }
        assert_eq!(log.waiters.len(), 1);
        log.publish("w", &EventKind::Start, 1.0);
        assert!(log.waiters.is_empty());
    }
}
