//! Names of processes, sockets, values, held descriptors and namespaces, and the patterns that
//! select them.
//!
//! Owns which bytes a name may hold: no `:` and no control character, since either would forge a
//! frame of captured output; no trailing `*`, which means a prefix; no outer blanks, which no
//! classic line can carry.
//! Invariant: a [`Name`] obeys these rules however it was made.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::limits::MAX_NAME_BYTES;
use crate::text::{escape_control, shorten};

/// A legal name; cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NameError {
    /// There is nothing in it.
    #[error("a name must not be empty")]
    Empty,
    /// It is longer than [`MAX_NAME_BYTES`].
    #[error("name of {0} bytes: at most {MAX_NAME_BYTES} are allowed")]
    TooLong(usize),
    /// It holds a colon or a control character.
    #[error("name \"{}\": colons and control characters are not allowed", escape_control(.0))]
    Forbidden(String),
    /// It starts or ends with a blank.
    #[error("name \"{}\": it must not start or end with a blank", escape_control(.0))]
    OuterBlank(String),
    /// It ends with an asterisk, which selects by prefix.
    #[error("name \"{}\": it must not end with \"*\", which selects by prefix", escape_control(.0))]
    TrailingAsterisk(String),
}

impl Name {
    /// Checks `text` and makes it a name.
    ///
    /// # Errors
    /// Says which rule `text` breaks.
    pub fn new(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > MAX_NAME_BYTES {
            return Err(NameError::TooLong(text.len()));
        }
        if text.chars().any(|c| c == ':' || c.is_control()) {
            return Err(NameError::Forbidden(text.to_owned()));
        }
        if text.trim() != text {
            return Err(NameError::OuterBlank(text.to_owned()));
        }
        if text.ends_with('*') {
            return Err(NameError::TrailingAsterisk(text.to_owned()));
        }
        Ok(Self(text.into()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this name lies in `namespace`, that is, starts with `namespace.`.
    #[must_use]
    pub fn is_in(&self, namespace: &str) -> bool {
        self.0
            .strip_prefix(namespace)
            .is_some_and(|rest| rest.starts_with('.'))
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl PartialEq<str> for Name {
    fn eq(&self, other: &str) -> bool {
        &*self.0 == other
    }
}

impl PartialEq<&str> for Name {
    fn eq(&self, other: &&str) -> bool {
        &*self.0 == *other
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}

/// One word of a name list: a name, a prefix followed by `*`, or the number of a process or socket.
///
/// Any text is a pattern; one that cannot be a name simply matches none. Exact names win over
/// numbers: whoever holds the table looks for the name first and then for [`NamePattern::number`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NamePattern {
    /// Exactly this name, or the number it spells.
    Exact(String),
    /// Every name with this prefix; the empty prefix matches all.
    Prefix(String),
}

impl NamePattern {
    /// Reads one word: a trailing `*` makes it a prefix.
    #[must_use]
    pub fn new(word: &str) -> Self {
        match word.strip_suffix('*') {
            Some(prefix) => Self::Prefix(prefix.to_owned()),
            None => Self::Exact(word.to_owned()),
        }
    }

    /// Whether `name` is selected by name or prefix; numbers are not looked at.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == name,
            Self::Prefix(prefix) => name.starts_with(prefix.as_str()),
        }
    }

    /// The number this pattern spells, if it is one: a PID for processes, a file number for
    /// sockets.
    #[must_use]
    pub fn number(&self) -> Option<u32> {
        match self {
            Self::Exact(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                text.parse().ok()
            }
            Self::Exact(_) | Self::Prefix(_) => None,
        }
    }

    /// Whether this is the bare `*`.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        matches!(self, Self::Prefix(prefix) if prefix.is_empty())
    }
}

impl fmt::Display for NamePattern {
    /// As typed, shortened and with control characters escaped, since it is quoted in errors.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (text, suffix) = match self {
            Self::Exact(text) => (text, ""),
            Self::Prefix(text) => (text, "*"),
        };
        write!(
            f,
            "{}{suffix}",
            escape_control(&shorten(text, MAX_NAME_BYTES))
        )
    }
}

impl From<Name> for NamePattern {
    fn from(name: Name) -> Self {
        Self::Exact(name.as_str().to_owned())
    }
}

impl From<&str> for NamePattern {
    fn from(word: &str) -> Self {
        Self::new(word)
    }
}

impl Serialize for NamePattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Exact(text) => serializer.serialize_str(text),
            Self::Prefix(prefix) => serializer.collect_str(&format_args!("{prefix}*")),
        }
    }
}

impl<'de> Deserialize<'de> for NamePattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Ok(Self::new(&word))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_would_forge_frames_are_refused() {
        assert_eq!(Name::new(""), Err(NameError::Empty));
        assert_eq!(Name::new("a:b"), Err(NameError::Forbidden("a:b".into())));
        assert_eq!(Name::new("a\nb"), Err(NameError::Forbidden("a\nb".into())));
        assert_eq!(
            Name::new("a\u{85}b"),
            Err(NameError::Forbidden("a\u{85}b".into()))
        );
        assert_eq!(Name::new(" a"), Err(NameError::OuterBlank(" a".into())));
        assert_eq!(
            Name::new("a*"),
            Err(NameError::TrailingAsterisk("a*".into()))
        );
        assert!(Name::new("circus.my worker*.1").is_ok());
        assert!(
            !Name::new("a\u{1b}[2Jb")
                .unwrap_err()
                .to_string()
                .contains('\u{1b}')
        );
    }

    #[test]
    fn the_longest_name_fits_and_one_more_byte_does_not() {
        assert!(Name::new(&"x".repeat(MAX_NAME_BYTES)).is_ok());
        assert_eq!(
            Name::new(&"x".repeat(MAX_NAME_BYTES + 1)),
            Err(NameError::TooLong(MAX_NAME_BYTES + 1))
        );
    }

    #[test]
    fn namespaces_end_at_a_dot() {
        let name = Name::new("circus.web.1").unwrap();
        assert!(name.is_in("circus") && name.is_in("circus.web"));
        assert!(!name.is_in("circ") && !name.is_in("circus.web.1"));
    }

    #[test]
    fn patterns_select_by_name_prefix_and_number() {
        assert!(NamePattern::new("a*").matches("ab") && !NamePattern::new("a*").matches("b"));
        assert!(NamePattern::new("*").is_everything() && NamePattern::new("*").matches("x"));
        assert_eq!(NamePattern::new("3698").number(), Some(3698));
        assert_eq!(NamePattern::new("99999999999").number(), None);
        assert_eq!(NamePattern::new("+1").number(), None);
        assert_eq!(NamePattern::new("").number(), None);
    }

    proptest! {
        #[test]
        fn a_name_survives_json(text: String) {
            if let Ok(name) = Name::new(&text) {
                let json = serde_json::to_string(&name).unwrap();
                prop_assert_eq!(serde_json::from_str::<Name>(&json).unwrap(), name);
            }
        }

        #[test]
        fn a_pattern_survives_json(text: String) {
            let pattern = NamePattern::new(&text);
            let json = serde_json::to_string(&pattern).unwrap();
            prop_assert_eq!(serde_json::from_str::<NamePattern>(&json).unwrap(), pattern);
        }
    }
}
