//! `cmd`, `args`, `shell` and `shell_args`: the words of a watcher's command.
//!
//! Owns replacing the variables that are known before a worker exists and splitting into words; the
//! worker's number and the sockets' numbers stay in the words as variables for `render`. With
//! `shell` the text reaches the shell as it is written, where Circus quoted every word of it again
//! and so defused pipes and redirections.
//! Source: Circus 0.17.2's `Process.format_args`.

use crate::environment::Lookup;
use crate::fields::Fields;
use crate::known;
use crate::types::SocketConfig;
use crate::variables;
use crate::words;

/// The shell of `shell = true`.
const SHELL: &str = "/bin/sh";

/// Whether the command may refer to `variable`, which is without `circus.`.
pub(super) fn is_attribute(variable: &str) -> bool {
    variable == "working_dir" || is_key(variable)
}

/// Whether `variable` stands for the text of one of the watcher's own keys.
fn is_key(variable: &str) -> bool {
    known::find(known::WATCHER, variable).is_some_and(|key| key.in_commands)
        || variable.starts_with("rlimits.")
}

/// Reads the command. `last` knows the workers' final environment. None if it is missing or
/// refused.
pub(super) fn resolve(
    fields: &mut Fields<'_>,
    last: &Lookup,
    working_dir: &str,
    sockets: &[SocketConfig],
) -> Option<Vec<String>> {
    let [cmd, args, shell_args] = ["cmd", "args", "shell_args"].map(|key| {
        let text = expanded(fields, key, last, working_dir)?;
        check_sockets(fields, key, &text, sockets);
        if text.contains("$WID")
            && let Some(origin) = fields.origin(key)
        {
            fields.findings.warn(
                origin,
                format!("{key}: $WID is not replaced, as in Circus; write $(circus.wid)"),
            );
        }
        Some(text)
    });
    // Without a shell these would be silently lost.
    let shell = fields.boolean("shell", false);
    if !shell && let Some(origin) = fields.origin("shell_args") {
        fields
            .findings
            .warn(origin, "shell_args has no effect without shell = true");
    }
    let executable = fields
        .filled("executable")
        .map(|text| text.trim().to_owned());
    if shell {
        report_shell(fields);
    }
    let (cmd, args) = (cmd?, args.unwrap_or_default());
    if !shell {
        return direct(fields, executable, &cmd, &args);
    }
    // A continued line is one command, as it always was.
    let text = [cmd, args].join(" ").trim().replace('\n', " ");
    let shell = executable.unwrap_or_else(|| SHELL.to_owned());
    let mut argv = vec![shell, "-c".to_owned(), text];
    argv.extend(split(
        fields,
        "shell_args",
        &shell_args.unwrap_or_default(),
    )?);
    Some(argv)
}

/// The words of a command without a shell.
fn direct(
    fields: &mut Fields<'_>,
    executable: Option<String>,
    cmd: &str,
    args: &str,
) -> Option<Vec<String>> {
    for key in ["cmd", "args"] {
        report_signs(fields, key);
    }
    let words = split(fields, "cmd", cmd);
    let args = split(fields, "args", args);
    let (mut argv, args) = (words?, args?);
    if argv.is_empty()
        && let Some(origin) = fields.origin("cmd")
    {
        fields
            .findings
            .error(origin, "cmd: expected a program and its arguments");
        return None;
    }
    if let (Some(executable), Some(first)) = (executable, argv.first_mut()) {
        *first = executable;
    }
    argv.extend(args);
    Some(argv)
}

/// Circus quoted every word again, so that these had no meaning to the shell.
fn report_shell(fields: &mut Fields<'_>) {
    for key in ["cmd", "args"] {
        let Some(text) = fields.text(key) else {
            continue;
        };
        let text = variables::replace(&text, |_| Some(String::new()));
        if let Some(sign) = text.chars().find(|c| "|&;<>$`*?~".contains(*c))
            && let Some(origin) = fields.origin(key)
        {
            fields.findings.differs(
                origin,
                format!("{key}: the shell obeys `{sign}` here; Circus quoted it"),
            );
        }
    }
}

