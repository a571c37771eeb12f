//! One classic line to words and back.
//!
//! Words are separated by blanks; a piece ending in a backslash is joined to the next with one
//! blank in the backslash's place, which is how papa's client sends a blank inside a word. Owns
//! that rule and the bound on the number of words; what the words mean is `classic`'s.
//! Source: papa 1.0.6 as observed; protocol/README.md, "Words".

use std::borrow::Cow;

use thiserror::Error;

use crate::limits::MAX_WORDS_PER_LINE;

/// A line of too many words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("more than {MAX_WORDS_PER_LINE} words in one line")]
pub struct TooManyWords;

/// Removes outer blanks as papa 1.0.6 does, the separators 0x1c to 0x1f among them.
#[must_use]
pub fn strip(text: &str) -> &str {
    let is_plain = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_graphic);
    if is_plain(text.as_bytes().first()) && is_plain(text.as_bytes().last()) {
        return text;
    }
    text.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c))
}

/// Splits a line, outer blanks removed already, into words; only one that was joined is copied.
///
/// # Errors
/// There are more than [`MAX_WORDS_PER_LINE`].
pub fn split(line: &str) -> Result<Vec<Cow<'_, str>>, TooManyWords> {
    let mut words = Vec::new();
    let mut joined = String::new();
    for piece in line.split(' ').filter(|piece| !piece.is_empty()) {
        if let Some(start) = piece.strip_suffix('\\') {
            joined.push_str(start);
            joined.push(' ');
            continue;
        }
        if words.len() == MAX_WORDS_PER_LINE {
            return Err(TooManyWords);
        }
        if joined.is_empty() {
            words.push(Cow::Borrowed(strip(piece)));
        } else {
            joined.push_str(piece);
            words.push(Cow::Owned(strip(&joined).to_owned()));
            joined.clear();
        }
    }
    if !joined.is_empty() {
        if words.len() == MAX_WORDS_PER_LINE {
            return Err(TooManyWords);
        }
        words.push(Cow::Owned(joined));
    }
    Ok(words)
}

/// Joins words into a line that [`split`] takes apart again; `None` if a word cannot be carried.
///
/// A classic line carries no newline, no empty word, no outer blank of a word and no backslash at
/// its end.
#[must_use]
pub fn join<W: AsRef<str>>(words: &[W]) -> Option<String> {
    let mut line = String::new();
    for word in words {
        let word = word.as_ref();
        if word.is_empty() || word.contains('\n') || word.ends_with('\\') || strip(word) != word {
            return None;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        for character in word.chars() {
            if character == ' ' {
                line.push('\\');
            }
            line.push(character);
        }
    }
    Some(line)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(line: &str) -> Vec<Cow<'_, str>> {
        split(strip(line)).unwrap()
    }

    #[test]
    fn blanks_separate_and_a_backslash_joins() {
        assert_eq!(words("a  b c"), ["a", "b", "c"]);
        assert_eq!(words(r"set x a\ \ b c"), ["set", "x", "a  b", "c"]);
        assert_eq!(words(r"one\ two"), ["one two"]);
        assert_eq!(words("a\tb\r\n"), ["a\tb"]);
    }

    #[test]
    fn a_backslash_at_the_end_keeps_its_blank() {
        assert_eq!(words(r"set x a\ "), ["set", "x", "a "]);
        assert_eq!(words(r#"dir="c:\" x"#), [r#"dir="c:\""#, "x"]);
    }

    #[test]
    fn the_last_word_allowed_fits_and_one_more_does_not() {
        let most = vec!["x"; MAX_WORDS_PER_LINE].join(" ");
        assert_eq!(words(&most).len(), MAX_WORDS_PER_LINE);
        assert_eq!(split(&format!("{most} x")), Err(TooManyWords));
        assert_eq!(split(&format!(r"{most} x\")), Err(TooManyWords));
    }

    proptest! {
        #[test]
        fn what_is_joined_splits_again(input in proptest::collection::vec("[ -~\u{e9}\t]{1,12}", 0..8)) {
            if let Some(line) = join(&input) {
                prop_assert_eq!(words(&line), input);
            }
        }

        #[test]
        fn any_line_is_harmless(line: String) {
            let _ = split(strip(&line));
        }
    }
}
