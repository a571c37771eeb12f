//! `$(circus.KEY)` and `((circus.KEY))`.
//!
//! Owns the syntax; what a key means is the caller's. Keys are compared lower-cased, consist of
//! word characters, `.` and `-`, and stay as they are when the caller does not know them. What is
//! put in is not looked at again.
//! Source: Circus's `replace_gnu_args`.

const PREFIX: &str = "circus.";

/// Replaces every variable of `text` that `lookup` knows; it gets the key in lower case, without
/// `circus.`.
pub fn replace(text: &str, mut lookup: impl FnMut(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("$(").into_iter().chain(rest.find("((")).min() {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let value = variable(rest).and_then(|(key, length)| {
            let value = lookup(&key.to_lowercase())?;
            Some((value, length))
        });
        match value {
            Some((value, length)) => {
                out.push_str(&value);
                rest = &rest[length..];
            }
            None => {
                // One byte only: `$((circus.x))` holds a variable one further on.
                out.push_str(&rest[..1]);
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// Every key mentioned in `text`, in lower case, without `circus.`.
#[must_use]
pub fn keys(text: &str) -> Vec<String> {
    let mut keys = Vec::new();
    replace(text, |key| {
        keys.push(key.to_owned());
        None
    });
    keys
}

/// Variables of `text` that do not end as one does, as far as they go.
#[must_use]
pub fn unclosed(text: &str) -> Vec<&str> {
    let starts = text.match_indices("$(").chain(text.match_indices("(("));
    starts
        .map(|(at, _)| &text[at..])
        .filter(|rest| {
            let inner = rest[2..].get(..PREFIX.len());
            inner.is_some_and(|inner| inner.eq_ignore_ascii_case(PREFIX))
                && variable(rest).is_none()
        })
        .map(|rest| {
            let end =
                rest[2..].find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '.' | '-')));
            &rest[..end.map_or(rest.len(), |end| end + 2)]
        })
        .collect()
}

/// The key of the variable that `text` begins with, and how many bytes the variable takes.
fn variable(text: &str) -> Option<(&str, usize)> {
    let close = if text.starts_with("((") { "))" } else { ")" };
    let inner = &text[2..];
    let prefix = inner.get(..PREFIX.len())?;
    if !prefix.eq_ignore_ascii_case(PREFIX) {
        return None;
    }
    let key = &inner[PREFIX.len()..];
    let end = key.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '.' | '-')))?;
    if end == 0 || !key[end..].starts_with(close) {
        return None;
    }
    Some((&key[..end], 2 + PREFIX.len() + end + close.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replaced(text: &str) -> String {
        replace(text, |key| match key {
            "wid" => Some("7".into()),
            "env.home" => Some("/h $(circus.wid)".into()),
            _ => None,
        })
    }

    #[test]
    fn both_forms_in_any_case() {
        assert_eq!(replaced("a$(circus.wid)b((CIRCUS.WID))c"), "a7b7c");
        assert_eq!(replaced("$((circus.wid))"), "$7");
        assert_eq!(replaced("(((circus.wid)))"), "(7)");
        assert_eq!(replaced("$(circus.wid)$(circus.wid)"), "77");
    }

    #[test]
    fn what_is_not_known_stays() {
        for text in [
            "$(circus.nope)",
            "$(wid)",
            "$(circus.wid",
            "((circus.wid)",
            "$(circus.)",
            "$(circus.w id)",
            "$(",
            "((",
            "$(circus",
            "$WID é$(é((é",
        ] {
            assert_eq!(replaced(text), text);
        }
    }

    #[test]
    fn what_has_no_end_is_found() {
        assert_eq!(
            unclosed("$(circus.wid ((circus.a) $(circus.b}) é"),
            ["$(circus.wid", "$(circus.b", "((circus.a"]
        );
        assert_eq!(
            unclosed("$((circus.wid)) $(circus.x) $((x)) $(date) ((").len(),
            0
        );
    }

    #[test]
    fn values_are_not_looked_at_again() {
        assert_eq!(replaced("$(circus.env.HOME)"), "/h $(circus.wid)");
        assert_eq!(keys("$(circus.A.b) ((circus.c-d))"), ["a.b", "c-d"]);
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "(\\$|\\(|\\)|circus\\.|wid|é|x){0,30}") {
            replaced(&text);
            let _ = unclosed(&text);
        }
    }
}
