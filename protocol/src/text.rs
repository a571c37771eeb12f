//! Byte strings as JSON carries them, and the escaping of what is shown to people.
//!
//! Owns two rules: bytes that are not UTF-8 travel as an array of numbers, and no control character
//! of a name, argument or value reaches a listing as itself, where it could forge a line. Knows
//! nothing of verbs.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write as _};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use serde::de::{self, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A string of any bytes: in JSON text where it is UTF-8, otherwise an array of numbers
/// `[104,105,255]`.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteString(Vec<u8>);

impl ByteString {
    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, given away.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// The bytes as the operating system's string.
    #[must_use]
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }

    /// The bytes as a path.
    #[must_use]
    pub fn as_path(&self) -> &std::path::Path {
        std::path::Path::new(self.as_os_str())
    }

    /// For people: bytes that are not UTF-8 replaced, control characters escaped.
    #[must_use]
    pub fn display(&self) -> String {
        escape_control_bytes(&self.0)
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no bytes at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&str> for ByteString {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl From<String> for ByteString {
    fn from(text: String) -> Self {
        Self(text.into_bytes())
    }
}

impl From<Vec<u8>> for ByteString {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl From<OsString> for ByteString {
    fn from(text: OsString) -> Self {
        Self(text.into_vec())
    }
}

impl AsRef<[u8]> for ByteString {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq<str> for ByteString {
    fn eq(&self, other: &str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl PartialEq<&str> for ByteString {
    fn eq(&self, other: &&str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl fmt::Debug for ByteString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&String::from_utf8_lossy(&self.0), f)
    }
}

impl Serialize for ByteString {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Ok(text) = std::str::from_utf8(&self.0) {
            return serializer.serialize_str(text);
        }
        let mut sequence = serializer.serialize_seq(Some(self.0.len()))?;
        for byte in &self.0 {
            sequence.serialize_element(byte)?;
        }
        sequence.end()
    }
}

impl<'de> Deserialize<'de> for ByteString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;

        impl<'de> Visitor<'de> for Bytes {
            type Value = ByteString;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of numbers from 0 to 255")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteString, E> {
                Ok(text.into())
            }

            fn visit_string<E: de::Error>(self, text: String) -> Result<ByteString, E> {
                Ok(text.into())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<ByteString, A::Error> {
                // One byte of memory per two of the line, which is bounded: no limit of its own is
                // needed.
                let mut bytes = Vec::new();
                while let Some(byte) = sequence.next_element::<u8>()? {
                    bytes.push(byte);
                }
                Ok(ByteString(bytes))
            }
        }

        deserializer.deserialize_any(Bytes)
    }
}

/// Replaces control characters (C0, DEL, C1) and those that turn the direction of text around or
/// end a line by visible escapes; borrows when there are none.
///
/// A backslash stays as it is, so the result is for people and cannot be turned back.
#[must_use]
pub fn escape_control(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_shown_escaped) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        push_escaped(&mut escaped, character);
    }
    Cow::Owned(escaped)
}

/// As [`escape_control`], for any bytes: those that are not UTF-8 appear as `\xNN`.
#[must_use]
pub fn escape_control_bytes(bytes: &[u8]) -> String {
    let mut escaped = String::with_capacity(bytes.len());
    push_escaped_bytes(&mut escaped, bytes);
    escaped
}

/// Appends `bytes` to `out` as [`escape_control_bytes`] renders them.
pub fn push_escaped_bytes(out: &mut String, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        match escape_control(chunk.valid()) {
            Cow::Borrowed(text) => out.push_str(text),
            Cow::Owned(text) => out.push_str(&text),
        }
        for byte in chunk.invalid() {
            push_hex(out, u32::from(*byte));
        }
    }
}

/// Cuts `text` to at most `limit_bytes`, at a character boundary, saying so by an ellipsis.
#[must_use]
pub fn shorten(text: &str, limit_bytes: usize) -> Cow<'_, str> {
    if text.len() <= limit_bytes {
        return Cow::Borrowed(text);
    }
    let mut end = limit_bytes.saturating_sub(3);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    Cow::Owned(format!("{}...", &text[..end]))
}

/// Whether a character could make a listing look like something else.
fn is_shown_escaped(character: char) -> bool {
    let rearranges = matches!(character, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    character.is_control() || rearranges
}

fn push_escaped(out: &mut String, character: char) {
    match character {
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        control if control.is_control() => push_hex(out, u32::from(control)),
        // Writing to a String cannot fail.
        turning if is_shown_escaped(turning) => {
            let _ = write!(out, "\\u{{{:x}}}", u32::from(turning));
        }
        other => out.push(other),
    }
}

fn push_hex(out: &mut String, code: u32) {
    // Writing to a String cannot fail.
    let _ = write!(out, "\\x{code:02x}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_rearrange_a_listing_is_shown() {
        assert_eq!(escape_control("a\u{1b}[2J\n\u{9b}"), "a\\x1b[2J\\n\\x9b");
        assert_eq!(
            escape_control("\u{202e}gnp.exe\u{2028}\u{2069}"),
            "\\u{202e}gnp.exe\\u{2028}\\u{2069}"
        );
        // Text that is written from right to left is only text.
        for plain in ["שלום", "é中🦀", ""] {
            assert!(matches!(escape_control(plain), Cow::Borrowed(_)), "{plain}");
        }
    }
}
