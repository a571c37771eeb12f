//! Keys of one section read as typed values.
//!
//! Owns looking a key up, replacing its variables, and the wording of every refusal: `KEY "VALUE":
//! expected …`. Knows no key by name. A value that is refused counts as its default, so that
//! reading goes on and every mistake is reported.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::environment::Lookup;
use crate::ini::Entry;
use crate::known::{self, Effect, Initial, Key, Written};
use crate::problem::{Findings, Origin};
use crate::scalar;
use crate::types::SocketConfig;

/// What values may refer to besides their own section.
#[derive(Debug, Clone, Copy)]
pub struct Around<'a> {
    /// Where relative paths begin, absolute.
    pub directory: &'a Path,
    /// The sockets of the configuration, where they are known.
    pub sockets: &'a [SocketConfig],
}

impl<'a> Around<'a> {
    fn written(self, text: &'a str) -> Written<'a> {
        Written {
            text,
            directory: self.directory,
            sockets: self.sockets,
        }
    }
}

/// The keys of one section.
#[derive(Debug)]
pub struct Fields<'a> {
    entries: &'a [Entry],
    lookup: &'a Lookup,
    /// Where mistakes go.
    pub findings: &'a mut Findings,
}

impl<'a> Fields<'a> {
    /// Reads `entries`; `lookup` knows their variables.
    pub fn new(entries: &'a [Entry], lookup: &'a Lookup, findings: &'a mut Findings) -> Self {
        Self {
            entries,
            lookup,
            findings,
        }
    }

    /// Every entry in file order.
    #[must_use]
    pub fn entries(&self) -> &'a [Entry] {
        self.entries
    }

    /// Where the value of `key` is written.
    #[must_use]
    pub fn origin(&self, key: &str) -> Option<&'a Origin> {
        self.entry(key).map(|entry| &entry.value_origin)
    }

    /// The text of `key`, variables replaced.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<String> {
        self.entry(key).map(|entry| self.expand(&entry.value))
    }

    /// The text of `key` unless it is blank.
    #[must_use]
    pub fn filled(&self, key: &str) -> Option<String> {
        self.text(key).filter(|text| !text.trim().is_empty())
    }

    /// Replaces the variables of `text`.
    #[must_use]
    pub fn expand(&self, text: &str) -> String {
        self.lookup.expand(text)
    }

    /// The value of `key` as `parse` reads it; none if it is missing or refused.
    pub fn parsed<T>(
        &mut self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let entry = self.entry(key)?;
        let text = self.expand(&entry.value);
        match parse(&text) {
            Ok(value) => Some(value),
            Err(expected) => {
                self.findings
                    .error(&entry.value_origin, format!("{key} {text:?}: {expected}"));
                None
            }
        }
    }

    /// A boolean.
    pub fn boolean(&mut self, key: &str, default: bool) -> bool {
        self.parsed(key, scalar::boolean).unwrap_or(default)
    }

    /// Stores in `section` what the keys of `table` say, or their defaults. A key without a default
    /// that is not written, or is refused, leaves its field as it is. `prefix` is what keys of the
    /// table are written with.
    pub fn fill<S>(&mut self, table: &[Key<S>], prefix: &str, section: &mut S, around: Around<'_>) {
        for key in table {
            if let (Some(read), Initial::Value(text)) = (key.read, key.default) {
                let refused = read(section, around.written(text));
                debug_assert!(refused.is_ok(), "the default of {}: {refused:?}", key.name);
            }
            self.fill_written(key, prefix, section, around);
        }
    }

    /// Stores in `section` what `key` says if it is written and read by the table.
    pub fn fill_written<S>(
        &mut self,
        key: &Key<S>,
        prefix: &str,
        section: &mut S,
        around: Around<'_>,
    ) {
        let name = format!("{prefix}{}", key.name);
        let Some(read) = key.read else { return };
        if key.may_be_blank && self.filled(&name).is_none() {
            return;
        }
        self.parsed(&name, |text| read(section, around.written(text)));
    }

    /// A whole number that fits `T`.
    pub fn whole<T: TryFrom<i64>>(&mut self, key: &str, min: i64, max: i64) -> Option<T> {
        self.parsed(key, |text| {
            let number = scalar::whole(text, min, max)?;
            T::try_from(number).map_err(|_| format!("expected a whole number from {min} to {max}"))
        })
    }

    /// Seconds.
    pub fn seconds(&mut self, key: &str, default: Duration) -> Duration {
        self.parsed(key, scalar::seconds).unwrap_or(default)
    }

    /// A path; a relative one begins at `directory`.
    #[must_use]
    pub fn path(&self, key: &str, directory: &Path) -> Option<PathBuf> {
        self.filled(key).map(|text| directory.join(text.trim()))
    }

    /// Every key as written, variables replaced.
    #[must_use]
    pub fn options(&self) -> BTreeMap<String, String> {
        self.entries
            .iter()
            .map(|entry| (entry.key.clone(), self.expand(&entry.value)))
            .collect()
    }

    /// Reports keys without effect and keys that look like a misspelt one of `table`. `prefix` is
    /// what keys of the table are written with: `stdout_stream.`; other keys are left alone.
    pub fn report_keys<S>(&mut self, table: &[Key<S>], prefix: &str) {
        for entry in self.entries {
            let Some(key) = entry.key.strip_prefix(prefix) else {
                continue;
            };
            match known::find(table, key).map(|key| key.effect) {
                Some(Effect::Active | Effect::Needless) => {}
                Some(Effect::Inactive(what)) => {
                    self.findings
                        .differs(&entry.origin, format!("{} {what}", entry.key));
                }
                None => {
                    if let Some(meant) = known::suggestion(table, key) {
                        self.findings.warn(
                            &entry.origin,
                            format!("{} is not known; did you mean {prefix}{meant}?", entry.key),
                        );
                    }
                }
            }
        }
    }

    fn entry(&self, key: &str) -> Option<&'a Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }
}
