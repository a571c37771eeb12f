//! Sections sorted by kind, still text.
//!
//! Owns which section is a watcher, a socket, a plugin or an environment, and what each is called; values are
//! `resolve`'s. A section whose kind is not known is kept out and reported when it looks misspelt.
//! Source: Circus 0.17.2's `get_config`.

use crate::config::environment::Variables;
use crate::config::ini::{Document, Entry, Section};
use crate::config::known;
use crate::config::problem::{Findings, Origin};

/// One section with its keys and those it inherits from `[DEFAULT]`.
#[derive(Debug, Clone)]
pub struct RawSection {
    /// What follows the kind: `web` of `[watcher:web]`.
    pub name: String,
    /// The section's first line.
    pub origin: Origin,
    /// In file order.
    pub entries: Vec<Entry>,
}

/// The sections of a document by kind, in file order.
#[derive(Debug, Clone, Default)]
pub struct RawConfig {
    /// Keys of `[circus]`.
    pub circus: Vec<Entry>,
    /// `[watcher:NAME]`.
    pub watchers: Vec<RawSection>,
    /// `[socket:NAME]`.
    pub sockets: Vec<RawSection>,
    /// `[plugin:NAME]`.
    pub plugins: Vec<RawSection>,
}

impl RawConfig {
    /// Sorts the sections of `document`.
    #[must_use]
    pub fn new(document: &Document, findings: &mut Findings) -> Self {
        let mut raw = Self::default();
        for section in document.sections() {
            let entries: Vec<_> = document.entries(section).cloned().collect();
            let kind = section.name.split_once(':');
            if kind.is_some_and(|(kind, _)| matches!(kind, "watcher" | "socket" | "plugin"))
                && section.entries.is_empty()
            {
                // As in Circus; [DEFAULT] alone makes no watcher.
                findings.warn(
                    &section.origin,
                    format!("[{}] has no keys and is ignored", section.name),
                );
                continue;
            }
            match kind {
                Some(("watcher", name)) => raw.watchers.push(named(name, section, entries)),
                Some(("socket", name)) => raw.sockets.push(named(name, section, entries)),
                Some(("plugin", name)) => raw.plugins.push(named(name, section, entries)),
                Some(("env", _)) => {}
                None if section.name == "circus" => raw.circus = entries,
                None if section.name == "env" => {}
                _ => report_unknown(section, findings),
            }
        }
        raw.report_unmatched_environments(document, findings);
        raw
    }

    fn report_unmatched_environments(&self, document: &Document, findings: &mut Findings) {
        for section in document.sections() {
            let Some(patterns) = section.name.strip_prefix("env:") else {
                continue;
            };
            if !self
                .watchers
                .iter()
                .any(|watcher| Variables::patterns_match(patterns, &watcher.name))
            {
                findings.warn(
                    &section.origin,
                    format!("[{}] matches no watcher; case matters", section.name),
                );
            }
        }
    }
}

fn named(name: &str, section: &Section, entries: Vec<Entry>) -> RawSection {
    RawSection {
        name: name.to_owned(),
        origin: section.origin.clone(),
        entries,
    }
}

fn report_unknown(section: &Section, findings: &mut Findings) {
    let kind = section.name.split(':').next().unwrap_or_default();
    if let Some(known) = known::nearest(known::SECTIONS, kind.trim()) {
        let form = if known == "circus" {
            "[circus]".to_owned()
        } else {
            format!("[{known}:NAME]")
        };
        findings.warn(
            &section.origin,
            format!("[{}] is ignored; did you mean {form}?", section.name),
        );
    }
}
