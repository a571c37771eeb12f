//! `papactl set`: changes options of a running watcher.
//!
//! Owns how what was typed becomes typed values, as circusctl converted it.

use serde_json::{Map, Value};

use crate::cli::Common;
use crate::cli::args::SetArgs;
use crate::commands::{CommandError, each_watcher};
use papa_control::message::{Command, OptionValues};
use papa_control::options::from_text;

/// Runs the verb.
pub(super) fn run(common: &Common, args: &SetArgs) -> Result<(), CommandError> {
    let mut pairs = Vec::new();
    for pair in args.pairs.chunks(2) {
        match pair {
            [key, value] => pairs.push((key.as_str(), value.as_str())),
            [key] => {
                return Err(CommandError::Usage(format!(
                    "option {key:?} has no value; expected KEY VALUE as often as needed, for example `papactl set web numprocesses 4`"
                )));
            }
            _ => {}
        }
    }
    let options = values(&pairs)?;
    let command = |name| Command::Set {
        name,
        options: options.clone(),
    };
    let said = |_: &Map<String, Value>| "ok".to_owned();
    each_watcher(
        common,
        std::slice::from_ref(&args.name),
        "set",
        command,
        said,
    )
}

/// Typed values of options as they were typed on a command line.
pub(super) fn values(pairs: &[(&str, &str)]) -> Result<OptionValues, CommandError> {
    let mut object = Map::new();
    for (key, text) in pairs {
        let value = match *key {
            "env" => list(key, text, '=')?,
            "hooks" => list(key, text, ':')?,
            _ => from_text(key, text),
        };
        object.insert((*key).to_owned(), value);
    }
    OptionValues::parse(&object).map_err(|error| CommandError::Usage(error.reason))
}

/// `A=1,B=2`.
fn list(key: &str, text: &str, separator: char) -> Result<Value, CommandError> {
    let entries = text.split(',').filter(|entry| !entry.trim().is_empty());
    let object: Option<Map<String, Value>> = entries
        .map(|entry| {
            let (name, value) = entry.split_once(separator)?;
            Some((name.trim().to_owned(), value.trim().into()))
        })
        .collect();
    object.map(Value::Object).ok_or_else(|| {
        CommandError::Usage(format!(
            "option {key}: got {text:?}, expected NAME{separator}VALUE, several with commas between them"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_becomes_typed() {
        let got = values(&[
            ("numprocesses", "3"),
            ("send_hup", "Yes"),
            ("env", "A=1, B=x=y"),
            ("hooks", "before_start:a.b"),
            ("stdout_stream.filename", "/x"),
        ])
        .unwrap();
        assert_eq!(got.options["numprocesses"], "3");
        assert_eq!(got.options["send_hup"], "true");
        assert_eq!(got.options["hooks.before_start"], "a.b");
        assert_eq!(got.options["stdout_stream.filename"], "/x");
        assert_eq!(got.env.unwrap()["B"], "x=y");
        for (key, text) in [
            ("numprocesses", "many"),
            ("send_hup", "maybe"),
            ("env", "A"),
            ("nope", "1"),
        ] {
            assert!(
                matches!(values(&[(key, text)]), Err(CommandError::Usage(_))),
                "{key}"
            );
        }
    }
}
