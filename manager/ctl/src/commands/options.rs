//! `papactl options`: all options of watchers, or of `[circus]`, as `KEY: VALUE` lines. Values that
//! look like secrets are masked.

use papa_system::printable::printable;
use serde_json::Value;

use crate::cli::Common;
use crate::cli::args::OptionsArgs;
use crate::commands::{CommandError, connect, meant, print, print_json, with_ok};
use papa_control::client::ManagerClient;
use papa_control::message::{Command, OptionsReply, Request};

/// What stands in the place of a secret.
const MASK: &str = "****";
/// A variable with one of these in its name holds a secret.
const SECRET_NAMES: [&str; 8] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "credential",
    "apikey",
    "private_key",
];
/// A variable whose name ends so holds a secret, too.
const SECRET_ENDINGS: [&str; 7] = ["_key", "pass", "_pwd", "_dsn", "auth", "cookie", "salt"];

/// Runs the verb.
pub(super) fn run(common: &Common, args: &OptionsArgs) -> Result<(), CommandError> {
    let mut client = connect(common)?;
    if args.names.is_empty() {
        let reply = ask(common, &mut client, Command::GlobalOptions { option: None })?;
        return show(common, reply, args.reveal);
    }
    let targets = meant::targets(common, &mut client, &args.names)?;
    let several = targets.len() > 1;
    let mut replies = serde_json::Map::new();
    for target in targets {
        let name = target.watcher.clone();
        let reply = ask(common, &mut client, Command::Options { name })?;
        if several && common.json {
            let reply = if args.reveal { reply } else { masked(reply) };
            let reply = serde_json::to_value(reply).map_err(std::io::Error::other)?;
            replies.insert(target.watcher, reply);
            continue;
        }
        if several {
            print(&format!("[{}]\n", printable(&target.watcher)))?;
        }
        show(common, reply, args.reveal)?;
    }
    if several && common.json {
        return print_json(&with_ok(serde_json::json!({ "watchers": replies })));
    }
    Ok(())
}

/// Runs `globaloptions`.
pub(super) fn run_global(common: &Common, option: Option<String>) -> Result<(), CommandError> {
    let mut client = connect(common)?;
    let reply = ask(common, &mut client, Command::GlobalOptions { option })?;
    show(common, reply, true)
}

/// Asks for options and prints them as they are: somebody asked for just these.
pub(super) fn show_asked(common: &Common, command: Command) -> Result<(), CommandError> {
    let mut client = connect(common)?;
    let reply = ask(common, &mut client, command)?;
    show(common, reply, true)
}

fn ask(
    common: &Common,
    client: &mut ManagerClient,
    command: Command,
) -> Result<OptionsReply, CommandError> {
    Ok(client.ask(&Request::waiting(command), common.timeout())?)
}

fn show(common: &Common, reply: OptionsReply, reveal: bool) -> Result<(), CommandError> {
    let reply = if reveal { reply } else { masked(reply) };
    if common.json {
        return print_json(&with_ok(reply));
    }
    let mut text = String::new();
    for (key, value) in &reply.options {
        let line = format!("{key}: {}", shown(value));
        text.push_str(printable(&line).trim_end());
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

fn masked(mut reply: OptionsReply) -> OptionsReply {
    for (key, value) in &mut reply.options {
        mask(key, value);
    }
    reply
}

fn mask(name: &str, value: &mut Value) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                mask(name, value);
            }
        }
        Value::String(text) if is_secret(name) && !text.is_empty() => MASK.clone_into(text),
        Value::String(text) => *text = without_arguments(&without_passwords(text)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {}
    }
}

fn is_secret(name: &str) -> bool {
    let name = name.to_lowercase().replace('-', "_");
    SECRET_NAMES.iter().any(|part| name.contains(part))
        || SECRET_ENDINGS.iter().any(|end| name.ends_with(end))
}

/// `text` with the passwords of its addresses masked: `postgres://user:****@host`.
fn without_passwords(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end = after
            .find(|c: char| c == '/' || c.is_whitespace())
            .unwrap_or(after.len());
        let (authority, behind) = after.split_at(end);
        match authority.rsplit_once('@').and_then(|(user, host)| {
            let (user, _) = user.split_once(':')?;
            Some((user, host))
        }) {
            Some((user, host)) => out.push_str(&format!("{user}:{MASK}@{host}")),
            None => out.push_str(authority),
        }
        rest = behind;
    }
    out.push_str(rest);
    out
}

/// `text` with what follows options and assignments of secret names masked: `--password=****`,
/// `--token ****`, `API_KEY=****`.
fn without_arguments(text: &str) -> String {
    let mut out = String::new();
    let mut is_value = false;
    for piece in text.split_inclusive(char::is_whitespace) {
        let word = piece.trim_end();
        let name = word.trim_start_matches(['-', '\'', '"']);
        let shown = match name.split_once('=') {
            _ if is_value && !word.is_empty() && !word.starts_with('-') => MASK.to_owned(),
            Some((key, value)) if is_secret(key) && !value.is_empty() => {
                format!("{}{MASK}", &word[..word.len() - value.len()])
            }
            _ => word.to_owned(),
        };
        // More blanks between an option and its value change nothing.
        if !word.is_empty() {
            is_value = word.starts_with("--") && !word.contains('=') && is_secret(name);
        }
        out.push_str(&shown);
        out.push_str(&piece[word.len()..]);
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn options_printed_passwords() {
        let reply = |options: Value| OptionsReply {
            options: serde_json::from_value(options).unwrap(),
        };
        let options = json!({
            "cmd": "web --db postgres://app:pw@db/x http://host/a:b@c",
            "args": "--api-key=k --token  t -v --secret --port 80 env PGPASS=p KEYBOARD=us",
            "numprocesses": 2,
            "env": {"PGPASS": "x", "SESSION_COOKIE": "x", "DB_PASSWORD": "x", "AWS_SECRET_ACCESS_KEY": "x", "API_KEY": "x", "GITHUB_TOKEN": "x", "EMPTY_TOKEN": "",
                "PATH": "/bin", "KEYBOARD": "us"},
        });
        let expected = json!({
            "cmd": "web --db postgres://app:****@db/x http://host/a:b@c",
            "args": "--api-key=**** --token  **** -v --secret --port 80 env PGPASS=**** KEYBOARD=us",
            "numprocesses": 2,
            "env": {"PGPASS": "****", "SESSION_COOKIE": "****", "DB_PASSWORD": "****", "AWS_SECRET_ACCESS_KEY": "****", "API_KEY": "****", "GITHUB_TOKEN": "****", "EMPTY_TOKEN": "",
                "PATH": "/bin", "KEYBOARD": "us"},
        });
        assert_eq!(masked(reply(options)), reply(expected));
    }
}
