//! Sizes as people write them: `2m` is 2097152 bytes.
//!
//! Owns the suffixes k, m and g (powers of 1024, either case) that papa has always taken; whether a
//! size is allowed is for whoever uses it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

/// Text that is not a size.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("size \"{}\": expected a whole number of bytes, or one followed by k, m or g", crate::text::shorten(&crate::text::escape_control(.0), 64))]
pub struct SizeError(String);

const SUFFIXES: [(char, u32); 3] = [('g', 30), ('m', 20), ('k', 10)];

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let error = || SizeError(text.to_owned());
        let (digits, shift) = match text.chars().last() {
            Some(last) => SUFFIXES
                .iter()
                .find(|(suffix, _)| *suffix == last.to_ascii_lowercase())
                .map_or((text, 0), |(_, shift)| (&text[..text.len() - 1], *shift)),
            None => return Err(error()),
        };
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(error());
        }
        let number: u64 = digits.parse().map_err(|_| error())?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(error)
    }
}

/// Writes the largest suffix that divides the size, so that parsing gives the same number back.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (suffix, shift) in SUFFIXES {
            let unit = 1_u64 << shift;
            if self.0 != 0 && self.0.is_multiple_of(unit) {
                return write!(f, "{}{suffix}", self.0 / unit);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// Serialises a [`ByteSize`] as its number and reads a number or text such as `"2m"`.
impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Size;

        impl de::Visitor<'_> for Size {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes or a size such as \"2m\"")
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Size)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn suffixes_are_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("1k", 1024),
            ("2m", 2 << 20),
            ("3G", 3 << 30),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_quoted() {
        for text in [
            "",
            "m",
            "1q",
            "-1",
            "+1",
            " 1",
            "1 k",
            "99999999999g",
            "1\u{e9}",
        ] {
            let error = text.parse::<ByteSize>().unwrap_err();
            assert!(error.to_string().starts_with(&format!("size \"{text}\"")));
        }
    }

    proptest! {
        #[test]
        fn display_parses_back(bytes: u64) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }

        #[test]
        fn any_text_is_harmless(text: String) {
            let _ = text.parse::<ByteSize>();
        }
    }
}
