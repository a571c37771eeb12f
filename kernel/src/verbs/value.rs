//! Values: short texts clients leave with the kernel.

use papa_protocol::limits::{MAX_VALUES, MAX_VALUES_BYTES};
use papa_protocol::name::{Name, NamePattern};
use papa_protocol::text::ByteString;
use papa_test_hooks::failpoint;

use super::claim::may_change;
use super::{VerbError, limit, not_recorded};
use crate::world::World;
use crate::world::caller::Caller;
use crate::world::table::{Entry, Matcher};

/// Sets a value, or clears it with `None`.
///
/// # Errors
/// A limit is reached, the namespace is claimed by someone else, or the
/// change could not be recorded.
pub(crate) fn set(
    world: &mut World,
    caller: &Caller,
    name: Name,
    value: Option<ByteString>,
) -> Result<(), VerbError> {
    may_change(world, caller, &name, false)?;
    let entry = match value {
        Some(value) => {
            let old = world.table.values.get(&name).map(ByteString::len);
            if old.is_none() && world.table.values.len() >= MAX_VALUES {
                return Err(limit("values", MAX_VALUES));
            }
            // A test has the kernel refuse one value.
            let refused = failpoint::take("value.full");
            let room = MAX_VALUES_BYTES + old.unwrap_or(0);
            if refused || world.table.values_bytes + value.len() > room {
                return Err(limit("bytes in values", MAX_VALUES_BYTES));
            }
            Entry::Value { name, value }
        }
        None if world.table.values.contains_key(&name) => Entry::Unvalue { name },
        None => return Ok(()),
    };
    failpoint::reach("value.asked");
    let recorded = world.commit(entry);
    failpoint::reach("value.recorded");
    recorded.map_err(|error| not_recorded(&error))
}

/// Values that match, by name; no pattern means all.
pub(crate) fn find<'a>(
    world: &'a World,
    patterns: &[NamePattern],
) -> impl Iterator<Item = (&'a Name, &'a ByteString)> {
    let matcher = Matcher::new(patterns);
    world
        .table
        .values
        .iter()
        .filter(move |(name, _)| matcher.matches(name))
}

/// Clears what matches and tells how many. Where one may not be cleared none is.
///
/// # Errors
/// As [`set`].
pub(crate) fn remove(
    world: &mut World,
    caller: &Caller,
    patterns: &[NamePattern],
) -> Result<u64, VerbError> {
    let names: Vec<Name> = find(world, patterns)
        .map(|(name, _)| name.clone())
        .collect();
    for name in &names {
        may_change(world, caller, name, false)?;
    }
    let count = names.len() as u64;
    for name in names {
        set(world, caller, name, None)?;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verbs::claim;
    use crate::world::caller::tests::caller;
    use crate::world::tests::{empty_world, recovered};

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn patterns(texts: &[&str]) -> Vec<NamePattern> {
        let pattern = |text: &&str| NamePattern::new(text);
        texts.iter().map(pattern).collect()
    }

    #[test]
    fn values_are_there_after_a_crash_and_cleared_ones_are_not() {
        let (mut world, _keeper, file) = empty_world();
        let me = caller(1, None);
        for (key, text) in [("a.x", "1"), ("a.y", "2"), ("b", "3"), ("a.x", "4")] {
            set(&mut world, &me, name(key), Some(text.into())).unwrap();
        }
        assert_eq!(remove(&mut world, &me, &patterns(&["a.y", "none"])), Ok(1));
        set(&mut world, &me, name("never"), None).unwrap();
        let found = recovered(&file).values;
        assert_eq!(found, world.table.values);
        let found: Vec<_> = found
            .iter()
            .map(|(key, text)| (key.as_str(), text.as_bytes()))
            .collect();
        assert_eq!(found, [("a.x", &b"4"[..]), ("b", b"3")]);
    }

    #[test]
    fn of_all_bytes_there_may_be_the_old_value_s_count_for_the_new_one() {
        let (mut world, _keeper, _file) = empty_world();
        let me = caller(1, None);
        let of = |length: usize| Some(ByteString::from(vec![b'x'; length]));
        // As if others were there; names count too.
        world.table.values_bytes = MAX_VALUES_BYTES - "a".len() - 10;
        set(&mut world, &me, name("a"), of(10)).unwrap();
        set(&mut world, &me, name("b"), of(1)).unwrap_err();
        set(&mut world, &me, name("a"), of(10)).unwrap();
        set(&mut world, &me, name("a"), of(8)).unwrap();
        set(&mut world, &me, name("b"), of(1)).unwrap();
    }

    #[test]
    fn of_values_in_a_claimed_namespace_none_is_removed() {
        let (mut world, _keeper, _file) = empty_world();
        let (holder, other) = (caller(1, Some(10)), caller(2, Some(20)));
        set(&mut world, &other, name("free"), Some("1".into())).unwrap();
        set(&mut world, &other, name("ns.x"), Some("2".into())).unwrap();
        claim::claim(&mut world, &holder, &name("ns"), "me".into(), false).unwrap();
        remove(&mut world, &other, &[]).unwrap_err();
        assert_eq!(find(&world, &[]).count(), 2);
        assert_eq!(remove(&mut world, &holder, &[]), Ok(2));
    }

    #[test]
    fn a_value_that_cannot_be_recorded_is_refused() {
        let (mut world, _keeper, _file) = empty_world();
        world.journal.break_file();
        set(&mut world, &caller(1, None), name("a"), Some("1".into())).unwrap_err();
        assert_eq!(find(&world, &[]).count(), 0);
    }
}
