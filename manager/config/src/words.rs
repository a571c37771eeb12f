//! A command line to words, as a POSIX shell quotes them.
//!
//! Owns quotes and backslashes; expands nothing and knows no comments, so `#` is an ordinary
//! character.
//! Source: Python's `shlex.split`, which Circus uses for `cmd`, `args` and `shell_args`.

/// Why a command line has no words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// A quote is opened and never closed.
    #[error("a quote ({0}) is never closed")]
    OpenQuote(char),
    /// A backslash at the very end.
    #[error("a backslash at the end escapes nothing")]
    OpenEscape,
}

/// Splits `text` into words.
///
/// # Errors
/// A quote is not closed, or the text ends in a backslash.
pub fn split(text: &str) -> Result<Vec<String>, SplitError> {
    let mut words = Vec::new();
    // None between words; a word may be empty: `""`.
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\r' | '\n' => words.extend(word.take()),
            '\'' | '"' => quoted(c, &mut chars, word.get_or_insert_default())?,
            '\\' => {
                let escaped = chars.next().ok_or(SplitError::OpenEscape)?;
                word.get_or_insert_default().push(escaped);
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

/// The text that [`split`] makes `words` of, with as few quotes as that needs.
#[must_use]
pub fn join(words: &[String]) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_@%+=:,./-$()*?[]{}~!#^".contains(c);
    let quoted = words.iter().map(|word| {
        if !word.is_empty() && word.chars().all(plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', "'\"'\"'"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// The words of `text` without those that have a quoted or escaped part: what a shell would look
/// at.
#[must_use]
pub fn unquoted(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut marked, mut quote) = (String::new(), false, None);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some('"') | None, '\\') => {
                chars.next();
                marked = true;
            }
            (Some(_), _) => {}
            (None, '\'' | '"') => (quote, marked) = (Some(c), true),
            (None, ' ' | '\t' | '\r' | '\n') => {
                let whole = std::mem::take(&mut word);
                if !std::mem::take(&mut marked) && !whole.is_empty() {
                    words.push(whole);
                }
            }
            (None, c) => word.push(c),
        }
    }
    if !marked && !word.is_empty() {
        words.push(word);
    }
    words
}

/// The quote that is still open at the end of `text`.
#[must_use]
pub fn open_quote(text: &str) -> Option<char> {
    match split(text) {
        Err(SplitError::OpenQuote(quote)) => Some(quote),
        Ok(_) | Err(SplitError::OpenEscape) => None,
    }
}

fn quoted(
    quote: char,
    chars: &mut std::str::Chars<'_>,
    word: &mut String,
) -> Result<(), SplitError> {
    while let Some(c) = chars.next() {
        if c == quote {
            return Ok(());
        }
        if c == '\\' && quote == '"' {
            let escaped = chars.next().ok_or(SplitError::OpenEscape)?;
            if escaped != '\\' && escaped != '"' {
                word.push('\\');
            }
            word.push(escaped);
        } else {
            word.push(c);
        }
    }
    Err(SplitError::OpenQuote(quote))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_python() {
        let cases: &[(&str, &[&str])] = &[
            ("", &[]),
            ("  a  b\n\tc\r ", &["a", "b", "c"]),
            ("a 'b c' \"d e\"f", &["a", "b c", "d ef"]),
            ("'' \"\"", &["", ""]),
            ("a\\ b \\'", &["a b", "'"]),
            (r#""a\"b\\c\d\$e""#, &[r#"a"b\c\d\$e"#]),
            (r"'a\b'", &[r"a\b"]),
            ("a #b", &["a", "#b"]),
            ("sh -c 'echo \"x\"; y'", &["sh", "-c", "echo \"x\"; y"]),
            ("a\\\nb", &["a\nb"]),
        ];
        for (text, expected) in cases {
            assert_eq!(&split(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn joined_words_have_quotes_where_needed() {
        let words = ["run", "--x=$(circus.wid)", "", "a b", "it's"].map(str::to_owned);
        assert_eq!(join(&words), "run --x=$(circus.wid) '' 'a b' 'it'\"'\"'s'");
    }

    proptest::proptest! {
        #[test]
        fn joined_words_are_split_into_the_same(words: Vec<String>) {
            proptest::prop_assert_eq!(split(&join(&words)).unwrap(), words);
        }
    }

    #[test]
    fn open_ends_are_errors() {
        assert_eq!(split("a 'b"), Err(SplitError::OpenQuote('\'')));
        assert_eq!(split("a \"b'"), Err(SplitError::OpenQuote('"')));
        assert_eq!(split("a \\"), Err(SplitError::OpenEscape));
        assert_eq!(split("\"a\\"), Err(SplitError::OpenEscape));
    }
}
