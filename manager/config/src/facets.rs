//! A configuration taken apart into keys and comparable values.
//!
//! The table of keys says how a value is shown and whether a worker that runs already is affected
//! by it; this module adds what has no key of its own. `diff` compares.
//! Invariant: two values of one key are equal exactly if their texts are.

use crate::known::{self, Apply, Initial, Key, OnChange};
use crate::types::{Config, SocketConfig, StreamConfig, WatcherConfig};
use crate::values::watcher::rlimit_text;

/// One key's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facet {
    /// As in a file.
    pub key: String,
    /// For comparing and showing.
    pub value: String,
    /// How a different value is applied.
    pub apply: Apply,
    /// The value may be a secret and is not shown.
    pub secret: bool,
}

/// The facets of the keys of `table`, written with `prefix`, that `section` has.
fn of_table<S>(table: &[Key<S>], prefix: &str, section: &S) -> Vec<Facet> {
    let facets = table.iter().filter_map(|key| {
        Some(Facet {
            key: format!("{prefix}{}", key.name),
            value: (key.show?)(section)?,
            apply: key.change.apply(section),
            secret: false,
        })
    });
    facets.collect()
}

/// A facet that a worker is started with.
fn spec(key: impl Into<String>, value: String) -> Facet {
    Facet {
        key: key.into(),
        value,
        apply: Apply::Roll,
        secret: false,
    }
}

fn in_place(key: impl Into<String>, value: String) -> Facet {
    Facet {
        apply: Apply::InPlace,
        ..spec(key, value)
    }
}

/// Keys of `[circus]` the manager reads when it starts.
pub fn of_manager(config: &Config) -> Vec<Facet> {
    of_table(&circus_keys(true), "", config)
}

/// Keys of `[circus]` that take effect at once. `umask` counts as a key of each watcher.
pub fn of_settings(config: &Config) -> Vec<Facet> {
    of_table(&circus_keys(false), "", config)
}

fn circus_keys(at_start: bool) -> Vec<Key<Config>> {
    let keys = known::CIRCUS.iter().copied();
    keys.filter(|key| matches!(key.change, OnChange::Restart) == at_start)
        .collect()
}

/// Facets of a socket, without its name and its place in the file.
pub fn of_socket(socket: &SocketConfig) -> Vec<Facet> {
    of_table(known::SOCKET, "", socket)
}

/// Facets of a watcher. `diff` compares inherited sockets, since it knows which of them changed.
pub fn of_watcher(watcher: &WatcherConfig) -> Vec<Facet> {
    let mut facets = of_table(known::WATCHER, "", watcher);
    let program = watcher.resolved_program.clone();
    facets.push(spec("program", program.unwrap_or_default()));
    let limits = watcher.rlimits.iter();
    facets.extend(limits.map(|(name, limit)| spec(format!("rlimit_{name}"), rlimit_text(limit))));
    facets.extend(environment(watcher));
    facets.extend(of_stream("stdout_stream.", &watcher.stdout));
    facets.extend(of_stream("stderr_stream.", &watcher.stderr));
    if let Some(flapping) = &watcher.flapping {
        facets.extend(of_table(known::FLAPPING, "flapping.", flapping));
    }
    facets.extend(watcher.hooks.iter().map(|hook| {
        let flag = known::yes_no(&hook.ignore_failure);
        in_place(
            format!("hooks.{}", hook.name),
            format!("{}, {flag}", hook.target),
        )
    }));
    // Unknown keys: hooks and plugins may read them.
    let free = watcher.options.iter();
    let free = free.filter(|(key, _)| !known::is_watcher_key(key));
    facets.extend(free.map(|(key, value)| in_place(key.clone(), value.clone())));
    facets
}

/// The workers' variables but for those that follow from `uid`.
fn environment(watcher: &WatcherConfig) -> impl Iterator<Item = Facet> {
    let written = watcher.env.iter().filter(|(name, _)| {
        let mut of_account = watcher.account_env.iter();
        !of_account.any(|variable| **name == **variable)
    });
    written.map(|(name, value)| Facet {
        secret: true,
        ..spec(
            format!("env.{}", name.to_string_lossy()),
            // Bytes that are no text still differ.
            value.as_encoded_bytes().escape_ascii().to_string(),
        )
    })
}

/// Every option, those of other classes with their defaults: going from no file to one shows only
/// what is written.
fn of_stream(prefix: &str, stream: &StreamConfig) -> Vec<Facet> {
    let keys = known::STREAM
        .iter()
        .filter_map(|key| Some((key, key.show?)));
    keys.map(|(key, show)| {
        let value = show(stream).unwrap_or_else(|| match key.default {
            Initial::Value(text) => text.to_owned(),
            Initial::Words(_) => String::new(),
        });
        in_place(format!("{prefix}{}", key.name), value)
    })
    .collect()
}
