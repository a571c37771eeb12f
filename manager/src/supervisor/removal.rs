//! Whether a change would stop so much that somebody has to say that it is meant.
//!
//! Owns the question only: a file that is gone for a moment reads like one from which everything
//! was taken. Asked before anything is touched; `--accept-removal` is the answer. Pure.

use crate::config::Config;
use crate::supervisor::Supervisor;
use crate::supervisor::compare::Next;

/// Most names in one sentence.
const MAX_NAMES: usize = 5;

impl Supervisor {
    /// Why going on needs a word from whoever asks; none if it does not.
    pub(super) fn needs_acceptance(&self, next: &Next) -> Option<String> {
        let mut stopped = Vec::new();
        let (mut workers, mut lost, mut running) = (0_u64, 0_u64, 0_usize);
        for watcher in self.watchers.values() {
            if watcher.is_removed() || watcher.workers().is_empty() || !watcher.is_wanted() {
                continue;
            }
            let now = u64::from(watcher.count());
            let config = watcher.config();
            let after = next
                .effective
                .watcher(&config.name)
                .map(|after| u64::from(after.numprocesses));
            running += 1;
            workers += now;
            // What was set at run time stays unless the file says something else than it did.
            let changed = after != Some(u64::from(config.numprocesses));
            let after = if changed { after.unwrap_or(0) } else { now };
            lost += now.saturating_sub(after);
            if after == 0 {
                stopped.push(config.name.as_str());
            }
        }
        if lost == 0 {
            return None;
        }
        let vanished =
            vanished(&self.config, &next.config).or_else(|| emptied(&stopped, &next.config));
        let most = stopped.len() * 2 > running || lost * 2 > workers;
        if vanished.is_none() && !most {
            return None;
        }
        stopped.sort_unstable();
        let more = stopped.len().saturating_sub(MAX_NAMES);
        stopped.truncate(MAX_NAMES);
        let mut names = stopped.join(", ");
        if more > 0 {
            names.push_str(&format!(" and {more} more"));
        }
        let whose = if names.is_empty() {
            String::new()
        } else {
            format!(" ({names})")
        };
        let why = vanished.map_or(String::new(), |why| format!(", because {why}"));
        Some(format!(
            "this would stop {lost} of {workers} workers{whose}{why}; if that is meant, `papactl reloadconfig --accept-removal`"
        ))
    }
}

/// A watcher that is stopped and whose section is there still, without a key: as after half a save.
fn emptied(stopped: &[&str], after: &Config) -> Option<String> {
    let document = &after.base.document;
    let is_there = |name: &str| {
        document.sections().iter().any(|section| {
            let kind = section.name.split_once(':');
            kind.is_some_and(|(kind, known)| {
                kind == "watcher" && known.trim().eq_ignore_ascii_case(name)
            })
        })
    };
    let mut stopped = stopped.iter();
    let name = stopped.find(|name| after.watcher(name).is_none() && is_there(name))?;
    Some(format!("[watcher:{name}] has no keys any more"))
}

/// What was there when the file was last read and is not now, as after a directory was moved or a
/// file is being written.
fn vanished(before: &Config, after: &Config) -> Option<String> {
    let matched = |config: &Config, pattern: &str| {
        let mut patterns = config.patterns.iter();
        patterns.any(|known| known.text == pattern && known.matches > 0)
    };
    let pattern = after
        .patterns
        .iter()
        .find(|pattern| pattern.matches == 0 && matched(before, &pattern.text));
    if let Some(pattern) = pattern {
        return Some(format!("{} matches no file any more", pattern.text));
    }
    let empty = after
        .empty_files
        .iter()
        .find(|file| before.files.contains(file) && !before.empty_files.contains(file))?;
    Some(format!("{} has become empty", empty.display()))
}
