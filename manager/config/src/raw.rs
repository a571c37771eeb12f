//! Sections sorted by kind, still text.
//!
//! Owns which section is a watcher, a socket, a plugin or an environment, and what each is called;
//! values are `resolve`'s. A section whose kind is not known is kept out and reported when it looks
//! misspelt.
//! Source: Circus 0.17.2's `get_config`.

use crate::environment::Variables;
use crate::ini::{Document, Entry, Section};
use crate::known;
use crate::problem::{Findings, Origin};

/// One section with its keys and those it inherits from `[DEFAULT]`.
#[derive(Debug, Clone)]
pub struct RawSection {
    /// What follows the kind: `web` of `[watcher:web]`.
    pub name: String,
    /// The section's first line.
    pub origin: Origin,
    /// In file order; those of `[DEFAULT]` last.
    pub entries: Vec<Entry>,
    /// So many of them are the section's own.
    pub own: usize,
}

/// The sections of a document by kind, in file order.
#[derive(Debug, Clone, Default)]
pub struct RawConfig {
    /// Keys of `[circus]`.
    pub circus: Vec<Entry>,
    /// So many of them are the section's own; the others come from `[DEFAULT]`.
    pub circus_own: usize,
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
                // As in Circus; [DEFAULT] alone makes no watcher. Its lines may be among those that
                // are no INI, and then that is what is wrong.
                let origin = &section.origin;
                if !findings.errors.iter().any(|error| {
                    error.origin.file() == origin.file() && error.origin.line() > origin.line()
                }) {
                    findings.warn(
                        origin,
                        format!("[{}] has no keys and is ignored", section.name),
                    );
                }
                continue;
            }
            match kind {
                Some(("watcher", name)) => raw.watchers.push(named(name, section, entries)),
                Some(("socket", name)) => raw.sockets.push(named(name, section, entries)),
                Some(("plugin", name)) => raw.plugins.push(named(name, section, entries)),
                Some(("env", _)) => report_keys_among_variables(section, findings),
                None if section.name == "circus" => {
                    raw.circus = entries;
                    raw.circus_own = section.entries.len();
                }
                None if section.name == "env" => report_keys_among_variables(section, findings),
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
        own: section.entries.len(),
    }
}

/// A section that nothing reads.
fn report_unknown(section: &Section, findings: &mut Findings) {
    let name = &section.name;
    let kind = name.split(':').next().unwrap_or_default();
    let text = match known::nearest(known::SECTIONS, kind.trim()) {
        Some("circus") => format!("[{name}] is ignored; did you mean [circus]?"),
        Some(known) => format!("[{name}] is ignored; did you mean [{known}:NAME]?"),
        None if kind == "program" => {
            format!("[{name}] is a section of supervisord and is ignored; use [watcher:NAME]")
        }
        None => format!(
            "[{name}] is ignored; expected [circus], [watcher:NAME], [socket:NAME], [env], [env:NAME] or [plugin:NAME]"
        ),
    };
    findings.warn(&section.origin, text);
}

/// A watcher's key among variables: nearly always the section above was to be one of a watcher.
fn report_keys_among_variables(section: &Section, findings: &mut Findings) {
    for entry in &section.entries {
        let key = &entry.key;
        if known::is_watcher_key(key) && !key.contains(char::is_uppercase) {
            findings.warn(
                &entry.origin,
                format!(
                    "{key} becomes an environment variable in [{}]; a watcher's key belongs in [watcher:NAME]",
                    section.name
                ),
            );
        }
    }
}
