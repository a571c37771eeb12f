//! `papactl options`: all options of a watcher, or of `[circus]`, as `KEY: VALUE` lines.

use serde_json::Value;

use crate::cli::Common;
use crate::cli::args::OptionsArgs;
use crate::commands::{CommandError, connect, print, print_json, table, with_ok};
use crate::control::message::{Command, OptionsReply, Request};

/// Runs the verb.
pub(super) fn run(common: &Common, args: &OptionsArgs) -> Result<(), CommandError> {
    let command = match &args.name {
        Some(name) => Command::Options { name: name.clone() },
        None => Command::GlobalOptions { option: None },
    };
    show(common, command)
}

/// Prints what `command` answers.
pub(super) fn show(common: &Common, command: Command) -> Result<(), CommandError> {
    let reply: OptionsReply = connect(common)?.ask(&Request::waiting(command), common.timeout())?;
    if common.json {
        return print_json(&with_ok(reply));
    }
    let mut text = String::new();
    for (key, value) in &reply.options {
        let line = format!("{key}: {}", shown(value));
        text.push_str(table::printable(&line).trim_end());
        text.push('\n');
    }
    print(&text)
}

/// As circusctl printed values: null is empty, an environment is `A=1,B=2`.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Object(object) => {
            let entries: Vec<String> = object
                .iter()
                .map(|(name, value)| format!("{name}={}", shown(value)))
                .collect();
            entries.join(",")
        }
        Value::Bool(_) | Value::Number(_) | Value::Array(_) => value.to_string(),
    }
}
