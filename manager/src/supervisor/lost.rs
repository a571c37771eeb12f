//! Output that goes with everything else when all is shut down: whose it was, where it should have
//! gone, and why it did not.
//!
//! Owns the question whether waiting for the log files has a point, and the words for what was not
//! written.

use std::collections::BTreeMap;

use crate::control::message::LostOutput;
use crate::supervisor::Supervisor;

impl Supervisor {
    /// Whether everything that still waits to be written waits for a log file that cannot be.
    pub(super) fn only_waits_for_broken_logs(&self) -> bool {
        if self.output.troubles().is_empty() {
            return false;
        }
        let mut waiting = self.dead.draining().clone();
        for watcher in self.watchers.values() {
            let config = watcher.config();
            if self.log_trouble_of(config).is_some() {
                for serial in &watcher.kept().ended {
                    waiting.remove(serial);
                }
            }
        }
        waiting.is_empty()
    }

    /// What is told of output that was given up: bytes by lower-case name of a watcher.
    pub(super) fn describe_lost(&self, bytes: &BTreeMap<String, u64>) -> Vec<LostOutput> {
        let configs = self.logged();
        let lost = bytes.iter().map(|(key, bytes)| {
            let config = configs.iter().find(|config| config.key == *key);
            let files = config.into_iter().flat_map(|config| {
                let streams = [&config.stdout, &config.stderr];
                streams.into_iter().filter_map(|stream| stream.place())
            });
            let mut files: Vec<String> = files.collect();
            files.dedup();
            let reason = config.and_then(|config| self.log_trouble_of(config));
            LostOutput {
                watcher: config.map_or_else(|| key.clone(), |config| config.name.clone()),
                files,
                bytes: *bytes,
                reason: reason.unwrap_or_else(|| "it was not written in time".to_owned()),
            }
        });
        let lost: Vec<LostOutput> = lost.collect();
        for one in &lost {
            tracing::error!(
                watcher = one.watcher,
                bytes = one.bytes,
                files = ?one.files,
                reason = one.reason,
                "Output is lost: everything was to be stopped, and it cannot be written"
            );
        }
        lost
    }
}
