//! Shell patterns: `*`, `?`, `[a-z]`, `[!a-z]`.
//!
//! Owns matching of a name against a pattern, case-sensitive and with no special meaning for `/` or
//! a leading dot, as Python's `fnmatch` does it. Time is bounded by the product of both lengths.

/// Whether `pattern` matches the whole of `text`.
#[must_use]
pub fn matches(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut at, mut read) = (0, 0);
    // Where to go on when the latest `*` has to take one character more.
    let mut retry: Option<(usize, usize)> = None;
    while read < text.len() {
        let step = match pattern.get(at) {
            Some('*') => {
                retry = Some((at, read));
                at += 1;
                continue;
            }
            Some('?') => Some(1),
            Some('[') => match class(&pattern[at..]) {
                Some(class) => class.contains(text[read]).then_some(class.length),
                None => (text[read] == '[').then_some(1),
            },
            Some(literal) => (*literal == text[read]).then_some(1),
            None => None,
        };
        match (step, retry) {
            (Some(length), _) => {
                at += length;
                read += 1;
            }
            (None, Some((star, from))) => {
                at = star + 1;
                read = from + 1;
                retry = Some((star, read));
            }
            (None, None) => return false,
        }
    }
    pattern[at..].iter().all(|rest| *rest == '*')
}

/// Whether `text` means anything but itself as a pattern.
#[must_use]
pub fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

struct Class<'a> {
    negated: bool,
    members: &'a [char],
    /// Characters of the pattern it takes, brackets included.
    length: usize,
}

/// The class that begins at the `[` of `pattern`; none if it is never closed.
fn class(pattern: &[char]) -> Option<Class<'_>> {
    let negated = pattern.get(1) == Some(&'!');
    let start = if negated { 2 } else { 1 };
    // A `]` right at the start is a member.
    let end = (start + 1..pattern.len()).find(|at| pattern[*at] == ']')?;
    Some(Class {
        negated,
        members: &pattern[start..end],
        length: end + 1,
    })
}

impl Class<'_> {
    fn contains(&self, wanted: char) -> bool {
        let mut members = self.members;
        let mut found = false;
        while let [first, rest @ ..] = members {
            members = match rest {
                ['-', last, rest @ ..] => {
                    found |= (*first..=*last).contains(&wanted);
                    rest
                }
                _ => {
                    found |= *first == wanted;
                    rest
                }
            };
        }
        found != self.negated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_python() {
        for (pattern, text, expected) in [
            ("web", "web", true),
            ("web", "Web", false),
            ("w*", "web", true),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("a*b*c", "axbxbxc", true),
            ("a*b*c", "axbxbx", false),
            ("w?b", "web", true),
            ("w?b", "wb", false),
            ("web[12]", "web2", true),
            ("web[!12]", "web2", false),
            ("web[0-9]", "web7", true),
            ("web[]]", "web]", true),
            ("web[-a]", "web-", true),
            ("web[", "web[", true),
            ("*.ini", ".ini", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn many_stars_do_not_explode() {
        assert!(!matches(&"*a".repeat(50), &"b".repeat(5000)));
    }
}
