//! `papactl scale`: how many workers a watcher is to have.

use crate::cli::Common;
use crate::cli::args::ScaleArgs;
use crate::commands::{CommandError, each_watcher, set};
use papa_control::message::Command;

/// Runs the verb.
pub(super) fn run(common: &Common, args: &ScaleArgs) -> Result<(), CommandError> {
    let usage =
        || CommandError::Usage("expected a watcher and a number: papactl scale web 4".to_owned());
    let (name, count) = match (args.count, args.name.rsplit_once('=')) {
        (Some(count), _) => (args.name.as_str(), count),
        (None, Some((name, count))) => (name, count.parse().map_err(|_| usage())?),
        (None, None) => return Err(usage()),
    };
    let options = set::values(&[("numprocesses", &count.to_string())])?;
    let command = |name| Command::Set {
        name,
        options: options.clone(),
    };
    let said = |_: &serde_json::Map<String, serde_json::Value>| count.to_string();
    each_watcher(common, &[name.to_owned()], "scale", command, said)
}
