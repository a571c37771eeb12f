//! Text from files and programs, made harmless for a terminal.
//!
//! Invariant: what is returned has no control character but tabs, and nothing that turns the
//! direction of text around.

use std::fmt::Write;

/// `text` with control characters made visible.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        push_printable(&mut out, c);
    }
    out
}

/// One line of a log, newline excluded, made harmless for a terminal. Tabs stay.
#[must_use]
pub fn printable_bytes(line: &[u8]) -> String {
    let mut out = String::with_capacity(line.len());
    for chunk in line.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '\t' {
                out.push(c);
            } else {
                push_printable(&mut out, c);
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

fn push_printable(out: &mut String, c: char) {
    match c {
        // The way terminals show them: ^[ for escape.
        '\0'..='\x1f' => {
            out.push('^');
            out.push(char::from(c as u8 + b'@'));
        }
        '\x7f' => out.push_str("^?"),
        // Includes the second set of control characters, which some terminals obey, and characters
        // that turn the direction of text around.
        c if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        }
        c => out.push(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown() {
        assert_eq!(
            printable("a\x1b[31m\x07\n\u{9b}é\u{202e}"),
            "a^[[31m^G^J\\u{9b}é\\u{202e}"
        );
        assert_eq!(
            printable_bytes(b"a\tb\x1b]0;x\x07 \xff\xc3\xa9\x7f\r"),
            "a\tb^[]0;x^G \\xffé^?^M"
        );
    }
}
