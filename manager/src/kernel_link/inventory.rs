//! What the kernel has of one namespace, listed in one go.
//!
//! Owns the names and forms of the kept values that are read back. Leaves to others: their meaning
//! (`state`), what follows from the list (`supervisor`).

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use papa_protocol::json::request as ops;
use papa_protocol::name::{Name, NamePattern};
use papa_protocol::process::Process;
use papa_protocol::text::ByteString;
use papa_test_hooks::failpoint;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};

use super::words::has_words;
use super::{KernelLink, LinkError};
use crate::config::scalar;
use crate::last_words::Ends;
use crate::state;

/// Most ended processes whose last lines are read with the list: after a long absence of the
/// manager there may be more.
const MAX_WORDS: usize = 256;

/// Time limit for reading last lines, of all processes together: the list waits for them.
const WORDS_PATIENCE: Duration = Duration::from_secs(2);

/// What the kernel has of the namespace.
#[derive(Debug, Default)]
pub struct Inventory {
    /// Every process, with those that have ended and are not acknowledged.
    pub processes: Vec<Process>,
    /// Kept watcher states by lower-case name.
    pub kept: BTreeMap<String, state::Kept>,
    /// Watchers that were added by a request and are in no file, by lower-case name.
    pub added: BTreeMap<String, state::Added>,
    /// A change of the configuration that an earlier manager did not finish.
    pub change: Option<state::KeptChange>,
    /// Processes that ended workers have left behind.
    pub left: state::KeptLeft,
    /// Kept file mode mask of workers whose watcher has none.
    pub umask: Option<u32>,
    /// How the latest workers of each watcher ended, by lower-case name.
    pub ends: BTreeMap<String, Ends>,
    /// Last lines of processes that have ended, by serial.
    pub words: HashMap<u64, Vec<String>>,
}

/// Kept values by their full names.
type Values = BTreeMap<Name, ByteString>;

/// The values whose names begin with `prefix`, by the rest of the name. What `parse` does not
/// understand is left out.
fn under<T>(
    values: &Values,
    prefix: &str,
    parse: impl Fn(&[u8]) -> Option<T>,
) -> BTreeMap<String, T> {
    let entries = values.iter().filter_map(|(name, value)| {
        let key = name.strip_prefix(prefix)?;
        Some((key.to_owned(), parse(value.as_bytes())?))
    });
    entries.collect()
}

/// The value of this name, if there is one that can be read; `what` names it in the log.
fn single<T: DeserializeOwned>(values: &Values, name: &str, what: &str) -> Option<T> {
    state::parse(what, values.get(name)?.as_bytes())
}

fn octal_mask(value: &ByteString) -> Option<u32> {
    let text = std::str::from_utf8(value.as_bytes()).ok()?;
    scalar::octal_mask(text).ok()
}

impl KernelLink {
    /// Lists what there is.
    ///
    /// # Errors
    /// The kernel did not answer.
    pub async fn inventory(&self) -> Result<Inventory, LinkError> {
        let namespace = self.namespace();
        let watchers = state::watcher_value(namespace, "");
        let added = state::added_value(namespace, "");
        let ends = state::ends_value(namespace, "");
        let change = state::change_value(namespace);
        let left = state::left_value(namespace);
        let umask = state::umask_value(namespace);
        let several = [&watchers, &added, &ends].map(|prefix| format!("{prefix}*"));
        let single_names = [&change, &left, &umask].map(String::clone);
        let names = several.iter().chain(&single_names);
        let names = names.map(|name| NamePattern::new(name)).collect();
        let values = self.client().call(ops::ValueList { names }).await?.values;
        let mut inventory = Inventory {
            kept: under(&values, &watchers, |value| Some(state::Kept::parse(value))),
            added: under(&values, &added, |value| serde_json::from_slice(value).ok()),
            ends: under(&values, &ends, |value| {
                state::parse("how workers ended", value)
            }),
            change: single(&values, &change, "a change of the configuration"),
            left: single(&values, &left, "what workers left behind").unwrap_or_default(),
            umask: values.get(umask.as_str()).and_then(octal_mask),
            ..Inventory::default()
        };
        // Processes last: the answer to a start that is sent later is handled after this list.
        let list = ops::ProcessList {
            names: vec![self.everything()],
            serials: Vec::new(),
        };
        inventory.processes = self.client().call(list).await?.processes;
        failpoint::reach("adopt.processes");
        inventory.words = self.words_of(&inventory.processes).await;
        Ok(inventory)
    }

    /// The last lines of those of `processes` that have ended, by serial, as far as they can be
    /// read within [`WORDS_PATIENCE`].
    async fn words_of(&self, processes: &[Process]) -> HashMap<u64, Vec<String>> {
        let by = Instant::now() + WORDS_PATIENCE;
        let mut words = HashMap::new();
        let ended = processes.iter().filter(|process| has_words(process));
        for process in ended.take(MAX_WORDS) {
            match timeout_at(by, self.last_lines(process)).await {
                Ok(Ok(lines)) => drop(words.insert(process.serial.0, lines)),
                Ok(Err(error)) => {
                    tracing::debug!(process = %process.name, %error, "cannot read last words");
                }
                Err(_) => {
                    tracing::warn!(
                        process = %process.name,
                        "the kernel does not hand over the last words of ended workers within {} s; going on without them",
                        WORDS_PATIENCE.as_secs()
                    );
                    break;
                }
            }
        }
        words
    }
}
