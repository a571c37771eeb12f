//! What the manager must still know after its own death, as values in the kernel.
//!
//! Owns their names and their form: one JSON object per watcher under `NAMESPACE.manager.watcher.WATCHER`, and the held log state
//! under `NAMESPACE.manager.logs`. Reading is tolerant: a field that is missing or unreadable has its default, so that an older or
//! newer manager can take over.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::backoff::Backoff;

/// What is kept of one watcher.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Kept {
    /// The operator stopped it (`true`) or started it (`false`), whatever `autostart` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<bool>,
    /// Serials of workers that ended and are not to be started again (`respawn = false`).
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub finished: BTreeSet<u64>,
    /// By worker number: how its restarts went, and until when it waits.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub backoff: BTreeMap<u32, KeptBackoff>,
}

/// A worker's restart record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KeptBackoff {
    /// Quick ends in a row.
    pub record: Backoff,
    /// No start before this, in milliseconds since the epoch.
    pub until_ms: u64,
}

impl Kept {
    /// Reads a value; anything unreadable counts as nothing kept.
    #[must_use]
    pub fn parse(value: &[u8]) -> Self {
        serde_json::from_slice(value).unwrap_or_else(|error| {
            tracing::warn!(%error, "a kept watcher state is unreadable and is ignored");
            Self::default()
        })
    }

    /// The value to keep.
    #[must_use]
    pub fn to_value(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Name of the value for the watcher whose lower-case name is `key`.
#[must_use]
pub fn watcher_value(namespace: &str, key: &str) -> String {
    format!("{namespace}.manager.watcher.{key}")
}

/// Name the log state's memfd is held under.
#[must_use]
pub fn held_logs(namespace: &str) -> String {
    format!("{namespace}.manager.logs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_state_survives_and_a_foreign_one_is_nothing() {
        let mut kept = Kept {
            stopped: Some(true),
            ..Kept::default()
        };
        kept.finished.insert(7);
        kept.backoff.insert(1, KeptBackoff::default());
        assert_eq!(Kept::parse(kept.to_value().as_bytes()), kept);
        assert_eq!(
            Kept::parse(br#"{"stopped":true,"of":"the future"}"#).stopped,
            Some(true)
        );
        assert_eq!(Kept::parse(b"not json"), Kept::default());
        assert_eq!(Kept::default().to_value(), "{}");
    }
}