/// Reports what only a shell would obey, when there is none.
fn report_signs(fields: &mut Fields<'_>, key: &str) {
    let (Some(text), Some(origin)) = (fields.text(key), fields.origin(key)) else {
        return;
    };
    let text = variables::replace(&text, |_| Some("x".to_owned()));
    let Some(sign) = words::unquoted(&text).into_iter().find_map(shell_sign) else {
        return;
    };
    let meaning = if sign.starts_with(['$', '~', '`']) {
        "is not replaced without a shell; write $(circus.env.NAME), or shell = true"
    } else {
        "reaches the program as a word without a shell; for a pipe, a redirection or several commands write shell = true"
    };
    fields
        .findings
        .warn(origin, format!("{key}: {sign:?} {meaning}"));
}

/// What a shell would obey in a word, of which quoted parts have been left out.
fn shell_sign(word: String) -> Option<String> {
    const SIGNS: [&str; 6] = ["|", "||", "&", "&&", ";", ";;"];
    let number = word.trim_start_matches(|c: char| c.is_ascii_digit());
    let variable = word.find('$').is_some_and(|at| {
        let next = word[at + 1..].chars().next();
        // `$WID` has a warning of its own.
        !word[at..].starts_with("$WID")
            && next.is_some_and(|c| c.is_ascii_alphabetic() || matches!(c, '_' | '{'))
    });
    let obeyed = SIGNS.contains(&word.as_str())
        || number.starts_with(['>', '<'])
        || word.starts_with("&>")
        || (word.len() > 1 && word.ends_with(';'))
        || (word.len() > 1 && word.starts_with('|'))
        || word.starts_with("~/")
        || word.contains('`')
        || variable;
    obeyed.then_some(word)
}

/// The text of `key` with every variable replaced but the worker's and the sockets' numbers.
pub(super) fn expanded(
    fields: &Fields<'_>,
    key: &str,
    last: &Lookup,
    working_dir: &str,
) -> Option<String> {
    let text = fields.filled(key)?;
    Some(variables::replace(&text, |variable| {
        if variable == "working_dir" {
            return Some(working_dir.to_owned());
        }
        if is_key(variable) {
            return fields.text(&variable.replace("rlimits.", "rlimit_"));
        }
        last.get(variable)
    }))
}

fn check_sockets(fields: &mut Fields<'_>, key: &str, text: &str, sockets: &[SocketConfig]) {
    let mut used = false;
    for name in variables::keys(text) {
        let Some(name) = name.strip_prefix("sockets.") else {
            continue;
        };
        used = true;
        if sockets.iter().any(|socket| socket.name == name) {
            continue;
        }
        let Some(origin) = fields.origin(key) else {
            continue;
        };
        let known: Vec<_> = sockets.iter().map(|socket| socket.name.as_str()).collect();
        let accepted = if known.is_empty() {
            "there is no [socket:NAME] section".to_owned()
        } else {
            format!("expected one of {}", known.join(", "))
        };
        fields.findings.error(
            origin,
            format!("{key}: $(circus.sockets.{name}) names no socket: {accepted}"),
        );
    }
    if used
        && !fields.boolean("use_sockets", false)
        && let Some(origin) = fields.origin(key)
    {
        fields.findings.warn(
            origin,
            format!(
                "{key} refers to a socket, which the workers inherit only with use_sockets = true"
            ),
        );
    }
}

fn split(fields: &mut Fields<'_>, key: &str, text: &str) -> Option<Vec<String>> {
    match words::split(text) {
        Ok(words) => Some(words),
        Err(error) => {
            if let Some(origin) = fields.origin(key) {
                fields
                    .findings
                    .error(origin, format!("{key} {text:?}: {error}"));
            }
            None
        }
    }
}
