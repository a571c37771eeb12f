//! After a restart of the manager or the kernel: whose are the processes there are?
//!
//! Owns the reading of what a process says of itself: its kernel name, which names watcher and
//! worker number (circusd's are alike), and the note we leave with each. Pure.
//! Invariant: only names that `worker_name` writes are read as a worker's.

use papa_protocol::process::{Process, Tag};
use serde::{Deserialize, Serialize};

/// What is noted with each process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Note {
    /// Which reload of its watcher it was started by.
    pub generation: u64,
    /// What it was started with, as `kernel_link::settings` has it; none: by an older manager.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settings: Option<u64>,
    /// The highest serial of the sockets it was given: one of its sockets that has a higher one was
    /// made after it, and is another than it has. None: it has none, or an older manager or kernel
    /// did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sockets: Option<u64>,
}

impl Note {
    /// The form the kernel keeps.
    #[must_use]
    pub fn to_tag(&self) -> Option<Tag> {
        Tag::new(serde_json::to_value(self).ok()?)
    }

    /// Reads the note of a process; none if it has none that is ours.
    #[must_use]
    pub fn of(process: &Process) -> Option<Self> {
        let tag = process.tag.as_ref()?;
        Self::deserialize(tag.value()).ok()
    }
}

/// The lower-case watcher name and the worker number in a kernel name.
#[must_use]
pub fn worker_of<'a>(namespace: &str, kernel_name: &'a str) -> Option<(&'a str, u32)> {
    let (watcher, wid) = kernel_name
        .strip_prefix(namespace)?
        .strip_prefix('.')?
        .rsplit_once('.')?;
    // Only the one spelling that worker_name writes: `+7` or `07` are somebody else's.
    let number = wid.parse().ok()?;
    (wid == format!("{number}")).then_some((watcher, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_spelling_is_a_worker() {
        assert_eq!(worker_of("circus", "circus.web.3"), Some(("web", 3)));
        assert_eq!(
            worker_of("circus", "circus.web.api.12"),
            Some(("web.api", 12))
        );
        for other in [
            "circus.web",
            "circus.web.+7",
            "circus.web.07",
            "other.web.1",
            "circusweb.1",
        ] {
            assert_eq!(worker_of("circus", other), None, "{other}");
        }
    }
}
