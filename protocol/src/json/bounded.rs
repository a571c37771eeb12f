//! Sequences and maps that are counted while they are read.
//!
//! A line is bounded, but `["","",…]` of eight mebibytes would become a hundred as a list of
//! strings; counting while reading keeps what a request costs near what it may hold. Also here:
//! fields whose default may be spelt out.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::limits;
use crate::name::{Name, NamePattern};
use crate::process::{Account, Rlimit};
use crate::record::Serial;
use crate::size::ByteSize;
use crate::socket::DEFAULT_BACKLOG;
use crate::text::ByteString;

/// Collects a sequence of at most `limit` elements.
pub(crate) fn collect<'de, A, T>(mut sequence: A, limit: usize) -> Result<Vec<T>, A::Error>
where
    A: SeqAccess<'de>,
    T: Deserialize<'de>,
{
    let mut items = Vec::new();
    while let Some(item) = sequence.next_element()? {
        if items.len() == limit {
            return Err(too_many(limit));
        }
        items.push(item);
    }
    Ok(items)
}

/// Reads a map of at most `limit` entries, refusing a key given twice.
pub(crate) fn map<'de, D, K, V>(deserializer: D, limit: usize) -> Result<BTreeMap<K, V>, D::Error>
where
    D: Deserializer<'de>,
    K: Deserialize<'de> + Ord,
    V: Deserialize<'de>,
{
    struct Entries<K, V> {
        limit: usize,
        types: PhantomData<(K, V)>,
    }

    impl<'de, K: Deserialize<'de> + Ord, V: Deserialize<'de>> Visitor<'de> for Entries<K, V> {
        type Value = BTreeMap<K, V>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "an object of at most {} entries", self.limit)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
            let mut entries = BTreeMap::new();
            while let Some(key) = access.next_key()? {
                if entries.len() == self.limit {
                    return Err(too_many(self.limit));
                }
                if entries.insert(key, access.next_value()?).is_some() {
                    return Err(Error::custom("a key is given twice"));
                }
            }
            Ok(entries)
        }
    }

    deserializer.deserialize_map(Entries {
        limit,
        types: PhantomData,
    })
}

fn list<'de, D, T>(deserializer: D, limit: usize) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Items<T> {
        limit: usize,
        item: PhantomData<T>,
    }

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Items<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "an array of at most {} elements", self.limit)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, sequence: A) -> Result<Vec<T>, A::Error> {
            collect(sequence, self.limit)
        }
    }

    deserializer.deserialize_seq(Items {
        limit,
        item: PhantomData,
    })
}

fn too_many<E: Error>(limit: usize) -> E {
    E::custom(format_args!("more than {limit} entries"))
}

pub(crate) fn patterns<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<NamePattern>, D::Error> {
    list(deserializer, limits::MAX_NAMES_PER_REQUEST)
}

pub(crate) fn serials<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Serial>, D::Error> {
    list(deserializer, limits::MAX_NAMES_PER_REQUEST)
}

pub(crate) fn arguments<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<ByteString>, D::Error> {
    list(deserializer, limits::MAX_ARGUMENTS)
}

pub(crate) fn socket_names<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<Name>, D::Error> {
    list(deserializer, limits::MAX_NAMED_SOCKETS)
}

pub(crate) fn groups<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<Account>>, D::Error> {
    list(deserializer, limits::MAX_GROUPS).map(Some)
}

pub(crate) fn rlimits<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, Rlimit>, D::Error> {
    map(deserializer, limits::MAX_RLIMITS)
}

pub(crate) fn descriptors<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<u32, Name>, D::Error> {
    map(deserializer, limits::MAX_PASSED_DESCRIPTORS)
}

pub(crate) fn positions<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<Serial, u64>, D::Error> {
    map(deserializer, limits::MAX_NAMES_PER_REQUEST)
}

/// The size of a reel; the default is the same request as none.
pub(crate) fn reel_bytes<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<ByteSize>, D::Error> {
    let bytes = Option::<ByteSize>::deserialize(deserializer)?;
    Ok(bytes.filter(|bytes| *bytes != ByteSize(limits::REEL_BYTES)))
}

/// The length of an accept queue; the default is the same request as none.
pub(crate) fn backlog<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let backlog = Option::<u32>::deserialize(deserializer)?;
    Ok(backlog.filter(|backlog| *backlog != DEFAULT_BACKLOG))
}

/// A port; 0 is the same request as none.
pub(crate) fn port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    let port = Option::<u16>::deserialize(deserializer)?;
    Ok(port.filter(|port| *port != 0))
}
