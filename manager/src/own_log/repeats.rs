//! Lines that come again and again: some are written, the others are counted.
//!
//! Owns how many lines of one kind may come. A kind is the place in the program that says
//! something, and the watcher, socket or file it speaks of: one that fails over and over costs a
//! bounded number of lines, and hides no other.
//! Invariant: at most [`MAX_KINDS`] kinds are known.

use std::collections::HashMap;
use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Lines of one kind that may come at once …
const BURST_LINES: f64 = 100.0;
/// … and in a minute after that.
const LINES_PER_MINUTE: f64 = 5.0;
/// Lines left out are counted for so long before the number is said.
const COUNTING: Duration = Duration::from_secs(60);
/// Beyond that, all watchers and files count as one.
const MAX_KINDS: usize = 4096;
/// What a line may speak of.
const SUBJECTS: [&str; 4] = ["watcher", "path", "socket", "name"];

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Kind {
    place: Identifier,
    subject: String,
}

#[derive(Debug)]
struct Count {
    /// Lines that may still come.
    room: f64,
    as_of: Instant,
    left_out: u64,
    /// When the first of them was.
    since: Instant,
    level: Level,
    text: String,
}

/// Lines that were left out.
#[derive(Debug, PartialEq, Eq)]
struct LeftOut {
    level: Level,
    subject: String,
    text: String,
    lines: u64,
}

#[derive(Debug, Default)]
struct Counts(HashMap<Kind, Count>);

impl Counts {
    fn admits(&mut self, mut kind: Kind, level: Level, text: &str, now: Instant) -> bool {
        if self.0.len() >= MAX_KINDS && !self.0.contains_key(&kind) {
            kind.subject.clear();
        }
        let count = self.0.entry(kind).or_insert_with(|| Count {
            room: BURST_LINES,
            as_of: now,
            left_out: 0,
            since: now,
            level,
            text: String::new(),
        });
        let passed = now.saturating_duration_since(count.as_of).as_secs_f64();
        count.room = (count.room + passed * LINES_PER_MINUTE / 60.0).min(BURST_LINES);
        count.as_of = now;
        if count.room >= 1.0 {
            count.room -= 1.0;
            return true;
        }
        if count.left_out == 0 {
            count.since = now;
            text.clone_into(&mut count.text);
        }
        count.left_out += 1;
        false
    }

    /// What was left out for long enough to be said, and forgets kinds that are quiet.
    fn due(&mut self, now: Instant, all: bool) -> Vec<LeftOut> {
        let mut due = Vec::new();
        self.0.retain(|kind, count| {
            if count.left_out == 0 {
                let passed = now.saturating_duration_since(count.as_of).as_secs_f64();
                return count.room + passed * LINES_PER_MINUTE / 60.0 < BURST_LINES;
            }
            if all || now.saturating_duration_since(count.since) >= COUNTING {
                due.push(LeftOut {
                    level: count.level,
                    subject: kind.subject.clone(),
                    text: mem::take(&mut count.text),
                    lines: mem::take(&mut count.left_out),
                });
            }
            true
        });
        due.sort_by(|a, b| (&a.subject, &a.text).cmp(&(&b.subject, &b.text)));
        due
    }
}

/// The filter.
#[derive(Debug, Clone, Default)]
pub(super) struct Repeats(Arc<Mutex<Counts>>);

impl Repeats {
    /// Says how many lines were left out: each minute, and at the end `all`.
    pub(super) fn say(&self, all: bool) {
        let due = self.lock().due(Instant::now(), all);
        for LeftOut {
            level,
            subject,
            text,
            lines,
        } in due
        {
            let about = if subject.is_empty() {
                String::new()
            } else {
                format!(" {subject}:")
            };
            if level <= Level::WARN {
                tracing::warn!("{lines} more of these in the last minute:{about} {text}");
            } else {
                tracing::info!("{lines} more of these in the last minute:{about} {text}");
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Subscriber> Layer<S> for Repeats {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let about = event.metadata();
        // Who asks for `debug` wants to see everything; the size of the log is bounded all the
        // same.
        if *about.level() > Level::INFO || about.target() == module_path!() {
            return true;
        }
        let mut said = Said::default();
        event.record(&mut said);
        let kind = Kind {
            place: about.callsite(),
            subject: said.subject,
        };
        self.lock()
            .admits(kind, *about.level(), &said.text, Instant::now())
    }
}

/// What a line says, as far as it matters here.
#[derive(Debug, Default)]
struct Said {
    subject: String,
    text: String,
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.text = format!("{value:?}");
        } else if self.subject.is_empty() && SUBJECTS.contains(&field.name()) {
            self.subject = format!("{} {value:?}", field.name());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(subject: &str) -> Kind {
        struct Place;
        impl tracing::Callsite for Place {
            fn set_interest(&self, _: tracing::subscriber::Interest) {}
            fn metadata(&self) -> &tracing::Metadata<'_> {
                unreachable!("nobody asks")
            }
        }
        static PLACE: Place = Place;
        Kind {
            place: Identifier(&PLACE),
            subject: subject.to_owned(),
        }
    }

    #[test]
    fn a_watcher_that_fails_for_ever_costs_few_lines_and_hides_no_other() {
        let mut counts = Counts::default();
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let mut written = |subject: &str, seconds: u64, lines: usize| {
            (0..lines)
                .filter(|_| {
                    counts.admits(kind(subject), Level::INFO, "a worker ended", at(seconds))
                })
                .count()
        };
        assert_eq!(written("watcher bad", 0, 5000), 100);
        assert_eq!(written("watcher good", 0, 50), 50);
        assert_eq!(written("watcher bad", 59, 5000), 4);
        assert_eq!(counts.due(at(59), false), []);
        let due = counts.due(at(60), false);
        assert_eq!(due.len(), 1);
        assert_eq!(
            (due[0].subject.as_str(), due[0].text.as_str(), due[0].lines),
            ("watcher bad", "a worker ended", 9896)
        );
        assert_eq!(counts.due(at(61), true), []);
        // Quiet for long enough, they are forgotten.
        assert_eq!(counts.due(at(10_000), false), []);
        assert!(counts.0.is_empty());
    }

    #[test]
    fn so_many_kinds_and_no_more_are_known() {
        let mut counts = Counts::default();
        let now = Instant::now();
        for number in 0..2 * MAX_KINDS {
            counts.admits(kind(&format!("path /{number}")), Level::WARN, "x", now);
        }
        assert_eq!(counts.0.len(), MAX_KINDS + 1);
    }
}
