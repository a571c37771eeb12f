//! Which rows a client means by its patterns.

use std::collections::BTreeMap;

use papa_protocol::name::{Name, NamePattern};

/// Many patterns as one question: a look-up for the name and one for each of
/// its beginnings, however many patterns there are.
#[derive(Debug)]
pub struct Matcher<'a> {
    everything: bool,
    exact: std::collections::HashSet<&'a str>,
    prefixes: std::collections::HashSet<&'a str>,
}

impl<'a> Matcher<'a> {
    /// No pattern means all.
    #[must_use]
    pub fn new(patterns: &'a [NamePattern]) -> Self {
        let mut matcher = Self {
            everything: patterns.is_empty(),
            exact: std::collections::HashSet::new(),
            prefixes: std::collections::HashSet::new(),
        };
        for pattern in patterns {
            match pattern {
                NamePattern::Exact(text) => matcher.exact.insert(text),
                NamePattern::Prefix(text) => matcher.prefixes.insert(text),
            };
        }
        matcher
    }

    /// Whether any of the patterns fits `name`.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        self.everything
            || self.exact.contains(name)
            || (!self.prefixes.is_empty()
                && (0..=name.len())
                    .filter_map(|end| name.get(..end))
                    .any(|beginning| self.prefixes.contains(beginning)))
    }
}

/// Keeps only the patterns that [`super::Table::find_processes`] and its like find,
/// for verbs to which an unknown name is no error.
pub fn known<'a>(
    patterns: &'a [NamePattern],
    find_one: impl Fn(&'a [NamePattern]) -> Result<Vec<u64>, &'a NamePattern>,
) -> Vec<u64> {
    if patterns.is_empty() {
        return find_one(patterns).unwrap_or_default();
    }
    let mut found = Vec::new();
    for pattern in patterns {
        if let Ok(some) = find_one(std::slice::from_ref(pattern)) {
            found.extend(some);
        }
    }
    found
}

pub(super) fn find<'a>(
    names: &BTreeMap<Name, u64>,
    patterns: &'a [NamePattern],
    by_number: impl Fn(u32) -> Option<(Name, u64)>,
) -> Result<Vec<u64>, &'a NamePattern> {
    if patterns.is_empty() {
        return Ok(names.values().copied().collect());
    }
    let mut found: BTreeMap<Name, u64> = BTreeMap::new();
    for pattern in patterns {
        match pattern {
            NamePattern::Prefix(prefix) => {
                let range = names.range::<str, _>((
                    std::ops::Bound::Included(prefix.as_str()),
                    std::ops::Bound::Unbounded,
                ));
                found.extend(
                    range
                        .take_while(|(name, _)| name.starts_with(prefix.as_str()))
                        .map(|(name, id)| (name.clone(), *id)),
                );
            }
            NamePattern::Exact(exact) => {
                let named = names.get_key_value(exact.as_str());
                let hit = named
                    .map(|(name, id)| (name.clone(), *id))
                    .or_else(|| pattern.number().and_then(&by_number));
                let (name, id) = hit.ok_or(pattern)?;
                found.insert(name, id);
            }
        }
    }
    Ok(found.into_values().collect())
}
