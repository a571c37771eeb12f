//! After a restart of the manager or the kernel: whose are the processes there are?
//!
//! Owns the note we leave with each process. Pure. The watcher and the number are in its kernel name
//! (`papa_config::worker_of`).

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
