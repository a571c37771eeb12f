//! Reports keys that probably do not do what was intended.
//!
//! Owns the messages about unknown keys (those of another program, of another section, misspelt
//! ones), about keys without effect, and about variables that nothing replaces. Values are read
//! elsewhere.
//! Invariant: a key of another program that is about privilege or a limit is an error; everything
//! else warns.

use crate::fields::Fields;
use crate::ini::Entry;
use crate::known::{self, Effect, foreign};
use crate::scalar;
use crate::variables;
use crate::words;

/// What kind of section is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SectionKind {
    Circus,
    Watcher,
    Socket,
}

impl SectionKind {
    fn knows(self, key: &str) -> bool {
        match self {
            Self::Watcher => known::is_watcher_key(key),
            Self::Circus => known::find(known::CIRCUS, key).is_some(),
            Self::Socket => known::find(known::SOCKET, key).is_some(),
        }
    }

    fn suggestion(self, key: &str) -> Option<&'static str> {
        match self {
            Self::Circus => known::suggestion(known::CIRCUS, key),
            Self::Watcher => known::suggestion(known::WATCHER, key),
            Self::Socket => known::suggestion(known::SOCKET, key),
        }
    }

    fn effect(self, key: &str) -> Option<Effect> {
        match self {
            Self::Circus => known::find(known::CIRCUS, key).map(|key| key.effect),
            Self::Watcher => known::find(known::WATCHER, key).map(|key| key.effect),
            Self::Socket => known::find(known::SOCKET, key).map(|key| key.effect),
        }
    }

    fn header(self) -> &'static str {
        match self {
            Self::Circus => "[circus]",
            Self::Watcher => "[watcher:NAME]",
            Self::Socket => "[socket:NAME]",
        }
    }
}

/// Reports the keys of a section. The first `own` are its own, the others come from `[DEFAULT]`,
/// which is there for several kinds of sections. `free`: unknown ones may be a hook's or a
/// plugin's.
pub(super) fn report(fields: &mut Fields<'_>, kind: SectionKind, own: usize, free: bool) {
    report_without_effect(fields, kind);
    report_comments(fields);
    for (index, entry) in fields.entries().iter().enumerate() {
        if kind.knows(&entry.key) {
            continue;
        }
        let key = &entry.key;
        if let Some(foreign) = foreign::find(key).filter(|_| kind != SectionKind::Socket) {
            let (program, advice) = (foreign.program, foreign.advice());
            let text = format!("{key} is a key of {program} and has no effect here; {advice}");
            if foreign.grave {
                fields.findings.error(&entry.origin, text);
            } else if index < own {
                fields.findings.warn(&entry.origin, text);
            }
            continue;
        }
        if index >= own {
            continue;
        }
        if let Some(text) = unknown(key, kind, free) {
            fields.findings.warn(&entry.origin, text);
        }
    }
}

fn unknown(key: &str, kind: SectionKind, free: bool) -> Option<String> {
    // `hooks` and the like are told by those who read them.
    if kind == SectionKind::Watcher
        && [
            "env",
            "prereload_fn",
            "loop",
            "rlimits",
            "hooks",
            "stdout_stream",
            "stderr_stream",
        ]
        .contains(&key)
    {
        return None;
    }
    let others = [
        SectionKind::Watcher,
        SectionKind::Socket,
        SectionKind::Circus,
    ];
    if let Some(other) = others
        .into_iter()
        .find(|other| *other != kind && other.knows(key))
    {
        return Some(format!(
            "{key} has no effect in {}; it is a key of {}",
            kind.header(),
            other.header()
        ));
    }
    if let Some(meant) = kind.suggestion(key) {
        return Some(format!("{key} is not known; did you mean {meant}?"));
    }
    (!free).then(|| format!("{key} is not known and has no effect"))
}

