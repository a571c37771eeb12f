//! What `options`, `get` and `globaloptions` show: what is written, and what holds where nothing
//! is.
//!
//! Owns no values: keys and defaults are `config::known`'s, JSON types `control::options`'s.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::config::known::{self, Initial, Key};
use crate::config::{Config, WatcherConfig};
use crate::control::message::{Errno, OptionsReply, RequestError};
use crate::control::options::{from_text, value_of};

/// Every option of a watcher whose number of workers is `count`.
pub(super) fn of_watcher(config: &WatcherConfig, count: u32) -> BTreeMap<String, Value> {
    let mut options = shown(known::WATCHER, &config.options);
    // These may be set without being written.
    options.insert("numprocesses".to_owned(), count.into());
    options.insert("stop_signal".to_owned(), config.stop_signal.number().into());
    let working_dir = config.working_dir.to_string_lossy();
    options.insert("working_dir".to_owned(), working_dir.into());
    let env: Map<String, Value> = config
        .env
        .iter()
        .map(|(name, value)| {
            let name = name.to_string_lossy().into_owned();
            (name, value.to_string_lossy().into())
        })
        .collect();
    options.insert("env".to_owned(), Value::Object(env));
    // The name is what was asked with.
    options.remove("name");
    options
}

/// Those of `options` that are asked for.
///
/// # Errors
/// One of them does not exist.
pub(super) fn some(
    mut options: BTreeMap<String, Value>,
    keys: &[String],
) -> Result<OptionsReply, RequestError> {
    let mut reply = OptionsReply {
        options: BTreeMap::new(),
    };
    for key in keys {
        match options.remove_entry(key) {
            Some((key, value)) => drop(reply.options.insert(key, value)),
            None if reply.options.contains_key(key) => {}
            // Known, and nothing is set: hooks, limits, stream options.
            None if known::is_watcher_key(key) => {
                reply.options.insert(key.clone(), Value::Null);
            }
            None => {
                let hint = known::suggestion(known::WATCHER, key)
                    .map(|meant| format!("; did you mean {meant:?}?"))
                    .unwrap_or_default();
                let reason = format!("unknown option {key:?}{hint}");
                return Err(RequestError::new(Errno::Message, reason));
            }
        }
    }
    Ok(reply)
}

/// Options of `[circus]`, or one of them.
///
/// # Errors
/// There is no such option.
pub(super) fn of_circus(
    config: &Config,
    option: Option<&str>,
) -> Result<OptionsReply, RequestError> {
    let mut options = shown(known::CIRCUS, &config.options);
    if let Some(option) = option {
        options.retain(|key, _| key == option);
        if options.is_empty() {
            let reason = format!(
                "unknown option {option:?}, expected one of [circus], for example \"loglevel\""
            );
            return Err(RequestError::new(Errno::Message, reason));
        }
    }
    Ok(OptionsReply { options })
}

fn shown<S>(table: &[Key<S>], written: &BTreeMap<String, String>) -> BTreeMap<String, Value> {
    // A family of keys, like `rlimit_NAME`, has those that are written.
    let fixed = table.iter().filter(|key| !key.is_family());
    let defaults = fixed.map(|key| {
        let value = match key.default {
            Initial::Value(text) => value_of(key.form, text),
            Initial::Words(_) => json!(null),
        };
        (key.name.to_owned(), value)
    });
    let mut options: BTreeMap<String, Value> = defaults.collect();
    for (key, text) in written {
        let value = match known::find(table, key) {
            Some(known) => value_of(known.form, text),
            None => from_text(key, text),
        };
        options.insert(key.clone(), value);
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_counts_more_than_a_default() {
        let written = BTreeMap::from([
            ("respawn".to_owned(), "off".to_owned()),
            ("free".to_owned(), "1".to_owned()),
        ]);
        let options = shown(known::WATCHER, &written);
        assert_eq!(options["respawn"], json!(false));
        assert_eq!(options["singleton"], json!(false));
        assert_eq!(options["graceful_timeout"], json!(30));
        assert_eq!(options["uid"], Value::Null);
        assert_eq!(options["free"], json!("1"));
        let asked = |keys: &[&str]| {
            let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
            some(options.clone(), &keys)
        };
        assert_eq!(
            asked(&["free", "free", "rlimit_core"])
                .unwrap()
                .options
                .len(),
            2
        );
        assert!(asked(&["respwan"]).unwrap_err().reason.contains("respawn"));
    }
}
