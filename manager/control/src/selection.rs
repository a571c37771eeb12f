//! Which watchers a request is about.
//!
//! Owns how a name in a request is compared with watcher names; knows no watcher.
//! Invariant: a selection that came over the wire compiles: `check` is part of reading it.
//! Source: circus's `match` property.

use regex_lite::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

use crate::reply::{Errno, RequestError};

/// Longest regular expression, in bytes: names are far shorter.
const MAX_REGEX_BYTES: usize = 1024;
/// Largest compiled expression, in bytes: `(a{99}){99}` is short and grows.
const MAX_COMPILED_BYTES: usize = 256 * 1024;
/// Most names in one selection.
const MAX_NAMES: usize = 64;

/// Which watchers a command is about.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Selection {
    /// None means all (`start`, `restart`: all with `autostart`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// More names, compared the same way; nothing without `name` (not in Circus).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// How `name` is compared.
    #[serde(default, rename = "match", skip_serializing_if = "Matching::is_glob")]
    pub matching: Matching,
}

/// How a name in a request is compared with watcher names, which are lower-cased first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Matching {
    /// Shell pattern; the default.
    #[default]
    Glob,
    /// The name itself.
    Simple,
    /// Regular expression, anchored at the start only.
    Regex,
}

impl Matching {
    // The signature is serde's.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    fn is_glob(&self) -> bool {
        *self == Self::Glob
    }
}

/// A selection ready to be compared with many names.
#[derive(Debug)]
pub enum Matcher {
    /// Every name.
    All,
    /// This lower-case name.
    Simple(String),
    /// This lower-case pattern.
    Glob(String),
    /// This expression.
    Regex(Box<Regex>),
    /// Whatever one of these matches.
    Any(Vec<Self>),
    /// No name.
    Nothing,
}

impl Matcher {
    /// Whether the watcher whose lower-case name is `key` is meant.
    #[must_use]
    pub fn matches(&self, key: &str) -> bool {
        match self {
            Self::All => true,
            Self::Simple(name) => name == key,
            // A watcher may be called `a[1]`: its own name always matches.
            Self::Glob(name) => name == key || papa_config::fnmatch::matches(name, key),
            Self::Regex(regex) => regex.is_match(key),
            Self::Any(matchers) => matchers.iter().any(|matcher| matcher.matches(key)),
            Self::Nothing => false,
        }
    }
}

impl Selection {
    /// Everything.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// The watcher of this name, or those a pattern means.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: Some(name.into()),
            ..Self::default()
        }
    }

    /// Whether the names, and the expressions if they are such, can be used.
    ///
    /// # Errors
    /// One is no regular expression, or too large; there are too many.
    pub fn check(&self) -> Result<(), RequestError> {
        if self.names.len() >= MAX_NAMES {
            return Err(RequestError::new(
                Errno::Message,
                format!("\"names\": at most {MAX_NAMES} names; a pattern means several"),
            ));
        }
        if self.matching == Matching::Regex {
            for name in self.name.iter().chain(&self.names) {
                regex(name)?;
            }
        }
        Ok(())
    }

    /// The selection made ready for many names.
    #[must_use]
    pub fn matcher(&self) -> Matcher {
        let Some(name) = &self.name else {
            return Matcher::All;
        };
        if self.names.is_empty() {
            return self.matcher_of(name);
        }
        let names = std::iter::once(name).chain(&self.names);
        Matcher::Any(names.map(|name| self.matcher_of(name)).collect())
    }

    fn matcher_of(&self, name: &str) -> Matcher {
        match self.matching {
            Matching::Glob => Matcher::Glob(name.to_lowercase()),
            Matching::Simple => Matcher::Simple(name.to_lowercase()),
            Matching::Regex => regex(name).map_or(Matcher::Nothing, Matcher::Regex),
        }
    }

    /// Whether the watcher whose lower-case name is `key` is meant.
    #[must_use]
    pub fn matches(&self, key: &str) -> bool {
        self.matcher().matches(key)
    }
}

fn regex(text: &str) -> Result<Box<Regex>, RequestError> {
    let wrong = |why: &dyn std::fmt::Display| {
        RequestError::new(
            Errno::Message,
            format!("\"name\": {text:?} is no regular expression: {why}"),
        )
    };
    if text.len() > MAX_REGEX_BYTES {
        return Err(RequestError::new(
            Errno::Message,
            format!("\"name\": a regular expression has at most {MAX_REGEX_BYTES} bytes"),
        ));
    }
    // Not lower-cased like Circus's: `\S` and `\s` differ. Names are lower case, so case is ignored
    // instead.
    RegexBuilder::new(&format!("^(?:{text})"))
        .case_insensitive(true)
        .size_limit(MAX_COMPILED_BYTES)
        .build()
        .map(Box::new)
        .map_err(|error| wrong(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selections_ignore_case_and_take_patterns() {
        let named = |name: &str, matching| Selection {
            name: Some(name.into()),
            matching,
            ..Selection::default()
        };
        assert!(Selection::all().matches("web"));
        assert!(named("WEB", Matching::Simple).matches("web"));
        assert!(named("W*", Matching::Glob).matches("web"));
        assert!(!named("W*", Matching::Simple).matches("web"));
        assert!(named("a[1]", Matching::Glob).matches("a[1]"));
        assert!(named("W.b", Matching::Regex).matches("web-2"));
        assert!(named("a|web", Matching::Regex).matches("web"));
        assert!(!named("a|eb", Matching::Regex).matches("web"));
        assert!(named(r"\S+$", Matching::Regex).matches("web"));
    }

    #[test]
    fn an_expression_that_is_none_or_too_large_is_refused() {
        for text in ["(", "(?=x)", &"a".repeat(2000), "((a{99}){99}){99}"] {
            let selection = Selection {
                name: Some(text.into()),
                matching: Matching::Regex,
                ..Selection::default()
            };
            assert_eq!(selection.check().unwrap_err().errno, Errno::Message);
            assert!(!selection.matches("a"), "{text}");
        }
    }
}
