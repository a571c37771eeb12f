//! Values: short texts clients leave with the kernel.

use papa_protocol::limits::{MAX_VALUES, MAX_VALUES_BYTES};
use papa_protocol::name::{Name, NamePattern};
use papa_protocol::text::ByteString;

use super::{VerbError, limit, not_recorded};
use crate::client::exchange::SessionId;
use crate::owner::Owner;
use crate::world::table::{Entry, Matcher};

impl Owner {
    /// Sets a value, or clears it with `None`.
    ///
    /// # Errors
    /// A limit is reached, the namespace is claimed by someone else, or the
    /// change could not be recorded.
    pub(crate) fn set_value(
        &mut self,
        session: SessionId,
        name: Name,
        value: Option<ByteString>,
    ) -> Result<(), VerbError> {
        self.may_change(session, &name, false)?;
        let entry = match value {
            Some(value) => {
                let old = self.world.table.values.get(&name).map(ByteString::len);
                if old.is_none() && self.world.table.values.len() >= MAX_VALUES {
                    return Err(limit("values", MAX_VALUES));
                }
                if self.world.table.values_bytes + value.len() > MAX_VALUES_BYTES + old.unwrap_or(0)
                {
                    return Err(limit("bytes in values", MAX_VALUES_BYTES));
                }
                Entry::Value { name, value }
            }
            None if self.world.table.values.contains_key(&name) => Entry::Unvalue { name },
            None => return Ok(()),
        };
        self.world
            .commit(entry)
            .map_err(|error| not_recorded(&error))
    }

    /// Names of values that match; no pattern means all.
    pub(crate) fn find_values(&self, patterns: &[NamePattern]) -> Vec<Name> {
        let matcher = Matcher::new(patterns);
        self.world
            .table
            .values
            .keys()
            .filter(|name| matcher.matches(name))
            .cloned()
            .collect()
    }

    /// Clears what matches and tells how many.
    ///
    /// # Errors
    /// As [`Self::set_value`].
    pub(crate) fn remove_values(
        &mut self,
        session: SessionId,
        patterns: &[NamePattern],
    ) -> Result<u64, VerbError> {
        let names = self.find_values(patterns);
        for name in &names {
            self.may_change(session, name, false)?;
        }
        let count = names.len() as u64;
        for name in names {
            self.set_value(session, name, None)?;
        }
        Ok(count)
    }
}
