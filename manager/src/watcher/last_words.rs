//! How the latest workers of a watcher ended, and what of that is said with its message.
//!
//! Leaves to others: the record (`last_words`), when there is one (`supervisor`).

use crate::last_words::{self, End, Ends};
use crate::watcher::Watcher;

impl Watcher {
    /// How its latest workers ended that nobody had asked to, oldest first.
    #[must_use]
    pub fn last_ends(&self) -> &Ends {
        &self.last_ends
    }

    /// Whether that end is among them.
    #[must_use]
    pub fn knows_end(&self, serial: u64) -> bool {
        self.last_ends.iter().any(|end| end.serial == serial)
    }

    /// A worker has ended so; what follows from it is told next.
    pub fn note_last_words(&mut self, end: End) {
        self.about = Some(end.serial);
        last_words::push(&mut self.last_ends, end);
    }

    /// What a predecessor has kept.
    pub fn resume_ends(&mut self, ends: Ends) {
        // Its message is about the latest of them, unless it names another cause.
        let newest = ends.back().filter(|end| {
            let of_worker = format!("worker {} ", end.wid);
            let message = self.message.as_deref();
            message.is_some_and(|message| message.contains(&of_worker))
        });
        self.about = newest.map(|end| end.serial);
        self.last_ends = ends;
        self.last_ends.truncate(last_words::MAX_ENDS);
    }

    /// The end that its message is about.
    #[must_use]
    pub fn end_told(&self) -> Option<&End> {
        let about = self.about?;
        self.last_ends.iter().find(|end| end.serial == about)
    }

    /// The message, and what the worker that it is about said last.
    pub(super) fn with_last_line(&self, message: String) -> String {
        match self.end_told().and_then(End::last_line) {
            Some(line) => format!("{message}; its last line: {line}"),
            None => message,
        }
    }
}
