//! Values of a watcher's keys that have no file of their own.

use std::time::Duration;

use papa_protocol::process::Rlimit;

use crate::scalar;
use crate::signal::{SignalNumber, UnknownSignal};
use crate::types::OrphanPolicy;

/// Names of watchers, lower case, each once.
pub(crate) fn names(text: &str) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in text.split(|c: char| c == ',' || c.is_whitespace()) {
        let name = name.to_lowercase();
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// What asks a worker to end.
pub(crate) fn signal(text: &str) -> Result<SignalNumber, String> {
    text.parse()
        .map_err(|error: UnknownSignal| error.to_string())
}

/// What becomes of workers that a lost kernel left running.
pub(crate) fn orphans(text: &str) -> Result<OrphanPolicy, String> {
    text.parse()
}

/// Seconds; none for 0, which means never.
pub(crate) fn age(text: &str) -> Result<Option<Duration>, String> {
    scalar::seconds(text).map(|age| Some(age).filter(|age| !age.is_zero()))
}

/// The text of an age.
pub(crate) fn age_text(age: &Option<Duration>) -> String {
    age.unwrap_or_default().as_secs_f64().to_string()
}

/// The text of a limit.
pub(crate) fn rlimit_text(limit: &Rlimit) -> String {
    match limit.soft {
        Some(limit) => limit.to_string(),
        None => "unlimited".to_owned(),
    }
}