/// One line for all keys without effect for the same reason, none for a value that switches
/// something off.
fn report_without_effect(fields: &mut Fields<'_>, kind: SectionKind) {
    let mut groups: Vec<(&'static str, Vec<&Entry>)> = Vec::new();
    for entry in fields.entries() {
        let Some(Effect::Inactive(what)) = kind.effect(&entry.key) else {
            continue;
        };
        if is_off(fields, entry) {
            continue;
        }
        match groups.iter_mut().find(|(other, _)| *other == what) {
            Some((_, entries)) => entries.push(entry),
            None => groups.push((what, vec![entry])),
        }
    }
    for (what, entries) in groups {
        let keys: Vec<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
        let text = match keys.as_slice() {
            [key] => format!("{key} {what}"),
            keys => {
                let what = what.strip_prefix("is ").map_or_else(
                    || what.replacen("has ", "have ", 1),
                    |rest| format!("are {rest}"),
                );
                format!("{} {what}", keys.join(", "))
            }
        };
        fields.findings.differs(&entries[0].origin, text);
    }
}

/// The value switches something off, or belongs to what is not switched on: nobody misses it.
fn is_off(fields: &Fields<'_>, entry: &Entry) -> bool {
    let off = |text: &str| text.trim().is_empty() || scalar::boolean(text) == Ok(false);
    let is_number = matches!(entry.key.as_str(), "httpd_port" | "priority");
    if !is_number && off(&fields.expand(&entry.value)) {
        return true;
    }
    entry.key.starts_with("httpd_") && fields.text("httpd").is_none_or(|httpd| off(&httpd))
}

/// `#` begins no comment behind a value, neither in Circus nor here.
fn report_comments(fields: &mut Fields<'_>) {
    let shell = fields
        .text("shell")
        .is_some_and(|text| scalar::boolean(&text) == Ok(true));
    for entry in fields.entries() {
        // To a shell it is a comment.
        if shell && matches!(entry.key.as_str(), "cmd" | "args") {
            continue;
        }
        let words = words::unquoted(&entry.value);
        let comment = words.iter().skip(1).any(|word| {
            let rest = word.trim_start_matches('#');
            rest.len() < word.len() && (rest.is_empty() || word.contains(char::is_alphabetic))
        });
        if comment {
            fields.findings.warn(
                &entry.value_origin,
                format!(
                    "{}: ` #` belongs to the value; behind one, only ` ;` begins a comment",
                    entry.key
                ),
            );
        }
    }
}

/// Keys in which `$(circus.wid)` and, in the first three, sockets and other keys are replaced for
/// each worker.
const FOR_EACH_WORKER: [&str; 5] = ["cmd", "args", "shell_args", "ready", "health"];

/// Reports variables that stay as text because nothing has their name. `later` knows those that are
/// replaced later on in `cmd`, `args` and `shell_args`.
pub(super) fn report_variables(fields: &mut Fields<'_>, later: impl Fn(&str) -> bool) {
    for entry in fields.entries() {
        let text = fields.expand(&entry.value);
        for variable in variables::unclosed(&entry.value) {
            let close = if variable.starts_with("((") {
                "))"
            } else {
                ")"
            };
            let message = format!(
                "{}: {variable} stays as it is written; expected {variable}{close}",
                entry.key
            );
            fields.findings.warn(&entry.value_origin, message);
        }
        let place = FOR_EACH_WORKER.iter().position(|key| *key == entry.key);
        for variable in variables::keys(&text) {
            let replaced = match place {
                Some(index) if index < 3 => {
                    variable == "wid" || variable.starts_with("sockets.") || later(&variable)
                }
                Some(_) => variable == "wid" || later(&variable),
                None => false,
            };
            // What came in with a value is not looked at again, and is nobody's mistake here.
            if replaced || !variables::keys(&entry.value).contains(&variable) {
                continue;
            }
            let key = &entry.key;
            let text = match variable.strip_prefix("env.") {
                Some(name) => {
                    format!("{key}: $(circus.env.{name}) is not set and stays as it is written")
                }
                None if place.is_none() && variable == "wid" => format!(
                    "{key}: $(circus.wid) is replaced in cmd, args, shell_args, ready and health only and stays as it is written"
                ),
                None => {
                    format!("{key}: there is no $(circus.{variable}); it stays as it is written")
                }
            };
            fields.findings.warn(&entry.value_origin, text);
        }
    }
}
